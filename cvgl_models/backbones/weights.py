"""Weights from files: read safely, loaded strictly."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cvgl_data.errors import CheckpointError

logger = logging.getLogger(__name__)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors file, or of a torch file that holds nothing but tensors.

    Raises:
        CheckpointError: If there is no such file or it cannot be read safely.
    """
    if not path.is_file():
        raise CheckpointError(f"no weights file '{path}'")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"weights file '{path}' cannot be read: {str(error).splitlines()[0]}") from error
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    return {str(key): value for key, value in loaded.items()}


def load_strictly(model: nn.Module, weights: Mapping[str, Tensor], where: str, optional: str = "") -> None:
    """Load weights that must fit exactly, but for those under the prefix ``optional`` (a classifier that was cut off).

    Raises:
        CheckpointError: Saying what did not match.
    """
    own = model.state_dict()
    weights = _without(weights, own, optional)
    missing = sorted(own.keys() - weights.keys())
    unknown = sorted(weights.keys() - own.keys())
    shapes = sorted(key for key in own.keys() & weights.keys() if own[key].shape != weights[key].shape)
    for problem, keys in (("lack", missing), ("have unknown", unknown), ("have another shape of", shapes)):
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise CheckpointError(f"weights in '{where}' do not fit: they {problem} {', '.join(keys[:3])}{more}")
    model.load_state_dict(weights)


def load_published(model: nn.Module, weights: Mapping[str, Tensor], where: str, optional: str = "") -> None:
    """Load weights into a model of timm: its own, or in a published layout that timm can convert.

    A learned positional embedding of another grid is interpolated, which is logged. Nothing else may differ.

    Raises:
        CheckpointError: Saying what did not match.
    """
    own = model.state_dict()
    weights = _without(weights, own, optional)
    kernel = weights.get("patch_embed.proj.weight")
    if kernel is not None and kernel.ndim == 4 and kernel.shape != own["patch_embed.proj.weight"].shape:
        convert = None  # timm would resample the patches as well
    else:
        convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    fits = {key: value.shape for key, value in weights.items()} == {key: value.shape for key, value in own.items()}
    if convert is not None and not fits:
        converted = _converted(convert, model, weights)
        grids = [mapping.get("pos_embed") for mapping in (weights, converted)]
        if grids[0] is not None and grids[1] is not None and grids[0].shape != grids[1].shape:
            places = [grid.shape[1] for grid in grids if grid is not None]
            logger.info("positional embedding of '%s' interpolated from %d to %d places", where, *places)
        weights = _without(converted, own, optional)
    load_strictly(model, weights, where)


def _converted(convert: Any, model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what timm makes of a published layout; of one that it does not know, the weights as they are."""
    try:
        return {str(key): value for key, value in convert(dict(weights), model).items()}
    except Exception:  # the names tell more than what a converter trips over
        logger.debug("timm could not convert the weights", exc_info=True)
        return dict(weights)


def _without(weights: Mapping[str, Tensor], own: Mapping[str, Tensor], optional: str) -> dict[str, Tensor]:
    """Return weights less those under the prefix ``optional`` that the model does not have."""
    return {
        key: value for key, value in weights.items() if key in own or not (optional and key.startswith(f"{optional}."))
    }
