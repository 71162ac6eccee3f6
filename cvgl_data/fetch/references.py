"""References: windows from tiles."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable

from cvgl_data.errors import FetchError, RecipeError, SourceStopped
from cvgl_data.fetch.engine import IN_FLIGHT, OnItem, work_through
from cvgl_data.fetch.mosaic import TileCache, cut
from cvgl_data.fetch.rows import Row, failed, is_restricted, reference_store, stored
from cvgl_data.grid import Windows
from cvgl_data.http import Http, NotModified
from cvgl_data.types import TILE_PX, Fetched, ImagerySource, Outcome, Window, gsd_m_at
from cvgl_data.workspace import Workspace


async def fetch_references(
    windows: Iterable[Window],
    area_name: str,
    source: ImagerySource,
    workspace: Workspace,
    http: Http,
    *,
    verify: str = "header",
    on_item: OnItem | None = None,
    in_flight: int = IN_FLIGHT,
    retry_failed: bool = False,
    refresh: bool = False,
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
        verify: How closely received images are looked at: ``header`` and one in 256 decoded, or ``decode`` for all.
        on_item: Told the outcome of each window, also of those that are there already.
        in_flight: Windows worked on at a time.
        retry_failed: Also ask again for windows that failed for good.
        refresh: Also ask for windows that are there whether they have changed; one that cannot be had stays as it is.
        cancel: Once set, nothing new begins, what is in flight may finish for a while, and all of it is kept.

    Returns:
        How many windows ended how, those of earlier runs included; windows that were not reached are not counted.

    Raises:
        RecipeError: If the source does not go as deep as the windows' zoom, or ``verify`` is neither.
        SourceStopped: If the source refuses to go on; what was fetched is kept.
    """
    tiles = TileCache(source, http, verify=verify, is_shared=not _share_no_tiles(windows))
    restricted = is_restricted(source)
    refresh = refresh and not getattr(source, "is_immutable", False)
    with reference_store(workspace) as store:
        etags = {}
        if refresh:
            there = store.table(store.keys(Outcome.OK))
            etags = dict(zip(there["reference_id"].to_pylist(), there["etag"].to_pylist(), strict=True))

        async def work(key: str, window: Window) -> Row | Outcome:
            if window.zoom > source.max_zoom:
                raise RecipeError(f"imagery source '{source.name}' ends at zoom {source.max_zoom}, not {window.zoom}")
            try:
                fetched = await cut(window, tiles, etags.get(key) or "")
                return _row(_place(key, window, area_name, source), fetched, source, restricted)
            except NotModified:
                return Outcome.OK
            except SourceStopped:
                raise
            except FetchError as error:
                if key in etags:
                    return error.outcome
                return _place(key, window, area_name, source) | failed(error)

        try:
            return await work_through(
                ((window.key, window) for window in windows),
                work,
                store,
                on_item=on_item,
                in_flight=in_flight,
                retry_failed=retry_failed,
                refresh=refresh,
                cancel=cancel,
            )
        finally:
            tiles.close()


def _share_no_tiles(windows: Iterable[Window]) -> bool:
    """Whether each window is one tile of its own, so that keeping tiles for the next window is in vain."""
    if not isinstance(windows, Windows) or windows.size != TILE_PX:
        return False
    return not ((windows.x % TILE_PX).any() or (windows.y % TILE_PX).any())


def _place(key: str, window: Window, area_name: str, source: ImagerySource) -> Row:
    lon, lat = window.center
    return {
        "reference_id": key,
        "x": window.x,
        "y": window.y,
        "size": window.size,
        "zoom": window.zoom,
        "lon": lon - 360.0 if lon >= 180.0 else lon,
        "lat": lat,
        "gsd_m": gsd_m_at(lat, window.zoom),
        "area": area_name,
        "source": source.name,
    }


def _row(place: Row, fetched: Fetched, source: ImagerySource, no_redistribute: bool) -> Row:
    """Return the row of one window that could be had."""
    place |= stored(fetched.image, fetched.sha256)
    place |= {
        "release": fetched.release,
        "release_source": fetched.release_source,
        "captured": fetched.captured,
        "provider": fetched.provider,
        "source_gsd_m": fetched.source_gsd_m,
        "upsampled_from_zoom": fetched.upsampled_from_zoom,
        "licence": fetched.licence or source.licence,
        "no_redistribute": no_redistribute,
        "robots": fetched.robots,
        "etag": fetched.etag,
        "last_modified": fetched.last_modified,
    }
    return place
