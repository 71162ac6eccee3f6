"""Which panoramas to fetch: lists of ids from files, and thinning that depends on a seed and never on an order."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from cvgl_data import geo
from cvgl_data.errors import RecipeError
from cvgl_data.types import PanoramaRef


def choose(
    refs: Iterable[PanoramaRef],
    *,
    spacing_m: float = 0.0,
    limit: int = 0,
    captured_after: str = "",
    captured_before: str = "",
    seed: int = 0,
) -> list[PanoramaRef]:
    """Thin panoramas out; which ones stay depends on their ids and the seed, not on their order.

    Args:
        refs: Candidates; of equal ids the first counts.
        spacing_m: Keep only panoramas at least this far apart, as many as fit greedily; 0 keeps all.
        limit: Keep at most this many; 0 keeps all.
        captured_after: Keep those of this day and later, ISO 8601 (``2021`` and ``2021-06`` mean their first day).
        captured_before: Keep those before this day. With either bound, panoramas without a date are left out; one of
            which only the month or year is known is kept if a day of it is within the bounds.
        seed: Of the random order in which they are tried.

    Returns:
        Sorted by id.
    """
    by_id: dict[str, PanoramaRef] = {}
    for ref in refs:
        if not _is_within(ref.captured, captured_after, captured_before):
            continue
        by_id.setdefault(ref.pano_id, ref)
    tried = sorted(by_id.values(), key=lambda ref: _draw(seed, ref.pano_id))
    if spacing_m > 0 and tried:
        xyz = geo.EARTH_RADIUS_M * geo.unit_sphere([ref.lon for ref in tried], [ref.lat for ref in tried])
        tried = [tried[index] for index in _spaced(xyz, spacing_m)]
    kept = tried[:limit] if limit else tried
    return sorted(kept, key=lambda ref: ref.pano_id)


def _is_within(captured: str, after: str, before: str) -> bool:
    """Whether a day on which something may have been captured lies within the bounds, as for `choose`."""
    if not (after or before):
        return True
    # ISO 8601 dates compare as text, a month with a day by the part that both have.
    is_late = captured[: len(after)] >= after[: len(captured)]
    return bool(captured) and is_late and (not before or captured < before)


def choose_ids(pano_ids: Iterable[str], limit: int, seed: int = 0) -> list[str]:
    """Return at most ``limit`` ids (0: all), drawn by the seed, sorted."""
    drawn = sorted(set(pano_ids), key=lambda pano_id: _draw(seed, pano_id))
    return sorted(drawn[:limit] if limit else drawn)


def read_pano_ids(path: str | Path) -> list[str]:
    """Return the panorama ids in a file, in its order, each once.

    Args:
        path: ``.csv`` or ``.parquet`` with a column ``pano_id``, or any other text file with one id per line and
            comments after ``#``.

    Raises:
        RecipeError: If the file is missing, damaged or without ids.
    """
    path = Path(path)
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq  # 20 MB that fetching tiles can do without

            found = [str(value) for value in pq.read_table(path.absolute(), columns=["pano_id"])["pano_id"].to_pylist()]
        elif path.suffix == ".csv":
            with path.open(encoding="utf-8-sig", newline="") as lines:
                found = [row["pano_id"] for row in csv.DictReader(lines)]
        else:
            listed = path.read_text(encoding="utf-8-sig").splitlines()
            found = [line for line in listed if not line.lstrip().startswith("#")]
    except FileNotFoundError:
        raise RecipeError(f"there is no file of panorama ids '{path}'") from None
    except (KeyError, pa.ArrowInvalid, OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"'{path}' cannot be read as panorama ids (column 'pano_id'): {error}") from None
    ids = list(dict.fromkeys(stripped for value in found if value and (stripped := value.strip())))
    if not ids:
        raise RecipeError(f"'{path}' holds no panorama ids")
    return ids


def _draw(seed: int, pano_id: str) -> bytes:
    """Return where an id comes in the random order of a seed."""
    return hashlib.sha256(f"{seed}:{pano_id}".encode()).digest()


def _spaced(xyz: geo.Floats, spacing_m: float) -> Iterator[int]:
    """Yield the rows of an (N, 3) array of points in metres that lie at least ``spacing_m`` from all yielded before.

    Points are kept in cubes of that side, so only the 27 cubes round a point can hold one that is too near.
    """
    cubes: dict[tuple[int, int, int], list[int]] = {}
    for index, (i, j, k) in enumerate(np.floor(xyz / spacing_m).astype(np.int64).tolist()):
        near = [
            other
            for a in (i - 1, i, i + 1)
            for b in (j - 1, j, j + 1)
            for c in (k - 1, k, k + 1)
            for other in cubes.get((a, b, c), ())
        ]
        if not near or np.sum((xyz[near] - xyz[index]) ** 2, axis=1).min() >= spacing_m**2:
            cubes.setdefault((i, j, k), []).append(index)
            yield index
