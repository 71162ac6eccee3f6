"""Rows of the two stores: a table's columns, the image as plain bytes, and what only the engine needs to know."""

from __future__ import annotations

import hashlib
from typing import Any

import pyarrow as pa

from cvgl_data import schema
from cvgl_data.errors import FetchError
from cvgl_data.redaction import redact
from cvgl_data.types import ImagerySource, Outcome, PanoramaSource, Terms
from cvgl_data.workspace import Workspace
from cvgl_data.workspace.store import Store

Row = dict[str, Any]


def _rows_of(table: pa.Schema) -> pa.Schema:
    """Return the columns of a store: the table's, the error's text, and the validators of the response."""
    fields = [pa.field("image", pa.binary()) if field.name == "image" else field for field in table]
    extra = [pa.field(name, pa.string()) for name in ("error", "etag", "last_modified")]
    return pa.schema([*fields, *extra], metadata=table.metadata)


REFERENCE_ROWS = _rows_of(schema.REFERENCES)
QUERY_ROWS = _rows_of(schema.QUERIES)


def reference_store(workspace: Workspace) -> Store:
    """Open the store of fetched references, keyed by ``reference_id``."""
    return workspace.store("references", REFERENCE_ROWS, "reference_id")


def query_store(workspace: Workspace) -> Store:
    """Open the store of fetched queries, keyed by ``query_id``."""
    return workspace.store("queries", QUERY_ROWS, "query_id")


def stored(image: bytes, sha256: str = "") -> Row:
    """Return the columns of an item that could be had; the digest only if it is known already."""
    return {"image": image, "sha256": sha256 or hashlib.sha256(image).hexdigest(), "status": Outcome.OK.value}


def failed(error: FetchError) -> Row:
    """Return the columns of an item that could not be had."""
    return {"image": None, "status": error.outcome.value, "error": redact(str(error))}


def is_restricted(source: ImagerySource | PanoramaSource) -> bool:
    """Whether the source's terms forbid to publish its images."""
    terms: Terms | None = getattr(source, "terms", None)
    return terms is not None and not terms.redistributable
