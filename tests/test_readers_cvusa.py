"""CVUSA: pairs and places of the lists, what a cut panorama shows, and files that are wrong."""

from __future__ import annotations

import io
import shutil

import numpy as np
import pytest
from PIL import Image
from published import make
from published.pictures import panorama

from cvgl_data.dataset import open_dataset
from cvgl_data.errors import DatasetError, DatasetNotFoundError, UnknownNameError
from cvgl_data.geo import pixel_from_lonlat
from cvgl_data.panorama.bev import bev_mask, to_bev
from cvgl_data.readers import cvusa as reader
from cvgl_data.readers.listing import centered_zeniths


@pytest.fixture(scope="module")
def cvusa(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cvusa")
    return folder, make("cvusa", folder)


@pytest.fixture
def copy(cvusa, tmp_path):
    shutil.copytree(cvusa[0], tmp_path / "cvusa")
    return tmp_path / "cvusa"


def problems_of(folder, **options):
    with pytest.raises(DatasetError) as caught:
        open_dataset(f"cvusa:{folder}", **options)
    return str(caught.value)


def test_pairs_places_and_splits(cvusa):
    folder, made = cvusa
    dataset = open_dataset(f"cvusa:{folder}", neighbors=4)
    assert dataset.queries["split"].to_pylist() == ["train"] * 8 + ["test"] * 4
    made = {f"panos-{pair.number:07d}": pair for pair in made}
    for row, query in enumerate(dataset.queries.to_pylist()):
        pair = made[query["query_id"]]
        assert (query["split"], query["lon"], query["lat"]) == (pair.split, pair.lon, pair.lat)
        assert query["heading_deg"] == 0
        assert dataset.pairs["query_row"][row].as_py() == dataset.pairs["reference_row"][row].as_py() == row
        reference = dataset.references.slice(row, 1).to_pylist()[0]
        assert reference["reference_id"] == f"bingmap-{pair.number:07d}"
        x, y = pixel_from_lonlat(pair.lon, pair.lat, 19)
        assert abs(reference["x"] + 375 - x) <= 0.5
        assert abs(reference["y"] + 375 - y) <= 0.5
        assert (reference["size"], reference["zoom"]) == (750, 19)
        assert reference["gsd_m"] == pytest.approx(0.2985821 * np.cos(np.radians(pair.lat)))
        assert dataset.images[query["query_id"]] == (folder / f"streetview/panos/{pair.number:07d}.jpg").read_bytes()
        assert dataset.images[reference["reference_id"]] == (folder / f"bingmap/19/{pair.number:07d}.jpg").read_bytes()
    assert set(dataset.pairs["u"].to_pylist()) == set(dataset.pairs["v"].to_pylist()) == {375.0}
    assert dataset.pairs["decentrality"].to_pylist() == [0.0] * 12
    assert dataset.distance_map.num_rows == 12


def test_the_gallery_of_the_test_is_its_own(cvusa):
    test = open_dataset(f"cvusa:{cvusa[0]}").select("test")
    assert test.queries.num_rows == test.references.num_rows == 4
    assert test.positives().tolist() == [0, 1, 2, 3]


def test_the_order_of_columns_in_the_list_of_places(copy):
    """Latitude and longitude of the aerial image come first, then those of the panorama."""
    path = copy / "split_locations/all.csv"
    path.write_text("".join("46.25,-120.5,46.5,-120.25,1\n" for _ in path.read_text().splitlines()))
    dataset = open_dataset(f"cvusa:{copy}")
    assert set(dataset.references["lat"].to_pylist()) == {46.25}
    assert set(dataset.references["lon"].to_pylist()) == {-120.5}
    assert set(dataset.queries["lat"].to_pylist()) == {46.5}
    assert set(dataset.queries["lon"].to_pylist()) == {-120.25}


def test_what_a_panorama_shows(cvusa):
    """AuxGeo: nothing steeper than 26.9 degrees below the horizon; EP-BEV: 65.45 degrees around it."""
    shown = {}
    for vertical in reader.ZENITHS_DEG:
        queries = open_dataset(f"cvusa:{cvusa[0]}?vertical={vertical}").queries
        shown[vertical] = (queries["zenith_top_deg"][0].as_py(), queries["zenith_bottom_deg"][0].as_py())
    assert shown["auxgeo"][1] - 90 == pytest.approx(26.9, abs=0.05)
    assert shown["auxgeo"][1] - shown["auxgeo"][0] == pytest.approx(65.45, abs=0.005)
    assert shown["ep-bev"] == pytest.approx((90 - 65.45 / 2, 90 + 65.45 / 2), abs=0.005)
    assert shown["wide"] == (45, 135)
    with pytest.raises(UnknownNameError, match="auxgeo"):
        open_dataset(f"cvusa:{cvusa[0]}?vertical=auxgoe")


def test_the_top_view_of_a_cut_panorama_is_that_of_the_whole_one(cvusa):
    """Where the cut panorama reaches; it shows another place of the ground if its zenith angles are wrong."""
    folder, made = cvusa
    whole = pixels_of(panorama(made[0].lon, made[0].lat, 308))
    cut = pixels_of((folder / f"streetview/panos/{made[0].number:07d}.jpg").read_bytes())
    view = {"meters_per_px": 0.5, "camera_height_m": 2.5}
    differences = {}
    for vertical in reader.ZENITHS_DEG:
        row = open_dataset(f"cvusa:{folder}?vertical={vertical}").queries.slice(0, 1).to_pylist()[0]
        zenith_deg = (row["zenith_top_deg"], row["zenith_bottom_deg"])
        mask = bev_mask(64, **view, zenith_deg=zenith_deg)
        tops = [to_bev(whole, 64, **view), to_bev(cut, 64, **view, zenith_deg=zenith_deg)]
        differences[vertical] = np.abs(tops[0][mask].astype(int) - tops[1][mask]).mean()
    assert differences["auxgeo"] < 3  # the copy is cut as AuxGeo takes the dataset to be; JPEG blurs a little
    assert min(differences["ep-bev"], differences["wide"]) > 3 * differences["auxgeo"]


def pixels_of(image):
    with Image.open(io.BytesIO(image)) as opened:
        return np.asarray(opened)


@pytest.mark.parametrize(("size", "top"), [((616, 308), 0.0), ((616, 200), 90 - 180 * 100 / 308)])
def test_other_cuts_are_recognized_by_their_shape(copy, size, top):
    for path in (copy / "streetview/panos").iterdir():
        Image.new("RGB", size).save(path)
    queries = open_dataset(f"cvusa:{copy}").queries
    np.testing.assert_allclose(queries["zenith_top_deg"].to_numpy(), top)
    np.testing.assert_allclose(queries["zenith_bottom_deg"].to_numpy(), 180 - top)


def test_an_image_higher_than_a_panorama():
    with pytest.raises(DatasetError, match="300x200 pixels is no panorama"):
        centered_zeniths(300, 200)


def test_without_places(copy):
    (copy / "split_locations/all.csv").unlink()
    assert "split_locations/all.csv: is missing; `?locations=false` opens" in problems_of(copy)
    dataset = open_dataset(f"cvusa:{copy}?locations=false&validation=0.25")
    assert dataset.references["lon"].null_count == dataset.references["x"].null_count == 12
    assert dataset.select("validation").queries.num_rows == 2
    assert dataset.pairs["decentrality"].to_pylist() == [0.0] * 12
    assert dataset.pairs["distance_m"].null_count == 12  # null, not NaN


def test_missing_and_misplaced_files_are_named_with_their_lines(copy, cvusa):
    made = [pair for pair in cvusa[1] if pair.split == "train"]
    first, second, third = (f"{pair.number:07d}" for pair in made[:3])
    (copy / f"bingmap/19/{first}.jpg").unlink()
    shutil.move(copy / f"streetview/panos/{second}.jpg", copy / f"streetview/{second}.jpg")
    (copy / f"streetview/panos/{third}.jpg").unlink()
    message = problems_of(copy)
    assert "has 3 problems" in message
    assert f"splits/train-19zl.csv, line 1: 'bingmap/19/{first}.jpg' is missing" in message
    assert f"train-19zl.csv, line 2: 'streetview/panos/{second}.jpg' is misplaced, it lies in 'streetview'" in message
    assert f"splits/train-19zl.csv, line 3: 'streetview/panos/{third}.jpg' is missing" in message
    shutil.rmtree(copy / "bingmap")
    message = problems_of(copy)
    assert "problems:" in message
    assert "there is no folder 'bingmap/19', or it is empty" in message
    assert "more" in message.splitlines()[-1]


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("bingmap/19/0000001.jpg", "has no two columns"),
        ("bingmap/19/none.jpg,streetview/panos/none.jpg", "has no number in its name"),
        ("bingmap/19/0000001.jpg,streetview/panos/0000002.jpg", "are not one place, their numbers differ"),
    ],
)
def test_wrong_lines_are_named(copy, line, what):
    path = copy / "splits/val-19zl.csv"
    path.write_text(path.read_text() + "\n" + line)
    message = problems_of(copy)
    assert "has 1 problem:" in message
    assert "splits/val-19zl.csv, line 6: " in message
    assert what in message


