"""Compiled functions and the counter-based randomness everything in the world is drawn from.

A *key* is a 64-bit number that names a thing (a district, a block, a lot); its properties are drawn from the key,
never from a generator with state, so any part of the world can be computed alone, in any order, by any process.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, cast

import numba
import numpy as np
from numpy import uint64
from numpy.typing import NDArray

MASK = 0xFFFFFFFFFFFFFFFF
Key: TypeAlias = Any
"""An unsigned 64-bit number (inside compiled code)."""
Record: TypeAlias = Any
"""One row of a structured array."""
Color: TypeAlias = tuple[float, float, float]
"""Red, green, blue in [0, 255]."""

_CONFIG: Any = numba.config

F = TypeVar("F", bound=Callable[..., Any])


def _cache_folder() -> str:
    """Return where compiled code is kept: beside the source if that can be written, and one folder per source.

    Numba looks at the file of a function alone, so a change of a callee in another file would leave its callers stale.
    """
    here = Path(__file__).parent
    source = hashlib.sha256(b"\0".join(file.read_bytes() for file in sorted(here.glob("*.py")))).hexdigest()
    home = here / "__pycache__"
    if not os.access(home if home.is_dir() else here, os.W_OK):
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cvgl"
    return str(Path(_CONFIG.CACHE_DIR or home) / f"kernels-{source[:16]}")


_CACHE_FOLDER = _cache_folder()


def constant(value: int) -> int:
    """Return a number that is no literal to numba, which otherwise compiles each function once per literal argument."""
    return np.int64(value)  # type: ignore[return-value]


def basic(signature: str) -> Callable[[F], F]:
    """Compile a function that is called from everywhere, for one signature only (see `constant`)."""

    def compile_it(function: F) -> F:
        return _compile(function, signature, no_cpython_wrapper=True, no_cfunc_wrapper=True)

    return compile_it


def kernel(function: F) -> F:
    """Compile a function that only other compiled functions call, cached on disk.

    Kernels allocate nothing. So reference counting can be off, whose atomic increments took most of the time.
    """
    return _compile(function, no_cpython_wrapper=True, no_cfunc_wrapper=True)


def inlined(function: F) -> F:
    """Make a function part of its only caller: code is optimized anew at every level of calls, so levels are slow."""
    return _compile(function, inline="always")


def entry(function: F) -> F:
    """Compile a function that Python calls, cached on disk, releasing the GIL; it fills arrays given to it."""
    return _compile(function, nogil=True)


def _compile(function: F, *signature: str, **options: Any) -> F:
    njit: Any = numba.njit
    before, _CONFIG.CACHE_DIR = _CONFIG.CACHE_DIR, _CACHE_FOLDER
    try:
        compiled = njit(cache=True, _nrt=False, **options)(function)
    finally:
        _CONFIG.CACHE_DIR = before
    if signature:
        compiled.compile(*signature)
        compiled.disable_compile()
    return cast(F, compiled)


@basic("u8(u8)")
def mix(key: Key) -> Key:
    """Scramble a key (the finalizer of SplitMix64)."""
    key = (key ^ (key >> uint64(30))) * uint64(0xBF58476D1CE4E5B9)
    key = (key ^ (key >> uint64(27))) * uint64(0x94D049BB133111EB)
    return key ^ (key >> uint64(31))


@basic("u8(u8,i8)")
def child(key: Key, index: int) -> Key:
    """Return the key of the index-th part of a thing; indices may be negative."""
    return mix(key + uint64(index) * uint64(0x9E3779B97F4A7C15) + uint64(0x632BE59BD9B4E019))


@basic("f8(u8,i8)")
def draw(key: Key, index: int) -> float:
    """Return the index-th property of a thing, uniform in [0, 1)."""
    return float(child(key, index) >> uint64(11)) * (1.0 / 9007199254740992.0)


@basic("f8(u8,i8,f8,f8)")
def pick(key: Key, index: int, low: float, high: float) -> float:
    """Return the index-th property of a thing, uniform in [low, high)."""
    return low + (high - low) * draw(key, index)


@basic("f8(u8,i8,i8)")
def _lattice(key: Key, column: int, row: int) -> Any:
    # One multiplication instead of three: noise needs no more, and it is half the cost of a ground pixel.
    value = key ^ (uint64(column) * uint64(0x9E3779B97F4A7C15)) ^ (uint64(row) * uint64(0xC2B2AE3D27D4EB4F))
    value = (value ^ (value >> uint64(32))) * uint64(0xD6E8FEB86659FD93)
    return float(value >> uint64(40)) / 16777216.0


@basic("f8(u8,f8,f8)")
def noise(key: Key, x: float, y: float) -> float:
    """Return smooth value noise in [-1, 1] with features of unit size."""
    column, row = np.floor(x), np.floor(y)
    u, v = x - column, y - row
    u, v = u * u * (3.0 - 2.0 * u), v * v * (3.0 - 2.0 * v)
    i, j = int(column), int(row)
    low = _lattice(key, i, j) * (1.0 - u) + _lattice(key, i + 1, j) * u
    high = _lattice(key, i, j + 1) * (1.0 - u) + _lattice(key, i + 1, j + 1) * u
    return float(2.0 * (low * (1.0 - v) + high * v) - 1.0)


@kernel
def choose(shares: NDArray[np.float64], chance: float) -> int:
    """Return the first index whose cumulative share exceeds the chance."""
    for index in range(len(shares)):
        if chance < shares[index]:
            return index
    return len(shares) - 1


@basic("UniTuple(f8,3)(UniTuple(f8,3),UniTuple(f8,3),f8)")
def blend(first: Color, second: Color, share: float) -> Color:
    """Return a mixture with ``share`` of the second color."""
    rest = 1.0 - share
    return (
        first[0] * rest + second[0] * share,
        first[1] * rest + second[1] * share,
        first[2] * rest + second[2] * share,
    )


@basic("UniTuple(f8,3)(UniTuple(f8,3),f8)")
def shade(color: Color, amount: float) -> Color:
    """Return a color with the same amount added to each channel."""
    return (color[0] + amount, color[1] + amount, color[2] + amount)


@basic("UniTuple(f8,3)(UniTuple(f8,3),f8)")
def scale(color: Color, factor: float) -> Color:
    """Return a color times a factor."""
    return (color[0] * factor, color[1] * factor, color[2] * factor)
