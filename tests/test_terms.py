import datetime
import json

import pyarrow.parquet as pq
import pytest
from fakes import FakeImagery, FakePanoramas

from cvgl_data import pipeline, terms
from cvgl_data.errors import RecipeError, TermsError
from cvgl_data.fetch import query_store, reference_store
from cvgl_data.images import encode_jpeg
from cvgl_data.recipe import DatasetRecipe, resolve
from cvgl_data.shards.verification import verify
from cvgl_data.sources import IMAGERY, PANORAMAS
from cvgl_data.types import Panorama, Terms
from cvgl_data.workspace import Workspace

STRICT = Terms(
    name="strict",
    url="https://example.org/terms",
    summary="You may look at the tiles, and nothing else.",
    redistributable=False,
    must_accept=True,
)
FREE = Terms(
    name="free", url="https://example.org/free", summary="Do what you like.", redistributable=True, must_accept=False
)
BOX = [-122.3300, 47.6200, -122.3270, 47.6215]


def panoramas_in_the_box():
    import numpy as np

    return {
        f"p{index}": Panorama(
            pano_id=f"p{index}",
            image=encode_jpeg(np.full((32, 64, 3), 10 * index, np.uint8)),
            lon=-122.3290 + 0.0001 * index,
            lat=47.6208,
        )
        for index in range(6)
    }


class StrictImagery(FakeImagery):
    name = "strict-tiles"
    terms = STRICT
    opened: list["StrictImagery"] = []  # noqa: RUF012 - shared on purpose

    def __init__(self):
        super().__init__()
        self.opened.append(self)


class FreePanoramas(FakePanoramas):
    name = "free-panoramas"
    terms = FREE

    def __init__(self):
        super().__init__(panoramas_in_the_box())


@pytest.fixture
def recipe(monkeypatch):
    """A recipe of two sources that are registered for the test."""
    StrictImagery.opened.clear()
    monkeypatch.setitem(IMAGERY._table, "strict-tiles", f"{__name__}:StrictImagery")
    monkeypatch.setitem(IMAGERY._table, "fake", "fakes:FakeImagery")
    monkeypatch.setitem(PANORAMAS._table, "free-panoramas", f"{__name__}:FreePanoramas")
    tables = {
        "name": "toy",
        "areas": [{"name": "block", "bbox": BOX}],
        "imagery": {"source": "strict-tiles"},
        "panoramas": {"source": "free-panoramas"},
        "split": {"block_m": 60},
    }
    return resolve(DatasetRecipe, tables)


def asked():
    return sum(source.asked.total() for source in StrictImagery.opened)


def record_of(folder):
    return terms.read(Workspace(folder).state)


# The check itself


def test_what_must_be_accepted_is_refused_with_everything_needed_to_decide():
    with pytest.raises(TermsError) as caught:
        terms.check([FREE, STRICT], [], {})
    for part in ("'strict'", STRICT.summary, STRICT.url, "--accept-terms strict"):
        assert part in str(caught.value)


def test_what_need_not_be_accepted_is_recorded_only_if_it_is():
    assert terms.check([FREE], [], {}) == {}
    assert terms.check([FREE], ["free"], {})["free"]["url"] == FREE.url


def test_the_record_says_when_and_what():
    before = datetime.datetime.now(datetime.UTC).date()
    record = terms.check([STRICT], ["strict"], {})
    after = datetime.datetime.now(datetime.UTC).date()
    assert before <= datetime.date.fromisoformat(record["strict"].pop("accepted")) <= after
    assert record == {"strict": {"url": STRICT.url, "summary": STRICT.summary}}


def test_what_was_accepted_once_keeps_its_date():
    earlier = {"strict": {"accepted": "2020-01-31", "url": "u", "summary": "s"}, "other": {"accepted": "2019-12-31"}}
    assert terms.check([STRICT], [], earlier) == earlier
    assert terms.check([STRICT], ["strict", "other"], earlier) == earlier
    assert terms.check([STRICT], [], earlier) is not earlier


@pytest.mark.parametrize(
    ("name", "used", "hint"),
    [
        ("strickt", [STRICT, FREE], "did you mean 'strict'?"),
        ("Google", [STRICT, FREE], "known: free, strict"),
        ("google", [], "its sources have no terms"),
    ],
)
def test_unknown_names_are_refused_with_a_hint(name, used, hint):
    with pytest.raises(RecipeError, match=f"has terms '{name}'") as caught:
        terms.check(used, ["strict", name] if used else [name], {})
    assert hint in str(caught.value)


