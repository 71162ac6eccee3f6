"""What a dataset recipe says, table by table."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from cvgl_data.recipe.quality import QualityRecipe

_TOO_LARGE = 2**63
"""What 64 bits do not hold, a TOML file need not."""


def _at_least(least: float, **values: float) -> None:
    for key, value in values.items():
        if not least <= value < float("inf"):
            raise ValueError(f"'{key}' is {value}, it must be at least {least:g}")
        if isinstance(value, int) and value >= _TOO_LARGE:
            raise ValueError(f"'{key}' is {value}, it must be below 2**63")


def _in_order(after: str, before: str) -> None:
    first, end = (f"{date}-01-01"[:10] for date in (after, before))  # 2021 and 2021-06 mean their first day
    if after and before and first >= end:
        raise ValueError(f"no day lies between 'captured_after' ('{after}') and 'captured_before' ('{before}')")


def _dates(**values: str) -> None:
    for key, value in values.items():
        if value and not re.fullmatch(r"\d{4}(-(0[1-9]|1[0-2])(-(0[1-9]|[12]\d|3[01]))?)?", value):
            raise ValueError(f"'{key}' is '{value}', write it like 2021, 2021-06 or 2021-06-15")


def _one_of(key: str, value: str, *known: str) -> None:
    if value not in known:
        raise ValueError(f"'{key}' is '{value}', it must be one of {', '.join(known)}")


_STRICT = {"extra": "forbid"}


@dataclass(frozen=True, slots=True, kw_only=True)
class AreaRecipe:
    """One area of interest: exactly one of ``city``, ``bbox`` and ``file``."""

    __pydantic_config__ = _STRICT
    name: str = ""
    """What the ``area`` column says; default: the city's or the file's name."""
    city: str = ""
    """A name of the city catalogue."""
    bbox: tuple[float, float, float, float] | None = None
    """West, south, east, north in degrees."""
    file: str = ""
    """Any vector file geopandas reads."""
    clip: tuple[float, float, float, float] | None = None
    """Keep only this box of the area (west, south, east, north in degrees)."""
    max: int = 0
    """Keep at most this many panoramas here (0: as ``panoramas.max`` says)."""

    def __post_init__(self) -> None:
        _at_least(0, max=self.max)


@dataclass(frozen=True, slots=True, kw_only=True)
class GridRecipe:
    """The reference windows."""

    __pydantic_config__ = _STRICT
    zoom: int = 18
    size: int = 256
    """Side in global pixels of ``zoom``."""
    overlap: float = 0.0
    """Share of the side that neighboring windows have in common: 0 XYZ tiles, 0.5 VIGOR's layout."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRecipe:
    """Where images come from."""

    __pydantic_config__ = _STRICT
    source: str
    """A name of the source registry."""
    options: dict[str, str | int | float | bool] = field(default_factory=dict)
    """Keyword arguments of the source."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageryRecipe(SourceRecipe):
    """Where references come from."""

    __pydantic_config__ = _STRICT
    source: str = "esri"


@dataclass(frozen=True, slots=True, kw_only=True)
class PanoramaRecipe(SourceRecipe):
    """Where panoramas come from, and which of them."""

    __pydantic_config__ = _STRICT
    source: str = "panoramax"
    pano_ids: str = ""
    """File with one panorama id per line; default: discover inside the areas."""
    spacing_m: float = 0.0
    """Keep panoramas at least this far apart (0: all), chosen by the recipe's seed."""
    max: int = 0
    """Keep at most this many per area (0: all), chosen by the recipe's seed."""
    captured_after: str = ""
    """Keep panoramas of this day and later (``2021``, ``2021-06``, ``2021-06-15``)."""
    captured_before: str = ""
    """Keep panoramas before this day; with either bound, those without a date are left out."""
    align: str = "auto"
    """``north``: re-render to heading 0, upright where pitch and roll are known; ``keep``: store the bytes as
    received; ``auto``: ``keep`` for the user's own files, ``north`` for all else."""
    width: int = 2048
    """Width of re-rendered panoramas; their height is half of it."""

    def __post_init__(self) -> None:
        _one_of("align", self.align, "auto", "north", "keep")
        _at_least(0, max=self.max, spacing_m=self.spacing_m)
        _at_least(2, width=self.width)
        _dates(captured_after=self.captured_after, captured_before=self.captured_before)
        _in_order(self.captured_after, self.captured_before)
        if self.width % 2:
            raise ValueError(f"'width' is {self.width}, it must be even")


