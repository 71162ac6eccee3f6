"""What comes from the environment and never enters a recipe: keys, and other addresses of the providers' services."""

from __future__ import annotations

import os
import re
import stat
import sys
from pathlib import Path
from typing import NoReturn
from urllib.parse import quote, quote_plus, unquote, urlsplit

from cvgl_data.errors import RecipeError

_known: set[str] = set()

_PASSWORD = re.compile(r"://[^/:]*:([^/]+)@")


class Secret:
    """A key that shows itself only on purpose."""

    __slots__ = ("_value", "name")

    def __init__(self, name: str, value: str) -> None:
        self.name = name
        self._value = value
        _remember(value)

    def reveal(self) -> str:
        """Return the key itself, for a request and nothing else."""
        return self._value

    def __repr__(self) -> str:
        """Return the variable's name with the value masked."""
        return f"Secret({self.name}=***)"

    __str__ = __repr__

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled or copied: it would end in a file or in another process."""
        raise TypeError(f"the key {self.name} is not to be saved or copied; read it from the environment again")


def secret(name: str) -> Secret | None:
    """Return the key in an environment variable, or in the file that ``<name>_FILE`` names; ``None`` without either.

    Raises:
        RecipeError: If the file cannot be read, or others can read it too, or what it holds cannot be a key.
    """
    value = os.environ.get(name, "").strip()
    if not value and (path := os.environ.get(f"{name}_FILE", "")):
        value = _read_private(f"{name}_FILE", Path(path).expanduser())
    if not value.isprintable():  # whoever sent it would fail, and say so together with the key
        raise RecipeError(f"{name} holds a line break or another control character; a key is one line of text")
    return Secret(name, value) if value else None


def needed_secret(name: str, who: str, how: str) -> Secret:
    """Return the key in an environment variable.

    Args:
        name: The variable.
        who: The source that needs it.
        how: Where to get one.

    Raises:
        RecipeError: If it is not set.
    """
    found = secret(name)
    if found is None:
        raise RecipeError(f"source '{who}' needs a key in the environment variable {name} ({how})")
    return found


def mask(text: str) -> str:
    """Return a text with every key that this process has read blanked out."""
    # The longest first: one key may begin like another.
    for value in sorted(_known, key=len, reverse=True):
        if value in text:
            text = text.replace(value, "***")
    return text


def base_url(name: str, default: str) -> str:
    """Return the address of a service without a slash at its end: the variable's, or the provider's own.

    Raises:
        RecipeError: If the variable is no http address.
    """
    url = os.environ.get(name, "").strip() or default
    if password := _PASSWORD.search(url):
        _remember(unquote(password[1]))
        _remember(password[1])
    path, *rest = re.split("[?#]", url, maxsplit=1)
    try:
        parts = urlsplit(path)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and not rest
    except ValueError:  # half an IPv6 address, or no port
        is_address = False
    if not is_address:
        # Without what follows the path, which often is a key.
        shown = mask(path) + "?..." * len(rest)
        raise RecipeError(f"{name} is '{shown}'; it must begin with http:// or https:// and a host, and have no ? or #")
    return url.rstrip("/")


def _remember(value: str) -> None:
    """Let `mask` blank out a text, also as it stands in URLs."""
    _known.update({value, quote(value), quote(value, safe=""), quote_plus(value)})


def _read_private(variable: str, path: Path) -> str:
    try:
        mode = path.stat().st_mode
        if sys.platform != "win32" and mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise RecipeError(f"the key file '{path}' ({variable}) can be read by others; run: chmod 600 '{path}'")
        return path.read_text(encoding="utf-8-sig").strip()
    except OSError as error:
        raise RecipeError(f"the key file '{path}' ({variable}) cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError:  # whose message would show a part of it
        raise RecipeError(f"the key file '{path}' ({variable}) is not text") from None
