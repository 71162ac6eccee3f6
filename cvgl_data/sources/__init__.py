"""Where images come from: one file per source, one line per name in the tables below.

A source is built with the recipe's ``options`` as keyword arguments. The option ``location`` is what the command line
takes after the colon: ``--imagery folder:./tiles``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from cvgl_data.errors import RecipeError
from cvgl_data.registry import Registry, did_you_mean
from cvgl_data.types import ImagerySource, PanoramaSource

IMAGERY: Registry[Callable[..., ImagerySource]] = Registry(
    "imagery source",
    {
        "esri": "cvgl_data.sources.esri:EsriWayback",
        "esri-live": "cvgl_data.sources.esri:EsriLive",
        "simulated": "cvgl_data.sources.simulated:SimulatedImagery",
        "simulated-map": "cvgl_data.sources.simulated:SimulatedMap",
        "folder": "cvgl_data.sources.folder:FolderImagery",
        "xyz": "cvgl_data.sources.xyz:XyzImagery",
    },
    group="cvgl.imagery",
)

PANORAMAS: Registry[Callable[..., PanoramaSource]] = Registry(
    "panorama source",
    {
        "panoramax": "cvgl_data.sources.panoramax:PanoramaxPanoramas",
        "mapillary": "cvgl_data.sources.mapillary:MapillaryPanoramas",
        "google": "cvgl_data.sources.google_tiles:GoogleTilesPanoramas",
        "google-static": "cvgl_data.sources.google_static:GoogleStaticPanoramas",
        "simulated": "cvgl_data.sources.simulated:SimulatedPanoramas",
        "folder": "cvgl_data.sources.folder:FolderPanoramas",
    },
    group="cvgl.panoramas",
)


def open_imagery(name: str, options: Mapping[str, Any], **runtime: Any) -> ImagerySource:
    """Build the named imagery source.

    Args:
        name: A name of `IMAGERY`.
        options: The recipe's ``options``, keyword arguments of the source.
        runtime: What does not change a dataset's content (``workers``); passed on if the source takes it.

    Raises:
        UnknownNameError: If there is no such source.
        RecipeError: If it does not take one of the options.
    """
    source: ImagerySource = _build(IMAGERY, name, options, runtime, "imagery.options")
    return source


def open_panoramas(name: str, options: Mapping[str, Any], **runtime: Any) -> PanoramaSource:
    """Build the named panorama source; arguments and errors as for `open_imagery`."""
    source: PanoramaSource = _build(PANORAMAS, name, options, runtime, "panoramas.options")
    return source


def _build(
    registry: Registry[Callable[..., Any]],
    name: str,
    options: Mapping[str, Any],
    runtime: Mapping[str, Any],
    path: str,
) -> Any:
    factory = registry.load(name)
    known = inspect.signature(factory).parameters
    for key in options:
        if key not in known or key in runtime:
            hint = did_you_mean(key, known) if known else "; it takes none"
            raise RecipeError(f"recipe key '{path}.{key}' is unknown to {registry.kind} '{name}'{hint}")
    for key, parameter in known.items():
        if parameter.default is parameter.empty and key not in options:
            raise RecipeError(f"{registry.kind} '{name}' needs '{path}.{key}'")
    return factory(**{key: value for key, value in runtime.items() if key in known}, **options)
