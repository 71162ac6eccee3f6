"""One polite HTTP client for all sources: limits per host, retries, Retry-After, no secrets in messages.

A source asks for a URL and gets a complete body or a `FetchError` whose outcome says what happened. Whoever owns
the run opens one `Http` and hands it to every source, so that all of them share each host's budget.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections.abc import Container, Coroutine, Mapping
from importlib.metadata import version
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from cvgl_data.errors import FetchError, SourceStopped
from cvgl_data.http.hosts import Host, Ledger, Quota, state_folder
from cvgl_data.http.patience import Patience
from cvgl_data.http.responses import Failure, Response, failure_of
from cvgl_data.redaction import redact
from cvgl_data.types import Outcome

if TYPE_CHECKING:
    import aiohttp

logger = logging.getLogger(__name__)


class NotModified(Exception):  # noqa: N818 - good news
    """The server still has what is here already; see `Http.unless`."""


class Http:
    """HTTP client of one run; use as ``async with Http() as http``. Opens nothing before the first request.

    Args:
        rate_per_s: Requests per second and host, retries included; 0 means no limit.
        connections: Requests in flight per host; also what may pass at once after a pause (the bucket's depth).
        max_tries: Attempts per request.
        deadline_s: No new attempt begins this long after the first.
        backoff_s: First delay before trying again; doubles, capped at a minute, and is drawn at random up to that.
        max_pause_s: A longer Retry-After is not slept through: requests to the host then fail at once, and do so in
            later runs until its time has come. Likewise a used-up quota.
        max_body_bytes: Larger answers are refused.
        connect_timeout_s: To have a connection.
        read_timeout_s: Until the answer begins, and between two pieces of it.
        total_timeout_s: For one attempt.
        contact: How to reach whoever runs this, told to every server; default: ``CVGL_CONTACT``.
        ledger: Remembers quotas and parked hosts; default: this user's.
    """

    def __init__(
        self,
        *,
        rate_per_s: float = 10.0,
        connections: int = 8,
        max_tries: int = 5,
        deadline_s: float = 600.0,
        backoff_s: float = 0.5,
        max_pause_s: float = 300.0,
        max_body_bytes: int = 32 * 1024 * 1024,
        connect_timeout_s: float = 10.0,
        read_timeout_s: float = 30.0,
        total_timeout_s: float = 60.0,
        contact: str = "",
        ledger: Ledger | None = None,
    ) -> None:
        self.num_requests = 0
        """Attempts sent so far."""
        self._rate_per_s = rate_per_s
        self._connections = connections
        self._max_tries = max_tries
        self._deadline_s = deadline_s
        self._backoff_s = backoff_s
        self._max_pause_s = max_pause_s
        self._max_body_bytes = max_body_bytes
        self._connect_timeout_s = connect_timeout_s
        self._patience = Patience(read_timeout_s, total_timeout_s)
        self._contact = contact or os.environ.get("CVGL_CONTACT", "")
        self._ledger = ledger or Ledger(state_folder() / "limits.json")
        self._session: aiohttp.ClientSession | None = None
        self._hosts: dict[str, Host] = {}

    async def __aenter__(self) -> Http:
        """Return the client itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        self._ledger.close()
        self._patience.close()
        if self._session is not None:
            await self._session.close()
            self._session = None

    def get(self, url: str, **options: Any) -> Coroutine[Any, Any, Response]:
        """Ask for a URL; options and errors as for `request`."""
        return self.request("GET", url, **options)

    @property
    def base(self) -> Http:
        """This very client without conditions, for what several requests share."""
        return self

    def unless(self, etag: str) -> Http:
        """Return this client asking on the condition that something is no longer what the ETag says.

        A request through it raises `NotModified` when it is.
        """
        return _Conditional(self, etag)

    async def request(
        self,
        method: str,
        url: str,
        *,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        json: Any = None,
        accept: Container[int] = (),
        quota: Quota | None = None,
        source: str = "",
        item: object = "",
    ) -> Response:
        """Send a request until it succeeds, fails for good, or has been tried often enough.

        Args:
            method: HTTP method.
            url: Absolute URL.
            params: Query parameters to append.
            headers: Added to the session's.
            json: Body to send as JSON.
            accept: Statuses of 400 and more that are answers, not failures.
            quota: The provider's limit that this request counts against.
            source: Name of the source, for errors.
            item: The tile or panorama, for errors.

        Raises:
            FetchError: With the outcome of the last attempt.
            SourceStopped: If the quota is used up.
        """
        session = self._open()  # before the first request is admitted: what it takes must not make a burst
        host = self._host(url)
        first = 0.0
        attempt = 1
        while True:
            sent = 0.0
            if not host.enter_now():
                await host.enter()
            try:
                if quota is not None or host.name in self._ledger.parked or not host.take_turn():
                    await self._admit(host, quota)
                self.num_requests += 1
                sent = time.monotonic()
                first = first or sent
                response = await self._attempt(session, method, url, accept, params=params, headers=headers, json=json)
                if host.share < 1.0:
                    host.answered()
                return response
            except Failure as failure:
                if not sent:  # we did not even ask
                    raise SourceStopped(str(failure), source=source, item=str(item), outcome=failure.outcome) from None
                if failure.refuses:
                    host.refused(sent)
                if failure.pause_s:
                    host.pause(failure.pause_s)
                    if failure.pause_s > self._max_pause_s:
                        self._ledger.park(host.name, failure.pause_s)
                late = time.monotonic() - first >= self._deadline_s
                if not failure.retry or attempt >= self._max_tries or late:
                    raise FetchError(
                        redact(f"{failure} after {attempt} tries: {url}" if attempt > 1 else f"{failure}: {url}"),
                        source=source,
                        item=str(item),
                        outcome=failure.outcome,
                    ) from None
                if logger.isEnabledFor(logging.DEBUG):
                    logger.debug("try %d of %s failed: %s", attempt, redact(url), redact(str(failure)))
            finally:
                host.leave()
            await asyncio.sleep(random.uniform(0.0, min(60.0, self._backoff_s * 2 ** (attempt - 1))))
            attempt += 1

    async def _admit(self, host: Host, quota: Quota | None) -> None:
        """Wait until the request may be sent; raises rather than wait for hours."""
        while quota is not None and (wait_s := self._ledger.take(host.name, quota)):
            if wait_s > self._max_pause_s:
                when = time.strftime("%Y-%m-%d %H:%M", time.localtime(time.time() + wait_s))
                text = f"the quota '{quota.name}' of {host.name} is used up until {when}; run again then"
                raise Failure(text, Outcome.QUOTA, retry=False)
            await asyncio.sleep(wait_s)
        while (parked_s := self._ledger.parked_s(host.name)) or not host.take_turn():
            wait_s = max(parked_s, host.wait_s)
            if max(parked_s, host.pause_s) > self._max_pause_s:
                text = f"host {host.name} asks to be left alone for {wait_s:.0f} s; run again later"
                raise Failure(text, Outcome.RATE_LIMITED, retry=False)
            await asyncio.sleep(wait_s)

    def _host(self, url: str) -> Host:
        origin = url[: url.find("/", 8)] if url.find("/", 8) > 0 else url
        host = self._hosts.get(origin)
        if host is None:
            name = urlsplit(url).netloc.rpartition("@")[2].lower()
            known = (host for host in self._hosts.values() if host.name == name)
            host = next(known, None) or Host(name, self._rate_per_s, self._connections)
            self._hosts[origin] = host
        return host

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            import aiohttp  # 0.3 s of start-up that builds without network need not pay

            who = f"cvgl-data/{version('cvgl')} (cross-view geo-localization research" + (
                f"; {self._contact})" if self._contact else ")"
            )
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=300),  # `Host` counts connections
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._connect_timeout_s),  # rest: `Patience`
                headers={"User-Agent": who, "Accept-Encoding": "identity"},
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=bool(getproxies()),
            )
        return self._session

    async def _attempt(
        self, session: aiohttp.ClientSession, method: str, url: str, accept: Container[int], **options: Any
    ) -> Response:
        import aiohttp

        try:
            async with (attempt := self._patience.attempt()):
                attempt.response = response = await session.request(method, url, **options)
                try:
                    if response.status >= 400 and response.status not in accept:
                        raise failure_of(response.status, response.headers)
                    size = response.content_length
                    if size is not None and size <= self._max_body_bytes:
                        body = await response.read()  # in one piece, checked against what was announced
                    else:
                        body = await self._piece_by_piece(response)
                    return Response(url, response.status, response.headers, body)
                finally:
                    response.release()
        except aiohttp.ClientPayloadError as error:
            raise Failure(f"the body ends early ({error})", Outcome.TRUNCATED, retry=True) from None
        except TimeoutError:  # before ClientError: aiohttp's timeouts are both
            raise Failure("no answer in time", Outcome.TIMEOUT, retry=True) from None
        except aiohttp.InvalidURL:
            raise Failure("not a valid URL", Outcome.NOT_FOUND, retry=False) from None
        except (aiohttp.ClientError, OSError) as error:
            text = f"no connection ({type(error).__name__}: {error})"
            raise Failure(text, Outcome.CONNECTION, retry=True) from None

    async def _piece_by_piece(self, response: aiohttp.ClientResponse) -> bytes:
        """Return a body of a size that was not announced, or is too large."""
        pieces: list[bytes] = []
        size = response.content_length or 0
        if size <= self._max_body_bytes:
            async for piece in response.content.iter_any():
                pieces.append(piece)
                size += len(piece)
                if size > self._max_body_bytes:
                    break
        if size > self._max_body_bytes:
            response.close()
            limit = f"the body is larger than {self._max_body_bytes} bytes"
            raise Failure(limit, Outcome.WRONG_SIZE, retry=False)
        return b"".join(pieces)


class _Conditional(Http):
    """A client that asks for what has changed only; everything else is its base's."""

    def __init__(self, base: Http, etag: str) -> None:
        self._base = base
        self._etag = etag

    @property
    def base(self) -> Http:
        return self._base

    async def request(self, method: str, url: str, **options: Any) -> Response:
        headers = {**(options.pop("headers", None) or {}), "If-None-Match": self._etag}
        response = await self._base.request(method, url, headers=headers, **options)
        if response.status == 304:
            raise NotModified
        return response
