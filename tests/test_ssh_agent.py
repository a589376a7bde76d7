# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import base64
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key

from pie_anyio import _ssh_agent
from pie_anyio._exceptions import KeyFileError
from pie_anyio._keys import Signer, WireReader
from pie_anyio._ssh_agent import AgentKey, agent_signers

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform == "win32", reason="agents on Windows do not use UNIX sockets"),
]

CHALLENGE = bytes(range(48))
ED25519 = ed25519.Ed25519PrivateKey.generate()
RSA = rsa.generate_private_key(65537, 2048)
WEAK_RSA = rsa.generate_private_key(65537, 1024)  # noqa: S505 - it must be left out
P256 = ec.generate_private_key(ec.SECP256R1())
P384 = ec.generate_private_key(ec.SECP384R1())
P521 = ec.generate_private_key(ec.SECP521R1())


def string(data: bytes) -> bytes:
    """Write a string in SSH's encoding."""
    return len(data).to_bytes(4, "big") + data


def mpint(number: int) -> bytes:
    """Write a number in SSH's encoding."""
    return string(number.to_bytes(number.bit_length() // 8 + 1, "big"))


def blob(key: Any) -> bytes:
    """Give the public key in SSH's binary form."""
    line = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return base64.b64decode(line.split()[1])


def key_list(*keys: tuple[bytes, bytes]) -> bytes:
    """Give an agent's answer that lists keys."""
    return b"\x0c" + len(keys).to_bytes(4, "big") + b"".join(string(b) + string(c) for b, c in keys)


def signed(name: bytes, raw: bytes) -> bytes:
    """Give an agent's answer that holds a signature."""
    return b"\x0e" + string(string(name) + string(raw))


def check_signature(public: Any, signature: bytes) -> None:
    """Check a signature as the engine does."""
    match public:
        case ed25519.Ed25519PublicKey():
            assert len(signature) == 64
            public.verify(signature, CHALLENGE)
        case rsa.RSAPublicKey():
            assert len(signature) == public.key_size // 8
            public.verify(signature, CHALLENGE, padding.PKCS1v15(), hashes.SHA256())
        case _:
            digest = hashes.SHA256() if public.curve.name == "secp256r1" else hashes.SHA384()
            public.verify(signature, CHALLENGE, ec.ECDSA(digest))


# ------------------------------------------------------------------------------------------------------- a real agent


@pytest.fixture
def socket_folder() -> Iterator[Path]:
    """Give a folder whose path is short enough for a socket, which pytest's own need not be."""
    with tempfile.TemporaryDirectory(prefix="pie-agent-") as folder:
        yield Path(folder)


@pytest.fixture
def real_agent(socket_folder: Path) -> Iterator[Path]:
    """Run OpenSSH's own agent."""
    if not shutil.which("ssh-agent") or not shutil.which("ssh-add") or not shutil.which("ssh-keygen"):
        pytest.skip("OpenSSH's client programs are not installed: the real agent was NOT tested")
    path = socket_folder / "agent"
    started = subprocess.run(
        ["ssh-agent", "-s", "-a", str(path)], check=True, capture_output=True, text=True, timeout=10
    )
    pid = int(started.stdout.split("SSH_AGENT_PID=")[1].split(";")[0])
    yield path
    os.kill(pid, signal.SIGTERM)


def add_key(agent: Path, *kind: str) -> Path:
    """Make a key and give it to the agent."""
    path = agent.parent / "-".join(kind)
    subprocess.run(
        ["ssh-keygen", "-q", "-t", *kind, "-N", "", "-C", "label of " + kind[0], "-f", str(path)],
        check=True,
        capture_output=True,
    )
    subprocess.run(
        ["ssh-add", "-q", str(path)],
        check=True,
        capture_output=True,
        env={**os.environ, "SSH_AUTH_SOCK": str(agent)},
    )
    return path.with_name(path.name + ".pub")


@pytest.mark.parametrize(
    ("kind", "algorithm"),
    [
        (("ed25519",), "ssh-ed25519"),
        (("rsa", "-b", "2048"), "ssh-rsa"),
        (("ecdsa", "-b", "256"), "ecdsa-sha2-nistp256"),
        (("ecdsa", "-b", "384"), "ecdsa-sha2-nistp384"),
    ],
)
async def test_the_real_agent_signs(
    real_agent: Path, kind: tuple[str, ...], algorithm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenSSH's agent lists the key and gives signatures that the engine checks, over and over."""
    public = load_ssh_public_key(add_key(real_agent, *kind).read_bytes())
    monkeypatch.setenv("SSH_AUTH_SOCK", str(real_agent))
    with anyio.fail_after(5):
        (key,) = await agent_signers()
        assert (key.algorithm, key.comment) == (algorithm, "label of " + kind[0])
        for _ in range(8):  # ECDSA numbers differ in length from one signature to the next
            check_signature(public, await key.sign(CHALLENGE))


async def test_the_real_agent_without_usable_keys(real_agent: Path) -> None:
    """An agent that is empty, and one that holds only P-521, are told apart."""
    with anyio.fail_after(5):
        with pytest.raises(KeyFileError, match="holds no keys; add one with: ssh-add"):
            await agent_signers(real_agent)
        add_key(real_agent, "ecdsa", "-b", "521")
        with pytest.raises(KeyFileError, match=r"holds only keys that the engine cannot use \(.*nistp521\)"):
            await agent_signers(real_agent)


async def test_the_real_agent_forgets_a_key(real_agent: Path) -> None:
    """A key that was removed after it was listed is refused, with what to do."""
    public = add_key(real_agent, "ed25519")
    with anyio.fail_after(5):
        (key,) = await agent_signers(str(real_agent))
        environment = {**os.environ, "SSH_AUTH_SOCK": str(real_agent)}
        subprocess.run(["ssh-add", "-q", "-d", str(public)], check=True, capture_output=True, env=environment)  # noqa: ASYNC221
        with pytest.raises(KeyFileError, match=r"refused to sign with its key 'label of ed25519'; unlock it"):
            await key.sign(CHALLENGE)


# ------------------------------------------------------------------------------------------------------ a fake agent

Answer = Callable[[bytes], bytes]


@asynccontextmanager
async def fake_agent(folder: Path, answer: Answer) -> AsyncIterator[str]:
    """Serve an agent that answers each request with what ``answer`` makes of it: the raw bytes, length included."""
    path = str(folder / "fake")

    async def serve(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            request = await stream.receive()
            for byte in answer(request[4:]):
                await stream.send(bytes([byte]))

    async with await anyio.create_unix_listener(path) as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        yield path
        tasks.cancel_scope.cancel()


def always(content: bytes) -> Answer:
    """Answer every request with one well-framed message."""
    return lambda request: string(content)


def agent_of(key: Any, sign: Callable[[bytes, int], bytes]) -> Answer:
    """Make an agent of one key: it lists the key and signs with ``sign(data, flags)``."""

    def answer(request: bytes) -> bytes:
        if request == b"\x0b":
            return string(key_list((blob(key), b"fake")))
        assert request[:1] == b"\x0d"
        reader = WireReader(request[1:])
        assert reader.string() == blob(key)
        return string(sign(reader.string(), reader.uint32()))

    return answer


async def test_only_usable_keys_are_listed(socket_folder: Path) -> None:
    """Security keys, certificates, P-521 and RSA keys out of bounds are left out; order and comments stay."""
    keys = [
        (string(b"sk-ssh-ed25519@openssh.com") + b"rest", b"token"),
        (blob(P384), b"third"),
        (blob(P521), b"too big"),
        (string(b"ssh-ed25519-cert-v01@openssh.com"), b"certificate"),
        (blob(WEAK_RSA), b"weak"),
        (string(b"ssh-rsa") + mpint(65537) + mpint(1 << 4096), b"4097 bits"),
        (string(b"ssh-rsa") + mpint(65537) + mpint((1 << 4096) - 1), b"4096 bits"),
        (blob(ED25519), b"not \xff text"),
    ]
    async with fake_agent(socket_folder, always(key_list(*keys))) as path:
        with anyio.fail_after(5):
            found = await agent_signers(path)
    assert [(key.algorithm, key.comment) for key in found] == [
        ("ecdsa-sha2-nistp384", "third"),
        ("ssh-rsa", "4096 bits"),
        ("ssh-ed25519", "not \ufffd text"),
    ]
    signer: Signer = found[0]
    assert isinstance(signer, Signer)
    assert repr(found[0]) == "AgentKey(comment='third', algorithm='ecdsa-sha2-nistp384')"


async def test_unusable_rsa_keys_are_explained(socket_folder: Path) -> None:
    """Where only a weak RSA key is held, its size is in the message."""
    async with fake_agent(socket_folder, always(key_list((blob(WEAK_RSA), b"weak")))) as path:
        with anyio.fail_after(5), pytest.raises(KeyFileError, match=r"cannot use \(ssh-rsa of 1024 bits\)"):
            await agent_signers(path)


async def test_encodings_of_signatures(socket_folder: Path) -> None:
    """Ed25519 passes through, RSA asks for SHA-256 and regains leading zeros, ECDSA becomes DER."""

    def sign_rsa(data: bytes, flags: int) -> bytes:
        assert flags == 2
        return signed(b"rsa-sha2-256", b"\x01" * 254)

    def sign_ecdsa(data: bytes, flags: int) -> bytes:
        assert (data, flags) == (CHALLENGE, 0)
        numbers = decode_dss_signature(P256.sign(data, ec.ECDSA(hashes.SHA256())))
        return signed(b"ecdsa-sha2-nistp256", b"".join(map(mpint, numbers)))

    def sign_ed25519(data: bytes, flags: int) -> bytes:
        assert flags == 0
        return signed(b"ssh-ed25519", ED25519.sign(data))

    async def signature(key: Any, sign: Callable[[bytes, int], bytes]) -> bytes:
        folder = socket_folder / str(id(key))
        folder.mkdir()
        async with fake_agent(folder, agent_of(key, sign)) as path:
            (found,) = await agent_signers(path)
            return await found.sign(CHALLENGE)

    with anyio.fail_after(5):
        assert await signature(RSA, sign_rsa) == bytes(2) + b"\x01" * 254
        check_signature(ED25519.public_key(), await signature(ED25519, sign_ed25519))
        check_signature(P256.public_key(), await signature(P256, sign_ecdsa))


BAD_SIGNATURES = {
    "failure": (RSA, b"\x05", "refused to sign with its key 'fake'"),
    "SHA-1": (
        RSA,
        signed(b"ssh-rsa", b"x" * 256),
        "signed with 'ssh-rsa' where the engine needs 'rsa-sha2-256'; update the agent",
    ),
    "cut": (ED25519, b"\x0e\x00\x00\x00\x09abc", "malformed signature for its key 'fake': field of 9 bytes"),
    "empty": (ED25519, b"\x0e", "malformed signature"),
    "one number": (P256, signed(b"ecdsa-sha2-nistp256", mpint(1)), "malformed signature"),
    "negative": (P256, signed(b"ecdsa-sha2-nistp256", string(b"\xff") * 2), "malformed .* negative number"),
    "odd name": (ED25519, signed(b"\xff" * 100, b""), "signed with '\ufffd{64}' where"),
}


@pytest.mark.parametrize(("key", "answer", "message"), BAD_SIGNATURES.values(), ids=BAD_SIGNATURES)
async def test_bad_signatures(socket_folder: Path, key: Any, answer: bytes, message: str) -> None:
    """What is no usable signature is an error that names the key, never passed on."""
    async with fake_agent(socket_folder, agent_of(key, lambda data, flags: answer)) as path:
        with anyio.fail_after(5):
            (found,) = await agent_signers(path)
            with pytest.raises(KeyFileError, match=message):
                await found.sign(CHALLENGE)


BAD_LISTS = {
    "locked": (string(b"\x05"), "refused to list its keys; unlock it with: ssh-add -X"),
    "cut list": (
        string(b"\x0c\x00\x00\x00\x02" + string(blob(ED25519)) + string(b"")),
        "malformed list of keys",
    ),
    "cut key": (string(key_list((b"\x00\x00\x00\x09ssh", b""))), "malformed list of keys: field of 9 bytes"),
    "cut RSA key": (string(key_list((string(b"ssh-rsa"), b""))), "malformed list of keys"),
    "too many": (string(b"\x0c\x00\x00\x08\x01"), "malformed list of keys: 2049 keys are announced, 2048"),
    "no length": (b"\x00\x00", "hung up in the middle of an answer; is it an SSH agent"),
    "nothing": (b"", "hung up in the middle"),
    "short": (b"\x00\x00\x00\x09\x0c", "hung up in the middle"),
    "empty": (b"\x00\x00\x00\x00", "announced an answer of 0 bytes, which no agent sends"),
    "huge": (b"\x00\x04\x00\x01", "announced an answer of 262145 bytes"),
    "not an agent": (b"HTTP/1.1 400 Bad Request\r\n", "announced an answer of 1213486160 bytes"),
}


@pytest.mark.parametrize(("answer", "message"), BAD_LISTS.values(), ids=BAD_LISTS)
async def test_bad_lists(socket_folder: Path, answer: bytes, message: str) -> None:
    """A broken or foreign server on the socket gives an error, at any point and for any size that it claims."""
    async with fake_agent(socket_folder, lambda request: answer) as path:
        with anyio.fail_after(5), pytest.raises(KeyFileError, match=message):
            await agent_signers(path)


async def test_the_largest_answer_is_read(socket_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound on answers is inclusive."""
    answer = key_list((blob(ED25519), b"c" * 100))
    monkeypatch.setattr(_ssh_agent, "_MAX_ANSWER_BYTES", len(answer))
    async with fake_agent(socket_folder, always(answer)) as path:
        with anyio.fail_after(5):
            assert len(await agent_signers(path)) == 1


async def test_a_silent_agent_is_given_up(socket_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Listing is bounded in time, since an agent that hangs would hang the login."""
    monkeypatch.setattr(_ssh_agent, "_LIST_SECONDS", 0.0)
    async with fake_agent(socket_folder, always(b"")) as path:
        with anyio.fail_after(5), pytest.raises(KeyFileError, match="did not list its keys within 0 s"):
            await agent_signers(path)


async def test_signing_can_be_cancelled(socket_folder: Path) -> None:
    """While the agent waits for a person, the caller can give up; the agent sees its connection close."""
    asked, closed = anyio.Event(), anyio.Event()

    async def never(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await stream.receive()
            asked.set()
            with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
                await stream.receive()
            closed.set()

    path = str(socket_folder / "never")
    key = AgentKey("c", "ssh-ed25519", blob(ED25519), path)
    async with await anyio.create_unix_listener(path) as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, never)
        with anyio.fail_after(5):
            async with anyio.create_task_group() as signing:
                signing.start_soon(key.sign, CHALLENGE)
                await asked.wait()
                signing.cancel_scope.cancel()
            await closed.wait()
        tasks.cancel_scope.cancel()


async def test_no_agent(socket_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No agent at all, an empty variable and a stale socket each say how to start one."""
    with anyio.fail_after(5):
        monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
        with pytest.raises(KeyFileError, match="SSH_AUTH_SOCK is not set; start one with"):
            await agent_signers()
        monkeypatch.setenv("SSH_AUTH_SOCK", "")
        with pytest.raises(KeyFileError, match="SSH_AUTH_SOCK is not set; start one with"):
            await agent_signers()
        monkeypatch.setenv("SSH_AUTH_SOCK", str(socket_folder / "gone"))
        with pytest.raises(KeyFileError, match=r"gone cannot be reached: .*; start one with"):
            await agent_signers()
