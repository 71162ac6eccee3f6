"""Fetch references and queries into a workspace: bounded concurrency, per-item resume, failures as rows.

Every item that is asked for ends as one row of a `Store`, with its image or with the outcome and the error that it met.
A run that is repeated asks only for what is missing and for what failed in passing.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pyarrow as pa

from cvgl_data import schema
from cvgl_data.aoi import AreaOfInterest
from cvgl_data.errors import FetchError, RecipeError
from cvgl_data.http import Http, redact
from cvgl_data.images import decode, encode_jpeg, image_size
from cvgl_data.mosaic import TileCache, cut
from cvgl_data.panorama import north_align
from cvgl_data.selection import choose
from cvgl_data.store import Store
from cvgl_data.types import ImagerySource, Outcome, Panorama, PanoramaSource, Window
from cvgl_data.workspace import Workspace

logger = logging.getLogger(__name__)

T = TypeVar("T")
Row = dict[str, Any]
OnItem = Callable[[Outcome], None]

IN_FLIGHT = 32
"""Items worked on at a time; hosts are protected by `Http`, memory by this."""

DRAIN_S = 10.0
"""How long what is in flight may take once a run has been told to stop."""


def _rows_of(table: pa.Schema) -> pa.Schema:
    """Return the columns of a store: the table's with the image as plain bytes, and the error's text."""
    fields = [pa.field("image", pa.binary()) if field.name == "image" else field for field in table]
    return pa.schema([*fields, pa.field("error", pa.string())], metadata=table.metadata)


REFERENCE_ROWS = _rows_of(schema.REFERENCES)
QUERY_ROWS = _rows_of(schema.QUERIES)


def reference_store(workspace: Workspace) -> Store:
    """Open the store of fetched references, keyed by ``reference_id``."""
    return workspace.store("references", REFERENCE_ROWS, "reference_id")


def query_store(workspace: Workspace) -> Store:
    """Open the store of fetched queries, keyed by ``query_id``."""
    return workspace.store("queries", QUERY_ROWS, "query_id")


async def fetch_references(
    windows: Iterable[Window],
    area_name: str,
    source: ImagerySource,
    workspace: Workspace,
    http: Http,
    *,
    on_item: OnItem | None = None,
    in_flight: int = IN_FLIGHT,
    retry_failed: bool = False,
    cancel: asyncio.Event | None = None,
) -> Counter[Outcome]:
    """Fetch the windows that the workspace does not have yet.

    A window that is exactly one tile is stored as received, byte for byte. Any other is cut from the tiles it touches
    and encoded once; it fails if one of them does.

    Args:
        windows: What to fetch.
        area_name: For the ``area`` column.
        source: Where from.
        workspace: Open workspace.
        http: Shared client.
        on_item: Told the outcome of each window, also of those that are there already.
        in_flight: Windows worked on at a time.
        retry_failed: Also ask again for windows that failed for good.
        cancel: Once set, nothing new begins, what is in flight may finish for `DRAIN_S`, and all of it is kept.

    Returns:
        How many windows ended how, those of earlier runs included; windows that were not reached are not counted.

    Raises:
        RecipeError: If the source does not go as deep as the windows' zoom.
    """
    tiles = TileCache(source, http)

    async def work(window: Window) -> Row:
        if window.zoom > source.max_zoom:
            raise RecipeError(f"imagery source '{source.name}' ends at zoom {source.max_zoom}, not {window.zoom}")
        return await _reference(window, area_name, source, tiles)

    with reference_store(workspace) as store:
        try:
            return await _run(
                ((window.key, window) for window in windows), work, store, on_item, in_flight, retry_failed, cancel
            )
        finally:
            tiles.close()


async def fetch_queries(
    pano_ids: Iterable[str],
    area: str | Callable[[float, float], str],
    source: PanoramaSource,
    workspace: Workspace,
    http: Http,
    *,
    align: str = "auto",
    width: int = 2048,
    on_item: OnItem | None = None,
    in_flight: int = IN_FLIGHT,
    retry_failed: bool = False,
    cancel: asyncio.Event | None = None,
) -> Counter[Outcome]:
    """Fetch the panoramas that the workspace does not have yet, turned north and upright as far as asked for and known.

    Args:
        pano_ids: What to fetch.
        area: For the ``area`` column; a function gets lon and lat.
        source: Where from.
        workspace: Open workspace.
        http: Shared client.
        align: ``north``, ``keep`` or ``auto``, see `PanoramaRecipe.align`.
        width: Of re-rendered panoramas; their height is half of it.
        on_item: As for `fetch_references`, like all that follow.
        in_flight: Panoramas worked on at a time.
        retry_failed: Also ask again for panoramas that failed for good.
        cancel: Ends the run early and cleanly.

    Raises:
        RecipeError: If ``align`` or ``width`` is not possible.
    """
    if align not in ("north", "keep", "auto"):
        raise RecipeError(f"recipe key 'panoramas.align' must be north, keep or auto, not '{align}'")
    if width < 2 or width % 2:
        raise RecipeError(f"recipe key 'panoramas.width' must be even and positive, not {width}")
    north_width = None if align == "keep" or (align == "auto" and source.name == "folder") else width
    name_area = area if callable(area) else lambda lon, lat: area
    with query_store(workspace) as store, ThreadPoolExecutor(os.cpu_count()) as pool:

        async def work(pano_id: str) -> Row:
            try:
                panorama = await source.fetch(pano_id, http)
                loop = asyncio.get_running_loop()
                row = await loop.run_in_executor(pool, _query, pano_id, panorama, north_width)
                row["area"] = name_area(panorama.lon, panorama.lat)
                row["licence"] = panorama.licence or source.licence
            except FetchError as error:
                row = {"query_id": pano_id, **_failed(error)}
                row["area"] = "" if callable(area) else area
            row["source"] = source.name
            return row

        in_order = ((pano_id, pano_id) for pano_id in pano_ids)
        return await _run(in_order, work, store, on_item, in_flight, retry_failed, cancel)


async def discover_queries(
    source: PanoramaSource,
    area: AreaOfInterest,
    http: Http,
    *,
    spacing_m: float = 0.0,
    limit: int = 0,
    seed: int = 0,
) -> list[str]:
    """Return the ids of the panoramas to fetch in an area, sorted.

    Args:
        source: Lists them. Those that it cannot place (`FolderPanoramas.unplaced`) are included, to end as failed rows.
        area: Where.
        http: Shared client.
        spacing_m: As for `choose`.
        limit: As for `choose`.
        seed: As for `choose`.
    """
    refs = [ref async for ref in source.discover(area, http)]
    chosen = choose(refs, spacing_m=spacing_m, limit=limit, seed=seed)
    unplaced: Sequence[str] = getattr(source, "unplaced", ())
    return sorted({*(ref.pano_id for ref in chosen), *unplaced})


async def _run(
    items: Iterable[tuple[str, T]],
    work: Callable[[T], Awaitable[Row]],
    store: Store,
    on_item: OnItem | None,
    in_flight: int,
    retry_failed: bool,
    cancel: asyncio.Event | None,
) -> Counter[Outcome]:
    """Work through the items, a fixed number at a time, and keep their rows."""
    counts: Counter[Outcome] = Counter()
    cancel = cancel or asyncio.Event()
    done = store.done(retry_failed)

    def count(outcome: Outcome) -> None:
        counts[outcome] += 1
        if on_item is not None:
            on_item(outcome)

    def missing() -> Iterator[T]:
        for key, item in items:
            if cancel.is_set():
                return
            if key in done:
                count(store.outcome(key))
            else:
                yield item

    pulled = missing()

    async def worker() -> None:
        for item in pulled:
            row = await work(item)
            store.append(row)
            count(Outcome(row["status"]))

    workers = [asyncio.ensure_future(worker()) for _ in range(in_flight)]
    watcher = asyncio.ensure_future(_stop_late(cancel, workers))
    try:
        await asyncio.gather(*workers)
    except asyncio.CancelledError:
        this = asyncio.current_task()
        if this is not None and this.cancelling():  # somebody ended us, not the watcher the workers
            raise
    finally:
        for task in (watcher, *workers):
            task.cancel()
        await asyncio.gather(watcher, *workers, return_exceptions=True)
        store.flush()
    return counts


async def _stop_late(cancel: asyncio.Event, workers: Sequence[asyncio.Future[None]]) -> None:
    """Give what is in flight a while after the run was told to stop, then end it."""
    await cancel.wait()
    await asyncio.sleep(DRAIN_S)
    for worker in workers:
        worker.cancel()


async def _reference(window: Window, area_name: str, source: ImagerySource, tiles: TileCache) -> Row:
    """Return the row of one window, fetched or failed."""
    lon, lat = window.center
    row: Row = {
        "reference_id": window.key,
        **window._asdict(),
        "lon": lon - 360.0 if lon >= 180.0 else lon,
        "lat": lat,
        "gsd_m": window.gsd_m,
        "area": area_name,
        "source": source.name,
    }
    try:
        fetched = await cut(window, tiles)
    except FetchError as error:
        return row | _failed(error)
    return row | {
        **_stored(fetched.image),
        "release": fetched.release,
        "captured": fetched.captured,
        "licence": fetched.licence or source.licence,
    }


def _query(pano_id: str, panorama: Panorama, north_width: int | None) -> Row:
    """Return the row of one panorama; ``north_width`` asks for it to be turned north."""
    width, height = image_size(panorama.image)
    image, heading, pitch, roll = panorama.image, panorama.heading_deg, panorama.pitch_deg, panorama.roll_deg
    is_posed = pitch is not None and roll is not None
    if north_width is not None and heading is not None:
        if width != 2 * height:
            text = f"a full panorama is twice as wide as high, '{pano_id}' is {width}x{height}"
            raise FetchError(text, item=pano_id, outcome=Outcome.WRONG_SIZE)
        pose = (heading % 360.0, pitch or 0.0, roll or 0.0) if is_posed else (heading % 360.0, 0.0, 0.0)
        if pose != (0.0, 0.0, 0.0) or width != north_width:
            image = encode_jpeg(north_align(decode(image), *pose, width=north_width))
        heading = 0.0
        pitch = roll = 0.0 if is_posed else None
    return {
        "query_id": pano_id,
        **_stored(image),
        "lon": panorama.lon,
        "lat": panorama.lat,
        "heading_deg": heading,
        "pitch_deg": pitch,
        "roll_deg": roll,
        "upright": (pitch == 0.0 and roll == 0.0) if is_posed else None,
        "captured": panorama.captured,
        "creator": panorama.creator,
    }


def _stored(image: bytes) -> Row:
    return {"image": image, "sha256": hashlib.sha256(image).hexdigest(), "status": Outcome.OK.value}


def _failed(error: FetchError) -> Row:
    return {"image": None, "status": error.outcome.value, "error": redact(str(error))}
