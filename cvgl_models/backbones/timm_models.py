"""Backbones of timm."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from cvgl_data.errors import CheckpointError, UnknownNameError
from cvgl_data.registry import did_you_mean

logger = logging.getLogger(__name__)

_NAMES_SHOWN = 8


def timm_model(
    name: str, pretrained: bool, image_size: tuple[int, int], others: Iterable[str] = ()
) -> tuple[nn.Module, str]:
    """Return timm's model without its classifier, and the classifier's name.

    Args:
        name: Architecture, or architecture and weights (``resnet50.a1_in1k``).
        pretrained: Whether to fetch the weights.
        image_size: Height and width, for architectures that must know and can only do one.
        others: Names that are not timm's, for hints.

    Raises:
        UnknownNameError: If timm does not know the name.
        CheckpointError: If the weights cannot be had.
    """
    import timm

    if not timm.is_model(name):
        raise UnknownNameError(f"unknown backbone '{name}'{_hint(name, [*others, *timm.list_models()])}")
    architecture, _, tag = name.partition(".")
    tags = timm.list_pretrained(f"{architecture}.*")
    if tag and name not in tags:
        raise UnknownNameError(f"unknown backbone '{name}'{_hint(name, tags)}")
    try:
        model = _created(name, pretrained, image_size)
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        logger.debug("timm could not deliver weights", exc_info=True)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"weights of '{name}' cannot be downloaded ({reason}); "
            "set encoder.pretrained to a local file, or to false for random weights"
        ) from error
    config: Mapping[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    model.mean, model.std = tuple(config["mean"]), tuple(config["std"])  # type: ignore[assignment]
    return model, str(config.get("classifier") or "")


def _created(name: str, pretrained: bool, image_size: tuple[int, int]) -> nn.Module:
    """Build the model so that it takes views of any size, if it can; its positional embedding keeps the grid it has."""
    import timm

    options: dict[str, Any] = {"num_classes": 0, "pretrained": pretrained}
    if timm.get_pretrained_cfg_value(name, "fixed_input_size"):
        try:
            model: nn.Module = timm.create_model(name, **options, dynamic_img_size=True)
            return model
        except TypeError:  # no such option
            options["img_size"] = image_size
    model = timm.create_model(name, **options)
    return model


def _hint(name: str, known: Sequence[str]) -> str:
    """Return the nearest known name, or the first few: timm has more than a thousand."""
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    more = "" if near or len(known) <= _NAMES_SHOWN else ", …"
    return did_you_mean(name, near or known[:_NAMES_SHOWN]) + more
