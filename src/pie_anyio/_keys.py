# SPDX-License-Identifier: Apache-2.0
"""Private keys for public-key login: reading them from files, and signing with them.

The engine (generation 0.4) checks Ed25519, RSA (PKCS#1 v1.5 with SHA-256, 2048 to 4096 bits) and ECDSA on P-256 and
P-384 (DER signatures with SHA-256 and SHA-384). Every other key is refused here, with the reason, since the engine
would only answer that the signature is wrong.
"""

from __future__ import annotations

import binascii
import os
import re
import shlex
import stat
import warnings
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, Protocol, TypeAlias, runtime_checkable

import attrs
from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_ssh_private_key

from ._exceptions import KeyFileError

__all__ = ["InsecureKeyFileWarning", "ParsedPrivateKey", "Passphrase", "Signer"]

Passphrase: TypeAlias = str | bytes | Callable[[], str | bytes]
"""A passphrase, or a function that asks for it; the function is called only if the key is encrypted."""

MIN_RSA_BITS: Final = 2048
MAX_RSA_BITS: Final = 4096  # the engine's RSA library cannot load a larger public key
MAX_KEY_FILE_BYTES: Final = 256 * 1024
MAX_KDF_ROUNDS: Final = 1 << 16  # ssh-keygen takes 24; 2**32 would hold up the program for years

_SUPPORTED: Final = "the engine knows Ed25519, RSA (2048 to 4096 bits) and ECDSA on P-256 or P-384"
_OPENSSH_MAGIC: Final = b"openssh-key-v1\x00"
_OPENSSH_TYPES: Final = frozenset(
    [b"ssh-ed25519", b"ssh-rsa", b"ecdsa-sha2-nistp256", b"ecdsa-sha2-nistp384", b"ecdsa-sha2-nistp521"]
)
_PEM_LABEL: Final = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----")
_PUBLIC_LINE: Final = re.compile(rb"(ssh-(ed25519|rsa|dss)|ecdsa-sha2-|sk-(ssh|ecdsa)-)\S* +AAAA")
# What the loaders of ``cryptography`` are known to raise on keys that are damaged, foreign or wrongly decrypted.
_LOAD_ERRORS: Final = (ValueError, TypeError, UnsupportedAlgorithm, InvalidTag, NotImplementedError)


_warned_of: Final[set[str]] = set()


class InsecureKeyFileWarning(UserWarning):
    """A private key file can be read or changed by other users of this machine (looked at on POSIX systems only)."""


@runtime_checkable
class Signer(Protocol):
    """Anything that signs a login challenge: a :class:`ParsedPrivateKey`, a key of the SSH agent, or your own.

    The signature is the raw one that the engine checks (0.4): 64 bytes for Ed25519, the modulus length for RSA, DER
    for ECDSA. It may be returned, or awaited where signing takes time.
    """

    def sign(self, data: bytes) -> bytes | Awaitable[bytes]:
        """Sign ``data``."""
        ...  # pragma: no cover - a protocol has no body


