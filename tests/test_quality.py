"""The quality tables: flags and verdicts of whole datasets, whatever the batches, order and number of workers."""

from __future__ import annotations

import hashlib
from functools import cache
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest

from cvgl_data import schema
from cvgl_data.errors import RecipeError, SchemaError
from cvgl_data.fetch.repeats import LEAST
from cvgl_data.fetch.rows import QUERY_ROWS, REFERENCE_ROWS
from cvgl_data.images import encode_jpeg
from cvgl_data.quality import CHECKS, assess, count_failures
from cvgl_data.quality.table import LEAST_PLACES
from cvgl_data.recipe import QualityRecipe, resolve
from cvgl_data.types import Window

X, Y = 10_748_928, 23_436_032  # a window in Seattle
RECIPE = QualityRecipe()


@cache
def scene(seed: int, width: int, height: int) -> np.ndarray:
    """Soft shapes with fine grain that close around the horizon: sharp, well exposed, unlike any other seed."""
    random = np.random.default_rng(seed)
    coarse = np.tile(random.uniform(30, 190, (8, 16, 3)).astype(np.float32), (1, 3, 1))
    coarse = cv2.resize(coarse, (3 * width, height), interpolation=cv2.INTER_CUBIC)[:, width : 2 * width]
    return np.clip(coarse + random.normal(0, 12, (height, width, 1)), 0, 255).astype(np.uint8)


def reference(row: int, image: bytes | None = None, **changes: Any) -> dict[str, Any]:
    window = Window(X + 256 * row, Y, 256, 18)
    image = encode_jpeg(scene(row, 128, 128)) if image is None else image
    lon, lat = window.center
    return {
        "reference_id": window.key,
        "image": image,
        **window._asdict(),
        "lon": lon,
        "lat": lat,
        "area": "seattle",
        "captured": "2020-06",
        "sha256": hashlib.sha256(image).hexdigest(),
        "status": "ok",
        **changes,
    }


def query(row: int, image: bytes | None = None, **changes: Any) -> dict[str, Any]:
    image = encode_jpeg(scene(1000 + row, 256, 128)) if image is None else image
    lon, lat = Window(X + 256 * row, Y, 256, 18).center
    return {
        "query_id": f"pano_{row:03d}",
        "image": image,
        "lon": lon,
        "lat": lat,
        "area": "seattle",
        "captured": "2021-06-15T12:00:00Z",
        "sequence": "",
        "sha256": hashlib.sha256(image).hexdigest(),
        "status": "ok",
        **changes,
    }


def batches(rows: list[dict[str, Any]], columns: pa.Schema, size: int = 3) -> list[pa.RecordBatch]:
    return [pa.RecordBatch.from_pylist(rows[i : i + size], schema=columns) for i in range(0, len(rows), size)]


