"""Small copies of the published layouts, with pictures of the simulated world: one file per layout.

`make` writes one; the sizes it takes, and what it returns, are those of the ``make`` in the layout's own file.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any


def make(layout: str, folder: Path, **size: Any) -> Any:
    """Write a small copy of a layout to a folder, which need not exist; the same arguments give the same bytes."""
    return import_module(f"published.{layout}").make(folder, **size)
