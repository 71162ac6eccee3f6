"""CV-Cities: misspelt folders, one gallery or one per city, archives unpacked twice, and damaged tables."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from published import make

from cvgl_data.dataset import open_dataset
from cvgl_data.errors import DatasetError, DatasetNotFoundError, RecipeError, UnknownNameError
from cvgl_data.geo import gsd_m
from cvgl_data.readers.cvcities import CITIES, OFFICIAL

SIX = {"taipei", "singapore", "london", "seattle", "rio-de-janeiro", "sydney"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cvcities")
    return folder, make("cvcities", folder, queries=3, pixels=32, width=64)


@pytest.fixture
def copy(made, tmp_path):
    return Path(shutil.copytree(made[0], tmp_path / "CVCities"))


def test_the_published_split(made):
    dataset = open_dataset(f"cvcities:{made[0]}", verify=True)
    assert dataset.references.num_rows == dataset.queries.num_rows == dataset.pairs.num_rows == 48
    train, test = dataset.select("train"), dataset.select("test")
    assert set(test.references["area"].to_pylist()) == SIX
    assert len(set(train.references["area"].to_pylist())) == 10
    assert not set(OFFICIAL.train) & SIX
    assert {*OFFICIAL.train, *OFFICIAL.test} == set(CITIES)


def test_rows_are_those_of_the_tables(made):
    folder, cities = made
    dataset = open_dataset(f"cvcities:{folder}")
    references = {row["reference_id"]: row for row in dataset.references.to_pylist()}
    pairs = {row["query_id"]: row for row in dataset.pairs.to_pylist()}
    for row in dataset.queries.to_pylist():
        city, _, name = row["query_id"].partition("/")
        lon, lat = cities[city][int(name[-5:])]
        reference = references[pairs[row["query_id"]]["reference_id"]]
        assert (row["lon"], row["lat"], row["area"]) == (
            lon,
            lat,
            next(key for key, of in CITIES.items() if of == city),
        )
        assert (reference["lon"], reference["lat"], reference["size"], reference["zoom"]) == (lon, lat, 746, 19)
        assert reference["gsd_m"] == gsd_m(lat, 19)
        pair = pairs[row["query_id"]]
        assert (pair["u"], pair["v"], pair["distance_m"], pair["relation"]) == (373, 373, 0, "positive")
        assert dataset.images[row["query_id"]] == (folder / city / f"pano_images/{name}.jpg").read_bytes()
        assert dataset.images[reference["reference_id"]] == (folder / reference["reference_id"]).read_bytes()


@pytest.mark.parametrize(
    ("city", "area"), [("captown", "cape-town"), ("cape-town", "cape-town"), ("rio", "rio-de-janeiro")]
)
def test_a_gallery_of_one_city(made, city, area):
    dataset = open_dataset(f"cvcities:{made[0]}?protocol=per-city&city={city}")
    assert dataset.queries["area"].to_pylist() == [area] * 3
    assert dataset.queries["split"].to_pylist() == ["test"] * 3
    assert dataset.select("test").references.num_rows == 3


def test_a_city_alone_needs_no_other(copy):
    for path in copy.iterdir():
        if path.name != "london":
            shutil.rmtree(path)
    assert open_dataset(f"cvcities:{copy}?protocol=per-city&city=london").queries.num_rows == 3
    with pytest.raises(RecipeError, match=r"lacks barcelona, cape-town, .* name other cities with train= and test="):
        open_dataset(f"cvcities:{copy}")


def test_archives_that_unpack_into_a_folder_of_their_name(tmp_path):
    make("cvcities", tmp_path, cities=("london", "maynila"), queries=3, pixels=32, width=64, nested=True)
    dataset = open_dataset(f"cvcities:{tmp_path}?train=manila&test=london", verify=True)
    assert dataset.select("train").queries["area"].to_pylist() == ["manila"] * 3
    assert dataset.select("test").references.num_rows == 3


def test_options_that_contradict_each_other(made):
    for options, message in [
        ("protocol=per-city", "protocol=per-city needs the city, as in city=barcelona"),
        ("city=london", "option 'city' goes with protocol=per-city"),
        ("protocol=per-city&city=london&train=paris", "go with protocol=cross-area"),
    ]:
        with pytest.raises(RecipeError, match=message):
            open_dataset(f"cvcities:{made[0]}?{options}")
    with pytest.raises(UnknownNameError, match="no value 'londn'; did you mean 'london'"):
        open_dataset(f"cvcities:{made[0]}?protocol=per-city&city=londn")


def test_validation_blocks(made):
    dataset = open_dataset(f"cvcities:{made[0]}?validation=0.5")
    split = np.array(dataset.queries["split"].to_pylist())
    assert (split == "test").sum() == 18
    assert 0 < (split == "validation").sum() < 30


def test_damage_is_named_with_its_line(copy):
    table = copy / "paris/img_info.csv"
    lines = table.read_text().splitlines()
    london = (copy / "london/img_info.csv").read_text().splitlines()[0]
    bad = [
        lines[0],
        lines[0],  # everything again: the name and both files
        lines[1].replace("sat_images", "satt_images"),
        "paris_9,x,48.8,paris,paris/sat_images/a.jpg,paris/pano_images/a.jpg",
        "paris_9,48.8,102.3,paris,paris/sat_images/a.jpg,paris/pano_images/a.jpg",
        "paris_9,48.8,2.3,paris",
        london,
    ]
    table.write_text("\n".join(bad))
    with pytest.raises(DatasetError, match="has 11 problems:") as raised:
        open_dataset(f"cvcities:{copy}")
    message = str(raised.value)
    assert (
        "paris/img_info.csv, line 2: name 'paris/paris_00000' is listed in paris/img_info.csv, line 1, already"
        in message
    )
    table.write_text("\n".join([lines[0], *bad[3:]]))
    with pytest.raises(DatasetError) as raised:
        open_dataset(f"cvcities:{copy}")
    message = str(raised.value)
    assert "line 2: 'x', '48.8' is no position" in message
    assert "line 3: lies at longitude 48.8, latitude 102.3, which is nowhere" in message
    assert "line 4: has 4 columns, not 6" in message
    assert "line 5: is of city 'london', but lies in the folder of 'paris'" in message
    table.write_text("\n".join([lines[0], bad[2]]))
    with pytest.raises(DatasetError, match=r"line 2: there is no file 'paris/satt_images/paris_00001.jpg'"):
        open_dataset(f"cvcities:{copy}")


def test_no_table_at_all(tmp_path):
    with pytest.raises(DatasetNotFoundError, match=r"has no folder with a file 'img_info.csv'"):
        open_dataset(f"cvcities:{tmp_path}")
