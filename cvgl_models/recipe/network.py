"""The network."""

from __future__ import annotations

from dataclasses import dataclass, field

from cvgl_data.errors import RecipeError
from cvgl_models.recipe.checks import STRICT, at_least


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderRecipe:
    """The network."""

    __pydantic_config__ = STRICT
    backbone: str = "convnext_base.fb_in22k_ft_in1k_384"
    """A name of the backbone registry (``cvgl_small_cnn``) or of timm."""
    pretrained: bool | str = True
    """``true``: timm's weights; a path: a .safetensors or .pth file; ``false``: random weights."""
    shared: bool = True
    """One set of weights for both views."""
    grad_checkpointing: bool = False
    """Compute activations twice instead of keeping them."""
    aggregator: str = ""
    """A name of the aggregator registry (``mixvpr``, ``gem``); empty: the backbone's own pooling."""
    aggregator_options: dict[str, str | int | float | bool] = field(default_factory=dict)
    """The aggregator's own, for example ``out_channels``."""
    final_norm: bool = True
    """``false``: the aggregator gets the output of the last block without the norm that follows it."""
    train_blocks: int = -1
    """Train the last so many blocks and what follows them, and freeze the rest; -1: train everything."""
    train_tokens: bool = False
    """Train class token and positional embedding too where ``train_blocks`` freezes them. If blocks are frozen as well,
    their activations must then be kept."""

    def __post_init__(self) -> None:
        at_least(-1, encoder__train_blocks=self.train_blocks)
        if not self.aggregator:
            for key, changed in (("aggregator_options", self.aggregator_options), ("final_norm", not self.final_norm)):
                if changed:
                    raise RecipeError(f"recipe key 'encoder.{key}' needs an 'encoder.aggregator'")
        if self.train_tokens and self.train_blocks < 0:
            raise RecipeError("recipe key 'encoder.train_tokens' needs 'encoder.train_blocks' of at least 0")
