"""Croissant metadata: the tables of a dataset repository for programs that know no Parquet of ours.

Source:
    MLCommons Croissant 1.0, https://docs.mlcommons.org/croissant/docs/croissant-spec.html; files of a repository are
    file sets inside one file object that is the repository.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cvgl_data.shards import card
from cvgl_data.shards.licences import hub_names

CROISSANT = "croissant.json"
REPOSITORY = "repository"
"""Id of the file object that stands for the repository; whoever has the files maps it to their folder."""

_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}

_KEYS = {
    "references": "reference_id",
    "references_meta": "reference_id",
    "queries": "query_id",
    "queries_meta": "query_id",
    "distance_map": "id",
}


def render(
    name: str,
    folder: Path,
    files: Iterable[str],
    *,
    repo_id: str,
    licences: Sequence[str] = (),
    attributions: Sequence[str] = (),
) -> str:
    """Return the text of ``croissant.json``.

    Args:
        name: Name of the dataset.
        folder: Where the files lie; only their schemas are read.
        files: Paths of the data files, relative to it.
        repo_id: ``user/name`` on the Hub.
        licences: Of the images.
        attributions: Whom to credit for them.
    """
    files = sorted(files)
    url = f"https://huggingface.co/datasets/{repo_id}"
    description = "Street-level queries and the overhead references that cover them, for cross-view geo-localization."
    document: dict[str, Any] = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": name,
        "description": description,
        "url": url,
        "license": [f"https://choosealicense.com/licenses/{known}/" for known in hub_names(list(licences))],
        "citeAs": card.bibtex(name, repo_id),
        "creditText": "; ".join(sorted({text for text in attributions if text})),
        "keywords": ["cross-view geo-localization", "image retrieval", "geospatial"],
        "distribution": [
            {
                "@type": "cr:FileObject",
                "@id": REPOSITORY,
                "name": REPOSITORY,
                "description": "The repository on the Hub.",
                "contentUrl": url,
                "encodingFormat": "git+https",
                "sha256": "https://github.com/mlcommons/croissant/issues/80",
            }
        ],
        "recordSet": [],
    }
    for table, splits in card.tables(files).items():
        for split in splits:
            first = next(path for path in files if path.startswith(f"data/{table}/{split}-"))
            schema = pq.read_schema((folder / first).absolute())
            document["distribution"].append(_file_set(table, split))
            document["recordSet"].append(_record_set(table, split, schema))
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _file_set(table: str, split: str) -> Mapping[str, Any]:
    name = f"files-{table}-{split}"
    return {
        "@type": "cr:FileSet",
        "@id": name,
        "name": name,
        "description": f"Parquet files of '{table}', split '{split}'.",
        "containedIn": {"@id": REPOSITORY},
        "encodingFormat": "application/x-parquet",
        "includes": f"data/{table}/{split}-*.parquet",
    }


def _record_set(table: str, split: str, schema: pa.Schema) -> Mapping[str, Any]:
    name = f"{table}-{split}"
    found: dict[str, Any] = {"@type": "cr:RecordSet", "@id": name, "name": name}
    if table in _KEYS:
        found["key"] = {"@id": f"{name}/{_KEYS[table]}"}
    found["field"] = list(_fields(name, f"files-{table}-{split}", schema))
    return found


def _fields(record_set: str, file_set: str, schema: pa.Schema) -> Iterator[Mapping[str, Any]]:
    for column in schema:
        name = f"{record_set}/{column.name}"
        source: dict[str, Any] = {"fileSet": {"@id": file_set}, "extract": {"column": column.name}}
        if column.name == "image":
            source["transform"] = {"jsonPath": "bytes"}
        field: dict[str, Any] = {"@type": "cr:Field", "@id": name, "name": name, "dataType": _data_type(column)}
        if pa.types.is_list(column.type):
            field["repeated"] = True
        yield {**field, "source": source}


def _data_type(column: pa.Field) -> str:
    kind = column.type
    if column.name == "image":
        return "sc:ImageObject"
    if pa.types.is_list(kind):
        kind = kind.value_type
    if pa.types.is_boolean(kind):
        return "sc:Boolean"
    if pa.types.is_integer(kind):
        return "sc:Integer"
    if pa.types.is_floating(kind):
        return "sc:Float"
    return "sc:Text"
