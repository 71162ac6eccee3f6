"""Recipes: round trip, unknown keys, overrides, differences."""

from __future__ import annotations

import dataclasses
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvgl_data.errors import RecipeError
from cvgl_data.recipe import (
    AreaRecipe,
    DatasetRecipe,
    GridRecipe,
    ImageryRecipe,
    PanoramaRecipe,
    SplitRecipe,
    differences,
    load_toml,
    resolve,
    shipped_recipes,
    to_tables,
    to_toml,
)

TEXT = """
name = "mine"
[[areas]]
city = "seattle"
clip = [-122.34, 47.60, -122.32, 47.61]
[[areas]]
bbox = [1, 2, 3, 4]
name = "box"
[imagery]
source = "xyz"
options = { location = "https://example.org/{z}/{x}/{y}.png", tile_px = 512 }
"""


def test_round_trip():
    recipe = resolve(DatasetRecipe, tomllib.loads(TEXT))
    assert recipe.areas[1] == AreaRecipe(name="box", bbox=(1.0, 2.0, 3.0, 4.0))
    assert recipe.imagery.options["tile_px"] == 512
    assert recipe.grid == GridRecipe()
    assert resolve(DatasetRecipe, tomllib.loads(to_toml(recipe))) == recipe
    assert to_toml(recipe) == to_toml(resolve(DatasetRecipe, tomllib.loads(to_toml(recipe))))


@given(
    seed=st.integers(0, 2**31),
    overlap=st.floats(0, 0.9),
    areas=st.lists(
        st.builds(AreaRecipe, name=st.text(max_size=8), bbox=st.none() | st.just((0.0, 1.0, 2.0, 3.0))), max_size=3
    ),
    test_areas=st.lists(st.text(max_size=8), max_size=3),
    max_panoramas=st.integers(0, 10),
)
def test_any_recipe_survives_toml(seed, overlap, areas, test_areas, max_panoramas):
    recipe = DatasetRecipe(
        name="any",
        seed=seed,
        areas=tuple(areas),
        grid=GridRecipe(overlap=overlap),
        panoramas=PanoramaRecipe(source="simulated", max=max_panoramas),
        split=SplitRecipe(test_areas=tuple(test_areas)),
    )
    assert resolve(DatasetRecipe, tomllib.loads(to_toml(recipe))) == recipe


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"name": "x", "grid": {"zom": 18}}, r"unknown recipe key 'grid\.zom'; did you mean 'grid\.zoom'"),
        ({"name": "x", "sed": 1}, "unknown recipe key 'sed'; did you mean 'seed'"),
        ({}, "recipe key 'name' is missing"),
        ({"name": "x", "grid": {"zoom": "high"}}, r"recipe key 'grid\.zoom'.*found 'high'"),
        ({"name": "x", "areas": [{"city": "a"}, {"bbox": [1, 2]}]}, r"recipe key 'areas\.1\.bbox"),
        ({"name": "x", "imagery": {"source": 3}}, r"recipe key 'imagery\.source'.*found 3"),
        ({"name": "x", "panoramas": {"captured_after": "June"}}, r"'captured_after' is 'June', write it like 2021"),
    ],
)
def test_wrong_recipes_name_the_key(tables, message):
    with pytest.raises(RecipeError, match=message):
        resolve(DatasetRecipe, tables)


def test_overrides():
    tables = tomllib.loads(TEXT)
    recipe = resolve(
        DatasetRecipe,
        tables,
        [
            "grid.zoom=19",
            "areas.0.name=centre",
            "split.test_areas=['box']",
            "imagery.options.tile_px=256",
            "split.block_m=1e2",
        ],
    )
    assert recipe.grid.zoom == 19
    assert recipe.areas[0].name == "centre"
    assert recipe.split.test_areas == ("box",)
    assert recipe.imagery == ImageryRecipe(
        source="xyz", options={"location": "https://example.org/{z}/{x}/{y}.png", "tile_px": 256}
    )
    assert recipe.split.block_m == 100
    assert tables == tomllib.loads(TEXT), "the caller's tables stay as they are"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("grid.zoom", "not of the form key.path=value"),
        ("=3", "not of the form key.path=value"),
        ("grid.zom=3", "did you mean 'grid.zoom'"),
        ("areas.7.city=seattle", "'7' is not an index below 2"),
        ("name.first=x", "'name' holds a value"),
        ("seed=abc", "recipe key 'seed'"),
    ],
)
def test_wrong_overrides(override, message):
    with pytest.raises(RecipeError, match=message):
        resolve(DatasetRecipe, tomllib.loads(TEXT), [override])


def test_differences():
    recipe = resolve(DatasetRecipe, tomllib.loads(TEXT))
    other = dataclasses.replace(recipe, seed=3, areas=recipe.areas[:1], grid=GridRecipe(zoom=19))
    found = differences(to_tables(recipe), to_tables(other))
    assert "grid.zoom: 18 -> 19" in found
    assert "seed: 0 -> 3" in found
    assert any(line.startswith("areas.1.bbox: [1.0, 2.0, 3.0, 4.0] -> unset") for line in found)
    assert differences(to_tables(recipe), to_tables(recipe)) == []


def test_load_by_path_and_name(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(TEXT, encoding="utf-8")
    assert load_toml(path, "datasets")["name"] == "mine"
    with pytest.raises(RecipeError, match="no recipe file"):
        load_toml(tmp_path / "other.toml", "datasets")
    with pytest.raises(RecipeError, match=r"no shipped .*'nothing-like-it'"):
        load_toml("nothing-like-it", "datasets")
    path.write_text("name = ", encoding="utf-8")
    with pytest.raises(RecipeError, match="is not valid TOML"):
        load_toml(path, "datasets")


def test_every_shipped_dataset_recipe_resolves():
    for name in shipped_recipes("datasets"):
        assert resolve(DatasetRecipe, load_toml(name, "datasets")).name
