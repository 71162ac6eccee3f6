"""Columns of every table that leaves this package, and the check that a table has them.

The version is stored in the schema metadata of each file (``cvgl_schema``) and compared when a file is opened.
"""

from __future__ import annotations

import pyarrow as pa

from cvgl_data.errors import SchemaError

VERSION = "2"
VERSION_KEY = b"cvgl_schema"
NAME_KEY = b"cvgl_table"

SPLITS = ("train", "validation", "test")
"""Names of query splits, in the order in which they are concatenated."""

GALLERY = "gallery"
"""The one split of references (``all`` is reserved by `datasets`)."""

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
"""The Hub's ``Image`` feature."""


def _table(name: str, fields: list[tuple[str, pa.DataType]]) -> pa.Schema:
    return pa.schema(fields, metadata={VERSION_KEY: VERSION.encode(), NAME_KEY: name.encode()})


REFERENCES = _table(
    "references",
    [
        ("reference_id", pa.string()),
        ("image", IMAGE),
        ("x", pa.int64()),  # north-west corner and side, global pixels of `zoom`
        ("y", pa.int64()),
        ("size", pa.int32()),
        ("zoom", pa.int32()),
        ("lon", pa.float64()),  # centre
        ("lat", pa.float64()),
        ("gsd_m", pa.float64()),  # ground metres per global pixel at the centre
        ("area", pa.string()),
        ("source", pa.string()),
        ("release", pa.string()),
        ("release_source", pa.string()),  # release in which these very bytes first appeared
        ("captured", pa.string()),
        ("provider", pa.string()),  # who made the image, where a source is a collection
        ("source_gsd_m", pa.float64()),  # ground metres per pixel of the original image; null: unknown
        ("upsampled_from_zoom", pa.int32()),  # of the coarser tile that stands in for a missing one; null: none does
        ("licence", pa.string()),
        ("no_redistribute", pa.bool_()),  # the source's terms forbid to publish the pixels
        ("robots", pa.string()),  # the response's X-Robots-Tag
        ("sha256", pa.string()),  # of the image bytes in this row
        ("status", pa.string()),  # ok | constant_tile: the same bytes at several places, perhaps a placeholder
    ],
)

QUERIES = _table(
    "queries",
    [
        ("query_id", pa.string()),
        ("image", IMAGE),
        ("lon", pa.float64()),
        ("lat", pa.float64()),
        ("heading_deg", pa.float64()),  # bearing of the centre column of the image in this row; null: unknown
        ("pitch_deg", pa.float64()),
        ("roll_deg", pa.float64()),
        ("upright", pa.bool_()),  # null: unknown
        ("source_heading_deg", pa.float64()),  # pose of the image as received
        ("source_pitch_deg", pa.float64()),
        ("source_roll_deg", pa.float64()),
        ("pose_source", pa.string()),  # what the pose was derived from, in the source's words
        ("resampled", pa.bool_()),  # whether the image was rendered anew; otherwise its bytes are those received
        ("captured", pa.string()),
        ("sequence", pa.string()),  # drive or walk that it belongs to, in the source's words
        ("area", pa.string()),
        ("source", pa.string()),
        ("licence", pa.string()),
        ("no_redistribute", pa.bool_()),
        ("robots", pa.string()),
        ("creator", pa.string()),
        ("raw_sha256", pa.string()),  # of the bytes as received or stitched
        ("sha256", pa.string()),
        ("status", pa.string()),
    ],
)

PAIRS = _table(
    "pairs",
    [
        ("query_id", pa.string()),
        ("reference_id", pa.string()),
        ("query_row", pa.int32()),  # row in the queries of the same split
        ("reference_row", pa.int32()),  # row in the gallery
        ("relation", pa.string()),  # positive | semi-positive | near: listed with the query, but does not cover it
        ("u", pa.float64()),  # query's place in the window, window pixels, (0, 0) the corner
        ("v", pa.float64()),
        ("offset_east_m", pa.float64()),  # query minus reference centre
        ("offset_north_m", pa.float64()),
        ("distance_m", pa.float64()),
        ("decentrality", pa.float64()),  # max norm: 0 centre, 1 edge
        ("decentrality_l2", pa.float64()),  # Euclidean: 0 centre, 1 corner
        ("iou", pa.float64()),  # of the window with an equal one centred on the query
        ("covers", pa.bool_()),
    ],
)

DISTANCE_MAP = _table(
    "distance_map",
    [
        ("id", pa.string()),
        ("neighbor_rows", pa.list_(pa.int32())),
        ("distances_m", pa.list_(pa.float32())),
    ],
)

