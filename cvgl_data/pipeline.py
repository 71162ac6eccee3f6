"""The walk from a recipe to a dataset: plan, references, queries, pairs, distance map, splits, pack.

`build` is the list of the steps; each step is a method of `Build` and a command of its own. A step reads what the
earlier ones left in the workspace and leaves one thing itself, so a build that was killed goes on where it stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from cvgl_data import fetch, neighbors, pairing, shards, splits
from cvgl_data.dataset import open_dataset
from cvgl_data.errors import FetchError, WorkspaceError
from cvgl_data.http import Http
from cvgl_data.planning import areas, check, windows_of, without_repeats
from cvgl_data.readers.packed import MANIFEST
from cvgl_data.recipe import DatasetRecipe, resolve, to_tables
from cvgl_data.schema import FAILURES
from cvgl_data.selection import choose_ids, read_pano_ids
from cvgl_data.sources import open_imagery, open_panoramas
from cvgl_data.store import Store
from cvgl_data.summary import decentrality_rows
from cvgl_data.types import ImagerySource, Outcome, PanoramaSource, Progress, Silent
from cvgl_data.workspace import Workspace

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a build ended with."""

    outcomes: dict[str, dict[str, int]]
    """Kind (references, queries) to outcome to count."""
    splits: dict[str, int]
    num_pairs: int
    num_covered: int
    """Queries that at least one reference covers."""
    manifest: Path

    @property
    def num_failed(self) -> int:
        """Items that could not be had."""
        return sum(count_failed(counts) for counts in self.outcomes.values())


def count_failed(counts: dict[str, int]) -> int:
    """Return how many items could not be had; a missing tile or panorama is a fact, not a failure."""
    facts = {Outcome.OK, Outcome.NO_IMAGERY, Outcome.NOT_FOUND}
    return sum(n for outcome, n in counts.items() if outcome not in facts)


def build(recipe: DatasetRecipe, out: Path, *, overwrite: bool = False, **settings: Any) -> Report:
    """Build a dataset, or go on with a build that was interrupted.

    Args:
        recipe: What to build.
        out: Folder of the dataset; its ``.cvgl`` folder holds what was fetched.
        overwrite: Delete what an earlier build left in the folder, and start over.
        settings: See `Build`.

    Raises:
        CvglError: Whatever went wrong, named; what was fetched is kept.
        KeyboardInterrupt: After SIGINT or SIGTERM, once what is in flight has been kept.
    """
    with start(recipe, out, overwrite=overwrite, **settings) as begun:
        outcomes = {"references": begun.fetch_references(), "queries": begun.fetch_queries()}
        pairs = begun.pair()
        begun.distance_map()
        counts = begun.split()
        manifest = begun.pack()
    covered = len(set(pairs["query_id"].to_pylist()))
    return Report(outcomes=outcomes, splits=counts, num_pairs=pairs.num_rows, num_covered=covered, manifest=manifest)


@contextmanager
def start(recipe: DatasetRecipe, out: Path, *, overwrite: bool = False, **settings: Any) -> Iterator[Build]:
    """Open the workspace of a recipe, new or begun, and yield the build; arguments as for `build`."""
    check(recipe)
    with Workspace(out).open(to_tables(recipe), overwrite=overwrite) as workspace:
        yield Build(recipe, workspace, **settings)


@contextmanager
def resume(out: Path, **settings: Any) -> Iterator[Build]:
    """Open the workspace that a folder holds and yield its build.

    Raises:
        WorkspaceError: If the folder holds none.
    """
    tables = Workspace(out).recipe_tables()
    if tables is None:
        raise WorkspaceError(f"'{out}' holds no build (no .cvgl folder); `cvgl-data build --out {out}` makes one")
    recipe = resolve(DatasetRecipe, tables)
    # Not checked again: the steps after fetching need neither the sources nor the files they were given.
    with Workspace(out).open(to_tables(recipe)) as workspace:
        yield Build(recipe, workspace, **settings)


def decentrality(folder: Path) -> list[dict[str, Any]]:
    """Pair the queries of a build anew, or take the pairs of a packed dataset, and summarize their decentrality."""
    if Workspace(folder).recipe_tables() is None:
        dataset = open_dataset(folder)
        return decentrality_rows(dataset.pairs, dataset.queries)
    with resume(folder) as begun:
        pairs, queries = begun.pair(), begun.queries()
        if begun.workspace.has_table("splits"):
            assigned = begun.workspace.read_table("splits")
            if assigned["query_id"].equals(queries["query_id"]):  # otherwise more was fetched since
                queries = queries.append_column("split", assigned["split"])
        return decentrality_rows(pairs, queries)