def checked(
    references: list[dict[str, Any]], queries: list[dict[str, Any]], recipe: QualityRecipe = RECIPE, **options: Any
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    tables = assess(batches(references, REFERENCE_ROWS), batches(queries, QUERY_ROWS), recipe, **options)
    for table in tables:
        assert table.schema.equals(schema.QUALITY, check_metadata=True)
    of_references, of_queries = ({row["id"]: row for row in table.to_pylist()} for table in tables)
    return of_references, of_queries


def mixed() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Good and bad images of both kinds."""
    same = encode_jpeg(scene(3, 128, 128))
    pixels = scene(1002, 256, 128)
    references = [reference(row) for row in range(6)]
    references += [reference(6, same), reference(7, b"broken"), reference(8, encode_jpeg(scene(8, 128, 96)))]
    references += [reference(9 + row, encode_jpeg(np.full((128, 128, 3), 250, np.uint8))) for row in range(3)]
    queries = [query(row, captured=f"{2016 + row}-06-15") for row in range(9)]
    queries += [query(20, encode_jpeg(pixels), lon=queries[2]["lon"] + 1e-4, lat=queries[2]["lat"])]
    queries += [query(21, encode_jpeg(pixels + 6), lon=queries[2]["lon"] + 2e-4, lat=queries[2]["lat"])]
    queries += [query(22, encode_jpeg(pixels + 6)), query(23, encode_jpeg(scene(23, 200, 128)))]
    queries += [query(24, encode_jpeg(pixels)[:-30]), query(25, lon=None, lat=None, captured=None)]
    return references, queries


def test_good_images_fail_nothing() -> None:
    tables = checked([reference(row) for row in range(4)], [query(row) for row in range(4)])
    for rows in tables:
        assert len(rows) == 4
        for row in rows.values():
            assert row["keep"]
            assert row["reason"] == ""
            assert not any(row[check] for check in CHECKS)
    assert {row["area"] for row in tables[0].values()} == {"seattle"}
    assert [row["kind"] for row in tables[1].values()] == ["query"] * 4


def test_each_fault_is_found_and_named() -> None:
    references, queries = mixed()
    of_references, of_queries = checked(references, queries)
    reasons = {row["id"]: row["reason"] for rows in (of_references, of_queries) for row in rows.values()}
    ids = [row["reference_id"] for row in references]
    assert [reasons[key] for key in ids[:6]] == [""] * 6
    assert reasons[ids[6]] == "duplicate"
    assert of_references[ids[6]]["duplicate_of"] == ids[3]
    assert reasons[ids[7]] == "undecodable"
    assert reasons[ids[8]] == "wrong_shape"
    assert (of_references[ids[8]]["width"], of_references[ids[8]]["height"]) == (128, 96)
    assert reasons[ids[9]] == "constant,overexposed,no_data"
    assert reasons[ids[10]] == "constant,overexposed,no_data,duplicate"
    # 2016 to 2024 against 2020-06; pano_008 stands where the reference is, all others have one, too
    assert of_queries["pano_000"]["age_gap_years"] == pytest.approx(-4.0, abs=0.01)
    assert of_queries["pano_008"]["age_gap_years"] == pytest.approx(4.0, abs=0.01)
    assert [key for key in reasons if "age_gap" in reasons[key]] == []
    assert reasons["pano_020"] == reasons["pano_021"] == "duplicate"
    assert of_queries["pano_020"]["duplicate_of"] == of_queries["pano_021"]["duplicate_of"] == "pano_002"
    assert reasons["pano_022"] == "duplicate"  # far away, but the very bytes of 21
    assert of_queries["pano_022"]["duplicate_of"] == "pano_002"
    assert reasons["pano_023"] == "wrong_shape"
    assert reasons["pano_024"] == "undecodable"
    assert reasons["pano_025"] == ""


def test_what_does_not_apply_is_null() -> None:
    references, queries = mixed()
    of_references, of_queries = checked(references, queries)
    good = of_references[references[0]["reference_id"]]
    for name in ("nadir_blank_deg", "seam_ratio", "blank_nadir", "seam", "age_gap", "wrong_heading", "duplicate_of"):
        assert good[name] is None
    assert of_queries["pano_000"]["fill_share"] is None
    assert of_queries["pano_000"]["water"] is None
    assert of_queries["pano_025"]["age_gap"] is None  # nobody knows when
    assert of_queries["pano_023"]["seam"] is None  # not a full circle
    broken = of_queries["pano_024"]
    assert [check for check in CHECKS if broken[check]] == ["undecodable"]
    assert broken["blurred"] is broken["width"] is broken["perceptual_hash"] is broken["duplicate"] is None
    blank = of_references[references[9]["reference_id"]]
    assert blank["sharpness"] is blank["blurred"] is None


@pytest.mark.parametrize("size", [1, 2, 5, 100])
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("is_struct", [False, True])
def test_batches_and_workers_make_no_difference(size: int, workers: int, is_struct: bool) -> None:
    references, queries = mixed()
    expected = assess(batches(references, REFERENCE_ROWS), batches(queries, QUERY_ROWS), RECIPE)
    columns = REFERENCE_ROWS, QUERY_ROWS
    if is_struct:
        columns = schema.REFERENCES, schema.QUERIES
        for row in references + queries:
            row["image"] = {"bytes": row["image"], "path": None}
    found = assess(
        iter(batches(references, columns[0], size)), iter(batches(queries, columns[1], size)), RECIPE, workers=workers
    )
    assert found[0].equals(expected[0])
    assert found[1].equals(expected[1])


def test_order_makes_no_difference() -> None:
    references, queries = mixed()
    expected = checked(references, queries)
    random = np.random.default_rng(0)
    for _ in range(3):
        random.shuffle(references)
        random.shuffle(queries)
        found = checked(references, queries)
        assert found == expected
        assert list(found[1]) == [row["query_id"] for row in queries]  # rows in the given order


def test_drop_decides_what_is_kept() -> None:
    references, queries = mixed()
    for drop in ((), ("undecodable",), ("duplicate", "wrong_shape"), CHECKS):
        for rows in checked(references, queries, QualityRecipe(drop=drop)):
            for row in rows.values():
                failed = row["reason"].split(",") if row["reason"] else []
                assert failed == [check for check in CHECKS if row[check]]
                assert row["keep"] == (not set(failed) & set(drop))
    assert not all(row["keep"] for row in checked(references, queries)[0].values())


def test_thresholds_come_from_the_recipe() -> None:
    rows = [query(row, captured="2022-06-15") for row in range(2)]
    strict = QualityRecipe(age_gap_max_years=1.0, query_sharpness_min=1e6, luma_mean_min=200)
    _, found = checked([reference(row) for row in range(2)], rows, strict)
    assert {row["reason"] for row in found.values()} == {"blurred,underexposed,age_gap"}
    assert found["pano_000"]["age_gap_years"] == pytest.approx(2.0, abs=0.01)


def test_a_status_of_constant_tile_means_no_data() -> None:
    found, _ = checked([reference(0, status="constant_tile"), reference(1)], [])
    assert [row["reason"] for row in found.values()] == ["no_data", ""]
    assert LEAST_PLACES == LEAST


def test_a_heading_against_the_drive_is_found() -> None:
    num = 12
    lon, lat = Window(X, Y, 256, 18).center
    rows = [
        query(
            row,
            lon=lon,
            lat=lat + row * 5e-5,  # due north, 5.6 m apart
            sequence="drive",
            captured=f"2021-06-15T12:00:{row:02d}Z",
            source_heading_deg=90.0 if row != 4 else 260.0,  # mounted sideways
        )
        for row in range(num)
    ]
    rows[9]["source_heading_deg"] = None
    _, found = checked([reference(0)], rows)
    assert {row["heading_offset_deg"] for row in found.values()} == {90.0}
    assert [row["id"] for row in found.values() if row["wrong_heading"]] == ["pano_004"]
    assert found["pano_004"]["heading_error_deg"] == pytest.approx(170.0, abs=0.1)
    assert found["pano_009"]["wrong_heading"] is None


def test_nothing_to_check() -> None:
    for table in assess([], [], RECIPE):
        assert table.num_rows == 0
        assert table.schema.equals(schema.QUALITY, check_metadata=True)
    assert count_failures(*assess([], [], RECIPE)) == []
    _, found = checked([], [query(0)])
    assert found["pano_000"]["age_gap"] is None


def test_counts_of_failures() -> None:
    references, queries = mixed()
    tables = assess(batches(references, REFERENCE_ROWS), batches(queries, QUERY_ROWS), RECIPE)
    counts = {(count.kind, count.check): count[2:] for count in count_failures(*tables)}
    assert counts["reference", "undecodable"] == (12, 1, 1)
    assert counts["reference", "duplicate"] == (11, 3, 0)
    assert counts["query", "duplicate"] == (14, 3, 0)
    assert counts["query", "seam"][0] == 13
    assert ("reference", "seam") not in counts
    assert ("query", "water") not in counts


def test_progress_is_told_of_every_image() -> None:
    told: list[Any] = []

    class Listener:
        def stage(self, name: str, total: int | None) -> None:
            told.append(name)

        def advance(self, count: int = 1, note: str | None = None) -> None:
            told.append(count)

    checked([reference(row) for row in range(4)], [query(0)], progress=Listener())
    assert told == ["quality of references", 3, 1, "quality of queries", 1]


def test_tables_that_do_not_fit_are_refused() -> None:
    one = batches([reference(0)], REFERENCE_ROWS)
    with pytest.raises(SchemaError, match="no column 'sha256'"):
        assess([one[0].drop_columns(["sha256"])], [], RECIPE)
    with pytest.raises(SchemaError, match="appears more than once"):
        assess([one[0], one[0]], [], RECIPE)


def test_checks_are_the_flags_of_the_table() -> None:
    flags = [field.name for field in schema.QUALITY if pa.types.is_boolean(field.type) and field.name != "keep"]
    assert flags == list(CHECKS)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"drop": ["waters"]}, "'waters'; did you mean 'water'"),
        ({"drop": ["nonsense"]}, "unknown quality check 'nonsense'"),
        ({"luma_std_min": -1}, "'luma_std_min' is -1"),
        ({"seam_ratio_max": float("nan")}, "'seam_ratio_max' is nan"),
        ({"query_duplicate_bits": 40}, "more than 16 of 64 bits"),
        ({"course_min_m": 200.0}, "'course_min_m'"),
        ({"sharpnes": 3}, "unknown recipe key 'sharpnes'"),
    ],
)
def test_wrong_recipes_are_refused(table: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        resolve(QualityRecipe, table)
