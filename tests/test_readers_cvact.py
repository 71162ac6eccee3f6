"""CVACT: places and splits of the MATLAB file, the three galleries, and files that are wrong."""

from __future__ import annotations

import math
import shutil

import numpy as np
import pytest
from PIL import Image
from published import make
from published.cvact import Place, write_list
from scipy.io import loadmat, savemat

from cvgl_data.dataset import open_dataset
from cvgl_data.errors import DatasetError, DatasetNotFoundError, UnknownNameError
from cvgl_data.geo import distance_m
from cvgl_data.readers.cvact import lonlat_from_utm, read_places
from cvgl_data.readers.layout import Problems


@pytest.fixture(scope="module")
def cvact(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cvact")
    return folder, make("cvact", folder)


@pytest.fixture
def copy(cvact, tmp_path):
    shutil.copytree(cvact[0], tmp_path / "cvact")
    return tmp_path / "cvact"


def problems_of(folder, **options):
    with pytest.raises(DatasetError) as caught:
        open_dataset(f"cvact:{folder}", **options)
    return str(caught.value)


def utm_55_south(lon, lat):
    """Transverse Mercator by Krueger's series to the fourth power of the flattening, written out."""
    flat = 1 / 298.257223563
    n = flat / (2 - flat)
    radius = 6378137.0 / (1 + n) * (1 + n**2 / 4 + n**4 / 64)
    alpha = [n / 2 - 2 / 3 * n**2 + 5 / 16 * n**3, 13 / 48 * n**2 - 3 / 5 * n**3, 61 / 240 * n**3]
    phi, lam = math.radians(lat), math.radians(lon - 147)
    e = 2 * math.sqrt(n) / (1 + n)
    t = math.sinh(math.atanh(math.sin(phi)) - e * math.atanh(e * math.sin(phi)))
    xi, eta = math.atan2(t, math.cos(lam)), math.atanh(math.sin(lam) / math.sqrt(1 + t * t))
    east = eta + sum(a * math.cos(2 * j * xi) * math.sinh(2 * j * eta) for j, a in enumerate(alpha, 1))
    north = xi + sum(a * math.sin(2 * j * xi) * math.cosh(2 * j * eta) for j, a in enumerate(alpha, 1))
    return 500_000 + 0.9996 * radius * east, 10_000_000 + 0.9996 * radius * north


def test_positions_by_another_formula(tmp_path):
    known = np.array([(149.1244, -35.3082), (149.0, -35.5), (149.3, -35.1)])
    utm = np.array([utm_55_south(*place) for place in known])
    problems = Problems(tmp_path)
    for columns in (utm, utm[:, ::-1]):
        lonlat = lonlat_from_utm(columns, problems, tmp_path / "ACT_data.mat")
        assert distance_m(*lonlat.T, *known.T).max() < 0.01
    problems.check()


def test_a_position_elsewhere_is_a_problem(tmp_path):
    utm = np.array([utm_55_south(149.1, -35.3), utm_55_south(151.2, -33.9), (np.nan, 6.1e6)])
    problems = Problems(tmp_path)
    lonlat_from_utm(utm, problems, tmp_path / "ACT_data.mat")
    assert problems.count == 2


@pytest.mark.parametrize(
    ("protocol", "num_train", "part", "num"),
    [("val", 8, "val", 4), ("test", 8, "test", 5), ("test-only", 0, "test", 5)],
)
def test_protocols(cvact, protocol, num_train, part, num):
    folder, places = cvact
    dataset = open_dataset(f"cvact:{folder}?protocol={protocol}")
    of_id = {f"{place.id}_grdView": place for place in places}
    assert dataset.queries["split"].to_pylist() == ["train"] * num_train + ["test"] * num
    for row, query in enumerate(dataset.queries.to_pylist()):
        place = of_id[query["query_id"]]
        assert place.part == ("train" if query["split"] == "train" else part)
        assert distance_m(query["lon"], query["lat"], place.lon, place.lat) < 0.01
        assert (query["heading_deg"], query["zenith_top_deg"], query["zenith_bottom_deg"]) == (0, 0, 180)
        reference = dataset.references.slice(row, 1).to_pylist()[0]
        assert reference["reference_id"] == f"{place.id}_satView_polish"
        assert (reference["lon"], reference["lat"]) == (query["lon"], query["lat"])
        top = folder / ("ANU_data_test" if place.part == "test" else "ANU_data_small")
        assert dataset.images[query["query_id"]] == (top / f"streetview/{place.id}_grdView.jpg").read_bytes()
        aerial = top / f"satview_polish/{place.id}_satView_polish.jpg"
        assert dataset.images[reference["reference_id"]] == aerial.read_bytes()
    test = dataset.select("test")
    assert test.references.num_rows == num
    assert test.positives().tolist() == list(range(num))
    assert set(dataset.pairs["u"].to_pylist()) == {600.0}


def test_the_order_of_the_tests_is_that_of_ids(cvact):
    ids = open_dataset(f"cvact:{cvact[0]}?protocol=test-only").queries["query_id"].to_pylist()
    assert ids == sorted(ids)


def test_ground_resolution(cvact):
    """Zoom 20 at twice the pixels: 0.0609 m per pixel and 73 m a side in Canberra."""
    reference = open_dataset(f"cvact:{cvact[0]}").references.slice(0, 1).to_pylist()[0]
    assert reference["gsd_m"] == pytest.approx(0.0609, abs=5e-5)
    assert reference["gsd_m"] * reference["size"] == pytest.approx(73, abs=0.2)


def test_northing_may_come_first(copy, cvact):
    before = open_dataset(f"cvact:{cvact[0]}").queries
    order = np.random.default_rng(1).permutation(len(cvact[1]))
    write_list(copy, cvact[1], order, northing_first=True)
    after = open_dataset(f"cvact:{copy}").queries
    places = [dict(zip(t["query_id"].to_pylist(), t["lat"].to_pylist(), strict=True)) for t in (before, after)]
    assert places[0] == pytest.approx(places[1])


def test_ids_may_be_cells(copy):
    content = loadmat(copy / "ACT_data.mat")
    cells = np.empty((len(content["panoIds"]), 1), object)
    cells[:, 0] = content["panoIds"]
    savemat(copy / "ACT_data.mat", {**{k: v for k, v in content.items() if k[0] != "_"}, "panoIds": cells})
    assert open_dataset(f"cvact:{copy}").queries.num_rows == 12


def test_cut_panoramas(copy):
    """Copies cut to a strip, as 112 x 616 pixels are: the middle 65.45 of 180 degrees."""
    for path in (copy / "ANU_data_small/streetview").iterdir():
        Image.new("RGB", (616, 112)).save(path)
    queries = open_dataset(f"cvact:{copy}").queries
    np.testing.assert_allclose(queries["zenith_top_deg"].to_numpy(), 90 - 65.4545 / 2, atol=1e-4)
    np.testing.assert_allclose(queries["zenith_bottom_deg"].to_numpy(), 90 + 65.4545 / 2, atol=1e-4)


def test_missing_and_misplaced_images(copy, cvact):
    train = [place.id for place in cvact[1] if place.part == "train"]
    (copy / f"ANU_data_small/streetview/{train[0]}_grdView.jpg").unlink()
    shutil.move(
        copy / f"ANU_data_small/satview_polish/{train[1]}_satView_polish.jpg", copy / "ANU_data_test/satview_polish"
    )
    message = problems_of(copy)
    assert "has 2 problems" in message
    assert f"ANU_data_small/streetview/{train[0]}_grdView.jpg: is missing (ACT_data.mat, trainInd" in message
    assert f"satview_polish/{train[1]}_satView_polish.jpg: is misplaced, it lies in ANU_data_test" in message
    kept = open_dataset(f"cvact:{copy}?incomplete=true").queries["query_id"].to_pylist()
    assert len(kept) == 10
    assert not {f"{name}_grdView" for name in train[:2]} & set(kept)


def test_tests_need_two_images_and_a_place(copy, cvact):
    test = sorted(place.id for place in cvact[1] if place.part == "test")
    (copy / f"ANU_data_test/streetview/{test[0]}_grdView.jpg").unlink()
    for folder, ending in (("streetview", "grdView"), ("satview_polish", "satView_polish")):
        shutil.copy(
            copy / f"ANU_data_test/{folder}/{test[1]}_{ending}.jpg",
            copy / f"ANU_data_test/{folder}/{'q' * 22}_{ending}.jpg",
        )
    message = problems_of(copy, protocol="test")
    assert "has 2 problems" in message
    assert f"{test[0]}_satView_polish.jpg: has no partner 'streetview/{test[0]}_grdView.jpg'" in message
    assert f"has no position: '{'q' * 22}' is not in ACT_data.mat" in message


def test_two_files_of_one_id(copy, cvact):
    name = next(place.id for place in cvact[1] if place.part == "val")
    Image.new("RGB", (8, 4)).save(copy / f"ANU_data_small/streetview/{name}_grdView.png")
    assert f"{name}_grdView.png: is a duplicate of 'ANU_data_small/streetview/{name}_grdView.jpg'" in problems_of(copy)


def test_images_that_are_none(copy, cvact):
    name = cvact[1][0].id
    (copy / f"ANU_data_small/satview_polish/{name}_satView_polish.jpg").write_bytes(b"\xff\xd8\xff")
    message = problems_of(copy, verify=True)
    assert "has 1 problem:" in message
    assert f"{name}_satView_polish.jpg: the image ends early" in message


def changed(folder, **values):
    content = {key: value for key, value in loadmat(folder / "ACT_data.mat").items() if key[0] != "_"}
    savemat(folder / "ACT_data.mat", {**content, **values})


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"trainSet": {"trainInd": np.array([[0.0], [1.0]])}}, "trainInd has 0, which is not in 1 to 19"),
        ({"trainSet": {"trainInd": np.array([[20.0], [1.0]])}}, "trainInd has 20, which is not in 1 to 19"),
        ({"trainSet": {"trainInd": np.array([[2.0], [2.0]])}}, "trainInd has 2 more than once"),
        ({"trainSet": {"trainInd": np.array([[1.5]])}}, "trainInd has 1.5, which is not in 1 to 19"),
        ({"trainSet": {"other": np.array([[1.0]])}}, "has no numbers 'trainInd'"),
        ({"trainSet": {"trainInd": np.arange(1.0, 20)[:, None]}}, "is in trainSet and in valSet"),
        ({"utm": np.zeros((3, 2))}, "utm has the shape (3, 2) for 19 panoIds"),
        ({"panoIds": np.array(["same"] * 19)}, "panoIds 1 and 2 are both 'same'"),
    ],
)
def test_a_wrong_list_is_named(copy, values, what):
    changed(copy, **values)
    message = problems_of(copy)
    assert "ACT_data.mat: " in message
    assert what in message


