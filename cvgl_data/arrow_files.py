"""Arrow files that appear complete and durable or not at all, and are opened without being read."""

from __future__ import annotations

import errno
import mmap
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa

from cvgl_data.errors import CvglError, DatasetError, WorkspaceError

_NOT_HERE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG)
"""More room on the disk does not help against these."""
_BLOCK = 4096
"""Direct writes begin and end at multiples of this."""


class BatchWriter:
    """Writes one record batch after the other, each to a file of its own.

    Where the system can, the bytes go past its page cache: they are not read again soon, and copying them there costs
    more processor time than everything else that is done to a fetched tile but the request itself.
    """

    def __init__(self) -> None:
        self._memory: mmap.mmap | None = None  # kept: fresh pages are slow

    def write(self, path: Path, batch: pa.RecordBatch) -> None:
        """Let an Arrow file of one batch appear under this name, see `replace_file`.

        Raises:
            WorkspaceError: If it cannot be written.
        """
        replace_file(path, lambda part: self._write(part, batch))

    def _write(self, path: Path, batch: pa.RecordBatch) -> None:
        size = 65536 + 4096 * batch.num_columns + pa.ipc.get_record_batch_size(batch)
        if self._memory is None or len(self._memory) < size:
            self._memory = mmap.mmap(-1, -(-size // _BLOCK) * _BLOCK)
        view = memoryview(self._memory)
        sink = pa.FixedSizeBufferWriter(pa.py_buffer(view))
        with pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)
        length = sink.tell()
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0)
        try:
            file = os.open(path, flags | getattr(os, "O_DIRECT", 0), 0o666)
            try:
                _write_all(file, view[: -(-length // _BLOCK) * _BLOCK])
                os.ftruncate(file, length)
            finally:
                os.close(file)
        except OSError as error:
            if error.errno != errno.EINVAL:  # a file system without direct writes
                raise
            path.write_bytes(view[:length])


def _write_all(file: int, view: memoryview) -> None:
    while view:
        view = view[os.write(file, view) :]


def open_arrow(path: Path) -> Any:
    """Return a reader of a memory-mapped Arrow file.

    Raises:
        DatasetError: If it is damaged.
    """
    try:
        return pa.ipc.open_file(pa.memory_map(str(path)))
    except (pa.ArrowInvalid, OSError) as error:
        raise damaged(path, error) from None


def replace_file(final: Path, write: Callable[[Path], None]) -> None:
    """Let a file appear under its name complete and durable, or not at all.

    Raises:
        WorkspaceError: If the disk is full, say, or the name is a folder's; what was under the name stays.
    """
    if final.is_dir():
        raise WorkspaceError(f"'{final}' is a folder; name a file")
    temporary = final.with_name(final.name + ".part")
    with writing_to(final.parent):
        try:
            write(temporary)
            with temporary.open("rb+") as written:
                os.fsync(written.fileno())
            os.replace(temporary, final)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)  # half a file takes the room that is missing
            raise
        if sys.platform != "win32":  # which cannot open folders
            folder = os.open(final.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Say what is wrong with a folder instead of raising `OSError`."""
    try:
        yield
    except OSError as error:
        if isinstance(error, CvglError):  # some are both
            raise
        reason = error.strerror or error
        remedy = (
            "name another place, or allow it to be written" if error.errno in _NOT_HERE else "make room and run again"
        )
        text = f"'{folder}' cannot be written ({reason}); what is there is kept: {remedy}"
        raise WorkspaceError(text) from None


def damaged(path: Path, error: Exception) -> DatasetError:
    """Return the error that names a damaged file."""
    return DatasetError(f"'{path}' is damaged ({error}); delete it to have its rows made again")