def test_what_is_listed_twice(copy):
    train, test = copy / "splits/train-19zl.csv", copy / "splits/val-19zl.csv"
    line = train.read_text().splitlines()[2]
    test.write_text(test.read_text() + line + "\n")
    message = problems_of(copy)
    number = line.split(",")[0][-11:-4]
    assert f"splits/val-19zl.csv, line 5: '{number}' is a duplicate of train-19zl.csv, line 3" in message


def test_wrong_places(copy, cvusa):
    path = copy / "split_locations/all.csv"
    lines = path.read_text().splitlines()
    numbers = sorted(pair.number for pair in cvusa[1])
    lines[numbers[0] - 1] = "46.1,-120.2,nan,-120.2,0"
    lines[numbers[1] - 1] = "46.1,-120.2,46.1"
    lines[numbers[2] - 1] = "46.1,-120.2,-120.2,46.1,0"
    path.write_text("\n".join(lines))
    message = problems_of(copy)
    assert "has 3 problems" in message
    assert f"all.csv, line {numbers[0]}: is no position: latitude nan, longitude -120.2" in message
    assert f"all.csv, line {numbers[1]}: is no position: 3 numbers, 4 are needed" in message
    assert f"all.csv, line {numbers[2]}: is no position: latitude -120.2, longitude 46.1" in message
    path.write_text("\n".join(lines[: numbers[-1] - 1]))
    assert f"none for image {numbers[-1]:07d}" in problems_of(copy)


def test_images_that_are_none(copy, cvusa):
    (copy / f"bingmap/19/{cvusa[1][0].number:07d}.jpg").write_bytes(b"<html>not found</html>")
    (copy / f"streetview/panos/{cvusa[1][1].number:07d}.jpg").write_bytes(b"")
    message = problems_of(copy, verify=True)
    assert "has 2 problems" in message
    assert "not an image" in message
    assert "is empty" in message


def test_another_folder(tmp_path):
    with pytest.raises(DatasetNotFoundError, match="has no folder 'splits'"):
        open_dataset(f"cvusa:{tmp_path}")


def test_the_first_panorama_is_looked_at(copy, cvusa):
    (copy / f"streetview/panos/{cvusa[1][0].number:07d}.jpg").write_bytes(b"")
    assert f"panos/{cvusa[1][0].number:07d}.jpg: is not an image, or cut short" in problems_of(copy)
