"""A gallery to search in, on disk: embeddings, ids and positions of references, made once.

```
embeddings.safetensors   embedding (R, D) float32
references.parquet       ids, positions and windows, in the same order
index.json               fingerprints of the weights and the references; written last
```
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from cvgl_data.dataset import CrossViewDataset, open_dataset
from cvgl_data.errors import CheckpointError, DatasetError, WorkspaceError
from cvgl_data.geo import distance_m
from cvgl_data.types import Progress, Silent
from cvgl_models.evaluation.embeddings import embed_all_references, load_retrieval_system
from cvgl_models.recipe import ModelRecipe
from cvgl_models.run_folder import EVAL, write_text
from cvgl_models.systems import RetrievalModule
from cvgl_models.training import fingerprint

COLUMNS = ("reference_id", "lon", "lat", "x", "y", "size", "zoom", "area")
EMBEDDINGS, REFERENCES, INDEX = "embeddings.safetensors", "references.parquet", "index.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gallery:
    """Embedded references."""

    embedding_RD: NDArray[np.float32]
    references: pa.Table
    """Columns `COLUMNS`, R rows in the same order."""
    weights: str
    """Fingerprint of the network's weights."""
    data: str
    """Fingerprint of the references."""

    def near(self, lon: float, lat: float, radius_m: float) -> Gallery:
        """Return the references whose centre lies within a distance of a place.

        Raises:
            DatasetError: If there are none, or the place is no place.
        """
        if not (-180 <= lon <= 180 and -90 <= lat <= 90 and radius_m > 0):
            raise DatasetError(f"'{lon},{lat},{radius_m}' is no place: longitude, latitude, metres")
        away_m = distance_m(lon, lat, self.references["lon"].to_numpy(), self.references["lat"].to_numpy())
        rows = np.flatnonzero(away_m <= radius_m)
        if not len(rows):
            raise DatasetError(
                f"no reference lies within {radius_m:,.0f} m of {lon},{lat}; the nearest is {away_m.min():,.0f} m away"
            )
        return Gallery(
            embedding_RD=self.embedding_RD[rows],
            references=self.references.take(pa.array(rows)),
            weights=self.weights,
            data=self.data,
        )


def gallery_folder(run: Path) -> Path:
    """Return where a run keeps its gallery."""
    return run / EVAL / "gallery"


def open_gallery(
    run: Path, data: str | Path | CrossViewDataset | None = None, *, progress: Progress | None = None
) -> tuple[RetrievalModule, ModelRecipe, Gallery]:
    """Return the model of a run, its recipe, and its gallery, which is made first if it is not there yet.

    Args:
        run: Run folder, or the folder of an exported model.
        data: Dataset whose references are searched; None: those of the gallery that was kept.
        progress: Told what is going on.

    Raises:
        CheckpointError: If the run has no trained weights, or no gallery of these weights and no data is given.
        DatasetError: If there are no references.
    """
    dataset = data if isinstance(data, CrossViewDataset) or data is None else open_dataset(data)
    if dataset is not None and not dataset.references.num_rows:
        raise DatasetError("the dataset has no references to search in; build it with imagery")
    system, recipe, weights = load_retrieval_system(run)
    folder = gallery_folder(run)
    kept = _kept(folder)
    if dataset is None:
        if kept is None or kept.weights != weights:
            problem = "no gallery yet" if kept is None else "a gallery of other weights"
            raise CheckpointError(f"'{run}' has {problem}; name the dataset to search in once, with --data")
        return system, recipe, kept
    of_data = _fingerprint(dataset)
    if kept is None or (kept.weights, kept.data) != (weights, of_data):
        embedding_RD = embed_all_references(system, recipe, dataset, progress or Silent())
        references = dataset.references.select(list(COLUMNS)).replace_schema_metadata(None)
        kept = Gallery(embedding_RD=embedding_RD, references=references, weights=weights, data=of_data)
        _save(kept, folder)
    return system, recipe, kept


def _fingerprint(dataset: CrossViewDataset) -> str:
    """Return the fingerprint of the references alone: a gallery is the same whatever is searched in it."""
    alone = replace(dataset, queries=dataset.queries.slice(0, 0), pairs=dataset.pairs.slice(0, 0))
    return str(fingerprint(alone)["sha256"])


def _save(gallery: Gallery, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / INDEX).unlink(missing_ok=True)  # written last, so that it vouches for the rest
        for name in (EMBEDDINGS, REFERENCES):
            partial = folder / f"{name}.tmp"
            try:
                if name == EMBEDDINGS:
                    save_file({"embedding": np.ascontiguousarray(gallery.embedding_RD)}, partial)
                else:
                    pq.write_table(gallery.references, partial.absolute(), compression="zstd")
                os.replace(partial, folder / name)
            finally:
                partial.unlink(missing_ok=True)
        num, size = gallery.embedding_RD.shape
        facts: dict[str, Any] = {"weights": gallery.weights, "data": gallery.data, "num_references": num, "size": size}
        write_text(folder / INDEX, json.dumps(facts, indent=2) + "\n")
    except (OSError, SafetensorError) as error:
        raise WorkspaceError(f"gallery '{folder}' cannot be written: {error}") from error


def _kept(folder: Path) -> Gallery | None:
    """Return what is there, None if it is nothing, incomplete or damaged."""
    try:
        facts = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        embedding_RD = load_file(folder / EMBEDDINGS)["embedding"]
        references = pq.read_table((folder / REFERENCES).absolute(), columns=list(COLUMNS))
        if embedding_RD.shape != (facts["num_references"], facts["size"]) or len(references) != len(embedding_RD):
            return None
        return Gallery(embedding_RD=embedding_RD, references=references, weights=facts["weights"], data=facts["data"])
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException, SafetensorError):
        return None
