import json

import pytest
from pydantic import ConfigDict

from cvgl_data.errors import FetchError
from cvgl_data.http import answers
from cvgl_data.http.responses import Response
from cvgl_data.types import Outcome


class Strict(answers.Model):
    model_config = ConfigDict(strict=True)

    lon: answers.Lon
    name: answers.Text = ""


def refused(kind, value):
    with pytest.raises(FetchError) as caught:
        answers.check(kind, value, source="s", item="i")
    error = caught.value
    assert (error.outcome, error.source, error.item) == (Outcome.DECODE_ERROR, "s", "i")
    str(error).encode()
    return str(error)


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (answers.Text, ["", "é", "\U0001f600"], ["\ud800", "a\udfff", 1, None, True]),
        (answers.Flag, [True, False], [1, 0, "true", None]),
        (answers.Whole, [0, -1, 10**30], [1.0, "1", True, None]),
        (answers.Number, [0, -1.5, 1e300], [float("nan"), float("inf"), "1", True, None, 10**400]),
        (answers.Lon, [-180, 180.0], [-180.001, 181, float("nan"), "7"]),
        (answers.Lat, [-90, 90.0], [90.001, -91, float("inf"), [7]]),
    ],
)
def test_field_types(kind, good, bad):
    for value in good:
        assert answers.check(kind, value, source="s", item="i") == value
    for value in bad:
        refused(kind, value)


def test_points_may_have_an_altitude():
    for coordinates in ([7.5, 48.5], [7.5, 48.5, 140]):
        point = answers.check(answers.Point, {"type": "Point", "coordinates": coordinates}, source="s", item="i")
        assert point.coordinates[:2] == (7.5, 48.5)
    for coordinates in ([48.5], [7.5, 90.5], [7.5, 48.5, float("nan")], [7.5, 48.5, 1, 2], None, "7,48"):
        assert "coordinates" in refused(answers.Point, {"coordinates": coordinates})


def test_models_ignore_what_is_not_needed_and_can_be_made_strict():
    assert answers.check(Strict, {"lon": 7, "more": []}, source="s", item="i").lon == 7
    for value in ({"lon": "7"}, {"lon": 200}, {"lon": 7, "name": "\ud800"}, [], None):
        refused(Strict, value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://h/x?y=1", True),
        ("http://127.0.0.1:8080", True),
        ("", False),
        ("sd.jpg", False),
        ("ftp://h/x", False),
        ("http://", False),
        ("http://[", False),
        ("http://h:99999/", False),
        ("http://h:0/", False),
        ("http://h/\ud800", False),
    ],
)
def test_addresses(text, expected):
    assert answers.is_address(text) is expected


@pytest.mark.parametrize("body", [b"", b"<html>", b"{", b"\xff\xfe", b"[" * 100_000])
def test_what_is_not_json_is_of_the_wrong_type(body):
    response = Response("http://h/x?key=S3CR3T", 200, {"Content-Type": "text/html"}, body)
    with pytest.raises(FetchError, match="is not JSON") as caught:
        answers.load(response, source="s", item="i")
    assert caught.value.outcome is Outcome.WRONG_TYPE
    assert "S3CR3T" not in str(caught.value)
    good = Response("http://h/x", 200, {}, json.dumps({"lon": 7.5}).encode())
    assert answers.read(Strict, good, source="s", item="i").lon == 7.5
