"""The dataset card: README.md with the YAML header by which the Hub and `datasets` find the tables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

TABLES = ("references", "queries", "pairs", "distance_map", "references_meta", "queries_meta")
"""Tables that the header lists, each as one configuration."""

DEFAULT_TABLE = "queries"


def tables(files: Iterable[str]) -> dict[str, list[str]]:
    """Return the splits of each table that has files, in the order of ``TABLES``.

    Args:
        files: Paths such as ``data/queries/train-00000-of-00001.parquet``.
    """
    found: dict[str, list[str]] = {name: [] for name in TABLES}
    for path in files:
        match = re.fullmatch(r"data/(\w+)/(\w+)-\d{5}-of-\d{5}\.parquet", path)
        if match and match[1] in found and match[2] not in found[match[1]]:
            found[match[1]].append(match[2])
    return {name: splits for name, splits in found.items() if splits}


def render(name: str, files: Iterable[str], counts: Mapping[str, Any], sources: Sequence[Mapping[str, str]]) -> str:
    """Return the text of README.md.

    Args:
        name: Name of the dataset.
        files: Paths of the data files.
        counts: ``references``, and per split ``queries`` and ``pairs``.
        sources: Rows ``kind``, ``name``, ``attribution``, ``licence``.
    """
    lines = ["---", "tags:", "- geospatial", "- cross-view-geo-localization", "configs:"]
    for table, splits in tables(files).items():
        lines += [f"- config_name: {table}", *(["  default: true"] if table == DEFAULT_TABLE else []), "  data_files:"]
        for split in splits:
            lines += [f"  - split: {split}", f"    path: data/{table}/{split}-*.parquet"]
    queries = ", ".join(f"{count:,} {split}" for split, count in counts["queries"].items()) or "none"
    pairs = ", ".join(f"{count:,} {split}" for split, count in counts["pairs"].items()) or "none"
    lines += [
        "---",
        "",
        f"# {name}",
        "",
        "Street-level queries and the overhead references that cover them, for cross-view geo-localization.",
        "",
        f"- References: {counts['references']:,}",
        f"- Queries: {queries}",
        f"- Pairs: {pairs}",
        "",
        "```python",
        "from datasets import load_dataset",
        "",
        'queries = load_dataset("PATH_OR_HUB_ID", "queries")',
        'references = load_dataset("PATH_OR_HUB_ID", "references", split="gallery")',
        "```",
        "",
        "`pairs` joins the two by id and by row; `distance_map` lists the nearest references of each reference. "
        "`*_meta` are the same rows without pixels, as GeoParquet.",
        "",
        "## Attribution",
        "",
        "| images | source | attribution | licence |",
        "|---|---|---|---|",
    ]
    for source in sources:
        cells = (source[key].replace("|", "\\|") for key in ("kind", "name", "attribution", "licence"))
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "Rows may carry a licence of their own in the column `licence`; it goes before the source's.", ""]
    return "\n".join(lines)
