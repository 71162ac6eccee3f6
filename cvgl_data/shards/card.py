"""The dataset card: README.md with the YAML header by which the Hub and `datasets` find the tables."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cvgl_data.shards.licences import hub_names
from cvgl_data.shards.tally import QUARTERS, Tally, in_order

TABLES = ("references", "queries", "pairs", "distance_map", "references_meta", "queries_meta")
"""Tables that the header lists, each as one configuration; those of other sizes follow."""

_DEFAULT_TABLES = ("queries", "queries_meta", "references", "references_meta")
"""What ``load_dataset`` gives to those who name no table: the first of these that is there."""

_RESIZED = re.compile(r"(references|queries)_\d+(x\d+)?")
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def tables(files: Iterable[str]) -> dict[str, list[str]]:
    """Return the splits of each table that has files, in the order of ``TABLES``, training first.

    Args:
        files: Paths such as ``data/queries/train-00000-of-00001.parquet``.
    """
    found: dict[str, list[str]] = {name: [] for name in TABLES}
    for path in files:
        match = re.fullmatch(r"data/(\w+)/(\w+)-\d{5}-of-\d{5}\.parquet", path)
        if match and (match[1] in found or _RESIZED.fullmatch(match[1])):
            splits = found.setdefault(match[1], [])
            if match[2] not in splits:
                splits.append(match[2])
    return {name: in_order(splits) for name, splits in found.items() if splits}


def render(
    name: str,
    files: Iterable[str],
    counts: Mapping[str, Any],
    sources: Sequence[Mapping[str, str]],
    *,
    counted: Tally | None = None,
    repo_id: str = "",
    images: bool = True,
    kept_back: Mapping[str, int] | None = None,
    figures: Sequence[str] = (),
) -> str:
    """Return the text of README.md.

    Args:
        name: Name of the dataset.
        files: Paths of the data files.
        counts: ``references``, and per split ``queries`` and ``pairs``; ``failures`` per status.
        sources: Rows ``kind``, ``name``, ``attribution``, ``licence``.
        counted: What the tables hold; without it there are no statistics.
        repo_id: ``user/name`` on the Hub, if it is known.
        images: Whether the pixels are there.
        kept_back: Reason to number of images that may not be published.
        figures: Paths of pictures to show.
    """
    listed = tables(files)
    place = repo_id or "PATH_OR_HUB_ID"
    parts = [
        _header(name, listed, counts, counted),
        [f"# {_plain(name)}", "", _introduction(images)],
        _summary(counts),
        _loading(place, listed),
        [] if images else _pulling(place, kept_back or {}),
        _statistics(counted),
        [line for path in figures for line in (f"![{_title(path)}]({path})", "")][:-1],
        _attribution(sources, counted),
        _left_out(counts),
        ["## Citation", "", "```bibtex", bibtex(name, repo_id), "```"],
    ]
    return "\n\n".join("\n".join(lines) for lines in parts if lines) + "\n"


def _header(name: str, listed: Mapping[str, list[str]], counts: Mapping[str, Any], counted: Tally | None) -> list[str]:
    licences = sorted({licence for _, licence in counted.licences}) if counted else []
    number = counts["references"] + sum(counts["queries"].values())
    default = next((table for table in _DEFAULT_TABLES if table in listed), "")
    lines = ["---", f"pretty_name: {json.dumps(name, ensure_ascii=False)}"]
    if licences:
        names = hub_names(licences)
        lines += [f"license: {names[0]}"] if len(names) == 1 else ["license:", *(f"- {known}" for known in names)]
    lines += ["task_categories:", "- image-feature-extraction"]
    lines += ["tags:", "- geospatial", "- cross-view-geo-localization", "- image-retrieval"]
    lines += ["size_categories:", f"- {next((size for most, size in _SIZES if number < most), '1M<n<10M')}", "configs:"]
    for table, splits in listed.items():
        lines += [f"- config_name: {table}", *(["  default: true"] if table == default else []), "  data_files:"]
        for split in splits:
            lines += [f"  - split: {split}", f"    path: data/{table}/{split}-*.parquet"]
    return [*lines, "---"]


def _introduction(images: bool) -> str:
    text = "Street-level queries and the overhead references that cover them, for cross-view geo-localization."
    return text if images else f"{text} **Without the images**, which are fetched from their sources (see below)."


def _summary(counts: Mapping[str, Any]) -> list[str]:
    queries = ", ".join(f"{count:,} {split}" for split, count in counts["queries"].items()) or "none"
    pairs = ", ".join(f"{count:,} {split}" for split, count in counts["pairs"].items()) or "none"
    return [f"- References: {counts['references']:,}", f"- Queries: {queries}", f"- Pairs: {pairs}"]


def _loading(place: str, listed: Mapping[str, list[str]]) -> list[str]:
    suffix = "" if "references" in listed else "_meta"
    explained = [
        "`pairs` joins the two by id and by row; `distance_map` lists the nearest references of each reference."
    ]
    if not suffix:
        explained.append("`*_meta` are the same rows without pixels, as GeoParquet.")
    resized = [f"`{table}`" for table in listed if _RESIZED.fullmatch(table)]
    if resized:
        explained.append(f"{', '.join(resized)} hold the same rows with smaller images, for training.")
    return [
        "```python",
        "from datasets import load_dataset",
        "",
        f'queries = load_dataset("{place}", "queries{suffix}")',
        f'references = load_dataset("{place}", "references{suffix}", split="gallery")',
        "```",
        "",
        " ".join(explained),
    ]


def _pulling(place: str, kept_back: Mapping[str, int]) -> list[str]:
    lines = [
        "## Images",
        "",
        "The pixels are not in this repository: it holds ids, positions, dates, releases, licences and the sha256 of "
        "every image. With `cvgl` they are fetched again from their sources and "
        "compared with these hashes; rows that have changed since are listed:",
        "",
        "```bash",
        f"cvgl-data pull {place} --out DIR",
        "```",
    ]
    if kept_back:
        rows = [(reason, f"{count:,}") for reason, count in kept_back.items()]
        lines += ["", "Images that may not be published, by reason:", "", *_table(("reason", "images"), rows)]
    return lines


def _statistics(counted: Tally | None) -> list[str]:
    if counted is None:
        return []
    splits = counted.splits
    lines = ["## Statistics", ""]
    rows = [
        (area, f"{counted.references[area]:,}", *(f"{counted.queries[split, area]:,}" for split in splits))
        for area in counted.areas
    ]
    if len(rows) > 1:
        total = [sum(counted.references.values()), *(counted.num_queries(split) for split in splits)]
        rows.append(("**all**", *(f"{number:,}" for number in total)))
    lines += _table(("area", "references", *(f"queries, {split}" for split in splits)), rows)
    if counted.decentrality:
        lines += ["", "Decentrality of the queries in their positives (0 centre, 1 edge), share in each quarter:", ""]
        rows = [
            (split, *(f"{number / sum(shares):.1%}" for number in shares))
            for split, shares in counted.decentrality.items()
        ]
        lines += _table(("split", *QUARTERS), rows)
    if counted.years:
        lines += ["", "Year of capture:", ""]
        rows = [
            (year or "unknown", f"{counted.years_of('reference', year):,}", f"{counted.years_of('query', year):,}")
            for year in counted.years
        ]
        lines += _table(("year", "references", "queries"), rows)
    return lines


def _attribution(sources: Sequence[Mapping[str, str]], counted: Tally | None) -> list[str]:
    rows = [tuple(source[key] for key in ("kind", "name", "attribution", "licence")) for source in sources]
    lines = ["## Attribution", "", *_table(("images", "source", "attribution", "licence"), rows)]
    lines += ["", "Rows may carry a licence of their own in the column `licence`; it goes before the source's."]
    if counted and counted.licences:
        rows = [(kind, licence or "unknown", f"{count:,}") for (kind, licence), count in counted.licences.items()]
        lines += ["", *_table(("images", "licence", "rows"), rows)]
    return lines


def _left_out(counts: Mapping[str, Any]) -> list[str]:
    failures = counts.get("failures", {})
    if not failures:
        return []
    rows = [(status, f"{count:,}") for status, count in failures.items()]
    text = "Items that were asked for and are not in the dataset; `data/failures` lists each with its reason."
    return ["## Left out", "", text, "", *_table(("status", "items"), rows)]


def bibtex(name: str, repo_id: str = "") -> str:
    """Return a BibTeX entry of a dataset; names and year are its author's to fill in."""
    key = re.sub(r"\W+", "_", name).strip("_").lower() or "dataset"
    where = f"https://huggingface.co/datasets/{repo_id}" if repo_id else "URL"
    return "\n".join(
        [
            f"@misc{{{key},",
            f"  title = {{{re.sub('[{}]', '', _plain(name))}}},",
            "  author = {YOUR NAMES},",
            "  year = {YEAR},",
            f"  howpublished = {{\\url{{{where}}}}},",
            "  note = {Built with cvgl, a toolkit for cross-view geo-localization}",
            "}",
        ]
    )


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [titles, ["---"] * len(titles), *([_cell(cell) for cell in row] for row in rows)]
    rule = f"|{'|'.join(lines[1])}|"
    return [f"| {' | '.join(lines[0])} |", rule, *(f"| {' | '.join(line)} |" for line in lines[2:])]


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _plain(text: str) -> str:
    """Return a text that stays on its line."""
    return " ".join(text.split())


def _title(path: str) -> str:
    return path.rsplit("/", 1)[-1].rsplit(".", 1)[0].replace("_", " ").replace("-", " ")
