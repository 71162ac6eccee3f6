"""A tile server that is never the bottleneck, and that fails on demand: the other side of `acquisition.py`.

Run: python benchmarks/tile_server.py --port 8801 --latency-ms 20
Any path but /stats and /reset is a tile. The fault a path has is a function of the path alone, so every tool meets the
same ones: with rates per 10,000 paths a first request is answered with 429 and Retry-After, with 503, or with 60 % of
its body, and any request with 404 or with a placeholder. Prints its port as one line once it listens.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import io
import json
import os
import time
import zlib
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import lru_cache

FAULTS = ("rate_limited", "server_error", "not_found", "no_imagery", "truncated")
"""What a path may have, in the order in which the rates are laid side by side."""

PER_RATE = 10_000
NUM_BODIES = 512
PLACEHOLDER_BYTES = 2521
KEPT_SHARE = 0.6
"""How much of a truncated body is sent."""


def slot(path: str) -> float:
    """Return the place of a path in [0, 10000), without its query."""
    digest = hashlib.blake2b(path.partition("?")[0].encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64 * PER_RATE


def fault(path: str, rates: Mapping[str, float]) -> str:
    """Return the fault of a path, empty for none."""
    place, upper = slot(path), 0.0
    for name in FAULTS:
        upper += rates.get(name, 0.0)
        if place < upper:
            return name
    return ""


def rates_for(paths: Iterable[str], counts: Mapping[str, int]) -> dict[str, float]:
    """Return the rates per 10,000 at which exactly so many of the paths have each fault."""
    slots = [0.0, *sorted(slot(path) for path in paths), float(PER_RATE)]
    rates, lower, reached = {}, 0.0, 0
    for name in FAULTS:
        reached += counts.get(name, 0)
        upper = (slots[reached] + slots[reached + 1]) / 2 if counts.get(name, 0) else lower
        rates[name], lower = upper - lower, upper
    return rates


@lru_cache(maxsize=1)
def bodies() -> list[bytes]:
    """Return 512 distinct JPEGs of 256 x 256 pixels, 15 kB in the mean: smooth fields under noise."""
    import numpy as np
    import simplejpeg

    rng = np.random.default_rng(0)
    side = 1024
    rows, columns = np.mgrid[0:side, 0:side].astype(np.float32) / 256
    waves = rng.uniform(1, 9, (3, 3))
    field = np.stack([70 * np.sin(fx * columns + fy * rows + phase) for fx, fy, phase in waves], axis=-1) + 128
    noise = rng.standard_normal((side, side, 1), np.float32)
    found = []
    for x, y in rng.integers(0, side - 256, (NUM_BODIES, 2)):
        cut = np.s_[y : y + 256, x : x + 256]
        pixels = np.clip(field[cut] + rng.uniform(4.0, 19.0) * noise[cut], 0, 255).astype(np.uint8)
        found.append(simplejpeg.encode_jpeg(pixels, quality=76, colorspace="RGB", colorsubsampling="420"))
    return found


@lru_cache(maxsize=1)
def placeholder() -> bytes:
    """Return a valid 256 x 256 JPEG of exactly 2,521 bytes, the size of the best known "no data yet" tile."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (256, 256), (204, 204, 204))
    ImageDraw.Draw(image).text((40, 120), "Map data not yet available", fill=(90, 90, 90))
    plain = io.BytesIO()
    image.save(plain, "JPEG", quality=40)
    encoded = plain.getvalue()
    comment = PLACEHOLDER_BYTES - len(encoded) - 4
    return encoded[:-2] + b"\xff\xfe" + (comment + 2).to_bytes(2, "big") + b" " * comment + encoded[-2:]


def body_of(path: str) -> bytes:
    """Return the image of a path, as it is served without faults."""
    return bodies()[zlib.crc32(path.partition("?")[0].encode()) % NUM_BODIES]


