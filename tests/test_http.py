import asyncio
import time
from email.utils import formatdate

import pytest
from aiohttp import web

from cvgl_data.errors import FetchError
from cvgl_data.http import Http
from cvgl_data.http.responses import Response, retry_after_s
from cvgl_data.redaction import SECRET_PARAMETERS, redact
from cvgl_data.types import Outcome


class Server:
    """A loopback server whose answers are a function of path and attempt; counts and times the requests."""

    def __init__(self, answer):
        self.answer = answer
        self.times = {}
        self.headers = []
        self.in_flight = self.most_in_flight = 0

    async def handle(self, request):
        seen = self.times.setdefault(request.path, [])
        seen.append(time.monotonic())
        self.headers.append(request.headers)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            result = self.answer(request, len(seen))
            return await result if asyncio.iscoroutine(result) else result
        finally:
            self.in_flight -= 1

    async def __aenter__(self):
        application = web.Application()
        application.router.add_route("*", "/{tail:.*}", self.handle)
        self.runner = web.AppRunner(application)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *exception):
        await self.runner.cleanup()


def ask(answer, *paths, **settings):
    """Return the server, and the answers or errors to concurrent requests."""

    async def run():
        async with Server(answer) as server, Http(**{"rate_per_s": 0, "backoff_s": 0.01, **settings}) as client:
            results = await asyncio.gather(
                *(client.get(server.url + path, source="s", item=path) for path in paths), return_exceptions=True
            )
            return server, results

    return asyncio.run(run())


def test_answer_comes_complete_with_an_honest_user_agent():
    server, [response] = ask(lambda request, attempt: web.Response(body=b"\xff\xd8tile"), "/t?key=SECRET&z=1")
    assert (response.status, response.body) == (200, b"\xff\xd8tile")
    assert server.headers[0]["User-Agent"].startswith("cvgl-data/")
    assert server.headers[0]["Accept-Encoding"] == "identity"
    assert response.headers["content-LENGTH"] == "6"
    assert "SECRET" not in response.url
    assert "key=***&z=1" in response.url


@pytest.mark.parametrize(
    ("status", "outcome"),
    [(400, "not_found"), (401, "auth"), (403, "auth"), (404, "not_found"), (410, "not_found"), (501, "server_error")],
)
def test_what_will_not_change_is_asked_once(status, outcome):
    server, [error] = ask(lambda request, attempt: web.Response(status=status), "/t")
    assert isinstance(error, FetchError)
    assert (error.outcome, error.source, error.item) == (Outcome(outcome), "s", "/t")
    assert len(server.times["/t"]) == 1


@pytest.mark.parametrize(
    ("status", "outcome"),
    [(408, "timeout"), (425, "rate_limited"), (429, "rate_limited"), (500, "server_error"), (503, "server_error")],
)
def test_what_may_change_is_asked_again(status, outcome):
    server, [response] = ask(lambda request, attempt: web.Response(status=status if attempt < 4 else 200), "/t")
    assert response.status == 200
    assert len(server.times["/t"]) == 4
    server, [error] = ask(lambda request, attempt: web.Response(status=status), "/t")
    assert error.outcome is Outcome(outcome)
    assert len(server.times["/t"]) == 5
    assert "after 5 tries" in str(error)


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_pauses_the_whole_host(form):
    def answer(request, attempt):
        if request.path == "/busy" and attempt == 1:
            later = "1" if form == "seconds" else formatdate(time.time() + 2, usegmt=True)
            return web.Response(status=429, headers={"Retry-After": later})
        return web.Response()

    async def run():
        async with Server(answer) as server, Http(rate_per_s=0, backoff_s=0.01) as client:
            busy = asyncio.ensure_future(client.get(server.url + "/busy"))
            await asyncio.sleep(0.3)
            await client.get(server.url + "/other")
            await busy
            return server

    server = asyncio.run(run())
    first, again = server.times["/busy"]
    assert 0.95 <= again - first <= 6
    assert server.times["/other"][0] - first >= 0.95


def test_a_host_that_wants_hours_is_left_alone():
    answer = web.Response(status=429, headers={"Retry-After": "86400"})
    server, errors = ask(lambda request, attempt: answer, "/1", "/2", connections=1)
    assert [error.outcome for error in errors] == [Outcome.RATE_LIMITED] * 2
    assert sum(map(len, server.times.values())) == 1
    assert "asks to be left alone" in str(errors[1])


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("3", 3), (" 120 ", 120), ("", 0), ("soon", 0), ("-5", 0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0)],
)
def test_retry_after_forms(value, seconds):
    assert retry_after_s(value) == seconds


