"""Two trained retrievals made one: a run for panoramas and one for top views, searched together as EP-BEV does."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from cvgl_data.dataset import CrossViewDataset
from cvgl_data.errors import DatasetError, RecipeError
from cvgl_models.batches import open_for_views
from cvgl_models.checkpoint import save_weights
from cvgl_models.evaluation.embeddings import device, load_retrieval_system
from cvgl_models.recipe import ModelRecipe
from cvgl_models.run_folder import BEST, METRICS, open_run, write_text
from cvgl_models.systems import create_system
from cvgl_models.systems.epbev import EPBEV, VALIDATION
from cvgl_models.training import embed_views, fingerprint
from cvgl_models.training.validation import Validator


def combine(
    panorama_run: Path,
    bev_run: Path,
    out: Path,
    *,
    panorama_weight: float | str = 0.5,
    data: str | Path | CrossViewDataset | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a run of system ``epbev`` whose branches are two runs of ``sample4geo``, and return its folder.

    Args:
        panorama_run: Run with ``views.query = "panorama"``.
        bev_run: Run with ``views.query = "bev"`` and the same encoder and view of references.
        out: Run folder to write.
        panorama_weight: Share of the panorama's similarity; ``"validation"``: the one that the validation split
            of ``data`` speaks for, see `cvgl_models.systems.epbev.careful_choice`.
        data: Dataset folder, or an opened dataset; nothing else is read from it.
        overwrite: Replace a run that is there.

    Raises:
        CheckpointError: If a run has no trained weights.
        DatasetError: If the validation split shall choose and has no queries.
        RecipeError: If the runs do not go together; names the key in which they differ. Or if the validation split
            shall choose and there is no ``data``.
        WorkspaceError: If the folder holds something else.
    """
    if panorama_weight == VALIDATION and data is None:
        raise RecipeError("the weight is to be chosen on a validation split; name the dataset with --data")
    (panorama, of_panorama, weights), (bev, of_bev, more_weights) = (
        load_retrieval_system(run) for run in (panorama_run, bev_run)
    )
    recipe = combined_recipe(of_panorama, of_bev, panorama_weight)
    system = create_system(dataclasses.replace(recipe, encoder=dataclasses.replace(recipe.encoder, pretrained=False)))
    assert isinstance(system, EPBEV)
    system.panorama.load_state_dict(panorama.state_dict())
    system.bev.load_state_dict(bev.state_dict())
    source: dict[str, Any] = {"panorama": weights, "bev": more_weights}
    found: dict[str, float] = {}
    if panorama_weight == VALIDATION and data is not None:
        dataset = open_for_views(data, recipe.views, use_resized=recipe.loader.use_resized)
        found = choose_weight(system, recipe, dataset)
        source["validation"] = fingerprint(dataset)
    open_run(out, recipe, source, overwrite=overwrite)
    save_weights(out / BEST, system, {"panorama": weights, "bev": more_weights})
    if found:
        write_text(out / METRICS, json.dumps({"step": 0, **found}) + "\n")
    return out


def choose_weight(system: EPBEV, recipe: ModelRecipe, dataset: CrossViewDataset) -> dict[str, float]:
    """Give a system the weight that the validation split speaks for, and return what a training would have logged.

    Args:
        system: One whose recipe leaves the weight to the validation split.
        recipe: ``views``, ``loader``, ``validation`` and ``optim.precision`` are read.
        dataset: All splits.

    Raises:
        DatasetError: If there are no validation queries.
    """
    validator = Validator(dataset.select("validation"), recipe, system.query_views, system.tuned)
    if validator.images is None:
        raise DatasetError("the dataset has no validation queries to choose the weight by; give a number instead")
    system.to(device())
    one, ten = validator.measure(
        lambda images, side, rows: embed_views(
            system, side, images.stream(side, rows), recipe.optim.precision, device()
        )
    )
    system.adopt(validator.chosen)
    return {"validation_recall_at_1": one, "validation_recall_at_10": ten, **validator.chosen}


def combined_recipe(panorama: ModelRecipe, bev: ModelRecipe, panorama_weight: float | str) -> ModelRecipe:
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
