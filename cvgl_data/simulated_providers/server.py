"""The server: all providers below one address, for a block of code or until it is interrupted."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import signal
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from cvgl_data.errors import RecipeError
from cvgl_data.simulated_providers import settings as keys
from cvgl_data.simulated_providers.dispatcher import Dispatcher, Request
from cvgl_data.simulated_providers.pictures import Pictures
from cvgl_data.simulated_providers.settings import Settings

_SHUTDOWN_S = 1.0


@dataclass(frozen=True, slots=True)
class Served:
    """A server that runs."""

    url: str
    environment: dict[str, str]
    """Variables that point the sources here, with keys that work."""
    log: list[Request]
    """In the order in which requests were done with."""
    stats: Callable[[], dict[str, Any]]
    """Returns requests by provider and status, faults by name, and connections; also at ``/stats``."""


@dataclass(frozen=True, kw_only=True)
class SimulatedProviders(Settings):
    """The simulated world behind the interfaces of Esri, Panoramax, Mapillary and Google; arguments as for `Settings`.

    ```python
    async with SimulatedProviders(seed=1, faults=Faults(rate_limited=0.05)).serve() as served:
        os.environ.update(served.environment)
    ```
    """

    @contextlib.asynccontextmanager
    async def serve(self, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[Served]:
        """Answer requests on the running loop until the block ends.

        Args:
            host: Address to listen on.
            port: 0 means any free one.

        Raises:
            RecipeError: If the address cannot be listened on.
        """
        pictures = Pictures(self)
        dispatcher = Dispatcher(self, pictures)
        runner = web.ServerRunner(_Server(dispatcher), shutdown_timeout=_SHUTDOWN_S)
        await runner.setup()
        try:
            site = web.TCPSite(runner, host, port)
            try:
                await site.start()
            except OSError as error:
                reason = error.strerror or error
                raise RecipeError(
                    f"cannot listen on {host}, port {port} ({reason}); choose another port or address"
                ) from None
            name = f"[{host}]" if ":" in host else host
            url = f"http://{name}:{runner.addresses[0][1]}"
            yield Served(url, _environment(url), dispatcher.log, dispatcher.stats)
        finally:
            dispatcher.closing.set()
            await runner.cleanup()
            await pictures.close()


def serve(providers: SimulatedProviders, host: str, port: int, announce: Callable[[str], None]) -> None:
    """Answer requests until SIGINT or SIGTERM.

    Args:
        providers: What to serve.
        host: Address to listen on.
        port: 0 means any free one.
        announce: Told the address first, then each line that a shell needs to point the sources here.

    Raises:
        RecipeError: If the address cannot be listened on.
    """

    async def run() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            # Not the main thread, or Windows, where Ctrl-C raises KeyboardInterrupt instead.
            with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
                loop.add_signal_handler(number, stop.set)
        async with providers.serve(host, port) as served:
            announce(served.url)
            for name, value in served.environment.items():
                announce(f"export {name}={shlex.quote(value)}")
            await stop.wait()

    with contextlib.suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(run())


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    if sys.platform == "win32":
        return None
    import uvloop

    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def _environment(url: str) -> dict[str, str]:
    return {
        "CVGL_ESRI_URL": f"{url}/esri/arcgis/rest/services/World_Imagery/MapServer",
        "CVGL_WAYBACK_URL": f"{url}/wayback/arcgis/rest/services/World_Imagery",
        "CVGL_WAYBACK_CONFIG_URL": f"{url}/wayback-config.json",
        "CVGL_PANORAMAX_URL": f"{url}/panoramax/api",
        "CVGL_MAPILLARY_GRAPH_URL": f"{url}/mapillary-graph",
        "CVGL_MAPILLARY_TILES_URL": f"{url}/mapillary-tiles",
        "CVGL_GOOGLE_STATIC_URL": f"{url}/google-static",
        "CVGL_GOOGLE_TILES_URL": f"{url}/google-tiles",
        "CVGL_ESRI_TOKEN": keys.ESRI_TOKEN,
        "CVGL_MAPILLARY_TOKEN": keys.MAPILLARY_TOKEN,
        "CVGL_GOOGLE_KEY": keys.GOOGLE_KEY,
        "CVGL_GOOGLE_SIGNING_SECRET": keys.GOOGLE_SIGNING_SECRET,
    }


class _Server(web.Server):
    """Counts connections."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        # A client that goes away ends the work on its request; stalls would else outlive it.
        super().__init__(dispatcher.handle, handler_cancellation=True, access_log=None)
        self._counts = dispatcher.connections

    def connection_made(self, handler: Any, transport: asyncio.Transport) -> None:
        self._counts.update(total=1, open=1)
        super().connection_made(handler, transport)

    def connection_lost(self, handler: Any, exc: BaseException | None = None) -> None:
        self._counts["open"] -= 1
        super().connection_lost(handler, exc)