def test_a_list_that_is_none(copy, tmp_path):
    problems = Problems(tmp_path)
    (tmp_path / "a.mat").write_bytes(b"nothing")
    (tmp_path / "b.mat").write_bytes(b"")
    (tmp_path / "c.mat").write_bytes((copy / "ACT_data.mat").read_bytes()[:300])
    (tmp_path / "d.mat").write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(512))
    savemat(tmp_path / "e.mat", {"panoIds": np.array(["one"])})
    for name in "abcdef":
        assert read_places(tmp_path / f"{name}.mat", problems) == ([], pytest.approx(np.empty((0, 2))), {})
    assert problems.count == 6
    (copy / "ACT_data.mat").unlink()
    assert "ACT_data.mat: is missing" in problems_of(copy)


def test_the_second_field_of_a_set_is_found_by_name(cvact):
    """``trainSet`` is a struct whose first field is something else."""
    names = loadmat(cvact[0] / "ACT_data.mat")["trainSet"].dtype.names
    assert names == ("trainNum", "trainInd")


def test_other_folders(tmp_path, cvact):
    with pytest.raises(DatasetNotFoundError, match="has no folder 'ANU_data_small'"):
        open_dataset(f"cvact:{tmp_path}")
    with pytest.raises(UnknownNameError, match="test-only"):
        open_dataset(f"cvact:{cvact[0]}?protocol=test_only")


def test_the_generated_list_is_as_published(tmp_path):
    """22 characters per id, numbers from 1; what the reader is tested on is what it will meet."""
    places = [Place("a" * 21 + str(number), "train" if number else "val", 149.1, -35.3) for number in range(3)]
    write_list(tmp_path, places, np.array([2, 0, 1]))
    content = loadmat(tmp_path / "ACT_data.mat")
    assert content["panoIds"].tolist() == ["a" * 21 + "2", "a" * 21 + "0", "a" * 21 + "1"]
    assert content["trainSet"]["trainInd"][0][0].tolist() == [[1], [3]]
    assert content["valSet"][0][0][1].tolist() == [[2]]
