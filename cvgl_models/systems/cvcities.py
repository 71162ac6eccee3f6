"""CV-Cities: a ViT whose patch tokens are mixed into one vector, the same for both views; trained as Sample4Geo.

Differences from the published code: the logit scale is bounded and not decayed, gradients are clipped by their norm, a
view need not be square, and frozen blocks are frozen whole unless the recipe wants their tokens trained.
"""

from __future__ import annotations

from cvgl_data.errors import RecipeError
from cvgl_models.recipe import ModelRecipe
from cvgl_models.systems.sample4geo import Sample4Geo


class CVCities(Sample4Geo):
    """The system as a module; ``task``, loss and embeddings are those of `Sample4Geo`.

    Args:
        recipe: ``encoder``, ``views`` and ``optim.label_smoothing`` are read.

    Raises:
        RecipeError: If the recipe has no aggregator, or one encoder for each view.
    """

    def __init__(self, recipe: ModelRecipe) -> None:
        if not recipe.encoder.aggregator:
            raise RecipeError("system 'cvcities' needs an 'encoder.aggregator', for example \"mixvpr\"")
        if not recipe.encoder.shared:
            raise RecipeError("system 'cvcities' has one encoder for both views; set encoder.shared to true")
        super().__init__(recipe)