@dataclass(frozen=True, slots=True, kw_only=True)
class DistanceMapRecipe:
    """Nearest references of each reference."""

    __pydantic_config__ = _STRICT
    k: int = 128
    same_area: bool = False
    """Only references of the same area are neighbors."""
    exclude_semi_positives: bool = False
    """References that cover a query together are no neighbors: as negatives they would be false ones."""
    radius_m: float = 0.0
    """No neighbor lies further away (0: as far as it takes)."""

    def __post_init__(self) -> None:
        _at_least(1, k=self.k)
        _at_least(0, radius_m=self.radius_m)


@dataclass(frozen=True, slots=True, kw_only=True)
class CurationRecipe:
    """Which of the covered queries are kept; the others are listed with a reason."""

    __pydantic_config__ = _STRICT
    edge_margin_m: float = 0.0
    """Leave out queries nearer than this to an edge of their positive."""
    max_queries_per_positive: int = 0
    """Keep at most this many queries of each positive (0: all; VIGOR: 2), chosen by the recipe's seed."""
    balance_decentrality: bool = False
    """Keep equally many queries of each quarter of decentrality in every area, chosen by the recipe's seed."""

    def __post_init__(self) -> None:
        _at_least(0, edge_margin_m=self.edge_margin_m, max_queries_per_positive=self.max_queries_per_positive)


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitRecipe:
    """Which queries train and which test."""

    __pydantic_config__ = _STRICT
    protocol: str = "same-area"
    """``same-area``: spatial blocks; ``random``: as VIGOR and DReSS, train and test share references; ``cross-area``:
    ``test_areas`` against the others; ``cross-temporal``: the same places at other dates; ``none``: all test."""
    test_areas: tuple[str, ...] = ()
    """Names of the areas that test (cross-area)."""
    test_after: str = ""
    """Queries of this day and later test, earlier ones train (cross-temporal)."""
    min_gap_days: int = 0
    """Days that must lie between a test query and the training queries of its positive (cross-temporal)."""
    stratify: bool = False
    """Give every split the same share of each quarter of decentrality, as far as whole blocks allow."""
    validation_fraction: float = 0.1
    """Share of the training queries held out for model selection, in spatial blocks."""
    test_fraction: float = 0.3
    """Share of the queries that test (same-area), in spatial blocks."""
    block_m: float = 400.0
    """Side of a spatial block."""

    def __post_init__(self) -> None:
        _dates(test_after=self.test_after)
        _at_least(0, min_gap_days=self.min_gap_days)


@dataclass(frozen=True, slots=True, kw_only=True)
class PackRecipe:
    """Shards on disk."""

    __pydantic_config__ = _STRICT
    shard_mb: float = 500.0
    """Start a new shard when the images in it pass this size."""
    panorama_size: str = ""
    """``768x384`` also packs the queries at this size, for training; empty: only as they are."""
    reference_size: int = 0
    """Side at which the references are packed as well (0: only as they are)."""

    def __post_init__(self) -> None:
        _at_least(0.001, shard_mb=self.shard_mb)
        _at_least(0, reference_size=self.reference_size)
        if self.panorama_size and not re.fullmatch(r"[1-9]\d{0,4}x[1-9]\d{0,4}", self.panorama_size):
            raise ValueError(f"'panorama_size' is '{self.panorama_size}', write it like 768x384")


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetRecipe:
    """Everything that decides what a dataset contains."""

    __pydantic_config__ = _STRICT
    name: str
    seed: int = 0
    areas: tuple[AreaRecipe, ...] = ()
    """Where; empty means everything a local source holds."""
    limit: int = 0
    """Keep only N windows in the middle of each area, and at most N panoramas in their box (0: all), to try it out."""
    grid: GridRecipe = field(default_factory=GridRecipe)
    imagery: ImageryRecipe = field(default_factory=ImageryRecipe)
    panoramas: PanoramaRecipe = field(default_factory=PanoramaRecipe)
    quality: QualityRecipe = field(default_factory=QualityRecipe)
    curation: CurationRecipe = field(default_factory=CurationRecipe)
    distance_map: DistanceMapRecipe = field(default_factory=DistanceMapRecipe)
    split: SplitRecipe = field(default_factory=SplitRecipe)
    pack: PackRecipe = field(default_factory=PackRecipe)

    def __post_init__(self) -> None:
        _at_least(0, seed=self.seed, limit=self.limit)
        if not self.name:
            raise ValueError("'name' is empty")
