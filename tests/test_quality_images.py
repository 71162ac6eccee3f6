"""What single images show: good ones pass every check, spoiled ones fail the one they should."""

from __future__ import annotations

import datetime
import io
import math
from functools import cache

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cvgl_data.images import encode_jpeg
from cvgl_data.quality.hashing import FREQUENCIES, differing_bits, perceptual_hash
from cvgl_data.quality.images import (
    Measures,
    measure_query,
    measure_reference,
    nadir_blank_deg,
    seam_ratio,
    sharpness,
)
from cvgl_data.recipe import QualityRecipe
from cvgl_data.simulation import World, render_map, render_panorama, render_tile
from cvgl_data.types import BBox, Tile

JUNE = datetime.date(2023, 6, 15)
RECIPE = QualityRecipe()
SEATTLE = BBox(-122.325, 47.610, -122.320, 47.615)


@cache
def panoramas() -> list[np.ndarray]:
    world = World(0)
    stations = list(world.stations(SEATTLE, 60.0))[::9][:5]
    return [render_panorama(world, lon, lat, heading_deg=0.0, date=JUNE) for lon, lat in stations]


@cache
def tiles() -> list[np.ndarray]:
    return [render_tile(World(0), Tile(41_990 + i, 91_537, 18).bounds, date=JUNE) for i in range(8)]


