"""Dataset recipes: TOML on disk, frozen dataclasses inside.

A recipe is the whole description of a build. Unknown keys are errors, ``--set a.b=c`` overrides single values, and the
resolved recipe is saved beside every result and compared when a build is resumed.
"""

from cvgl_data.recipe.dataset import (
    AreaRecipe,
    CurationRecipe,
    DatasetRecipe,
    DistanceMapRecipe,
    GridRecipe,
    ImageryRecipe,
    PackRecipe,
    PanoramaRecipe,
    SourceRecipe,
    SplitRecipe,
)
from cvgl_data.recipe.quality import QualityRecipe
from cvgl_data.recipe.shipped import describe_shipped, load_toml, read_text, shipped_recipes
from cvgl_data.recipe.tables import differences, resolve, to_tables, to_toml

__all__ = [
    "AreaRecipe",
    "CurationRecipe",
    "DatasetRecipe",
    "DistanceMapRecipe",
    "GridRecipe",
    "ImageryRecipe",
    "PackRecipe",
    "PanoramaRecipe",
    "QualityRecipe",
    "SourceRecipe",
    "SplitRecipe",
    "describe_shipped",
    "differences",
    "load_toml",
    "read_text",
    "resolve",
    "shipped_recipes",
    "to_tables",
    "to_toml",
]
