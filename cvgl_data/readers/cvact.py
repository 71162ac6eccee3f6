"""Reader of CVACT: pairs of a panorama of Canberra and an aerial image centred on it.

The layout is ``ACT_data.mat`` (``panoIds``, ``utm`` in metres, ``trainSet`` and ``valSet`` with numbers from 1 into
``panoIds``) and two folders, ``ANU_data_small`` with the training and validation images and ``ANU_data_test`` with the
test images, each with ``streetview/{id}_grdView.jpg`` and ``satview_polish/{id}_satView_polish.jpg``. 35,532 pairs to
train, 8,884 to validate and a gallery of 92,802 to test. Panoramas are north-aligned.

Source: Liu and Li, "Lending Orientation to Neural Networks for Cross-view Geo-localization".
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cvgl_data.dataset import CrossViewDataset
from cvgl_data.readers.layout import Problems, assemble, names_in, one_of, require_folder
from cvgl_data.readers.listing import PANORAMAS, ZENITHS, centered_zeniths, first_size
from cvgl_data.readers.tables import REFERENCES, build_table, pair_table, window_columns

LIST = "ACT_data.mat"
SMALL, TEST = "ANU_data_small", "ANU_data_test"
PANO, AERIAL = "_grdView", "_satView_polish"
FOLDERS = {PANO: "streetview", AERIAL: "satview_polish"}

PROTOCOLS = {"val": ("train", "val"), "test": ("train", "test"), "test-only": ("test",)}
"""Which parts each opens; the last of them is the split ``test``."""

ZOOM, REFERENCE_PX = 21, 1200
"""The images are of zoom 20 at twice the pixels."""

UTM = "EPSG:32755"
"""Zone 55 south, where Canberra is."""

CENTER = (149.13, -35.28)
_RADIUS_DEG = 1.5

_SUFFIXES = (".jpg", ".png", ".jpeg")

Ints = NDArray[np.int64]
Images = dict[str, dict[str, str]]
"""File of each id, relative to the dataset's folder, by kind of image."""


class Places(NamedTuple):
    """What ``ACT_data.mat`` says."""

    ids: list[str]
    utm: NDArray[np.float64]
    """(N, 2), metres as in the file."""
    rows: dict[str, Ints]
    """Rows of the training and validation pairs."""


class Pairs(NamedTuple):
    """The images of one part: row of the place, panorama, aerial image."""

    part: str
    row: Ints
    pano: list[str]
    aerial: list[str]


def read(
    folder: Path,
    *,
    protocol: str = "val",
    incomplete: bool = False,
    validation: float = 0.0,
    neighbors: int = 0,
    verify: bool = False,
) -> CrossViewDataset:
    """Open CVACT.

    Args:
        folder: Holds ``ACT_data.mat`` and the folders of images.
        protocol: ``val`` tests on the 8,884 validation pairs, ``test`` on all images of ``ANU_data_test``;
            ``test-only`` is the latter without training images.
        incomplete: Leave out pairs that lack an image, as the published code does, instead of failing.
        validation: Share of the training queries to hold out; 0 as published.
        neighbors: Length of the lists of the distance map; 0 for none.
        verify: Look at every image.

    Raises:
        DatasetNotFoundError: If this is not the folder of the dataset.
        DatasetError: If files are missing, misplaced, there twice or unreadable; names the first, counts all.
        UnknownNameError: If there is no such protocol.
    """
    parts = PROTOCOLS[one_of("protocol", protocol, PROTOCOLS)]
    require_folder(folder, SMALL if "train" in parts else TEST)
    problems = Problems(folder)
    places = read_places(folder / LIST, problems)
    problems.check()  # nothing below makes sense without the list
    small = _images(folder, SMALL, problems) if "train" in parts else {}
    found = [
        _test(_images(folder, TEST, problems), places, problems, incomplete=incomplete)
        if part == "test"
        else _listed(folder, part, small, places, problems, incomplete=incomplete)
        for part in parts
    ]
    problems.check()
    row = np.concatenate([part.row for part in found])
    lonlat = lonlat_from_utm(places.utm[row], problems, folder / LIST)
    panos = [path for part in found for path in part.pano]
    size = first_size(folder, panos, problems)
    problems.check()

    areas = [f"cvact-{part.part}" for part in found for _ in part.pano]
    splits = ["train" if part.part == "train" else "test" for part in found for _ in part.pano]
    ids = [places.ids[number] for number in row.tolist()]
    common = {"area": areas, "no_redistribute": True, "status": "ok"}
    queries = build_table(
        PANORAMAS,
        len(row),
        {
            "query_id": [f"{name}{PANO}" for name in ids],
            "lon": lonlat[:, 0],
            "lat": lonlat[:, 1],
            "heading_deg": 0.0,
            "source": "cvact",
            "split": splits,
            **dict(zip(ZENITHS, centered_zeniths(*size) if size else (0.0, 180.0), strict=True)),
            **common,
        },
    )
    references = build_table(
        REFERENCES,
        len(row),
        {
            "reference_id": [f"{name}{AERIAL}" for name in ids],
            **window_columns(lonlat[:, 0], lonlat[:, 1], REFERENCE_PX, ZOOM),
            "source": "google",
            **common,
        },
    )
    every = np.arange(len(row))
    center = np.full((len(row), 2), REFERENCE_PX / 2)
    return assemble(
        folder,
        references=references,
        queries=queries,
        pairs=pair_table(
            queries, references, query_row=every, reference_row=every, positive=np.ones(len(row), bool), uv=center
        ),
        reference_files=[path for part in found for path in part.aerial],
        query_files=panos,
        validation=validation,
        neighbors=neighbors,
        verify=verify,
    )


