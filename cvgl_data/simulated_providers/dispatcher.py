"""From a request to its answer: who answers, what goes wrong on purpose, and a record of both."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections import Counter
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any
from urllib.parse import urlencode

from aiohttp import web

from cvgl_data.images import decode
from cvgl_data.redaction import SECRET_PARAMETERS, redact
from cvgl_data.simulated_providers.esri import WorldImagery, placeholder_answer
from cvgl_data.simulated_providers.exchange import (
    Answer,
    Ask,
    Provider,
    Refused,
    Route,
    html_answer,
    is_unchanged,
    json_answer,
)
from cvgl_data.simulated_providers.faults import PROVIDERS, SIGNED, TILE
from cvgl_data.simulated_providers.google_static import StreetViewStatic
from cvgl_data.simulated_providers.google_tiles import StreetViewTiles
from cvgl_data.simulated_providers.mapillary import Mapillary
from cvgl_data.simulated_providers.panoramax import Panoramax
from cvgl_data.simulated_providers.pictures import Pictures, encoded
from cvgl_data.simulated_providers.settings import Settings
from cvgl_data.simulated_providers.views import resized

_PART_SENT = 0.6


@dataclass(frozen=True, slots=True)
class Request:
    """One request as the server saw it."""

    time_s: float
    """When it arrived, on the monotonic clock."""
    provider: str
    method: str
    path: str
    """With its query, secrets blanked out."""
    status: int
    """0 if the connection ended without an answer."""
    fault: str
    """What went wrong on purpose, empty if nothing."""


class Dispatcher:
    """Finds who answers a request, and what goes wrong with it."""

    def __init__(self, settings: Settings, pictures: Pictures) -> None:
        self.log: list[Request] = []
        self.connections: Counter[str] = Counter()
        """``total`` and ``open``."""
        self.closing = asyncio.Event()
        """Set when the server ends, so that stalls do."""
        self._settings = settings
        self._met: set[str] = set()  # transient faults that have happened, by provider and path
        self._dead: dict[str, str] = {}  # picture to the signed address that never works
        imagery, mapillary = WorldImagery(settings, pictures), Mapillary(settings, pictures)
        self._providers: dict[str, Provider] = {
            **dict.fromkeys(("esri", "wayback", "wayback-config", "metadata"), imagery),
            "panoramax": Panoramax(settings, pictures),
            **dict.fromkeys(("mapillary-graph", "mapillary-tiles", "mapillary-cdn"), mapillary),
            "google-static": StreetViewStatic(settings, pictures),
            "google-tiles": StreetViewTiles(settings, pictures),
        }
        self._routes = {name: provider.routes(name) for name, provider in self._providers.items()}

    def stats(self) -> dict[str, Any]:
        """Return requests by provider and status, faults by name, and connections."""
        requests: dict[str, Counter[str]] = {}
        for request in self.log:
            requests.setdefault(request.provider, Counter())[str(request.status)] += 1
        faults = Counter(request.fault for request in self.log if request.fault)
        return {
            "requests": {provider: dict(sorted(counts.items())) for provider, counts in sorted(requests.items())},
            "faults": dict(sorted(faults.items())),
            "connections": {name: self.connections[name] for name in ("total", "open")},
        }

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        arrived_s = time.monotonic()
        if request.path == "/stats":
            return _response(json_answer(self.stats()))
        provider, path = _split(request.path)
        if provider not in self._providers:
            return _response(html_answer("404 Not Found", 404))
        ask = Ask(
            provider=provider,
            method=request.method,
            path=path,
            raw_path=request.raw_path,
            query=request.query,
            headers=request.headers,
            body=await request.read(),
            origin=f"{request.scheme}://{request.host}",
        )
        status, fault = 0, ""
        try:
            route, match = self._route(ask)
            fault = self._fault(ask, route) if route else ""
            if self._settings.faults.latency_ms:
                await asyncio.sleep(self._settings.faults.latency_ms / 1000)
            if fault == "stall":
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.closing.wait(), self._settings.faults.stall_s)
                return _hang_up(request)
            answer = await self._answer(ask, route, match, fault)
            status = answer.status
            if fault == "truncated" and answer.body:
                return await _truncated(request, answer)
            return _response(answer)
        finally:
            shown = redact(request.raw_path)
            self.log.append(Request(arrived_s, provider, request.method, shown, status, fault))

    def _route(self, ask: Ask) -> tuple[Route | None, Any]:
        for route in self._routes[ask.provider]:
            match = route.pattern.fullmatch(ask.path)
            if match and ask.method in route.methods:
                return route, match
        return None, None

    def _fault(self, ask: Ask, route: Route) -> str:
        faults = self._settings.faults
        path = _identity(ask, route)
        name = faults.pick(self._settings.seed, ask.provider, path, route.kind)
        if name == "expired":
            return name if self._dead.setdefault(path, ask.raw_path) == ask.raw_path else ""
        if not name or not faults.is_transient(name):
            return name
        if (met := f"{ask.provider}{path}") in self._met:
            return ""
        self._met.add(met)
        return name

    async def _answer(self, ask: Ask, route: Route | None, match: Any, fault: str) -> Answer:
        provider, faults = self._providers[ask.provider], self._settings.faults
        if route is None or fault == "not_found":
            return provider.not_found(ask)
        if fault == "rate_limited":
            as_date = self._settings.chance("as date", ask.path) < 0.5
            # Dates have whole seconds: one more, so that it is never too early.
            wait = formatdate(time.time() + faults.retry_after_s + 1, usegmt=True) if as_date else faults.retry_after_s
            return json_answer({"message": "Too Many Requests"}, 429, **{"Retry-After": str(wait)})
        if fault == "unavailable":
            return html_answer("503 Service Unavailable", 503)
        if fault == "expired":
            return html_answer("403 Forbidden: URL signature expired", 403)
        if fault == "placeholder":
            return placeholder_answer()
        if fault == "error_in_200":
            return provider.error_in_200(ask)
        if fault == "html":
            return html_answer("Please sign in to the network")
        try:
            answer = await route.handler(ask, match)
        except Refused as refused:
            answer = refused.answer
        if fault == "wrong_size" and answer.status == 200:
            return await _halved(answer)
        if is_unchanged(ask, answer):
            kept = {name: answer.headers[name] for name in ("ETag", "Last-Modified") if name in answer.headers}
            return Answer(status=304, headers=kept)
        return answer


def _split(path: str) -> tuple[str, str]:
    """Return the provider of a path, and what follows it."""
    head, slash, rest = path[1:].partition("/")
    if head not in PROVIDERS and head.removesuffix(".json") == "wayback-config":
        return "wayback-config", ".json"
    return head, slash + rest


def _identity(ask: Ask, route: Route) -> str:
    """Return what makes a request the same as another: its path and query without secrets and signatures, its body."""
    if route.kind in (TILE, SIGNED):
        return ask.path
    query = sorted((name, value) for name, value in ask.query.items() if name not in SECRET_PARAMETERS)
    body = hashlib.sha256(ask.body).hexdigest()[:16] if ask.body else ""
    return f"{ask.path}?{urlencode(query)}#{body}"


def _response(answer: Answer) -> web.Response:
    headers = {**answer.headers, "Content-Type": answer.content_type}
    return web.Response(status=answer.status, body=answer.body, headers=headers)


def _hang_up(request: web.BaseRequest) -> web.Response:
    if request.transport is not None:
        request.transport.close()
    return web.Response()


async def _truncated(request: web.BaseRequest, answer: Answer) -> web.StreamResponse:
    """Promise the whole body, send a part of it, and end the connection."""
    response = web.StreamResponse(status=answer.status, headers={**answer.headers, "Content-Type": answer.content_type})
    response.content_length = len(answer.body)
    await response.prepare(request)
    await response.write(answer.body[: int(len(answer.body) * _PART_SENT)])
    if request.transport is not None:
        request.transport.close()
    return response


async def _halved(answer: Answer) -> Answer:
    def make() -> bytes:
        pixels = decode(answer.body)
        return encoded(resized(pixels, max(pixels.shape[1] // 2, 1), max(pixels.shape[0] // 2, 1)))

    headers = {name: value for name, value in answer.headers.items() if name != "ETag"}
    return Answer(body=await asyncio.to_thread(make), content_type="image/jpeg", headers=headers)
