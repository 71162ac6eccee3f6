"""``cvgl-data simulate``: the simulated world as if it were the real providers."""

from __future__ import annotations

from typing import Annotated

import typer

from ._options import Workers, new_app, note, takes_verbosity

simulate_app = new_app("The simulated world behind the real providers' interfaces, on this machine.")


@simulate_app.callback()
def _group() -> None:
    """The simulated world behind the real providers' interfaces, on this machine."""


@simulate_app.command()
@takes_verbosity
def serve(
    host: Annotated[str, typer.Option(metavar="HOST", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, metavar="N", help="Port; 0 means any free one.")] = 8808,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of the world and of every fault.")] = 0,
    date: Annotated[str, typer.Option(metavar="DATE", help="Day that imagery and panoramas show.")] = "2023-06-15",
    panorama_width: Annotated[
        int, typer.Option(min=32, metavar="PX", help="Width of the panoramas, in pixels.")
    ] = 2048,
    tilt_deg: Annotated[
        float, typer.Option(min=0, metavar="DEG", help="Largest pitch and roll of the camera car.")
    ] = 0.0,
    faults: Annotated[
        str,
        typer.Option(
            metavar="NAME=SHARE,...",
            help="What goes wrong on purpose, as in rate_limited=0.05,truncated=0.02,latency_ms=20,only=wayback.",
            show_default=False,
        ),
    ] = "",
    workers: Workers = 0,
    quiet: bool = False,
) -> None:
    """Answer like Esri, Panoramax, Mapillary and Google until Ctrl-C; prints the variables that point cvgl here.

    In one shell: cvgl-data simulate serve > variables. In another: . ./variables, and `cvgl-data build` works offline.
    """
    from cvgl_data.simulated_providers import Faults, SimulatedProviders
    from cvgl_data.simulated_providers import serve as serve_forever

    providers = SimulatedProviders(
        seed=seed,
        date=date,
        panorama_width=panorama_width,
        tilt_deg=tilt_deg,
        faults=Faults.parse(faults),
        workers=workers,
    )

    def announce(line: str) -> None:
        if line.startswith("export "):
            typer.echo(line)
        else:
            note(f"serving at {line}; Ctrl-C ends it")

    serve_forever(providers, host, port, announce)
