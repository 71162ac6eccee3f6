"""How the end of a build is printed."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ._options import PARTIAL, note, print_json, table

if TYPE_CHECKING:
    from cvgl_data.pipeline import Report


def print_report(folder: Path, report: Report, json: bool) -> None:
    """Print what a build ended with, and exit with 3 when some items failed."""
    if json:
        print_json({**asdict(report), "manifest": str(report.manifest)})
    else:
        rows = [[kind, name, f"{n:,}"] for kind, counts in report.outcomes.items() for name, n in counts.items()]
        table("Fetched", ["kind", "outcome", "images"], rows)
        rows = [[name or "left out", f"{n:,}"] for name, n in report.splits.items()]
        table("Queries", ["split", "queries"], rows)
    if report.num_constant:
        note(
            f"warning: {report.num_constant} references share their bytes with others: open water, or a placeholder; "
            "their status is constant_tile"
        )
    num_queries = report.outcomes["queries"].get("ok", 0)
    if num_queries and not report.num_covered:
        note(f"warning: none of the {num_queries} queries is covered by any reference: there are no pairs")
    elif report.num_covered < num_queries:
        note(f"warning: {num_queries - report.num_covered} of {num_queries} queries are covered by no reference")
    page = folder / "report" / "index.html"
    look = f"look at {page}" if page.is_file() else f"`cvgl-data show {folder}` describes it"
    note(f"built {folder}; {look}")
    exit_if_failed(report.num_failed)


def exit_if_failed(num_failed: int) -> None:
    """Exit with 3 if some items failed."""
    if num_failed:
        note(f"{num_failed} items failed; the same command asks again for those that may heal, --retry-failed for all")
        raise typer.Exit(PARTIAL)
