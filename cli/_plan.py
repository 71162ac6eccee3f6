"""How a plan is printed."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING

from cvgl_data.recipe import DatasetRecipe

from ._options import note, table

if TYPE_CHECKING:
    from cvgl_data.planning import Plan
    from cvgl_data.planning.costs import SourceCost


def print_plan(recipe: DatasetRecipe, plan: Plan) -> None:
    """Print what a build will ask for and cost."""
    rows = [
        [
            area.name,
            f"{area.area_km2:,.2f}" if recipe.areas else "-",  # else it is all that a local source holds
            f"{area.num_references:,}",
            f"{area.num_tiles:,}",
            f"{area.gsd_m:.3f}",
        ]
        for area in plan.areas
    ]
    grid = recipe.grid
    title = f"{recipe.name}: {recipe.imagery.source} zoom {grid.zoom}, {grid.size} px, overlap {grid.overlap:g}"
    table(title, ["area", "km²", "references", "tiles", "m/px"], rows)
    columns = ["kind", "source", "items", "requests", "MB", "time", "USD", "days of quota", "terms to accept"]
    table("Cost", columns, [_row(cost) for cost in plan.costs])
    for cost in plan.costs:
        for host, count in cost.requests.items():
            note(f"{cost.source}: {count:,} request{'s' if count > 1 else ''} to {host}")
        if cost.note:
            note(f"{cost.source}: {cost.note}")
        if cost.items is None:
            note(f"{cost.source}: how many panoramas there are is unknown before --discover; --max-queries limits it")


def _duration(seconds: float) -> str:
    """Return days, hours, minutes and seconds; what no calendar holds is only said to be long."""
    try:
        return str(datetime.timedelta(seconds=round(seconds)))
    except OverflowError:
        return "over a million years"


def _row(cost: SourceCost) -> list[str]:
    is_known = cost.items is not None
    number = f"{cost.items:,}" if is_known else "unknown"
    return [
        cost.kind,
        cost.source,
        f"at most {number}" if cost.is_bound else number,
        f"{sum(cost.requests.values()):,}",
        f"{cost.bytes / 1e6:,.{0 if cost.bytes >= 1e7 else 1}f}" if is_known else "unknown",
        _duration(cost.seconds),
        "unknown" if cost.usd is None or not is_known else f"{cost.usd:,.2f}",
        "-" if cost.days is None else f"{cost.days:,}" if is_known else "unknown",
        cost.accept_terms or "-",
    ]
