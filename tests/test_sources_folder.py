import asyncio
import csv
import hashlib
import math
import shutil
from datetime import UTC, datetime, timedelta, timezone

import pytest
from PIL import Image
from PIL.TiffImagePlugin import IFDRational, ImageFileDirectory_v2

from cvgl_data.aoi import AreaOfInterest
from cvgl_data.errors import DatasetNotFoundError, NoImagery, NoPanorama, RecipeError
from cvgl_data.http import Http
from cvgl_data.sources import open_imagery, open_panoramas
from cvgl_data.sources.folder import FolderImagery, FolderPanoramas
from cvgl_data.types import EARTH_CIRCUMFERENCE_M, ImagerySource, PanoramaRef, PanoramaSource, Tile

_IMAGERY: type[ImagerySource] = FolderImagery
_PANORAMAS: type[PanoramaSource] = FolderPanoramas


def fetch(source, item):
    return asyncio.run(source.fetch(item, Http()))


def discover(source, area):
    async def collect():
        return [ref async for ref in source.discover(area, Http())]

    return asyncio.run(collect())


def touch(root, *names, size=8):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (size, size)).save(path)


# Imagery


def test_real_aerial_tiles_are_found_and_their_bytes_kept(golden):
    source = open_imagery("folder", {"location": str(golden / "banepa")})
    assert (source.tile_px, source.max_zoom) == (512, 19)
    assert source.tiles == [Tile(x, y, 19) for y in (220241, 220242, 220243) for x in (386690, 386691, 386692)]
    for tile in source.tiles:
        original = (golden / f"banepa/OAM-{tile.x}-{tile.y}-{tile.z}.tif").read_bytes()
        assert fetch(source, tile).image == original
    # Banepa, Nepal, by the box of the item's published metadata
    assert all(85.518 < tile.center.lon < 85.524 and 27.629 < tile.center.lat < 27.635 for tile in source.tiles)
    assert [window.tiles for window in source.windows()] == [[tile] for tile in source.tiles]
    with pytest.raises(NoImagery, match="no tile 19/1/1"):
        fetch(source, Tile(1, 1, 19))


@pytest.mark.parametrize(
    "names",
    [
        ["18/41999/93333.png", "18/42000/93333@2x.png"],
        ["41999-93333-18.png", "sub/42000-93333-18.png"],
        ["18-41999-93333.png", "18-42000-93333.png"],
        ["seattle_2024_z18_x41999_y93333.png", "seattle_2024_z18_x42000_y93333.png"],
    ],
)
def test_every_way_to_name_tiles(tmp_path, names):
    touch(tmp_path / "tiles", *names)
    (tmp_path / "tiles/readme-1-2-3.txt").write_text("no image")
    assert FolderImagery(str(tmp_path / "tiles")).tiles == [Tile(41999, 93333, 18), Tile(42000, 93333, 18)]


def test_the_order_of_small_numbers_comes_from_all_files_or_is_asked_for(tmp_path):
    touch(tmp_path / "a", "3-1-2.png", "3-1-3.png")  # as x-y-z: 3/1 at zoom 2 and at zoom 3; as z-x-y one zoom
    assert [str(tile) for tile in FolderImagery(str(tmp_path / "a")).tiles] == ["3/1/2", "3/1/3"]
    assert {str(t) for t in FolderImagery(str(tmp_path / "a"), order="x-y-z").tiles} == {"2/3/1", "3/3/1"}
    touch(tmp_path / "b", "3-1-3.png")
    with pytest.raises(RecipeError, match="set the option 'order'"):
        FolderImagery(str(tmp_path / "b"))
    with pytest.raises(RecipeError, match="must be one of x-y-z, z-x-y"):
        FolderImagery(str(tmp_path / "b"), order="y-x")


def test_two_files_for_one_tile_are_an_error(tmp_path):
    touch(tmp_path / "a", "41999-93333-18.png", "old/41999-93333-18.png")
    with pytest.raises(RecipeError, match="are both tile 18/41999/93333"):
        FolderImagery(str(tmp_path / "a"))


