"""The walk from a recipe to a dataset: plan, references, queries, pairs, distance map, splits, pack.

`build` is the list of the steps; each step is a method of `Build` and a command of its own. A step reads what the
earlier ones left in the workspace and leaves one thing itself, so a build that was killed goes on where it stopped.
"""

from __future__ import annotations

import asyncio
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from cvgl_data import shards, terms
from cvgl_data.dataset import open_dataset
from cvgl_data.errors import RecipeError, WorkspaceError
from cvgl_data.fetch.repeats import repeated
from cvgl_data.http import Http
from cvgl_data.http.running import run
from cvgl_data.pipeline.steps import Build
from cvgl_data.planning import check, windows_by_area
from cvgl_data.readers.packed import read_manifest
from cvgl_data.recipe import DatasetRecipe, ImageryRecipe, SourceRecipe, differences, resolve, to_tables
from cvgl_data.sources import open_imagery, open_panoramas
from cvgl_data.summary import decentrality_rows
from cvgl_data.types import Outcome
from cvgl_data.workspace import REVISABLE, Workspace

_ACTS = dict(zip(REVISABLE, ("quality", "split", "distance-map", "split", "pack"), strict=True))
"""The command that acts on a table."""


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
        return _finish(begun, outcomes, begun.split)


def reimage(folder: Path, out: Path, imagery: ImageryRecipe, **settings: Any) -> Report:
    """Build a dataset again with references of another source, and all else the same.

    With map tiles this is street-to-map retrieval, with imagery of another year cross-temporal retrieval on the
    overhead side. Windows, queries and splits are those of the packed dataset; a query that no reference covers any
    more, since the source has no tile there, is left out (``no_reference``).

    Args:
        folder: A packed dataset.
        out: Folder of the new one.
        imagery: Where its references come from.
        settings: As for `start`.

    Raises:
        WorkspaceError: If the folders are the same.
        CvglError: Whatever went wrong, named; what was fetched is kept.
        KeyboardInterrupt: As for `build`.
    """
    if out.resolve() == folder.resolve():
        raise WorkspaceError(f"'{out}' is the dataset itself; name another folder for the new one")
    dataset = open_dataset(folder)
    recipe = replace(
        resolve(DatasetRecipe, tomllib.loads((folder / "recipe.toml").read_text("utf-8"))), imagery=imagery
    )
    with start(recipe, out, kinds=["imagery"], **settings) as begun:
        outcomes = {"references": begun.fetch_references(windows_by_area(dataset.references))}
        outcomes["queries"] = begun.take_queries(dataset, read_manifest(folder)["sources"])
        return _finish(begun, outcomes, partial(begun.keep_splits, dataset))


def _finish(begun: Build, outcomes: dict[str, dict[str, int]], split: Callable[[], dict[str, int]]) -> Report:
    """Do what follows once everything has been fetched."""
    begun.quality()
    pairs = begun.pair()
    begun.distance_map()
    counts = split()
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
        RecipeError: If a source has no key that it cannot do without.
        TermsError: If a source's terms have not been accepted.
    """
    check(recipe)
    workspace = Workspace(out)
    http_settings = {"rate_per_s": rate_per_s, "connections": connections}
    with _sources(recipe) as sources:
        found = [sources[kind].terms for kind in kinds if getattr(sources[kind], "terms", None)]
        for kind in kinds:
            if hasattr(sources[kind], "check_access"):  # rather than after hours of fetching the other kind
                sources[kind].check_access()
        record = terms.check(found, accept_terms, terms.read(workspace.state))
        saved = {} if overwrite else workspace.recipe_tables() or {}
        recipe = _pinned(recipe, sources, saved, http_settings)
    with workspace.open(to_tables(recipe), overwrite=overwrite):
        terms.write(workspace.state, record)
        yield Build(recipe, workspace, http_settings=http_settings, **settings)


@contextmanager
def resume(
    out: Path, overrides: Sequence[str] = (), *, acts_on: Sequence[str] = REVISABLE, keep: bool = True, **settings: Any
) -> Iterator[Build]:
    """Open the workspace that a folder holds and yield its build.

    Args:
        out: Folder of the dataset.
        overrides: ``key.path=value`` for tables of the recipe that decide nothing about what is fetched; saved with it
            once what is done with the build has succeeded, so that the saved recipe is that of the saved results.
        acts_on: The tables that this use of the build takes notice of.
        keep: Whether to save the overrides.
        settings: See `Build`.

    Raises:
        RecipeError: If an override is of a table that is not acted on.
        WorkspaceError: If the folder holds none, or an override changes what is fetched.
    """
    for override in overrides:
        name = override.partition("=")[0].partition(".")[0].strip()
        if name in REVISABLE and name not in acts_on:
            raise RecipeError(f"'--set {override}' does nothing here; pass it to `cvgl-data {_ACTS[name]}`")
    tables = Workspace(out).recipe_tables()
    if tables is None and Workspace(out).state.is_dir():
        raise WorkspaceError(f"'{out}' was pulled, not built, so nothing can be computed in it again")
    if tables is None:
        raise WorkspaceError(f"'{out}' holds no build (no .cvgl folder); `cvgl-data build --out {out}` makes one")
    recipe = resolve(DatasetRecipe, tables, overrides)
    changed = differences(to_tables(resolve(DatasetRecipe, tables)), to_tables(recipe))
    if fetched := [line for line in changed if line.partition(":")[0].partition(".")[0] not in REVISABLE]:
        raise WorkspaceError(
            f"'{out}' holds a build of another recipe ({fetched[0]}), which decides what is fetched; "
            "build in another folder"
        )
    # Not checked again: the steps after fetching need neither the sources nor the files they were given.
    with Workspace(out).open(to_tables(recipe), save=False) as workspace:
        yield Build(recipe, workspace, **settings)
        if keep:
            workspace.save_recipe(to_tables(recipe))


@contextmanager
def _sources(recipe: DatasetRecipe) -> Iterator[dict[str, Any]]:
    """Yield the recipe's sources by kind."""
    openers: dict[str, Callable[..., Any]] = {"imagery": open_imagery, "panoramas": open_panoramas}
    with ExitStack() as stack:
        opened = {}
        for kind in openers:
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
            pins = run(partial(_pin, source), late_s=0.0, **http_settings)
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


def export(folder: Path, out: Path, format_: str = "arrow") -> None:
    """Export a packed dataset for others: ``arrow`` for ``datasets.load_from_disk``, or ``webdataset``."""
    open_dataset(folder)
    if format_ == "arrow":
        shards.export_arrow(folder, out)
    else:
        shards.export_webdataset(folder, out)
