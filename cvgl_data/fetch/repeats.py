"""Images that several places share byte for byte: a placeholder that nobody has told us about, or open sea."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.compute as pc

from cvgl_data.types import Outcome

LEAST = 3
"""Places with the same bytes that make an image suspicious."""


def repeated(references: pa.Table, least: int = LEAST) -> pa.Array:
    """Return the ids of the references whose image is that of at least ``least`` references.

    Args:
        references: ``reference_id`` and ``sha256`` of good rows.
        least: How many make it suspicious.
    """
    counts = references["sha256"].combine_chunks().value_counts()
    often = counts.field("values").filter(pc.greater_equal(counts.field("counts"), least))
    mask = pc.is_in(references["sha256"], value_set=often)
    return references["reference_id"].filter(mask).combine_chunks()


def flagged(batches: Iterable[pa.RecordBatch], ids: pa.Array) -> Iterator[pa.RecordBatch]:
    """Yield the batches with status ``constant_tile`` at these references; nothing is dropped."""
    for batch in batches:
        hit = pc.is_in(batch["reference_id"], value_set=ids)
        status = pc.if_else(hit, Outcome.CONSTANT_TILE.value, batch["status"])
        yield batch.set_column(batch.schema.get_field_index("status"), "status", status)
