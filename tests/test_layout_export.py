"""Exporting to published layouts, and reading that again."""

from __future__ import annotations

import csv
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import toy_tables as toy
from cvgl_cli._layouts import layouts_app
from hypothesis import given
from hypothesis import strategies as st
from published import make
from typer.testing import CliRunner

from cvgl_data.dataset import open_dataset
from cvgl_data.errors import DatasetError, UnknownNameError
from cvgl_data.geo import distance_m
from cvgl_data.layouts import export_layout
from cvgl_data.readers.layout import Problems
from cvgl_data.readers.thirteen import offsets_of, place_in_tile, read_labels, write_labels
from cvgl_data.recipe import DatasetRecipe, SplitRecipe

GOLDEN = Path(__file__).parent / "golden" / "vigor"


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A dataset of ours: two areas of overlapping windows at zoom 18, with a validation split."""
    west, east = toy.windows(7, 7, stride=128), toy.windows(7, 7, stride=128, x=toy.ORIGIN_X + 40 * 256)
    references = pa.concat_tables([toy.references(west, "west"), toy.references(east, "east")]).sort_by("reference_id")
    random = np.random.default_rng(0)
    x, y = random.uniform(70, 950, (2, 30)), random.uniform(70, 950, (2, 30))
    queries = pa.concat_tables(
        [
            toy.queries(toy.ORIGIN_X + x[0], toy.ORIGIN_Y + y[0], "west", "a/b"),
            toy.queries(toy.ORIGIN_X + 40 * 256 + x[1], toy.ORIGIN_Y + y[1], "east", "c,d"),
        ]
    )
    recipe = DatasetRecipe(name="own", split=SplitRecipe(protocol="random", validation_fraction=0.2))
    folder = tmp_path_factory.mktemp("own") / "own"
    toy.pack(folder, references, queries.sort_by("query_id"), recipe=recipe)
    return folder


@pytest.mark.parametrize("layout", ["vigor", "dress"])
def test_a_dataset_of_ours_comes_back(own, layout, tmp_path):
    done = export_layout(own, tmp_path / "out", layout, neighbors=4)
    ours, back = open_dataset(own), open_dataset(f"{layout}:{tmp_path / 'out'}?labels=original", verify=True)
    assert (done.references, done.queries, done.left_out) == (98, ours.queries.num_rows, 0)
    for table, id_name, columns in (
        ("references", "reference_id", ["reference_id", "x", "y", "size", "zoom", "lon", "lat", "gsd_m", "area"]),
        ("queries", "query_id", ["query_id", "lon", "lat", "area", "split"]),
    ):
        one, other = (getattr(dataset, table).sort_by(id_name).select(columns).to_pylist() for dataset in (ours, back))
        assert one == other
    rows = {(row["query_id"], row["reference_id"]): row for row in back.pairs.to_pylist()}
    shared = [row for row in ours.pairs.to_pylist() if (row["query_id"], row["reference_id"]) in rows]
    assert len(shared) == len([row for row in rows.values() if row["covers"]])
    for row in shared:
        other = rows[row["query_id"], row["reference_id"]]
        assert other["relation"] == row["relation"]
        assert other["u"] == pytest.approx(row["u"], abs=0.001)
        assert other["v"] == pytest.approx(row["v"], abs=0.001)
    lost = ours.pairs.num_rows - len(shared)
    per_query = np.bincount(ours.pairs["query_row"].to_numpy())
    assert lost == int(np.maximum(per_query - 4, 0).sum())  # a line has four tiles
    assert all(back.images[name] == ours.images[name] for name in ours.images)


def test_labels_in_vigors_convention(own, tmp_path):
    """Centre minus query, north and east, in pixels of 640, whatever the window."""
    export_layout(own, tmp_path / "out", "vigor", neighbors=2)
    queries = {row["query_id"]: row for row in open_dataset(own).queries.to_pylist()}
    ids = dict(reversed(row) for row in csv.reader((tmp_path / "out/cvgl_ids.csv").read_text().splitlines()))
    paths = {path.rpartition("/")[2]: name for name, path in ids.items()}
    lines = (tmp_path / "out/splits/west/pano_label_balanced.txt").read_text().splitlines()
    assert len(lines) == 30
    for line in lines:
        cells = line.split()
        assert len(cells) == 13
        query = queries[paths[cells[0]]]
        assert cells[0].split(",")[1:3] == [repr(query["lat"]), repr(query["lon"])]
        north, east = float(cells[2]), float(cells[3])
        lat, lon = (float(part) for part in cells[1].removesuffix(".png").split("_")[1:])
        pixel_m = distance_m(lon, 47.6, lon + 360 / 2**26, 47.6) * 256 / 640
        assert north * pixel_m == pytest.approx(
            np.sign(lat - query["lat"]) * distance_m(lon, lat, lon, query["lat"]), rel=0.01
        )
        assert east * pixel_m == pytest.approx(
            np.sign(lon - query["lon"]) * distance_m(lon, lat, query["lon"], lat), rel=0.01
        )
        assert max(abs(north), abs(east)) <= 160.001  # half overlap: the central quarter


def test_labels_in_dress_convention(own, tmp_path):
    export_layout(own, tmp_path / "out", "dress", neighbors=2)
    positives = {row["query_id"]: row for row in open_dataset(own).pairs.to_pylist() if row["relation"] == "positive"}
    ids = dict(csv.reader((tmp_path / "out/cvgl_ids.csv").read_text().splitlines()))
    for line in (tmp_path / "out/splits_new/east/same_area_balanced_test.txt").read_text().splitlines():
        cells = line.split()
        row = positives[ids[f"east/panorama/{cells[0]}"]]
        assert ids[f"east/satellite/{cells[1]}"] == row["reference_id"]
        assert [float(cell) for cell in cells[2:4]] == pytest.approx(
            [row["u"] * 224 / 256, row["v"] * 224 / 256], abs=6e-4
        )
        assert len(cells[0].removesuffix(".jpg").split(",")) == 6
        assert len(cells[1].removesuffix(".png").split("_")) == 4


@pytest.mark.parametrize(
    ("layout", "size", "options", "splits"),
    [
        ("vigor", {"cities": ("NewYork", "Seattle")}, "?cities=NewYork,Seattle&labels=corrected", "splits__corrected"),
        ("dress", {"cities": ("London", "Rio")}, "?cities=London,Rio", "splits_new"),
        ("cvcities", {"cities": ("london", "maynila")}, "?train=manila&test=london", ""),
    ],
)
def test_a_published_layout_comes_back_byte_for_byte(layout, size, options, splits, tmp_path):
    make(layout, tmp_path / "in", queries=6, pixels=32, width=64, **size)
    export_layout(f"{layout}:{tmp_path / 'in'}{options}", tmp_path / "out", layout, neighbors=3)
    files = [path for path in (tmp_path / "in").rglob("*") if path.is_file()]
    if layout == "vigor":
        files = [path for path in files if "splits" not in path.parts]
    assert len(files) > 20
    for path in files:
        to = str(path.relative_to(tmp_path / "in")).replace("splits__corrected", "splits").replace("__corrected", "")
        content, written = path.read_bytes(), (tmp_path / "out" / to).read_bytes()
        if path.suffix == ".txt":
            content = content.replace(b" -0.0", b" 0.0")  # the one thing that pixels cannot tell
        if path.name.startswith("pano_label_balanced"):  # is not read under this protocol: its lines are, in two files
            assert sorted(written.splitlines()) == sorted(content.splitlines()), to
        else:
            assert written == content, to
    extra = {path.name for path in (tmp_path / "out").rglob("*") if path.is_file()} - {path.name for path in files}
    assert {name for name in extra if not name.startswith("gps_dict")} <= {
        "pano_label_balanced.txt",
        "same_area_balanced_train.txt",
        "same_area_balanced_test.txt",
    }


def test_the_published_labels_come_back(tmp_path):
    """1,500 lines of VIGOR's corrected labels: identical but for the sign of a zero."""
    for city in ("Chicago", "NewYork", "Seattle"):
        path = GOLDEN / f"{city}.txt"
        text = path.read_text(encoding="utf-8")
        tiles = sorted({name for line in text.splitlines() for name in line.split()[1::3]})
        problems = Problems(GOLDEN)
        labels = read_labels(path, {name: row for row, name in enumerate(tiles)}, problems)
        problems.check()
        names = [[tiles[row] for row in rows] for rows in labels.tile_row.tolist()]
        assert write_labels(labels.queries, names, labels.offsets, 3) == text
        places = place_in_tile(labels.offsets, "vigor", 640)
        again = write_labels(labels.queries, names, offsets_of(places, "vigor", 640), 3)
        assert again == text.replace(" -0.0", " 0.0")
        assert sum(a != b for a, b in zip(again.splitlines(), text.splitlines(), strict=True)) <= 4


