"""The ``.cvgl`` folder inside a dataset folder: what a build has fetched and computed, safe against kills at any time.

```
.cvgl/recipe.toml              the resolved recipe all of it belongs to
.cvgl/lock                     held by the one process at work
.cvgl/<name>.arrow             one table per finished step
.cvgl/<store>/part-000000.arrow  rows fetched so far, immutable once they bear this name
```
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import tomli_w

from cvgl_data.arrow_files import open_arrow, replace_file
from cvgl_data.errors import WorkspaceError
from cvgl_data.recipe import differences
from cvgl_data.workspace.store import Store

logger = logging.getLogger(__name__)

_TABLES = ("references", "queries", "pairs", "distance_map", "references_meta", "queries_meta", "quality", "failures")
_RESIZED = re.compile(r"references_\d+|queries_\d+x\d+")
"""Folders below ``data`` whose files are ours to delete; anything else there is the user's."""


REPORT = Path("report", "index.html")
"""Where the page about a dataset lies in its folder."""

REVISABLE = ("quality", "curation", "distance_map", "split", "pack")
"""Tables of a recipe that decide nothing about what is fetched: a build goes on with others than it began with."""


class Workspace:
    """State of one build.

    Args:
        folder: The dataset folder; nothing is touched before `open`.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.state = self.folder / ".cvgl"
        self._lock: int | None = None

    def recipe_tables(self) -> dict[str, Any] | None:
        """Return the recipe that the folder belongs to; ``None`` if it holds no build.

        Raises:
            WorkspaceError: If the folder is a file, or the saved recipe cannot be read.
        """
        if self.folder.is_file():
            raise WorkspaceError(f"'{self.folder}' is a file, not a dataset folder")
        return _read_recipe(self.state / "recipe.toml")

    def open(self, recipe_tables: Mapping[str, Any], overwrite: bool = False, *, save: bool = True) -> Workspace:
        """Begin a build in this folder, or go on with the one it holds, and lock it against other processes.

        Args:
            recipe_tables: The resolved recipe.
            overwrite: Delete the build that the folder holds, of this recipe too (never a folder that is not ours).
            save: Keep the recipe at once; otherwise `save_recipe` does, when something has come of it.

        Raises:
            WorkspaceError: If the folder holds something else, a build of another recipe (see ``REVISABLE``), is in
                use, or cannot be written.
        """
        text = tomli_w.dumps(dict(recipe_tables))
        try:
            self._refuse_strangers()
            self.state.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.state / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            reason = error.strerror or error
            raise WorkspaceError(f"cannot work in '{self.folder}' ({reason}); choose another folder") from None
        try:
            self._acquire(self._lock)
            self._adopt(text, overwrite, save)
        except BaseException:
            self.close()
            raise
        return self

    def save_recipe(self, recipe_tables: Mapping[str, Any]) -> None:
        """Keep a recipe that `open` was given."""
        if dict(recipe_tables) != self.recipe_tables():
            text = tomli_w.dumps(dict(recipe_tables))
            replace_file(self.state / "recipe.toml", lambda path: _write_text(path, text))

    def close(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Workspace:
        """Return the workspace itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release the lock."""
        self.close()

    def write_table(self, name: str, table: pa.Table) -> None:
        """Save the result of a step; it appears complete or not at all."""

        def write(path: Path) -> None:
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)

        replace_file(self.state / f"{name}.arrow", write)

    def read_table(self, name: str) -> pa.Table:
        """Return the result of a step, memory-mapped.

        Raises:
            WorkspaceError: If the step has not been done.
            DatasetError: If its file is damaged.
        """
        path = self.state / f"{name}.arrow"
        if not path.is_file():
            raise WorkspaceError(f"'{self.folder}' has no '{name}' yet; run that step (or `cvgl-data build`) first")
        return open_arrow(path).read_all()

    def has_table(self, name: str) -> bool:
        """Whether the step has been done."""
        return (self.state / f"{name}.arrow").is_file()

    def store(self, name: str, schema: pa.Schema, key: str) -> Store:
        """Open the row store of that name; arguments as for `Store`."""
        return Store(self.state / name, schema, key)

    def _refuse_strangers(self) -> None:
        if self.folder.is_file():
            raise WorkspaceError(f"'{self.folder}' is a file; choose a folder")
        if not self.folder.is_dir() or self.state.is_dir() or _is_dataset(self.folder):
            return
        if any(self.folder.iterdir()):
            raise WorkspaceError(f"'{self.folder}' is not empty and holds no cvgl build; choose another folder")

    def _acquire(self, lock: int) -> None:
        try:
            if sys.platform == "win32":
                import msvcrt

                msvcrt.locking(lock, msvcrt.LK_NBLCK, 1)
            else:
                import fcntl

                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise WorkspaceError(f"'{self.folder}' is in use by another process; wait for it or stop it") from None

    def _adopt(self, text: str, overwrite: bool, save: bool) -> None:
        saved = None
        try:
            saved = self.recipe_tables()
            if saved is None:  # perhaps a dataset without its workspace
                saved = _read_recipe(self.folder / "recipe.toml")
        except WorkspaceError:
            if not overwrite:
                raise
            saved = {}
        changed = differences(saved, tomllib.loads(text)) if saved is not None else []
        fetched = [line for line in changed if line.partition(":")[0].partition(".")[0] not in REVISABLE]
        if fetched and not overwrite:
            shown = "; ".join(fetched[:5]) + (f"; and {len(fetched) - 5} more" if len(fetched) > 5 else "")
            raise WorkspaceError(
                f"'{self.folder}' holds a build of another recipe ({shown}); "
                "choose another folder, or pass --overwrite to delete it"
            )
        if fetched or overwrite:
            if saved is not None:
                logger.info("deleting the build in %s", self.folder)
            self._wipe()
        if save and (changed or overwrite or self.recipe_tables() is None):
            replace_file(self.state / "recipe.toml", lambda path: _write_text(path, text))

    def _wipe(self) -> None:
        """Delete the build, the manifest that vouches for it first; the caller saves the new recipe after it."""
        # Killed on the way, what is left must not be taken for a build to go on with: this is no TOML.
        replace_file(self.state / "recipe.toml", lambda path: _write_text(path, "half deleted"))
        (self.folder / "manifest.json").unlink(missing_ok=True)
        data = self.folder / "data"
        for folder in data.glob("*"):
            if is_table(folder.name):
                shutil.rmtree(folder, ignore_errors=True)
        if data.is_dir() and not any(data.iterdir()):
            data.rmdir()
        for entry in sorted(self.state.iterdir()):
            if entry.is_dir():
                shutil.rmtree(entry)
            elif entry.name not in ("lock", "recipe.toml"):
                entry.unlink()


def is_table(name: str) -> bool:
    """Whether a folder below ``data`` is ours: that of a table, or of its images at another size."""
    return name in _TABLES or _RESIZED.fullmatch(name) is not None


def _is_dataset(folder: Path) -> bool:
    """Whether the folder's ``manifest.json`` is ours: browser extensions and web sites have one as well."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and "schema_version" in manifest and isinstance(manifest.get("files"), dict)


def _read_recipe(path: Path) -> dict[str, Any] | None:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise WorkspaceError(f"'{path}' is damaged ({error}); --overwrite starts over") from None
    except OSError as error:
        raise WorkspaceError(f"'{path}' cannot be read ({error.strerror or error})") from None


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
