"""The Hub's own client, with what it leaves to its callers: commits sent again, and errors that say what to do.

`huggingface_hub` is imported where it is used: it reads its settings (``HF_ENDPOINT``, ``HF_HOME``) once, and takes a
while.
"""

from __future__ import annotations

import logging
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from cvgl_data.errors import CvglError, HubError
from cvgl_data.redaction import redact

T = TypeVar("T")

logger = logging.getLogger(__name__)

ATTEMPTS = 6
FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 30.0

_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_CONFLICTS = frozenset({408, 409, 412, 425, 429})
"""Somebody else committed, a lock was held, or we are too fast: the same request may succeed later."""

_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


def is_repo_id(text: str) -> bool:
    """Whether a text can name a dataset on the Hub: ``user/name``."""
    return bool(_REPO_ID.fullmatch(text)) and ".." not in text and "--" not in text


def check_repo_id(repo_id: str) -> None:
    """Raise `HubError` unless it is ``user/name``."""
    if not is_repo_id(repo_id):
        raise HubError(f"'{repo_id}' is no repository id; write it like user/name (letters, digits, '-', '_', '.')")


def again(work: Callable[[], T], what: str) -> T:
    """Do something until it succeeds or fails for good: conflicts, full servers and lost connections pass.

    Each attempt begins anew, with the repository's head of that moment; what has been stored is not sent again.

    Args:
        work: Raises what `huggingface_hub` raises.
        what: For the log.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return work()
        except Exception as error:
            if attempt == ATTEMPTS or not is_transient(error):
                raise
            wait_s = _wait_s(error, attempt)
            logger.warning(
                "%s failed (%s); attempt %d of %d in %.1f s", what, _brief(error), attempt + 1, ATTEMPTS, wait_s
            )
            time.sleep(wait_s)
    raise AssertionError


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        return False
    if isinstance(error, HfHubHTTPError):
        status = _status(error)
        return status in _CONFLICTS or status >= 500
    return isinstance(error, (*_transport_errors(), ConnectionError, TimeoutError))


@contextmanager
def explained(repo_id: str, *, writing: bool = False) -> Iterator[None]:
    """Say what to do instead of raising what `huggingface_hub` raises.

    Args:
        repo_id: What it is about.
        writing: Whether something is pushed.

    Raises:
        HubError: For whatever the Hub or the way to it is the reason of.
    """
    from huggingface_hub import errors

    try:
        yield
    except CvglError:
        raise
    except errors.OfflineModeIsEnabled:
        raise HubError("HF_HUB_OFFLINE is set, so the Hub is not asked; unset it") from None
    except errors.LocalTokenNotFoundError:
        raise HubError(f"there is no Hugging Face token; {_LOG_IN}") from None
    except errors.GatedRepoError:
        raise HubError(f"'{repo_id}' is gated: ask for access on its page, and {_LOG_IN}") from None
    except errors.RevisionNotFoundError:
        raise HubError(f"'{repo_id}' has no such branch, tag or commit") from None
    except errors.RepositoryNotFoundError as error:
        if _status(error) == 401:
            raise HubError(f"the Hub does not know who you are, or your token is no longer valid; {_LOG_IN}") from None
        raise HubError(f"there is no dataset '{repo_id}' that you may see; if it is private, {_LOG_IN}") from None
    except errors.LocalEntryNotFoundError as error:  # neither at the Hub, which did not answer, nor in the cache
        raise HubError(f"the Hub cannot be reached, and '{repo_id}' is not in its cache: {_brief(error)}") from None
    except errors.EntryNotFoundError as error:
        raise HubError(f"'{repo_id}' lacks a file: {_brief(error)}") from None
    except errors.HFValidationError as error:
        raise HubError(f"'{repo_id}' is no repository id: {_brief(error)}") from None
    except errors.HfHubHTTPError as error:
        raise HubError(_explain(error, repo_id, writing)) from None
    except Exception as error:
        if not isinstance(error, (*_transport_errors(), ConnectionError, TimeoutError)):
            raise
        raise HubError(f"the Hub cannot be reached ({_brief(error)}); run the same again to go on") from None


@contextmanager
def quiet(is_quiet: bool) -> Iterator[None]:
    """Hide the client's progress bars, if nobody asked for any."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if not is_quiet or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _explain(error: Any, repo_id: str, writing: bool) -> str:
    status = _status(error)
    if status == 401:
        return f"the Hub does not know who you are, or your token is no longer valid; {_LOG_IN}"
    if status == 403:
        needed = "a token that may write there" if writing else "a token that may read it"
        return f"you may not {'write to' if writing else 'read'} '{repo_id}': it takes {needed} ({_brief(error)})"
    return f"the Hub answered {status} ({_brief(error)}); run the same again to go on"


def _status(error: Any) -> int:
    response = getattr(error, "response", None)
    return int(response.status_code) if response is not None else 0


def _brief(error: BaseException) -> str:
    message = getattr(error, "server_message", None) or str(error) or type(error).__name__
    return redact(str(message).strip().split("\n", 1)[0][:200])


def _wait_s(error: BaseException, attempt: int) -> float:
    """Return full jitter under a growing bound, or what the server asks for."""
    bound = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** (attempt - 1))
    response = getattr(error, "response", None)
    asked = response.headers.get("Retry-After", "") if response is not None else ""
    return min(float(asked), 10 * LONGEST_WAIT_S) if asked.isdigit() else random.uniform(bound / 4, bound)


def _transport_errors() -> tuple[type[Exception], ...]:
    """Return what the HTTP library under `huggingface_hub` raises when there is no answer; it differs by version."""
    from huggingface_hub import utils

    library: Any = getattr(utils, "httpx", None)
    return (library.TransportError,) if library is not None else ()
