"""Copies of a packed dataset in other libraries' layouts."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow.parquet as pq

from cvgl_data.arrow_files import writing_to
from cvgl_data.errors import DatasetError
from cvgl_data.readers.packed import check_files, read_manifest
from cvgl_data.shards import card
from cvgl_data.shards.files import TMP

_ROWS_AT_ONCE = 64
_SUFFIXES = ((b"\xff\xd8", "jpg"), (b"\x89PNG", "png"), (b"RIFF", "webp"), (b"II", "tif"), (b"MM", "tif"))


def export_arrow(dataset_dir: Path, out: Path) -> None:
    """Write every table as Arrow files that ``datasets.load_from_disk(out / table)`` opens.

    Args:
        dataset_dir: A packed dataset.
        out: New folder, one sub-folder per table.

    Raises:
        DatasetError: If ``out`` exists, or the dataset is incomplete or damaged.
    """
    import datasets

    with _new_folder(dataset_dir, out) as (part, manifest):
        had_bars = not datasets.are_progress_bars_disabled()
        datasets.disable_progress_bars()
        try:
            for table in card.tables(manifest["files"]):
                loaded = datasets.load_dataset(str(dataset_dir), table, cache_dir=str(part / ".cache"))
                loaded.save_to_disk(str(part / table))
                del loaded
        finally:
            if had_bars:
                datasets.enable_progress_bars()
        shutil.rmtree(part / ".cache", ignore_errors=True)


def export_webdataset(dataset_dir: Path, out: Path, shard_mb: float = 500.0) -> list[Path]:
    """Write every table of images as WebDataset tar files; the other tables are copied beside them as Parquet.

    ``datasets.load_dataset("webdataset", data_files=...)`` and the ``webdataset`` library open
    ``out/queries/train-*.tar``. Each row is two members: its image, and a JSON file of its other columns. Their common
    name is the id, percent-encoded where it holds a dot or a slash, at which WebDataset would cut it. Equal datasets
    give equal files.

    Args:
        dataset_dir: A packed dataset.
        out: New folder, one sub-folder per table.
        shard_mb: Start a new file when one passes this size.

    Returns:
        The tar files, in order.

    Raises:
        DatasetError: If ``out`` exists, or the dataset is incomplete or damaged.
    """
    written = []
    with _new_folder(dataset_dir, out) as (part, manifest):
        with_images: dict[tuple[str, str], list[Path]] = {}
        for name in sorted(name for name in manifest["files"] if name.endswith(".parquet")):
            _, table, file_name = name.split("/")
            (part / table).mkdir(parents=True, exist_ok=True)
            if "image" in pq.read_schema((dataset_dir / name).absolute()).names:
                with_images.setdefault((table, file_name.split("-")[0]), []).append(dataset_dir / name)
            else:
                shutil.copyfile(dataset_dir / name, part / table / file_name)
        if not with_images:
            raise DatasetError(f"'{dataset_dir}' holds no images to export; `cvgl-data pull` fetches them")
        for (table, split), shards in with_images.items():
            tars = _write_tars(shards, part / table, split, int(shard_mb * 1_000_000))
            written += [out / table / path.name for path in tars]
    return written


@contextmanager
def _new_folder(dataset_dir: Path, out: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield a folder that gets its name when all is written, and the manifest of the dataset, which is sound."""
    if out.exists():
        raise DatasetError(f"'{out}' exists already; name another folder for the export")
    manifest = read_manifest(dataset_dir)
    check_files(dataset_dir, manifest, verify=True)
    part = out.with_name(out.name + TMP)
    shutil.rmtree(part, ignore_errors=True)
    try:
        with writing_to(out):
            part.mkdir(parents=True)
            yield part, manifest
            os.replace(part, out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write_tars(shards: list[Path], folder: Path, split: str, shard_bytes: int) -> list[Path]:
    written: list[Path] = []
    tar: tarfile.TarFile | None = None
    try:
        for key, image, row in _samples(shards):
            if tar is None:
                written.append(folder / f"{split}-{len(written):05d}.tar")
                tar = tarfile.open(written[-1], "w", format=tarfile.PAX_FORMAT)  # noqa: SIM115 - closed below
            suffix = next((suffix for magic, suffix in _SUFFIXES if image.startswith(magic)), "img")
            for name, content in ((f"{key}.{suffix}", image), (f"{key}.json", row)):
                member = tarfile.TarInfo(name)  # owner, time and mode are those of every file: nobody, 0, 0644
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
            if tar.offset >= shard_bytes:
                tar.close()
                tar = None
    finally:
        if tar is not None:
            tar.close()
    return written


def _samples(shards: list[Path]) -> Iterator[tuple[str, bytes, bytes]]:
    """Yield the key, the image and the other columns as JSON of each row."""
    for path in shards:
        with pq.ParquetFile(path.absolute()) as file:
            for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE):
                for row in batch.to_pylist():
                    image = row.pop("image")["bytes"]
                    key = quote(next(iter(row.values())), safe="").replace(".", "%2E")
                    yield key, image, json.dumps(row, ensure_ascii=False).encode()
