"""The options that say how to fetch, shared by every command that does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

import typer

from ._options import Overwrite, Workers, graft

Rate = Annotated[float, typer.Option(min=0, metavar="N", help="Requests per second and host; 0 means no limit.")]
Settings = dict[str, Any]


def fetch_settings(
    overwrite: Overwrite = False,
    workers: Workers = 0,
    rate: Rate = 10.0,
    connections: Annotated[int, typer.Option(min=1, metavar="N", help="Requests in flight per host.")] = 8,
    verify: Annotated[
        Literal["header", "decode"],
        typer.Option(help="How closely to look at received images: outside and a sample, or decode each."),
    ] = "header",
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Ask again for what failed for good.")] = False,
    refresh: Annotated[
        bool, typer.Option("--refresh", help="Ask whether what is there has changed, by conditional requests.")
    ] = False,
    accept_terms: Annotated[
        list[str] | None,
        typer.Option(
            "--accept-terms",
            metavar="NAME",
            help="Accept a source's terms of use, which `plan` names; once per dataset; repeatable.",
            show_default=False,
        ),
    ] = None,
) -> Settings:
    """Return the settings of `cvgl_data.pipeline.start`."""
    return {
        "overwrite": overwrite,
        "workers": workers,
        "rate_per_s": rate,
        "connections": connections,
        "verify": verify,
        "retry_failed": retry_failed,
        "refresh": refresh,
        "accept_terms": tuple(accept_terms or ()),
    }


def takes_fetch_settings(command: Callable[..., Any]) -> Callable[..., Any]:
    """Replace a command's ``settings`` parameter by the options of `fetch_settings`."""
    return graft(command, "settings", fetch_settings)
