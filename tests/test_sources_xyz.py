import asyncio

import mercantile
import pytest
from aiohttp import web

from cvgl_data.errors import FetchError, NoImagery, RecipeError
from cvgl_data.http import Http
from cvgl_data.sources import open_imagery
from cvgl_data.sources.xyz import XyzImagery
from cvgl_data.types import ImagerySource, Outcome, Tile

_SOURCE: type[ImagerySource] = XyzImagery
TILE = Tile(41999, 93333, 18)


@pytest.mark.parametrize(
    ("template", "url"),
    [
        ("https://h/{z}/{x}/{y}.jpg", "https://h/18/41999/93333.jpg"),
        ("https://h/{z}/{y}/{x}", "https://h/18/93333/41999"),
        ("https://h/{z}/{x}/{-y}.png", f"https://h/18/41999/{2**18 - 1 - 93333}.png"),
        ("https://h/a{q}.jpeg?g=1", f"https://h/a{mercantile.quadkey(41999, 93333, 18)}.jpeg?g=1"),
        ("https://{s}.h/{z}/{x}/{y}", "https://c.h/18/41999/93333"),
    ],
)
def test_placeholders(template, url):
    assert XyzImagery(template, subdomains="abc").url(TILE) == url


def test_subdomains_share_the_tiles_and_a_tile_keeps_its_own():
    source = XyzImagery("https://{s}.h/{z}/{x}/{y}", subdomains="t0,t1")
    hosts = [source.url(Tile(x, 0, 5)).split("/")[2] for x in range(4)]
    assert hosts == ["t0.h", "t1.h", "t0.h", "t1.h"]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("https://h/{z}/{x}", r"needs \{z\}, \{x\} and \{y\}"),
        ("https://h/{z}/{x}/{y}/{scale}", r"unknown placeholders \{scale\}"),
        ("https://{s}.h/{z}/{x}/{y}", "option 'subdomains'"),
        ("h/{z}/{x}/{y}", "must begin with http"),
        ("https://tile.openstreetmap.org/{z}/{x}/{y}.png", "forbids bulk downloading"),
        ("https://a.tile.openstreetmap.org/{z}/{x}/{y}.png", "forbids bulk downloading"),
        ("https://h/{z}/{x}/{y}?key=S3CR3T", r"write key=\$\{NAME\}"),
        ("https://h/{z}/{x}/{y}?a=1&Access_Token=S3CR3T", "environment variable"),
        ("https://h/{z}/{x}/{y}?key=${CVGL_TEST_UNSET}", "is not set"),
    ],
)
def test_templates_that_cannot_work_are_refused(template, message):
    with pytest.raises(RecipeError, match=message) as caught:
        XyzImagery(template)
    assert "S3CR3T" not in str(caught.value)


def test_keys_come_from_the_environment_and_stay_out_of_errors(monkeypatch):
    monkeypatch.setenv("MY_TILE_KEY", "S3CR3T")
    source = XyzImagery("http://127.0.0.1:9/{z}/{x}/{y}?key=${MY_TILE_KEY}")
    assert source.url(TILE).endswith("?key=S3CR3T")

    async def run():
        async with Http(max_tries=1) as http:
            await source.fetch(TILE, http)

    with pytest.raises(FetchError) as caught:
        asyncio.run(run())
    assert "S3CR3T" not in str(caught.value)


def test_tiles_from_a_loopback_server():
    bodies = {"/5/1/2.jpg": web.Response(body=b"\xff\xd8body\xff\xd9"), "/5/1/3.jpg": web.Response(status=204)}
    bodies["/5/1/5.jpg"] = web.Response(status=403)

    async def answer(request):
        return bodies.get(request.path, web.Response(status=404))

    async def run():
        application = web.Application()
        application.router.add_get("/{tail:.*}", answer)
        runner = web.AppRunner(application)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = site._server.sockets[0].getsockname()[1]
        options = {"location": f"http://127.0.0.1:{port}/{{z}}/{{x}}/{{y}}.jpg", "tile_px": 512, "max_zoom": 20}
        source = open_imagery("xyz", options)
        assert (source.tile_px, source.max_zoom) == (512, 20)
        try:
            async with Http(rate_per_s=0) as http:
                tiles = [source.fetch(Tile(1, y, 5), http) for y in (2, 3, 4, 5)]
                return await asyncio.gather(*tiles, return_exceptions=True)
        finally:
            await runner.cleanup()

    good, empty, missing, forbidden = asyncio.run(run())
    assert good.image == b"\xff\xd8body\xff\xd9"
    assert isinstance(empty, NoImagery)
    assert missing.outcome is Outcome.NOT_FOUND
    assert forbidden.outcome is Outcome.AUTH
    assert forbidden.item == "5/1/5"