class TileServer:
    """Answers and what was asked.

    Args:
        latency_s: Time from a request to its answer.
        rates: Fault to its rate per 10,000 paths.
        retry_after_s: What a 429 asks for.
        token: If not empty, requests without ``?token=`` of this value get 403.
    """

    def __init__(self, latency_s: float, rates: Mapping[str, float], retry_after_s: int, token: str) -> None:
        self.latency_s = latency_s
        self._rates = rates if any(rates.values()) else {}
        self._retry_after_s = retry_after_s
        self._token = f"token={token}".encode() if token else b""
        self._bodies = [_response(200, body, "image/jpeg") for body in bodies()]
        self.reset()

    def reset(self) -> None:
        """Forget what was asked; first requests are first again."""
        self.num_connections = 0
        self.num_forbidden = 0
        self.times = array("d")
        self.asked: Counter[bytes] = Counter()
        self.limited: dict[str, list[float]] = {}  # path: time of its 429, time of the next request

    def stats(self, is_detailed: bool) -> dict[str, object]:
        """Return the counts; in detail with the times of all requests and how often each path was asked."""
        found: dict[str, object] = {
            "requests": len(self.times),
            "connections": self.num_connections,
            "paths": len(self.asked),
            "forbidden": self.num_forbidden,
            "first_s": self.times[0] if self.times else None,
            "last_s": self.times[-1] if self.times else None,
        }
        if is_detailed:
            found["times_s"] = self.times.tolist()
            found["retries_s"] = self.limited
            found["asked"] = {path.decode(): count for path, count in self.asked.items()}
        return found

    def answer(self, target: bytes) -> tuple[bytes, bool]:
        """Return the answer to a request for a tile, and whether the connection is closed after it."""
        now = time.monotonic()
        self.times.append(now)
        path, _, query = target.partition(b"?")
        if self._token and self._token not in query.split(b"&"):
            self.num_forbidden += 1
            return _response(403, b"forbidden", "text/plain"), False
        is_first = path not in self.asked
        self.asked[path] += 1
        good = self._bodies[zlib.crc32(path) % NUM_BODIES]
        if not self._rates:
            return good, False
        name = path.decode()
        kind = fault(name, self._rates)
        if kind == "rate_limited" and not is_first:
            times = self.limited[name]
            if len(times) == 1:
                times.append(now)
        if kind == "not_found":
            return _response(404, b"<html>not found</html>", "text/html"), False
        if kind == "no_imagery":
            return _response(200, placeholder(), "image/jpeg"), False
        if kind == "" or not is_first:
            return good, False
        if kind == "rate_limited":
            self.limited[name] = [now]
            return _response(429, b"slow down", "text/plain", f"Retry-After: {self._retry_after_s}\r\n"), False
        if kind == "server_error":
            return _response(503, b"busy", "text/plain"), False
        head, _, body = good.partition(b"\r\n\r\n")
        return head + b"\r\n\r\n" + body[: int(len(body) * KEPT_SHARE)], True


class _Connection(asyncio.Protocol):
    """One client; requests have no bodies, and the next comes after the answer."""

    def __init__(self, server: TileServer) -> None:
        self._server = server
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]  # uvloop's own class
        self._is_counted = False

    def data_received(self, data: bytes) -> None:
        """Answer every complete request."""
        self._received += data
        while (end := self._received.find(b"\r\n\r\n")) >= 0:
            request, self._received = self._received[:end], self._received[end + 4 :]
            target = request.split(b" ", 2)[1]
            if target.startswith((b"/stats", b"/reset")):
                self._control(target)
                continue
            if not self._is_counted:
                self._server.num_connections += 1
                self._is_counted = True
            answer, is_last = self._server.answer(target)
            if self._server.latency_s:
                asyncio.get_running_loop().call_later(self._server.latency_s, self._send, answer, is_last)
            else:
                self._send(answer, is_last)

    def _send(self, answer: bytes, is_last: bool) -> None:
        if not self._transport.is_closing():
            self._transport.write(answer)
            if is_last:
                self._transport.close()

    def _control(self, target: bytes) -> None:
        if target.startswith(b"/reset"):
            self._server.reset()
        found = self._server.stats(is_detailed=target == b"/stats?detailed")
        self._send(_response(200, json.dumps(found).encode(), "application/json"), is_last=True)


_REASONS = {200: "OK", 403: "Forbidden", 404: "Not Found", 429: "Too Many Requests", 503: "Service Unavailable"}


def _response(status: int, body: bytes, kind: str, headers: str = "") -> bytes:
    head = (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    )
    return head.encode() + body


async def serve(server: TileServer, port: int) -> None:
    """Listen on loopback until cancelled."""
    loop = asyncio.get_running_loop()
    listening = await loop.create_server(lambda: _Connection(server), "127.0.0.1", port, backlog=1024)
    print(listening.sockets[0].getsockname()[1], flush=True)
    await listening.serve_forever()


def main() -> None:
    import uvloop

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--latency-ms", type=float, default=0.0)
    parser.add_argument("--retry-after-s", type=int, default=1)
    parser.add_argument("--core", type=int, help="stay on this one")
    parser.add_argument("--token-variable", default="", help="demand ?token= with the value of this variable")
    for name in FAULTS:
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, default=0.0, metavar="PER_10000")
    arguments = parser.parse_args()
    if arguments.core is not None:
        os.sched_setaffinity(0, {arguments.core})
    token = os.environ[arguments.token_variable] if arguments.token_variable else ""
    rates = {name: getattr(arguments, name) for name in FAULTS}
    uvloop.run(serve(TileServer(arguments.latency_ms / 1000, rates, arguments.retry_after_s, token), arguments.port))


if __name__ == "__main__":
    main()