FURTHER = {
    "references": pa.schema([("top_bearing_deg", pa.float64())]),  # compass bearing of the image's top, where not north
    "queries": pa.schema(
        [
            # angles from the zenith to the upper and the lower edge of a panorama that may be partial
            ("zenith_top_deg", pa.float64()),
            ("zenith_bottom_deg", pa.float64()),
            # a pinhole camera: intrinsics in pixels of the image, (0, 0) its corner; its height above the ground
            ("camera_fx_px", pa.float64()),
            ("camera_fy_px", pa.float64()),
            ("camera_cx_px", pa.float64()),
            ("camera_cy_px", pa.float64()),
            ("image_width_px", pa.float64()),
            ("image_height_px", pa.float64()),
            ("camera_height_m", pa.float64()),
        ]
    ),
}
"""Columns that a table may have besides, all of them or none of a kind; most datasets have none."""

QUALITY = _table(
    "quality",
    [
        ("id", pa.string()),
        ("kind", pa.string()),  # reference | query
        ("area", pa.string()),
        ("keep", pa.bool_()),  # whether the image stays in the dataset
        ("reason", pa.string()),  # checks that it failed, comma-separated, in the order of the columns; "" for none
        # measures; null: does not apply to this kind of image, or unknown
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("luma_mean", pa.float32()),  # brightness, 0 to 255
        ("luma_std", pa.float32()),
        ("dark_share", pa.float32()),
        ("bright_share", pa.float32()),
        ("sharpness", pa.float32()),  # how much detail another blur would take away
        ("nadir_blank_deg", pa.float32()),  # radius of the cap at the bottom that is black or painted over
        ("seam_ratio", pa.float32()),  # step from the last column to the first, relative to other neighbors
        ("fill_share", pa.float32()),  # pure black or white
        ("water_share", pa.float32()),
        ("perceptual_hash", pa.string()),  # 64 bits as hexadecimal digits
        ("duplicate_of", pa.string()),  # id of the image that this one repeats
        ("age_gap_years", pa.float32()),  # capture of the query minus that of its positive
        ("heading_offset_deg", pa.float32()),  # source_heading_deg minus course over ground, median of the sequence
        ("heading_error_deg", pa.float32()),  # how far this image is from that, -180 to 180
        # one flag for each check of the quality recipe, by its name; null: nothing to judge by
        ("undecodable", pa.bool_()),
        ("wrong_shape", pa.bool_()),  # panorama not 2:1, reference not square
        ("constant", pa.bool_()),
        ("blurred", pa.bool_()),
        ("underexposed", pa.bool_()),
        ("overexposed", pa.bool_()),
        ("blank_nadir", pa.bool_()),
        ("seam", pa.bool_()),
        ("no_data", pa.bool_()),
        ("water", pa.bool_()),
        ("duplicate", pa.bool_()),
        ("age_gap", pa.bool_()),
        ("wrong_heading", pa.bool_()),
    ],
)

FAILURES = _table(
    "failures",
    [
        ("id", pa.string()),
        ("kind", pa.string()),  # reference | query
        ("area", pa.string()),
        ("source", pa.string()),
        ("status", pa.string()),  # an Outcome, or why a good item was left out ("split_buffer", ...)
        ("error", pa.string()),
    ],
)


def without_image(schema: pa.Schema) -> pa.Schema:
    """Return the same columns without the pixels, for the ``*_meta`` tables."""
    return pa.schema([field for field in schema if field.name != "image"], metadata=schema.metadata)


def with_further(columns: pa.Schema, found: pa.Schema) -> pa.Schema:
    """Return the columns of references or queries, and those of `FURTHER` that a table has."""
    table = "references" if columns.names[0] == "reference_id" else "queries"
    more = [field for field in FURTHER[table] if field.name in found.names]
    return pa.schema([*columns, *more], metadata=columns.metadata)


def check(schema: pa.Schema, expected: pa.Schema, where: str, *, with_image: bool = True) -> None:
    """Raise unless ``schema`` has the expected columns, types and version; extra columns are welcome.

    Args:
        schema: Schema of a table or file.
        expected: One of the schemas of this module.
        where: File or table name for the message.
        with_image: Whether the image column is required.

    Raises:
        SchemaError: Naming the column, what was expected and what was found.
    """
    metadata = schema.metadata or {}
    version = metadata.get(VERSION_KEY, b"").decode()
    if version and version != VERSION:
        raise SchemaError(
            f"{where} has schema version {version}, this cvgl reads version {VERSION}; "
            "build it again or install the cvgl that wrote it"
        )
    names = set(schema.names)
    for field in expected:
        if field.name == "image" and not with_image:
            continue
        if field.name not in names:
            raise SchemaError(f"{where} has no column '{field.name}' (found: {', '.join(schema.names)})")
        found = schema.field(field.name).type
        if not _compatible(found, field.type):
            raise SchemaError(f"{where}: column '{field.name}' is {found}, expected {field.type}")


def _compatible(found: pa.DataType, expected: pa.DataType) -> bool:
    """Whether a type can stand for another: equal up to 64-bit offsets and list item names."""
    if found == expected:
        return True
    if pa.types.is_string(expected):
        return bool(pa.types.is_large_string(found))
    if pa.types.is_list(expected):
        is_list = pa.types.is_list(found) or pa.types.is_fixed_size_list(found)
        return bool(is_list and found.value_type == expected.value_type)
    return False
