"""Where the windows and queries of an area lie on one map, whatever their zoom."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from cvgl_data.dataset import CrossViewDataset
from cvgl_data.geo import gsd_m, lonlat_from_pixel, pixel_from_lonlat
from cvgl_data.types import TILE_PX

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """An area in units of the Web-Mercator world: x east, y south, (0, 0) the north-west corner, 1 the whole side.

    An area across the antimeridian goes on beyond 1, so that it is in one piece.
    """

    reference_rows: Ints
    """Rows of these R windows in the dataset, shape (R,)."""
    west: Floats
    north: Floats
    side: Floats
    num_queries: Ints
    """Queries (of any area) whose positive each window is, shape (R,)."""
    query_rows: Ints
    """Rows of these Q queries, shape (Q,); those without a position are left out."""
    query_x: Floats
    query_y: Floats
    decentrality: Floats
    """Of the positive, shape (Q,); NaN without one."""

    @property
    def edges(self) -> tuple[float, float, float, float]:
        """West, north, east and south end of all windows and queries; at least one must be there."""
        x, y = np.append(self.west, self.query_x), np.append(self.north, self.query_y)
        east, south = np.append(self.west + self.side, x), np.append(self.north + self.side, y)
        return float(x.min()), float(y.min()), float(east.max()), float(south.max())

    @property
    def ground_m(self) -> float:
        """Ground metres of one world unit at the latitude of the windows' middle."""
        middle = (float(self.north.min()) + float((self.north + self.side).max())) / 2
        _, lat = lonlat_from_pixel(0.0, middle * TILE_PX, 0)
        return float(gsd_m(lat, 0)) * TILE_PX


def placed(dataset: CrossViewDataset, area: str) -> Placement:
    """Place the references and queries of one area; either may be none."""
    reference_rows = np.flatnonzero(pc.equal(pc.fill_null(dataset.references["area"], ""), area).to_numpy())
    columns = [dataset.references[name].to_numpy()[reference_rows] for name in ("x", "y", "size", "zoom")]
    world = TILE_PX * 2.0 ** columns[3]
    west, north, side = (column / world for column in columns[:3])

    query_rows = np.flatnonzero(pc.equal(pc.fill_null(dataset.queries["area"], ""), area).to_numpy())
    lon, lat = (
        pc.fill_null(dataset.queries[name], float("nan")).to_numpy()[query_rows].astype(np.float64)
        for name in ("lon", "lat")
    )
    located = np.isfinite(lon) & np.isfinite(lat)
    query_rows, lon, lat = query_rows[located], lon[located], lat[located]
    x, y = (pixels / TILE_PX for pixels in pixel_from_lonlat(lon, lat, 0))
    both = np.concatenate([west, x])
    if len(both) and both.max() - both.min() > 0.5:
        west, x = (np.where(values < 0.5, values + 1.0, values) for values in (west, x))
    values = np.full(dataset.queries.num_rows, np.nan)
    positive = dataset.pairs.filter(pc.equal(dataset.pairs["relation"], "positive"))
    values[positive["query_row"].to_numpy()] = positive["decentrality"].to_numpy()
    counts = np.bincount(positive["reference_row"].to_numpy(), minlength=dataset.references.num_rows)
    return Placement(
        reference_rows=reference_rows,
        west=west,
        north=north,
        side=side,
        num_queries=counts[reference_rows].astype(np.int64),
        query_rows=query_rows,
        query_x=x,
        query_y=y,
        decentrality=values[query_rows],
    )
