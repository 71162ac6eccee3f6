"""Rows that arrive one by one, kept in a folder of immutable Arrow files that a kill at any time leaves intact."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa

from cvgl_data.errors import DatasetError, WorkspaceError
from cvgl_data.types import Outcome

FLUSH_ROWS = 128
FLUSH_BYTES = 16 * 1024 * 1024
FLUSH_S = 1.0
_OPEN_PARTS = 64


class Store:
    """Rows that arrive one by one, kept in a folder of immutable Arrow files; use as a context manager or `close`.

    At most `FLUSH_ROWS` rows or the rows of `FLUSH_S` seconds are lost when the process is killed. Images stay on disk:
    only keys and outcomes are held in memory.

    Args:
        folder: Created if it is missing.
        schema: Columns of a row, among them ``key``, a string ``status`` (an `Outcome`) and a binary ``image``.
        key: Name of the column that identifies a row; of several rows with one key the last counts.

    Raises:
        WorkspaceError: If the folder holds rows of another schema.
        DatasetError: If a file is damaged.
    """

    def __init__(self, folder: Path, schema: pa.Schema, key: str) -> None:
        self.folder = folder
        self.schema = schema
        self._key = key
        self._where: dict[str, int] = {}  # part << 32 | row: one small object per key
        self._failed: dict[str, Outcome] = {}
        self._pending: list[Mapping[str, Any]] = []
        self._pending_bytes = 0
        self._flushed = time.monotonic()
        self._open: OrderedDict[int, pa.RecordBatch] = OrderedDict()
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in sorted(folder.glob("*.part")):
            leftover.unlink()
        self._next_part = 0
        for path in sorted(folder.glob("part-*.arrow")):
            number = int(path.stem.removeprefix("part-"))
            self._index(number, self._keys_of(path))
            self._next_part = number + 1

    def __enter__(self) -> Store:
        """Return the store itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write what is still in memory."""
        self.close()

    def __len__(self) -> int:
        """Return the number of keys."""
        return len(self._where)

    def __contains__(self, key: object) -> bool:
        """Whether there is a row with this key."""
        return key in self._where

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row; it is on disk after the next flush, which is at most `FLUSH_S` seconds of appending away."""
        self._index(self._next_part, [(row[self._key], row["status"])], first_row=len(self._pending))
        self._pending.append(row)
        self._pending_bytes += len(row["image"] or b"")
        is_late = time.monotonic() - self._flushed >= FLUSH_S
        if len(self._pending) >= FLUSH_ROWS or self._pending_bytes >= FLUSH_BYTES or is_late:
            self.flush()

    def flush(self) -> None:
        """Write the rows in memory to a new file that survives a power cut."""
        self._flushed = time.monotonic()
        if not self._pending:
            return
        batch = pa.RecordBatch.from_pylist(self._pending, schema=self.schema)
        final = self._path(self._next_part)

        def write(path: Path) -> None:
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, self.schema) as writer:
                writer.write_batch(batch)

        replace_file(final, write)
        self._next_part += 1
        self._pending = []
        self._pending_bytes = 0

    def close(self) -> None:
        """Flush, and let go of the files."""
        self.flush()
        self._open.clear()

    def done(self, retry_failed: bool = False) -> set[str]:
        """Return the keys that need not be asked for again: those that succeeded or failed for good.

        Args:
            retry_failed: Ask again for those that failed for good as well.
        """
        again = {key for key, outcome in self._failed.items() if retry_failed or outcome.is_transient}
        return self._where.keys() - again

    def outcome(self, key: str) -> Outcome:
        """Return the outcome of the last row with this key.

        Raises:
            KeyError: If there is none.
        """
        if key not in self._where:
            raise KeyError(key)
        return self._failed.get(key, Outcome.OK)

    def keys(self, *outcomes: Outcome) -> list[str]:
        """Return the keys with one of the outcomes (default: all keys), sorted."""
        if not outcomes:
            return sorted(self._where)
        return sorted(key for key in self._where if self._failed.get(key, Outcome.OK) in outcomes)

    def outcomes(self) -> Counter[Outcome]:
        """Return how many keys have each outcome."""
        counts = Counter(self._failed.values())
        counts[Outcome.OK] = len(self._where) - counts.total()
        return +counts

    def batches(self, keys: Sequence[str] | None = None, max_rows: int = 64) -> Iterator[pa.RecordBatch]:
        """Yield the rows of the given keys in the given order (default: all, sorted), a few at a time.

        Raises:
            KeyError: If there is no row with a key.
            DatasetError: If a file is damaged.
        """
        yield from self._gather(keys, max_rows, self.schema.names)

    def rows(self, keys: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
        """Yield single rows; otherwise as `batches`."""
        for batch in self.batches(keys):
            yield from batch.to_pylist()

    def table(self, keys: Sequence[str] | None = None) -> pa.Table:
        """Return all columns but ``image``; otherwise as `batches`."""
        names = [name for name in self.schema.names if name != "image"]
        fields = pa.schema([self.schema.field(name) for name in names], metadata=self.schema.metadata)
        return pa.Table.from_batches(self._gather(keys, 4096, names), schema=fields)

    def _gather(self, keys: Sequence[str] | None, max_rows: int, names: list[str]) -> Iterator[pa.RecordBatch]:
        self.flush()
        keys = self.keys() if keys is None else keys
        for start in range(0, len(keys), max_rows):
            places = [self._where[key] for key in keys[start : start + max_rows]]
            by_part: dict[int, list[int]] = {}
            for place in places:
                by_part.setdefault(place >> 32, []).append(place & 0xFFFFFFFF)
            taken = pa.Table.from_batches(
                [self._part(part).select(names).take(pa.array(rows)) for part, rows in by_part.items()]
            )
            order = {
                (part << 32 | row): index
                for index, (part, row) in enumerate((p, r) for p, rows in by_part.items() for r in rows)
            }
            ordered = taken.take(pa.array([order[place] for place in places])).combine_chunks()
            yield from ordered.to_batches()

    def _index(self, part: int, found: Sequence[tuple[str, str]], first_row: int = 0) -> None:
        for row, (key, status) in enumerate(found, first_row):
            self._where[key] = part << 32 | row
            if status == Outcome.OK:
                self._failed.pop(key, None)
            else:
                self._failed[key] = Outcome(status)

    def _keys_of(self, path: Path) -> list[tuple[str, str]]:
        """Read the two small columns of a file; the images' pages are never touched."""
        reader = open_arrow(path)
        if reader.schema.names != self.schema.names or reader.schema.types != self.schema.types:
            raise WorkspaceError(
                f"'{path}' holds other columns than this version of cvgl writes; "
                "choose another folder, or pass --overwrite"
            )
        batch = self._read(path, reader)
        return list(zip(batch[self._key].to_pylist(), batch["status"].to_pylist(), strict=True))

    def _part(self, number: int) -> pa.RecordBatch:
        batch = self._open.get(number)
        if batch is None:
            path = self._path(number)
            batch = self._open[number] = self._read(path, open_arrow(path))
            if len(self._open) > _OPEN_PARTS:
                self._open.popitem(last=False)
        self._open.move_to_end(number)
        return batch

    def _read(self, path: Path, reader: Any) -> pa.RecordBatch:
        try:
            return reader.get_batch(0)
        except (pa.ArrowInvalid, OSError) as error:
            raise _damaged(path, error) from None

    def _path(self, number: int) -> Path:
        return self.folder / f"part-{number:06d}.arrow"


def open_arrow(path: Path) -> Any:
    """Return a reader of a memory-mapped Arrow file.

    Raises:
        DatasetError: If it is damaged.
    """
    try:
        return pa.ipc.open_file(pa.memory_map(str(path)))
    except (pa.ArrowInvalid, OSError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> DatasetError:
    return DatasetError(f"'{path}' is damaged ({error}); delete it to have its rows made again")


def replace_file(final: Path, write: Callable[[Path], None]) -> None:
    """Let a file appear under its name complete and durable, or not at all."""
    temporary = final.with_name(final.name + ".part")
    write(temporary)
    with temporary.open("rb+") as written:
        os.fsync(written.fileno())
    os.replace(temporary, final)
    if sys.platform != "win32":  # which cannot open folders
        folder = os.open(final.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
