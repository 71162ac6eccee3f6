"""The steps of one build, each a command of its own; see `cvgl_data.pipeline`."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from cvgl_data import fetch, neighbors, pairing, shards, splits, terms
from cvgl_data.errors import FetchError
from cvgl_data.fetch.repeats import flagged, repeated
from cvgl_data.http import Http
from cvgl_data.planning import areas, discover, most_panoramas, windows_of, without_repeats
from cvgl_data.readers.packed import MANIFEST
from cvgl_data.recipe import DatasetRecipe
from cvgl_data.running import run
from cvgl_data.schema import FAILURES
from cvgl_data.selection import choose_ids, read_pano_ids
from cvgl_data.sources import open_imagery, open_panoramas
from cvgl_data.store import Store
from cvgl_data.types import ImagerySource, Outcome, PanoramaSource, Progress, Silent
from cvgl_data.workspace import Workspace

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
        self.workers = workers
        self.http_settings = dict(http_settings or {})
        self._engine: dict[str, Any] = {
            "verify": verify,
            "retry_failed": retry_failed,
            "refresh": refresh,
            "on_item": self._on_item,
        }
        self.progress: Progress = progress or Silent()

    def fetch_references(self) -> dict[str, int]:
        """Fetch every window of the recipe that is not there yet; returns how many ended how.

        A window of two areas belongs to the first.

        Raises:
            FetchError: If not a single one could be had.
        """
        recipe = self.recipe.imagery
        imagery = open_imagery(recipe.source, recipe.options, workers=self.workers)
        with closing(imagery):
            work = without_repeats([(area.name, windows_of(self.recipe, area, imagery)) for area in areas(self.recipe)])
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
        return _counted("references", recipe.source, counts)

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
        return _counted("queries", recipe.source, counts)

    def pair(self) -> pa.Table:
        """Pair every query with the references that cover it."""
        self.progress.stage("pairs", None)
        pairs = pairing.pair(self.queries(), self.references())
        self.workspace.write_table("pairs", pairs)
        return pairs

    def distance_map(self, k: int | None = None) -> pa.Table:
        """Find the k nearest references of each reference (default: the recipe's k)."""
        self.progress.stage("distance map", None)
        found = neighbors.distance_map(self.references(), k or self.recipe.distance_map.k)
        self.workspace.write_table("distance_map", found)
        return found

    def split(self) -> dict[str, int]:
        """Assign the queries to splits; returns how many went where, "" for those left out."""
        self.progress.stage("splits", None)
        assigned = splits.split(
            self.queries(),
            self.workspace.read_table("pairs"),
            self.references(),
            self.recipe.split,
            self.recipe.seed,
        )
        self.workspace.write_table("splits", assigned)
        return dict(sorted(Counter(assigned["split"].to_pylist()).items(), reverse=True))

    def pack(self) -> Path:
        """Write the shards of everything so far; returns the manifest's path."""
        with fetch.reference_store(self.workspace) as references, fetch.query_store(self.workspace) as queries:
            self.progress.stage("pack", None)
            shards.pack(
                self.workspace.folder,
                self.recipe,
                references=flagged(
                    references.batches(self._keys("references", references, Outcome.OK)), repeated(self.references())
                ),
                queries=queries.batches(self._keys("queries", queries, Outcome.OK)),
                pairs=self.workspace.read_table("pairs"),
                distance_map=self.workspace.read_table("distance_map"),
                splits=self.workspace.read_table("splits"),
                failures=pa.concat_tables(
                    [
                        _failures(references, self._keys("references", references, *_FAILED), "reference"),
                        _failures(queries, self._keys("queries", queries, *_FAILED), "query"),
                    ]
                ),
                credits=[self._credit("references", "imagery"), self._credit("queries", "panoramas")],
                terms_accepted=terms.read(self.workspace.state),
            )
        return self.workspace.folder / MANIFEST

    def references(self) -> pa.Table:
        """Return the fetched references without pixels."""
        with fetch.reference_store(self.workspace) as store:
            return store.table(self._keys("references", store, Outcome.OK))

    def queries(self) -> pa.Table:
        """Return the fetched queries without pixels."""
        with fetch.query_store(self.workspace) as store:
            return store.table(self._keys("queries", store, Outcome.OK))

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
        """Keep whom to credit and which items the recipe asks for now; the store may hold others."""
        credit = {name: str(getattr(source, name)) for name in ("name", "attribution", "licence")}
        self.workspace.write_table(f"selected_{kind}", pa.table({"id": sorted(ids)}).replace_schema_metadata(credit))

    def _keys(self, kind: str, store: Store, *outcomes: Outcome) -> list[str]:
        """Return the selected items with one of the outcomes, sorted."""
        selected = set(self.workspace.read_table(f"selected_{kind}")["id"].to_pylist())
        return [key for key in store.keys(*outcomes) if key in selected]

    def _credit(self, kind: str, credited: str) -> shards.Credit:
        credit = self.workspace.read_table(f"selected_{kind}").schema.metadata
        return shards.Credit(kind=credited, **{key.decode(): value.decode() for key, value in credit.items()})

    def _run(self, work: Callable[[Http, asyncio.Event], Coroutine[Any, Any, T]]) -> T:
        return run(work, **self.http_settings)


def _counted(kind: str, source: str, counts: Counter[Outcome]) -> dict[str, int]:
    """Return counts by outcome name; raises if nothing at all was had."""
    by_name = {outcome.value: count for outcome, count in sorted(counts.items())}
    if not counts[Outcome.OK]:
        found = ", ".join(f"{count} {name}" for name, count in by_name.items()) or "nothing to fetch"
        raise FetchError(f"not one of the {kind} could be had from '{source}' ({found}); check area, zoom and source")
    return by_name


_FAILED = tuple(outcome for outcome in Outcome if outcome != Outcome.OK)


def _failures(store: Store, keys: list[str], kind: str) -> pa.Table:
    failed = store.table(keys)
    columns = {
        "id": failed[0],
        "kind": pa.array([kind] * failed.num_rows, pa.string()),
        **{name: failed[name] for name in ("area", "source", "status", "error")},
    }
    return pa.table([columns[name] for name in FAILURES.names], schema=FAILURES)
