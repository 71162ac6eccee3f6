"""The names users import, and one version everywhere."""

from __future__ import annotations

import tomllib
from pathlib import Path

import cvgl_data

ROOT = Path(__file__).parent.parent


def test_every_public_name_loads():
    assert cvgl_data.__all__ == sorted(cvgl_data._MODULES)
    assert all(getattr(cvgl_data, name).__module__.startswith("cvgl_data.") for name in cvgl_data.__all__)


def test_one_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert cvgl_data.__version__ == project["version"]
