"""A small CVACT: training and validation pairs in one folder, the gallery of the test in another."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from pyproj import Transformer
from scipy.io import savemat

from published.pictures import overhead, panorama, stations, write

CANBERRA = (149.10, -35.30, 149.12, -35.28)


class Place(NamedTuple):
    id: str
    part: str
    lon: float
    lat: float


def make(folder: Path, *, num: int = 12, num_test: int = 5, northing_first: bool = False) -> list[Place]:
    """Write ``num`` pairs, every third to validate, and ``num_test`` to test; ids have 22 characters as published."""
    found = stations(*CANBERRA, num + num_test + 2)
    rng = np.random.default_rng(1)
    ids = ["".join(rng.choice(list("abcXYZ019-_"), 22)) for _ in found]
    parts = ["val" if index % 3 == 2 else "train" for index in range(num)] + ["test"] * num_test
    parts += ["none"] * (len(found) - len(parts))  # the list has more places than images
    places = [Place(*row) for row in zip(ids, parts, *zip(*found, strict=True), strict=True)]
    for place in places:
        if place.part == "none":
            continue
        top = folder / ("ANU_data_test" if place.part == "test" else "ANU_data_small")
        write(top / f"streetview/{place.id}_grdView.jpg", panorama(place.lon, place.lat))
        aerial = overhead(place.lon, place.lat, 21, 1200, suffix="jpg")
        write(top / f"satview_polish/{place.id}_satView_polish.jpg", aerial)
    write_list(folder, places, rng.permutation(len(places)), northing_first=northing_first)
    return places


def write_list(folder: Path, places: list[Place], order: np.ndarray, *, northing_first: bool = False) -> None:
    """Write ``ACT_data.mat`` with the places in some order."""
    to_utm = Transformer.from_crs("EPSG:4326", "EPSG:32755", always_xy=True)
    listed = [places[index] for index in order]
    utm = np.array([to_utm.transform(place.lon, place.lat) for place in listed])
    number = {part: [row for row, place in enumerate(listed, 1) if place.part == part] for part in ("train", "val")}
    savemat(
        folder / "ACT_data.mat",
        {
            "panoIds": np.array([place.id for place in listed]),
            "utm": utm[:, ::-1] if northing_first else utm,
            "trainSet": {"trainNum": len(number["train"]), "trainInd": np.array(number["train"])[:, None]},
            "valSet": {"valNum": len(number["val"]), "valInd": np.array(number["val"])[:, None]},
        },
    )
