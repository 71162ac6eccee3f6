"""What runs in the processes that `acquisition.py` measures: one client per tool, and what checks their results.

Only the standard library is imported at the top, so that a client pays for what it uses and no more.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tile_server

HERE = Path(__file__).resolve()
ZOOM, WEST, NORTH = 18, 41_900, 93_300
"""North-west corner of the area in tiles."""

SERVICE = "/arcgis/rest/services/World_Imagery/MapServer/tile"
CONNECTIONS = 64
PLACEHOLDER_BYTES = 2521


def shape(num: int) -> tuple[int, int]:
    """Return columns and rows of the most square rectangle of so many tiles."""
    rows = next(n for n in range(math.isqrt(num), 0, -1) if num % n == 0)
    return num // rows, rows


def tiles(num: int) -> list[tuple[int, int]]:
    """Return x and y of the tiles of the area, row by row."""
    columns, rows = shape(num)
    return [(WEST + column, NORTH + row) for row in range(rows) for column in range(columns)]


def path_of(x: int, y: int) -> str:
    return f"{SERVICE}/{ZOOM}/{y}/{x}"


def urls(num: int, base: str) -> list[str]:
    return [base + path_of(x, y) for x, y in tiles(num)]


def lonlat(x: float, y: float) -> tuple[float, float]:
    """Return the position of a point given in tiles."""
    return x / 2**ZOOM * 360 - 180, math.degrees(math.atan(math.sinh(math.pi * (1 - 2 * y / 2**ZOOM))))


def bbox(num: int) -> tuple[float, float, float, float]:
    """Return west, south, east, north of the area in degrees, just inside its outer tiles."""
    columns, rows = shape(num)
    west, north = lonlat(WEST + 0.25, NORTH + 0.25)
    east, south = lonlat(WEST + columns - 0.25, NORTH + rows - 0.25)
    return west, south, east, north


def kind_of_body(body: bytes) -> str:
    """Return good, placeholder or damaged, from the outside."""
    if len(body) == PLACEHOLDER_BYTES:
        return "placeholder"
    return "good" if body[:2] == b"\xff\xd8" and body[-2:] == b"\xff\xd9" else "damaged"


def xyz_options(base: str, digest: str) -> dict[str, str]:
    """Return the options of our source; the placeholder's digest as a user would declare it."""
    return {"location": base + SERVICE + "/{z}/{y}/{x}", **({"placeholder_sha256": digest} if digest else {})}


def client_ours(arguments: argparse.Namespace) -> dict[str, int]:
    """Fetch as `cvgl-data` does, on the loop that it uses."""
    import numpy as np
    import uvloop

    from cvgl_data.fetch import fetch_references
    from cvgl_data.grid import Windows
    from cvgl_data.http import Http
    from cvgl_data.sources import open_imagery
    from cvgl_data.types import TILE_PX
    from cvgl_data.workspace import Workspace

    source = open_imagery("xyz", xyz_options(arguments.base, arguments.placeholder))
    x, y = np.array(tiles(arguments.num)).T * TILE_PX
    windows = Windows(x, y, TILE_PX, ZOOM)  # as the grid of a recipe makes them
    options: dict[str, Any] = {"in_flight": CONNECTIONS, "verify": arguments.verify}

    async def run(workspace: Workspace) -> Counter[Any]:
        async with Http(rate_per_s=0, connections=CONNECTIONS) as http:
            return await fetch_references(windows, "bench", source, workspace, http, **options)

    with Workspace(arguments.out).open({"name": "bench"}) as workspace:
        return {outcome.value: count for outcome, count in uvloop.run(run(workspace)).items()}


def client_aiohttp(arguments: argparse.Namespace) -> dict[str, int]:
    """GET and forget: what no tool on top of it can pass."""
    import aiohttp
    import uvloop

    found: Counter[str] = Counter()

    async def run() -> None:
        connector = aiohttp.TCPConnector(limit=CONNECTIONS)
        async with aiohttp.ClientSession(connector=connector) as session:
            left = iter(urls(arguments.num, arguments.base))

            async def worker() -> None:
                for url in left:
                    async with session.get(url) as response:
                        found[kind_of_body(await response.read())] += 1

            await asyncio.gather(*(worker() for _ in range(CONNECTIONS)))

    uvloop.run(run())
    return dict(found)


def client_streetlevel(arguments: argparse.Namespace) -> dict[str, int]:
    from streetlevel.util import download_files_async

    return dict(Counter(map(kind_of_body, asyncio.run(download_files_async(urls(arguments.num, arguments.base))))))


