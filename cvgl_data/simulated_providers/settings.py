"""What a simulated provider world looks like, and the chances that follow from its seed."""

from __future__ import annotations

import datetime
import hashlib
from dataclasses import dataclass, field

from cvgl_data.errors import RecipeError
from cvgl_data.simulated_providers.faults import Faults
from cvgl_data.sources.simulated import SimulatedPanoramas

ESRI_TOKEN = "simulated-esri-token"
MAPILLARY_TOKEN = "MLY|7001|simulated-mapillary-token"
GOOGLE_KEY = "simulated-google-key"
GOOGLE_SIGNING_SECRET = "c2ltdWxhdGVkLXNpZ25pbmctc2VjcmV0"

DEFAULT_RELEASES = (("2022-03-01", 64001), ("2022-09-15", 10), ("2023-02-10", 49059), ("2023-06-08", 239))
"""Wayback releases as date and number; as with the real ones, numbers do not follow the dates."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the server shows; everything in it follows from these.

    Args:
        seed: Seed of the world, of holes and of what differs from picture to picture.
        date: Day that the live imagery and all panoramas show, ISO 8601.
        faults: What goes wrong on purpose.
        workers: Processes that render; 0 means one per processor, 1 a thread of this process.
        panorama_width: Pixels round the horizon that panoramas are rendered with; larger answers are enlarged from it.
        every_m: Meters between panoramas along a street.
        tilt_deg: Largest pitch and roll of the camera car.
        releases: Wayback releases as date and number. A tile of a release shows the release's day, or that of the
            earlier release in which it last changed.
        holes: Share of tiles, footprints and panoramas that do not exist.
        flat: Share of Panoramax and Mapillary pictures that are no panoramas.
        esri_token_required: Whether live imagery asks for a token; a wrong one is refused in any case.
        google_signature_required: Whether Static API requests must be signed; a wrong signature is refused in any case.
        url_lifetime_s: How long signed picture addresses work.
        session_lifetime_s: How long a Map Tiles session lives.

    Raises:
        RecipeError: If an option is out of range.
    """

    seed: int = 0
    date: str = "2023-06-15"
    faults: Faults = field(default_factory=Faults)
    workers: int = 0
    panorama_width: int = 2048
    every_m: float = 10.0
    tilt_deg: float = 0.0
    releases: tuple[tuple[str, int], ...] = DEFAULT_RELEASES
    holes: float = 0.02
    flat: float = 0.1
    esri_token_required: bool = False
    google_signature_required: bool = False
    url_lifetime_s: float = 3600.0
    session_lifetime_s: float = 14 * 86400.0

    def __post_init__(self) -> None:
        """Check the options; those of the world are checked by the source that shows it."""
        SimulatedPanoramas(
            seed=self.seed,
            date=self.date,
            width=self.panorama_width,
            tilt_deg=self.tilt_deg,
            every_m=self.every_m,
            workers=self.workers,
        )
        for name in ("holes", "flat"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise RecipeError(f"option '{name}' is {getattr(self, name)!r}; it must be a share from 0 to 1")
        if not self.releases:
            raise RecipeError("option 'releases' is empty; Wayback has at least one release")
        dates = [_as_date(date) for date, _ in self.releases]
        numbers = [number for _, number in self.releases]
        if len(set(dates)) < len(dates) or len(set(numbers)) < len(numbers):
            raise RecipeError("option 'releases' names a date or a number twice")

    @property
    def day(self) -> datetime.date:
        """``date`` as a date."""
        return _as_date(self.date)

    def chance(self, *parts: object) -> float:
        """Return a number in [0, 1) that follows from the seed and what it is about."""
        return chance(self.seed, *parts)


def chance(*parts: object) -> float:
    """Return a number in [0, 1) that follows from the parts alone."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=7).digest()
    return (int.from_bytes(digest, "big") >> 3) / 2**53


def _as_date(date: str) -> datetime.date:
    try:
        return datetime.date.fromisoformat(date)
    except (TypeError, ValueError):
        raise RecipeError(f"a release's date is {date!r}; write it like 2023-06-15") from None
