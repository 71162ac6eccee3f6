"""Keep keys out of messages, logs and files."""

from __future__ import annotations

import re

from cvgl_data.environment import mask

SECRET_PARAMETERS = ("key", "token", "access_token", "signature", "session")
"""Query parameters that must never be seen in a message, a log or a file."""

_LOOKED_AT = 4096

_SECRET = re.compile(rf"(?i)([?&;](?:{'|'.join(SECRET_PARAMETERS)})=)[^&;#\s'\"<>)]*")


def redact(text: str) -> str:
    """Return a text with the values of secret query parameters, and every key this process has read, blanked out."""
    return mask(_SECRET.sub(r"\1***", text))


def beginning(text: str | bytes, length: int) -> str:
    """Return the first characters of what a server sent, quoted, for a message.

    Masked before it is cut, since half a key is recognized no more.
    """
    some = text[:_LOOKED_AT]
    return repr(redact(some if isinstance(some, str) else some.decode("latin-1"))[:length])
