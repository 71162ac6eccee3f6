"""Make a dataset again from what was published of it: every image from its source, compared with its hash.

```
.cvgl/pulled/origin.json   which repository the folder belongs to
.cvgl/pulled/dataset/      the repository, if it holds no images
.cvgl/pulled/work/         workspace of what was fetched
```
"""

from __future__ import annotations

import asyncio
import json
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from cvgl_data import fetch, schema, terms
from cvgl_data.arrow_files import replace_file, writing_to
from cvgl_data.errors import DatasetError, DatasetNotFoundError, HubError, WorkspaceError
from cvgl_data.http import Http
from cvgl_data.http.running import run
from cvgl_data.hub import assembly, tables
from cvgl_data.hub.client import is_repo_id
from cvgl_data.hub.comparison import Row, compare
from cvgl_data.hub.downloading import download
from cvgl_data.hub.recipes import check_sources
from cvgl_data.hub.staging import IMAGES, LEFT_OUT
from cvgl_data.readers.packed import MANIFEST, check_files, read_manifest
from cvgl_data.recipe import DatasetRecipe, resolve, to_tables
from cvgl_data.sources import open_imagery, open_panoramas
from cvgl_data.types import Outcome, Progress, Silent, Window
from cvgl_data.workspace import Workspace


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehydrated:
    """What a pull ended with."""

    folder: Path
    counts: Mapping[str, Any]
    """The manifest's: references, and queries and pairs per split."""
    rows: tuple[Row, ...] = ()
    """Every image that is not what was published, references first, by id."""
    other_files: tuple[str, ...] = ()
    """Data files whose bytes are not those that were published."""
    notes: tuple[str, ...] = ()
    """What else is worth knowing."""

    @property
    def is_identical(self) -> bool:
        """Whether every data file is byte for byte what was published."""
        return not self.rows and not self.other_files

    @property
    def outcomes(self) -> dict[str, int]:
        """What became of the images that are not what was published, by outcome."""
        return dict(sorted(Counter(row.outcome for row in self.rows).items()))

    @property
    def num_failed(self) -> int:
        """Images that could not be had this time and are asked for again by the next pull."""
        return sum(row.is_transient for row in self.rows)


def pull(
    repo_id_or_folder: str | Path,
    out: Path,
    *,
    revision: str | None = None,
    overrides: Sequence[str] = (),
    accept_terms: Sequence[str] = (),
    allow_changed: bool = False,
    retry_failed: bool = False,
    verify: str = "header",
    workers: int = 0,
    rate_per_s: float = 10.0,
    connections: int = 8,
    progress: Progress | None = None,
) -> Rehydrated:
    """Make a published dataset in a folder of one's own; run again, one that was interrupted goes on.

    A repository with images is downloaded and compared with its hashes. From one without, every image is fetched by id
    from the source that the recipe names. Rows whose image has the published hash are packed exactly as published, so
    if no image has changed, neither has a byte of the dataset. What has changed, or is gone, is left out and listed.

    Args:
        repo_id_or_folder: ``user/name`` on the Hub, or a folder with a repository's files.
        out: Folder of the dataset, new or of an earlier pull of the same.
        revision: Branch, tag or commit on the Hub.
        overrides: ``key.path=value`` for the recipe's sources, such as where one's own files are.
        accept_terms: Names of terms of use that the user accepts.
        allow_changed: Also pack the images that have changed, with their new rows.
        retry_failed: Also ask again for images that could not be had for good.
        verify: As for `cvgl_data.fetch.fetch_references`.
        workers: Processes for sources that compute; 0 means one per core.
        rate_per_s: Requests per second and host; 0 means no limit.
        connections: Requests in flight per host.
        progress: Told about stages and items.

    Raises:
        HubError: If the Hub refuses or cannot be reached; says what to do.
        TermsError: If a source's terms have not been accepted.
        WorkspaceError: If the folder holds something else.
        DatasetError: If what was published is damaged, or not one image could be had.
        SourceStopped: If a source refuses to go on; what was fetched is kept.
    """
    progress = progress or Silent()
    out = Path(out)
    state = out / ".cvgl" / "pulled"
    published, manifest = _published(str(repo_id_or_folder), revision, out, state, progress)
    if published == out:
        return Rehydrated(folder=out, counts=manifest["counts"])
    recipe_tables = tomllib.loads((published / "recipe.toml").read_text(encoding="utf-8"))
    recipe = resolve(DatasetRecipe, recipe_tables, overrides)
    check_sources(to_tables(recipe))
    fetching = _Fetching(recipe, verify, retry_failed, workers, progress)
    references = tables.references(published, manifest)
    queries = tables.queries(published, manifest)
    all_queries = tables.whole(published, manifest, "queries_meta", schema.without_image(schema.QUERIES))
    workspace = Workspace(state / "work")
    with workspace.open(to_tables(recipe)):
        record = fetching.agree(workspace, accept_terms)
        http_settings = {"rate_per_s": rate_per_s, "connections": connections}
        fetching.references(references, workspace, http_settings)
        fetching.queries(all_queries, workspace, http_settings)
        with fetch.reference_store(workspace) as reference_store, fetch.query_store(workspace) as query_store:
            rows = compare(references, reference_store, "reference") + compare(all_queries, query_store, "query")
            _check_any(rows, references.num_rows + all_queries.num_rows)
            progress.stage("pack", None)
            packed, notes = assembly.pack(
                out,
                recipe,
                published,
                manifest,
                references=references,
                queries=queries,
                rows=rows,
                stores={"reference": reference_store, "query": query_store},
                allow_changed=allow_changed,
                terms_accepted=record,
            )
    return Rehydrated(
        folder=out,
        counts=packed["counts"],
        rows=tuple(rows),
        other_files=tuple(_other_files(manifest, packed)),
        notes=tuple(notes),
    )


