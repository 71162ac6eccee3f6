"""Push a packed dataset to the Hub, without its images unless every one of them may be published."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import TypeVar

from cvgl_data.errors import HubError, RedistributionError
from cvgl_data.hub import redistribution, tables
from cvgl_data.hub.client import again, check_repo_id, explained, quiet
from cvgl_data.hub.staging import CARD, File, stage
from cvgl_data.readers.packed import MANIFEST, read_manifest
from cvgl_data.types import Progress, Silent

T = TypeVar("T")

logger = logging.getLogger(__name__)

OURS = ("data/*/*-?????-of-?????.parquet", "data/*/_*.index.npy", "report/figures/*", "report/index.html")
"""Files on the Hub that an earlier push left; a shard of another number would be read together with the new ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed:
    """What a push sent, or would send."""

    repo_id: str
    url: str
    files: tuple[File, ...]
    with_images: bool
    commit: str = ""
    """Id of the last commit; "" for a dry run."""

    @property
    def num_bytes(self) -> int:
        """Size of all files together, also of those that the Hub had already."""
        return sum(file.bytes for file in self.files)


def push(
    folder: Path,
    repo_id: str,
    *,
    with_images: bool = False,
    private: bool = False,
    dry_run: bool = False,
    revision: str | None = None,
    message: str = "",
    keep_card: bool = False,
    refused_to: Path | None = None,
    progress: Progress | None = None,
) -> Pushed:
    """Push a packed dataset; run again, a push that was interrupted goes on without sending again what is there.

    Without images everything else is pushed: ids, positions, dates, licences and the sha256 of each image, from which
    `cvgl_data.hub.pull` makes the same dataset. The manifest is sent last: where it is missing or names other files,
    the push is not complete.

    Args:
        folder: Packed dataset.
        repo_id: ``user/name``; made if it does not exist.
        with_images: Also the images, if each may be published.
        private: Make the repository private; one that is public already is refused.
        dry_run: Only tell what would be sent; the Hub is not asked.
        revision: Branch, made if it does not exist (default: ``main``).
        message: Of the commit.
        keep_card: Leave the README.md that is on the Hub, which its author may have edited there.
        refused_to: Write the rows that may not be published to this CSV file.
        progress: Told about the stages.

    Raises:
        RedistributionError: If images may not be published; nothing is uploaded.
        HubError: If the Hub refuses or cannot be reached; says what to do.
        DatasetError: If the dataset is incomplete or damaged.
    """
    progress = progress or Silent()
    check_repo_id(repo_id)
    folder = Path(folder)
    manifest = read_manifest(folder)
    if with_images:
        try:
            redistribution.check(tables.references(folder, manifest), tables.queries(folder, manifest).values())
        except RedistributionError as error:
            if refused_to is not None:
                redistribution.write(refused_to, error.rows)
            raise
    progress.stage("check", None)
    with tempfile.TemporaryDirectory(prefix="cvgl-push-") as made:
        staged = Path(made) / "dataset"
        files = tuple(stage(folder, staged, repo_id=repo_id, with_images=with_images))
        url = f"https://huggingface.co/datasets/{repo_id}"
        if dry_run:
            return Pushed(repo_id=repo_id, url=url, files=files, with_images=with_images)
        progress.stage("upload", None)
        with explained(repo_id, writing=True), quiet(isinstance(progress, Silent)):
            said = message or f"Push {manifest['name']}"
            url, commit = _beside(lambda: _upload(staged, repo_id, private, revision, said, keep_card))
    return Pushed(repo_id=repo_id, url=url, files=files, with_images=with_images, commit=commit)


def _beside(work: Callable[[], T]) -> T:
    """Return what a function returns, run beside this thread: Ctrl-C ends the wait at once.

    The client waits for its own threads even then, and these for an upload that may never end.
    """
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    thread = Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.2)  # a wait without an end may sleep through a signal that another thread took
    return done.result()


def _upload(
    staged: Path, repo_id: str, private: bool, revision: str | None, message: str, keep_card: bool
) -> tuple[str, str]:
    """Send a folder; returns the repository's address and the last commit."""
    from huggingface_hub import HfApi, get_token

    if not get_token():
        raise HubError("there is no Hugging Face token; log in with `hf auth login`, or set HF_TOKEN")
    api = HfApi(library_name="cvgl")

    def create() -> str:
        return str(api.create_repo(repo_id, repo_type="dataset", private=private or None, exist_ok=True))

    url = again(create, "making the repository")
    if private and not again(lambda: api.dataset_info(repo_id).private, "asking for the repository"):
        raise HubError(f"'{repo_id}' exists and is public; make it private in its settings, or choose another name")
    if revision:
        again(lambda: api.create_branch(repo_id, branch=revision, repo_type="dataset", exist_ok=True), "branching")

    keep_card = keep_card and again(
        lambda: api.file_exists(repo_id, CARD, repo_type="dataset", revision=revision), "asking for the card"
    )

    def send(manifest: bool) -> str:
        info = api.upload_folder(
            repo_id=repo_id,
            folder_path=staged,
            repo_type="dataset",
            revision=revision,
            commit_message=message,
            allow_patterns=[MANIFEST] if manifest else None,
            ignore_patterns=None if manifest else [MANIFEST, *([CARD] if keep_card else [])],
            delete_patterns=None if manifest else list(OURS),
        )
        return str(info.oid)

    again(lambda: send(manifest=False), "uploading")
    return url, again(lambda: send(manifest=True), "committing the manifest")