def geotiff(path, tile, epsg=3857, shift_px=0.0, size=256, tags=None):
    side = EARTH_CIRCUMFERENCE_M / 2**tile.z
    scale = side / size
    west = tile.x * side - EARTH_CIRCUMFERENCE_M / 2 + shift_px * scale
    north = EARTH_CIRCUMFERENCE_M / 2 - tile.y * side
    written = {
        33550: (scale, scale, 0.0),
        33922: (0.0, 0.0, 0.0, west, north, 0.0),
        34735: (1, 1, 0, 2, 1024, 0, 1, 1, 3072, 0, 1, epsg),
        **(tags or {}),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    info = ImageFileDirectory_v2()
    for key, value in written.items():
        info.tagtype[key] = 3 if key == 34735 else 12
        info[key] = value
    Image.new("RGB", (size, size)).save(path, tiffinfo=info)


def test_geotiffs_are_placed_by_their_georeference(tmp_path):
    geotiff(tmp_path / "a/north.tif", Tile(41999, 93333, 18))
    geotiff(tmp_path / "a/south.tif", Tile(41999, 93334, 18))
    assert FolderImagery(str(tmp_path / "a")).tiles == [Tile(41999, 93333, 18), Tile(41999, 93334, 18)]


def test_what_cannot_be_placed_is_named(tmp_path):
    geotiff(tmp_path / "utm/field.tif", Tile(41999, 93333, 18), epsg=32610)
    with pytest.raises(RecipeError, match=r"field\.tif' is georeferenced in EPSG:32610, not 3857"):
        FolderImagery(str(tmp_path / "utm"))
    geotiff(tmp_path / "off/field.tif", Tile(41999, 93333, 18), shift_px=1.0)
    with pytest.raises(RecipeError, match="not exactly one tile"):
        FolderImagery(str(tmp_path / "off"))
    touch(tmp_path / "plain", "holiday.png")
    with pytest.raises(RecipeError, match=r"holiday\.png' has neither tile numbers"):
        FolderImagery(str(tmp_path / "plain"))
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/field.tif").write_bytes(b"II*\0")
    with pytest.raises(RecipeError, match="cannot be read as an image"):
        FolderImagery(str(tmp_path / "bad"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecipeError, match="holds no images"):
        FolderImagery(str(tmp_path / "empty"))
    with pytest.raises(DatasetNotFoundError, match="there is no folder"):
        FolderImagery(str(tmp_path / "nowhere"))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF", "ignore:Tag data")
@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"\x89PNG\r\n\x1a\n\0\0", b"II*\0\xff\xff\xff\xff", b"\xff\xd8\xff\xd9"]
)
def test_the_tile_size_comes_from_the_first_file_that_can_be_read(tmp_path, body):
    touch(tmp_path / "a", "41999-93333-18.png", "42000-93333-18.png", size=64)
    (tmp_path / "a/41999-93333-18.png").write_bytes(body)
    assert FolderImagery(str(tmp_path / "a")).tile_px == 64
    (tmp_path / "a/42000-93333-18.png").write_bytes(body)
    with pytest.raises(RecipeError, match=r"41999-93333-18\.png' cannot be read as an image"):
        FolderImagery(str(tmp_path / "a"))


@pytest.mark.parametrize(
    "tags",
    [
        {33550: (0.0, 0.0, 0.0)},
        {33550: (math.nan, 1.0, 0.0)},
        {33550: (-1.0, 1.0, 0.0)},
        {33550: (1.0,)},
        {33922: (0.0, 0.0)},
    ],
)
def test_a_georeference_that_makes_no_sense_is_named(tmp_path, tags):
    geotiff(tmp_path / "a/field.tif", Tile(41999, 93333, 18), tags=tags)
    with pytest.raises(RecipeError, match=r"field\.tif'"):
        FolderImagery(str(tmp_path / "a"))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_huge_or_cut_geotiff_is_named(tmp_path, monkeypatch):
    geotiff(tmp_path / "a/field.tif", Tile(41999, 93333, 18))
    with monkeypatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # twice as many are an error, not a warning
        with pytest.raises(RecipeError, match="cannot be read as an image"):
            FolderImagery(str(tmp_path / "a"))
    content = (tmp_path / "a/field.tif").read_bytes()
    (tmp_path / "a/field.tif").write_bytes(content[:8])
    with pytest.raises(RecipeError, match="cannot be read as an image"):
        FolderImagery(str(tmp_path / "a"))


