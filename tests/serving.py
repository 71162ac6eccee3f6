"""The simulated providers served beside a test, a small area of their world, and builds of it."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import OrderedDict
from contextlib import contextmanager
from typing import ClassVar
from unittest import mock

from cvgl_data import pipeline
from cvgl_data.fetch.rows import query_store, reference_store
from cvgl_data.http import Http
from cvgl_data.recipe import DatasetRecipe, resolve
from cvgl_data.simulated_providers import Settings, SimulatedProviders, server
from cvgl_data.simulated_providers.pictures import Pictures
from cvgl_data.sources.esri.basemap import EsriBasemap
from cvgl_data.types import Tile
from cvgl_data.workspace import Workspace

ZOOM = 18
NUM_TILES = 12
NUM_PANORAMAS = 6
CORNER = Tile(41998, 91512, ZOOM)
"""North-west of four by three tiles, with streets in all directions."""

WIDTH = 512
OPTIONS = {"workers": 1, "panorama_width": WIDTH, "every_m": 20.0, "holes": 0.0}
SETTINGS = Settings(**OPTIONS)

NEED_TERMS = {"esri": "esri", "esri-live": "esri", "google": "google", "google-static": "google"}


class SharedPictures(Pictures):
    """What one server has rendered is there for those after it that show the same: rendering is what tests take."""

    made: ClassVar[dict[Settings, tuple]] = {}

    def __init__(self, settings):
        super().__init__(settings)
        shown = {name: getattr(settings, name) for name in ("seed", "date", "panorama_width", "every_m", "tilt_deg")}
        shown |= {name: getattr(settings, name) for name in ("holes", "flat")}
        ours = (self._encoded._things, self._pixels._things, self._cell)
        self._encoded._things, self._pixels._things, self._cell = self.made.setdefault(Settings(**shown), ours)

    async def close(self):
        self._encoded._things, self._pixels._things = OrderedDict(), OrderedDict()
        await super().close()


@contextmanager
def serving(**options):
    """Serve from a thread of its own, so that builds, which run their own loops, can be the real ones."""
    ready, stop = threading.Event(), asyncio.Event()
    found = []

    async def serve():
        async with SimulatedProviders(**{**OPTIONS, **options}).serve() as served:
            found.append((asyncio.get_running_loop(), served))
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    with mock.patch.object(server, "Pictures", SharedPictures):
        thread.start()
        assert ready.wait(30), "the server did not start"
    loop, served = found[0]
    try:
        yield served
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(30)


def quicken(patch):
    """Wait for less where the programs would be patient, and never where a server asked for it."""
    patch.setitem(Http.__init__.__kwdefaults__, "backoff_s", 0.02)
    patch.setattr(EsriBasemap, "recheck_wait_s", 0.02)


def pointed(served, monkeypatch):
    for name, value in served.environment.items():
        monkeypatch.setenv(name, value)
    return served


def box():
    """The area: well inside its tiles, so that it touches no other."""
    last = Tile(CORNER.x + 3, CORNER.y + 2, ZOOM)
    west, _, _, north = CORNER.bounds
    _, south, east, _ = last.bounds
    margin = (east - west) / 400
    return [west + margin, south + margin, east - margin, north - margin]


def recipe(imagery="esri", panoramas="panoramax", *overrides):
    tables = {
        "name": "e2e",
        "areas": [{"name": "here", "bbox": box()}],
        "grid": {"zoom": ZOOM},
        "imagery": {"source": imagery},
        "panoramas": {"source": panoramas, "max": NUM_PANORAMAS, "width": WIDTH},
        "split": {"protocol": "none"},
    }
    return resolve(DatasetRecipe, tables, overrides)


def accepted(described):
    return sorted({NEED_TERMS[s] for s in (described.imagery.source, described.panoramas.source) if s in NEED_TERMS})


def build(described, folder, **settings):
    settings = {"accept_terms": accepted(described), "rate_per_s": 0.0, "workers": 1, **settings}
    return pipeline.build(described, folder, **settings)


def fetch_queries(described, folder, **settings):
    terms = sorted({NEED_TERMS[described.panoramas.source]} if described.panoramas.source in NEED_TERMS else ())
    settings = {"accept_terms": terms, "rate_per_s": 0.0, "workers": 1, **settings}
    with pipeline.start(described, folder, kinds=["panoramas"], **settings) as begun:
        counts = begun.fetch_queries()
        return counts, begun.queries().to_pylist()


def data(folder):
    """Return every byte of the dataset proper."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in (folder / "data").rglob("*") if p.is_file()}


def rows_of(folder):
    """Return all rows as stored, by id, references and queries."""
    workspace = Workspace(folder)
    with reference_store(workspace) as references, query_store(workspace) as queries:
        return [
            {row["reference_id"]: row for row in references.rows()},
            {row["query_id"]: row for row in queries.rows()},
        ]


def manifest_of(folder):
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


def since(served, number):
    return served.log[number:]


def asked(requests, *providers):
    return [request for request in requests if request.provider in providers]


def images(requests):
    """Return the requests for pictures and tiles."""
    parts = ("/tile/", "/pictures/", "/mapillary-cdn/", "/streetview/tiles/", "size=640")
    return [request for request in requests if any(part in request.path for part in parts)]


def tile_of(row):
    return Tile(row["x"] // 256, row["y"] // 256, row["zoom"])
