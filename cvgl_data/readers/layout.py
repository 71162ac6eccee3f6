"""What the readers of published layouts share: names in folders, problems with a place, images in files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from cvgl_data import schema
from cvgl_data.dataset import CrossViewDataset
from cvgl_data.errors import DatasetError, DatasetNotFoundError, RecipeError, UnknownNameError
from cvgl_data.readers.holdout import hold_out
from cvgl_data.registry import did_you_mean

_AT_ONCE = 16_384

_NAMED = 5
"""Problems that one message names; the others are counted."""


def one_of(option: str, value: str, known: Iterable[str]) -> str:
    """Return the value of an option, or raise `UnknownNameError` with the nearest of the known ones."""
    names = list(known)
    if value not in names:
        raise UnknownNameError(f"option '{option}' has no value '{value}'{did_you_mean(value, names)}")
    return value


def share(option: str, value: float) -> float:
    """Return the value of an option that is a share, or raise `RecipeError` unless it is in [0, 1)."""
    if not 0 <= value < 1:
        raise RecipeError(f"option '{option}' is {value:g}; it must be in [0, 1)")
    return value


class Problems:
    """What is wrong with the files of a layout, told all at once.

    Args:
        root: Folder of the dataset; files are named relative to it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.count = 0
        self._first: list[str] = []

    def add(self, file: str | Path, line: int | None, what: str) -> None:
        """Note one problem.

        Args:
            file: Relative to the root, or below it.
            line: Number of the line, from 1; None for the file itself.
            what: What is wrong, and what to do where that is not plain.
        """
        self.count += 1
        if len(self._first) < _NAMED:
            path = Path(file)
            name = path.relative_to(self.root) if path.is_relative_to(self.root) else path
            self._first.append(f"{name.as_posix()}{'' if line is None else f', line {line}'}: {what}")

    def check(self) -> None:
        """Raise `DatasetError` that names the first problems and the count of all, if there are any."""
        if self.count:
            more = self.count - len(self._first)
            lines = [*self._first, *([f"and {more:,} more"] if more else [])]
            problems = "1 problem" if self.count == 1 else f"{self.count:,} problems"
            raise DatasetError(f"'{self.root}' has {problems}:\n  " + "\n  ".join(lines))


class Line(NamedTuple):
    """One line of a text file that is not blank."""

    number: int
    """From 1."""
    text: str


