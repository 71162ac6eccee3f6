"""Images packed at a second size: pixels, seam, rows, bytes, and reading them back."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import toy_tables as toy
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cvgl_data import schema
from cvgl_data.dataset import open_dataset
from cvgl_data.errors import DatasetError, FetchError
from cvgl_data.images import decode, image_size
from cvgl_data.readers import packed as reader
from cvgl_data.recipe import DatasetRecipe, PackRecipe, SplitRecipe
from cvgl_data.shards.resizing import RESIZED_FROM, Size, resize, resize_pixels, resize_table, sizes
from cvgl_data.shards.verification import verify

RECIPE = DatasetRecipe(
    name="toy", split=SplitRecipe(block_m=150), pack=PackRecipe(panorama_size="60x30", reference_size=20)
)


@pytest.fixture(scope="module")
def tables() -> tuple[pa.Table, pa.Table]:
    return toy.references(toy.windows(6, 6)), toy.scattered(150, 7, 7)


@pytest.fixture(scope="module")
def packed(tables, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "dataset"
    toy.pack(out, *tables, recipe=RECIPE)
    return out


def read(folder: Path, table: str, split: str) -> pa.Table:
    return pq.read_table(sorted((folder / "data" / table).glob(f"{split}-*.parquet")), partitioning=None)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def jpeg(pixels: np.ndarray, quality: int = 95) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


def gradient(height: int, width: int) -> np.ndarray:
    """A smooth panorama: its colors go around once, so that the last column meets the first."""
    angle = np.arange(width) / width * 2 * np.pi
    around = 128 + 100 * np.stack([np.sin(angle), np.cos(angle), np.sin(2 * angle)], -1)
    return np.broadcast_to(around, (height, width, 3)).round().astype(np.uint8)


def test_same_rows_at_another_size(packed):
    pairs_of_tables = [("references", "references_20", schema.GALLERY, (20, 20))]
    pairs_of_tables += [("queries", "queries_60x30", split, (60, 30)) for split in schema.SPLITS]
    for table, resized_table, split, size in pairs_of_tables:
        originals, resized = read(packed, table, split), read(packed, resized_table, split)
        assert resized.schema.names == [*originals.schema.names, RESIZED_FROM]
        assert resized.schema.metadata[schema.NAME_KEY].decode() == resized_table
        changed = {"image", "sha256"}
        for name in set(originals.schema.names) - changed:
            assert resized[name].equals(originals[name]), name
        assert resized[RESIZED_FROM].equals(originals["sha256"])
        for row, image in zip(resized.to_pylist(), resized["image"].to_pylist(), strict=True):
            assert image_size(image["bytes"]) == size
            assert hashlib.sha256(image["bytes"]).hexdigest() == row["sha256"] != row[RESIZED_FROM]


def test_manifest_index_and_card_know_them(packed):
    manifest = reader.read_manifest(packed)
    assert reader.resized_tables(manifest) == {"queries": "queries_60x30", "references": "references_20"}
    for name in (
        "data/queries_60x30/train-00000-of-00001.parquet",
        "data/references_20/gallery-00000-of-00001.parquet",
    ):
        assert manifest["files"][name]["rows"] == pq.read_metadata(packed / name).num_rows
        index = np.load(reader.index_path(packed / name))
        data = (packed / name).read_bytes()
        images = [image["bytes"] for image in pq.read_table(packed / name, partitioning=None)["image"].to_pylist()]
        assert [data[offset : offset + length] for offset, length in index.tolist()] == images
    card = (packed / "README.md").read_text(encoding="utf-8")
    assert "- config_name: queries_60x30\n" in card
    assert "- config_name: references_20\n" in card
    assert verify(packed, decode=True) == []


def test_load_dataset_opens_them(packed, tmp_path):
    import datasets

    datasets.disable_progress_bars()
    queries = datasets.load_dataset(str(packed), "queries_60x30", cache_dir=str(tmp_path / "cache"))
    assert set(queries) == set(schema.SPLITS)
    assert queries["train"][0]["image"].size == (60, 30)


def test_open_dataset_gives_the_originals_and_read_the_resized_when_asked(packed, tmp_path, tables):
    dataset, smaller = open_dataset(packed), reader.read(packed, resized=True, verify=True)
    assert smaller.queries.equals(dataset.queries)
    assert list(smaller.images) == list(dataset.images)
    for table, column, sizes_px in (
        ("queries", "query_id", [(96, 48), (60, 30)]),
        ("references", "reference_id", [(48, 48), (20, 20)]),
    ):
        key = getattr(dataset, table)[column][7].as_py()
        assert [image_size(some.images[key]) for some in (dataset, smaller)] == sizes_px
    toy.pack(tmp_path / "plain", *tables)
    with pytest.raises(DatasetError, match="holds no resized images"):
        reader.read(tmp_path / "plain", resized=True)


def test_only_one_kind_resized(tables, tmp_path):
    recipe = DatasetRecipe(name="toy", split=SplitRecipe(block_m=150), pack=PackRecipe(reference_size=20))
    toy.pack(tmp_path / "out", *tables, recipe=recipe)
    smaller = reader.read(tmp_path / "out", resized=True)
    assert image_size(smaller.images[smaller.references["reference_id"][0].as_py()]) == (20, 20)
    assert image_size(smaller.images[smaller.queries["query_id"][0].as_py()]) == (96, 48)


def test_bytes_depend_on_nothing_but_the_rows(packed, tables, tmp_path):
    for batch in (1, 150):
        toy.pack(tmp_path / str(batch), *tables, recipe=RECIPE, batch=batch)
        assert contents(tmp_path / str(batch)) == contents(packed)
    size = Size("queries", 60, 30)
    assert resize_table(tables[1], size, workers=1).equals(resize_table(tables[1], size, workers=3))


def test_packing_again_without_them_takes_them_away(tables, tmp_path):
    out = tmp_path / "out"
    toy.pack(out, *tables, recipe=RECIPE)
    mine = [out / "data" / name / "notes.txt" for name in ("queries_mine", "queries_60x30_old")]
    for path in mine:
        path.parent.mkdir()
        path.write_text("mine")
    other_size = DatasetRecipe(name="toy", split=SplitRecipe(block_m=150), pack=PackRecipe(panorama_size="40x20"))
    toy.pack(out, *tables, recipe=other_size)
    assert {path.name for path in (out / "data").glob("*_*x*")} == {"queries_40x20", "queries_60x30_old"}
    toy.pack(out, *tables)
    assert not (out / "data/queries_40x20").exists()
    assert all(path.read_text() == "mine" for path in mine)


def test_an_image_that_cannot_be_decoded_stops_packing_and_is_named(packed, tables, tmp_path):
    references, queries = tables
    images = queries["image"].to_pylist()
    name = read(packed, "queries", "train")["query_id"][0].as_py()  # those in no split are not resized
    at = queries["query_id"].to_pylist().index(name)
    cut = images[at]["bytes"]
    images[at] = {"bytes": cut[: len(cut) // 2] + b"\xff\xd9", "path": None}
    damaged = queries.set_column(1, "image", pa.array(images, schema.IMAGE))
    with pytest.raises(DatasetError, match=rf"query_id '{name}' cannot be made 60x30 .*check the quality"):
        toy.pack(tmp_path / "out", references, damaged, recipe=RECIPE)
    assert contents(tmp_path / "out") == {}
    toy.pack(tmp_path / "out", references, damaged)  # as it is, it can be packed


def test_an_image_of_that_size_keeps_its_bytes():
    image = toy.jpeg(3, 60, 30)
    assert resize(image, 60, 30) == image
    assert resize(image, 30, 30) != image
    with pytest.raises(FetchError):
        resize(b"no image", 60, 30)


def test_shrinking_does_not_alias():
    """A pattern finer than the new pixels becomes gray; taking every n-th pixel would keep it."""
    checkers = np.indices((384, 768)).sum(axis=0) % 2 * 255
    pixels = np.repeat(checkers[..., None], 3, axis=2).astype(np.uint8)
    for width, height in ((288, 144), (96, 48)):
        shrunk = resize_pixels(pixels, width, height, wraps=True)
        assert shrunk.shape == (height, width, 3)
        assert abs(shrunk.astype(int) - 127).max() < 40


def test_shrinking_keeps_the_mean_of_each_area():
    pixels = np.random.default_rng(0).integers(0, 256, (24, 48, 3), dtype=np.uint8)
    expected = pixels.reshape(8, 3, 16, 3, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(resize_pixels(pixels, 16, 8), expected, atol=0.6)
    assert (resize_pixels(np.full((1024, 2048, 3), 77, np.uint8), 768, 384) == 77).all()


@given(
    old=st.tuples(st.integers(2, 40), st.integers(2, 40)),
    new=st.tuples(st.integers(1, 50), st.integers(1, 50)),
    wraps=st.booleans(),
)
def test_any_size_becomes_any_other(old, new, wraps):
    pixels = np.full((*old, 3), 201, np.uint8)
    resized = resize_pixels(pixels, new[1], new[0], wraps=wraps)
    assert resized.shape == (*new, 3)
    assert (resized == 201).all()


@pytest.mark.parametrize("width", [384, 768, 1100, 1535])
def test_turning_a_panorama_first_or_last_is_the_same(width):
    """There is no seam: a panorama rolled by a quarter, resized, and rolled back equals the resized one."""
    pixels = np.tile(np.random.default_rng(1).integers(0, 256, (8, 128, 3), dtype=np.uint8).repeat(4, 1), (1, 1, 1))
    wide = resize_pixels(pixels, width // 4 * 4, 8, wraps=True)
    rolled = resize_pixels(np.roll(pixels, 128, axis=1), width // 4 * 4, 8, wraps=True)
    np.testing.assert_allclose(np.roll(rolled, -(width // 4), axis=1).astype(int), wide, atol=1)


def test_the_seam_of_a_packed_panorama_stays_smooth():
    image = jpeg(gradient(48, 96))
    for width, height in ((64, 32), (192, 96)):
        pixels = decode(resize(image, width, height, wraps=True)).astype(int)
        steps = abs(np.diff(pixels, axis=1)).mean(axis=(0, 2))
        seam = abs(pixels[:, 0] - pixels[:, -1]).mean()
        assert seam < 1.7 * steps.max(), (seam, steps.max())


def test_quality_of_the_resized_image():
    """Encoded once: what a reader decodes is near the pixels that were resized."""
    pixels = gradient(512, 1024)
    image = jpeg(pixels)
    expected = resize_pixels(decode(image), 768, 384).astype(float)
    error = decode(resize(image, 768, 384)).astype(float) - expected
    assert 10 * np.log10(255**2 / np.mean(error**2)) > 40


def test_sizes_of_a_recipe():
    assert sizes(PackRecipe()) == {}
    found = sizes(PackRecipe(panorama_size="768x384", reference_size=384))
    assert [size.name for size in found.values()] == ["references_384", "queries_768x384"]
    assert found["queries"] == Size("queries", 768, 384)
