"""One polite HTTP client for all sources: limits per host, retries, Retry-After, no secrets in messages.

A source asks for a URL and gets a complete body or a `FetchError` whose outcome says what happened. Whoever owns
the run opens one `Http` and hands it to every source, so that all of them share each host's budget.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from collections.abc import Container, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cvgl_data.environment import mask
from cvgl_data.errors import FetchError
from cvgl_data.hosts import Quota
from cvgl_data.types import Outcome

if TYPE_CHECKING:
    import aiohttp

logger = logging.getLogger(__name__)

SECRET_PARAMETERS = ("key", "token", "access_token", "signature", "session")
"""Query parameters that must never be seen in a message, a log or a file."""

_SECRET = re.compile(rf"(?i)([?&;](?:{'|'.join(SECRET_PARAMETERS)})=)[^&;#\s'\"<>)]*")

_STATUS_OUTCOMES = {
    401: Outcome.AUTH,
    402: Outcome.QUOTA,
    403: Outcome.AUTH,
    407: Outcome.AUTH,
    408: Outcome.TIMEOUT,
    425: Outcome.RATE_LIMITED,
    429: Outcome.RATE_LIMITED,
}
_RETRIED_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})


def redact(text: str) -> str:
    """Return a text with the values of secret query parameters, and every key this process has read, blanked out."""
    return mask(_SECRET.sub(r"\1***", text))


@dataclass(frozen=True, slots=True)
class Response:
    """A complete answer, with a status below 400 unless another was accepted."""

    url: str
    """As asked for, secrets blanked out."""
    status: int
    headers: Mapping[str, str]
    """Names compare without regard to case."""
    body: bytes

    @property
    def validators(self) -> dict[str, str]:
        """What `Fetched` and `Panorama` keep of an image's response: ``etag``, ``last_modified``, ``robots``."""
        return {
            "etag": self.headers.get("ETag", ""),
            "last_modified": self.headers.get("Last-Modified", ""),
            "robots": self.headers.get("X-Robots-Tag", ""),
        }


class Http:
    """HTTP client of one run; use as ``async with Http() as http``. Opens nothing before the first request.

    Args:
        rate_per_s: Requests per second and host, retries included; 0 means no limit.
        connections: Requests in flight per host; also what may pass at once after a pause (the bucket's depth).
        max_tries: Attempts per request.
        deadline_s: No new attempt begins this long after the first.
        backoff_s: First delay before trying again; doubles, capped at a minute, and is drawn at random up to that.
        max_pause_s: A longer Retry-After is not slept through: requests to the host then fail at once, for a later run.
        max_body_bytes: Larger answers are refused.
        connect_timeout_s: To have a connection.
        read_timeout_s: Between two pieces of the body.
        total_timeout_s: For one attempt.
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
        self._timeouts_s = (connect_timeout_s, read_timeout_s, total_timeout_s)
        self._session: aiohttp.ClientSession | None = None
        self._hosts: dict[str, _Host] = {}

    async def __aenter__(self) -> Http:
        """Return the client itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def get(self, url: str, **options: Any) -> Response:
        """Ask for a URL; options and errors as for `request`."""
        return await self.request("GET", url, **options)

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
        item: str = "",
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
        host = self._host(url)
        first = time.monotonic()
        attempt = 1
        while True:
            try:
                async with host.connections:
                    await host.admit(self._max_pause_s)
                    self.num_requests += 1
                    return await self._attempt(method, url, accept, params=params, headers=headers, json=json)
            except _Failure as failure:
                late = time.monotonic() - first >= self._deadline_s
                if failure.pause_s:
                    host.pause(failure.pause_s)
                if not failure.retry or attempt >= self._max_tries or late:
                    raise FetchError(
                        redact(f"{failure} after {attempt} tries: {url}" if attempt > 1 else f"{failure}: {url}"),
                        source=source,
                        item=item,
                        outcome=failure.outcome,
                    ) from None
                logger.debug("try %d of %s failed: %s", attempt, redact(url), redact(str(failure)))
            await asyncio.sleep(random.uniform(0.0, min(60.0, self._backoff_s * 2 ** (attempt - 1))))
            attempt += 1

    def _host(self, url: str) -> _Host:
        name = urlsplit(url).netloc.rpartition("@")[2].lower()
        if name not in self._hosts:
            self._hosts[name] = _Host(name, self._rate_per_s, self._connections)
        return self._hosts[name]

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            import aiohttp  # 0.3 s of start-up that builds without network need not pay

            connect_s, read_s, total_s = self._timeouts_s
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, limit_per_host=self._connections, ttl_dns_cache=300),
                timeout=aiohttp.ClientTimeout(total=total_s, sock_connect=connect_s, sock_read=read_s),
                headers={"User-Agent": f"cvgl-data/{version('cvgl')}", "Accept-Encoding": "identity"},
            )
        return self._session

    async def _attempt(self, method: str, url: str, accept: Container[int], **options: Any) -> Response:
        import aiohttp

        try:
            async with self._open().request(method, url, **options) as response:
                if response.status >= 400 and response.status not in accept:
                    raise _failure(response.status, response.headers)
                body = await self._body(response)
                return Response(redact(str(response.url)), response.status, response.headers, body)
        except aiohttp.ClientPayloadError as error:
            raise _Failure(f"the body ends early ({error})", Outcome.TRUNCATED, retry=True) from None
        except TimeoutError:  # before ClientError: aiohttp's timeouts are both
            raise _Failure("no answer in time", Outcome.TIMEOUT, retry=True) from None
        except aiohttp.InvalidURL:
            raise _Failure("not a valid URL", Outcome.NOT_FOUND, retry=False) from None
        except (aiohttp.ClientError, OSError) as error:
            text = f"no connection ({type(error).__name__}: {error})"
            raise _Failure(text, Outcome.CONNECTION, retry=True) from None

    async def _body(self, response: aiohttp.ClientResponse) -> bytes:
        pieces: list[bytes] = []
        size = 0
        async for piece in response.content.iter_any():
            size += len(piece)
            if size > self._max_body_bytes:
                limit = f"the body is larger than {self._max_body_bytes} bytes"
                raise _Failure(limit, Outcome.WRONG_SIZE, retry=False)
            pieces.append(piece)
        return b"".join(pieces)


