"""Two trained retrievals made one: a run for panoramas and one for top views, searched together as EP-BEV does."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from cvgl_data.errors import RecipeError
from cvgl_models.checkpoint import BEST, open_run, save_weights
from cvgl_models.evaluation.embeddings import load_retrieval_system
from cvgl_models.recipe import ModelRecipe
from cvgl_models.systems import create_system
from cvgl_models.systems.epbev import EPBEV


def combine(
    panorama_run: Path, bev_run: Path, out: Path, *, panorama_weight: float = 0.5, overwrite: bool = False
) -> Path:
    """Write a run of system ``epbev`` whose branches are two runs of ``sample4geo``, and return its folder.

    Args:
        panorama_run: Run with ``views.query = "panorama"``.
        bev_run: Run with ``views.query = "bev"`` and the same encoder and view of references.
        out: Run folder to write.
        panorama_weight: Share of the panorama's similarity.
        overwrite: Replace a run that is there.

    Raises:
        CheckpointError: If a run has no trained weights.
        RecipeError: If the runs do not go together; names the key in which they differ.
        WorkspaceError: If the folder holds something else.
    """
    (panorama, of_panorama, weights), (bev, of_bev, more_weights) = (
        load_retrieval_system(run) for run in (panorama_run, bev_run)
    )
    recipe = combined_recipe(of_panorama, of_bev, panorama_weight)
    system = create_system(dataclasses.replace(recipe, encoder=dataclasses.replace(recipe.encoder, pretrained=False)))
    assert isinstance(system, EPBEV)
    system.panorama.load_state_dict(panorama.state_dict())
    system.bev.load_state_dict(bev.state_dict())
    open_run(out, recipe, {"panorama": weights, "bev": more_weights}, overwrite=overwrite)
    save_weights(out / BEST, system, {"panorama": weights, "bev": more_weights})
    return out


def combined_recipe(panorama: ModelRecipe, bev: ModelRecipe, panorama_weight: float) -> ModelRecipe:
    """Return the recipe of both branches together; raises `RecipeError` as `combine`."""
    for recipe, kind in ((panorama, "panorama"), (bev, "bev")):
        if recipe.system != "sample4geo" or recipe.views.query != kind:
            raise RecipeError(
                f"'{recipe.name}' is a run of '{recipe.system}' on '{recipe.views.query}'; "
                f"this branch takes one of 'sample4geo' on '{kind}'"
            )
    same = {
        "encoder": (panorama.encoder, bev.encoder),
        "views.reference_px": (panorama.views.reference_px, bev.views.reference_px),
        "views.reference_crop": (panorama.views.reference_crop, bev.views.reference_crop),
    }
    for key, (one, other) in same.items():
        if one != other:
            raise RecipeError(f"the runs differ in '{key}': {one} and {other}; train them alike to combine them")
    views = dataclasses.replace(
        panorama.views,
        bev_px=bev.views.query_height_px,
        bev_m=bev.views.bev_m,
        camera_height_m=bev.views.camera_height_m,
    )
    return dataclasses.replace(
        panorama,
        name=f"{panorama.name}+{bev.name}",
        system="epbev",
        options={"panorama_weight": panorama_weight},
        views=views,
    )
