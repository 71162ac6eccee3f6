"""What a server was sent, and a server whose every answer repeats the key that it was asked with."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, urlsplit


class Wire:
    """What a server was sent, and the sessions that it opened."""

    def __init__(self):
        self.requests = []

    def add(self, raw_path, authorization):
        self.requests.append((raw_path, authorization))

    def since(self, number):
        """Return what came after so many requests."""
        rest = Wire()
        rest.requests = self.requests[number:]
        return rest

    def values(self, name):
        """Return what was sent as a query parameter."""
        found = (parse_qs(urlsplit(path).query).get(name, []) for path, _ in self.requests)
        return {value for values in found for value in values}

    @property
    def keys(self):
        headers = {header.removeprefix("OAuth ") for _, header in self.requests if header}
        return headers.union(*(self.values(name) for name in ("key", "token", "access_token")))

    def passing(self):
        """Return sessions and signatures."""
        return {f"{name} {n}": v for name in ("session", "signature") for n, v in enumerate(sorted(self.values(name)))}


@contextmanager
def telltale(mode):
    """Serve answers that repeat the key that they were asked with; yields address and `Wire`."""
    wire = Wire()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            wire.add(self.path, self.headers.get("Authorization"))
            last = wire.since(-1)
            status, body, headers = MODES[mode](
                self.path, [*last.keys, *last.values("session")], f"{self.path} {self.headers}"
            )
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", wire
    finally:
        server.shutdown()
        server.server_close()


def _refused(path, sent, heard):
    said = f"may not do this: {' '.join(sent)} {heard}"
    error = {"code": 403, "message": said, "status": said, "type": said}
    return 403, json.dumps({"error": error, "error_message": said, "status": said}).encode(), {}


def _refused_in_200(path, sent, heard):
    _, body, headers = _refused(path, sent, heard)
    return 200, body, headers


def _garbage(path, sent, heard):
    """Keys from the very first byte on, in the body and in its type."""
    return 200, f"{' '.join(sent)} {heard}".encode(), {"Content-Type": f"text/{quote(' '.join(sent))}"}


def _wrong_types(path, sent, heard):
    """Keys so deep in a value that a message which is cut to some length would end within them."""
    if "createSession" in path:
        return 200, json.dumps({"session": "5e55" * 10, "expiry": "9999999999"}).encode(), {}
    names = ("data", "status", "panoIds", "panoId", "id", "features", "location", "captured_at", "imageWidth")
    cut = {name: "." * 44 + "".join(sent) for name in names}
    return 200, json.dumps(cut | {f"{number}": cut for number in range(3)}).encode(), {}


def _broken(path, sent, heard):
    return 500, f"{' '.join(sent)} {heard}".encode(), {}


def _moved(path, sent, heard):
    return 302, b"", {"Location": path, "X-Heard": " ".join(map(quote, sent))}


MODES = {
    "refused": _refused,
    "refused-in-200": _refused_in_200,
    "garbage": _garbage,
    "wrong-types": _wrong_types,
    "broken": _broken,
    "moved": _moved,
}
