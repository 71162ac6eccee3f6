"""Model recipes: everything that decides what a training does, as frozen dataclasses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cvgl_data.errors import RecipeError
from cvgl_data.recipe import load_toml, resolve

_STRICT = {"extra": "forbid"}


def _choice(key: str, value: str, *known: str) -> None:
    if value not in known:
        raise RecipeError(f"recipe key '{key}' is '{value}', expected one of: {', '.join(known)}")


def _positive(**values: float) -> None:
    for key, value in values.items():
        if not 0 < value < math.inf:
            raise RecipeError(f"recipe key '{key.replace('__', '.')}' must be positive and finite, not {value}")


def _at_least(low: float, **values: float) -> None:
    for key, value in values.items():
        if not low <= value < math.inf:
            raise RecipeError(f"recipe key '{key.replace('__', '.')}' must be at least {low} and finite, not {value}")


def _share(**values: float) -> None:
    for key, value in values.items():
        if not 0 <= value <= 1:
            raise RecipeError(f"recipe key '{key.replace('__', '.')}' must lie in [0, 1], not {value}")


def _share_below_one(**values: float) -> None:
    for key, value in values.items():
        if not 0 <= value < 1:
            raise RecipeError(f"recipe key '{key.replace('__', '.')}' must lie in [0, 1), not {value}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewRecipe:
    """What the encoder is shown."""

    __pydantic_config__ = _STRICT
    query: str = "panorama"
    """``panorama``, or ``bev``: the top view of its ground, as if the ground were flat."""
    query_height_px: int = 384
    query_width_px: int = 768
    """Size of a panorama; a ``bev`` is square and has ``query_height_px`` pixels a side."""
    reference_px: int = 384
    bev_m: float = 60.0
    """Side of the top view on the ground."""
    camera_height_m: float = 2.5
    """Height of the camera above the ground, for the top view."""

    def __post_init__(self) -> None:
        _choice("views.query", self.query, "panorama", "bev")
        _positive(
            views__query_height_px=self.query_height_px,
            views__query_width_px=self.query_width_px,
            views__reference_px=self.reference_px,
            views__bev_m=self.bev_m,
            views__camera_height_m=self.camera_height_m,
        )
        if self.query == "panorama" and self.query_width_px % 4:
            raise RecipeError(f"recipe key 'views.query_width_px' must be a multiple of 4, not {self.query_width_px}")

    @property
    def query_size_px(self) -> tuple[int, int]:
        """Height and width of what the encoder gets for a query."""
        return self.query_height_px, self.query_height_px if self.query == "bev" else self.query_width_px


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderRecipe:
    """The network."""

    __pydantic_config__ = _STRICT
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
        _at_least(-1, encoder__train_blocks=self.train_blocks)
        if not self.aggregator:
            for key, changed in (("aggregator_options", self.aggregator_options), ("final_norm", not self.final_norm)):
                if changed:
                    raise RecipeError(f"recipe key 'encoder.{key}' needs an 'encoder.aggregator'")
        if self.train_tokens and self.train_blocks < 0:
            raise RecipeError("recipe key 'encoder.train_tokens' needs 'encoder.train_blocks' of at least 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentRecipe:
    """Random changes of the training pairs; the probability of each lies in [0, 1]."""

    __pydantic_config__ = _STRICT
    flip: float = 0.5
    """Mirror both views."""
    rotate: float = 0.75
    """Turn the reference by 90, 180 or 270 degrees and the query with it."""
    turn_deg: float = 0.0
    """Turn both views together by up to this angle more, either way (``bev`` only)."""
    zoom: float = 0.0
    """Scale each view by up to this share, either way, independently."""
    shift: float = 0.0
    """Move the reference by up to this share of its side; what comes into view is mirrored."""
    color: float = 0.5
    """Change brightness, contrast, saturation and hue of each view independently."""
    color_strength: float = 0.15
    color_together: float = 0.0
    """Change both views in the same way, with ``color_strength`` too; what they have in common stays so."""
    blur: float = 0.3
    """Blur or sharpen."""
    cut: float = 0.3
    """Cut out ``cut_holes`` rectangles of 10 to 20 % of the height."""
    cut_holes: int = 12

    def __post_init__(self) -> None:
        _share(
            augment__flip=self.flip,
            augment__rotate=self.rotate,
            augment__shift=self.shift,
            augment__color=self.color,
            augment__color_strength=self.color_strength,
            augment__color_together=self.color_together,
            augment__blur=self.blur,
            augment__cut=self.cut,
        )
        _share_below_one(augment__zoom=self.zoom)
        _at_least(0, augment__turn_deg=self.turn_deg, augment__cut_holes=self.cut_holes)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplerRecipe:
    """Which pairs share a batch; never two of the same reference."""

    __pydantic_config__ = _STRICT
    batch_size: int = 128
    use_distance_map: bool = True
    """Fill batches with near references, which are the hardest negatives one knows without a model."""
    neighbor_select: int = 64
    """Neighbors per anchor: half the nearest, half drawn from ``neighbor_range``."""
    neighbor_range: int = 128
    anchors: int = 0
    """A batch has at least so many anchors, each with fewer neighbors if need be; 0: no bound."""
    similarity_every_n_epochs: int = 0
    """Every so many epochs the model itself says which references are near, from then on in place of the distance map;
    0: never."""
    semi_positive_policy: str = "negative"
    """``negative``: a semi-positive in the batch is a negative like any other; ``ignore``: it does not count; ``soft``:
    it has a share in the target."""
    semi_positive_weight: float = 0.0
    """For ``soft``: the share of a semi-positive when the positive's is 1; 0: the ``iou`` of the pair."""
    exclude_semi_positives: bool = False
    """Keep semi-positives of its queries out of a batch, as long as it can be filled without."""

    def __post_init__(self) -> None:
        _choice("sampler.semi_positive_policy", self.semi_positive_policy, "negative", "ignore", "soft")
        if self.batch_size < 2:
            raise RecipeError(f"recipe key 'sampler.batch_size' must be at least 2, not {self.batch_size}")
        if self.anchors > self.batch_size:
            raise RecipeError(
                f"recipe key 'sampler.anchors' must be at most the batch size, {self.batch_size}, not {self.anchors}"
            )
        _share(sampler__semi_positive_weight=self.semi_positive_weight)
        _at_least(
            0,
            sampler__neighbor_select=self.neighbor_select,
            sampler__neighbor_range=self.neighbor_range,
            sampler__anchors=self.anchors,
            sampler__similarity_every_n_epochs=self.similarity_every_n_epochs,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimRecipe:
    """How weights are changed."""

    __pydantic_config__ = _STRICT
    optimizer: str = "adamw"
    """``adamw`` or ``sgd``."""
    momentum: float = 0.9
    """Of ``sgd``."""
    fused: bool = True
    """One kernel per update, where there is a GPU."""
    epochs: int = 40
    lr: float = 1e-3
    weight_decay: float = 0.01
    """Not applied to biases, norms and the logit scale."""
    warmup_epochs: float = 1.0
    """Linear from 0; then a cosine to 0."""
    label_smoothing: float = 0.1
    max_grad_norm: float = 5.0
    """0: do not clip."""
    precision: str = "auto"
    """``auto``: bf16 autocast on CUDA, fp32 elsewhere; ``fp32``; ``bf16``; ``fp16``, with a scaled loss."""
    channels_last: bool = True
    """Lay images out as most convolutions on GPUs like them."""
    compile: bool = False
    """Compile the network, if torch can on this machine."""
    micro_batch: int = 0
    """Embed so many pairs of a process at a time, twice, in order to need the memory of no more; the loss is still that
    of the whole batch, and so are its gradients. Not for networks with BatchNorm. 0: all at once."""
    ema_decay: float = 0.0
    """Validate and keep a moving average of the weights; 0: the weights themselves."""
    patience: int = 0
    """Stop after so many validations in a row that were no better than the best; 0: never."""

    def __post_init__(self) -> None:
        _choice("optim.precision", self.precision, "auto", "fp32", "bf16", "fp16")
        _choice("optim.optimizer", self.optimizer, "adamw", "sgd")
        _positive(optim__epochs=self.epochs, optim__lr=self.lr)
        _share_below_one(
            optim__label_smoothing=self.label_smoothing,
            optim__momentum=self.momentum,
            optim__ema_decay=self.ema_decay,
        )
        _at_least(
            0,
            optim__weight_decay=self.weight_decay,
            optim__warmup_epochs=self.warmup_epochs,
            optim__max_grad_norm=self.max_grad_norm,
            optim__micro_batch=self.micro_batch,
            optim__patience=self.patience,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LogRecipe:
    """Where logged values go besides ``metrics.jsonl``; changes no result."""

    __pydantic_config__ = _STRICT
    tensorboard: bool = False
    """Also write the folder ``tensorboard`` of the run."""
    wandb_project: str = ""
    """Also log to this project of Weights & Biases: offline, unless ``WANDB_MODE`` says otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderRecipe:
    """How images get into memory; ``workers``, ``memory_mb`` and ``prefetch`` change speed, never a result."""

    __pydantic_config__ = _STRICT
    workers: int = -1
    """Processes that decode; -1: one per core; 0: none."""
    memory_mb: int = 2000
    """Keep decoded views in memory when all of them fit in this; otherwise decode in every epoch."""
    prefetch: int = 4
    """Batches that are decoded ahead."""
    decode: str = "cpu"
    """``cpu``; ``gpu``: the accelerator decodes, in every epoch; its views differ by a level or two."""
    use_resized: bool = True
    """Read images that were packed at exactly the size of the view, where there are any."""
    on_error: str = "raise"
    """A training image that cannot be decoded: ``raise`` ends the run; ``skip`` takes the next pair instead."""

    def __post_init__(self) -> None:
        _choice("loader.decode", self.decode, "cpu", "gpu")
        _choice("loader.on_error", self.on_error, "raise", "skip")
        _at_least(-1, loader__workers=self.workers)
        _at_least(0, loader__memory_mb=self.memory_mb)
        _positive(loader__prefetch=self.prefetch)


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationRecipe:
    """Choice of the best weights."""

    __pydantic_config__ = _STRICT
    every_n_epochs: int = 4
    batch_size: int = 128
    max_queries: int = 5000
    """Use at most this many validation queries, evenly spaced."""

    def __post_init__(self) -> None:
        _positive(
            validation__every_n_epochs=self.every_n_epochs,
            validation__batch_size=self.batch_size,
            validation__max_queries=self.max_queries,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRecipe:
    """One training."""

    __pydantic_config__ = _STRICT
    name: str
    system: str = "sample4geo"
    """A name of the system registry."""
    seed: int = 0
    views: ViewRecipe = field(default_factory=ViewRecipe)
    encoder: EncoderRecipe = field(default_factory=EncoderRecipe)
    augment: AugmentRecipe = field(default_factory=AugmentRecipe)
    sampler: SamplerRecipe = field(default_factory=SamplerRecipe)
    optim: OptimRecipe = field(default_factory=OptimRecipe)
    log: LogRecipe = field(default_factory=LogRecipe)
    loader: LoaderRecipe = field(default_factory=LoaderRecipe)
    validation: ValidationRecipe = field(default_factory=ValidationRecipe)

    def __post_init__(self) -> None:
        _at_least(0, seed=self.seed)
        if self.augment.turn_deg and self.views.query != "bev":
            raise RecipeError("recipe key 'augment.turn_deg' needs 'views.query = \"bev\"'")


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> ModelRecipe:
    """Return the recipe of a shipped name or a file, with ``a.b=c`` overrides applied.

    Raises:
        RecipeError: If there is no such recipe, or a key or value is wrong.
    """
    return resolve(ModelRecipe, load_toml(name_or_path, "models"), overrides)
