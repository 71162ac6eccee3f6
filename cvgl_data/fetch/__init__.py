"""Fetch references and queries into a workspace: bounded concurrency, per-item resume, failures as rows.

Every item that is asked for ends as one row of a `Store`, with its image or with the outcome and the error that it met.
A run that is repeated asks only for what is missing and for what failed in passing.
"""

from cvgl_data.fetch.queries import Discovered, discover_queries, fetch_queries
from cvgl_data.fetch.references import fetch_references
from cvgl_data.fetch.rows import QUERY_ROWS, REFERENCE_ROWS, query_store, reference_store

__all__ = [
    "QUERY_ROWS",
    "REFERENCE_ROWS",
    "Discovered",
    "discover_queries",
    "fetch_queries",
    "fetch_references",
    "query_store",
    "reference_store",
]
