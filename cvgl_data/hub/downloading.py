"""Get a dataset repository from the Hub, or what of it is not here yet."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cvgl_data.errors import HubError
from cvgl_data.hub.client import again, check_repo_id, explained, quiet
from cvgl_data.hub.staging import CARD, IMAGES
from cvgl_data.readers.packed import MANIFEST, check_files, read_manifest
from cvgl_data.types import Progress, Silent


def download(
    repo_id: str, *, with_images: Path, without: Path, revision: str | None = None, progress: Progress | None = None
) -> tuple[Path, dict[str, Any]]:
    """Download a dataset and compare every file with its hash; what is there already is not sent again.

    Args:
        repo_id: ``user/name``.
        with_images: Folder for a dataset that holds its images.
        without: Folder for one that does not.
        revision: Branch, tag or commit.
        progress: Told about the stage.

    Returns:
        The folder it went to, and its manifest.

    Raises:
        HubError: If the Hub refuses or cannot be reached, or the repository holds no complete dataset of ours.
        DatasetError: If a file is not what its manifest says.
    """
    progress = progress or Silent()
    check_repo_id(repo_id)
    with explained(repo_id), quiet(isinstance(progress, Silent)):
        from huggingface_hub import HfApi, snapshot_download
        from huggingface_hub.errors import EntryNotFoundError

        api = HfApi(library_name="cvgl")
        commit = str(again(lambda: api.dataset_info(repo_id, revision=revision).sha, "asking for the repository"))
        try:
            text = again(
                lambda: api.hf_hub_download(
                    repo_id, MANIFEST, repo_type="dataset", revision=commit, local_dir=without / ".manifest"
                ),
                "downloading",
            )
        except EntryNotFoundError:
            raise HubError(
                f"'{repo_id}' holds no {MANIFEST}: it is no dataset of cvgl, or was not pushed completely; "
                "push it again, or open it with `datasets`"
            ) from None
        manifest = _parse(Path(text), repo_id)
        folder = with_images if manifest.get(IMAGES, True) else without
        names = [*manifest["files"], MANIFEST, CARD]
        progress.stage("download", None)
        again(
            lambda: snapshot_download(
                repo_id, repo_type="dataset", revision=commit, local_dir=folder, allow_patterns=names
            ),
            "downloading",
        )
    shutil.rmtree(without / ".manifest", ignore_errors=True)
    manifest = read_manifest(folder)
    _remove_strangers(folder, manifest)
    check_files(folder, manifest, verify=True)
    shutil.rmtree(folder / ".cache" / "huggingface", ignore_errors=True)
    if (folder / ".cache").is_dir() and not any((folder / ".cache").iterdir()):
        (folder / ".cache").rmdir()
    return folder, manifest


def _parse(path: Path, repo_id: str) -> Mapping[str, Any]:
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        complete = isinstance(manifest["files"], dict) and "schema_version" in manifest
    except (ValueError, KeyError, TypeError):
        complete = False
    if not complete:
        raise HubError(f"'{repo_id}' is no dataset of cvgl: its {MANIFEST} is of another kind")
    return dict(manifest)


def _remove_strangers(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Remove shards of an earlier revision that was downloaded to the same folder."""
    for path in sorted((folder / "data").rglob("*.parquet")):
        if path.relative_to(folder).as_posix() not in manifest["files"]:
            path.unlink()
