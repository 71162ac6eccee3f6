"""Which tiles exist: the ``tilemap`` of a map service, asked for block by block, as caches like it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from cvgl_data.errors import FetchError
from cvgl_data.http import Http
from cvgl_data.http.answers import check
from cvgl_data.sources.esri.asking import RECHECK_WAIT_S, ask_json
from cvgl_data.sources.esri.once import Once
from cvgl_data.sources.esri.refusals import json_refusal
from cvgl_data.types import Outcome, Tile

logger = logging.getLogger(__name__)

BLOCK = 8
"""Tiles per side of a block; blocks are aligned to multiples of it, so that everyone asks for the same ones."""

KEPT_BLOCKS = 4096
"""A row of blocks of any city, many times over."""

MAX_FAILURES = 3
"""So many failures in a row, and the tilemap is left alone."""


@dataclass(frozen=True, slots=True)
class Availability:
    """What a tilemap says of one tile; ``None`` is "nothing"."""

    exists: bool | None = None
    release: int | None = None
    """Number of the Wayback release that holds the tile's bytes."""
    size_bytes: int | None = None


UNKNOWN = Availability()


@dataclass(frozen=True, slots=True)
class Block:
    """The answer for ``width * height`` tiles, row by row from ``(left, top)``."""

    left: int
    top: int
    width: int
    height: int
    tiles: tuple[Availability, ...]

    def at(self, x: int, y: int) -> Availability:
        """Return what is known of a tile, also of one outside: a server may answer for fewer than it was asked."""
        column, row = x - self.left, y - self.top
        is_inside = 0 <= column < self.width and 0 <= row < self.height
        return self.tiles[row * self.width + column] if is_inside else UNKNOWN


_Count = Annotated[int, Field(ge=0)]


class _Location(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)

    left: _Count
    top: _Count
    width: Annotated[int, Field(ge=1)]
    height: Annotated[int, Field(ge=1)]


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)

    location: _Location
    data: list[_Count]
    valid: bool = True
    select: list[int | None] | None = None
    size: list[int | None] | None = None


def parse_block(value: Any, *, release: int | None = None, source: str, item: str) -> Block:
    """Return the answer of a tilemap.

    Args:
        value: Decoded JSON: ``location`` (the block that is answered for, not always the one asked for), ``data``
            (0 means missing), on Wayback ``select`` and ``size``.
        release: The release asked, which an answer for one tile need not repeat.
        source: Name of the source, for errors.
        item: The block, for errors.

    Raises:
        FetchError: ``decode_error`` if it contradicts itself or lacks a field; that of an error in its place.
    """
    refusal = json_refusal(value, where=item, source=source, item=item)
    if refusal is not None:
        raise refusal
    answer = check(_Answer, value, source=source, item=item)
    at = answer.location
    count = at.width * at.height
    if not answer.valid or len(answer.data) != count:
        text = f"the tilemap has {len(answer.data)} values for {at.width}x{at.height} tiles, valid: {answer.valid}"
        raise FetchError(text, source=source, item=item, outcome=Outcome.DECODE_ERROR)
    releases = _column(answer.select, count)
    if count == 1 and releases[0] is None:
        releases = [release]
    tiles = [
        Availability(True, number, size) if exists else Availability(False)
        for exists, number, size in zip(answer.data, releases, _column(answer.size, count), strict=True)
    ]
    return Block(at.left, at.top, at.width, at.height, tuple(tiles))


def _column(values: Sequence[int | None] | None, count: int) -> Sequence[int | None]:
    if values is None or len(values) != count:
        return [None] * count
    return [value if value is not None and value > 0 else None for value in values]


class Tilemap:
    """Asks a tilemap and never fails: what it cannot tell is unknown.

    Args:
        url: Address up to the level: ``.../MapServer/tilemap``, with the release on Wayback.
        mode: ``block``; ``tile`` for one request per tile; ``off``.
        source: Name of the source.
        params: Returns query parameters of each request; called each time, so that a key is revealed only then.
        release: The Wayback release asked.
        knows_blocks: Whether the service is documented to answer for blocks. Otherwise "nothing there" (422) is
            believed only once it has answered for one: it might as well mean that it does not understand.
        wait_s: As for `ask_json`.
    """

    def __init__(
        self,
        url: str,
        mode: str,
        *,
        source: str,
        params: Callable[[], Mapping[str, str]] = dict,
        release: int | None = None,
        knows_blocks: bool = True,
        wait_s: float = RECHECK_WAIT_S,
    ) -> None:
        self._url = url
        self._side = BLOCK if mode == "block" else 1
        self._source = source
        self._params = params
        self._release = release
        self._knows_blocks = knows_blocks or mode == "tile"
        self._wait_s = wait_s
        self._is_off = mode == "off"
        self._is_silent = False
        self._failures = 0
        self._blocks: Once[Tile, Block | None] = Once(KEPT_BLOCKS)

    async def look(self, tile: Tile, http: Http) -> Availability:
        """Return what the tilemap says of a tile."""
        if self._is_off:
            return UNKNOWN
        first = Tile(tile.x // self._side * self._side, tile.y // self._side * self._side, tile.z)
        block = await self._blocks.get(first, lambda: self._load(first, http))
        return UNKNOWN if block is None else block.at(tile.x, tile.y)

    def close(self) -> None:
        """Give up what is in flight."""
        self._blocks.close()

    async def _load(self, first: Tile, http: Http) -> Block | None:
        if self._is_silent:
            return None
        try:
            block = await self._ask(first, http)
        except FetchError as error:
            if error.outcome is Outcome.NOT_FOUND and not self._knows_blocks:
                self._end_blocks()
                return None
            self._failures += 1
            logger.debug("tilemap of %s: %s", first, error)
            if self._failures >= MAX_FAILURES and not self._is_silent:
                self._is_silent = True
                logger.warning("%s: the tilemap keeps failing, tiles are fetched without it: %s", self._source, error)
            return None
        self._failures = 0
        return block

    async def _ask(self, first: Tile, http: Http) -> Block | None:
        side = min(self._side, 2**first.z)
        url = f"{self._url}/{first.z}/{first.y}/{first.x}"
        if self._side > 1:
            url += f"/{side}/{side}"
        item = f"tilemap {first}"
        value = await ask_json(
            http,
            url,
            {"f": "json", **self._params()},
            accept={422},
            source=self._source,
            item=item,
            wait_s=self._wait_s,
        )
        if value is None or _is_empty(value):
            if not self._knows_blocks:
                return None
            return Block(first.x, first.y, side, side, (Availability(False),) * (side * side))
        block = parse_block(value, release=self._release, source=self._source, item=item)
        if side > 1 and len(block.tiles) == 1:
            # Using this one answer would make a dataset depend on which tile was asked for first.
            self._end_blocks()
            return None
        self._knows_blocks = True
        return block

    def _end_blocks(self) -> None:
        if not self._is_silent:
            self._is_silent = True
            text = (
                "%s: the tilemap answers for single tiles only, tiles are fetched without it (see its option tilemap)"
            )
            logger.info(text, self._source)


def _is_empty(value: Any) -> bool:
    """Whether an answer is the 422 of a tilemap inside HTTP 200."""
    error = value.get("error") if isinstance(value, dict) else None
    return isinstance(error, dict) and error.get("code") == 422
