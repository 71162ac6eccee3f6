"""The quality tables: measures of every image, flags, and the verdict."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cvgl_data.errors import SchemaError
from cvgl_data.pairing import POSITIVE, pair
from cvgl_data.quality import repeats
from cvgl_data.quality.course import check_headings
from cvgl_data.quality.dates import seconds_of, year_of
from cvgl_data.quality.images import Measures, measure_query, measure_reference
from cvgl_data.recipe.quality import CHECKS, QualityRecipe
from cvgl_data.schema import QUALITY
from cvgl_data.types import Outcome, Progress, Silent

_IMAGES_AT_ONCE = 64
LEAST_PLACES = 3
"""References with the very same bytes that make a placeholder; as in packing, which marks them ``constant_tile``."""

_REFERENCE_COLUMNS = ("reference_id", "x", "y", "size", "zoom", "lon", "lat", "area", "captured", "sha256", "status")
_QUERY_COLUMNS = ("query_id", "lon", "lat", "area", "captured", "sequence", "source_heading_deg", "sha256")

_SAME_MEAN, _SAME_STD = 4.0, 2.0
"""References that look the same, wherever they lie, also have nearly the same brightness and contrast."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Columns = dict[str, Any]


def assess(
    references: Iterable[pa.RecordBatch],
    queries: Iterable[pa.RecordBatch],
    recipe: QualityRecipe,
    *,
    workers: int = 1,
    progress: Progress | None = None,
) -> tuple[pa.Table, pa.Table]:
    """Check every image and return the quality tables of references and queries.

    Only one batch of images is held in memory. The result depends neither on the batches nor on the number of workers,
    and each image's row not on the order of the images.

    Args:
        references: Batches with the columns of schema ``REFERENCES``; ``image`` is the Hub struct or plain binary.
        queries: Batches with the columns of schema ``QUERIES`` likewise.
        recipe: Thresholds, and which checks take an image out.
        workers: Threads that decode and measure; 0 means one per core.
        progress: Told about the two stages and every image.

    Returns:
        Two tables of schema ``QUALITY``, a row for each image in the given order.

    Raises:
        SchemaError: If a column is missing or an id appears twice.
    """
    progress = progress or Silent()
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        progress.stage("quality of references", None)
        gallery, of_references = _measure(references, _REFERENCE_COLUMNS, measure_reference, pool, progress)
        progress.stage("quality of queries", None)
        seen, of_queries = _measure(queries, _QUERY_COLUMNS, measure_query, pool, progress)
    return (
        _table("reference", gallery, _judge_references(gallery, of_references, recipe), recipe),
        _table("query", seen, _judge_queries(seen, of_queries, gallery, recipe), recipe),
    )


def _measure(
    batches: Iterable[pa.RecordBatch],
    names: Sequence[str],
    measure: Callable[[bytes | None], Measures],
    pool: ThreadPoolExecutor,
    progress: Progress,
) -> tuple[pa.Table, list[Measures]]:
    """Return the columns that are needed besides the images, and what was measured on these."""
    parts: list[pa.RecordBatch] = []
    measures: list[Measures] = []
    fields = None
    for batch in batches:
        missing = [name for name in ("image", *names) if name not in batch.schema.names]
        if missing:
            raise SchemaError(f"images to check have no column '{missing[0]}' (found: {', '.join(batch.schema.names)})")
        parts.append(batch.select(list(names)))
        fields = fields or parts[0].schema.remove_metadata()
        for images in _images(batch):
            measures += pool.map(measure, images)
            progress.advance(len(images))
    if fields is None:
        fields = pa.schema([(name, _TYPES.get(name, pa.string())) for name in names])
    return pa.Table.from_batches([part.cast(fields) for part in parts], schema=fields).combine_chunks(), measures


_TYPES = {
    **dict.fromkeys(("x", "y"), pa.int64()),
    **dict.fromkeys(("size", "zoom"), pa.int32()),
    **dict.fromkeys(("lon", "lat", "source_heading_deg"), pa.float64()),
}


def _images(batch: pa.RecordBatch) -> Iterator[list[bytes | None]]:
    """Yield the encoded images of a batch, a few at a time."""
    column = batch.column("image")
    if pa.types.is_struct(column.type):
        column = pc.struct_field(column, "bytes")
    for start in range(0, len(column), _IMAGES_AT_ONCE):
        yield column.slice(start, _IMAGES_AT_ONCE).to_pylist()


