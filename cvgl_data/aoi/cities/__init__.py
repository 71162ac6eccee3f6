"""The city catalogue: one row per city in ``cities.toml``, one polygon per city in ``<key>.geojson``.

`cvgl_data.aoi.AreaOfInterest.from_city` turns a row into an area.
"""

from __future__ import annotations

import functools
import tomllib
import unicodedata
from dataclasses import dataclass
from importlib.resources import files

from cvgl_data.errors import UnknownNameError
from cvgl_data.registry import did_you_mean
from cvgl_data.types import LonLat


@dataclass(frozen=True, slots=True, kw_only=True)
class City:
    """One city of the catalogue."""

    key: str
    """Lower case with hyphens: ``rio-de-janeiro``."""
    name: str
    country: str
    center: LonLat
    """Where the city's centre is marked on maps; inside the polygon."""
    datasets: tuple[str, ...]
    """Datasets of the literature that use the city: CV-Cities, DReSS, VIGOR."""
    boundary: str
    """What the polygon is: a municipal limit, an urban area, ..."""
    source: str
    """Who published the polygon."""
    licence: str
    aliases: tuple[str, ...] = ()
    """Other spellings, such as the folder names of published datasets."""

    @property
    def geojson(self) -> str:
        """Text of the polygon's GeoJSON feature collection, lon/lat."""
        return (files(__name__) / f"{self.key}.geojson").read_text(encoding="utf-8")


@functools.cache
def catalog() -> tuple[City, ...]:
    """Return all cities, ordered by key."""
    rows = tomllib.loads((files(__name__) / "cities.toml").read_text(encoding="utf-8"))
    return tuple(
        City(
            key=key,
            name=row["name"],
            country=row["country"],
            center=LonLat(*row["center"]),
            datasets=tuple(row["datasets"]),
            boundary=row["boundary"],
            source=row["source"],
            licence=row["licence"],
            aliases=tuple(row.get("aliases", ())),
        )
        for key, row in sorted(rows.items())
    )


def find_city(name: str) -> City:
    """Return the city of a name; case, accents, spaces, hyphens and underscores do not matter.

    Args:
        name: ``seattle``, ``Rio de Janeiro``, ``rio_de_janeiro``, ``NewYork``, ...

    Raises:
        UnknownNameError: If no city has that name; the message suggests the nearest.
    """
    by_name = {_folded(alias): city for city in catalog() for alias in (city.key, city.name, *city.aliases)}
    try:
        return by_name[_folded(name)]
    except KeyError:
        hint = did_you_mean(name.replace(" ", "-").replace("_", "-"), (city.key for city in catalog()))
        raise UnknownNameError(f"unknown city '{name}'{hint}") from None


def _folded(name: str) -> str:
    """Return only the letters and digits, lower case and without accents."""
    decomposed = unicodedata.normalize("NFKD", name).casefold()
    return "".join(letter for letter in decomposed if letter.isalnum())
