"""What is tried again, how long is waited, and what the user is told."""

from __future__ import annotations

import logging

import huggingface_hub.errors as hub_errors
import pytest
from huggingface_hub.utils import httpx

from cvgl_data.errors import DatasetError, HubError
from cvgl_data.hub import client


def refused(status: int, kind=hub_errors.HfHubHTTPError, **headers: str) -> Exception:
    request = httpx.Request("POST", "https://hub.test/api/datasets/someone/toy/commit/main")
    response = httpx.Response(status, headers=headers, request=request)
    return kind(f"{status} from the server", response=response)


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    found: list[float] = []
    monkeypatch.setattr(client.time, "sleep", found.append)
    return found


def failing(*failures: Exception):
    left = list(failures)

    def work():
        if left:
            raise left.pop(0)
        return "done"

    return work


@pytest.mark.parametrize(
    "error",
    [
        *(refused(status) for status in (408, 409, 412, 429, 500, 502, 503, 504)),
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("late"),
        ConnectionResetError("gone"),
    ],
    ids=str,
)
def test_what_passes_is_tried_again(waits, caplog, error):
    with caplog.at_level(logging.WARNING):
        assert client.again(failing(error, error), "committing") == "done"
    assert len(waits) == 2
    assert [record.getMessage().split(" (")[0] for record in caplog.records] == ["committing failed"] * 2


@pytest.mark.parametrize(
    "error",
    [
        *(refused(status) for status in (400, 401, 403, 404, 413)),
        refused(404, hub_errors.RepositoryNotFoundError),
        hub_errors.OfflineModeIsEnabled("offline"),
        ValueError("ours"),
        KeyboardInterrupt(),
    ],
    ids=repr,
)
def test_what_stays_is_not(waits, error):
    with pytest.raises(type(error)):
        client.again(failing(error), "committing")
    assert waits == []


def test_it_ends(waits):
    with pytest.raises(hub_errors.HfHubHTTPError):
        client.again(failing(*[refused(503)] * 99), "committing")
    assert len(waits) == client.ATTEMPTS - 1
    for number, wait_s in enumerate(waits):
        assert 0 < wait_s <= min(client.LONGEST_WAIT_S, client.FIRST_WAIT_S * 2**number)


def test_a_server_that_says_how_long_is_believed(waits):
    client.again(
        failing(refused(429, **{"Retry-After": "7"}), refused(429, **{"Retry-After": "1000000"})), "committing"
    )
    assert waits == [7.0, 10 * client.LONGEST_WAIT_S]


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (refused(401), "does not know who you are.*hf auth login"),
        (refused(401, hub_errors.RepositoryNotFoundError), "does not know who you are"),
        (refused(403), "may not write to 'someone/toy'"),
        (refused(404, hub_errors.RepositoryNotFoundError), "no dataset 'someone/toy' that you may see"),
        (refused(404, hub_errors.RevisionNotFoundError), "no such branch"),
        (refused(403, hub_errors.GatedRepoError), "is gated: ask for access"),
        (refused(503), "the Hub answered 503 .*run the same again"),
        (hub_errors.LocalTokenNotFoundError("none"), "no Hugging Face token"),
        (hub_errors.OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE is set"),
        (httpx.ConnectError("no route"), r"cannot be reached \(no route\)"),
        (TimeoutError(), "cannot be reached"),
        (hub_errors.HFValidationError("bad id"), "is no repository id"),
    ],
    ids=repr,
)
def test_the_user_is_told_what_to_do(error, text):
    with pytest.raises(HubError, match=text) as caught, client.explained("someone/toy", writing=True):
        raise error
    assert "\n" not in str(caught.value)


def test_other_errors_are_not_touched():
    with pytest.raises(ZeroDivisionError), client.explained("someone/toy"):
        raise ZeroDivisionError
    with pytest.raises(DatasetError, match="ours"), client.explained("someone/toy"):
        raise DatasetError("ours")


def test_keys_are_blanked_out():
    with pytest.raises(HubError) as caught, client.explained("someone/toy"):
        raise httpx.ConnectError("cannot get https://tiles.test/1?token=abc123")
    assert "abc123" not in str(caught.value)


@pytest.mark.parametrize("repo_id", ["user/name", "a/b", "My-Org/data_set.v2", "0x/1"])
def test_ids(repo_id):
    assert client.is_repo_id(repo_id)


@pytest.mark.parametrize(
    "text", ["", "name", "a/b/c", "./data", "/data/x", "~/x", "a/b c", "user/..", "a--b/c", "a/-b"]
)
def test_no_ids(text):
    assert not client.is_repo_id(text)
    with pytest.raises(HubError, match="like user/name"):
        client.check_repo_id(text)
