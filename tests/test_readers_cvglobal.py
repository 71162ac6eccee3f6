"""CVGlobal: names of street views, lists of another machine, maps under the same names, headings that nobody knows."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyproj
import pytest
from published import make

from cvgl_data.dataset import open_dataset
from cvgl_data.errors import DatasetError, DatasetNotFoundError, RecipeError, UnknownNameError
from cvgl_data.geo import gsd_m, pixel_from_lonlat
from cvgl_data.readers.cvglobal import StreetName, parse_street_name
from cvgl_data.readers.tables import uv_from_coordinates, window_columns


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


def test_the_published_example_on_a_map():
    """Its tile of zoom 18, the pixel in it, and by how much a cut of whole tiles about it would be off."""
    name = parse_street_name("40.75290377,-73.97958215_2022-08_mpyEVlsley4foc-t1ndVpA_d62_z3.jpg")
    x, y = (float(value) for value in pixel_from_lonlat(name.lon, name.lat, 18))
    assert (x // 256, y // 256) == (77201, 98522)
    assert (x % 256, y % 256) == pytest.approx((182.3409, 146.4922), abs=5e-5)
    gsd = float(gsd_m(name.lat, 18))
    assert gsd == pytest.approx(0.452371, abs=5e-7)
    off_px = x % 256 - 128, y % 256 - 128
    assert off_px == pytest.approx((54.3, 18.5), abs=0.05)
    assert [gsd * each for each in off_px] == pytest.approx([24.6, 8.4], abs=0.05)
    # EPSG:3857 is the same plane in metres at the equator, about its middle
    projected = pyproj.Transformer.from_crs(4326, 3857, always_xy=True).transform(name.lon, name.lat)
    assert projected == pytest.approx((-8235369.414, 4975963.061), abs=1e-3)
    equator_m, middle_px = float(gsd_m(0, 18)), 128 * 2**18
    assert ((x - middle_px) * equator_m, (middle_px - y) * equator_m) == pytest.approx(projected, abs=1e-3)


@pytest.mark.parametrize(
    ("lon", "lat"), [(-73.97958215, 40.75290377), (0.0, 0.0), (179.9999, -51.3), (2.3522, 48.8566)]
)
def test_a_map_about_a_place_has_it_in_the_middle(lon, lat):
    """Also on the border of tiles: pixels are whole, and where the place lies between them is told by u and v."""
    columns = window_columns([lon], [lat], 256, 18)
    references = pa.table({name: columns[name] for name in ("lon", "lat", "x", "y")} | {"size": [256], "zoom": [18]})
    row = np.zeros(1, np.int64)
    uv = uv_from_coordinates(pa.table({"lon": [lon], "lat": [lat]}), references, row, row)
    assert uv[0] == pytest.approx([128, 128], abs=0.01)
    x, y = pixel_from_lonlat(lon, lat, 18)
    assert abs(float(columns["x"][0] + 128 - x)) <= 0.5
    assert abs(float(columns["y"][0] + 128 - y)) <= 0.5


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