def spoil(pixels: np.ndarray, how: str) -> np.ndarray:
    spoiled = pixels.copy()
    height, width = pixels.shape[:2]
    match how:
        case "blurred":
            return cv2.GaussianBlur(spoiled, (0, 0), max(1.2, width / 800))
        case "underexposed":
            return (spoiled * 0.15).astype(np.uint8)
        case "overexposed":
            return np.clip(spoiled * 3.2, 0, 255).astype(np.uint8)
        case "blank_nadir":
            spoiled[-height // 8 :] = 0
        case "painted_nadir":
            spoiled[-height // 8 :] = (150, 195, 60)
        case "seam":
            return cv2.resize(spoiled[:, : width * 3 // 4], (width, height))
        case "no_data":
            spoiled[:, : width // 2] = 255
    return spoiled


@pytest.mark.parametrize("index", range(5))
def test_good_panoramas_pass(index: int) -> None:
    found = measure_query(encode_jpeg(panoramas()[index]))
    assert found.is_decoded
    assert (found.width, found.height) == (2048, 1024)
    assert found.luma_std > 3 * RECIPE.luma_std_min
    assert found.sharpness > 2 * RECIPE.query_sharpness_min
    assert 2 * RECIPE.luma_mean_min < found.luma_mean < RECIPE.luma_mean_max - 40
    assert found.dark_share < RECIPE.dark_share_max / 2
    assert found.bright_share < RECIPE.bright_share_max / 2
    assert found.nadir_blank_deg < RECIPE.nadir_blank_max_deg
    assert found.seam_ratio < RECIPE.seam_ratio_max / 2
    assert found.fill_share is None
    assert found.water_share is None


@pytest.mark.parametrize("index", range(8))
def test_good_tiles_pass(index: int) -> None:
    found = measure_reference(encode_jpeg(tiles()[index]))
    assert found.luma_std > 3 * RECIPE.luma_std_min
    assert found.sharpness > 2 * RECIPE.reference_sharpness_min
    assert found.fill_share < RECIPE.fill_share_max / 2
    assert found.water_share < RECIPE.water_share_max / 2
    assert found.nadir_blank_deg is None
    assert found.seam_ratio is None


@pytest.mark.parametrize("index", range(5))
@pytest.mark.parametrize("quality", [50, 92])
def test_spoiled_panoramas_fail(index: int, quality: int) -> None:
    good = panoramas()[index]

    def measured(how: str) -> Measures:
        buffer = io.BytesIO()
        Image.fromarray(spoil(good, how)).save(buffer, "JPEG", quality=quality)
        return measure_query(buffer.getvalue())

    assert measured("blurred").sharpness < RECIPE.query_sharpness_min
    dark, bright = measured("underexposed"), measured("overexposed")
    assert dark.luma_mean < RECIPE.luma_mean_min or dark.dark_share > RECIPE.dark_share_max
    assert bright.luma_mean > RECIPE.luma_mean_max or bright.bright_share > RECIPE.bright_share_max
    for how in ("blank_nadir", "painted_nadir"):
        assert measured(how).nadir_blank_deg == pytest.approx(22.5, abs=1.1)
    assert measured("seam").seam_ratio > RECIPE.seam_ratio_max


@pytest.mark.parametrize("index", range(8))
def test_spoiled_tiles_fail(index: int) -> None:
    good = tiles()[index]
    assert measure_reference(encode_jpeg(spoil(good, "blurred"))).sharpness < RECIPE.reference_sharpness_min
    half = measure_reference(encode_jpeg(spoil(good, "no_data")))
    assert half.fill_share == pytest.approx(0.5, abs=0.07)
    whole = measure_reference(encode_jpeg(good[:, 128:]))
    assert half.luma_mean == pytest.approx(whole.luma_mean, abs=12)  # the fill does not count as overexposed
    assert half.bright_share < 0.1


def test_water_is_told_from_other_smooth_ground() -> None:
    random = np.random.default_rng(0)
    noise = random.normal(0, 2, (256, 256, 1))

    def share(color: tuple[int, int, int]) -> float:
        pixels = np.clip(np.array(color) + noise, 0, 255).astype(np.uint8)
        return measure_reference(encode_jpeg(pixels)).water_share

    assert share((45, 85, 110)) > 0.95  # a bay
    assert share((15, 30, 38)) > 0.95  # deep sea
    assert share((95, 95, 95)) == 0.0  # asphalt
    assert share((70, 110, 40)) == 0.0  # lawn
    assert share((215, 225, 235)) == 0.0  # snow
    assert share((150, 120, 90)) == 0.0  # sand


def test_map_tiles_have_no_missing_data() -> None:
    for index in range(6):
        pixels = render_map(World(0), Tile(41_990 + index, 91_537, 18).bounds, 256)
        assert measure_reference(encode_jpeg(pixels)).fill_share < RECIPE.fill_share_max


def test_flat_images_are_measured_without_error() -> None:
    for color in (0, 128, 255):
        for measure, shape in ((measure_query, (512, 1024, 3)), (measure_reference, (256, 256, 3))):
            found = measure(encode_jpeg(np.full(shape, color, np.uint8)))
            assert found.luma_std < RECIPE.luma_std_min
            assert found.sharpness is None  # nothing to be sharp


@pytest.mark.parametrize("shape", [(1, 1), (2, 4), (7, 5), (9, 18), (33, 66), (300, 100), (31, 3)])
def test_small_and_odd_shapes(shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (*shape, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    for measure in (measure_query, measure_reference):
        found = measure(buffer.getvalue())
        assert found.is_decoded
        assert (found.height, found.width) == shape


@pytest.mark.parametrize(
    "image",
    [
        None,
        b"",
        b"<html>not found</html>",
        encode_jpeg(np.zeros((64, 64, 3), np.uint8))[:-40],
        b"\x89PNG\r\n\x1a\n" + bytes(100),
    ],
)
def test_broken_images_are_undecodable(image: bytes | None) -> None:
    assert measure_query(image) == measure_reference(image) == Measures()
    assert not measure_query(image).is_decoded


def test_a_jpeg_broken_in_the_middle_is_undecodable_at_any_scale() -> None:
    image = bytearray(encode_jpeg(panoramas()[0]))
    middle = len(image) // 2
    del image[middle : middle + 20_000]  # still begins and ends as it should
    assert not measure_query(bytes(image)).is_decoded


@settings(max_examples=30)
@given(index=st.integers(0, 4), shift=st.integers(0, 2047), is_encoded=st.booleans())
def test_turning_a_panorama_makes_no_seam(index: int, shift: int, is_encoded: bool) -> None:
    turned = np.roll(panoramas()[index], shift, axis=1)
    if is_encoded:
        ratio = measure_query(encode_jpeg(turned)).seam_ratio
    else:
        ratio = seam_ratio(cv2.cvtColor(turned, cv2.COLOR_RGB2GRAY))
    assert ratio < RECIPE.seam_ratio_max


def test_measures_hardly_depend_on_the_size() -> None:
    full = panoramas()[1]
    found = [
        measure_query(encode_jpeg(cv2.resize(full, (width, width // 2), interpolation=cv2.INTER_AREA)))
        for width in (2048, 1536, 1024)
    ]
    for other in found[1:]:
        assert other.luma_mean == pytest.approx(found[0].luma_mean, abs=1)
        assert other.sharpness > 1.5 * RECIPE.query_sharpness_min  # resizing by odd factors blurs a little
        assert differing_bits(np.uint64(other.hash), np.uint64(found[0].hash)) <= 2


def test_sharpness_falls_with_blur_and_does_not_depend_on_contrast() -> None:
    luma = cv2.cvtColor(cv2.resize(panoramas()[2], (1024, 512), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
    values = [sharpness(cv2.GaussianBlur(luma, (0, 0), sigma)) for sigma in (0.3, 0.6, 1.0, 1.5)]
    assert values == sorted(values, reverse=True)
    faint = (luma // 3 + 60).astype(np.uint8)
    assert sharpness(faint) == pytest.approx(sharpness(luma), rel=0.4)


def test_nadir_with_a_logo_counts_in_full() -> None:
    luma = np.random.default_rng(0).integers(0, 256, (512, 1024), np.uint8)
    luma[-128:] = 90
    luma[-60:-50, :] = 255  # a ring of another color
    luma[-100:-20, 200:400] = 30  # letters
    assert nadir_blank_deg(luma) == pytest.approx(45.0)
    luma[-128:] = np.random.default_rng(1).integers(60, 120, (128, 1024), np.uint8)
    assert nadir_blank_deg(luma) == 0.0


def hash_with_loops(luma: np.ndarray) -> int:
    """The definition, one number at a time."""
    coefficients = []
    for v, u in FREQUENCIES:
        total = 0
        for row in range(32):
            for column in range(32):
                down = round(2**14 * math.cos(math.pi * (2 * row + 1) * v / 64))
                right = round(2**14 * math.cos(math.pi * (2 * column + 1) * u / 64))
                total += down * right * int(luma[row, column])
        coefficients.append(total)
    ordered = sorted(coefficients)
    bits = ["1" if 2 * value > ordered[31] + ordered[32] else "0" for value in coefficients]
    return int("".join(bits), 2)


@settings(max_examples=8)
@given(seed=st.integers(0, 10**6))
def test_hash_is_that_of_the_definition(seed: int) -> None:
    luma = np.random.default_rng(seed).integers(0, 256, (32, 32), np.uint8)
    assert perceptual_hash(luma) == hash_with_loops(luma)


def test_hash_bits_are_64_different_low_frequencies() -> None:
    assert len(set(FREQUENCIES)) == 64
    assert (0, 0) not in FREQUENCIES
    assert perceptual_hash(np.full((40, 80), 7, np.uint8)) == 0


@settings(max_examples=25)
@given(index=st.integers(0, 7), shift=st.integers(-25, 25), gain=st.floats(0.75, 1.15))
def test_brightness_leaves_the_hash(index: int, shift: int, gain: float) -> None:
    pixels = tiles()[index]
    changed = np.clip(pixels * gain + shift, 0, 255).astype(np.uint8)
    first, second = (np.uint64(measure_reference(encode_jpeg(image)).hash) for image in (pixels, changed))
    assert differing_bits(first, second) <= 6


def test_hash_stays_when_encoded_anew_and_tells_neighbors_apart() -> None:
    recipe = QualityRecipe()
    for images, measure, bits in (
        (panoramas(), measure_query, recipe.query_duplicate_bits),
        (tiles(), measure_reference, recipe.reference_duplicate_bits),
    ):
        hashes = np.array([measure(encode_jpeg(pixels)).hash for pixels in images], np.uint64)
        for pixels, expected in zip(images, hashes, strict=True):
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "JPEG", quality=60)
            assert differing_bits(np.uint64(measure(buffer.getvalue()).hash), expected) <= bits
        between = differing_bits(hashes[:, None], hashes[None])[~np.eye(len(hashes), dtype=bool)]
        assert between.min() > 2 * bits
