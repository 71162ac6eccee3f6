"""The folder that is pushed: a dataset as it may be published, made of links to the files of the packed one."""

from __future__ import annotations

import json
import os
import shutil
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from cvgl_data.dataset import open_dataset
from cvgl_data.errors import HubError
from cvgl_data.hub import croissant, redistribution, tables
from cvgl_data.hub.recipes import without_paths
from cvgl_data.readers.packed import INDEX_SUFFIX, MANIFEST, check_files, read_manifest
from cvgl_data.redaction import redact
from cvgl_data.report import write_report
from cvgl_data.report.figures import write_figures
from cvgl_data.shards import card
from cvgl_data.shards.files import entry
from cvgl_data.shards.tally import tally
from cvgl_data.workspace import REPORT

IMAGES = "images"
"""Key of the manifest: whether the pixels are there."""

LEFT_OUT = "images_left_out"
"""Key of the manifest: the files with pixels, as they were packed, by which a pulled dataset is compared."""

CARD = "README.md"
"""Its author may edit it on the Hub, so no hash of it is published."""

FIGURES = "report/figures"


@dataclass(frozen=True, slots=True)
class File:
    """A file of a dataset repository."""

    path: str
    """Relative to the repository."""
    bytes: int


def stage(dataset: Path, target: Path, *, repo_id: str, with_images: bool = False) -> list[File]:
    """Fill a folder with what is to be published of a dataset.

    Args:
        dataset: Packed dataset; each of its files is compared with its hash first.
        target: Folder that does not exist or is empty. Large files are links.
        repo_id: ``user/name`` on the Hub.
        with_images: Also the files with pixels; whether that is allowed is not asked here.

    Returns:
        The files, sorted by path.

    Raises:
        DatasetError: If the dataset is incomplete or damaged.
        HubError: If images are wanted that are not there.
    """
    manifest = read_manifest(dataset)
    check_files(dataset, {"files": {n: item for n, item in manifest["files"].items() if n != CARD}}, verify=True)
    has_images = bool(manifest.get(IMAGES, True))
    if with_images and not has_images:
        raise HubError(f"'{dataset}' holds no images; `cvgl-data pull {dataset} --out DIR` fetches them first")
    data = {name: item for name, item in manifest["files"].items() if name.startswith("data/")}
    shown = data if with_images else without_pixels(dataset, data)
    target.mkdir(parents=True, exist_ok=True)
    for name in shown:
        _link(dataset / name, target / name)
    figures = _draw(dataset, target) if has_images else []
    if with_images:  # the report shows samples: it goes where the images go
        write_report(dataset, target / REPORT)
    extras = [*figures, *([REPORT.as_posix()] if with_images else [])]

    refused = redistribution.refusals(tables.references(dataset, manifest), tables.queries(dataset, manifest).values())
    counted = tally(dataset, data)
    recipe = without_paths(tomllib.loads((dataset / "recipe.toml").read_text(encoding="utf-8")))
    texts = {
        CARD: card.render(
            manifest["name"],
            shown,
            manifest["counts"],
            manifest["sources"],
            counted=counted,
            repo_id=repo_id,
            images=with_images,
            kept_back=redistribution.counts_by_reason(refused),
            figures=figures,
        ),
        "recipe.toml": tomli_w.dumps(recipe),
        croissant.CROISSANT: croissant.render(
            manifest["name"],
            dataset,
            shown,
            repo_id=repo_id,
            licences=[licence for _, licence in counted.licences],
            attributions=[source["attribution"] for source in manifest["sources"]],
        ),
    }
    entries = dict(shown)
    for name, text in texts.items():
        (target / name).write_text(redact(text), encoding="utf-8", newline="\n")
        if name != CARD:
            entries[name] = entry(target / name)
    for name in extras:
        entries[name] = entry(target / name)
    left_out = {name: item for name, item in data.items() if name not in shown} or manifest.get(LEFT_OUT, {})
    published = {
        **manifest,
        IMAGES: with_images,
        **({} if with_images else {LEFT_OUT: dict(sorted(left_out.items()))}),
        "files": dict(sorted(entries.items())),
    }
    (target / MANIFEST).write_text(redact(json.dumps(published, indent=1)) + "\n", encoding="utf-8", newline="\n")
    return sorted(
        (
            File(path.relative_to(target).as_posix(), path.stat().st_size)
            for path in target.rglob("*")
            if path.is_file()
        ),
        key=lambda file: file.path,
    )


def without_pixels(dataset: Path, data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of those data files that hold no pixels, and no index of pixels.

    Args:
        dataset: Where they lie.
        data: Path to the manifest's entry.
    """
    return {
        name: item
        for name, item in data.items()
        if name.endswith(".parquet") and not name.endswith(INDEX_SUFFIX) and not tables.holds_pixels(dataset / name)
    }


def _draw(dataset: Path, target: Path) -> list[str]:
    """Draw the diagrams of the card, which hold no pixels of images, and return their paths."""
    drawn = write_figures(open_dataset(dataset), target / FIGURES, ("png",), is_summary=True)
    return [path.relative_to(target).as_posix() for path in drawn]


def _link(source: Path, target: Path) -> None:
    """Let a file appear at another place without copying it, where the system can."""
    target.parent.mkdir(parents=True, exist_ok=True)
    source = source.resolve()
    for link in (os.link, os.symlink, shutil.copyfile):
        try:
            link(source, target)
        except OSError:  # another file system; a user who may not link
            if link is shutil.copyfile:
                raise
        else:
            return
