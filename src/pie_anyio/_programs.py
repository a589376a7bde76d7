# SPDX-License-Identifier: Apache-2.0
"""What a user may write for a program and its input, and what goes on the wire for it."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any, Final
from urllib.parse import quote, urlsplit

from anyio import to_thread

from ._exceptions import EngineError, InvalidRequest
from ._inferlet import Inferlet
from ._manifest import check_program_name

__all__ = ["encode_input", "look_up_version", "program_name"]

_REGISTRY_TIMEOUT: Final = 30.0
_REGISTRY_BYTES: Final = 4 * 1024 * 1024
_encode: Final = json.JSONEncoder(
    check_circular=False
).encode  # a circle is too deep as well, and found by that
_check_name: Final = lru_cache(maxsize=64)(check_program_name)


def program_name(program: str | Inferlet[..., Any], *, bare: bool) -> str:
    """Give the wire's name of a program; ``bare`` allows a name without a version (0.5).

    Raises:
        InvalidRequest: it is not a program name.
    """
    if isinstance(program, Inferlet):
        return program.program
    if type(program) is str:
        _check_name(program, bare=bare)
    else:
        check_program_name(program, bare=bare)
    return program


def encode_input(value: Any) -> str:
    """Encode a program's input as JSON text; None becomes an empty object, as in the official client.

    Raises:
        InvalidRequest: the value has no JSON form; the message says why.
    """
    try:
        return _encode({} if value is None else value)
    except (TypeError, ValueError, RecursionError) as exc:
        msg = f"the input cannot be sent as JSON: {exc}"
        raise InvalidRequest(msg) from exc


async def look_up_version(name: str, registry_url: str) -> str:
    """Give ``name@version`` with the newest version that a registry knows (0.4 section 6.3).

    Raises:
        InvalidRequest: the URL is not http or https.
        EngineError: the registry does not know the program or cannot be reached.

    Cancellation: the look-up is left to itself, in a thread, for at most 30 s.
    """
    if "@" in name:
        return name
    if not _is_http(registry_url):
        msg = f"a registry URL begins with http:// or https://, not {registry_url!r}"
        raise InvalidRequest(msg)
    url = f"{registry_url.rstrip('/')}/api/v1/inferlets/{quote(name, safe='')}"
    try:
        document = json.loads(await to_thread.run_sync(_fetch, url, abandon_on_cancel=True))
        number = document["versions"][0]["num"]
        if not isinstance(number, str):
            raise TypeError(f"the version is {number!r}")
    except (OSError, ValueError, KeyError, IndexError, TypeError) as exc:
        msg = f"resolve_version: {url} did not name a version of {name!r}: {exc}"
        raise EngineError(msg, request="resolve_version", detail=str(exc)) from exc
    return f"{name}@{number}"


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.netloc)


def _fetch(url: str) -> bytes:
    # Imported here: it costs a tenth of what importing the whole package does, and few programs use it.
    from http.client import HTTPException  # noqa: PLC0415
    from urllib.error import HTTPError  # noqa: PLC0415
    from urllib.request import urlopen  # noqa: PLC0415

    try:
        with urlopen(url, timeout=_REGISTRY_TIMEOUT) as answer:  # noqa: S310 - the scheme was checked
            data: bytes = answer.read(_REGISTRY_BYTES)
    except HTTPError as exc:
        exc.close()  # it holds the connection
        raise
    except HTTPException as exc:
        raise OSError(f"the answer is not HTTP: {exc!r}") from exc
    return data
