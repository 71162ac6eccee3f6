"""The wheel holds what the checkout holds, under names that are ours."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NAMES = {"cvgl_data": "cvgl_data", "cvgl_models": "cvgl_models", "cli": "cvgl_cli", "recipes": "cvgl_recipes"}


def test_every_package_is_listed():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {
        ".".join((NAMES[folder], *init.parent.relative_to(ROOT / folder).parts))
        for folder in NAMES
        for init in (ROOT / folder).rglob("__init__.py")
    }
    assert sorted(listed) == sorted(found)


@pytest.mark.parametrize("name", ["cli", "recipes"])
def test_folder_names_do_not_import(name):
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {name}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert f"cvgl_{name}" in done.stderr


def test_data_package_never_loads_torch():
    code = "import sys, cvgl_data.pipeline, cvgl_cli.data; print([m for m in ('torch', 'timm') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


HEAVY = "aiohttp datasets geopandas mercantile numba cv2 pyproj requests scipy shapely simplejpeg uvloop"


def test_models_import_without_the_heavy_packages():
    """Training runs where only torch, torchvision, timm, numpy, pyarrow, pillow, pydantic, typer and rich are."""
    code = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {HEAVY.split()!r}:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Refuse())
import cvgl_models.training, cvgl_models.evaluation, cvgl_models.serving, cvgl_cli.train
import cvgl_data.readers.packed
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
