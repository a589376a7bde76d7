# SPDX-License-Identifier: Apache-2.0
"""Tokens, keys and passphrases are nowhere to be seen: after logins of every kind, everything is searched for them."""

from __future__ import annotations

import gc
import logging
import os
import pickle
import re
import secrets
import sys
import traceback
import warnings
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import PIPE
from typing import Any

import anyio
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

import pie_anyio
from pie_anyio import AuthenticationError, KeyFileError, ParsedPrivateKey, PieClient, UnsupportedByEngine
from pie_anyio.testing import SimulatedEngine


class Case:
    """Secrets that nobody else has, and where they were seen."""

    def __init__(self, folder: Path) -> None:
        self.key = Ed25519PrivateKey.generate()
        self.token = f"token-{secrets.token_hex(16)}"
        self.passphrase = f"phrase-{secrets.token_hex(16)}"
        self.path = folder / "id_locked"
        self.path.write_bytes(
            self.key.private_bytes(
                Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(self.passphrase.encode())
            )
        )
        self.path.chmod(0o600)
        raw = self.key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
        body = self.path.read_bytes().splitlines()[1].decode()
        self.secrets = [self.token, self.passphrase, raw.hex(), repr(raw)[2:-1], body]

    @property
    def public_line(self) -> str:
        return self.key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()

    def check(self, *texts: object) -> None:
        for text in texts:
            for number, secret in enumerate(self.secrets):
                assert secret not in str(text), f"secret {number} is shown"


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


@asynccontextmanager
async def at_the_door(case: Case, profile: Any = "v04") -> AsyncGenerator[SimulatedEngine]:
    users = {"alice": [case.public_line]}
    async with SimulatedEngine(profile, port=None, users=users, token=case.token) as engine:
        yield engine


def chain(exc: BaseException) -> Iterator[BaseException]:
    """Give an exception and all that hangs on it."""
    todo, seen = [exc], set[int]()
    while todo:
        one = todo.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        todo += [other for other in (one.__cause__, one.__context__) if other is not None]
        if isinstance(one, BaseExceptionGroup):
            todo += one.exceptions


def look_at(case: Case, exc: BaseException) -> None:
    """Search an exception, whatever way it is shown or kept."""
    for one in chain(exc):
        case.check(str(one), repr(one), one.args, vars(one), getattr(one, "__notes__", ""))
        if isinstance(one, pie_anyio.PieError):
            case.check(pickle.dumps(one), pickle.dumps(one, 0))
    case.check("".join(traceback.format_exception(exc)))


def look_at_everything(case: Case) -> int:
    """Search what the library's objects show of themselves; give how many there were."""
    count = 0
    for thing in gc.get_objects():
        module = getattr(type(thing), "__module__", "")
        if isinstance(module, str) and module.startswith("pie_anyio") and ".testing" not in module:
            case.check(repr(thing), str(thing))
            count += 1
    return count


LOGINS: dict[str, Callable[[Case], dict[str, Any]]] = {
    "token": lambda case: {"token": case.token},
    "key": lambda case: {"username": "alice", "key": case.path, "passphrase": case.passphrase},
    "asked": lambda case: {"username": "alice", "key": case.path, "passphrase": lambda: case.passphrase},
    "parsed": lambda case: {
        "username": "alice",
        "key": ParsedPrivateKey.from_file(case.path, case.passphrase),
    },
}


