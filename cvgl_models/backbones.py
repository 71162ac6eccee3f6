"""Backbones by name: our own from a table, everything else from timm.

Every backbone maps (B, 3, H, W) to (B, D) and carries ``num_features`` (D), ``mean`` and ``std`` (what its input is
normalized with).
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cvgl_data.errors import CheckpointError, UnknownNameError
from cvgl_data.registry import Registry, did_you_mean

logger = logging.getLogger(__name__)

_NAMES_SHOWN = 8

BACKBONES: Registry[Callable[[], nn.Module]] = Registry(
    "backbone",
    {"cvgl_small_cnn": "cvgl_models.backbones:SmallCnn"},
    group="cvgl.backbones",
)


class SmallCnn(nn.Module):
    """Six convolutions and an average, small enough to be trained on a laptop's processor in minutes.

    Args:
        width: Channels of the first layer.
        num_features: Length of the result.
    """

    mean = (0.5, 0.5, 0.5)
    std = (0.25, 0.25, 0.25)

    def __init__(self, width: int = 16, num_features: int = 256) -> None:
        super().__init__()
        self.num_features = num_features
        layers: list[nn.Module] = []
        last = 3
        for channels, stride in [(1, 2), (2, 1), (2, 2), (4, 1), (4, 2), (8, 1)]:
            layers += [
                nn.Conv2d(last, channels * width, 3, stride, padding=1, bias=False),
                nn.BatchNorm2d(channels * width),
                nn.ReLU(inplace=True),
            ]
            last = channels * width
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(2 * last, num_features)

    def forward(self, images: Tensor) -> Tensor:
        """Return (B, D): mean and maximum over the last map, projected."""
        last_map = self.layers(images)
        pooled = torch.cat([last_map.mean((2, 3)), last_map.amax((2, 3))], 1)
        features: Tensor = self.head(pooled)
        return features


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
        image_size: Height and width, for backbones with a fixed input size (ViT).
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
        model, optional = _timm_model(name, pretrained is True, image_size)
        if grad_checkpointing:
            model.set_grad_checkpointing(True)  # type: ignore[operator]
    if isinstance(pretrained, str):
        load_strictly(model, read_weights(Path(pretrained)), pretrained, optional)
    return model


def _timm_model(name: str, pretrained: bool, image_size: tuple[int, int]) -> tuple[nn.Module, str]:
    """Return timm's model without its classifier, and the classifier's name."""
    import timm

    if not timm.is_model(name):
        raise UnknownNameError(f"unknown backbone '{name}'{_hint(name, [*BACKBONES, *timm.list_models()])}")
    architecture, _, tag = name.partition(".")
    tags = timm.list_pretrained(f"{architecture}.*")
    if tag and name not in tags:
        raise UnknownNameError(f"unknown backbone '{name}'{_hint(name, tags)}")
    options: dict[str, Any] = {"num_classes": 0, "pretrained": pretrained}
    if timm.get_pretrained_cfg_value(name, "fixed_input_size"):
        options["img_size"] = image_size
        if name.startswith("vit_"):  # lets a shared encoder take views of two sizes
            options["dynamic_img_size"] = True
    try:
        model: nn.Module = timm.create_model(name, **options)
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


def _hint(name: str, known: Sequence[str]) -> str:
    """Return the nearest known name, or the first few: timm has more than a thousand."""
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    more = "" if near or len(known) <= _NAMES_SHOWN else ", …"
    return did_you_mean(name, near or known[:_NAMES_SHOWN]) + more


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
    weights = {
        key: value for key, value in weights.items() if key in own or not (optional and key.startswith(f"{optional}."))
    }
    missing = sorted(own.keys() - weights.keys())
    unknown = sorted(weights.keys() - own.keys())
    shapes = sorted(key for key in own.keys() & weights.keys() if own[key].shape != weights[key].shape)
    for problem, keys in (("lack", missing), ("have unknown", unknown), ("have another shape of", shapes)):
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise CheckpointError(f"weights in '{where}' do not fit: they {problem} {', '.join(keys[:3])}{more}")
    model.load_state_dict(weights)
