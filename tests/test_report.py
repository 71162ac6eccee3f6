from __future__ import annotations

import io
import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely
from PIL import Image
from test_figures import renamed
from test_statistics import dataset
from toy_dataset import encode
from toy_tables import ORIGIN_X, ORIGIN_Y, pack, references, scattered, windows

from cvgl_data import report
from cvgl_data.dataset import CrossViewDataset
from cvgl_data.errors import DatasetNotFoundError, RecipeError, WorkspaceError
from cvgl_data.geo import lonlat_from_pixel
from cvgl_data.pairing import pair
from cvgl_data.recipe import AreaRecipe, DatasetRecipe, SplitRecipe
from cvgl_data.report import About, map_data, pictures, render, samples, write_report
from cvgl_data.report.placement import placed
from cvgl_data.schema import DISTANCE_MAP, QUERIES, REFERENCES, without_image

HOSTILE = "</script><script>window.pwned=1</script>\"'><img src=x onerror=window.pwned=1>&amp;{{data}}\u2028"


@cache
def picture(seed: int, width: int, height: int) -> bytes:
    """Return a JPEG of soft blobs, which compresses like a photograph."""
    pixels = np.random.default_rng(seed).integers(0, 255, (height // 16, width // 16, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC).save(buffer, "JPEG")
    return buffer.getvalue()


class FakeImages(Mapping[str, bytes]):
    """As many images as wanted, made of a few; counts what is opened."""

    def __init__(self) -> None:
        self.num_opened = 0

    def __getitem__(self, key: str) -> bytes:
        self.num_opened += 1
        seed = sum(key.encode()) % 20
        return picture(seed, 96, 96) if key[:3] == "18_" else picture(seed, 256, 128)

    def __iter__(self) -> Iterator[str]:
        raise NotImplementedError("nobody may walk through all images")

    def __len__(self) -> int:
        raise NotImplementedError


def toy(num: int = 60, **options) -> CrossViewDataset:
    return replace(dataset(num=num, **options), images=FakeImages())


@cache
def large(num_queries: int, side: int) -> CrossViewDataset:
    """Many rows, made fast: one area of ``side**2`` windows."""
    columns, rows = (axis.reshape(-1) for axis in np.meshgrid(np.arange(side), np.arange(side), indexing="ij"))
    x, y = ORIGIN_X + columns * 256, ORIGIN_Y + rows * 256
    num = len(x)
    found = {
        "reference_id": [f"18_{a:010d}_{b:010d}_256" for a, b in zip(x.tolist(), y.tolist(), strict=True)],
        "x": x, "y": y, "size": np.full(num, 256, np.int32), "zoom": np.full(num, 18, np.int32),
        "area": ["city"] * num, "source": ["toy"] * num, "status": ["ok"] * num,
    }  # fmt: skip
    refs = filled(REFERENCES, found, num)
    random = np.random.default_rng(0)
    lon, lat = lonlat_from_pixel(
        *(start + random.uniform(0, side * 256, num_queries) for start in (ORIGIN_X, ORIGIN_Y)), 18
    )
    found = {
        "query_id": [f"q{n:08d}" for n in range(num_queries)],
        "lon": lon,
        "lat": lat,
        "area": ["city"] * num_queries,
    }
    quers = filled(QUERIES, found, num_queries).append_column("split", pa.array(["train"] * num_queries))
    return CrossViewDataset(refs, quers, pair(quers, refs), DISTANCE_MAP.empty_table(), FakeImages())


def filled(schema: pa.Schema, columns: dict, num: int) -> pa.Table:
    plain = without_image(schema)
    return pa.table(
        [pa.array(columns[f.name], f.type) if f.name in columns else pa.nulls(num, f.type) for f in plain], schema=plain
    )


class Page(HTMLParser):
    """Elements, what they hold, and every address in them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attributes]
        self._open.append(tag)

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, text):
        if self._open:
            self.text.setdefault(self._open[-1], []).append(text)

    @property
    def data(self) -> dict:
        return json.loads(self.text["script"][0])


def test_page_is_self_contained_and_asks_the_network_for_nothing():
    html = render(toy(), About(name="toy"))
    page = Page(html)
    for name, value in page.attributes:
        if name in ("src", "href"):
            assert value.startswith("data:"), (name, value)
    policy = next(value for name, value in page.attributes if name == "content" and "default-src" in value)
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'")
    assert page.tags.count("script") == 3
    assert not re.search(r"url\((?!#|data:)", "".join(page.text["style"]))
    assert "sourceMappingURL" not in html
    assert not re.search(r"\{\{\w+\}\}", html)
    assert "Leaflet 1.9.4" in html


def test_leaflet_is_shipped_with_its_licence():
    folder = Path(report.__file__).parent / "leaflet"
    assert "Volodymyr Agafonkin" in (folder / "LICENSE").read_text()
    assert "Leaflet 1.9.4" in (folder / "leaflet.js").read_text(encoding="utf-8")[:200]


def test_equal_datasets_give_equal_pages():
    first = render(toy(), About(name="toy"))
    assert first == render(toy(), About(name="toy"))
    assert first != render(toy(), About(name="toy"), seed=1)


def hostile() -> tuple[CrossViewDataset, About]:
    data = renamed(toy(num=40), "west", HOSTILE)
    table = data.queries
    for name in ("query_id", "creator", "licence", "source", "captured"):
        values = [HOSTILE + str(row) for row in range(table.num_rows)]
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(values))
    rows = [{"id": HOSTILE + "1", "kind": "query", "area": HOSTILE, "keep": False, "reason": HOSTILE}]
    about = About(
        name=HOSTILE,
        credits=[dict.fromkeys(("kind", "name", "attribution", "licence"), HOSTILE)],
        quality=pa.Table.from_pylist(rows),
        failures=pa.Table.from_pylist([dict.fromkeys(("kind", "area", "source", "status", "id"), HOSTILE)]),
    )
    return replace(data, queries=table), about


def test_names_of_other_people_stay_text():
    html = render(*hostile())
    page = Page(html)
    assert page.tags.count("script") == 3
    assert page.tags.count("img") == 0
    assert not any(name.startswith("on") for name, _ in page.attributes)
    assert "<script>window" not in html
    assert HOSTILE in page.data["map"]["queries"]["area"]["names"]
    assert HOSTILE + "1" in page.data["map"]["queries"]["id"]
    assert page.text["h1"] == [HOSTILE]
    assert HOSTILE in page.text["td"]


def test_map_points_at_the_positive_of_each_query():
    data = toy(stride=128)
    drawn = map_data.make_map(data, max_points=10_000, seed=0).data
    found, refs = drawn["queries"], drawn["references"]
    positives = data.positives()
    assert found["id"] == data.queries["query_id"].to_pylist()
    assert [refs["id"][row] if row >= 0 else None for row in found["positive"]] == [
        data.references["reference_id"][row].as_py() if row >= 0 else None for row in positives.tolist()
    ]
    assert sum(refs["queries"]) == (positives >= 0).sum()
    for row, reference in enumerate(found["positive"]):
        if reference >= 0:  # the query lies in its window where u and v say
            for axis, part in (("x", "u"), ("y", "v")):
                at = refs[axis][reference] + found[part][row] * refs["side"][reference]
                assert at == pytest.approx(found[axis][row], abs=5e-9)
    covering = np.bincount(data.pairs["query_row"].to_numpy(), minlength=data.queries.num_rows)
    assert found["covering"] == covering.tolist()


def test_many_points_are_sampled_and_put_together():
    data = large(2_000, 40)
    drawn = map_data.make_map(data, max_points=500, seed=3)
    assert len(drawn.query_rows) == len(drawn.data["queries"]["id"]) == 500
    assert drawn.query_rows.tolist() == sorted(set(drawn.query_rows.tolist()))
    blocks = drawn.data["blocks"]
    assert 100 < len(blocks["x"]) <= 500
    assert sum(blocks["references"]) == 1_600
    assert sum(blocks["queries"]) == 2_000
    positives = set(data.positives()[drawn.query_rows].tolist())
    assert set(drawn.reference_rows.tolist()) == positives
    assert -1 not in drawn.data["queries"]["positive"]
    other = map_data.make_map(data, max_points=500, seed=4)
    assert other.query_rows.tolist() != drawn.query_rows.tolist()
    text = render(data, About(), max_points=500, seed=3)
    assert "500 of 2,000 queries are drawn, chosen at random (seed 3)" in text
    assert "1,600 references are put together in" in text


def test_large_datasets_are_bounded_in_time_size_and_images_opened():
    data = replace(large(20_000, 200), images=FakeImages())
    begun = time.process_time()
    html = render(data, About(name="large"), max_points=4_000)
    assert time.process_time() - begun < 30
    assert len(html) < report.PICTURE_BYTES + 2_500_000
    assert data.images.num_opened < pictures.TILES_AT_MOST + 2_500
    shown = int(re.search(r"([\d,]+) of 20,000 covered queries have their picture", html)[1].replace(",", ""))
    assert 100 < shown < 4_000


def test_pictures_take_no_more_than_their_share():
    small = pictures.Thumbnails(FakeImages(), 4_000)
    names = [f"q{number}" for number in range(10)]
    fitted = [small.add({name: "query"}) for name in names]
    assert fitted[0]
    assert not fitted[-1]
    assert sum(map(len, small.uris.values())) <= 4_000
    assert not small.add({"q0": "query", "another": "query"})
    assert "another" not in small.uris


def test_pages_without_pictures_hold_none():
    data = toy()
    html = render(data, About(), with_images=False)
    assert data.images.num_opened == 0
    assert "data:image/webp" not in html
    assert "No pictures are in this page." in html


def test_forbidden_pictures_are_warned_of():
    data = toy(num=20)
    assert "forbid to publish" not in render(data, About())
    index = data.references.schema.get_field_index("no_redistribute")
    marked = data.references.set_column(index, "no_redistribute", pa.array([True] * data.references.num_rows))
    data = replace(data, references=marked)
    assert "The terms of toy forbid to publish its images" in render(data, About())
    assert "forbid to publish its images" not in render(data, About(), with_images=False)


class Damaged(FakeImages):
    def __getitem__(self, key: str) -> bytes:
        number = sum(key.encode()) % 4
        if number == 0:
            raise KeyError(key)
        return (b"", b"<html>", super().__getitem__(key)[:200], super().__getitem__(key))[number]


def test_damaged_and_missing_images_are_shown_as_such():
    html = render(replace(toy(), images=Damaged()), About())
    uris = dict(Page(html).data["thumbnails"])
    assert "" in uris.values()
    assert any(uri.startswith("data:image/webp") for uri in uris.values())


def test_mosaic_shows_each_reference_in_its_place():
    refs = references(windows(4, 3, 128)).drop_columns("image")
    data = replace(toy(), references=refs, pairs=toy().pairs.slice(0, 0))
    place = placed(data, "seattle")
    # Colors by place on the ground, so that windows that overlap agree: red grows eastwards, green southwards.
    images = {}
    for row in refs.to_pylist():
        ramp_x, ramp_y = np.meshgrid(row["x"] - ORIGIN_X + np.arange(256), row["y"] - ORIGIN_Y + np.arange(256))
        images[row["reference_id"]] = encode(np.stack([ramp_x * 255 / 640, ramp_y * 255 / 512, ramp_x * 0], 2))
    found = pictures.mosaic(place, images, refs["reference_id"], max_px=200_000, max_tiles=100)
    assert found is not None
    content, tile_px, edges = found
    assert edges == pytest.approx(place.edges)
    with Image.open(io.BytesIO(content)) as opened:
        pixels = np.asarray(opened.convert("RGB")).astype(float)
        assert opened.width / opened.height == pytest.approx(640 / 512, rel=0.01)
        assert tile_px == pytest.approx(opened.width * 256 / 640, rel=0.01)
    height, width, _ = pixels.shape
    expected = np.stack(np.meshgrid(np.arange(width) * 255 / width, np.arange(height) * 255 / height), 2)
    assert np.abs(pixels[..., :2] - expected).mean() < 6
    assert pictures.mosaic(place, {}, refs["reference_id"], max_px=4, max_tiles=9) is None


def test_mosaic_of_many_windows_opens_few():
    data = replace(large(100, 60), images=FakeImages())
    place = placed(data, "city")
    ids = data.references["reference_id"]
    content, _, _ = pictures.mosaic(place, data.images, ids, max_px=100_000, max_tiles=150)
    assert data.images.num_opened <= 150
    assert len(content) > 1_000


def test_worst_images_come_in_turns():
    rows = [{"id": f"d{n}", "reason": "duplicate", "sharpness": float(n)} for n in range(40)]
    rows += [
        {"id": "both", "reason": "blurred,seam", "sharpness": 9.0},
        {"id": "gone", "reason": "undecodable", "sharpness": None, "keep": False},
        {"id": "good", "reason": "", "sharpness": 0.0},
    ]
    table = pa.Table.from_pylist([{"kind": "query", "area": "a", "keep": True, **row} for row in rows])
    table = table.set_column(
        table.schema.get_field_index("keep"), "keep", pa.array([row.get("keep", True) for row in rows])
    )
    found = [row["id"] for row in samples.worst_images(table)]
    assert found[:5] == ["gone", "both", "d0", "d1", "d2"]
    assert len(found) == samples.NUM_WORST
    assert samples.worst_images(None) == []


def test_report_of_a_packed_dataset(tmp_path):
    out = tmp_path / "data"
    box = (-122.5, 47.0, -122.0, 48.0)
    recipe = DatasetRecipe(
        name="toy & co", areas=(AreaRecipe(name="seattle", bbox=box),), split=SplitRecipe(block_m=150)
    )
    pack(out, references(windows(4, 4)), scattered(60, 4, 4), recipe=recipe)
    path = write_report(out)
    assert path == out / "report" / "index.html"
    first = path.read_bytes()
    page = Page(first.decode())
    assert page.text["h1"] == ["toy & co"]
    assert "Nobody | nowhere" in page.text["td"]
    [area] = page.data["map"]["areas"]
    assert area["is_hull"] is False
    assert {tuple(point) for point in area["outline"][0][0]} == {(lat, lon) for lon in box[::2] for lat in box[1::2]}
    assert write_report(out).read_bytes() == first
    assert [item.name for item in path.parent.iterdir()] == ["index.html"]
    elsewhere = write_report(out, tmp_path / "page.html", with_images=False)
    assert elsewhere.stat().st_size < len(first)

    rows = [{"id": "pano_00003", "kind": "query", "area": "seattle", "keep": True, "reason": "blurred"}]
    (out / "data" / "quality").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), out / "data" / "quality" / "items.parquet")
    assert Page(write_report(out).read_text(encoding="utf-8")).data["worst"] == rows


def test_areas_that_can_no_longer_be_had_are_outlined_by_their_windows(tmp_path):
    recipe = DatasetRecipe(name="toy", areas=(AreaRecipe(name="seattle", file=str(tmp_path / "gone.geojson")),))
    pack(tmp_path / "data", references(windows(4, 4)), scattered(60, 4, 4), recipe=recipe)
    html = write_report(tmp_path / "data").read_text(encoding="utf-8")
    [area] = Page(html).data["map"]["areas"]
    assert area["is_hull"] is True
    assert len(area["outline"][0][0]) == 5


def test_outlines_are_simplified_and_follow_the_antimeridian():
    data = toy(num=10)
    circle = shapely.Point(-122, 47).buffer(0.1, quad_segs=5_000)
    [polygon] = map_data.outline(placed(data, "west"), circle)
    assert 50 < len(polygon[0]) <= 1_200
    east = shapely.transform(shapely.box(-1, 0, 0, 1), map_data._eastwards)
    assert east.bounds == (0, 0, 359, 1)


def test_wrong_requests_are_said(tmp_path):
    with pytest.raises(DatasetNotFoundError):
        write_report(tmp_path)
    with pytest.raises(RecipeError, match="must be at least 1"):
        render(toy(num=4), About(), max_points=0)
    pack(tmp_path / "data", references(windows(3, 3)), scattered(20, 3, 3))
    (tmp_path / "data" / "report").write_text("")
    with pytest.raises(WorkspaceError):
        write_report(tmp_path / "data")


def test_empty_datasets_have_a_report():
    data = toy(num=4)
    data = replace(data, queries=data.queries.slice(0, 0), pairs=data.pairs.slice(0, 0))
    page = Page(render(data, About()))
    assert page.data["map"]["queries"]["id"] == []
    assert len(page.data["map"]["references"]["id"]) == data.references.num_rows
    data = replace(data, references=data.references.slice(0, 0))
    assert Page(render(data, About())).data["map"]["areas"] == []