def client_contextily(arguments: argparse.Namespace) -> dict[str, int]:
    """One array; cells are not told apart, so all of them count as good."""
    import contextily

    template = arguments.base + SERVICE + "/{z}/{y}/{x}"
    options = {"zoom": ZOOM, "source": template, "ll": True, "n_connections": CONNECTIONS, "use_cache": False}
    image, _ = contextily.bounds2img(*bbox(arguments.num), **options)
    return {"good": image.shape[0] * image.shape[1] // 256**2}


# What looks at the results afterwards: also a process of its own, so that this one stays small (a child's peak RSS
# begins with its parent's).


def client_check_ours(arguments: argparse.Namespace) -> dict[str, Any]:
    """Compare every row with what the server sends for its path without faults."""
    from cvgl_data.fetch import reference_store
    from cvgl_data.types import TILE_PX
    from cvgl_data.workspace import Workspace

    rows: Counter[str] = Counter()
    statuses: Counter[str] = Counter()
    with reference_store(Workspace(arguments.out)) as store:
        for row in store.rows():
            statuses[row["status"]] += 1
            if row["status"] == "ok":
                good = tile_server.body_of(path_of(row["x"] // TILE_PX, row["y"] // TILE_PX))
                is_whole = row["image"] == good and row["sha256"] == hashlib.sha256(good).hexdigest()
                rows[
                    "good" if is_whole else "placeholder" if len(row["image"]) == PLACEHOLDER_BYTES else "damaged"
                ] += 1
    return {**rows, "statuses": dict(statuses)}


def client_check_img2dataset(arguments: argparse.Namespace) -> dict[str, Any]:
    import pyarrow.parquet

    rows: Counter[str] = Counter()
    statuses: Counter[str] = Counter()
    for path in sorted(Path(arguments.out).glob("*.parquet")):
        for row in pyarrow.parquet.read_table(path, columns=["status", "jpg"]).to_pylist():
            statuses[row["status"]] += 1
            if row["status"] == "success":
                rows[kind_of_body(row["jpg"])] += 1
    return {**rows, "statuses": dict(statuses)}


def client_check_readable(arguments: argparse.Namespace) -> dict[str, Any]:
    """Read in full every file of a dataset folder that bears its final name."""
    import pyarrow
    import pyarrow.parquet

    unreadable, rows = [], 0
    for path in sorted(Path(arguments.out).rglob("*")):
        try:
            if path.suffix == ".arrow":
                table = pyarrow.ipc.open_file(str(path)).read_all()
                table.validate(full=True)
                rows += table.num_rows if path.parent.name == "references" else 0
            elif path.suffix == ".parquet":
                pyarrow.parquet.read_table(path)
            elif path.suffix == ".json":
                json.loads(path.read_text(encoding="utf-8"))
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            unreadable.append(f"{path}: {error}")
    return {"unreadable": unreadable, "rows": rows}


def client_prepare(arguments: argparse.Namespace) -> dict[str, str]:
    """Make a folder with one small panorama at the area's north-west corner; return what a recipe has to know."""
    import inspect

    from PIL import Image

    from cvgl_data.sources.xyz import XyzImagery

    exif = Image.Exif()
    lon, lat = lonlat(WEST + 0.5, NORTH + 0.5)
    exif[0x8825] = {1: "N", 2: (lat, 0.0, 0.0), 3: "W", 4: (-lon, 0.0, 0.0)}
    Path(arguments.out).mkdir(parents=True)
    Image.linear_gradient("L").resize((128, 64)).convert("RGB").save(Path(arguments.out) / "p.jpg", exif=exif)
    is_taken = "placeholder_sha256" in inspect.signature(XyzImagery).parameters
    return {"placeholder": hashlib.sha256(tile_server.placeholder()).hexdigest() if is_taken else ""}


CLIENTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    name.removeprefix("client_").replace("_", "-"): found
    for name, found in list(globals().items())
    if name.startswith("client_")
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("client", choices=list(CLIENTS))
    for name, kind, default in (("num", int, 4096), ("base", str, ""), ("out", str, "")):
        parser.add_argument(f"--{name}", type=kind, default=default)
    parser.add_argument("--verify", default="header")
    parser.add_argument("--placeholder", default="")
    arguments = parser.parse_args()
    print(json.dumps(CLIENTS[arguments.client](arguments)))


if __name__ == "__main__":
    main()