def read_places(path: Path, problems: Problems) -> Places:
    """Return what ``ACT_data.mat`` says; what is wrong with it is noted."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    nothing = Places([], np.empty((0, 2)), {})
    try:
        content = loadmat(io.BytesIO(path.read_bytes()))
    except FileNotFoundError:
        problems.add(path, None, "is missing")
        return nothing
    except NotImplementedError:
        problems.add(path, None, "is a MATLAB file of version 7.3; the published one is older, fetch it again")
        return nothing
    except (OSError, ValueError, TypeError, MatReadError, EOFError) as error:
        problems.add(path, None, f"is no MATLAB file: {error}")
        return nothing
    if missing := [name for name in ("panoIds", "utm", "trainSet", "valSet") if name not in content]:
        problems.add(path, None, f"has no variable '{missing[0]}'")
        return nothing
    ids = [_text(item) for item in np.asarray(content["panoIds"]).reshape(-1)]
    utm = np.asarray(content["utm"], np.float64)
    if utm.shape != (len(ids), 2):
        problems.add(path, None, f"utm has the shape {utm.shape} for {len(ids)} panoIds")
        return nothing
    before: dict[str, int] = {}
    for number, name in enumerate(ids, 1):
        if before.setdefault(name, number) != number:
            problems.add(path, None, f"panoIds {before[name]} and {number} are both '{name}'")
    rows = {part: _numbers(content[f"{part}Set"], f"{part}Ind", len(ids), path, problems) for part in ("train", "val")}
    for both in np.intersect1d(rows["train"], rows["val"]).tolist():
        problems.add(path, None, f"'{ids[both]}' is in trainSet and in valSet")
    return Places(ids, utm, rows)


def lonlat_from_utm(utm: NDArray[np.float64], problems: Problems, path: Path) -> NDArray[np.float64]:
    """Return longitude and latitude, (N, 2), of easting and northing in either order, metres in zone 55 south.

    Which column is which follows from the values: an easting has six digits, a northing in the south seven.
    """
    from pyproj import Transformer

    median = np.nanmedian(utm, axis=0) if len(utm) else np.array([7e5, 6.1e6])
    easting, northing = (0, 1) if median[0] < median[1] else (1, 0)
    lon, lat = Transformer.from_crs(UTM, "EPSG:4326", always_xy=True).transform(utm[:, easting], utm[:, northing])
    lonlat = np.stack([lon, lat], 1)
    with np.errstate(invalid="ignore"):
        near = (np.abs(lonlat - CENTER) < _RADIUS_DEG).all(axis=1)  # false for what is no number, too
    for row in np.flatnonzero(~near).tolist():
        problems.add(path, None, f"utm {utm[row].tolist()} is not near Canberra in zone 55 south")
    return lonlat


def _text(item: Any) -> str:
    """Return a row of a character matrix or a cell, which holds its text in an array of its own."""
    return str(item.reshape(-1)[0] if isinstance(item, np.ndarray) and item.size else item).strip()


def _numbers(struct: Any, field: str, count: int, path: Path, problems: Problems) -> Ints:
    """Return rows from the 1-based numbers in a field of a MATLAB struct; other fields may stand before it."""
    try:
        record = np.asarray(struct).reshape(-1)[0]
        numbers = np.asarray(record[field], np.float64).reshape(-1)
    except (IndexError, KeyError, ValueError, TypeError):
        problems.add(path, None, f"has no numbers '{field}'")
        return np.empty(0, np.int64)
    wrong = ~((numbers >= 1) & (numbers <= count) & (numbers == np.floor(numbers)))
    for number in numbers[wrong].tolist():
        problems.add(path, None, f"{field} has {number:g}, which is not in 1 to {count}")
    rows: Ints = numbers[~wrong].astype(np.int64) - 1
    unique, times = np.unique(rows, return_counts=True)
    for row in unique[times > 1].tolist():
        problems.add(path, None, f"{field} has {row + 1} more than once")
    return rows


def _images(folder: Path, top: str, problems: Problems) -> Images:
    """Return what lies in the folders of both kinds of image; two files of one id are a problem."""
    images: Images = {}
    for ending, name in FOLDERS.items():
        below, found = f"{top}/{name}", images.setdefault(ending, {})
        for file in sorted(names_in(folder / below, problems)):
            stem, dot, suffix = file.rpartition(".")
            if not stem.endswith(ending) or f"{dot}{suffix}".lower() not in _SUFFIXES:
                continue
            key = stem.removesuffix(ending)
            if key in found:
                problems.add(f"{below}/{file}", None, f"is a duplicate of '{found[key]}'; remove one of them")
            found.setdefault(key, f"{below}/{file}")
    return images


def _listed(folder: Path, part: str, images: Images, places: Places, problems: Problems, *, incomplete: bool) -> Pairs:
    """Return the pairs that the list has for a part; unless ``incomplete``, all images must be there."""
    row = places.rows[part]
    names = [places.ids[number] for number in row.tolist()]
    whole = np.array([all(name in images[ending] for ending in FOLDERS) for name in names], bool)
    if not incomplete and not whole.all():
        elsewhere = _images(folder, TEST, Problems(folder))
        for at in np.flatnonzero(~whole).tolist():
            for ending, below in FOLDERS.items():
                if names[at] not in images[ending]:
                    where = f"is misplaced, it lies in {TEST}" if names[at] in elsewhere[ending] else "is missing"
                    file = f"{SMALL}/{below}/{names[at]}{ending}.jpg"
                    problems.add(
                        file, None, f"{where} ({LIST}, {part}Ind {row[at] + 1}); `?incomplete=true` does without"
                    )
    kept = [name for name, is_whole in zip(names, whole.tolist(), strict=True) if is_whole]
    return Pairs(part, row[whole], [images[PANO][name] for name in kept], [images[AERIAL][name] for name in kept])


def _test(images: Images, places: Places, problems: Problems, *, incomplete: bool) -> Pairs:
    """Return the pairs of the test folder, by id; each must have a place and, unless ``incomplete``, two images."""
    row_of = {name: row for row, name in enumerate(places.ids)}
    for ending, other in ((PANO, AERIAL), (AERIAL, PANO)):
        for name in [] if incomplete else sorted(images[ending].keys() - images[other].keys()):
            partner = f"{FOLDERS[other]}/{name}{other}.jpg"
            problems.add(images[ending][name], None, f"has no partner '{partner}'; `?incomplete=true` does without")
    both = sorted(images[PANO].keys() & images[AERIAL].keys())
    for name in both:
        if name not in row_of:
            problems.add(images[PANO][name], None, f"has no position: '{name}' is not in {LIST}")
    known = [name for name in both if name in row_of]
    if not known:
        problems.add(TEST, None, "holds no pairs")
    row = np.array([row_of[name] for name in known], np.int64)
    return Pairs("test", row, [images[PANO][name] for name in known], [images[AERIAL][name] for name in known])
