"""Ask an Esri service for JSON, a second time where a busy server answered with something else inside HTTP 200."""

from __future__ import annotations

import asyncio
from collections.abc import Container, Mapping
from typing import Any

from cvgl_data.errors import FetchError
from cvgl_data.http import Http
from cvgl_data.http.answers import load
from cvgl_data.sources.esri.refusals import json_refusal

RECHECK_WAIT_S = 2.0
"""After this time whatever may have been a slip of the server is asked for once more."""


async def ask_json(
    http: Http,
    url: str,
    params: Mapping[str, str],
    *,
    source: str,
    item: str,
    accept: Container[int] = (),
    wait_s: float = RECHECK_WAIT_S,
) -> Any:
    """Return the JSON of an answer, which may still be an error (see `json_refusal`), or ``None`` for nothing.

    Args:
        http: Shared client.
        url: Address.
        params: Query parameters.
        source: Name of the source, for errors.
        item: What is asked for, for errors.
        accept: Statuses of 400 and more that mean "nothing".
        wait_s: Before the second time.

    Raises:
        FetchError: If there is no answer, or it is not JSON.
    """
    for is_last in (False, True):
        response = await http.base.get(url, params=params, accept=accept, source=source, item=item)
        if response.status >= 400:
            return None
        try:
            value = load(response, source=source, item=item)
        except FetchError:
            if is_last:
                raise
        else:
            refusal = json_refusal(value, where=response.url, source=source, item=item)
            if is_last or refusal is None or not refusal.outcome.is_transient:
                return value
        await asyncio.sleep(wait_s)
    raise AssertionError("unreachable")
