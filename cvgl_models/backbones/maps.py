"""The last map of a backbone, as aggregators take it, and the sizes of views it can be had from."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cvgl_data.errors import RecipeError

_POOLING = ("head", "fc_norm", "attn_pool", "fc", "classifier", "global_pool", "norm_head")


def map_and_class(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the last map (B, C, h, w), and the class token (B, C) where there is one.

    Raises:
        RecipeError: If the backbone gives no map.
    """
    features = model.forward_features(images)  # type: ignore[operator]
    if isinstance(features, Tensor) and features.ndim == 4:
        nhwc = getattr(model, "output_fmt", "NCHW") == "NHWC"
        return (features.permute(0, 3, 1, 2).contiguous() if nhwc else features), None
    if not isinstance(features, Tensor) or features.ndim != 3 or not hasattr(model, "patch_embed"):
        raise RecipeError(f'{type(model).__name__} has no map for an aggregator; set encoder.aggregator to ""')
    prefix = int(getattr(model, "num_prefix_tokens", 0))  # class token, then registers
    grid = _token_grid(model, (images.shape[2], images.shape[3]))
    tokens_BNC = features[:, prefix:]
    map_BChw = tokens_BNC.transpose(1, 2).reshape(len(images), -1, *grid)
    has_class = prefix > 0 and getattr(model, "cls_token", None) is not None
    return map_BChw, features[:, 0] if has_class else None


def pool(model: nn.Module, map_BChw: Tensor) -> Tensor:
    """Return the features (B, D) that a backbone itself pools from its last map.

    Raises:
        RecipeError: If it is a network of tokens, or has no such step.
    """
    if hasattr(model, "patch_embed") or not hasattr(model, "forward_head"):
        raise RecipeError(
            f'{type(model).__name__} does not pool a map; set encoder.aggregator, for example to "average"'
        )
    nhwc = getattr(model, "output_fmt", "NCHW") == "NHWC"
    features: Tensor = model.forward_head(map_BChw.permute(0, 2, 3, 1) if nhwc else map_BChw)  # type: ignore[operator]
    return features


def prepare_for_maps(model: nn.Module, final_norm: bool, name: str) -> int:
    """Take out what comes after the last map, and return the number of its channels.

    Args:
        model: Backbone with its weights.
        final_norm: Whether the map is normalized as in the model; False takes that layer out too.
        name: For messages.

    Raises:
        RecipeError: If the backbone gives no map, or has no final norm to take out.
    """
    if not hasattr(model, "forward_features"):
        raise RecipeError(f"backbone '{name}' has no map for an aggregator; set encoder.aggregator to \"\"")
    unused = list(_POOLING)
    if getattr(model, "head_hidden_size", model.num_features) != model.num_features:
        unused.append("conv_head")  # MobileNetV3 has it behind the pooling, EfficientNet before
    for child in unused:
        if isinstance(getattr(model, child, None), nn.Module):
            setattr(model, child, nn.Identity())
    if not final_norm:
        if not isinstance(getattr(model, "norm", None), nn.Module):
            raise RecipeError(f"recipe key 'encoder.final_norm' is false, but backbone '{name}' has no final norm")
        model.norm = nn.Identity()
    return int(getattr(model, "map_channels", None) or model.num_features)  # type: ignore[arg-type]


@torch.no_grad()
def grid_of(model: nn.Module, size_px: tuple[int, int]) -> tuple[int, int]:
    """Return the height and width of the map of a view."""
    if _patch_px(model) is not None:
        return _token_grid(model, size_px)
    was_training = model.training
    probe = torch.zeros(1, 3, *size_px, device=next(model.parameters()).device)
    map_BChw, _ = map_and_class(model.eval(), probe)
    model.train(was_training)
    return int(map_BChw.shape[2]), int(map_BChw.shape[3])


def check_sizes(model: nn.Module, sizes_px: Sequence[tuple[int, int]], name: str) -> None:
    """Check that a backbone can take views of these heights and widths.

    Raises:
        RecipeError: If sides are no multiples of a ViT's patch, saying the nearest sizes that are, or if the backbone
            takes one size only and is given two.
    """
    patch = _patch_px(model)
    if patch is not None:
        for size in sizes_px:
            if any(side % step for side, step in zip(size, patch, strict=True)):
                raise RecipeError(
                    f"backbone '{name}' takes views whose height and width are multiples of {patch[0]}, not "
                    f"{size[0]}x{size[1]}; the nearest are {' and '.join(_nearest(size, patch))}"
                )
    elif getattr(getattr(model, "patch_embed", None), "strict_img_size", False) and len(set(sizes_px)) > 1:
        raise RecipeError(
            f"backbone '{name}' takes views of one size only; make the views equal, or set encoder.shared to false"
        )


def _nearest(size: tuple[int, int], patch: tuple[int, int]) -> list[str]:
    """Return the next smaller and larger size; a wide view is a panorama, whose width must be a multiple of 4 too."""
    steps = (patch[0], patch[1] if size[0] == size[1] else math.lcm(patch[1], 4))
    found = []
    for rounded in (math.floor, math.ceil):
        sides = [max(1, rounded(side / step)) * step for side, step in zip(size, steps, strict=True)]
        found.append(f"{sides[0]}x{sides[1]}")
    return list(dict.fromkeys(found))


def _patch_px(model: nn.Module) -> tuple[int, int] | None:
    """Return the patch of a ViT that takes any size."""
    if not getattr(model, "dynamic_img_size", False) or not hasattr(model, "num_prefix_tokens"):
        return None
    height, width = model.patch_embed.patch_size  # type: ignore[union-attr, misc]
    return int(height), int(width)


def _token_grid(model: nn.Module, size_px: tuple[int, int]) -> tuple[int, int]:
    height, width = model.patch_embed.dynamic_feat_size(size_px)  # type: ignore[union-attr, operator]
    return int(height), int(width)
