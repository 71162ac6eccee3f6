"""The check of a table's columns, types and version."""

from __future__ import annotations

import pyarrow as pa
import pytest

from cvgl_data import schema
from cvgl_data.errors import SchemaError

TABLES = (schema.REFERENCES, schema.QUERIES, schema.PAIRS, schema.DISTANCE_MAP, schema.FAILURES)


@pytest.mark.parametrize("columns", TABLES, ids=lambda columns: columns.metadata[schema.NAME_KEY].decode())
def test_each_schema_fits_itself_and_survives_parquet(columns, tmp_path):
    import pyarrow.parquet as pq

    pq.write_table(columns.empty_table(), tmp_path / "table.parquet")
    schema.check(pq.read_schema(tmp_path / "table.parquet"), columns, "table")


def test_columns_of_the_contract_are_there_in_order():
    contract = {
        schema.REFERENCES: "reference_id image x y size zoom lon lat gsd_m area source release captured licence sha256 "
        "status",
        schema.QUERIES: "query_id image lon lat heading_deg pitch_deg roll_deg upright captured area source licence "
        "creator sha256 status",
        schema.PAIRS: "query_id reference_id query_row reference_row relation u v offset_east_m offset_north_m "
        "distance_m decentrality decentrality_l2 iou covers",
        schema.DISTANCE_MAP: "id neighbor_rows distances_m",
    }
    for table, names in contract.items():
        assert [name for name in table.names if name in names.split()] == names.split()


def test_extra_columns_and_wider_strings_are_welcome():
    wide = pa.schema(
        [field.with_type(pa.large_string()) if field.type == pa.string() else field for field in schema.PAIRS]
    )
    schema.check(wide.append(pa.field("note", pa.string())), schema.PAIRS, "pairs")
    fixed = pa.schema(
        [("id", pa.string()), ("neighbor_rows", pa.list_(pa.int32(), 4)), ("distances_m", pa.list_(pa.float32()))]
    )
    schema.check(fixed, schema.DISTANCE_MAP, "distance map")


def test_images_may_be_left_out_only_when_said():
    plain = schema.without_image(schema.QUERIES)
    assert "image" not in plain.names
    assert plain.metadata == schema.QUERIES.metadata
    schema.check(plain, schema.QUERIES, "queries", with_image=False)
    with pytest.raises(SchemaError, match="queries has no column 'image'"):
        schema.check(plain, schema.QUERIES, "queries")


def test_wrong_tables_are_named():
    with pytest.raises(SchemaError, match=r"a\.parquet has no column 'covers' \(found: query_id, "):
        schema.check(schema.PAIRS.remove(13), schema.PAIRS, "a.parquet")
    wrong = schema.PAIRS.set(5, pa.field("u", pa.string()))
    with pytest.raises(SchemaError, match=r"a\.parquet: column 'u' is string, expected double"):
        schema.check(wrong, schema.PAIRS, "a.parquet")
    wrong = schema.DISTANCE_MAP.set(1, pa.field("neighbor_rows", pa.list_(pa.string())))
    with pytest.raises(SchemaError, match="neighbor_rows"):
        schema.check(wrong, schema.DISTANCE_MAP, "map")


def test_another_version_is_refused():
    old = schema.PAIRS.with_metadata({schema.VERSION_KEY: b"0"})
    with pytest.raises(SchemaError, match="schema version 0, this cvgl reads version 2"):
        schema.check(old, schema.PAIRS, "pairs")
    schema.check(schema.PAIRS.with_metadata(None), schema.PAIRS, "pairs")
