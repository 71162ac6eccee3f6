"""Shared fixtures: no network but loopback, private caches, fixed seeds."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop
from hypothesis import settings

# Set before anything imports datasets or huggingface_hub, which read them once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ.pop("HF_TOKEN", None)

# Deterministic, and free of time limits that only measure how busy the machine is.
settings.register_profile("cvgl", deadline=None, derandomize=True)
settings.load_profile("cvgl")

# Started in the background by a shell, Ctrl-C is ignored, and what tests start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_connect = socket.socket.connect


def _connect_loopback(self: socket.socket, address):
    """Let Unix sockets and loopback pass; everything else is a mistake in a test."""
    if self.family != socket.AF_UNIX and not ipaddress.ip_address(_resolved(address[0])).is_loopback:
        raise RuntimeError(f"a test tried to connect to {address[0]!r}; only loopback is allowed")
    return _connect(self, address)


def _resolved(host: str) -> str:
    return "127.0.0.1" if host == "localhost" else host


def _getaddrinfo_loopback(host, *args, _original=socket.getaddrinfo, **kwargs):
    """Refuse name look-ups, which would be the first network access of a stray request."""
    name = host.decode() if isinstance(host, bytes) else host
    try:
        is_local = name in (None, "localhost") or ipaddress.ip_address(name).is_loopback
    except ValueError:
        is_local = False
    if not is_local and name not in ("0.0.0.0", "::"):
        raise RuntimeError(f"a test tried to look up {name!r}; only loopback is allowed")
    return _original(host, *args, **kwargs)


@pytest.fixture(autouse=True)
def _only_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket.socket, "connect", _connect_loopback)
    monkeypatch.setattr(socket.socket, "connect_ex", _connect_loopback)
    # uvloop opens its connections in C, where nothing can be checked.
    monkeypatch.setattr(uvloop, "new_event_loop", asyncio.new_event_loop)
    monkeypatch.setattr(socket, "getaddrinfo", _getaddrinfo_loopback)


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """A command that runs inside a test configures logging for good; the next test begins as the first one did."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    yield
    root.setLevel(level)
    root.handlers[:] = handlers


@pytest.fixture(autouse=True)
def _private_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every test in its own folder with its own caches."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HF_HOME", str(home / "hf"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    monkeypatch.setenv("CVGL_STATE_DIR", str(home / "state"))
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")


@pytest.fixture(scope="session")
def golden() -> Path:
    """Return the folder of recorded and copied test data."""
    return Path(__file__).parent / "golden"