def test_truncated_body_is_noticed_and_asked_again():
    async def cut_short(request):
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b"x" * 600)
        request.transport.close()
        return response

    def answer(request, attempt):
        return cut_short(request) if attempt == 1 or request.path == "/never" else web.Response(body=b"x" * 1000)

    _, [response, error] = ask(answer, "/once", "/never", max_tries=2)
    assert len(response.body) == 1000
    assert error.outcome is Outcome.TRUNCATED


def test_silence_is_a_timeout_and_no_server_a_connection_error():
    async def silence(request, attempt):
        await asyncio.sleep(0.5)

    _, [error] = ask(lambda request, attempt: silence(request, attempt), "/t", read_timeout_s=0.1, max_tries=1)
    assert error.outcome is Outcome.TIMEOUT

    async def nobody():
        async with Http(max_tries=2, backoff_s=0.01) as client:
            with pytest.raises(FetchError) as caught:
                await client.get("http://127.0.0.1:9/t?token=SECRET")
            assert client.num_requests == 2
            return caught.value

    error = asyncio.run(nobody())
    assert error.outcome is Outcome.CONNECTION
    assert "SECRET" not in str(error)


def test_a_body_may_be_slow_but_must_go_on_and_end():
    async def answer(request, attempt):
        response = web.StreamResponse(headers={"Content-Length": "8"})
        await response.prepare(request)
        for _ in range(8):
            await response.write(b"x")
            await asyncio.sleep(2.0 if request.path == "/stalls" else 0.1)
        return response

    limits = {"read_timeout_s": 0.4, "total_timeout_s": 30.0, "max_tries": 1}
    _, [response, error] = ask(answer, "/slow", "/stalls", **limits)
    assert response.body == b"x" * 8
    assert error.outcome is Outcome.TIMEOUT
    _, [error] = ask(answer, "/slow", **limits | {"total_timeout_s": 0.3})
    assert error.outcome is Outcome.TIMEOUT


def test_oversized_bodies_are_refused():
    _, [error] = ask(lambda request, attempt: web.Response(body=b"x" * 5000), "/t", max_body_bytes=4999)
    assert error.outcome is Outcome.WRONG_SIZE


def test_connections_are_capped():
    async def slow():
        await asyncio.sleep(0.02)
        return web.Response()

    server, _ = ask(lambda request, attempt: slow(), *(f"/{i}" for i in range(20)), connections=3)
    assert server.most_in_flight == 3


def test_rate_is_kept():
    """40 requests at 50 per second with a bucket of 2 take at least 38 / 50 s."""
    paths = [f"/{i}" for i in range(40)]
    started = time.monotonic()
    server, _ = ask(lambda request, attempt: web.Response(), *paths, rate_per_s=50, connections=2)
    assert max(seen[0] for seen in server.times.values()) - started >= 38 / 50


def test_nothing_is_opened_without_requests():
    async def run():
        async with Http() as client:
            return client._session

    assert asyncio.run(run()) is None


@pytest.mark.parametrize("name", SECRET_PARAMETERS)
def test_secrets_are_blanked(name):
    for text in (
        f"GET https://h/p?a=1&{name}=S3CR3T&b=2 failed",
        f"https://h/p?{name.upper()}=S3CR3T",
        f"'?{name}=S3CR3T'",
    ):
        assert "S3CR3T" not in redact(text)
    assert redact(f"https://h/p?a=1&{name}=S3CR3T&b=2") == f"https://h/p?a=1&{name}=***&b=2"
    assert redact("https://h/p?monkey=1") == "https://h/p?monkey=1"


@pytest.mark.parametrize("value", [b"a\xffb", b"a\x01b"])
def test_headers_that_no_table_can_hold_and_no_request_can_carry(value):
    """aiohttp hands bytes that are not UTF-8 on as lone surrogates, and refuses to send control characters."""
    etag, robots = value.decode("utf-8", "surrogateescape"), value.decode("utf-8", "surrogateescape")
    kept = Response("http://h", 200, {"ETag": etag, "X-Robots-Tag": robots}, b"").validators
    assert kept == {"etag": "", "last_modified": "", "robots": "ab"}
