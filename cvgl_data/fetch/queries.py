"""Queries: panoramas, listed or discovered, turned north and upright."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cvgl_data.errors import FetchError, RecipeError, SourceStopped
from cvgl_data.fetch.engine import IN_FLIGHT, OnItem, work_through
from cvgl_data.fetch.rows import Row, failed, is_restricted, query_store, stored
from cvgl_data.http import Http, NotModified
from cvgl_data.images import decode, encode_jpeg, image_size
from cvgl_data.selection import choose
from cvgl_data.types import Outcome, Panorama, PanoramaRef, PanoramaSource
from cvgl_data.workspace import Workspace

if TYPE_CHECKING:
    from cvgl_data.aoi import AreaOfInterest


@dataclass(frozen=True, slots=True)
class Discovered:
    """What there is to fetch in an area."""

    pano_ids: list[str]
    """Sorted."""
    errors: list[FetchError]
    """Pages and records that could not be read."""


async def discover_queries(
    source: PanoramaSource,
    area: AreaOfInterest,
    http: Http,
    *,
    spacing_m: float = 0.0,
    limit: int = 0,
    captured_after: str = "",
    captured_before: str = "",
    seed: int = 0,
) -> Discovered:
    """Find the panoramas to fetch in an area.

    Args:
        source: Lists them.
        area: Where.
        http: Shared client.
        spacing_m: As for `choose`, like all that follow.
        limit: At most so many.
        captured_after: ISO 8601 date.
        captured_before: ISO 8601 date.
        seed: Of the choice.

    Raises:
        SourceStopped: If the source refuses to go on.
    """
    refs: list[PanoramaRef] = []
    errors: list[FetchError] = []
    async for found in source.discover(area, http):
        if isinstance(found, FetchError):
            errors.append(found)
        else:
            refs.append(found)
    chosen = choose(
        refs,
        spacing_m=spacing_m,
        limit=limit,
        captured_after=captured_after,
        captured_before=captured_before,
        seed=seed,
    )
    return Discovered([ref.pano_id for ref in chosen], errors)


async def fetch_queries(
    pano_ids: Iterable[str],
    area: str | Callable[[float, float], str],
    source: PanoramaSource,
    workspace: Workspace,
    http: Http,
    *,
    errors: Iterable[FetchError] = (),
    align: str = "auto",
    width: int = 2048,
    verify: str = "header",
    on_item: OnItem | None = None,
    in_flight: int = IN_FLIGHT,
    retry_failed: bool = False,
    refresh: bool = False,
    cancel: asyncio.Event | None = None,
) -> Counter[Outcome]:
    """Fetch the panoramas that the workspace does not have yet, turned north and upright as far as asked for and known.

    Args:
        pano_ids: What to fetch.
        area: For the ``area`` column; a function gets lon and lat.
        source: Where from.
        workspace: Open workspace.
        http: Shared client.
        errors: Of `discover_queries`, to be kept as failed rows.
        align: ``north``, ``keep`` or ``auto``, see `PanoramaRecipe.align`.
        width: Of re-rendered panoramas; their height is half of it.
        verify: ``header``, or ``decode`` to decode those too that are stored as received.
        on_item: As for `fetch_references`, like all that follow.
        in_flight: Panoramas worked on at a time.
        retry_failed: Also ask again for panoramas that failed for good.
        refresh: Also ask for panoramas that are there whether they have changed.
        cancel: Ends the run early and cleanly.

    Raises:
        RecipeError: If ``align``, ``width`` or ``verify`` is not possible.
        SourceStopped: If the source refuses to go on; what was fetched is kept.
    """
    if align not in ("north", "keep", "auto"):
        raise RecipeError(f"recipe key 'panoramas.align' must be north, keep or auto, not '{align}'")
    if width < 2 or width % 2:
        raise RecipeError(f"recipe key 'panoramas.width' must be even and positive, not {width}")
    if verify not in ("header", "decode"):
        raise RecipeError(f"images are verified by header or decode, not by '{verify}'")
    north_width = None if align == "keep" or (align == "auto" and source.name == "folder") else width
    name_area = area if callable(area) else lambda lon, lat: area
    area_of_failed = "" if callable(area) else area
    refresh = refresh and not getattr(source, "is_immutable", False)
    with query_store(workspace) as store, ThreadPoolExecutor(os.cpu_count()) as pool:
        etags = {}
        if refresh:
            there = store.table(store.keys(Outcome.OK))
            etags = dict(zip(there["query_id"].to_pylist(), there["etag"].to_pylist(), strict=True))

        async def work(key: str, pano_id: str) -> Row | Outcome:
            etag = etags.get(pano_id)
            try:
                panorama = await source.fetch(pano_id, http.unless(etag) if etag else http)
                loop = asyncio.get_running_loop()
                row = await loop.run_in_executor(pool, _row, pano_id, panorama, north_width, verify)
            except NotModified:
                return Outcome.OK
            except SourceStopped:
                raise
            except FetchError as error:
                if pano_id in etags:
                    return error.outcome
                return {"query_id": pano_id, "area": area_of_failed, "source": source.name, **failed(error)}
            row["area"] = name_area(panorama.lon, panorama.lat)
            row["licence"] = panorama.licence or source.licence
            row["source"] = source.name
            row["no_redistribute"] = is_restricted(source)
            return row

        for error in errors:
            store.append({"query_id": error.item, "area": area_of_failed, "source": source.name, **failed(error)})
            if on_item is not None:
                on_item(error.outcome)
        counts = await work_through(
            ((pano_id, pano_id) for pano_id in pano_ids),
            work,
            store,
            on_item=on_item,
            in_flight=in_flight,
            retry_failed=retry_failed,
            refresh=refresh,
            cancel=cancel,
        )
        return counts + Counter(error.outcome for error in errors)


def _row(pano_id: str, panorama: Panorama, north_width: int | None, verify: str) -> Row:
    """Return the row of one panorama; ``north_width`` asks for it to be turned north."""
    from cvgl_data.panorama import north_align  # OpenCV: references do without its start-up time

    width, height = image_size(panorama.image)
    image, heading, pitch, roll = panorama.image, panorama.heading_deg, panorama.pitch_deg, panorama.roll_deg
    is_posed = pitch is not None and roll is not None
    is_resampled = False
    if north_width is not None and heading is not None:
        if width != 2 * height:
            text = f"a full panorama is twice as wide as high, '{pano_id}' is {width}x{height}"
            raise FetchError(text, item=pano_id, outcome=Outcome.WRONG_SIZE)
        pose = (heading % 360.0, pitch or 0.0, roll or 0.0) if is_posed else (heading % 360.0, 0.0, 0.0)
        if pose != (0.0, 0.0, 0.0) or width != north_width:
            image = encode_jpeg(north_align(decode(image), *pose, width=north_width))
            is_resampled = True
        heading = 0.0
        pitch = roll = 0.0 if is_posed else None
    if verify == "decode" and not is_resampled:
        decode(image)
    return {
        "query_id": pano_id,
        **stored(image),
        "raw_sha256": hashlib.sha256(panorama.image).hexdigest(),
        "lon": panorama.lon,
        "lat": panorama.lat,
        "heading_deg": heading,
        "pitch_deg": pitch,
        "roll_deg": roll,
        "upright": (pitch == 0.0 and roll == 0.0) if is_posed else panorama.upright,
        "source_heading_deg": panorama.heading_deg,
        "source_pitch_deg": panorama.pitch_deg,
        "source_roll_deg": panorama.roll_deg,
        "pose_source": panorama.pose_source,
        "resampled": is_resampled,
        "captured": panorama.captured,
        "creator": panorama.creator,
        "sequence": panorama.sequence,
        "robots": panorama.robots,
        "etag": panorama.etag,
        "last_modified": panorama.last_modified,
    }