@pytest.mark.parametrize(
    "content", ["", "[1]", "{", "null", '"strict"', '{"strict": true}', '{"strict": {}}', "[" * 100_000]
)
def test_a_damaged_record_asks_again(tmp_path, content):
    (tmp_path / "terms.json").write_text(content)
    assert terms.read(tmp_path) == {}
    with pytest.raises(TermsError):
        terms.check([STRICT], [], terms.read(tmp_path))


def test_records_are_read_as_written(tmp_path):
    assert terms.read(tmp_path) == {}
    terms.write(tmp_path, {})
    assert not list(tmp_path.glob("terms*"))
    record = {"strict": {"accepted": "2020-01-31", "url": "u", "summary": "Schöne Kacheln"}}
    terms.write(tmp_path, record)
    assert terms.read(tmp_path) == record
    assert [path.name for path in tmp_path.glob("terms*")] == ["terms.json"]


# In a build


def test_nothing_is_fetched_or_written_before_the_terms_are_accepted(recipe, tmp_path):
    with pytest.raises(TermsError, match="--accept-terms strict"), pipeline.start(recipe, tmp_path / "out"):
        pytest.fail("the build began")
    assert not (tmp_path / "out").exists()
    with pytest.raises(TermsError):
        pipeline.build(recipe, tmp_path / "out", accept_terms=["free"])
    with pytest.raises(RecipeError, match="did you mean 'strict'"):
        pipeline.build(recipe, tmp_path / "out", accept_terms=["stric"])
    assert asked() == 0


def test_accepted_once_is_enough_for_the_folder(recipe, tmp_path):
    out = tmp_path / "out"
    with pipeline.start(recipe, out, accept_terms=["strict"], kinds=["imagery"]) as begun:
        counts = begun.fetch_references()
    assert counts.keys() == {"ok"}
    record = record_of(out)
    assert record.keys() == {"strict"}
    assert datetime.date.fromisoformat(record["strict"]["accepted"])
    record["strict"]["accepted"] = "2020-01-31"  # as if that had been long ago
    terms.write(Workspace(out).state, record)

    report = pipeline.build(recipe, out)
    assert report.outcomes["references"] == counts
    assert record_of(out) == record
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["terms_accepted"] == record

    with pytest.raises(TermsError):  # another folder is another dataset
        pipeline.build(recipe, tmp_path / "other")
    pipeline.build(recipe, out, overwrite=True)
    assert record_of(out) == record


def test_only_the_terms_of_what_is_fetched_are_asked_for(recipe, tmp_path):
    with pipeline.start(recipe, tmp_path / "out", kinds=["panoramas"]) as begun:
        assert begun.fetch_queries() == {"ok": 6}
    with pytest.raises(TermsError), pipeline.start(recipe, tmp_path / "out", kinds=["imagery"]):
        pytest.fail("the build began")
    assert asked() == 0


def test_what_may_not_be_published_is_marked_row_by_row(recipe, tmp_path):
    out = tmp_path / "out"
    pipeline.build(recipe, out, accept_terms=["strict", "free"])
    with reference_store(Workspace(out)) as references, query_store(Workspace(out)) as queries:
        assert set(references.table()["no_redistribute"].to_pylist()) == {True}
        assert set(queries.table()["no_redistribute"].to_pylist()) == {False}
    gallery = pq.read_table(out / "data/references", columns=["no_redistribute", "source"])
    assert set(zip(*gallery.to_pydict().values(), strict=True)) == {(True, "strict-tiles")}
    assert record_of(out).keys() == {"strict", "free"}
    assert verify(out) == []


def test_sources_without_terms_are_free(recipe, tmp_path):
    recipe = resolve(
        DatasetRecipe,
        {"name": "toy", "areas": [{"bbox": BOX, "name": "block"}], "imagery": {"source": "fake"}},
    )
    with pipeline.start(recipe, tmp_path / "out", kinds=["imagery"]) as begun:
        begun.fetch_references()
    with reference_store(Workspace(tmp_path / "out")) as references:
        assert set(references.table()["no_redistribute"].to_pylist()) == {False}
    assert not (Workspace(tmp_path / "out").state / "terms.json").exists()
    with pytest.raises(RecipeError, match="its sources have no terms"):
        pipeline.build(recipe, tmp_path / "out", accept_terms=["strict"], kinds=["imagery"])