@given(
    st.lists(st.tuples(*[st.integers(-640_000, 640_000)] * 8), min_size=1, max_size=5),
    st.sampled_from(["vigor", "dress"]),
)
def test_any_label_comes_back(thousandths, convention):
    import tempfile

    offsets = np.array(thousandths, np.float64).reshape(-1, 4, 2) / 1000
    queries = [f"p{index}" for index in range(len(offsets))]
    tiles = ["a", "b", "c", "d"]
    text = write_labels(queries, [tiles] * len(queries), offsets, 3)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "labels.txt"
        path.write_text(text)
        labels = read_labels(path, {name: row for row, name in enumerate(tiles)}, Problems(Path(folder)))
    assert np.array_equal(labels.offsets, offsets)
    assert labels.tile_row.tolist() == [[0, 1, 2, 3]] * len(queries)
    places = place_in_tile(labels.offsets, convention, 640)
    assert np.allclose(offsets_of(places, convention, 640), offsets, atol=1e-9)
    assert write_labels(queries, [tiles] * len(queries), labels.offsets, 3) == text


def test_the_published_meaning_of_offsets():
    """VIGOR: (100, -50) is column 370, row 420 of 640; (64, -32) column 352, row 384. DReSS: the place itself."""
    places = place_in_tile(np.array([[100.0, -50.0], [64.0, -32.0]]), "vigor", 640)
    assert places.tolist() == [[370, 420], [352, 384]]
    assert place_in_tile(np.array([190.8, 184.1]), "dress", 224).tolist() == [190.8, 184.1]


