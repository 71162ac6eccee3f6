"""What makes an image of a dataset a bad one."""

from __future__ import annotations

from dataclasses import dataclass

from cvgl_data.errors import RecipeError
from cvgl_data.registry import did_you_mean

CHECKS = (
    "undecodable",
    "wrong_shape",
    "constant",
    "blurred",
    "underexposed",
    "overexposed",
    "blank_nadir",
    "seam",
    "no_data",
    "water",
    "duplicate",
    "age_gap",
    "wrong_heading",
)
"""Names of the checks: columns of the quality table, what ``drop`` takes, and what ``reason`` lists."""

_STRICT = {"extra": "forbid"}


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityRecipe:
    """Thresholds of the quality checks, and which of them take an image out of the dataset.

    ``cvgl_data.quality`` says how each measure is taken; its table holds them all, so thresholds can be chosen by
    looking.
    """

    __pydantic_config__ = _STRICT
    drop: tuple[str, ...] = ("undecodable",)
    """Checks that take an image out of the dataset; what fails any other is only flagged. A blank tile of a street map
    is ``constant`` and a panorama that shows less than the full circle has the ``wrong_shape``, both for good reason,
    so these are left to choose."""
    luma_std_min: float = 2.0
    """``constant`` below it: standard deviation of brightness (0 to 255)."""
    query_sharpness_min: float = 15.0
    """``blurred`` below it; at 2048 x 1024 a Gaussian blur of 1.5 pixels gives about 11, a sharp image above 40."""
    reference_sharpness_min: float = 9.0
    """As above; at 256 x 256 a Gaussian blur of 1 pixel gives about 7, a sharp image above 20."""
    luma_mean_min: float = 30.0
    """``underexposed`` below it: mean brightness (0 to 255)."""
    dark_share_max: float = 0.5
    """``underexposed`` above it: share of pixels darker than 11 of 255."""
    luma_mean_max: float = 240.0
    """``overexposed`` above it."""
    bright_share_max: float = 0.4
    """``overexposed`` above it: share of pixels brighter than 249 of 255."""
    nadir_blank_max_deg: float = 18.0
    """``blank_nadir`` above it: radius of the cap at the bottom that is black or painted over. A tripod hides
    about as much."""
    seam_ratio_max: float = 0.5
    """``seam`` above it: how far the first and last column differ, relative to columns that lie side by side."""
    fill_share_max: float = 0.25
    """``no_data`` above it: share of a reference that is pure black or white."""
    water_share_max: float = 0.9
    """``water`` above it: share of a reference that is smooth, bluish and not bright."""
    duplicate_within_m: float = 50.0
    """Queries farther apart are no duplicates of each other unless their bytes are equal."""
    query_duplicate_bits: int = 4
    """``duplicate`` at most at this distance: bits of 64 in which two perceptual hashes differ."""
    reference_duplicate_bits: int = 2
    """The same for references, wherever they lie."""
    age_gap_max_years: float = 5.0
    """``age_gap`` above it: years between a query and its positive reference, whichever is older."""
    heading_error_max_deg: float = 30.0
    """``wrong_heading`` above it: how far heading minus course differs from what is usual in the sequence."""
    course_min_m: float = 3.0
    """A course over ground is taken between images at least this far apart."""
    course_max_m: float = 100.0
    """And at most this far: in between the camera may have turned."""

    def __post_init__(self) -> None:
        for name in self.drop:
            if name not in CHECKS:
                raise RecipeError(f"'drop' names an unknown quality check '{name}'{did_you_mean(name, CHECKS)}")
        for key in self.__slots__:
            value = getattr(self, key)
            if key != "drop" and not 0 <= value < float("inf"):
                raise RecipeError(f"'{key}' is {value}, it must be at least 0")
        if self.query_duplicate_bits > 16 or self.reference_duplicate_bits > 16:
            raise RecipeError("images that differ in more than 16 of 64 bits are not near-duplicates")
        if self.course_min_m <= 0 or self.course_max_m < self.course_min_m:
            raise RecipeError("'course_min_m' must be above 0 and not above 'course_max_m'")
