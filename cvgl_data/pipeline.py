"""The walk from a recipe to a dataset: plan, references, queries, pairs, distance map, splits, pack.

`build` is the list of the steps; each step is a method of `Build` and a command of its own. A step reads what the
earlier ones left in the workspace and leaves one thing itself, so a build that was killed goes on where it stopped.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from cvgl_data import fetch, neighbors, pairing, shards, splits, terms
from cvgl_data.dataset import open_dataset
from cvgl_data.errors import FetchError, WorkspaceError
from cvgl_data.fetch.repeats import flagged, repeated
from cvgl_data.http import Http
from cvgl_data.planning import areas, check, discover, most_panoramas, windows_of, without_repeats
from cvgl_data.readers.packed import MANIFEST
from cvgl_data.recipe import DatasetRecipe, SourceRecipe, resolve, to_tables
from cvgl_data.running import run
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
    num_constant: int
    """References that share their bytes with several others."""
    manifest: Path

    @property
    def num_failed(self) -> int:
        """Items that could not be had."""
        return sum(count_failed(counts) for counts in self.outcomes.values())


def count_failed(counts: dict[str, int]) -> int:
    """Return how many items could not be had; a missing tile or panorama is a fact, not a failure."""
    facts = {Outcome.OK, Outcome.NO_IMAGERY, Outcome.NOT_FOUND}
    return sum(n for outcome, n in counts.items() if outcome not in facts)


def build(recipe: DatasetRecipe, out: Path, **settings: Any) -> Report:
    """Build a dataset, or go on with a build that was interrupted.

    Args:
        recipe: What to build.
        out: Folder of the dataset; its ``.cvgl`` folder holds what was fetched.
        settings: As for `start`.

    Raises:
        CvglError: Whatever went wrong, named; what was fetched is kept.
        KeyboardInterrupt: After SIGINT or SIGTERM, once what is in flight has been kept.
    """
    with start(recipe, out, **settings) as begun:
        outcomes = {"references": begun.fetch_references(), "queries": begun.fetch_queries()}
        pairs = begun.pair()
        begun.distance_map()
        counts = begun.split()
        manifest = begun.pack()
        constant = len(repeated(begun.references()))
    covered = len(set(pairs["query_id"].to_pylist()))
    return Report(
        outcomes=outcomes,
        splits=counts,
        num_pairs=pairs.num_rows,
        num_covered=covered,
        num_constant=constant,
        manifest=manifest,
    )


@contextmanager
def start(
    recipe: DatasetRecipe,
    out: Path,
    *,
    kinds: Sequence[str] = ("imagery", "panoramas"),
    accept_terms: Sequence[str] = (),
    overwrite: bool = False,
    rate_per_s: float = 10.0,
    connections: int = 8,
    **settings: Any,
) -> Iterator[Build]:
    """Open the workspace of a recipe, new or begun, and yield the build.

    What a source would otherwise change under the recipe, such as the newest release of its imagery, is fixed now and
    saved with it.

    Args:
        recipe: What to build.
        out: Folder of the dataset.
        kinds: What will be fetched; only the terms of these sources are asked for.
        accept_terms: Names of terms of use that the user accepts.
        overwrite: Delete what an earlier build left in the folder, and start over.
        rate_per_s: Requests per second and host; 0 means no limit.
        connections: Requests in flight per host.
        settings: See `Build`.

    Raises:
        TermsError: If a source's terms have not been accepted.
    """
    check(recipe)
    workspace = Workspace(out)
    http_settings = {"rate_per_s": rate_per_s, "connections": connections}
    with _sources(recipe, kinds) as sources:
        found = [source.terms for source in sources.values() if getattr(source, "terms", None)]
        record = terms.check(found, accept_terms, terms.read(workspace.state))
        saved = {} if overwrite else workspace.recipe_tables() or {}
        recipe = _pinned(recipe, sources, saved, http_settings)
    with workspace.open(to_tables(recipe), overwrite=overwrite):
        terms.write(workspace.state, record)
        yield Build(recipe, workspace, http_settings=http_settings, **settings)


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


@contextmanager
def _sources(recipe: DatasetRecipe, kinds: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the recipe's sources by kind."""
    openers: dict[str, Callable[..., Any]] = {"imagery": open_imagery, "panoramas": open_panoramas}
    with ExitStack() as stack:
        opened = {}
        for kind in kinds:
            chosen: SourceRecipe = getattr(recipe, kind)
            opened[kind] = stack.enter_context(closing(openers[kind](chosen.source, chosen.options, workers=1)))
        yield opened


def _pinned(
    recipe: DatasetRecipe, sources: Mapping[str, Any], saved: Mapping[str, Any], http_settings: Mapping[str, Any]
) -> DatasetRecipe:
    """Return the recipe with the options that its sources pin: those saved with the build, or those of today."""
    for kind, source in sources.items():
        if not hasattr(source, "pin"):
            continue
        chosen: SourceRecipe = getattr(recipe, kind)
        before = saved.get(kind, {})
        kept = before.get("options", {}) if before.get("source") == chosen.source else {}
        if all(kept.get(key) and chosen.options.get(key) in (None, "", kept[key]) for key in source.pins):
            pins = {key: kept[key] for key in source.pins}
        else:
            pins = run(partial(_pin, source), **http_settings)
        changed: dict[str, Any] = {kind: replace(chosen, options={**chosen.options, **pins})}
        recipe = replace(recipe, **changed)
    return recipe


async def _pin(source: Any, http: Http, cancel: asyncio.Event) -> dict[str, Any]:
    pins: dict[str, Any] = await source.pin(http)
    return pins


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
