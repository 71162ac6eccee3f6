"""DReSS: names, labels in its own convention, tiles near a query that do not cover it, and how much a tile shows."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from published import make

from cvgl_data.dataset import open_dataset
from cvgl_data.errors import DatasetError, DatasetNotFoundError, RecipeError
from cvgl_data.readers import dress

EIGHT = {"Chicago", "Johannesburg", "London", "Rio", "Sydney", "Taipei", "Tokyo", "Vancouver"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dress")
    return folder, make("dress", folder, grid=3, queries=6, pixels=32, width=64)


@pytest.fixture
def copy(made, tmp_path):
    return Path(shutil.copytree(made[0], tmp_path / "DReSS"))


def exact(dataset, cities):
    """Where the queries lie in their tiles, as the generator placed them; (P, 2)."""
    found = []
    for row in dataset.pairs.to_pylist():
        city, _, name = row["query_id"].partition("/")
        query, tile = int(name.split("pano-")[1][:3]), int(row["reference_id"].split("_")[1])
        found.append(cities[city].uv[query, cities[city].nearest[query].tolist().index(tile)])
    return np.array(found)


@pytest.mark.parametrize("labels", dress.LABELS)
def test_places(made, labels):
    dataset = open_dataset(f"dress:{made[0]}?labels={labels}", verify=True)
    assert (dataset.references.num_rows, dataset.queries.num_rows) == (72, 48)
    assert set(dataset.references["area"].to_pylist()) == EIGHT
    off = np.stack([dataset.pairs[axis].to_numpy() for axis in "uv"], 1) - exact(dataset, made[1])
    assert np.abs(off).max() < (0.051 if labels == "original" else 1e-3)  # labels have one decimal


def test_tiles_that_do_not_cover_are_no_semi_positives(made):
    dataset = open_dataset(f"dress:{made[0]}")
    pairs = dataset.pairs.to_pylist()
    assert {row["relation"] for row in pairs[::4]} == {"positive"}
    assert {row["relation"] for index, row in enumerate(pairs) if index % 4} == {"near"}  # seamless: one tile covers
    assert [row["covers"] for row in pairs] == [row["relation"] == "positive" for row in pairs]
    indptr, _ = dataset.covering()
    assert np.diff(indptr).tolist() == [1] * dataset.queries.num_rows
    assert max(row["decentrality"] for row in pairs[::4]) > 0.6  # as no positive of VIGOR's


def test_distractors_are_in_the_gallery(made):
    dataset = open_dataset(f"dress:{made[0]}?protocol=cross-area")
    test = dataset.select("test")
    assert set(test.references["area"].to_pylist()) == {"Johannesburg", "Rio", "Taipei", "Vancouver"}
    assert test.references.num_rows == 36 > len(set(test.positives().tolist()))
    assert test.queries.num_rows == 24


@pytest.mark.parametrize("side", [224, 256])
def test_how_much_a_tile_shows_follows_from_labels_and_coordinates(side, tmp_path):
    cities = make("dress", tmp_path, cities=("London", "Rio"), grid=3, queries=6, side=side, pixels=32, width=64)
    dataset = open_dataset(f"dress:{tmp_path}?cities=London,Rio")
    assert set(dataset.references["size"].to_pylist()) == {side}
    off = np.stack([dataset.pairs[axis].to_numpy() for axis in "uv"], 1) - exact(dataset, cities)
    assert np.abs(off).max() < 0.06
    assert dict.fromkeys(row["covers"] for row in dataset.pairs.to_pylist()[::4]) == {True: None}
    forced = open_dataset(f"dress:{tmp_path}?cities=London,Rio&tile_px={480 - side}")
    # Shares of the side come from the labels, so a wrong size leaves them as they are.
    share = dataset.pairs["u"].to_numpy() / side
    assert np.allclose(forced.pairs["u"].to_numpy() / (480 - side), share)
    with pytest.raises(RecipeError, match="option 'tile_px' is 300; a tile shows 224 or 256 pixels"):
        open_dataset(f"dress:{tmp_path}?tile_px=300")


def test_labels_of_another_scale_are_found(copy, caplog):
    for path in copy.glob("splits_new/*/*.txt"):
        if path.name == "satellite_list.txt":
            continue
        lines = []
        for line in path.read_text().splitlines():
            cells = line.split()
            for index in range(1, 13):
                if index % 3 != 1:
                    cells[index] = str(112 + (float(cells[index]) - 112) * 0.5)
            lines.append(" ".join(cells) + "\n")
        path.write_text("".join(lines))
    open_dataset(f"dress:{copy}?tile_px=224")
    assert len([record for record in caplog.records if "disagree with the coordinates" in record.getMessage()]) == 8
    found = dress.check_all(copy, tile_px=224)
    assert [round(city.scale, 2) for _, city in found] == [0.5] * 8


def test_damage_is_named_with_its_line(copy):
    path = copy / "splits_new/Rio/pano_label_balanced.txt"
    lines = path.read_text().splitlines()
    (copy / "Rio/panorama" / lines[1].split()[0]).unlink()
    path.write_text("\n".join([*lines[:3], lines[3] + " extra", *lines[4:]]))
    with pytest.raises(DatasetError) as raised:
        open_dataset(f"dress:{copy}?protocol=cross-area")
    message = str(raised.value)
    assert "2 problems" in message
    assert "pano_label_balanced.txt, line 2: panorama 'Rio,pano-001" in message
    assert "pano_label_balanced.txt, line 4: has 14 columns, not 13" in message
    shutil.rmtree(copy / "splits_new")
    with pytest.raises(DatasetNotFoundError, match="has no folder 'splits_new' or 'splits'"):
        open_dataset(f"dress:{copy}")
