"""File names that hold a position: those of VIGOR and DReSS, read and written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_NOWHERE = (float("nan"), float("nan"))
_MAX_LAT = 85.06

Convention = Literal["vigor", "dress"]


@dataclass(frozen=True, slots=True)
class Naming:
    """Where in a name, cut at a separator, latitude and longitude stand."""

    separator: str
    fields: int
    """Number of fields of a name without its suffix."""
    lat: int
    lon: int
    example: str

    def positions(self, names: Sequence[str]) -> tuple[Floats, Floats, dict[int, str]]:
        """Return longitudes and latitudes in file names, and what is wrong with those that hold none.

        Args:
            names: (N,) file names.

        Returns:
            Longitude and latitude, (N,) each, NaN where there is none; and a message by index of the name.
        """
        stems = pa.array([name.rpartition(".")[0] for name in names], pa.string())
        parts = pc.split_pattern(stems, self.separator)
        try:
            if (pc.list_value_length(parts).to_numpy() != self.fields).any():
                raise ValueError
            texts = parts.values
            found = np.stack(
                [texts[field :: self.fields].cast(pa.float64()).to_numpy() for field in (self.lon, self.lat)], 1
            )
        except ValueError:  # one by one, to tell which
            found = np.array([self._position(part) for part in parts.to_pylist()], np.float64).reshape(-1, 2)
        lon, lat = found[:, 0], found[:, 1]
        with np.errstate(invalid="ignore"):
            good = (np.abs(lon) <= 180) & (np.abs(lat) <= _MAX_LAT)
        wrong = {
            index: f"'{names[index]}' lies at longitude {lon[index]:g}, latitude {lat[index]:g}, which is nowhere"
            if np.isfinite(found[index]).all()
            else f"'{names[index]}' does not look like '{self.example}'"
            for index in np.flatnonzero(~good).tolist()
        }
        return lon, lat, wrong

    def _position(self, parts: list[str]) -> tuple[float, float]:
        try:
            return (float(parts[self.lon]), float(parts[self.lat])) if len(parts) == self.fields else _NOWHERE
        except ValueError:
            return _NOWHERE


VIGOR_PANORAMA = Naming(",", 4, lat=1, lon=2, example="ID,41.877949,-87.689396,.jpg")
VIGOR_TILE = Naming("_", 3, lat=1, lon=2, example="satellite_41.87797_-87.68943.png")
DRESS_PANORAMA = Naming(",", 6, lat=2, lon=3, example="FIELD,ID,41.877949,-87.689396,FIELD,FIELD.jpg")
DRESS_TILE = Naming("_", 4, lat=3, lon=2, example="FIELD_FIELD_-87.68943_41.87797.png")