def export(folder: Path, out: Path) -> None:
    """Export a packed dataset as Arrow files for ``datasets.load_from_disk``."""
    open_dataset(folder)
    shards.export_arrow(folder, out)


class Build:
    """One build in progress: a recipe, its workspace, and the steps.

    Args:
        recipe: What to build.
        workspace: Where; opened with this very recipe.
        workers: Processes for sources that compute; 0 means one per core.
        rate_per_s: Requests per second and host; 0 means no limit.
        retry_failed: Also ask again for what failed for good in an earlier run.
        progress: Told about stages and items.
    """

    def __init__(
        self,
        recipe: DatasetRecipe,
        workspace: Workspace,
        *,
        workers: int = 0,
        rate_per_s: float = 10.0,
        retry_failed: bool = False,
        progress: Progress | None = None,
    ) -> None:
        self.recipe = recipe
        self.workspace = workspace
        self.workers = workers
        self.rate_per_s = rate_per_s
        self.retry_failed = retry_failed
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
                        on_item=self._on_item,
                        retry_failed=self.retry_failed,
                        cancel=cancel,
                    )
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
                self.progress.stage("queries", sum(len(ids) for ids, _ in work))
                counts: Counter[Outcome] = Counter()
                for ids, area in work:
                    counts += await fetch.fetch_queries(
                        ids,
                        area,
                        panoramas,
                        self.workspace,
                        http,
                        align=recipe.align,
                        width=recipe.width,
                        on_item=self._on_item,
                        retry_failed=self.retry_failed,
                        cancel=cancel,
                    )
                chosen.extend(pano_id for ids, _ in work for pano_id in ids)
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
                references=references.batches(self._keys("references", references, Outcome.OK)),
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
    ) -> list[tuple[list[str], str | Callable[[float, float], str]]]:
        """Return the ids to fetch, with the area each list belongs to or a function that finds it."""
        recipe = self.recipe.panoramas
        found = areas(self.recipe)
        if recipe.pano_ids:
            ids = read_pano_ids(recipe.pano_ids)

            def area_of(lon: float, lat: float) -> str:
                return next((area.name for area in found if bool(area.contains(lon, lat))), "")

            return [(choose_ids(ids, self._most(recipe.max), self.recipe.seed), area_of)]
        work: list[tuple[list[str], str | Callable[[float, float], str]]] = []
        seen: set[str] = set()
        for index, area in enumerate(found):
            most = self._most((self.recipe.areas[index].max if self.recipe.areas else 0) or recipe.max)
            ids = await fetch.discover_queries(
                source, area, http, spacing_m=recipe.spacing_m, limit=most, seed=self.recipe.seed
            )
            work.append(([pano_id for pano_id in ids if pano_id not in seen], area.name))
            seen.update(ids)
        return work

    def _most(self, number: int) -> int:
        """Return the smaller of a maximum and the recipe's limit, where 0 means none."""
        return min(number, self.recipe.limit) if number and self.recipe.limit else number or self.recipe.limit

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
        """Run the network part of a step; SIGINT and SIGTERM let it finish what is in flight."""

        async def main() -> T:
            cancel = asyncio.Event()
            _on_signals(asyncio.get_running_loop(), cancel.set)
            async with Http(rate_per_s=self.rate_per_s) as http:
                result = await work(http, cancel)
            if cancel.is_set():
                raise KeyboardInterrupt
            return result

        with _kept_handlers(), asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(main())


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    if sys.platform == "win32":
        return None
    import uvloop

    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def _on_signals(loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> None:
    """Call ``stop`` on the first SIGINT or SIGTERM instead of dying; a second one dies."""

    def first(number: int) -> None:
        loop.remove_signal_handler(number)
        stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        # Not the main thread, or Windows: the default handling stays.
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
            loop.add_signal_handler(number, first, number)


@contextmanager
def _kept_handlers() -> Iterator[None]:
    """Give SIGINT and SIGTERM back to whoever had them; a loop leaves the default behind."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            with contextlib.suppress(ValueError):  # not the main thread, where nothing was changed
                signal.signal(number, handler)


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
