"""What readers of published layouts share: locations with options, problems, tables, images in files, hold-out."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cvgl_data import schema
from cvgl_data.dataset import READERS, open_dataset
from cvgl_data.errors import DatasetError, DatasetNotFoundError, RecipeError, UnknownNameError
from cvgl_data.geo import gsd_m, lonlat_from_pixel, pixel_from_lonlat
from cvgl_data.locations import Location, parse, typed_options
from cvgl_data.readers.holdout import hold_out
from cvgl_data.readers.layout import FolderImages, Problems, assemble, names_in, read_lines
from cvgl_data.readers.tables import NEAR, QUERIES, REFERENCES, build_table, pair_table, window_columns

LAYOUTS = ("cvact", "cvcities", "cvglobal", "cvusa", "dress", "kitti", "vigor")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("vigor:/data/VIGOR", Location("vigor", "/data/VIGOR", {})),
        (
            "vigor:/data/VIGOR?protocol=cross-area&labels=corrected",
            Location("vigor", "/data/VIGOR", {"protocol": "cross-area", "labels": "corrected"}),
        ),
        ("vigor:a?train=x,y&test=new%20york", Location("vigor", "a", {"train": "x,y", "test": "new york"})),
        ("/data/ours?root=/b/c", Location("packed", "/data/ours", {"root": "/b/c"})),
        ("hub:user/name@v1", Location("hub", "user/name@v1", {})),
    ],
)
def test_a_location_in_one_string(text, expected):
    assert parse(text) == expected
    assert parse(Path(text)) == expected  # as the command line hands it over
    assert parse(str(expected)) == expected


def test_a_folder_that_exists_may_have_any_name(tmp_path):
    for name in ("what?x=y", "vigor:x", "a:b?c"):
        (tmp_path / name).mkdir()
    assert parse(tmp_path / "what?x=y") == Location("packed", str(tmp_path / "what?x=y"), {})
    assert parse(f"vigor:{tmp_path}/what?x=y").place == f"{tmp_path}/what?x=y"
    assert parse(tmp_path / "a:b?c").reader == "packed"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("vigor:{}?protocol=", r"option 'protocol' in '.*' has no value"),
        ("vigor:{}?protocol", "has no value; write it like protocol=cross-area"),
        ("vigor:{}?labels=original&labels=corrected", "option 'labels' appears twice"),
        ("vigor:{}?protocols=cross-area", "reader 'vigor' has no option 'protocols'; did you mean 'protocol'"),
        ("vigor:{}?verify=true", "reader 'vigor' has no option 'verify'"),
        ("vigor:{}?validation=much", "option 'validation' of reader 'vigor' is 'much', it must be a number"),
        ("vigor:{}?neighbors=1.5", "it must be a whole number"),
        ("packed:{}?resized=perhaps", "it must be true or false"),
    ],
)
def test_options_that_make_no_sense(text, message, tmp_path):
    with pytest.raises(RecipeError, match=message):
        open_dataset(text.format(tmp_path))


def test_options_as_arguments(tmp_path):
    with pytest.raises(UnknownNameError, match=r"option 'protocol' has no value 'cross'.*did you mean 'cross-area'"):
        open_dataset(f"vigor:{tmp_path}", protocol="cross")
    with pytest.raises(RecipeError, match="option 'labels' is given as an argument and in"):
        open_dataset(f"vigor:{tmp_path}?labels=original", labels="original")
    with pytest.raises(RecipeError, match="has no option 'colour'"):
        open_dataset(tmp_path, colour="red")


def test_options_get_the_types_of_the_reader():
    def reader(folder, *, verify: bool = False, a: str = "", b: float = 0.0, c: bool = True, d: int = 0):
        pass

    assert typed_options(reader, "r", {"a": "1", "b": "2", "c": "False", "d": "3"}) == {
        "a": "1",
        "b": 2.0,
        "c": False,
        "d": 3,
    }


@pytest.mark.parametrize("name", LAYOUTS)
def test_an_empty_folder_is_no_dataset(name, tmp_path):
    with pytest.raises(DatasetNotFoundError):
        open_dataset(f"{name}:{tmp_path}")
    with pytest.raises(DatasetNotFoundError, match="no dataset folder"):
        open_dataset(f"{name}:{tmp_path}/nowhere")
    assert name in READERS


def test_problems_name_the_first_and_count_all(tmp_path):
    problems = Problems(tmp_path)
    problems.check()
    problems.add(tmp_path / "a/b.txt", 3, "is wrong")
    with pytest.raises(DatasetError) as raised:
        problems.check()
    assert str(raised.value) == f"'{tmp_path}' has 1 problem:\n  a/b.txt, line 3: is wrong"
    for number in range(1999):
        problems.add("c", None, f"{number} is missing")
    with pytest.raises(DatasetError) as raised:
        problems.check()
    message = str(raised.value)
    assert "has 2,000 problems:" in message
    assert message.count("\n") == 6
    assert message.endswith("\n  c: 3 is missing\n  and 1,995 more")


def test_lines_keep_their_numbers(tmp_path):
    problems = Problems(tmp_path)
    (tmp_path / "list").write_bytes("\ufeffone\r\n\r\n  \ntwo\n".encode())
    assert [tuple(line) for line in read_lines(tmp_path / "list", problems)] == [(1, "one"), (4, "two")]
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    assert read_lines(tmp_path / "binary", problems) == []
    assert read_lines(tmp_path / "gone", problems) == []
    assert problems.count == 2


def test_names_in_a_folder(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/here").touch()
    problems = Problems(tmp_path)
    assert names_in(tmp_path / "folder", problems) == {"here"}
    assert names_in(tmp_path / "gone") == frozenset()
    assert problems.count == 0
    assert names_in(tmp_path / "gone", problems) == frozenset()
    with pytest.raises(DatasetError, match="gone: there is no such folder"):
        problems.check()


def test_images_in_files(tmp_path):
    (tmp_path / "f").mkdir()
    (tmp_path / "f/a.jpg").write_bytes(b"A")
    (tmp_path / "elsewhere.jpg").write_bytes(b"B")
    images = FolderImages(tmp_path, ["a", "b", "gone"], ["f/a.jpg", str(tmp_path / "elsewhere.jpg"), "f/gone.jpg"])
    assert list(images) == ["a", "b", "gone"]
    assert len(images) == 3
    assert images["a"] == b"A"
    assert bytes(images.view("b")) == b"B"
    assert "a" in images
    assert images.get("c") is None
    with pytest.raises(KeyError):
        images.view("c")
    with pytest.raises(DatasetError, match=r"gone.jpg' cannot be read: No such file"):
        images["gone"]
    copied = pickle.loads(pickle.dumps(images))
    assert copied["a"] == b"A"
    assert len(pickle.dumps(images)) == len(pickle.dumps(copied))  # the table of rows does not travel
    with pytest.raises(DatasetError, match="2 images have 1 files"):
        FolderImages(tmp_path, ["a", "b"], ["x"])


def test_a_table_from_columns():
    table = build_table(QUERIES, 2, {"query_id": ["a", "b"], "lon": np.array([1.0, np.nan]), "split": "train"})
    assert table.schema.equals(QUERIES)
    assert table["lon"].to_pylist() == [1.0, None]
    assert table["split"].to_pylist() == ["train", "train"]
    assert table["captured"].null_count == 2
    with pytest.raises(UnknownNameError, match="no column 'heading'; did you mean 'heading_deg'"):
        build_table(QUERIES, 1, {"heading": 0.0})


def test_windows_around_centers():
    columns = window_columns([2.0], [48.0], 640, 20)
    x, y = pixel_from_lonlat(2.0, 48.0, 20)
    assert abs(columns["x"][0] + 320 - x) <= 0.5
    assert abs(columns["y"][0] + 320 - y) <= 0.5
    assert columns["lon"][0] == 2.0  # not that of the rounded corner
    assert columns["gsd_m"][0] == gsd_m(48.0, 20)


def table_pair(places, size=100, zoom=18):
    """One reference at the origin and queries at places in it, window pixels."""
    x, y = pixel_from_lonlat(0.0, 0.0, zoom)
    references = build_table(
        REFERENCES, 1, {"reference_id": ["r"], "area": "here", **window_columns([0.0], [0.0], size, zoom)}
    )
    u, v = np.array(places, np.float64).T
    lon, lat = lonlat_from_pixel(x - size / 2 + u, y - size / 2 + v, zoom)
    ids = [f"q{index}" for index in range(len(places))]
    queries = build_table(
        QUERIES, len(ids), {"query_id": ids, "lon": lon, "lat": lat, "area": "here", "split": "train"}
    )
    return queries, references


def test_pairs_from_coordinates():
    queries, references = table_pair([(50, 50), (10, 90), (100.5, 50)])
    pairs = pair_table(
        queries, references, query_row=[2, 0, 1], reference_row=[0, 0, 0], positive=[False, True, False]
    ).to_pylist()
    assert [row["query_row"] for row in pairs] == [0, 1, 2]
    assert [row["relation"] for row in pairs] == ["positive", "semi-positive", NEAR]
    assert [row["covers"] for row in pairs] == [True, True, False]
    assert np.allclose([(row["u"], row["v"]) for row in pairs], [(50, 50), (10, 90), (100.5, 50)], atol=1e-6)
    assert np.allclose([row["decentrality"] for row in pairs], [0, 0.8, 1.01], atol=1e-7)
    meters = float(gsd_m(0.0, 18))
    assert np.isclose(pairs[1]["offset_east_m"], -40 * meters)
    assert np.isclose(pairs[1]["offset_north_m"], -40 * meters)
    assert np.isclose(pairs[1]["distance_m"], np.hypot(40, 40) * meters, rtol=2e-3)  # sphere of another radius


def test_pairs_from_labels_may_have_no_position():
    queries, references = table_pair([(50, 50)])
    nowhere = queries.set_column(1, "lon", pa.nulls(1, pa.float64()))
    row = pair_table(nowhere, references, query_row=[0], reference_row=[0], positive=[True], uv=[(30, 60)]).to_pylist()[
        0
    ]
    assert (row["u"], row["v"], row["covers"], row["distance_m"]) == (30, 60, True, None)


def test_two_images_with_one_id(tmp_path):
    queries, references = table_pair([(50, 50), (20, 20)])
    queries = queries.set_column(0, QUERIES.field(0), pa.array(["r", "r"]))
    pairs = schema.PAIRS.empty_table()
    with pytest.raises(DatasetError, match=r"1 problem:\n.*: several images have the id 'r'"):
        assemble(
            tmp_path, references=references, queries=queries, pairs=pairs, reference_files=["a"], query_files=["b", "c"]
        )


def grid(columns, size=256, stride=256, per_tile=2):
    """A grid of references with queries in their middle; all train."""
    zoom = 18
    x0, y0 = pixel_from_lonlat(2.0, 48.0, zoom)
    place = np.arange(columns**2)
    x, y = x0 + place % columns * stride, y0 + place // columns * stride
    lon, lat = lonlat_from_pixel(x, y, zoom)
    ids = [f"r{row:04d}" for row in place]
    references = build_table(
        REFERENCES, len(ids), {"reference_id": ids, "area": "here", **window_columns(lon, lat, size, zoom)}
    )
    tile = np.repeat(place, per_tile)
    qlon, qlat = lonlat_from_pixel(x[tile] + 20, y[tile] - 10, zoom)
    names = [f"q{row:05d}" for row in range(len(tile))]
    queries = build_table(
        QUERIES, len(names), {"query_id": names, "area": "here", "lon": qlon, "lat": qlat, "split": "train"}
    )
    pairs = pair_table(
        queries, references, query_row=np.arange(len(tile)), reference_row=tile, positive=np.ones(len(tile))
    )
    return queries, pairs, references


def test_holding_out_blocks():
    queries, pairs, references = grid(20)
    held, held_pairs = hold_out(queries, pairs, references, 0.2)
    split = held["split"].to_pylist()
    assert held.num_rows == queries.num_rows  # nothing is shared in a seamless grid
    assert 0.1 < split.count("validation") / len(split) < 0.3
    ids = held["query_id"].to_pylist()
    assert all(ids[row["query_row"]] == row["query_id"] for row in held_pairs.to_pylist())
    # whole blocks: far fewer borders between the two sides than single tiles would make
    side = np.array([name == "validation" for name in split])[::2].reshape(20, 20)
    borders = (side[1:] != side[:-1]).sum() + (side[:, 1:] != side[:, :-1]).sum()
    assert borders < 0.5 * 2 * 20 * 19 * 2 * side.mean() * (1 - side.mean())
    again, _ = hold_out(queries, pairs, references, 0.2)
    assert again.equals(held)
    same, _ = hold_out(queries, pairs, references, 0.0)
    assert same.equals(queries)


def test_holding_out_leaves_no_reference_to_both_sides():
    queries, _, references = grid(14, stride=128)
    pairs = pair_table(
        queries,
        references,
        query_row=np.repeat(np.arange(queries.num_rows), 2),
        reference_row=np.stack(
            [np.arange(queries.num_rows) // 2, np.minimum(np.arange(queries.num_rows) // 2 + 1, 195)], 1
        ).ravel(),
        positive=np.tile([True, False], queries.num_rows),
    )
    held, held_pairs = hold_out(queries, pairs, references, 0.3)
    assert 0 < held.num_rows < queries.num_rows
    split = np.array(held["split"].to_pylist())
    covering = held_pairs.filter(held_pairs["covers"])
    of_query = split[covering["query_row"].to_numpy()]
    rows = covering["reference_row"].to_numpy()
    assert not set(rows[of_query == "train"]) & set(rows[of_query == "validation"])


def test_holding_out_without_positions():
    queries, pairs, references = grid(10)
    index = REFERENCES.get_field_index("lon")
    nowhere = references.set_column(index, REFERENCES.field(index), pa.nulls(100, pa.float64()))
    held, _ = hold_out(queries, pairs, nowhere, 0.1)
    split = held["split"].to_pylist()
    assert split.count("validation") == 20


def test_a_published_place_in_a_tile():
    """A panorama and a tile of VIGOR in Seattle, both ways round."""
    for here, there, expected in [
        ((-122.324936, 47.586118), (-122.32484011, 47.58619123), (248.49923, 400.95745)),
        ((-122.32484011, 47.58619123), (-122.324936, 47.586118), (391.50077, 239.04255)),
    ]:
        references = build_table(
            REFERENCES, 1, {"reference_id": ["r"], "area": "a", **window_columns([there[0]], [there[1]], 640, 20)}
        )
        queries = build_table(QUERIES, 1, {"query_id": ["q"], "lon": [here[0]], "lat": [here[1]], "area": "a"})
        row = pair_table(queries, references, query_row=[0], reference_row=[0], positive=[True]).to_pylist()[0]
        assert (row["u"], row["v"]) == pytest.approx(expected, abs=2e-5)
        assert row["distance_m"] == pytest.approx(10.86394, abs=1e-4)


def test_published_measures_of_a_label():
    """VIGOR's (100, -50): column 370, row 420 of 640."""
    queries, references = table_pair([(0, 0)], size=640)
    row = pair_table(
        queries, references, query_row=[0], reference_row=[0], positive=[True], uv=[(370, 420)]
    ).to_pylist()[0]
    assert (row["decentrality"], row["decentrality_l2"], row["iou"]) == pytest.approx(
        (0.3125, 0.2471, 0.6364), abs=5e-5
    )