def _judge_references(rows: pa.Table, measures: list[Measures], recipe: QualityRecipe) -> Columns:
    columns = _common(measures, recipe, recipe.reference_sharpness_min)
    is_square = columns["width"] == columns["height"]
    order, copies = _copies(rows, "reference_id", "references")
    hashes, is_hashed = _hashes(measures, columns, recipe)
    is_hashed &= copies == np.arange(len(copies))
    by_id = np.argsort(order)
    pairs = by_id[repeats.repeated_anywhere(hashes[by_id], is_hashed[by_id], recipe.reference_duplicate_bits)]
    alike = np.abs(columns["luma_mean"][pairs[:, 0]] - columns["luma_mean"][pairs[:, 1]]) <= _SAME_MEAN
    alike &= np.abs(columns["luma_std"][pairs[:, 0]] - columns["luma_std"][pairs[:, 1]]) <= _SAME_STD
    is_placeholder = np.bincount(copies, minlength=len(copies))[copies] >= LEAST_PLACES
    is_placeholder |= pc.fill_null(pc.equal(rows["status"], Outcome.CONSTANT_TILE.value), False).to_numpy()
    return columns | {
        "wrong_shape": _flag(~is_square, columns["width"]),
        "no_data": _flag((columns["fill_share"] > recipe.fill_share_max) | is_placeholder, columns["fill_share"]),
        "water": _flag(columns["water_share"] > recipe.water_share_max, columns["water_share"]),
        **_duplicates(rows["reference_id"], pairs[alike], order, copies, columns),
    }


def _judge_queries(rows: pa.Table, measures: list[Measures], references: pa.Table, recipe: QualityRecipe) -> Columns:
    columns = _common(measures, recipe, recipe.query_sharpness_min)
    is_panorama = columns["width"] == 2 * columns["height"]
    order, copies = _copies(rows, "query_id", "queries")
    hashes, is_hashed = _hashes(measures, columns, recipe)
    lon, lat = _floats(rows["lon"]), _floats(rows["lat"])
    is_hashed &= copies == np.arange(len(copies))
    pairs = repeats.repeated_nearby(lon, lat, hashes, is_hashed, recipe.duplicate_within_m, recipe.query_duplicate_bits)
    sequences = pc.if_else(pc.equal(rows["sequence"], ""), None, rows["sequence"]).combine_chunks()
    headings = check_headings(
        pc.fill_null(sequences.dictionary_encode().indices, -1).to_numpy().astype(np.int64),
        _mapped(rows["captured"], seconds_of),
        lon,
        lat,
        _floats(rows["source_heading_deg"]),
        min_m=recipe.course_min_m,
        max_m=recipe.course_max_m,
    )
    gap = _age_gap_years(rows, references)
    return columns | {
        "wrong_shape": _flag(~is_panorama, columns["width"]),
        "blank_nadir": _flag(columns["nadir_blank_deg"] > recipe.nadir_blank_max_deg, columns["nadir_blank_deg"]),
        "seam": _flag(columns["seam_ratio"] > recipe.seam_ratio_max, columns["seam_ratio"]),
        **_duplicates(rows["query_id"], pairs, order, copies, columns),
        "age_gap_years": gap,
        "age_gap": _flag(np.abs(gap) > recipe.age_gap_max_years, gap),
        "heading_offset_deg": headings.offset_deg,
        "heading_error_deg": headings.error_deg,
        "wrong_heading": _flag(np.abs(headings.error_deg) > recipe.heading_error_max_deg, headings.error_deg),
    }


def _common(measures: list[Measures], recipe: QualityRecipe, sharpness_min: float) -> Columns:
    """Return the measures, NaN where they do not apply, and the flags that both kinds of image have."""
    names = [name for name in Measures._fields if name not in ("hash", "is_decoded")]
    values = {name: _nullable([getattr(measure, name) for measure in measures]) for name in names}
    mean, std = values["luma_mean"], values["luma_std"]
    is_dark = (mean < recipe.luma_mean_min) | (values["dark_share"] > recipe.dark_share_max)
    is_bright = (mean > recipe.luma_mean_max) | (values["bright_share"] > recipe.bright_share_max)
    return values | {
        "perceptual_hash": [None if measure.hash is None else f"{measure.hash:016x}" for measure in measures],
        "undecodable": pa.array([not measure.is_decoded for measure in measures], pa.bool_()),
        "constant": _flag(std < recipe.luma_std_min, std),
        "blurred": _flag(values["sharpness"] < sharpness_min, values["sharpness"]),
        "underexposed": _flag(is_dark, mean),
        "overexposed": _flag(is_bright, mean),
    }


