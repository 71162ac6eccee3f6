"""Recipes: TOML files only, read as package data."""

if __name__ != "cvgl_recipes":
    raise ModuleNotFoundError("this folder is installed as 'cvgl_recipes'; import that name")
