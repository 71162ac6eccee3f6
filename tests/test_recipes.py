"""Every shipped recipe loads, says how to run it, and the demo's command line is the demo's recipe."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from cvgl_cli import data
from typer.main import get_command

from cvgl_data.recipe import DatasetRecipe, load_toml, read_text, resolve, shipped_recipes, to_tables
from cvgl_models.recipe import load_recipe

ROOT = Path(__file__).parent.parent
SHIPPED = [(kind, name) for kind in ("datasets", "models") for name in shipped_recipes(kind)]


@pytest.mark.parametrize(("kind", "name"), SHIPPED)
def test_recipe_loads_and_has_its_header(kind, name):
    recipe = resolve(DatasetRecipe, load_toml(name, kind)) if kind == "datasets" else load_recipe(name)
    assert recipe.name == name
    first = read_text(name, kind).splitlines()[:3]
    assert [line.split(":")[0] for line in first] == ["# Run", "# Needs", "# Gave"]


def test_there_are_recipes():
    assert ("datasets", "demo") in SHIPPED
    assert ("models", "demo") in SHIPPED


def test_the_demo_command_is_the_demo_recipe(monkeypatch):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    line = re.search(r"cvgl-data (build .*)", makefile).group(1)
    seen = []
    monkeypatch.setattr("cvgl_data.pipeline.build", lambda recipe, *args, **settings: seen.append(recipe) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        get_command(data.app).main(shlex.split(line), standalone_mode=False)
    assert to_tables(seen[0]) == to_tables(resolve(DatasetRecipe, load_toml("demo", "datasets")))