def read_lines(path: Path, problems: Problems) -> list[Line]:
    """Return the lines of a text file that are not blank; a file that is missing or no text is a problem."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        problems.add(path, None, "is missing")
        return []
    except (OSError, UnicodeDecodeError) as error:
        problems.add(path, None, f"cannot be read: {error}")
        return []
    return [Line(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]


def names_in(folder: Path, problems: Problems | None = None) -> frozenset[str]:
    """Return the names of what lies in a folder, from one scan of it.

    Args:
        folder: Not searched below.
        problems: Where a missing folder is noted; without it one counts as empty.
    """
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries)
    except OSError as error:
        if problems is not None:
            missing = isinstance(error, FileNotFoundError)
            problems.add(folder, None, "there is no such folder" if missing else f"cannot be read: {error}")
        return frozenset()


def require_folder(root: Path, *alternatives: str) -> str:
    """Return the first of some folders that is there.

    Raises:
        DatasetNotFoundError: If none is; names them.
    """
    for name in alternatives:
        if (root / name).is_dir():
            return name
    wanted = " or ".join(f"'{name}'" for name in alternatives)
    raise DatasetNotFoundError(f"'{root}' has no folder {wanted}; is it the dataset's top folder?")


class FolderImages(Mapping[str, bytes]):
    """Encoded images by id, each in a file of its own, read when asked for.

    Copies of this object (pickled for a worker) carry no table of rows; each process makes its own at the first use.

    Args:
        root: Folder of the dataset.
        ids: Ids, each once.
        paths: Path of each image relative to the root, with forward slashes; absolute ones are taken as they are.
    """

    def __init__(
        self, root: Path, ids: Sequence[str] | pa.ChunkedArray, paths: Sequence[str] | pa.Array | pa.ChunkedArray
    ) -> None:
        self.root = root
        self._ids, self._paths = _strings(ids), _strings(paths)
        if len(self._ids) != len(self._paths):
            raise DatasetError(f"{len(self._ids)} images have {len(self._paths)} files")
        self._rows: dict[str, int] = {}

    def path(self, key: str) -> Path:
        """Return where an image lies; raises KeyError if there is none of that id."""
        if not self._rows:
            self._rows = {name: row for row, name in enumerate(self._ids.to_pylist())}
        return self.root / str(self._paths[self._rows[key]].as_py())

    def view(self, key: str) -> memoryview:
        """Return the content of an image's file.

        Raises:
            KeyError: If there is no image of that id.
            DatasetError: If the file cannot be read.
        """
        return memoryview(self[key])

    def __getitem__(self, key: str) -> bytes:
        path = self.path(key)
        try:
            return path.read_bytes()
        except OSError as error:
            raise DatasetError(f"'{path}' cannot be read: {error.strerror or error}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids.to_pylist())

    def __len__(self) -> int:
        return len(self._ids)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_rows": {}}


def assemble(
    root: Path,
    *,
    references: pa.Table,
    queries: pa.Table,
    pairs: pa.Table,
    reference_files: Sequence[str] | pa.Array,
    query_files: Sequence[str] | pa.Array,
    validation: float = 0.0,
    neighbors: int = 0,
    verify: bool = False,
) -> CrossViewDataset:
    """Return the dataset of a layout: what every reader ends with.

    Args:
        root: Folder of the dataset.
        references: Schema `REFERENCES`, R rows.
        queries: Schema `QUERIES`, Q rows.
        pairs: As `pair_table` gives them.
        reference_files: (R,) path of each reference's image, see `FolderImages`.
        query_files: (Q,) likewise.
        validation: Share of the training queries to hold out, see `cvgl_data.readers.holdout`.
        neighbors: Length of the lists of the distance map; 0 leaves it empty, and training without it.
        verify: Whether to look at every image.

    Raises:
        DatasetError: If two images have one id, or an image is none; names them and counts all.
        RecipeError: If ``validation`` is no share.
    """
    share("validation", validation)
    ids = _strings(references["reference_id"], queries["query_id"])
    images = FolderImages(root, ids, _strings(reference_files, query_files))
    problems = Problems(root)
    for name in _repeated(ids):
        problems.add(images.path(name), None, f"several images have the id '{name}'")
    if verify:
        verify_images(images, problems)
    problems.check()
    queries, pairs = hold_out(queries, pairs, references, validation)
    return CrossViewDataset(
        references=references,
        queries=queries,
        pairs=pairs,
        distance_map=_distance_map(references, neighbors),
        images=images,
    )


def verify_images(images: FolderImages, problems: Problems) -> None:
    """Note every file that is no whole image; reads all of them."""
    from cvgl_data.errors import FetchError
    from cvgl_data.images import image_size

    for key in images:
        try:
            image_size(images[key])
        except (DatasetError, FetchError) as error:
            problems.add(images.path(key), None, str(error))


def _distance_map(references: pa.Table, neighbors: int) -> pa.Table:
    if not neighbors:
        return schema.DISTANCE_MAP.empty_table()
    from cvgl_data.neighbors import distance_map  # scipy, which training without a distance map does not need

    return distance_map(references, neighbors)


def _strings(*values: Sequence[str] | pa.Array | pa.ChunkedArray) -> pa.ChunkedArray:
    """Return text one after the other, without copying what is in arrays."""
    chunks: list[pa.Array] = []
    for part in values:
        if isinstance(part, pa.ChunkedArray):
            chunks += part.chunks
        else:
            chunks.append(part if isinstance(part, pa.Array) else pa.array(part, pa.string()))
    return pa.chunked_array(chunks, pa.string())


def _repeated(ids: pa.ChunkedArray) -> list[str]:
    """Return what is there more than once; piece by piece, as a table of all values would take as much again."""
    order = pc.sort_indices(ids)
    found: list[str] = []
    for start in range(0, len(order), _AT_ONCE):
        piece = ids.take(order[start : start + _AT_ONCE + 1]).combine_chunks()
        found += piece[1:].filter(pc.equal(piece[1:], piece[:-1])).to_pylist()
    return list(dict.fromkeys(found))