class _Fetching:
    """Asks the recipe's sources for the published images."""

    def __init__(
        self, recipe: DatasetRecipe, verify: str, retry_failed: bool, workers: int, progress: Progress
    ) -> None:
        self._recipe, self._workers, self._progress = recipe, workers, progress
        self._engine: dict[str, Any] = {"verify": verify, "retry_failed": retry_failed, "on_item": self._on_item}

    def agree(self, workspace: Workspace, accepted: Sequence[str]) -> terms.Accepted:
        """Check the sources' terms; returns and keeps the record."""
        with closing(self._imagery(1)) as imagery, closing(self._panoramas(1)) as panoramas:
            found = [source.terms for source in (imagery, panoramas) if getattr(source, "terms", None)]
        record = terms.check(found, accepted, terms.read(workspace.state))
        terms.write(workspace.state, record)
        return record

    def references(self, published: pa.Table, workspace: Workspace, http_settings: Mapping[str, Any]) -> None:
        """Fetch the windows that are not there yet."""
        by_area: dict[str, list[Window]] = {}
        columns = [published[name].to_pylist() for name in ("reference_id", "area", "x", "y", "size", "zoom")]
        for key, area, *place in zip(*columns, strict=True):
            window = Window(*place)
            if window.key != key:
                raise DatasetError(f"reference '{key}' is not named after its window ({window.key})")
            by_area.setdefault(area, []).append(window)
        self._progress.stage("references", published.num_rows)
        with closing(self._imagery(self._workers)) as source:

            async def work(http: Http, cancel: asyncio.Event) -> None:
                for area, windows in by_area.items():
                    await fetch.fetch_references(windows, area, source, workspace, http, cancel=cancel, **self._engine)

            run(work, **http_settings)

    def queries(self, published: pa.Table, workspace: Workspace, http_settings: Mapping[str, Any]) -> None:
        """Fetch the panoramas that are not there yet."""
        chosen = self._recipe.panoramas
        ids = sorted(published["query_id"].to_pylist())
        self._progress.stage("queries", len(ids))
        with closing(self._panoramas(self._workers)) as source:

            async def work(http: Http, cancel: asyncio.Event) -> None:
                await fetch.fetch_queries(
                    ids,
                    "",  # its area is known
                    source,
                    workspace,
                    http,
                    align=chosen.align,
                    width=chosen.width,
                    cancel=cancel,
                    **self._engine,
                )

            run(work, **http_settings)

    def _imagery(self, workers: int) -> Any:
        return open_imagery(self._recipe.imagery.source, self._recipe.imagery.options, workers=workers)

    def _panoramas(self, workers: int) -> Any:
        return open_panoramas(self._recipe.panoramas.source, self._recipe.panoramas.options, workers=workers)

    def _on_item(self, outcome: Outcome) -> None:
        self._progress.advance()


def _published(
    place: str, revision: str | None, out: Path, state: Path, progress: Progress
) -> tuple[Path, dict[str, Any]]:
    """Return the folder with what was published, and its manifest; the folder is ``out`` if the images are there."""
    folder = Path(place)
    if folder.is_dir():
        manifest = read_manifest(folder)
        if manifest.get(IMAGES, True):
            raise HubError(f"'{place}' holds its images already; there is nothing to pull")
        check_files(folder, manifest, verify=True)
        _take(out, state, f"folder {manifest['name']}")
        return folder, manifest
    if not is_repo_id(place):
        raise DatasetNotFoundError(f"'{place}' is neither a folder nor a dataset on the Hub (user/name)")
    _take(out, state, place)
    return download(place, with_images=out, without=state / "dataset", revision=revision, progress=progress)


def _take(out: Path, state: Path, origin: str) -> None:
    """Begin in a new folder, or go on in one that was pulled from the same place."""
    if out.is_file():
        raise WorkspaceError(f"'{out}' is a file; choose a folder")
    path = state / "origin.json"
    if path.is_file():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))["origin"]
        except (ValueError, KeyError, TypeError):
            found = "something else"
        if found != origin:
            raise WorkspaceError(f"'{out}' was pulled from {found}, not from {origin}; choose another folder")
        return
    if out.is_dir() and any(out.iterdir()) and not (state.is_dir() and not (out / MANIFEST).exists()):
        raise WorkspaceError(f"'{out}' is not empty and was not pulled; choose another folder")
    with writing_to(out):
        state.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"origin": origin}) + "\n"
    replace_file(path, lambda part: _write(part, text))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _check_any(rows: Sequence[Row], num: int) -> None:
    """Raise if nothing at all could be had: then it is not the images that have changed."""
    if num and len(rows) == num and not any(row.found for row in rows):
        counts = ", ".join(f"{count} {name}" for name, count in sorted(Counter(row.outcome for row in rows).items()))
        raise DatasetError(f"not one of {num} images could be had ({counts}); the first: {rows[0].error}")


def _other_files(published: Mapping[str, Any], packed: Mapping[str, Any]) -> list[str]:
    """Return the data files that differ, are missing or were not there."""
    before, after = (
        {
            name: item["sha256"]
            for name, item in {**manifest["files"], **manifest.get(LEFT_OUT, {})}.items()
            if name.startswith("data/")
        }
        for manifest in (published, packed)
    )
    return sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
