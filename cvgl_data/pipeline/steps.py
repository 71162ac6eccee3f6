"""The steps of one build, each a command of its own; see `cvgl_data.pipeline`."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from cvgl_data import fetch, neighbors, pairing, quality, shards, splits, terms
from cvgl_data.curation import curate
from cvgl_data.dataset import CrossViewDataset
from cvgl_data.errors import FetchError
from cvgl_data.fetch.repeats import flagged, repeated
from cvgl_data.grid import Windows
from cvgl_data.http import Http
from cvgl_data.http.running import run
from cvgl_data.pipeline.contents import CREDIT, Contents
from cvgl_data.planning import areas, discover, most_panoramas, windows_of, without_repeats
from cvgl_data.quality import CheckCount
from cvgl_data.readers.packed import MANIFEST
from cvgl_data.recipe import DatasetRecipe
from cvgl_data.schema import SPLITS
from cvgl_data.selection import choose_ids, read_pano_ids
from cvgl_data.sources import open_imagery, open_panoramas
from cvgl_data.types import ImagerySource, Outcome, PanoramaSource, Progress, Silent
from cvgl_data.workspace import REPORT, Workspace

T = TypeVar("T")


class Build:
    """One build in progress: a recipe, its workspace, and the steps.

    Args:
        recipe: What to build.
        workspace: Where; opened with this very recipe.
        workers: Processes for sources that compute; 0 means one per core.
        verify: How closely received images are looked at: ``header`` or ``decode``.
        retry_failed: Also ask again for what failed for good in an earlier run.
        refresh: Also ask whether what is there has changed.
        http_settings: See `Http`.
        progress: Told about stages and items.
    """

    def __init__(
        self,
        recipe: DatasetRecipe,
        workspace: Workspace,
        *,
        workers: int = 0,
        verify: str = "header",
        retry_failed: bool = False,
        refresh: bool = False,
        http_settings: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.recipe = recipe
        self.workspace = workspace
        self.contents = Contents(workspace)
        self.workers = workers
        self.http_settings = dict(http_settings or {})
        self._engine: dict[str, Any] = {
            "verify": verify,
            "retry_failed": retry_failed,
            "refresh": refresh,
            "on_item": self._on_item,
        }
        self.progress: Progress = progress or Silent()

    def fetch_references(self, work: Sequence[tuple[str, Windows]] | None = None) -> dict[str, int]:
        """Fetch every window that is not there yet; returns how many ended how.

        A window of two areas belongs to the first.

        Args:
            work: Windows by name of their area; default: what the recipe asks for.

        Raises:
            FetchError: If not a single one could be had.
        """
        recipe = self.recipe.imagery
        imagery = open_imagery(recipe.source, recipe.options, workers=self.workers)
        with closing(imagery):
            if work is None:
                work = [(area.name, windows_of(self.recipe, area, imagery)) for area in areas(self.recipe)]
            work = without_repeats(work)
            self.progress.stage("references", sum(len(windows) for _, windows in work))

            async def fetch_all(http: Http, cancel: asyncio.Event) -> Counter[Outcome]:
                counts: Counter[Outcome] = Counter()
                for name, windows in work:
                    counts += await fetch.fetch_references(
                        windows,
                        name,
                        imagery,
                        self.workspace,
                        http,
                        cancel=cancel,
                        **self._engine,
                    )
                if hasattr(imagery, "read_attribution"):  # also where nothing was left to fetch
                    await imagery.read_attribution(http)
                return counts

            counts = self._run(fetch_all)
            self._select("references", [window.key for _, windows in work for window in windows], imagery)
        return self._counted("references", recipe.source, counts)

    def fetch_queries(self) -> dict[str, int]:
        """Fetch the recipe's panoramas that are not there yet; returns how many ended how.

        Raises:
            FetchError: If not a single one could be had.
        """
        recipe = self.recipe.panoramas
        panoramas = open_panoramas(recipe.source, recipe.options, workers=self.workers)
        with closing(panoramas):
            self.progress.stage("discover", None)

            async def fetch_all(http: Http, cancel: asyncio.Event) -> Counter[Outcome]:
                work = await self._panoramas(panoramas, http)
                self.progress.stage("queries", sum(len(found.pano_ids) + len(found.errors) for found, _ in work))
                counts: Counter[Outcome] = Counter()
                for found, area in work:
                    counts += await fetch.fetch_queries(
                        found.pano_ids,
                        area,
                        panoramas,
                        self.workspace,
                        http,
                        errors=found.errors,
                        align=recipe.align,
                        width=recipe.width,
                        cancel=cancel,
                        **self._engine,
                    )
                    chosen.extend([*found.pano_ids, *(error.item for error in found.errors)])
                return counts

            chosen: list[str] = []
            counts = self._run(fetch_all)
            self._select("queries", chosen, panoramas)
        return self._counted("queries", recipe.source, counts)

    def take_queries(self, dataset: CrossViewDataset, sources: Sequence[Mapping[str, str]]) -> dict[str, int]:
        """Take the queries over from a packed dataset in place of fetching them; returns how many."""
        ids = dataset.queries["query_id"].to_pylist()
        self.progress.stage("queries", len(ids))
        with fetch.query_store(self.workspace) as store:
            for row in dataset.queries.drop_columns(["split"]).to_batches(max_chunksize=1024):
                for query in row.to_pylist():
                    if query["query_id"] not in store:
                        store.append({**query, "image": dataset.images[query["query_id"]]})
                    self.progress.advance()
        credit = next((source for source in sources if source["kind"] == "panoramas"), {})
        self.contents.select("queries", ids, {name: credit.get(name, "") for name in CREDIT})
        return {Outcome.OK.value: len(ids)}

    def keep_splits(self, dataset: CrossViewDataset) -> dict[str, int]:
        """Assign the queries taken over to the splits that they had; returns how many went where."""
        covered = set(self.workspace.read_table("pairs")["query_id"].to_pylist())
        was_covered = set(dataset.pairs["query_id"].to_pylist())
        ids, kept = dataset.queries["query_id"].to_pylist(), dataset.queries["split"].to_pylist()
        lost = [query in was_covered and query not in covered for query in ids]
        assigned = pa.table(
            [
                ids,
                ["" if gone else name for name, gone in zip(kept, lost, strict=True)],
                [splits.NO_REFERENCE if gone else "" for gone in lost],
            ],
            schema=splits.SCHEMA,
        )
        return self._write_splits(assigned)

    def quality(self) -> list[CheckCount]:
        """Look at every fetched image; returns how many fail which check.

        Images that fail a check of the recipe's ``quality.drop`` are in none of the later steps but the last, which
        lists them.
        """
        contents = self.contents
        with contents.store("references") as references, contents.store("queries") as queries:
            reference_ids, query_ids = contents.fetched("references", references), contents.fetched("queries", queries)
            assessed = quality.assess(
                references.batches(reference_ids),
                queries.batches(query_ids),
                self.recipe.quality,
                workers=self.workers,
                progress=self.progress,
            )
        for kind, table in zip(("references", "queries"), assessed, strict=True):
            self.workspace.write_table(f"quality_{kind}", table)
        return quality.count_failures(*assessed)

    def pair(self) -> pa.Table:
        """Pair every query with the references that cover it."""
        self.progress.stage("pairs", None)
        pairs = pairing.pair(self.queries(), self.references())
        self.workspace.write_table("pairs", pairs)
        return pairs

    def distance_map(
        self, k: int | None = None, of: str = "references", legacy_degrees: bool = False, *, keep: bool = True
    ) -> pa.Table:
        """Find the nearest others of each image; that of the references in true order is kept for the dataset.

        Args:
            k: Neighbors per row; default: the recipe's.
            of: ``references`` or ``queries`` among themselves, or ``queries-to-references``.
            legacy_degrees: See `cvgl_data.neighbors.distance_map`.
            keep: Whether to keep it.
        """
        self.progress.stage("distance map", None)
        recipe = self.recipe.distance_map
        found = neighbors.distance_map(
            self.queries() if of == "queries" else self.references(),
            k or recipe.k,
            queries=self.queries() if of == "queries-to-references" else None,
            exclude=self.workspace.read_table("pairs") if recipe.exclude_semi_positives else None,
            same_area=recipe.same_area,
            radius_m=recipe.radius_m,
            legacy_degrees=legacy_degrees,
        )
        if keep and of == "references" and not legacy_degrees:
            self.workspace.write_table("distance_map", found)
        return found

    def split(self) -> dict[str, int]:
        """Assign the queries to splits; returns how many went where, "" for those left out.

        What the recipe's curation leaves out is in no split, with the reason beside it.
        """
        self.progress.stage("splits", None)
        queries, references, pairs = self.queries(), self.references(), self.workspace.read_table("pairs")
        seed = self.recipe.seed
        left_out = curate(queries, pairs, references, self.recipe.curation, seed)
        assigned = splits.split(queries, pairs, references, self.recipe.split, seed, left_out)
        return self._write_splits(assigned)

    def pack(self) -> Path:
        """Write the shards of everything so far; returns the manifest's path."""
        contents, table = self.contents, self.workspace.read_table
        with contents.store("references") as references, contents.store("queries") as queries:
            self.progress.stage("pack", None)
            shards.pack(
                self.workspace.folder,
                self.recipe,
                references=flagged(
                    references.batches(contents.kept("references", references)), repeated(self.references())
                ),
                queries=queries.batches(contents.kept("queries", queries)),
                pairs=table("pairs"),
                distance_map=table("distance_map"),
                splits=table("splits"),
                quality=contents.quality(),
                failures=pa.concat_tables(
                    [contents.failures("references", references), contents.failures("queries", queries)]
                ),
                credits=[
                    shards.Credit(kind="imagery", **contents.credit("references")),
                    shards.Credit(kind="panoramas", **contents.credit("queries")),
                ],
                terms_accepted=terms.read(self.workspace.state),
            )
        (self.workspace.folder / REPORT).unlink(missing_ok=True)  # it described what was packed before
        return self.workspace.folder / MANIFEST

    def references(self) -> pa.Table:
        """Return the kept references without pixels."""
        return self.contents.table("references")

    def queries(self) -> pa.Table:
        """Return the kept queries without pixels."""
        return self.contents.table("queries")

    async def _panoramas(
        self, source: PanoramaSource, http: Http
    ) -> list[tuple[fetch.Discovered, str | Callable[[float, float], str]]]:
        """Return what to fetch, with the area each part belongs to or a function that finds it."""
        recipe = self.recipe.panoramas
        found = areas(self.recipe)
        if recipe.pano_ids:
            ids = read_pano_ids(recipe.pano_ids)

            def area_of(lon: float, lat: float) -> str:
                return next((area.name for area in found if bool(area.contains(lon, lat))), "")

            return [(fetch.Discovered(choose_ids(ids, most_panoramas(self.recipe, 0), self.recipe.seed), []), area_of)]
        there = await discover(self.recipe, found, source, http)
        return [(part, area.name) for part, area in zip(there, found, strict=True)]

    def _on_item(self, outcome: Outcome) -> None:
        self.progress.advance()

    def _select(self, kind: str, ids: list[str], source: ImagerySource | PanoramaSource) -> None:
        self.contents.select(kind, ids, {name: str(getattr(source, name)) for name in CREDIT})

    def _write_splits(self, assigned: pa.Table) -> dict[str, int]:
        self.workspace.write_table("splits", assigned)
        counts = Counter(assigned["split"].to_pylist())
        return {name: counts[name] for name in (*SPLITS, "") if name in counts}

    def _run(self, work: Callable[[Http, asyncio.Event], Coroutine[Any, Any, T]]) -> T:
        return run(work, **self.http_settings)

    def _counted(self, kind: str, source: str, counts: Counter[Outcome]) -> dict[str, int]:
        """Return counts by outcome name; raises if nothing at all was had, with the first of the reasons."""
        by_name = {outcome.value: count for outcome, count in sorted(counts.items())}
        if not counts[Outcome.OK]:
            found = ", ".join(f"{count} {name}" for name, count in by_name.items()) or "nothing to fetch"
            with self.contents.store(kind) as store:
                reasons = self.contents.failures(kind, store)["error"].to_pylist()
            first = next((f": {reason}" for reason in reasons if reason), "")
            raise FetchError(
                f"not one of the {kind} could be had from '{source}' ({found}{first}); check area, zoom and source"
            )
        return by_name
