"""Imagery from any server of XYZ tiles, given by its URL template."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from urllib.parse import urlsplit

from cvgl_data.environment import secret
from cvgl_data.errors import NoImagery, RecipeError
from cvgl_data.http import Http
from cvgl_data.redaction import SECRET_PARAMETERS
from cvgl_data.types import Fetched, Tile

_PLACEHOLDER = re.compile(r"(?<!\$)\{([^{}]*)\}")
_VARIABLE = re.compile(r"\$\{(\w+)\}")
_LITERAL_SECRET = re.compile(rf"(?i)[?&]({'|'.join(SECRET_PARAMETERS)})=(?!\$\{{\w+\}}(?:&|$))[^&]")
_VALUES: dict[str, Callable[[Tile], str]] = {
    "z": lambda tile: str(tile.z),
    "x": lambda tile: str(tile.x),
    "y": lambda tile: str(tile.y),
    "-y": lambda tile: str(2**tile.z - 1 - tile.y),
    "q": lambda tile: tile.quadkey,
}
_PLACES = ({"z", "x", "y"}, {"z", "x", "-y"}, {"q"})


class XyzImagery:
    """Tiles by HTTP from a URL template such as ``https://tiles.example.org/{z}/{x}/{y}.jpg``.

    Placeholders: ``{z} {x} {y}``; ``{-y}`` counts rows from the south (TMS); ``{q}`` is the quadkey; ``{s}`` one of
    ``subdomains``. ``${NAME}`` stands for an environment variable, so that keys stay out of recipes:
    ``...?key=${MY_TILE_KEY}``.

    Args:
        location: The template.
        max_zoom: Deepest zoom the server has.
        tile_px: Pixels per side that it sends (256, or 512 for "@2x").
        attribution: Whom to credit.
        licence: Licence of the imagery; empty means unknown, which is not permission.
        subdomains: ``"abc"`` or ``"t0,t1"``; spread over by tile.
        placeholder_sha256: Digests, separated by commas, of the images that the server sends where it has none.

    Raises:
        RecipeError: If the template cannot work, carries a secret, or names a server that forbids bulk downloads.
    """

    name = "xyz"

    def __init__(
        self,
        location: str,
        max_zoom: int = 22,
        tile_px: int = 256,
        attribution: str = "",
        licence: str = "",
        subdomains: str = "",
        placeholder_sha256: str = "",
    ) -> None:
        self.max_zoom = max_zoom
        self.tile_px = tile_px
        self.attribution = attribution
        self.licence = licence
        self._placeholders = {digest.strip().lower() for digest in placeholder_sha256.split(",") if digest.strip()}
        hosts = [part for part in (subdomains.split(",") if "," in subdomains else subdomains) if part]
        template = _checked(location, hosts)
        self._format = _as_format(template)
        used = {match[1] for match in _PLACEHOLDER.finditer(template)}
        # By tile, so that a tile always has the same URL.
        spread = {"s": lambda tile: hosts[(tile.x + tile.y) % len(hosts)]}
        self._values = {name: value for name, value in (_VALUES | spread).items() if name in used}

    def url(self, tile: Tile) -> str:
        """Return the address of a tile."""
        values = {name: value(tile) for name, value in self._values.items()}
        return self._format.format_map(values)

    async def fetch(self, tile: Tile, http: Http) -> Fetched:
        """Return the tile as the server sends it; a 404 is ``not_found``. See `ImagerySource.fetch`."""
        response = await http.get(self.url(tile), source=self.name, item=tile)
        if response.status == 204 or not response.body:
            raise NoImagery(f"the server has an empty answer for tile {tile}", source=self.name, item=str(tile))
        digest = hashlib.sha256(response.body).hexdigest() if self._placeholders else ""
        if digest in self._placeholders:
            raise NoImagery(f"the server has a placeholder for tile {tile}", source=self.name, item=str(tile))
        return Fetched(image=response.body, sha256=digest, **response.validators)

    def close(self) -> None:
        """Do nothing; the connections belong to the `Http`."""


def _as_format(template: str) -> str:
    """Return the template for `str.format_map`: braces that are no placeholders stand for themselves."""
    parts = re.split(r"(\{(?:z|x|y|-y|q|s)\})", template)
    return "".join(
        part if index % 2 else part.replace("{", "{{").replace("}", "}}") for index, part in enumerate(parts)
    )


def _checked(location: str, subdomains: list[str]) -> str:
    """Return the template with its variables filled in."""
    secret = _LITERAL_SECRET.search(location)
    if secret:
        raise RecipeError(
            f"the tile template carries a secret in '{secret[1]}', which the saved recipe would repeat; "
            f"put it into an environment variable and write {secret[1]}=${{NAME}}"
        )
    used = {match[1] for match in _PLACEHOLDER.finditer(location)}
    unknown = ", ".join(f"{{{name}}}" for name in sorted(used - {"z", "x", "y", "-y", "q", "s"}))
    if unknown:
        raise RecipeError(
            f"tile template '{location}' has unknown placeholders {unknown}; "
            "known: {z} {x} {y} {-y} {q} {s}"
        )
    if not any(places <= used for places in _PLACES):
        raise RecipeError(f"tile template '{location}' needs {{z}}, {{x}} and {{y}} (or {{-y}}), or {{q}}")
    if "s" in used and not subdomains:
        raise RecipeError(f"tile template '{location}' uses {{s}}; set the option 'subdomains'")
    parts = urlsplit(_PLACEHOLDER.sub("0", location))
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise RecipeError(f"tile template '{location}' must begin with http:// or https:// and a host")
    if parts.hostname.endswith(("openstreetmap.org", ".osm.org")):
        raise RecipeError(
            f"'{parts.hostname}' is run by volunteers whose tile usage policy forbids bulk downloading; "
            "use your own tile server or another provider"
        )
    return _VARIABLE.sub(_variable, location)


def _variable(match: re.Match[str]) -> str:
    value = secret(match[1])
    if value is None:
        raise RecipeError(f"the tile template uses ${{{match[1]}}}, but that environment variable is not set")
    return value.reveal()
