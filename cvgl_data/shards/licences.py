"""Licences by name: which of them let images be published again, and what the Hub calls them."""

from __future__ import annotations

import re
from enum import StrEnum

_ALIASES = {
    "cc0": "cc0-1.0",
    "pddl-1.0": "pddl",
    "odc-pddl": "pddl",
    "odc-pddl-1.0": "pddl",
    "odbl-1.0": "odbl",
    "odc-odbl": "odbl",
    "odc-odbl-1.0": "odbl",
    "odc-by-1.0": "odc-by",
    "licence-ouverte-2.0": "etalab-2.0",
    "licence-ouverte-1.0": "etalab-1.0",
    "public-domain": "public-domain",
    "cc-pdm-1.0": "public-domain",
    "pdm-1.0": "public-domain",
    "us-government-works": "public-domain",
    "ogl": "ogl-uk-3.0",
    "ogl-3.0": "ogl-uk-3.0",
}

_OPEN = re.compile(
    r"""cc0-1\.0 | pddl | odbl | odc-by | public-domain | unlicense | etalab-[12]\.0
    | ogl-uk-[123]\.0 | dl-de-(by|zero)-2\.0 | apache-2\.0 | mit
    | cc-by(-nc)?(-sa)?-(1\.0|2\.0|2\.1|2\.5|3\.0|4\.0)(-[a-z]{2,4})?""",
    re.VERBOSE,
)
_CREATIVE_COMMONS = re.compile(r"cc-by(-nc)?(-sa|-nd)?(-\d\.\d)?(-[a-z]{2,4})?")

_ON_THE_HUB = re.compile(
    r"""apache-2\.0 | mit | cc0-1\.0 | etalab-2\.0 | odbl | odc-by | pddl | unlicense
    | cc-by-(2\.0|2\.5|3\.0|4\.0) | cc-by-sa-[34]\.0 | cc-by-nc(-sa)?-[234]\.0 | cc-by-nd-4\.0 | cc-by-nc-nd-[34]\.0""",
    re.VERBOSE,
)


class Standing(StrEnum):
    """Whether images under a licence may be published again, in the form a dataset has them."""

    OPEN = "open"
    """Yes, with attribution; perhaps not for commerce (NC), perhaps under the same licence (SA)."""
    NO_DERIVATIVES = "no_derivatives"
    """Only as they are, but references are cut and panoramas rendered anew."""
    UNKNOWN = "unknown_licence"
    """The name is not known to be that of an open licence."""
    NONE = "no_licence"
    """There is no licence, which is no permission."""


def normalized(licence: str | None) -> str:
    """Return a licence's name in the spelling that the tables of this module use; "" for none.

    Args:
        licence: An SPDX name or something like it (``CC-BY-SA-4.0``, ``CC BY 4.0``, ``etalab-2.0``).
    """
    name = re.sub(r"[\s_]+", "-", (licence or "").strip().lower())
    return _ALIASES.get(name, name)


def standing(licence: str | None) -> Standing:
    """Return whether images under a licence may be published; a short list of names decides, not the law."""
    name = normalized(licence)
    if not name:
        return Standing.NONE
    if _OPEN.fullmatch(name):
        return Standing.OPEN
    is_nd = _CREATIVE_COMMONS.fullmatch(name) and "-nd" in name
    return Standing.NO_DERIVATIVES if is_nd else Standing.UNKNOWN


def hub_names(licences: list[str]) -> list[str]:
    """Return what goes into a card's ``license``: the Hub's names, or ``other`` if it does not know one of them."""
    names = sorted({normalized(licence) for licence in licences})
    return names if names and all(map(_ON_THE_HUB.fullmatch, names)) else ["other"]
