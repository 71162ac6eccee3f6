"""Backbones by name: our own from a table, everything else from timm.

Every backbone maps (B, 3, H, W) to (B, D) and carries ``num_features`` (D), ``mean`` and ``std`` (what its input is
normalized with). One that can serve an aggregator also has ``forward_features``, which gives the map before pooling or
the tokens of a ViT, and ``map_channels`` where the map has other channels than D.

A ViT keeps its positional embedding at the grid it was published with, and interpolates it to that of each view.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import nn

from cvgl_data.errors import CheckpointError
from cvgl_data.registry import Registry
from cvgl_models.backbones.small_cnn import SmallCnn
from cvgl_models.backbones.timm_models import timm_model
from cvgl_models.backbones.weights import load_published, load_strictly, read_weights

__all__ = ["BACKBONES", "SmallCnn", "create_backbone", "load_published", "load_strictly", "read_weights"]

BACKBONES: Registry[Callable[[], nn.Module]] = Registry(
    "backbone",
    {"cvgl_small_cnn": "cvgl_models.backbones.small_cnn:SmallCnn"},
    group="cvgl.backbones",
)


def create_backbone(
    name: str,
    *,
    pretrained: bool | str = False,
    image_size: tuple[int, int] = (384, 384),
    grad_checkpointing: bool = False,
) -> nn.Module:
    """Build a backbone.

    Args:
        name: A name of `BACKBONES` or of timm (``convnext_base.fb_in22k_ft_in1k_384``).
        pretrained: True for timm's published weights, or a file (.safetensors, or a .pth without pickled objects).
        image_size: Height and width, for backbones that can do one size only (Swin).
        grad_checkpointing: Trade time for memory, where the backbone can.

    Raises:
        UnknownNameError: If neither we nor timm know the name.
        CheckpointError: If weights cannot be had or do not fit.
    """
    if name in BACKBONES:
        if pretrained is True:
            raise CheckpointError(
                f"backbone '{name}' has no published weights; set encoder.pretrained to false or to a file"
            )
        model, optional = BACKBONES.load(name)(), ""
    else:
        model, optional = timm_model(name, pretrained is True, image_size, BACKBONES)
        if grad_checkpointing:
            model.set_grad_checkpointing(True)  # type: ignore[operator]
    if isinstance(pretrained, str):
        load = load_strictly if name in BACKBONES else load_published
        load(model, read_weights(Path(pretrained)), pretrained, optional)
    return model