# Panoramas


def truth(golden):
    with (golden / "strasbourg/index.csv").open(newline="") as lines:
        return {row["path"]: row for row in csv.DictReader(lines)}


def test_real_panoramas_keep_their_bytes_positions_and_headings(golden):
    source = open_panoramas("folder", {"location": str(golden / "strasbourg"), "licence": "etalab-2.0"})
    expected = truth(golden)
    refs = discover(source, AreaOfInterest.from_bbox(7.6, 48.4, 7.9, 48.7))
    assert [ref.pano_id for ref in refs] == sorted(expected)
    for ref in refs:
        panorama, row = fetch(source, ref.pano_id), expected[ref.pano_id]
        original = (golden / "strasbourg" / ref.pano_id).read_bytes()
        assert hashlib.sha256(panorama.image).digest() == hashlib.sha256(original).digest()
        assert (panorama.lon, panorama.lat) == (ref.lon, ref.lat)
        assert panorama.lon == pytest.approx(float(row["lon"]), abs=1e-7)  # a centimetre
        assert panorama.lat == pytest.approx(float(row["lat"]), abs=1e-7)
        assert panorama.heading_deg == pytest.approx(float(row["exif_img_direction"]), abs=1e-9)
        assert (panorama.pitch_deg, panorama.roll_deg) == (None, None)
        date, clock = row["datetime_original"].split(" ")
        assert panorama.captured == f"{date.replace(':', '-')}T{clock}"
    nearby = discover(source, AreaOfInterest.from_bbox(7.70, 48.40, 7.73, 48.55))
    assert [ref.pano_id for ref in nearby] == ["type2_origin.jpg", "type55_origin.jpg"]


def sun_azimuth_deg(when, lon, lat):
    """Bearing of the sun by NOAA's solar position equations (Meeus), good to about 0.01 degrees."""
    century = (when.timestamp() / 86400 + 2440587.5 - 2451545) / 36525
    mean_lon = (280.46646 + century * (36000.76983 + century * 0.0003032)) % 360
    anomaly = math.radians(357.52911 + century * (35999.05029 - 0.0001537 * century))
    center = (
        math.sin(anomaly) * (1.914602 - century * (0.004817 + 0.000014 * century))
        + math.sin(2 * anomaly) * (0.019993 - 0.000101 * century)
        + math.sin(3 * anomaly) * 0.000289
    )
    node = math.radians(125.04 - 1934.136 * century)
    apparent = math.radians(mean_lon + center - 0.00569 - 0.00478 * math.sin(node))
    obliquity = math.radians(23.4392911 - 0.0130042 * century + 0.00256 * math.cos(node))
    declination = math.asin(math.sin(obliquity) * math.sin(apparent))
    right_ascension = math.atan2(math.cos(obliquity) * math.sin(apparent), math.cos(apparent))
    sidereal_deg = 280.46061837 + 360.98564736629 * century * 36525 + lon
    hour = math.radians(sidereal_deg) - right_ascension
    latitude = math.radians(lat)
    south = math.atan2(math.sin(hour), math.cos(hour) * math.sin(latitude) - math.tan(declination) * math.cos(latitude))
    return (math.degrees(south) + 180) % 360


def test_the_ephemeris_itself():
    """At Greenwich the sun stood due south at 12:00 minus the equation of time: -14.2 min on 11 Feb, +16.4 on 3 Nov."""
    for month, day, noon in [(2, 11, 12 * 60 + 14.2), (11, 3, 12 * 60 - 16.4)]:
        when = datetime(2022, month, day, tzinfo=UTC) + timedelta(minutes=noon)
        assert sun_azimuth_deg(when, 0.0, 51.5) == pytest.approx(180, abs=0.1)


