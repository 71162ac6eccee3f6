"""Protocols of datasets of several cities: which cities train and test, and which label files say so."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cvgl_data.errors import RecipeError
from cvgl_data.readers.layout import one_of

PROTOCOLS = ("same-area", "cross-area")

SAME_AREA, CROSS_AREA = "same_area_balanced_{split}", "pano_label_balanced"
"""Stems of the label files of VIGOR and DReSS."""


class Chosen(NamedTuple):
    """Which cities train and which test."""

    train: tuple[str, ...]
    test: tuple[str, ...]

    @property
    def all(self) -> tuple[str, ...]:
        """Each once, training first."""
        return tuple(dict.fromkeys((*self.train, *self.test)))


def choose_cities(
    protocol: str, official: Chosen, there: Sequence[str], *, cities: str, train: str, test: str, root: Path
) -> Chosen:
    """Return the cities of a protocol.

    Args:
        protocol: ``same-area`` or ``cross-area``.
        official: Cities of the published cross-area protocol.
        there: Cities that the folder holds.
        cities: Comma-separated, for same-area; "": the official ones, or all that are there if none of these is.
        train: Likewise, the cities that train across areas.
        test: Likewise, those that test.
        root: For messages.

    Raises:
        RecipeError: If an option does not go with the protocol, or the official cities are incomplete.
        UnknownNameError: If a city is not there.
    """
    if protocol == "same-area":
        if train or test:
            raise RecipeError("options 'train' and 'test' name cities of protocol=cross-area")
        chosen = _named("cities", cities, there) if cities else ()
        if not chosen:
            is_official = bool(set(there) & set(official.all))
            chosen = _complete(official.all, there, root, "cities=") if is_official else tuple(there)
        return Chosen(chosen, chosen)
    if cities:
        raise RecipeError("option 'cities' goes with protocol=same-area; train= and test= name those of cross-area")
    hint = "train= and test="
    chosen_train = _named("train", train, there) if train else _complete(official.train, there, root, hint)
    chosen_test = _named("test", test, there) if test else _complete(official.test, there, root, hint)
    if both := set(chosen_train) & set(chosen_test):
        raise RecipeError(f"'{min(both)}' is named both in train= and in test=")
    return Chosen(chosen_train, chosen_test)


def _named(option: str, text: str, there: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(one_of(option, name.strip(), there) for name in text.split(",")))


def _complete(wanted: tuple[str, ...], there: Sequence[str], root: Path, hint: str) -> tuple[str, ...]:
    if missing := [city for city in wanted if city not in there]:
        raise RecipeError(
            f"'{root}' lacks {', '.join(missing)} of the published protocol (found: {', '.join(there) or 'no city'}); "
            f"name other cities with {hint}"
        )
    return wanted


def stems(protocol: str, chosen: Chosen, splits: Path) -> list[tuple[str, str, str]]:
    """Return city, stem of the label file and split of everything that a protocol reads.

    Args:
        protocol: ``same-area`` or ``cross-area``.
        chosen: The cities.
        splits: Folder of the label files, one folder per city.
    """
    if protocol == "cross-area":
        train = [(city, CROSS_AREA, "train") for city in chosen.train]
        return train + [(city, CROSS_AREA, "test") for city in chosen.test]
    found = [(city, SAME_AREA.format(split=split), split) for split in ("train", "test") for city in chosen.all]
    # Not published: what an export of a dataset with a validation split holds.
    extra = SAME_AREA.format(split="validation")
    return found + [(city, extra, "validation") for city in chosen.all if (splits / city / f"{extra}.txt").is_file()]