def test_gps_dictionaries(tmp_path):
    make("vigor", tmp_path / "in", grid=4, queries=6, pixels=32, width=64)
    export_layout(f"vigor:{tmp_path / 'in'}", tmp_path / "out", "vigor", neighbors=4, pickles=True)
    order = ["NewYork", "Seattle", "SanFrancisco", "Chicago"]
    for name, cities, files in (
        ("same", order, [f"{city}/same_area_balanced_train.txt" for city in order]),
        ("cross", order[:2], [f"{city}/pano_label_balanced.txt" for city in order[:2]]),
    ):
        listed = [
            line for city in cities for line in (tmp_path / f"out/splits/{city}/satellite_list.txt").read_text().split()
        ]
        positives = {
            line.split()[1] for file in files for line in (tmp_path / "out/splits" / file).read_text().splitlines()
        }
        found = pickle.loads((tmp_path / f"out/gps_dict_{name}.pkl").read_bytes())
        assert list(found) == sorted(listed.index(tile) for tile in positives)
        place = {key: [float(part) for part in listed[key].removesuffix(".png").split("_")[1:]] for key in found}
        for key, near in found.items():
            assert len(near) == 4
            away = {
                other: float(distance_m(*place[key][::-1], *at[::-1])) for other, at in place.items() if other != key
            }
            assert [away[other] for other in near] == pytest.approx(sorted(away.values())[:4], abs=1e-5)
        arrays = np.load(tmp_path / f"out/gps_dict_{name}.npz")
        assert arrays["keys"].tolist() == list(found)
        assert arrays["names"].tolist() == [listed[key] for key in found]
        assert [[other for other in row if other >= 0] for row in arrays["neighbors"].tolist()] == list(found.values())


