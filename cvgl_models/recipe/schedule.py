"""How weights are changed, by which pairs, and what is kept and logged."""

from __future__ import annotations

from dataclasses import dataclass

from cvgl_data.errors import RecipeError
from cvgl_models.recipe.checks import STRICT, at_least, one_of, positive, share, share_below_one


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplerRecipe:
    """Which pairs share a batch; never two of the same reference."""

    __pydantic_config__ = STRICT
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
    min_distance_m: float = 0.0
    """Localization: queries of a batch lie at least so far apart and share no covering reference, so that each is a
    negative of all others; 0: only systems that learn without positions share no reference, others may."""

    def __post_init__(self) -> None:
        one_of("sampler.semi_positive_policy", self.semi_positive_policy, "negative", "ignore", "soft")
        if self.batch_size < 2:
            raise RecipeError(f"recipe key 'sampler.batch_size' must be at least 2, not {self.batch_size}")
        if self.anchors > self.batch_size:
            raise RecipeError(
                f"recipe key 'sampler.anchors' must be at most the batch size, {self.batch_size}, not {self.anchors}"
            )
        share(sampler__semi_positive_weight=self.semi_positive_weight)
        at_least(
            0,
            sampler__neighbor_select=self.neighbor_select,
            sampler__neighbor_range=self.neighbor_range,
            sampler__anchors=self.anchors,
            sampler__similarity_every_n_epochs=self.similarity_every_n_epochs,
            sampler__min_distance_m=self.min_distance_m,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimRecipe:
    """How weights are changed."""

    __pydantic_config__ = STRICT
    optimizer: str = "adamw"
    """``adamw`` or ``sgd``."""
    momentum: float = 0.9
    """Of ``sgd``."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Of ``adamw``, which without ``weight_decay`` is Adam."""
    eps: float = 1e-8
    """Of ``adamw``."""
    fused: bool = True
    """One kernel per update, where there is a GPU."""
    epochs: int = 40
    lr: float = 1e-3
    weight_decay: float = 0.01
    """Not applied to biases, norms and the logit scale."""
    warmup_epochs: float = 1.0
    """Linear from 0, before the ``schedule``."""
    schedule: str = "cosine"
    """What becomes of ``lr`` then: ``cosine`` or ``linear``, both to 0 at the end, or ``constant``."""
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
        one_of("optim.precision", self.precision, "auto", "fp32", "bf16", "fp16")
        one_of("optim.optimizer", self.optimizer, "adamw", "sgd")
        one_of("optim.schedule", self.schedule, "cosine", "linear", "constant")
        positive(optim__epochs=self.epochs, optim__lr=self.lr, optim__eps=self.eps)
        for beta in self.betas:
            share_below_one(optim__betas=beta)
        share_below_one(
            optim__label_smoothing=self.label_smoothing,
            optim__momentum=self.momentum,
            optim__ema_decay=self.ema_decay,
        )
        at_least(
            0,
            optim__weight_decay=self.weight_decay,
            optim__warmup_epochs=self.warmup_epochs,
            optim__max_grad_norm=self.max_grad_norm,
            optim__micro_batch=self.micro_batch,
            optim__patience=self.patience,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationRecipe:
    """Choice of the best weights."""

    __pydantic_config__ = STRICT
    every_n_epochs: int = 4
    batch_size: int = 128
    max_queries: int = 5000
    """Use at most this many validation queries, evenly spaced."""

    def __post_init__(self) -> None:
        positive(
            validation__every_n_epochs=self.every_n_epochs,
            validation__batch_size=self.batch_size,
            validation__max_queries=self.max_queries,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LogRecipe:
    """Where logged values go besides ``metrics.jsonl``; changes no result."""

    __pydantic_config__ = STRICT
    tensorboard: bool = False
    """Also write the folder ``tensorboard`` of the run."""
    wandb_project: str = ""
    """Also log to this project of Weights & Biases: offline, unless ``WANDB_MODE`` says otherwise."""
