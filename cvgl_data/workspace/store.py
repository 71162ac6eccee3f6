"""Rows that arrive one by one, kept in a folder of immutable Arrow files that a kill at any time leaves intact."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa

from cvgl_data.arrow_files import BatchWriter, damaged, open_arrow, writing_to
from cvgl_data.columns import column
from cvgl_data.errors import WorkspaceError
from cvgl_data.types import Outcome

FLUSH_ROWS = 64
FLUSH_BYTES = 4 * 1024 * 1024
FLUSH_S = 1.0
"""A new file is begun when one of these is reached; that waits for the one before, so no more than twice as much is
in memory."""

SMALL_BYTES = 16 * 1024 * 1024
MOST_SMALL = 64
"""More files smaller than this are put together when the store is opened, into files of about twice this size."""

_OPEN_PARTS = 64


class Store:
    """Rows that arrive one by one, kept in a folder of immutable Arrow files; use as a context manager or `close`.

    A thread writes them, so that whoever appends need not wait for a disk that keeps up. When the process is killed,
    the rows of the last `FLUSH_S` seconds of appending are lost, at most twice `FLUSH_ROWS`. Images stay on disk: only
    keys and outcomes are held in memory.

    Args:
        folder: Created if it is missing.
        schema: Columns of a row, among them ``key``, a string ``status`` (an `Outcome`) and a binary ``image``.
        key: Name of the column that identifies a row; of several rows with one key the last counts.

    Raises:
        WorkspaceError: If the folder holds rows of another schema, or cannot be written.
        DatasetError: If a file is damaged.
    """

    def __init__(self, folder: Path, schema: pa.Schema, key: str) -> None:
        self.folder = folder
        self.schema = schema
        self._key = key
        self._names = schema.names
        self._where: dict[str, int] = {}  # part << 32 | row: one small object per key
        self._failed: dict[str, Outcome] = {}
        self._pending: list[tuple[Any, ...]] = []
        self._pending_bytes = 0
        self._flushed = time.monotonic()
        self._open: OrderedDict[int, pa.RecordBatch] = OrderedDict()
        self._writer = BatchWriter()
        self._thread: ThreadPoolExecutor | None = None
        self._writing: Future[None] | None = None
        with writing_to(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for leftover in sorted(folder.glob("*.part")):
                leftover.unlink()
        self._next_part = 0
        paths = sorted(folder.glob("part-*.arrow"))
        for path in self._put_together(paths):
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
        """Add a row; it is on disk soon, or after `flush`.

        Raises:
            WorkspaceError: If rows that were added before cannot be written.
        """
        self._place(row[self._key], row["status"], self._next_part << 32 | len(self._pending))
        self._pending.append(tuple(map(row.get, self._names)))  # here, where the row is still in the cache
        self._pending_bytes += len(row["image"] or b"")
        is_late = time.monotonic() - self._flushed >= FLUSH_S
        if len(self._pending) >= FLUSH_ROWS or self._pending_bytes >= FLUSH_BYTES or is_late:
            self._begin_part()

    def flush(self) -> None:
        """Return once all rows are in files that survive a power cut.

        Raises:
            WorkspaceError: If they cannot be written; those in earlier files are kept.
        """
        self._begin_part()
        self._wait()

    def close(self) -> None:
        """Flush, and let go of the files."""
        try:
            self.flush()
        finally:
            if self._thread is not None:
                self._thread.shutdown()
                self._thread = None
            self._open.clear()

    def _begin_part(self) -> None:
        """Hand the rows in memory to the thread, which writes one file at a time."""
        self._wait()
        self._flushed = time.monotonic()
        if not self._pending:
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "store")
        self._writing = self._thread.submit(self._write, self._path(self._next_part), self._pending)
        self._next_part += 1
        self._pending = []
        self._pending_bytes = 0

    def _write(self, path: Path, rows: list[tuple[Any, ...]]) -> None:
        columns = zip(*rows, strict=True)
        arrays = [column(values, kind) for values, kind in zip(columns, self.schema.types, strict=True)]
        self._writer.write(path, pa.RecordBatch.from_arrays(arrays, schema=self.schema))

    def _wait(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _put_together(self, paths: list[Path]) -> list[Path]:
        """Rewrite runs of many small files as fewer large ones; returns the files that there are then.

        A merged file takes the number of the last it replaces, so that later rows stay later. Killed on the way, its
        rows are in two files, which does no harm.
        """
        sizes = {path: path.stat().st_size for path in paths}
        if sum(size < SMALL_BYTES for size in sizes.values()) <= MOST_SMALL:
            return paths
        merged: list[Path] = []
        run: list[Path] = []
        for path in [*paths, None]:
            if path is not None and sizes[path] < SMALL_BYTES and sum(map(sizes.__getitem__, run)) < 2 * SMALL_BYTES:
                run.append(path)
                continue
            if len(run) > 1:
                self._merge(run)
            merged += run[-1:]
            run = [path] if path is not None and sizes[path] < SMALL_BYTES else []
            if path is not None and not run:
                merged.append(path)
        return merged

    def _merge(self, paths: list[Path]) -> None:
        for path in paths:
            self._check_columns(path, open_arrow(path))
        batches = [self._read(path, open_arrow(path)) for path in paths]
        whole = pa.Table.from_batches(batches, schema=self.schema).combine_chunks().to_batches()[0]
        with writing_to(self.folder):
            self._writer.write(paths[-1], whole)
            for path in paths[:-1]:
                path.unlink()

    def is_done(self, key: str, retry_failed: bool = False) -> bool:
        """Whether a key need not be asked for again: it succeeded, or failed for good.

        Args:
            key: Which one.
            retry_failed: Ask again for those that failed for good as well.
        """
        outcome = self._failed.get(key)
        if outcome is None:
            return key in self._where
        return not (retry_failed or outcome.is_transient)

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

    def _index(self, part: int, found: Sequence[tuple[str, str]]) -> None:
        for row, (key, status) in enumerate(found):
            self._place(key, status, part << 32 | row)

    def _place(self, key: str, status: str, where: int) -> None:
        self._where[key] = where
        if status != Outcome.OK.value:
            self._failed[key] = Outcome(status)
        elif self._failed:
            self._failed.pop(key, None)

    def _keys_of(self, path: Path) -> list[tuple[str, str]]:
        """Read the two small columns of a file; the images' pages are never touched."""
        reader = open_arrow(path)
        self._check_columns(path, reader)
        batch = self._read(path, reader)
        return list(zip(batch[self._key].to_pylist(), batch["status"].to_pylist(), strict=True))

    def _check_columns(self, path: Path, reader: Any) -> None:
        if reader.schema.names != self.schema.names or reader.schema.types != self.schema.types:
            raise WorkspaceError(
                f"'{path}' holds other columns than this version of cvgl writes; "
                "choose another folder, or pass --overwrite"
            )

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
            raise damaged(path, error) from None

    def _path(self, number: int) -> Path:
        return self.folder / f"part-{number:06d}.arrow"
