"""`cvgl_data.columns` against `pyarrow.array`."""

from __future__ import annotations

import random
import subprocess
import sys

import pyarrow as pa
import pytest

from cvgl_data.columns import column

RNG = random.Random(0)
MAKERS = {
    pa.string(): lambda: RNG.choice(["", "aé", "x" * 30, "\U0001f600"]),
    pa.binary(): lambda: RNG.randbytes(RNG.randrange(40)),
    pa.bool_(): lambda: RNG.random() < 0.5,
    pa.int32(): lambda: RNG.randrange(-(2**31), 2**31),
    pa.int64(): lambda: RNG.randrange(-(2**63), 2**63),
    pa.float64(): lambda: RNG.choice([1, 2.5, float("inf"), -0.0]),
    pa.list_(pa.int32()): lambda: [1, 2],
}


@pytest.mark.parametrize("kind", MAKERS, ids=str)
@pytest.mark.parametrize("num", [0, 1, 2, 63, 64, 65, 200])
@pytest.mark.parametrize("missing", [0.0, 0.3, 1.0])
def test_is_the_array_of_pyarrow(kind: pa.DataType, num: int, missing: float) -> None:
    values = tuple(None if RNG.random() < missing else MAKERS[kind]() for _ in range(num))
    made, expected = column(values, kind), pa.array(values, kind)
    made.validate(full=True)
    assert made.equals(expected)
    assert (made.type, made.null_count) == (kind, expected.null_count)


@pytest.mark.parametrize(
    ("value", "kind"),
    [(1.5, pa.int32()), (2**31, pa.int32()), ("a", pa.float64()), (1, pa.string()), ("a", pa.binary())],
)
def test_nothing_is_made_to_fit(value: object, kind: pa.DataType) -> None:
    with pytest.raises((TypeError, OverflowError, AttributeError)):
        column([value], kind)


def test_pandas_stays_out() -> None:
    code = (
        "import sys, pyarrow as pa; from cvgl_data.columns import column; "
        "column(['a', None], pa.string()); column([1, None], pa.int64()); column([True], pa.bool_()); "
        "assert 'pandas' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
