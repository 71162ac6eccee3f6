"""Arrow columns from Python values, for the few types that rows are made of.

`pyarrow.array` imports pandas to find out whether it was given a frame, which takes 0.3 s and 55 MB of every run, and
looks at each value twice. Here a column is laid out by what Python does in C: ``join``, `array`, `accumulate`.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa

_BINARY, _STRING, _BOOL = pa.binary().id, pa.string().id, pa.bool_().id  # types themselves are slow to compare
_CODES = {pa.int32().id: "i", pa.int64().id: "q", pa.float64().id: "d"}
_FILLERS: dict[int, Any] = {_BINARY: b"", _STRING: "", _BOOL: False} | dict.fromkeys(_CODES, 0)


def column(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Return what ``pa.array(values, kind)`` does.

    Raises:
        TypeError, AttributeError: If a value is of another type; nothing is rounded or cut to fit.
        OverflowError: If a number, or all values of a column together, are too large.
    """
    code = kind.id
    if code not in _FILLERS:
        return pa.array(values, kind)
    missing = values.count(None)
    if missing == len(values):
        return pa.nulls(missing, kind)
    valid = None
    if missing:
        valid = _bits(value is not None for value in values)
        values = [_FILLERS[code] if value is None else value for value in values]
    if code in _CODES:
        buffers = [pa.py_buffer(array(_CODES[code], values))]
    elif code == _BOOL:
        buffers = [_bits(values)]
    else:
        pieces = [value.encode() for value in values] if code == _STRING else values
        offsets = array("i", accumulate(map(len, pieces), initial=0))
        buffers = [pa.py_buffer(offsets), pa.py_buffer(b"".join(pieces))]
    return pa.Array.from_buffers(kind, len(values), [valid, *buffers], missing)


def _bits(values: Iterable[bool]) -> pa.Buffer:
    return pa.py_buffer(np.packbits(list(values), bitorder="little"))
