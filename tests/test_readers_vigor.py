"""VIGOR: both trees, three kinds of labels, both protocols, and everything that can be wrong with its files."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from published import make

from cvgl_data.dataset import open_dataset
from cvgl_data.errors import DatasetError, DatasetNotFoundError, RecipeError, UnknownNameError
from cvgl_data.geo import distance_m, gsd_m
from cvgl_data.readers import vigor
from cvgl_data.readers.agreement import agreement

GOLDEN = Path(__file__).parent / "golden" / "vigor"
CITIES = ("Chicago", "NewYork", "SanFrancisco", "Seattle")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vigor")
    return folder, make("vigor", folder, grid=4, queries=8, pixels=32, width=64)


@pytest.fixture
def copy(made, tmp_path):
    return Path(shutil.copytree(made[0], tmp_path / "VIGOR"))


def exact(dataset, cities):
    """Where the queries lie in their tiles, as the generator placed them; (P, 2) in the order of the pairs."""
    found = []
    for row in dataset.pairs.to_pylist():
        city, _, name = row["query_id"].partition("/")
        here = cities[city]
        query = int(name.split("-")[1].split("_")[0])
        lat, lon = (float(part) for part in row["reference_id"].removesuffix(".png").split("_")[1:])
        tile = next(index for index, place in enumerate(here.tiles.tolist()) if place == [lon, lat])
        found.append(here.uv[query, here.nearest[query].tolist().index(tile)])
    return np.array(found)


def places(dataset):
    return np.stack([dataset.pairs[axis].to_numpy() for axis in "uv"], 1)


@pytest.mark.parametrize("tree", ["city", "kind"])
def test_both_trees(made, tree, tmp_path):
    folder, cities = made
    if tree == "kind":
        folder = tmp_path
        cities = make("vigor", folder, grid=4, queries=8, pixels=32, width=64, tree=tree)
    dataset = open_dataset(f"vigor:{folder}", verify=True)
    assert (dataset.references.num_rows, dataset.queries.num_rows, dataset.pairs.num_rows) == (64, 32, 128)
    assert np.abs(places(dataset) - exact(dataset, cities)).max() < 1e-3
    pairs = dataset.pairs.to_pylist()
    assert [row["relation"] for row in pairs[::4]] == ["positive"] * 32
    assert all(row["decentrality"] <= 0.5 for row in pairs[::4])
    for row in pairs:
        assert row["covers"] == (0 <= row["u"] <= 640 and 0 <= row["v"] <= 640)
        assert row["relation"] in ("positive", "semi-positive" if row["covers"] else "near")
    query, reference = dataset.queries.to_pylist()[pairs[0]["query_row"]], dataset.references.to_pylist()[0]
    assert query["heading_deg"] == 0.0
    assert reference["gsd_m"] == gsd_m(reference["lat"], 20)  # of this very tile, not of its city
    image = folder / ("NewYork/panorama" if tree == "city" else "ground/NewYork")
    some = dataset.queries["query_id"].to_pylist()
    name = next(name for name in some if name.startswith("NewYork"))
    assert dataset.images[name] == (image / name.partition("/")[2]).read_bytes()


def test_distances_are_those_of_the_coordinates(made):
    dataset = open_dataset(f"vigor:{made[0]}")
    queries, references = dataset.queries.to_pylist(), dataset.references.to_pylist()
    for row in dataset.pairs.to_pylist()[:20]:
        query, reference = queries[row["query_row"]], references[row["reference_row"]]
        meters = float(distance_m(query["lon"], query["lat"], reference["lon"], reference["lat"]))
        assert row["distance_m"] == pytest.approx(meters)
        assert np.hypot(row["offset_east_m"], row["offset_north_m"]) == pytest.approx(meters, rel=2e-3)


def test_three_kinds_of_labels(made, caplog):
    folder, cities = made
    found = {}
    for labels in vigor.LABELS:
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            dataset = open_dataset(f"vigor:{folder}", labels=labels)
        found[labels] = np.abs(places(dataset) - exact(dataset, cities))
        assert dataset.pairs.schema.metadata[b"cvgl_labels"] == labels.encode()
        told = [record.getMessage() for record in caplog.records]
        assert len(told) == (4 if labels == "original" else 0)
    assert any(
        "Seattle" in line and "they are for 0.114" in line and "the tiles have 0.1007 m/px" in line for line in told
    )
    assert found["mercator"].max() < 1e-3
    assert found["corrected"].max() <= 0.5 + 1e-3  # whole pixels
    assert found["original"].max() > 20


def test_same_area(made):
    dataset = open_dataset(f"vigor:{made[0]}")
    split = dataset.queries["split"].to_pylist()
    assert (split.count("train"), split.count("test")) == (16, 16)
    test = dataset.select("test")
    assert test.references.num_rows == 64  # the gallery is global
    assert set(test.queries["area"].to_pylist()) == set(CITIES)


def test_cross_area(made):
    dataset = open_dataset(f"vigor:{made[0]}?protocol=cross-area")
    train, test = dataset.select("train"), dataset.select("test")
    assert set(train.queries["area"].to_pylist()) == {"NewYork", "Seattle"}
    assert set(test.references["area"].to_pylist()) == {"SanFrancisco", "Chicago"}
    assert (train.queries.num_rows, test.queries.num_rows, test.references.num_rows) == (16, 16, 32)
    other = open_dataset(f"vigor:{made[0]}?protocol=cross-area&train=Chicago&test=Seattle,NewYork")
    assert set(other.select("test").queries["area"].to_pylist()) == {"Seattle", "NewYork"}
    with pytest.raises(RecipeError, match="'Chicago' is named both"):
        open_dataset(f"vigor:{made[0]}?protocol=cross-area&train=Chicago&test=Chicago")


def test_some_cities_only_when_asked(copy):
    shutil.rmtree(copy / "splits__corrected/Seattle")
    with pytest.raises(RecipeError, match=r"lacks Seattle of the published protocol .* name other cities with cities="):
        open_dataset(f"vigor:{copy}")
    dataset = open_dataset(f"vigor:{copy}?cities=NewYork,Chicago")
    assert set(dataset.references["area"].to_pylist()) == {"NewYork", "Chicago"}
    with pytest.raises(UnknownNameError, match="option 'cities' has no value 'Newyork'; did you mean 'NewYork'"):
        open_dataset(f"vigor:{copy}?cities=Newyork")
    with pytest.raises(RecipeError, match="protocol=cross-area"):
        open_dataset(f"vigor:{copy}?train=NewYork")


def test_labels_that_are_not_there(copy):
    shutil.rmtree(copy / "splits__corrected")
    assert open_dataset(f"vigor:{copy}").queries.num_rows == 32  # from the coordinates, whatever the labels
    with pytest.raises(DatasetNotFoundError, match=r"has no corrected labels \(found: splits\)"):
        open_dataset(f"vigor:{copy}?labels=corrected")
    (copy / "splits").rename(copy / "mine")
    with pytest.raises(DatasetNotFoundError, match="has no folder of label files"):
        open_dataset(f"vigor:{copy}")
    assert open_dataset(f"vigor:{copy}?splits=mine").queries.num_rows == 32


def test_validation_is_held_out_of_training(made):
    dataset = open_dataset(f"vigor:{made[0]}?protocol=cross-area&validation=0.4")
    assert set(dataset.select("validation").queries["area"].to_pylist()) <= {"NewYork", "Seattle"}
    assert dataset.select("test").queries.num_rows == 16
    with pytest.raises(RecipeError, match=r"option 'validation' is 1; it must be in \[0, 1\)"):
        open_dataset(f"vigor:{made[0]}?validation=1")


def test_a_distance_map_when_asked_for(made):
    assert open_dataset(f"vigor:{made[0]}").distance_map.num_rows == 0
    dataset = open_dataset(f"vigor:{made[0]}?neighbors=3").select("test")
    assert dataset.distance_map["id"].equals(dataset.references["reference_id"])
    assert {len(row) for row in dataset.distance_map["neighbor_rows"].to_pylist()} == {3}


def break_list(copy):
    path = copy / "splits__corrected/Seattle/satellite_list.txt"
    path.write_text(path.read_text() + "satellite_47.1_-122.1.png\n")
    return r"Seattle/satellite_list.txt, line 17: tile 'satellite_47.1_-122.1.png' is not in Seattle/satellite"


def break_misplaced(copy):
    name = sorted(path.name for path in (copy / "Seattle/satellite").iterdir())[0]
    (copy / "Seattle/satellite" / name).rename(copy / "Chicago/satellite" / name)
    return rf"tile '{name}' lies in Chicago/satellite, not in Seattle/satellite"


def break_duplicate_tile(copy):
    first = (copy / "splits__corrected/Seattle/satellite_list.txt").read_text().splitlines()[0]
    path = copy / "splits__corrected/Chicago/satellite_list.txt"
    path.write_text(path.read_text() + first + "\n")
    return r"Chicago/satellite_list.txt, line 17: tile '.*' is listed in .*/Seattle/satellite_list.txt, line 1, already"


def labels_of(copy, split="train"):
    return copy / f"splits__corrected/Seattle/same_area_balanced_{split}__corrected.txt"


def break_duplicate_panorama(copy):
    path = labels_of(copy, "test")
    path.write_text(path.read_text() + labels_of(copy).read_text().splitlines()[1] + "\n")
    return r"test__corrected.txt, line 5: panorama '.*' is listed in .*train__corrected.txt, line 2, already"


def break_columns(copy):
    path = labels_of(copy)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0].rpartition(" ")[0], *lines[1:]]))
    return r"train__corrected.txt, line 1: has 12 columns, not 13"


def break_tile_of_label(copy):
    path = labels_of(copy)
    path.write_text(path.read_text().replace("satellite_47.60", "satellite_57.60"))
    return r"tile 'satellite_57.* is not in the list of tiles"


def break_offset(copy):
    path = labels_of(copy)
    lines = path.read_text().splitlines()
    lines[2] = lines[2].rpartition(" ")[0] + " nan"
    path.write_text("\n".join(lines))
    return r"train__corrected.txt, line 3: offset 'nan' is no number"


def break_panorama(copy):
    name = labels_of(copy).read_text().splitlines()[3].split()[0]
    (copy / "Seattle/panorama" / name).unlink()
    return r"train__corrected.txt, line 4: panorama '.*' is not in Seattle/panorama"


def break_name(copy):
    path = labels_of(copy)
    name = path.read_text().split()[0]
    path.write_text(path.read_text().replace(name, "pano,47.6,.jpg"))
    (copy / "Seattle/panorama" / name).rename(copy / "Seattle/panorama/pano,47.6,.jpg")
    return r"line 1: 'pano,47.6,.jpg' does not look like 'ID,41.877949,-87.689396,.jpg'"


def break_position(copy):
    path = copy / "splits__corrected/Seattle/satellite_list.txt"
    path.write_text(path.read_text() + "satellite_-122.1_47.1.png\n")
    (copy / "Seattle/satellite/satellite_-122.1_47.1.png").touch()
    return r"line 17: .* lies at longitude 47.1, latitude -122.1, which is nowhere"


def break_twice_in_a_line(copy):
    path = labels_of(copy)
    lines = path.read_text().splitlines()
    cells = lines[0].split()
    cells[4] = cells[1]
    path.write_text("\n".join([" ".join(cells), *lines[1:]]))
    return r"line 1: names the same tile twice"


def break_label_file(copy):
    labels_of(copy).unlink()
    return r"same_area_balanced_train.txt: is missing"


def break_folder(copy):
    shutil.rmtree(copy / "Seattle/panorama")
    return r"Seattle/panorama: there is no such folder"


@pytest.mark.parametrize("damage", [value for name, value in sorted(globals().items()) if name.startswith("break_")])
def test_damage_is_named_with_its_line(damage, copy):
    with pytest.raises(DatasetError, match=damage(copy)):
        open_dataset(f"vigor:{copy}")


def test_all_damage_is_counted(copy):
    for break_one in (break_list, break_columns, break_panorama):
        break_one(copy)
    with pytest.raises(DatasetError, match="has 3 problems:"):
        open_dataset(f"vigor:{copy}")


def test_an_image_that_is_none_is_found_on_request(copy):
    broken = sorted((copy / "Chicago/panorama").iterdir())[0]
    broken.write_bytes(broken.read_bytes()[:500])
    assert open_dataset(f"vigor:{copy}").queries.num_rows == 32
    with pytest.raises(DatasetError, match=rf"1 problem:\n  Chicago/panorama/{broken.name}: the image ends early"):
        open_dataset(f"vigor:{copy}", verify=True)


def test_no_image_is_looked_at(tmp_path, monkeypatch):
    """Each folder is scanned once, and what is asked of the disk does not grow with the number of images."""
    calls = {}
    for grid in (3, 6):
        folder = tmp_path / str(grid)
        make("vigor", folder, cities=("Seattle", "NewYork"), grid=grid, queries=4 * grid, empty=True)
        counts = calls[grid] = {"stat": 0, "scandir": []}
        stat, scandir = os.stat, os.scandir

        def counted_stat(*args, stat=stat, counts=counts, **kwargs):
            counts["stat"] += 1
            return stat(*args, **kwargs)

        def counted_scandir(path, *, scandir=scandir, counts=counts):
            counts["scandir"].append(str(path))
            return scandir(path)

        with monkeypatch.context() as patched:
            patched.setattr(os, "stat", counted_stat)
            patched.setattr(os, "scandir", counted_scandir)
            dataset = open_dataset(f"vigor:{folder}?cities=Seattle,NewYork")
        assert dataset.references.num_rows == 2 * grid**2
        assert len(set(counts["scandir"])) == len(counts["scandir"]) == 5
    assert 0 < calls[3]["stat"] == calls[6]["stat"]


def test_labels_without_any_scale(copy, caplog):
    for path in copy.glob("splits__corrected/Seattle/*.txt"):
        if path.name != "satellite_list.txt":
            rows = [line.split() for line in path.read_text().splitlines()]
            path.write_text(
                "".join(" ".join("0.0" if i and i % 3 != 1 else c for i, c in enumerate(row)) + "\n" for row in rows)
            )
    open_dataset(f"vigor:{copy}?labels=corrected")
    assert "they are for no resolution, the tiles have 0.1007 m/px" in caplog.text


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """The published corrected labels of 500 queries in three cities, with empty image files."""
    folder = tmp_path_factory.mktemp("real")
    for city in ("Chicago", "NewYork", "Seattle"):
        text = (GOLDEN / f"{city}.txt").read_text(encoding="utf-8")
        rows = [line.split() for line in text.splitlines()]
        tiles = sorted({name for row in rows for name in row[1::3]})
        labels = folder / "splits__corrected" / city
        labels.mkdir(parents=True)
        (labels / "satellite_list.txt").write_text("".join(f"{name}\n" for name in tiles))
        (labels / "same_area_balanced_train__corrected.txt").write_text(text)
        (labels / "same_area_balanced_test__corrected.txt").write_text("")
        for kind, names in (("satellite", tiles), ("panorama", [row[0] for row in rows])):
            (folder / city / kind).mkdir(parents=True)
            for name in names:
                (folder / city / kind / name).touch()
    return folder


def test_published_labels(real):
    """Places from the coordinates agree with the published ones within 0.1 px on average."""
    location = f"vigor:{real}?cities=Chicago,NewYork,Seattle"
    ours, labels = open_dataset(location), open_dataset(location, labels="corrected")
    assert ours.pairs.num_rows == labels.pairs.num_rows == 6000
    assert ours.pairs.select(["query_id", "reference_id"]).equals(labels.pairs.select(["query_id", "reference_id"]))
    city = np.array([name.partition("/")[0] for name in ours.pairs["query_id"].to_pylist()])
    off = places(ours) - places(labels)
    for name in set(city):
        assert np.abs(off[city == name].mean(axis=0)).max() <= 0.1
        assert off[city == name].std(axis=0).max() <= 2.5
    # A fifth of Seattle's lines name a tile that the query lies outside of, by the labels themselves.
    outside = ~labels.pairs["covers"].to_numpy()
    assert outside[city == "Seattle"].mean() == pytest.approx(0.199, abs=0.01)
    indptr, _ = labels.covering()
    assert indptr[-1] == (~outside).sum()
    assert not set(np.array(labels.pairs["relation"].to_pylist())[outside]) & {"positive", "semi-positive"}


def test_the_published_label_of_one_panorama(real):
    """Offsets 23, -29: the tile's centre is 23 px north and 29 px west of the query."""
    dataset = open_dataset(f"vigor:{real}?cities=Chicago,NewYork,Seattle&labels=corrected")
    row = next(row for row in dataset.pairs.to_pylist() if row["query_id"].startswith("Chicago/KcuqJn_PuuZq3GERzhqG5Q"))
    assert row["reference_id"] == "Chicago/satellite_41.8543505796211_-87.68282621216503.png"
    assert (row["u"], row["v"]) == (320 + 141, 320 - 71)  # north -71, east -141


def test_published_labels_of_another_resolution_are_found(real, tmp_path):
    """What the original labels did: the same offsets for 0.114 m/px."""
    copy = Path(shutil.copytree(real, tmp_path / "VIGOR"))
    resolution = {"Chicago": 0.1112, "NewYork": 0.1131, "Seattle": 0.1006}
    for city, meters in resolution.items():
        path = copy / "splits__corrected" / city / "same_area_balanced_train__corrected.txt"
        lines = []
        for line in path.read_text().splitlines():
            cells = line.split()
            for index in range(13):
                if index % 3 != 1 and index:
                    cells[index] = str(float(round(float(cells[index]) * meters / 0.114)))
            lines.append(" ".join(cells) + "\n")
        path.write_text("".join(lines))
    for folder, agrees in ((real, True), (copy, False)):
        layout, raw = vigor.read_raw(folder, labels="corrected", cities="Chicago,NewYork,Seattle")
        found = agreement(raw, layout)
        assert [city.agrees for city in found] == [agrees] * 3
    assert {city.city: round(city.labeled_gsd_m, 3) for city in found} == dict.fromkeys(resolution, 0.114)