@pytest.mark.parametrize("login", LOGINS.values(), ids=LOGINS)
async def test_nothing_of_the_library_shows_a_secret(
    case: Case, login: Callable[[Case], dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    """Not one object that there is while a client is logged in, and no log record or warning of it all."""
    caplog.set_level(logging.DEBUG)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        async with at_the_door(case) as engine:
            async with PieClient(engine.connectable, **login(case)) as client:
                await client.ping()
                assert look_at_everything(case) > 20
                case.check(client, client._options, client.session)
    case.check(caplog.text, *(record.__dict__ for record in caplog.records))
    case.check(*(f"{warning.message} {warning.category}" for warning in caught))


async def test_errors_of_logins(case: Case, caplog: pytest.LogCaptureFixture) -> None:
    """Refused, unsupported, given up, lost, unreadable: each in every way that it can be looked at."""
    caplog.set_level(logging.DEBUG)
    folder = case.path.parent / "other"
    folder.mkdir()
    wrong = Case(folder)
    failures: list[BaseException] = []

    async def attempt(
        kind: type[BaseException], prepare: Any = None, profile: Any = "v04", **options: Any
    ) -> None:
        async with at_the_door(case, profile) as engine:
            if prepare is not None:
                prepare(engine.faults)
            with anyio.fail_after(5), pytest.raises(kind) as caught:
                async with PieClient(engine.connectable, connect_timeout=0.5, **options):
                    pytest.fail("it logged in")
            failures.append(caught.value)

    key = {"username": "alice", "key": case.path, "passphrase": case.passphrase}
    await attempt(AuthenticationError, token=case.token + "x")
    await attempt(UnsupportedByEngine, profile="v05", token=case.token)
    for request in ("auth_prove", "auth_by_token"):
        login = key if request == "auth_prove" else {"token": case.token}
        refused = (False, f"no: {request}")
        await attempt(
            AuthenticationError, lambda f, r=request, a=refused: f.answers.__setitem__(r, a), **login
        )
        await attempt(pie_anyio.PieError, lambda f, r=request: f.drop_on.add(r), **login)
        await attempt(pie_anyio.ConnectError, lambda f, r=request: f.ignored.add(r), **login)
    await attempt(
        AuthenticationError, lambda f: f.answers.__setitem__("auth_identify", (True, "AAAA")), **key
    )
    await attempt(KeyFileError, username="alice", key=case.path)
    await attempt(KeyFileError, username="alice", key=case.path, passphrase=wrong.passphrase)
    await attempt(pie_anyio.InvalidRequest, token=case.token.encode())
    assert len(failures) == 12
    for failure in failures:
        look_at(case, failure)
        wrong.check("".join(traceback.format_exception(failure)))
    case.check(caplog.text)


def test_errors_of_arguments(case: Case) -> None:
    """Also where a secret is in the wrong place."""
    for arguments in (
        {"token": case.token, "username": "alice"},
        {"username": None, "key": case.path, "passphrase": case.passphrase},
    ):
        with pytest.raises(pie_anyio.InvalidRequest) as caught:
            PieClient("ws://127.0.0.1:1", **arguments)
        look_at(case, caught.value)
    for url in (f"ws://alice:{case.token}@127.0.0.1:1", f"http://alice:{case.token}@127.0.0.1:1"):
        with pytest.raises(pie_anyio.InvalidRequest) as caught:
            PieClient(url)
        look_at(case, caught.value)


def test_parsed_keys_show_nothing(case: Case) -> None:
    """Neither do they let themselves be pickled."""
    key = ParsedPrivateKey.from_file(case.path, case.passphrase)
    case.check(repr(key), str(key))
    with pytest.raises(TypeError):
        pickle.dumps(key)


def arguments(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


@pytest.mark.both_loops
@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="arguments are looked at in /proc")
async def test_arguments_of_the_command_line(case: Case, tmp_path: Path) -> None:
    """A login with a token, from a file or the environment, leaves no trace in arguments and output."""
    pytest.importorskip("click")
    token_file = tmp_path / "token"
    token_file.write_text(case.token)
    token_file.chmod(0o600)
    async with SimulatedEngine("v04", users={}, token=case.token) as engine:
        for source in ("file", "environment", "wrong"):
            words = [sys.executable, "-m", "pie_anyio.cli", "--url", engine.url, "ping", "--count", "1"]
            environment = dict(os.environ)
            if source == "file":
                words += ["--token-file", str(token_file)]
            else:
                environment["PIE_TOKEN"] = case.token + ("x" if source == "wrong" else "")
            seen = engine.received_counts["auth_by_token"]
            with engine.faults.hold("auth_by_token") as hold, anyio.fail_after(60):
                async with await anyio.open_process(
                    words, stdout=PIPE, stderr=PIPE, env=environment
                ) as process:
                    await hold.wait_for(1)
                    case.check(arguments(process.pid))
                    hold.release()
                    assert process.stdout is not None
                    assert process.stderr is not None
                    for stream in (process.stdout, process.stderr):
                        async for piece in stream:
                            case.check(piece)
                    assert await process.wait() == (3 if source == "wrong" else 0)
            assert engine.received_counts["auth_by_token"] > seen


def test_there_is_no_option_for_secrets() -> None:
    """What is an argument can be read by every user of the machine."""
    pytest.importorskip("click")
    from pie_anyio.cli._app import app

    words = {word for parameter in app.params for word in parameter.opts}
    for command in app.commands.values():
        words |= {word for parameter in command.params for word in parameter.opts}
    assert "--token-file" in words
    assert not [word for word in words if re.fullmatch(r"--?(token|pass\w*|secret|password)", word)]
