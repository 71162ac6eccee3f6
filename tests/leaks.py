"""Search files and texts for keys, in whole or in part, as they are or encoded."""

from __future__ import annotations

import base64
import io
from urllib.parse import quote, quote_plus

import pyarrow as pa
import pyarrow.parquet as pq

PART = 12
"""Characters in a row that are too many to be shown."""


def forms(key):
    """Return a key as it is, percent-encoded, and within base64."""
    found = {key, quote(key), quote(key, safe=""), quote_plus(key)}
    found |= {form.lower() for form in found}
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        for skipped in range(3):  # what stands before it shifts it by a part of a character
            encoded = encode(b"\0" * skipped + key.encode()).decode().rstrip("=")
            found.add(encoded[-(-skipped * 8 // 6) : -1])
    return found


def parts(key):
    return {form[at : at + PART] for form in forms(key) for at in range(len(form) - PART + 1)}


def content(path):
    """Return a file's bytes; those of tables without compression, and without images, where chance may write."""
    raw = path.read_bytes()
    if path.suffix == ".parquet":
        table = pq.read_table(path)
    elif raw[:6] == b"ARROW1":
        table = pa.ipc.open_file(path).read_all()
    else:
        return raw
    kept = [field.name for field in table.schema if field.name not in ("image", "neighbors")]
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema):
        pass
    for name in kept:
        sink.write(b"\n".join(str(value).encode() for value in table[name].to_pylist()))
    return sink.getvalue()


def seen_in(keys, *folders, **said):
    """Return where which key can be seen: in the files of folders, their names, or in what was said."""
    texts = {str(path): content(path) for folder in folders for path in folder.rglob("*") if path.is_file()}
    texts["names"] = "\n".join(texts).encode()
    # Lines that were broken to fit a terminal are put together again.
    texts |= {name: text + b"\n" + b"".join(text.split()) for name, text in said.items()}
    wanted = {name: [part.encode() for part in parts(key)] for name, key in keys.items()}
    return [(where, name) for where, text in texts.items() for name in keys if any(p in text for p in wanted[name])]
