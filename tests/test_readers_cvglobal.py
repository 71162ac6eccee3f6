"""CVGlobal: names of street views, lists of another machine, maps under the same names, headings that nobody knows."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from published import make

from cvgl_data.dataset import open_dataset
from cvgl_data.errors import DatasetError, DatasetNotFoundError, RecipeError, UnknownNameError
from cvgl_data.readers.cvglobal import StreetName, parse_street_name


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cvglobal")
    return folder, make("cvglobal", folder, train=5, test=4, pixels=32, width=64, prefix="/home/them/CVGlobal/")


@pytest.fixture
def copy(made, tmp_path):
    return Path(shutil.copytree(made[0], tmp_path / "CVGlobal"))


def test_the_published_example_of_a_name():
    name = "40.75290377,-73.97958215_2022-08_mpyEVlsley4foc-t1ndVpA_d62_z3.jpg"
    expected = StreetName(40.75290377, -73.97958215, "2022-08", "mpyEVlsley4foc-t1ndVpA", 62.0, 3)
    assert parse_street_name(name) == expected


@pytest.mark.parametrize("pano_id", ["__________________d1_z", "a-b_c_d62_z3_d9_z9_ABC", "-_-_-_-_-_-_-_-_-_-_-_"])
def test_ids_may_hold_anything_of_base64url(pano_id):
    assert len(pano_id) == 22
    found = parse_street_name(f"-33.86000000,151.20000000_2019-12_{pano_id}_d359_z4.jpg")
    assert found == StreetName(-33.86, 151.2, "2019-12", pano_id, 359.0, 4)


@pytest.mark.parametrize(
    "name",
    [
        "40.7,-73.9_2022-13_mpyEVlsley4foc-t1ndVpA_d62_z3.jpg",
        "40.7,-73.9_2022-08_mpyEVlsley4foc_d62_z3.jpg",
        "40.7,-73.9_2022-08_mpyEVlsley4foc-t1ndVpA_d62_z3.png",
        "40,-73.9_2022-08_mpyEVlsley4foc-t1ndVpA_d62_z3.jpg",
    ],
)
def test_other_names_are_none(name):
    assert parse_street_name(name) is None


def test_lists_of_another_machine(made):
    folder, positions = made
    dataset = open_dataset(f"cvglobal:{folder}", verify=True)
    assert (dataset.references.num_rows, dataset.queries.num_rows, dataset.pairs.num_rows) == (9, 9, 9)
    test = dataset.select("test")
    assert test.references.num_rows == 4  # the gallery is that of the list
    assert sorted((row["lon"], row["lat"]) for row in test.queries.to_pylist()) == sorted(positions["val"])
    row = test.queries.to_pylist()[0]
    assert row["heading_deg"] is None
    assert (row["source_heading_deg"], row["captured"]) == (62.0, "2022-08")
    assert dataset.references["zoom"].null_count == 9
    assert {row["u"] / 256 for row in dataset.pairs.to_pylist()} == {0.5}
    assert dataset.images[row["query_id"]] == (folder / row["query_id"]).read_bytes()


def test_what_the_user_knows_can_be_said(made):
    dataset = open_dataset(f"cvglobal:{made[0]}?heading=file&zoom=19&size=300")
    assert dataset.queries["heading_deg"].to_pylist() == [62.0] * 9
    assert dataset.references["size"].to_pylist() == [300] * 9
    assert np.allclose(dataset.pairs["u"].to_numpy(), 150)
    with pytest.raises(RecipeError, match="options 'zoom' and 'size' go together"):
        open_dataset(f"cvglobal:{made[0]}?zoom=19")
    with pytest.raises(UnknownNameError, match="option 'heading' has no value 'files'"):
        open_dataset(f"cvglobal:{made[0]}?heading=files")


def test_street_to_map(made):
    folder, _ = made
    maps, photos = open_dataset(f"cvglobal:{folder}?maps=map"), open_dataset(f"cvglobal:{folder}")
    assert maps.queries.equals(photos.queries)
    names = maps.references["reference_id"].to_pylist()
    assert all(name.startswith("map/") for name in names)
    assert maps.images[names[0]] == (folder / names[0]).read_bytes() != photos.images["satellite" + names[0][3:]]


def test_another_test_list(copy):
    lines = (copy / "splits/val.csv").read_text().splitlines()
    (copy / "cross_temporal.csv").write_text("\n".join(lines[:2]))
    dataset = open_dataset(f"cvglobal:{copy}?test=cross_temporal.csv")
    assert dataset.queries["split"].to_pylist() == ["train"] * 5 + ["test"] * 2
    with pytest.raises(DatasetNotFoundError, match=r"has no list nowhere.csv; train= and test= name others"):
        open_dataset(f"cvglobal:{copy}?test=nowhere.csv")


def test_several_street_views_of_one_place(copy):
    path = copy / "splits/val.csv"
    first, second, *others = path.read_text().splitlines()
    same_overhead = ",".join([first.split(',"')[0], '"' + second.split(',"')[1]])
    path.write_text("\n".join([first, same_overhead, *others]))
    test = open_dataset(f"cvglobal:{copy}").select("test")
    assert (test.queries.num_rows, test.references.num_rows) == (4, 3)
    assert len(set(test.positives().tolist())) == 3


def test_damage_is_named_with_its_line(copy):
    path = copy / "splits/val.csv"
    lines = path.read_text().splitlines()
    street = lines[1].split('"')[3].rpartition("/")[2]
    (copy / "street" / street).unlink()
    (copy / "street/x.jpg").write_bytes(b"")
    path.write_text("\n".join([lines[0], lines[1], lines[0], '"a.jpg"', lines[2].split(',"')[0] + ",street/x.jpg"]))
    with pytest.raises(DatasetError) as raised:
        open_dataset(f"cvglobal:{copy}")
    message = str(raised.value)
    assert "4 problems" in message
    assert f"splits/val.csv, line 2: there is no file '/home/them/CVGlobal/street/{street}'" in message
    assert "line 3: street view 'street/" in message
    assert "line 4: names no pair" in message
    assert "line 5: 'x.jpg' does not look like" in message
