# SPDX-License-Identifier: Apache-2.0
"""What the client's calls check of their arguments, since an engine answers bad ones late, badly or never."""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from typing import Final

from ._exceptions import InvalidRequest

DEFAULT_IDENTITY: Final = "default/pie-anyio"


def check_text(call: str, **texts: object) -> None:
    """Refuse what is no text: engines do not answer a message that has something else in its place."""
    for name, value in texts.items():
        if not isinstance(value, str):
            # Only the type is named: the value may be a secret.
            msg = f"{call}: {name} must be a string, not {type(value).__name__}"
            raise InvalidRequest(msg)


def check_tool_server(
    name: str, transport: str, command: str | None, args: Sequence[str] | None, url: str | None
) -> list[str]:
    """Check what describes a tool server; give its command with the arguments."""
    check_text("register_mcp_server", name=name, transport=transport)
    if transport != "stdio":
        msg = f"register_mcp_server: the transport must be 'stdio', not {transport!r}"
        raise InvalidRequest(msg)
    if url is not None:
        msg = "register_mcp_server: a 'stdio' server has a command=, not a url="
        raise InvalidRequest(msg)
    if not command:
        msg = "register_mcp_server: a 'stdio' server needs a command="
        raise InvalidRequest(msg)
    if args is not None and not isinstance(args, (list, tuple)):
        msg = f"register_mcp_server: args must be a list of strings, not {type(args).__name__}"
        raise InvalidRequest(msg)
    words = [command, *(args or [])]
    for word in words:
        check_text("register_mcp_server", **{"command and args": word})
        if "\0" in word:  # some loops would start what stands before it
            msg = f"register_mcp_server: no command or argument has a null character in it: {word!r}"
            raise InvalidRequest(msg)
    return words


def check_number(what: str, value: object, low: int, high: int) -> None:
    """Refuse what is no integer in range, for the same reason."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        msg = f"{what} must be an integer between {low} and {high}, not {value!r}"
        raise InvalidRequest(msg)


def canonical_id(process_id: str) -> str:
    """Spell an id as engines do, so that it can be compared; leave alone what is no UUID."""
    if not isinstance(process_id, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        msg = f"a process id is a string, not {type(process_id).__name__}"  # type: ignore[unreachable]
        raise InvalidRequest(msg)
    try:
        return str(uuid.UUID(process_id))
    except ValueError:
        return process_id


def check_credentials(username: str | None, key: object, token: str | None) -> None:
    """Refuse two ways to log in at once, and half of one."""
    if token is not None and (username is not None or key is not None):
        msg = "give either token=, or username= with key=, not both"
        raise InvalidRequest(msg)
    if key is not None and username is None:
        msg = "key= needs username= beside it"
        raise InvalidRequest(msg)


def check_identity(identity: str | None, username: str | None) -> str:
    """Check what goes into the ``x-pie-identity`` header (0.5): ``tenant/user`` or ``user``."""
    text = (
        identity
        if identity is not None
        else username
        if username and username.isascii()
        else DEFAULT_IDENTITY
    )
    if (
        not text.strip()
        or not text.isascii()
        or not text.isprintable()
        or not text.rpartition("/")[2].strip()
    ):
        msg = f"identity must be 'tenant/user' or 'user' in printable ASCII, not {text!r}"
        raise InvalidRequest(msg)
    return text


def check_user_agent(text: str | None) -> str | None:
    """Check what goes into a header, where a line break would begin another one."""
    if text is not None and not (text.isascii() and text.isprintable()):
        msg = f"user_agent must be printable ASCII, not {text!r}"
        raise InvalidRequest(msg)
    return text


def read_text(path: str | os.PathLike[str]) -> str:
    """Read a manifest from a file."""
    try:
        with open(os.path.expanduser(path), encoding="utf-8") as file:
            return file.read()
    except OSError as exc:
        msg = f"cannot read the manifest {os.fspath(path)}: {exc.strerror or exc}"
        raise InvalidRequest(msg) from exc
    except UnicodeDecodeError as exc:
        msg = f"the manifest {os.fspath(path)} is not UTF-8 text"
        raise InvalidRequest(msg) from exc
