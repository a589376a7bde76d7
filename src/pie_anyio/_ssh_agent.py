# SPDX-License-Identifier: Apache-2.0
"""Keys that an SSH agent holds: list them, and have the agent sign login challenges.

Only the two requests of the agent protocol that a login needs are spoken (draft-ietf-sshm-ssh-agent: list identities,
sign). The private keys never leave the agent, and its signatures are turned into the encoding that the engine checks.
"""

from __future__ import annotations

import os
from typing import Final

import anyio
import attrs
from anyio.streams.buffered import BufferedByteReceiveStream
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from ._exceptions import KeyFileError
from ._keys import MAX_RSA_BITS, MIN_RSA_BITS, WireReader

__all__ = ["AgentKey", "agent_signers"]

# Message numbers of the agent protocol; any other answer is a refusal.
_LIST_REQUEST: Final = 11
_LIST_ANSWER: Final = 12
_SIGN_REQUEST: Final = 13
_SIGN_ANSWER: Final = 14

_RSA_SHA2_256: Final = 2  # without this flag agents sign RSA with SHA-1, which the engine refuses
_MAX_ANSWER_BYTES: Final = 256 * 1024  # OpenSSH's own bound on agent messages
_MAX_KEYS: Final = 2048
_LIST_SECONDS: Final = 10.0  # listing asks nobody; signing may wait for a person and is not limited here

# Key type -> what the agent must call a signature that the engine can check.
_SIGNATURE_NAMES: Final = {
    "ssh-ed25519": b"ssh-ed25519",
    "ssh-rsa": b"rsa-sha2-256",
    "ecdsa-sha2-nistp256": b"ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384": b"ecdsa-sha2-nistp384",
}


