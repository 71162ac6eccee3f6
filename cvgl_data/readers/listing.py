"""Files that a layout lists: whether they are there, and how much of the sphere a panorama of one shows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

import pyarrow as pa
from PIL import Image, UnidentifiedImageError

from cvgl_data.errors import DatasetError
from cvgl_data.readers.layout import Problems, names_in
from cvgl_data.readers.tables import QUERIES

ZENITHS = ("zenith_top_deg", "zenith_bottom_deg")
"""Further columns of queries that may be partial panoramas: angle from the zenith to the upper and the lower edge.

0 and 180 for a whole one; the two are the ``zenith_deg`` that top views take.
"""

PANORAMAS = pa.schema([*QUERIES, *((name, pa.float64()) for name in ZENITHS)], metadata=QUERIES.metadata)
"""Columns of such queries; ``heading_deg`` is that of the centre column as ever."""


class Files:
    """Which files are below a folder; each folder is scanned once, when it is first asked about.

    Args:
        root: Folder of the dataset.
        problems: Where missing files are noted.
    """

    def __init__(self, root: Path, problems: Problems) -> None:
        self.root = root
        self._problems = problems
        self._names: dict[str, frozenset[str]] = {}

    def names(self, folder: str) -> frozenset[str]:
        """Return the names in a folder, given relative to the root; none if there is no such folder."""
        if folder not in self._names:
            self._names[folder] = names_in(self.root / folder)
        return self._names[folder]

    def require(self, path: str, listed_in: Path, line: int | None, searched: Sequence[str] = ()) -> bool:
        """Return whether a listed file is there; if not, note it with where it lies instead.

        Args:
            path: Relative to the root, with forward slashes.
            listed_in: The list that names it.
            line: Line of the list.
            searched: Folders in which a misplaced file may lie.
        """
        folder, _, name = path.rpartition("/")
        if name in self.names(folder):
            return True
        if not self.names(folder):
            self._problems.add(listed_in, line, f"'{path}' is missing: there is no folder '{folder}', or it is empty")
            return False
        found = next((other for other in searched if other != folder and name in self.names(other)), None)
        where = "is missing" if found is None else f"is misplaced, it lies in '{found}'"
        self._problems.add(listed_in, line, f"'{path}' {where}")
        return False


class Once:
    """Note what is listed twice.

    Args:
        problems: Where repeats are noted.
    """

    def __init__(self, problems: Problems) -> None:
        self._problems = problems
        self._seen: dict[str, str] = {}

    def see(self, item: str, listed_in: Path, line: int, what: str = "") -> bool:
        """Return whether the item is new; if not, note where it was before.

        Args:
            item: What must be listed once only.
            listed_in: The list.
            line: Line of the list.
            what: How a message calls the item; default: the item itself.
        """
        before = self._seen.setdefault(item, f"{listed_in.name}, line {line}")
        if before == f"{listed_in.name}, line {line}":
            return True
        self._problems.add(listed_in, line, f"'{what or item}' is a duplicate of {before}")
        return False


def first_size(root: Path, paths: Iterable[str], problems: Problems) -> tuple[int, int] | None:
    """Return width and height of the first of some images; one that cannot be read is a problem."""
    for path in paths:
        try:
            with Image.open(root / path) as opened:
                return opened.size
        except UnidentifiedImageError:
            problems.add(path, None, "is not an image, or cut short")
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            problems.add(path, None, f"cannot be read: {getattr(error, 'strerror', None) or error}")
        return None
    return None


def stem_of(path: str) -> str:
    """Return the name of a file without folder and suffix."""
    return PurePosixPath(path).stem


def centered_zeniths(width: int, height: int) -> tuple[float, float]:
    """Return the zenith angles of the edges of a panorama of 360 degrees, cut alike above and below.

    Args:
        width: Of the image, which shows the whole horizon.
        height: In the same pixels, which are square.

    Raises:
        DatasetError: If the image is higher than half its width.
    """
    half_deg = 180.0 * height / width
    if half_deg > 90.0 + 360.0 / width:  # one row more than 2:1 is a matter of rounding
        raise DatasetError(f"an image of {width}x{height} pixels is no panorama of 360 degrees")
    return max(90.0 - half_deg, 0.0), min(90.0 + half_deg, 180.0)