def test_gps_dictionary_of_cvcities(tmp_path):
    make("cvcities", tmp_path / "in", queries=3, pixels=32, width=64)
    export_layout(f"cvcities:{tmp_path / 'in'}", tmp_path / "out", "cvcities", neighbors=2, pickles=True)
    found = pickle.loads((tmp_path / "out/gps_dict_10_cities.pkl").read_bytes())
    assert list(found) == list(range(30))
    for key, near in found.items():  # cities in the published order, three lines each: neighbors are of the same city
        assert sorted([key, *near]) == list(range(key // 3 * 3, key // 3 * 3 + 3))


def test_what_a_layout_cannot_hold(own, tmp_path):
    with pytest.raises(DatasetError, match=r"one overhead image for each panorama; here several queries share one"):
        export_layout(own, tmp_path / "out", "cvcities")
    make("vigor", tmp_path / "v", cities=("Seattle",), grid=6, queries=3, pixels=32, width=64)
    with pytest.raises(DatasetError, match=r"queries lie up to \d+ px from their reference's centre"):
        export_layout(f"vigor:{tmp_path / 'v'}?cities=Seattle", tmp_path / "out", "cvcities")
    make("cvglobal", tmp_path / "g", train=2, test=2, pixels=32, width=64)
    with pytest.raises(DatasetError, match="layout 'vigor' needs one zoom for all references; this dataset has None"):
        export_layout(f"cvglobal:{tmp_path / 'g'}", tmp_path / "out", "vigor")
    with pytest.raises(DatasetError, match="area 'test' has 2 references; labels of this layout name 4"):
        export_layout(f"cvglobal:{tmp_path / 'g'}?zoom=19&size=256", tmp_path / "out", "vigor")
    with pytest.raises(UnknownNameError, match="unknown layout 'vigour'; did you mean 'vigor'"):
        export_layout(own, tmp_path / "out", "vigour")
    assert not list(tmp_path.glob("out*"))
    (tmp_path / "out").mkdir()
    with pytest.raises(DatasetError, match="exists already"):
        export_layout(own, tmp_path / "out", "vigor")


def test_labels_are_filled_up_with_near_tiles(tmp_path):
    """Seamless tiles: one covers a query, three near ones stand in and are told from it when read again."""
    make("dress", tmp_path / "in", cities=("London",), grid=3, queries=5, pixels=32, width=64)
    shutil.rmtree(tmp_path / "packed", ignore_errors=True)
    from cvgl_data.layouts import import_layout

    import_layout(f"dress:{tmp_path / 'in'}?cities=London", tmp_path / "packed", neighbors=2)
    done = export_layout(tmp_path / "packed", tmp_path / "out", "vigor", neighbors=2)
    assert done.padded == 15
    back = open_dataset(f"vigor:{tmp_path / 'out'}?labels=original")
    assert [row["relation"] for row in back.pairs.to_pylist()] == ["positive", "near", "near", "near"] * 5
    assert json.loads((tmp_path / "out/cvgl.json").read_text()) == {"zoom": 18, "size": 224}


def test_the_command(own, tmp_path):
    words = ["export", str(own), "--layout", "vigor", "--out", str(tmp_path / "out"), "--pickle", "--json", "--quiet"]
    done = CliRunner().invoke(layouts_app, words)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["references"] == 98
    assert (tmp_path / "out/gps_dict_same.pkl").is_file()
    assert CliRunner().invoke(layouts_app, [*words[:3], "cvusa", *words[4:]]).exit_code == 2