@attrs.frozen
class AgentKey:
    """One key that the SSH agent holds and the engine could check (0.4).

    ``comment`` is the agent's label for it, often a file name or an address; ``algorithm`` is its type in OpenSSH's
    terms, as in ``ParsedPrivateKey.algorithm``.
    """

    comment: str
    algorithm: str
    _blob: bytes = attrs.field(repr=False)
    _socket_path: str = attrs.field(repr=False)

    async def sign(self, data: bytes) -> bytes:
        """Have the agent sign ``data`` and return the raw signature in the encoding that the engine checks.

        The agent may ask its user for a confirmation; there is no time limit but the caller's.

        Cancellation: the request is given up and the connection to the agent closed; a confirmation that the agent
        is showing may stay on the screen.

        Raises:
            KeyFileError: the agent refuses, cannot be reached any more, or signs in a way the engine cannot check.
        """
        flags = _RSA_SHA2_256 if self.algorithm == "ssh-rsa" else 0
        request = bytes([_SIGN_REQUEST]) + _string(self._blob) + _string(data) + flags.to_bytes(4, "big")
        kind, reader = await _ask(self._socket_path, request)
        if kind != _SIGN_ANSWER:
            msg = f"the SSH agent refused to sign with its key {self.comment!r}; unlock it (ssh-add -X) or confirm"
            raise KeyFileError(msg)
        try:
            return self._signature(WireReader(reader.string()))
        except ValueError as exc:
            msg = f"the SSH agent answered with a malformed signature for its key {self.comment!r}: {exc}"
            raise KeyFileError(msg) from exc

    def _signature(self, reader: WireReader) -> bytes:
        """Turn the agent's encoding of a signature into the engine's."""
        name, raw = reader.string(), reader.string()
        if name != _SIGNATURE_NAMES[self.algorithm]:
            msg = (
                f"the SSH agent signed with {name[:64].decode(errors='replace')!r} where the engine needs "
                f"{_SIGNATURE_NAMES[self.algorithm].decode()!r}; update the agent or use the key file"
            )
            raise KeyFileError(msg)
        if self.algorithm == "ssh-ed25519":
            return raw
        if self.algorithm == "ssh-rsa":
            # Agents may drop leading zeros, the engine wants the full length of the modulus.
            return raw.rjust((_rsa_bits(self._blob) + 7) // 8, b"\x00")
        numbers = WireReader(raw)
        return encode_dss_signature(numbers.mpint(), numbers.mpint())


async def agent_signers(socket_path: str | os.PathLike[str] | None = None) -> list[AgentKey]:
    """List the keys of the SSH agent that the engine could check, in the agent's order; never an empty list.

    ``socket_path`` is the agent's UNIX socket, by default the one named by ``SSH_AUTH_SOCK``. Security keys,
    certificates, DSA, P-521 and RSA keys below 2048 or above 4096 bits are left out.

    Cancellation: the connection to the agent is closed; nothing else was started.

    Raises:
        KeyFileError: there is no agent, it does not answer as one within ten seconds, or it holds no usable key.
    """
    path = os.fspath(socket_path or os.environ.get("SSH_AUTH_SOCK", ""))
    if not path:
        msg = (
            'no SSH agent is known: SSH_AUTH_SOCK is not set; start one with: eval "$(ssh-agent)" && ssh-add'
        )
        raise KeyFileError(msg)
    try:
        with anyio.fail_after(_LIST_SECONDS):
            kind, reader = await _ask(path, bytes([_LIST_REQUEST]))
    except TimeoutError as exc:
        msg = f"the SSH agent at {path} did not list its keys within {_LIST_SECONDS:g} s; restart it"
        raise KeyFileError(msg) from exc
    if kind != _LIST_ANSWER:
        msg = f"the SSH agent at {path} refused to list its keys; unlock it with: ssh-add -X"
        raise KeyFileError(msg)
    try:
        keys, others = _parse_list(reader, path)
    except ValueError as exc:
        msg = f"the SSH agent at {path} sent a malformed list of keys: {exc}"
        raise KeyFileError(msg) from exc
    if not keys:
        held = (
            f"holds only keys that the engine cannot use ({', '.join(others)})" if others else "holds no keys"
        )
        msg = f"the SSH agent at {path} {held}; add one with: ssh-add ~/.ssh/id_ed25519"
        raise KeyFileError(msg)
    return keys


def _parse_list(reader: WireReader, path: str) -> tuple[list[AgentKey], list[str]]:
    """Read the list of identities: the usable keys, and the sorted types of the others."""
    count = reader.uint32()
    if count > _MAX_KEYS:
        msg = f"{count} keys are announced, {_MAX_KEYS} are the limit"
        raise ValueError(msg)
    keys: list[AgentKey] = []
    others: set[str] = set()
    for _ in range(count):
        blob, comment = reader.string(), reader.string().decode(errors="replace")
        algorithm = WireReader(blob).string()[:64].decode(errors="replace")
        if algorithm not in _SIGNATURE_NAMES:
            others.add(algorithm)
        elif algorithm == "ssh-rsa" and not MIN_RSA_BITS <= _rsa_bits(blob) <= MAX_RSA_BITS:
            others.add(f"ssh-rsa of {_rsa_bits(blob)} bits")
        else:
            keys.append(AgentKey(comment, algorithm, blob, path))
    return keys, sorted(others)


def _rsa_bits(blob: bytes) -> int:
    """Give the size of the modulus of an RSA public key, in bits."""
    reader = WireReader(blob)
    reader.string()  # type
    reader.mpint()  # public exponent
    return reader.mpint().bit_length()


def _string(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


async def _ask(path: str, request: bytes) -> tuple[int, WireReader]:
    """Send one request on a connection of its own and give the number and the content of the answer."""
    try:
        async with await anyio.connect_unix(path) as stream:
            await stream.send(_string(request))
            answers = BufferedByteReceiveStream(stream)
            length = int.from_bytes(await answers.receive_exactly(4), "big")
            if not 1 <= length <= _MAX_ANSWER_BYTES:
                msg = f"the SSH agent at {path} announced an answer of {length} bytes, which no agent sends"
                raise KeyFileError(msg)
            answer = await answers.receive_exactly(length)
    except OSError as exc:
        msg = (
            f"the SSH agent at {path} cannot be reached: {exc.strerror or exc}; "
            'start one with: eval "$(ssh-agent)" && ssh-add'
        )
        raise KeyFileError(msg) from exc
    except (anyio.IncompleteRead, anyio.EndOfStream, anyio.BrokenResourceError) as exc:
        msg = f"the SSH agent at {path} hung up in the middle of an answer; is it an SSH agent?"
        raise KeyFileError(msg) from exc
    return answer[0], WireReader(answer[1:])
