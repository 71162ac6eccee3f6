"""Which images may be published: the licence of each row decides, and what is not known is not allowed."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvgl_data.errors import CvglError, HubError, RedistributionError
from cvgl_data.hub.redistribution import Refusal, check, describe, refusals, write
from cvgl_data.shards.licences import Standing, hub_names, normalized, standing
from cvgl_data.sources.panoramax import PanoramaxPanoramas
from cvgl_data.sources.simulated import LICENCE

OPEN = """CC0-1.0; cc0; CC-BY-4.0; CC BY 4.0; cc_by_sa_4.0; CC-BY-SA-3.0; CC-BY-NC-4.0; CC-BY-NC-SA-4.0; CC-BY-2.0-FR;
    ODbL-1.0; odbl; ODC-BY-1.0; PDDL-1.0; etalab-2.0; ETALAB-2.0; Licence-Ouverte-2.0; OGL-UK-3.0; public domain;
    US-Government-Works; Unlicense"""
UNKNOWN = """Esri Master License Agreement; LicenseRef-Google-Maps-Platform-Terms; proprietary; CC; CC-BY; CC-BY-5.0;
    CC-BY-4.0 or commercial; not CC0-1.0; all rights reserved; unknown; free"""
NO_DERIVATIVES = "CC-BY-ND-4.0; CC BY-NC-ND 4.0; CC-BY-NC-ND-3.0-US"


def names(text: str) -> list[str]:
    return [name.strip() for name in text.split(";")]


@pytest.mark.parametrize("licence", names(OPEN))
def test_open(licence):
    assert standing(licence) is Standing.OPEN


@pytest.mark.parametrize("licence", names(UNKNOWN))
def test_unknown(licence):
    assert standing(licence) is Standing.UNKNOWN


@pytest.mark.parametrize("licence", names(NO_DERIVATIVES))
def test_images_here_are_changed_copies(licence):
    assert standing(licence) is Standing.NO_DERIVATIVES


@pytest.mark.parametrize("licence", ["", "  ", None])
def test_no_licence_is_no_permission(licence):
    assert standing(licence) is Standing.NONE


def test_what_our_open_sources_say_is_open():
    assert standing(LICENCE) is Standing.OPEN
    assert standing(PanoramaxPanoramas.licence) is Standing.NONE  # each picture has its own


@given(st.text())
def test_anything_can_be_asked(licence):
    assert normalized(normalized(licence)) == normalized(licence)
    assert standing(licence) in Standing
    assert hub_names([licence])


def table(kind: str, *rows: tuple[str, str | None, bool | None]) -> pa.Table:
    licences, restricted = [row[1] for row in rows], [row[2] for row in rows]
    return pa.table(
        {
            f"{kind}_id": [row[0] for row in rows],
            "source": ["toy"] * len(rows),
            "licence": pa.array(licences, pa.string()),
            "no_redistribute": pa.array(restricted, pa.bool_()),
        }
    )


REFERENCES = table("reference", ("a", "CC0-1.0", True), ("b", "CC0-1.0", False), ("c", "CC-BY-ND-4.0", None))
QUERIES = table("query", ("p", None, False), ("q", "CC-BY-SA-4.0", None), ("r", "mine", True))


def test_every_row_is_judged():
    found = refusals(REFERENCES, [QUERIES.slice(0, 2), QUERIES.slice(2)])
    assert [(row.id, row.kind, row.reason) for row in found] == [
        ("a", "reference", "no_redistribute"),
        ("c", "reference", "no_derivatives"),
        ("p", "query", "no_licence"),
        ("r", "query", "no_redistribute"),
    ]


def test_the_error_counts_and_names():
    with pytest.raises(RedistributionError) as caught:
        check(REFERENCES, [QUERIES])
    assert isinstance(caught.value, HubError)
    assert isinstance(caught.value, CvglError)
    assert len(caught.value.rows) == 4
    text = str(caught.value)
    assert "\n" not in text
    assert "1 reference of 'toy': the licence forbids changed copies (no_derivatives)" in text
    assert "First: a (CC0-1.0), c (CC-BY-ND-4.0), p, r (mine)." in text
    many = [Refusal(str(number), "query", "toy", "", "no_licence") for number in range(12_000)]
    assert "12,000 queries of 'toy'" in describe(many)
    assert "First: 0, 1, 2, 3, 4 and 11,995 more" in describe(many)
    assert len(describe(many)) < 400


def test_nothing_refused():
    check(REFERENCES.slice(1, 1), [QUERIES.slice(1, 1)])
    check(REFERENCES.slice(0, 0), [])


def test_all_rows_in_a_file(tmp_path):
    write(tmp_path / "rows.csv", refusals(REFERENCES, [QUERIES]))
    assert (tmp_path / "rows.csv").read_text() == (
        "id,kind,source,licence,reason\n"
        "a,reference,toy,CC0-1.0,no_redistribute\n"
        "c,reference,toy,CC-BY-ND-4.0,no_derivatives\n"
        "p,query,toy,,no_licence\n"
        "r,query,toy,mine,no_redistribute\n"
    )