class WireReader:
    """Reads the fields of SSH's binary encoding (RFC 4251, section 5); any excess or lack is a ``ValueError``."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        """Take ``count`` bytes."""
        end = self._at + count
        if end > len(self._data):
            msg = f"field of {count} bytes, but only {len(self._data) - self._at} are left"
            raise ValueError(msg)
        part, self._at = self._data[self._at : end], end
        return part

    def uint32(self) -> int:
        """Take an unsigned 32-bit number."""
        return int.from_bytes(self.take(4), "big")

    def string(self) -> bytes:
        """Take a length-prefixed string."""
        return self.take(self.uint32())

    def mpint(self) -> int:
        """Take a number that must not be negative."""
        number = int.from_bytes(self.string(), "big", signed=True)
        if number < 0:
            msg = "negative number"
            raise ValueError(msg)
        return number


_SupportedKey: TypeAlias = ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


@attrs.frozen(repr=False, eq=False)
class ParsedPrivateKey:
    """A private key that can sign login challenges, held in memory.

    Make one with :meth:`parse` or :meth:`from_file`; the constructor takes a private key object of the
    ``cryptography`` package. Neither ``repr`` nor any error shows key material.

    Raises:
        KeyFileError: the engine could not check signatures of this key.
    """

    _private_key: _SupportedKey

    def __attrs_post_init__(self) -> None:
        _check_usable(self._private_key, "the private key")

    @classmethod
    def parse(cls, text: str | bytes, passphrase: Passphrase | None = None) -> ParsedPrivateKey:
        """Read a private key from its text.

        OpenSSH, PKCS#8, PKCS#1 and SEC 1 files are understood, encrypted or not. ``passphrase`` may be a function,
        which is called only if the key is encrypted; what it raises is passed on. For encrypted keys this computes
        for a fraction of a second.

        Raises:
            KeyFileError: the text is no private key, is encrypted and the passphrase missing or wrong, or the engine
                could not check its signatures.
        """
        data = text.encode(errors="replace") if isinstance(text, str) else text
        return cls(_load(data, passphrase, "the private key"))

    @classmethod
    def from_file(
        cls, path: str | os.PathLike[str], passphrase: Passphrase | None = None
    ) -> ParsedPrivateKey:
        """Read a private key from a file; ``~`` and ``~user`` stand for home directories.

        A file that other users can read or change is used, with an :class:`InsecureKeyFileWarning` once for each file
        (POSIX only: the access lists of Windows are not looked at).
        The arguments are otherwise those of :meth:`parse`. The call blocks while it reads.

        Raises:
            KeyFileError: the file cannot be read, or :meth:`parse` refuses its content.
        """
        data, name, mode = _read(path)
        if os.name == "posix" and mode & (stat.S_IRWXG | stat.S_IRWXO) and name not in _warned_of:
            remedy = f"chmod 600 {shlex.quote(name)}"
            msg = f"private key file {name} is open to other users (mode {mode:04o}); run: {remedy}"
            warnings.warn(msg, InsecureKeyFileWarning, stacklevel=2)
            _warned_of.add(name)  # not before: where the warning is made an error, each reading is to fail
        return cls(_load(data, passphrase, f"private key file {name}"))

    @property
    def algorithm(self) -> str:
        """The key's type in OpenSSH's terms: ``ssh-ed25519``, ``ssh-rsa``, ``ecdsa-sha2-nistp256`` or ``-nistp384``."""
        match self._private_key:
            case ed25519.Ed25519PrivateKey():
                return "ssh-ed25519"
            case rsa.RSAPrivateKey():
                return "ssh-rsa"
            case key:
                return f"ecdsa-sha2-nistp{key.curve.key_size}"

    def sign(self, data: bytes) -> bytes:
        """Sign ``data`` and return the raw signature in the encoding that the engine checks (0.4)."""
        match self._private_key:
            case ed25519.Ed25519PrivateKey() as key:
                return key.sign(data)
            case rsa.RSAPrivateKey() as key:
                return key.sign(data, padding.PKCS1v15(), hashes.SHA256())
            case key:
                digest = hashes.SHA256() if isinstance(key.curve, ec.SECP256R1) else hashes.SHA384()
                return key.sign(data, ec.ECDSA(digest))

    def __repr__(self) -> str:
        return f"<ParsedPrivateKey {self.algorithm}>"


def _read(path: str | os.PathLike[str]) -> tuple[bytes, str, int]:
    """Read a key file, bounded, and give its content, its expanded name and its permission bits."""
    name = os.fspath(path)
    try:
        name = str(Path(path).expanduser())
        with open(name, "rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            data = file.read(MAX_KEY_FILE_BYTES + 1)
    except FileNotFoundError as exc:
        msg = f"private key file {name} does not exist; make one with: ssh-keygen -t ed25519 -f {name}"
        raise KeyFileError(msg) from exc
    except PermissionError as exc:
        msg = f"private key file {name} must not be read by this user; check its owner and mode (0600)"
        raise KeyFileError(msg) from exc
    except IsADirectoryError as exc:
        msg = f"{name} is a directory, not a private key file; name a file in it, such as {Path(name) / 'id_ed25519'}"
        raise KeyFileError(msg) from exc
    except (OSError, RuntimeError, ValueError) as exc:
        # RuntimeError: no home directory to put for "~"; ValueError: a null character in the name.
        reason = (exc.strerror if isinstance(exc, OSError) else None) or exc
        msg = f"private key file {name!r} cannot be read: {reason}; check the path"
        raise KeyFileError(msg) from exc
    if len(data) > MAX_KEY_FILE_BYTES:
        msg = f"private key file {name} is larger than {MAX_KEY_FILE_BYTES} bytes, so it is no private key"
        raise KeyFileError(msg)
    return data, name, mode


def _load(data: bytes, passphrase: Passphrase | None, where: str) -> _SupportedKey:
    """Turn the text of a key into a key object; ``where`` names it in errors."""
    data = data.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").strip() + b"\n"
    label = _private_label(data, where)
    encrypted = _openssh_encrypted(data, where) if label == b"OPENSSH PRIVATE KEY" else b"ENCRYPTED" in data
    secret = _passphrase_bytes(passphrase, where) if encrypted else None
    try:
        key = (load_ssh_private_key if label == b"OPENSSH PRIVATE KEY" else load_pem_private_key)(
            data, secret
        )
    except _LOAD_ERRORS as exc:
        raise KeyFileError(_load_failure(exc, where, encrypted=encrypted)) from exc
    return _check_usable(key, where)


def _private_label(data: bytes, where: str) -> bytes:
    """Give the PEM label of a private key, or refuse what is none."""
    found = _PEM_LABEL.search(data)
    label = found[1] if found else b""
    if label.endswith(b"PRIVATE KEY"):
        return label
    if not data.strip():
        msg = f"{where} is empty"
    elif label.endswith(b"PUBLIC KEY") or _PUBLIC_LINE.match(data):
        msg = f"{where} holds a public key; give the private one (the file without .pub)"
    elif label:
        msg = f"{where} holds a {label.decode().lower()}, not a private key"
    elif data.startswith(b"PuTTY-User-Key-File"):
        msg = f"{where} is in PuTTY's format; convert it with: puttygen KEY.ppk -O private-openssh-new -o KEY"
    else:
        msg = f"{where} is not a private key in OpenSSH or PEM format: there is no '-----BEGIN ... PRIVATE KEY-----'"
    raise KeyFileError(msg)


def _openssh_encrypted(data: bytes, where: str) -> bool:
    """Read the plain header of an OpenSSH key: refuse foreign types before any passphrase is asked for."""
    body = data.partition(b"OPENSSH PRIVATE KEY-----")[2].partition(b"-----")[0]
    try:
        reader = WireReader(binascii.a2b_base64(body))
        intact = reader.take(len(_OPENSSH_MAGIC)) == _OPENSSH_MAGIC
        cipher = reader.string()
        reader.string()  # key derivation
        options = reader.string()
        reader.uint32()  # number of keys
        kind = WireReader(reader.string()).string()
        rounds = int.from_bytes(options[-4:], "big")  # after the salt; there are no options if not encrypted
    except ValueError as exc:
        msg = f"{where} is damaged: its OpenSSH header cannot be read; copy it again from its source"
        raise KeyFileError(msg) from exc
    if not intact:
        msg = f"{where} is damaged: it does not start as OpenSSH keys do; copy it again from its source"
        raise KeyFileError(msg)
    if kind not in _OPENSSH_TYPES:
        msg = f"{where} is of the unsupported type {kind[:64].decode(errors='replace')!r}; {_SUPPORTED}"
        raise KeyFileError(msg)
    if rounds > MAX_KDF_ROUNDS:
        msg = f"{where} is damaged, or would take hours to decrypt: it asks for {rounds} rounds of key derivation"
        raise KeyFileError(msg)
    return cipher != b"none"


def _passphrase_bytes(passphrase: Passphrase | None, where: str) -> bytes:
    """Get the passphrase of an encrypted key, asking for it where a function was given."""
    secret = passphrase() if callable(passphrase) else passphrase
    if not secret:
        msg = f"{where} is encrypted; give its passphrase with passphrase=..., or use the SSH agent"
        raise KeyFileError(msg)
    return secret.encode() if isinstance(secret, str) else secret


def _load_failure(exc: Exception, where: str, *, encrypted: bool) -> str:
    """Word the reason why a key could not be loaded; what the loader said stays in the cause."""
    if isinstance(exc, UnsupportedAlgorithm) and "bcrypt" in str(exc):
        return (
            f'{where} is encrypted in OpenSSH format, which needs bcrypt; run: pip install "pie-anyio[ssh]"'
        )
    if isinstance(exc, UnsupportedAlgorithm):
        return f"{where} uses an unsupported algorithm ({exc}); {_SUPPORTED}"
    if encrypted:
        return f"{where} cannot be decrypted: the passphrase is wrong, or the key is damaged"
    return f"{where} is damaged or of an unknown kind and cannot be read; {_SUPPORTED}"


def _check_usable(key: object, where: str) -> _SupportedKey:
    """Refuse a key whose signatures the engine could not check."""
    match key:
        case ed25519.Ed25519PrivateKey():
            return key
        case rsa.RSAPrivateKey() if key.key_size < MIN_RSA_BITS:
            msg = (
                f"{where} is a weak RSA key of {key.key_size} bits; the engine wants at least {MIN_RSA_BITS}"
            )
        case rsa.RSAPrivateKey() if key.key_size > MAX_RSA_BITS:
            msg = f"{where} is an RSA key of {key.key_size} bits; the engine cannot use more than {MAX_RSA_BITS}"
        case rsa.RSAPrivateKey():
            return key
        case ec.EllipticCurvePrivateKey() if isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1):
            return key
        case ec.EllipticCurvePrivateKey():
            msg = f"{where} is on the unsupported curve {key.curve.name}; {_SUPPORTED}"
        case _:
            kind = type(key).__name__.removesuffix("PrivateKey")
            msg = f"{where} is of the unsupported type {kind}; {_SUPPORTED}"
    raise KeyFileError(msg)
