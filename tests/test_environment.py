"""Keys and addresses from the environment: where they may come from, and that they show themselves nowhere."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import sys
import traceback
from dataclasses import asdict, dataclass
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvgl_data import environment
from cvgl_data.environment import Secret, base_url, mask, needed_secret, secret
from cvgl_data.errors import RecipeError
from cvgl_data.redaction import redact

NAME = "CVGL_TEST_KEY"
VALUE = "S3CR3T/+= value&1"

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="file modes are POSIX's")


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch):
    """Forget afterwards what was read: `mask` would change the texts of other tests."""
    monkeypatch.setattr(environment, "_known", set())
    monkeypatch.delenv(NAME, raising=False)
    monkeypatch.delenv(f"{NAME}_FILE", raising=False)


def written(tmp_path, content, mode=0o600):
    path = tmp_path / "key.txt"
    path.write_bytes(content)
    path.chmod(mode)
    return path


# Where keys come from


def test_without_either_there_is_none(monkeypatch):
    assert secret(NAME) is None
    monkeypatch.setenv(NAME, "  ")
    assert secret(NAME) is None


def test_a_key_in_the_environment(monkeypatch):
    monkeypatch.setenv(NAME, f" {VALUE}\n")
    found = secret(NAME)
    assert (found.reveal(), found.name) == (VALUE, NAME)
    assert needed_secret(NAME, "toy", "how").reveal() == VALUE


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_key_in_a_file(monkeypatch, tmp_path, mark):
    monkeypatch.setenv(f"{NAME}_FILE", str(written(tmp_path, mark + f"{VALUE}\n".encode())))
    assert secret(NAME).reveal() == VALUE
    monkeypatch.setenv(NAME, "the variable itself")
    assert secret(NAME).reveal() == "the variable itself"


def test_a_key_file_in_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    written(tmp_path, VALUE.encode())
    monkeypatch.setenv(f"{NAME}_FILE", "~/key.txt")
    assert secret(NAME).reveal() == VALUE


def test_an_empty_key_file_holds_no_key(monkeypatch, tmp_path):
    monkeypatch.setenv(f"{NAME}_FILE", str(written(tmp_path, b"\n")))
    assert secret(NAME) is None


@posix_only
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o610, 0o660, 0o644, 0o777])
def test_a_key_file_that_others_can_read_is_refused(monkeypatch, tmp_path, mode):
    path = written(tmp_path, VALUE.encode(), mode)
    monkeypatch.setenv(f"{NAME}_FILE", str(path))
    with pytest.raises(RecipeError, match=f"{NAME}_FILE.*chmod 600") as caught:
        secret(NAME)
    assert str(path) in str(caught.value)
    assert VALUE not in str(caught.value)


@posix_only
@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700])
def test_a_private_key_file_is_read(monkeypatch, tmp_path, mode):
    monkeypatch.setenv(f"{NAME}_FILE", str(written(tmp_path, VALUE.encode(), mode)))
    assert secret(NAME).reveal() == VALUE


def test_a_key_file_that_cannot_be_read_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv(f"{NAME}_FILE", str(tmp_path / "nowhere.txt"))
    with pytest.raises(RecipeError, match=f"nowhere.txt.*{NAME}_FILE.*No such file"):
        secret(NAME)
    (tmp_path / "folder").mkdir(mode=0o700)
    monkeypatch.setenv(f"{NAME}_FILE", str(tmp_path / "folder"))
    with pytest.raises(RecipeError, match="cannot be read"):
        secret(NAME)


def test_a_key_file_of_other_bytes_does_not_end_in_the_message(monkeypatch, tmp_path):
    monkeypatch.setenv(f"{NAME}_FILE", str(written(tmp_path, b"S3CR3T\xff\xfe")))
    with pytest.raises(RecipeError, match="is not text") as caught:
        secret(NAME)
    assert "S3CR3T" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("value", ["S3CR3T\nX-Header: 1", "S3CR3T\r", "S3CR3T\tmore", "S3CR3T\0"])
def test_a_key_of_several_lines_is_no_key(monkeypatch, tmp_path, value):
    """It would break a request, and aiohttp would say so together with the key."""
    monkeypatch.setenv(f"{NAME}_FILE", str(written(tmp_path, f"{value}x".encode())))
    with pytest.raises(RecipeError, match=f"{NAME} holds a line break or another control character") as caught:
        secret(NAME)
    assert "S3CR3T" not in str(caught.value)


def test_a_key_that_is_needed_says_where_to_get_one():
    with pytest.raises(RecipeError, match=f"'toy' needs a key in the environment variable {NAME} \\(ask around\\)"):
        needed_secret(NAME, "toy", "ask around")


# That they show themselves nowhere


@pytest.fixture
def key(monkeypatch):
    monkeypatch.setenv(NAME, VALUE)
    return secret(NAME)


def test_a_secret_never_shows_itself(key, caplog):
    logging.getLogger("test").warning("%s %r", key, key)
    shown = [
        repr(key),
        str(key),
        f"{key} {key!r} {key!s}",
        "%s" % key,  # noqa: UP031
        "{0} {0.name}".format(key),  # noqa: UP032
        repr({"key": [key]}),
        str(ValueError(key)),
        caplog.text,
    ]
    for text in shown:
        assert NAME in text
        assert "S3CR3T" not in text
    assert not hasattr(key, "__dict__")
    assert not [name for name in dir(key) if not name.startswith("_") and "S3CR3T" in str(getattr(key, name))]


def test_a_secret_cannot_be_saved_or_copied(key):
    @dataclass
    class Options:
        key: Secret

    attempts = [
        lambda: pickle.dumps(key),
        lambda: pickle.dumps(key, protocol=0),
        lambda: copy.copy(key),
        lambda: copy.deepcopy([key]),
        lambda: asdict(Options(key)),
        lambda: json.dumps({"key": key}),
    ]
    for attempt in attempts:
        with pytest.raises(TypeError) as caught:
            attempt()
        assert "S3CR3T" not in "".join(traceback.format_exception(caught.value))
    assert json.dumps({"key": key}, default=str) == f'{{"key": "Secret({NAME}=***)"}}'


@pytest.mark.parametrize("form", [VALUE, quote(VALUE, safe=""), quote_plus(VALUE)])
def test_what_was_read_is_masked_in_any_text(key, form):
    for text in (form, f"https://h/{form}/tile", f"?subscription={form}&a=1", f"Bearer {form}, {form}."):
        assert form not in mask(text)
        assert mask(text) == text.replace(form, "***")
        assert form not in redact(text)


def test_what_was_not_read_stays():
    assert mask(f"{VALUE} is a word") == f"{VALUE} is a word"


def test_of_two_keys_that_begin_alike_nothing_is_left(monkeypatch):
    for value in ("abcdef", "abcdef-ghi"):
        monkeypatch.setenv(NAME, value)
        secret(NAME)
    assert mask("abcdef-ghi abcdef") == "*** ***"


@given(st.text(st.characters(codec="ascii", categories=["L", "N", "P", "S"]), min_size=4, max_size=40))
def test_any_key_is_masked_wherever_it_stands(value):
    Secret(NAME, value)
    url = f"https://example.org/{quote(value, safe='')}?any={quote_plus(value)}"
    assert quote(value, safe="") not in mask(url)
    assert quote_plus(value) not in mask(url)
    assert value not in mask(f"the key {value} was refused")


# Addresses


@pytest.mark.parametrize(
    ("value", "url"),
    [
        ("", "https://default.example.org/v1"),
        ("  ", "https://default.example.org/v1"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("http://127.0.0.1:8080/", "http://127.0.0.1:8080"),
        (" https://mirror.example.org/a/b// ", "https://mirror.example.org/a/b"),
        ("http://[::1]:8080/x", "http://[::1]:8080/x"),
    ],
)
def test_addresses(monkeypatch, value, url):
    monkeypatch.setenv("CVGL_TEST_URL", value)
    assert base_url("CVGL_TEST_URL", "https://default.example.org/v1/") == url


@pytest.mark.parametrize(
    "value",
    [
        "mirror.example.org",
        "//h",
        "ftp://h/x",
        "http://",
        "https:///path",
        "http://h:port",
        "http://h:0/",
        "http://h:99999",
        "http://[::1",
        "http://h/x?token=S3CR3T",
        "http://h/x#S3CR3T",
        "http://h/?",
    ],
)
def test_what_is_no_address_is_refused(monkeypatch, value):
    monkeypatch.setenv("CVGL_TEST_URL", value)
    with pytest.raises(RecipeError, match=r"^CVGL_TEST_URL is '.*must begin with http") as caught:
        base_url("CVGL_TEST_URL", "https://default.example.org")
    assert "S3CR3T" not in str(caught.value)


def test_a_key_in_a_wrong_address_is_masked(monkeypatch, key):
    monkeypatch.setenv("CVGL_TEST_URL", f"ftp://h/{VALUE}")
    with pytest.raises(RecipeError) as caught:
        base_url("CVGL_TEST_URL", "https://default.example.org")
    assert VALUE not in str(caught.value)


def test_a_password_in_an_address_is_masked_from_then_on(monkeypatch):
    address = "//me:pa%2bsw0rd@mirror.example.org/x"
    monkeypatch.setenv("CVGL_TEST_URL", f"http:{address}")
    assert base_url("CVGL_TEST_URL", "https://default.example.org") == f"http:{address}"
    monkeypatch.setenv("CVGL_TEST_URL", f"ftp:{address}")
    with pytest.raises(RecipeError, match=r"'ftp://me:\*\*\*@mirror.example.org/x'"):
        base_url("CVGL_TEST_URL", "https://default.example.org")
    assert mask("http://me:pa%2bsw0rd@mirror and pa+sw0rd") == "http://me:***@mirror and ***"
