"""Open a dataset that is on the Hub, as if it were a folder."""

from __future__ import annotations

from pathlib import Path

from cvgl_data.dataset import CrossViewDataset
from cvgl_data.errors import HubError
from cvgl_data.hub.client import again, check_repo_id, explained, quiet
from cvgl_data.readers import packed

_PARTS = ["data/*", "report/*", "README.md", "*.toml", "*.json"]
"""Files that a push sends; a repository may hold others."""


def read(location: Path | str, *, verify: bool = False) -> CrossViewDataset:
    """Open a dataset on the Hub; what is in the cache of `huggingface_hub` is not downloaded again.

    Args:
        location: ``user/name``, perhaps with ``@`` and a branch, tag or commit.
        verify: Compare the hash of every file, not only its size.

    Raises:
        HubError: If the Hub refuses or cannot be reached, or the repository holds no complete dataset of ours,
            or one that was pushed without its images.
        DatasetError: If a file is damaged.
    """
    repo_id, _, revision = Path(location).as_posix().partition("@")
    check_repo_id(repo_id)
    with explained(repo_id), quiet(True):
        from huggingface_hub import snapshot_download

        folder = Path(
            again(
                lambda: snapshot_download(
                    repo_id, repo_type="dataset", revision=revision or None, allow_patterns=_PARTS, library_name="cvgl"
                ),
                "downloading",
            )
        )
    if not (folder / packed.MANIFEST).is_file():
        raise HubError(
            f"'{repo_id}' holds no {packed.MANIFEST}: it is no dataset of cvgl, or was not pushed completely; "
            "push it again, or open it with `datasets`"
        )
    if packed.read_manifest(folder).get("images") is False:
        at = f" --revision {revision}" if revision else ""
        raise HubError(
            f"'{repo_id}' was pushed without its images; `cvgl-data pull {repo_id}{at} --out DIR` fetches them"
        )
    return packed.read(folder, verify=verify)