def _copies(rows: pa.Table, id_name: str, where: str) -> tuple[Ints, Ints]:
    """Return the rank of each id, and for each row the first one (by id) with the very same bytes."""
    ids = rows[id_name]
    by_id = pc.sort_indices(ids).to_numpy().astype(np.int64)
    in_order = ids.take(pa.array(by_id))
    if in_order.null_count:
        raise SchemaError(f"{where}: a row has no {id_name}")
    twice = pc.index(pc.equal(in_order[1:], in_order[:-1]), True).as_py() if len(ids) > 1 else -1
    if twice >= 0:
        raise SchemaError(f"{where}: {id_name} '{in_order[twice].as_py()}' appears more than once")
    order = np.empty(len(by_id), np.int64)
    order[by_id] = np.arange(len(by_id))
    return order, repeats.first_of_equal(rows["sha256"].to_pylist(), order)


def _hashes(measures: list[Measures], columns: Columns, recipe: QualityRecipe) -> tuple[repeats.Hashes, repeats.Mask]:
    """Return the hashes, and which rows have one that means something: a blank image looks like any other."""
    hashes = np.array([measure.hash or 0 for measure in measures], np.uint64)
    return hashes, columns["luma_std"] >= recipe.luma_std_min


def _duplicates(ids: pa.ChunkedArray, pairs: Ints, order: Ints, copies: Ints, columns: Columns) -> Columns:
    """Return the columns about duplicates: rows that look the same, and copies, which follow the row they copy."""
    of = repeats.originals(pairs, order, len(order))
    of = np.where(copies != np.arange(len(copies)), np.where(of[copies] >= 0, of[copies], copies), of)
    is_duplicate = of >= 0
    known = pc.or_(pc.invert(columns["undecodable"]), pa.array(is_duplicate))
    return {
        "duplicate_of": ids.take(pa.array(of, mask=~is_duplicate)),
        "duplicate": pc.if_else(known, pa.array(is_duplicate), pa.scalar(None, pa.bool_())),
    }


def _age_gap_years(queries: pa.Table, references: pa.Table) -> Floats:
    """Return the capture of each query minus that of its positive, in years; NaN where either is not known."""
    gap = np.full(queries.num_rows, np.nan)
    pairs = pair(queries, references)
    pairs = pairs.filter(pc.equal(pairs["relation"], POSITIVE))
    query_row, reference_row = pairs["query_row"].to_numpy(), pairs["reference_row"].to_numpy()
    taken, seen = _mapped(queries["captured"], year_of), _mapped(references["captured"], year_of)
    gap[query_row] = taken[query_row] - seen[reference_row]
    return gap


def _table(kind: str, rows: pa.Table, columns: Mapping[str, Any], recipe: QualityRecipe) -> pa.Table:
    """Return the quality table: what was found, the reasons, and the verdict."""
    num = rows.num_rows
    nothing = np.zeros(num, bool)
    failed = {
        check: pc.fill_null(columns[check], False).to_numpy(zero_copy_only=False) if check in columns else nothing
        for check in CHECKS
    }
    is_dropped = nothing.copy()
    for check in recipe.drop:
        is_dropped |= failed[check]
    reasons: list[list[str]] = [[] for _ in range(num)]
    for check in CHECKS:
        for row in np.flatnonzero(failed[check]).tolist():
            reasons[row].append(check)
    content = {
        **columns,
        "id": rows[0],
        "kind": [kind] * num,
        "area": rows["area"],
        "keep": ~is_dropped,
        "reason": [",".join(reason) for reason in reasons],
    }
    return pa.table([_column(content.get(field.name), field.type, num) for field in QUALITY], schema=QUALITY)


def _column(values: Any, kind: pa.DataType, num: int) -> Any:
    if values is None:
        return pa.nulls(num, kind)
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values.cast(kind)
    is_number = pa.types.is_floating(kind) or pa.types.is_integer(kind)
    return pa.array(values, pa.float64(), from_pandas=True).cast(kind) if is_number else pa.array(values, kind)


def _flag(failed: NDArray[np.bool_], measure: Floats) -> pa.Array:
    """Return a flag that is null where there is no measure."""
    return pa.array(failed, pa.bool_(), mask=np.isnan(measure))


def _nullable(values: Sequence[float | None]) -> Floats:
    return np.array([np.nan if value is None else value for value in values], np.float64)


def _floats(column: pa.ChunkedArray) -> Floats:
    return np.asarray(pc.fill_null(column.cast(pa.float64()), float("nan")).to_numpy(), np.float64)


def _mapped(column: pa.ChunkedArray, read: Callable[[str | None], float | None]) -> Floats:
    """Return what each text stands for, NaN for none; equal texts are read once."""
    encoded = column.combine_chunks().dictionary_encode()
    values = np.append(_nullable([read(text) for text in encoded.dictionary.to_pylist()]), np.nan)
    return np.asarray(values[pc.fill_null(encoded.indices, -1).to_numpy()], np.float64)
