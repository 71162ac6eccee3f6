"""How many images failed which check."""

from __future__ import annotations

from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from cvgl_data.recipe.quality import CHECKS


class CheckCount(NamedTuple):
    """One check on one kind of image."""

    kind: str
    """``reference`` or ``query``."""
    check: str
    num_judged: int
    """Images that the check applies to and that there was something to judge by."""
    num_failed: int
    num_dropped: int
    """Of those that failed, how many leave the dataset, for this check or another."""


def count_failures(*tables: pa.Table) -> list[CheckCount]:
    """Return the counts of all checks that apply to the images of the given tables (schema ``QUALITY``), in order."""
    counts = []
    for table in tables:
        for kind in sorted(pc.unique(table["kind"]).to_pylist(), reverse=True):
            of_kind = table.filter(pc.equal(table["kind"], kind))
            is_dropped = pc.invert(of_kind["keep"])
            for check in CHECKS:
                failed = of_kind[check]
                if len(failed) > failed.null_count:
                    dropped = pc.and_(pc.fill_null(failed, False), is_dropped)
                    numbers = (len(failed) - failed.null_count, _sum(failed), _sum(dropped))
                    counts.append(CheckCount(kind, check, *numbers))
    return counts


def _sum(flags: pa.ChunkedArray) -> int:
    return int(pc.sum(flags).as_py() or 0)