class _Failure(Exception):  # noqa: N818 - never leaves this module
    """One attempt that failed."""

    def __init__(self, message: str, outcome: Outcome, *, retry: bool, pause_s: float = 0.0) -> None:
        super().__init__(message)
        self.outcome = outcome
        self.retry = retry
        self.pause_s = pause_s


class _Host:
    """Budget of one host: a bucket of ``burst`` requests that refills at ``rate_per_s``, and the pause it asked for."""

    def __init__(self, name: str, rate_per_s: float, burst: int) -> None:
        self.connections = asyncio.Semaphore(burst)
        self._name = name
        self._rate_per_s = rate_per_s
        self._burst = burst
        self._next = 0.0  # when the next request may leave; lags behind the clock by at most a full bucket
        self._resume = 0.0

    def pause(self, seconds: float) -> None:
        """Let nothing pass for a while."""
        self._resume = max(self._resume, time.monotonic() + seconds)

    async def admit(self, max_pause_s: float) -> None:
        """Wait until one more request may be sent."""
        while True:
            now = time.monotonic()
            if self._resume - now > max_pause_s:
                text = f"host {self._name} asks to be left alone for {self._resume - now:.0f} s; run again later"
                raise _Failure(text, Outcome.RATE_LIMITED, retry=False)
            if self._resume > now:
                await asyncio.sleep(self._resume - now)
                continue
            if not self._rate_per_s:
                return
            self._next = max(self._next, now - (self._burst - 1) / self._rate_per_s)
            if self._next <= now:
                self._next += 1 / self._rate_per_s
                return
            await asyncio.sleep(self._next - now)


def _failure(status: int, headers: Mapping[str, str]) -> _Failure:
    default = Outcome.SERVER_ERROR if status >= 500 else Outcome.NOT_FOUND
    pause_s = _retry_after_s(headers.get("Retry-After", "")) if status in (429, 503) else 0.0
    return _Failure(
        f"HTTP {status}",
        _STATUS_OUTCOMES.get(status, default),
        retry=status in _RETRIED_STATUSES,
        pause_s=pause_s,
    )


def _retry_after_s(value: str) -> float:
    """Return what a Retry-After header asks for, a number or an HTTP date; 0 for a past date or nonsense."""
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return 0.0
