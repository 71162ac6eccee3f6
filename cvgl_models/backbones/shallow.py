"""Networks cut off where their map still has a fine grid.

Shapes: B images, C channels of the map, h and w its grid.
"""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from cvgl_data.errors import RecipeError


class Shallow(nn.Module):
    """The first stages of a network, up to a map at a given stride; the rest is taken out.

    A ResNet loses its max-pooling, as in SAFA's published code, so that three of its stages fit into a stride of 8.

    Args:
        model: A timm network that lists the stride of its maps, or one of ours, whose map has a stride of 8.
        stride: Pixels of the image per cell of the map.
        name: For messages.

    Raises:
        RecipeError: If the network has no map at this stride.
    """

    def __init__(self, model: nn.Module, stride: int, name: str) -> None:
        super().__init__()
        self.mean, self.std = cast(tuple[float, ...], model.mean), cast(tuple[float, ...], model.std)
        self._index: int | None = None
        if not hasattr(model, "forward_intermediates"):
            if stride != _OWN_STRIDE or not hasattr(model, "map_channels"):
                raise RecipeError(f"backbone '{name}' has no map at a stride of {stride}; use another one")
            model.head = nn.Identity()
            self.num_features = int(cast(int, model.map_channels))
        else:
            self._index, self.num_features = _cut(model, stride, name)
        self.map_channels = self.num_features
        self.model = model

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the map, (B, C, h, w)."""
        model: Any = self.model
        if self._index is None:
            own: Tensor = model.forward_features(images)
            return own
        maps: list[Tensor] = model.forward_intermediates(
            images, indices=[self._index], intermediates_only=True, stop_early=True
        )
        return maps[0]

    def forward(self, images: Tensor) -> Tensor:
        """Return the mean of the map, (B, C)."""
        return self.forward_features(images).mean((2, 3))


_OWN_STRIDE = 8


def _cut(model: nn.Module, stride: int, name: str) -> tuple[int, int]:
    """Take out what is not needed; returns the index of the map among the network's maps, and its channels."""
    skips_pool = all(hasattr(model, part) for part in ("maxpool", "layer1", "layer3"))
    if skips_pool:
        model.maxpool = nn.Identity()
    feature_info = cast(list[dict[str, Any]], getattr(model, "feature_info", None) or [])
    strides = [int(stage["reduction"]) // (2 if skips_pool and stage["reduction"] > 2 else 1) for stage in feature_info]
    if hasattr(model, "patch_embed") or stride not in strides:
        known = ", ".join(str(each) for each in dict.fromkeys(strides)) if not hasattr(model, "patch_embed") else ""
        raise RecipeError(
            f"backbone '{name}' has no map at a stride of {stride}" + (f", but at {known}" if known else "")
        )
    index = len(strides) - 1 - strides[::-1].index(stride)
    prune: Any = model.prune_intermediate_layers
    prune([index], prune_norm=True, prune_head=True)
    return index, int(feature_info[index]["num_chs"])