@pytest.mark.parametrize(("pano_id", "column"), [("type2_origin.jpg", 0.019), ("type55_origin.jpg", 0.181)])
def test_the_sun_stands_where_the_heading_says(golden, pano_id, column):
    """The brightest column, seen in the pictures, against the ephemeris; stamps are local summer time (UTC+2)."""
    panorama = fetch(FolderPanoramas(str(golden / "strasbourg")), pano_id)
    when = datetime.fromisoformat(panorama.captured).replace(tzinfo=timezone(timedelta(hours=2)))
    azimuth = sun_azimuth_deg(when, panorama.lon, panorama.lat)
    predicted = (0.5 + (azimuth - panorama.heading_deg) / 360) % 1
    assert predicted == pytest.approx(column, abs=0.01)
    mirrored = (0.5 - (azimuth - panorama.heading_deg) / 360) % 1
    from_left_edge = (azimuth - panorama.heading_deg) / 360 % 1
    assert min(abs(mirrored - column), abs(from_left_edge - column)) > 0.01


def jpeg(path, gps=None, xmp="", artist=""):
    exif = Image.Exif()
    if artist:
        exif[315] = artist
    if gps:
        exif[0x8825] = gps
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 32)).save(path, exif=exif, xmp=xmp.encode())


UNKNOWN = IFDRational(0, 0)
SOUTH_WEST = {1: "S", 2: (33.0, 55.0, 30.0), 3: "W", 4: (18.0, 25.0, 12.0), 17: 725.5}
XMP = (
    "<rdf:Description GPano:PoseHeadingDegrees='-90.5' GPano:PosePitchDegrees=\"1.5\">"
    "<GPano:PoseRollDegrees>-2.25</GPano:PoseRollDegrees>"
)


def test_signs_wrapping_and_gpano(tmp_path):
    jpeg(tmp_path / "p/a.jpg", SOUTH_WEST, artist="Someone")
    jpeg(tmp_path / "p/sub/b.JPG", SOUTH_WEST, xmp=XMP)
    source = FolderPanoramas(str(tmp_path / "p"), attribution="A", licence="L")
    a, b = fetch(source, "a.jpg"), fetch(source, "sub/b.JPG")
    assert (a.lon, a.lat) == (pytest.approx(-18.42), pytest.approx(-33.925))
    assert (a.heading_deg, a.pitch_deg, a.roll_deg, a.creator) == (pytest.approx(5.5), None, None, "Someone")
    assert (b.heading_deg, b.pitch_deg, b.roll_deg) == (269.5, 1.5, -2.25)
    assert (source.attribution, source.licence) == ("A", "L")


def test_panoramas_without_a_position_are_reported(tmp_path):
    jpeg(tmp_path / "p/good.jpg", SOUTH_WEST)
    jpeg(tmp_path / "p/no_gps.jpg")
    jpeg(tmp_path / "p/no_fix.jpg", {1: "N", 2: (UNKNOWN,) * 3, 3: "E", 4: (UNKNOWN,) * 3})
    (tmp_path / "p/broken.jpg").write_bytes(b"\xff\xd8\xff not really")
    source = FolderPanoramas(str(tmp_path / "p"))
    found = discover(source, AreaOfInterest.from_bbox(-19, -34, -18, -33))
    assert [ref.pano_id for ref in found if isinstance(ref, PanoramaRef)] == ["good.jpg"]
    assert [error.item for error in found if isinstance(error, NoPanorama)] == [
        "broken.jpg",
        "no_fix.jpg",
        "no_gps.jpg",
    ]
    with pytest.raises(NoPanorama, match=r"'no_gps\.jpg' has no GPS position"):
        fetch(source, "no_gps.jpg")
    with pytest.raises(NoPanorama, match=r"no panorama 'other\.jpg'"):
        fetch(source, "other.jpg")


def test_a_folder_without_panoramas_is_named(tmp_path):
    with pytest.raises(DatasetNotFoundError):
        FolderPanoramas(str(tmp_path / "nowhere"))
    (tmp_path / "p").mkdir()
    shutil.copy(__file__, tmp_path / "p")
    with pytest.raises(RecipeError, match="holds no images"):
        FolderPanoramas(str(tmp_path / "p"))
