# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import base64
import pickle
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    ssh,
)

from pie_anyio import _keys
from pie_anyio._exceptions import KeyFileError
from pie_anyio._keys import InsecureKeyFileWarning, ParsedPrivateKey, Signer, WireReader

CHALLENGE = bytes(range(48))
SECRET = "correct horse battery staple"

KEYS: dict[str, Any] = {
    "ssh-ed25519": ed25519.Ed25519PrivateKey.generate(),
    "ssh-rsa": rsa.generate_private_key(65537, 2048),
    "ecdsa-sha2-nistp256": ec.generate_private_key(ec.SECP256R1()),
    "ecdsa-sha2-nistp384": ec.generate_private_key(ec.SECP384R1()),
}
FORMATS = {
    "OpenSSH": PrivateFormat.OpenSSH,
    "PKCS#8": PrivateFormat.PKCS8,
    "PKCS#1 or SEC1": PrivateFormat.TraditionalOpenSSL,
}
# Ed25519 has no traditional format.
COMBINATIONS = [
    pytest.param(algorithm, form, id=f"{algorithm} {name}")
    for algorithm in KEYS
    for name, form in FORMATS.items()
    if (algorithm, name) != ("ssh-ed25519", "PKCS#1 or SEC1")
]
each_combination = pytest.mark.parametrize(("algorithm", "form"), COMBINATIONS)


def pem(key: Any, form: PrivateFormat = PrivateFormat.PKCS8, secret: str | None = None) -> str:
    """Write a private key as text."""
    encryption: KeySerializationEncryption = NoEncryption()
    if secret is not None and form is PrivateFormat.OpenSSH:
        # One round keeps the tests quick; ssh-keygen takes 16 or more.
        encryption = form.encryption_builder().kdf_rounds(1).build(secret.encode())
    elif secret is not None:
        encryption = BestAvailableEncryption(secret.encode())
    return str(key.private_bytes(Encoding.PEM, form, encryption).decode())


def check_signature(algorithm: str, signature: bytes) -> None:
    """Check a signature as the engine does."""
    public = KEYS[algorithm].public_key()
    if algorithm == "ssh-ed25519":
        assert len(signature) == 64
        public.verify(signature, CHALLENGE)
    elif algorithm == "ssh-rsa":
        assert len(signature) == 256
        public.verify(signature, CHALLENGE, padding.PKCS1v15(), hashes.SHA256())
    else:
        digest = hashes.SHA256() if algorithm.endswith("256") else hashes.SHA384()
        public.verify(signature, CHALLENGE, ec.ECDSA(digest))


# ------------------------------------------------------------------------------------------------------ reading keys


@each_combination
def test_every_format_signs_for_the_engine(algorithm: str, form: PrivateFormat) -> None:
    """A plain key of each kind and format is read, and its signature is the one that the engine checks."""
    key = ParsedPrivateKey.parse(pem(KEYS[algorithm], form))
    assert key.algorithm == algorithm
    signature = key.sign(CHALLENGE)
    assert type(signature) is bytes
    check_signature(algorithm, signature)


@each_combination
def test_encrypted_keys(algorithm: str, form: PrivateFormat) -> None:
    """Each format is decrypted with a passphrase that is a text, bytes, or asked for."""
    text = pem(KEYS[algorithm], form, SECRET)
    passphrases: list[Any] = [SECRET, SECRET.encode(), lambda: SECRET, SECRET.encode]
    for passphrase in passphrases:
        check_signature(algorithm, ParsedPrivateKey.parse(text, passphrase).sign(CHALLENGE))


def test_the_passphrase_is_asked_for_only_if_needed() -> None:
    """A plain key never asks, and a passphrase that was given anyway does no harm."""

    def ask() -> str:
        raise AssertionError("asked")

    for form in (PrivateFormat.OpenSSH, PrivateFormat.PKCS8):
        assert ParsedPrivateKey.parse(pem(KEYS["ssh-ed25519"], form), ask).algorithm == "ssh-ed25519"
        assert ParsedPrivateKey.parse(pem(KEYS["ssh-ed25519"], form), "unneeded").algorithm == "ssh-ed25519"


def test_what_the_passphrase_function_raises_is_passed_on() -> None:
    """Ctrl-C at the prompt stays Ctrl-C."""

    def ask() -> str:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ParsedPrivateKey.parse(pem(KEYS["ssh-ed25519"], secret=SECRET), ask)


@pytest.mark.parametrize("form", [PrivateFormat.OpenSSH, PrivateFormat.PKCS8])
def test_editors_do_not_break_keys(form: PrivateFormat) -> None:
    """Windows line ends, a byte order mark, blank space around and bytes instead of text are all read."""
    text = pem(KEYS["ssh-ed25519"], form)
    variants: list[str | bytes] = [
        text.encode(),
        text.replace("\n", "\r\n"),
        "\ufeff" + text,
        f"\n  {text}\n\n",
        text.rstrip("\n"),
    ]
    for variant in variants:
        check_signature("ssh-ed25519", ParsedPrivateKey.parse(variant).sign(CHALLENGE))


def test_a_key_object_can_be_given() -> None:
    """The constructor takes a key of the cryptography package, as the official client's does, and checks it."""
    assert ParsedPrivateKey(KEYS["ssh-rsa"]).algorithm == "ssh-rsa"
    unsupported: Any = ed448.Ed448PrivateKey.generate()
    with pytest.raises(KeyFileError, match="the private key is of the unsupported type Ed448"):
        ParsedPrivateKey(unsupported)


def test_keys_are_signers() -> None:
    """A parsed key fits the protocol that authentication asks for, statically and at run time."""
    signer: Signer = ParsedPrivateKey(KEYS["ssh-ed25519"])
    assert isinstance(signer, Signer)
    assert not isinstance(object(), Signer)


# --------------------------------------------------------------------------------------------------------- refusals


def edit_openssh(text: str, edit: Callable[[bytes], bytes]) -> str:
    """Change the binary content of an OpenSSH key."""
    head, body, tail = text.split("\n", 1)[0], "".join(text.split("\n")[1:-2]), text.split("\n")[-2]
    return f"{head}\n{base64.b64encode(edit(base64.b64decode(body))).decode()}\n{tail}\n"


WEAK = rsa.generate_private_key(65537, 1024)  # noqa: S505 - refusing it is the test
SSH_ED25519 = pem(KEYS["ssh-ed25519"], PrivateFormat.OpenSSH)
SSH_ENCRYPTED = pem(KEYS["ssh-ed25519"], PrivateFormat.OpenSSH, SECRET)
PUBLIC = KEYS["ssh-ed25519"].public_key()
PEM_BODY = "MIIB\n-----END CERTIFICATE-----\n"

REFUSED: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "the private key is empty"),
    "blank": (" \r\n", "the private key is empty"),
    "garbage": ("hello", "is not a private key in OpenSSH or PEM format"),
    "binary": (bytes(range(256)), "is not a private key in OpenSSH or PEM format"),
    "surrogates": ("\ud800", "is not a private key in OpenSSH or PEM format"),
    "OpenSSH public": (
        PUBLIC.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + b" me@here",
        r"holds a public key; give the private one \(the file without \.pub\)",
    ),
    "SPKI public": (
        PUBLIC.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        "holds a public key",
    ),
    "PKCS#1 public": (
        KEYS["ssh-rsa"].public_key().public_bytes(Encoding.PEM, PublicFormat.PKCS1),
        "holds a public key",
    ),
    "certificate": ("-----BEGIN CERTIFICATE-----\n" + PEM_BODY, "holds a certificate, not a private key"),
    "PuTTY": ("PuTTY-User-Key-File-3: ssh-ed25519\n", "PuTTY's format; convert it with: puttygen"),
    "weak RSA": (pem(WEAK), "weak RSA key of 1024 bits; .* at least 2048"),
    "weak RSA, OpenSSH": (
        pem(WEAK, PrivateFormat.OpenSSH),
        "weak RSA key of 1024 bits",
    ),
    "P-521": (pem(ec.generate_private_key(ec.SECP521R1())), "unsupported curve secp521r1; the engine knows"),
    "P-521, OpenSSH": (
        pem(ec.generate_private_key(ec.SECP521R1()), PrivateFormat.OpenSSH),
        "unsupported curve secp521r1",
    ),
    "secp256k1": (pem(ec.generate_private_key(ec.SECP256K1())), "unsupported curve secp256k1"),
    "Ed448": (pem(ed448.Ed448PrivateKey.generate()), "of the unsupported type Ed448; the engine knows"),
    "DSA": (pem(dsa.generate_private_key(2048)), "of the unsupported type DSA"),
    "OpenSSH, foreign type": (
        edit_openssh(SSH_ED25519, lambda data: data.replace(b"ssh-ed25519", b"ssh-ed25518", 1)),
        "of the unsupported type 'ssh-ed25518'; the engine knows",
    ),
    "OpenSSH, encrypted foreign type": (
        edit_openssh(SSH_ENCRYPTED, lambda data: data.replace(b"ssh-ed25519", b"ssh-dss\0\0\0\0", 1)),
        "of the unsupported type 'ssh-dss",
    ),
    "OpenSSH, foreign cipher": (
        edit_openssh(SSH_ENCRYPTED, lambda data: data.replace(b"aes256-ctr", b"aes999-ctr", 1)),
        "uses an unsupported algorithm .*aes999-ctr",
    ),
    "OpenSSH, endless key derivation": (
        # The number of rounds stands before the number of keys, which is 1.
        edit_openssh(SSH_ENCRYPTED, lambda data: data.replace(b"\0\0\0\1\0\0\0\1", b"\0\1\0\1\0\0\0\1", 1)),
        "would take hours to decrypt: it asks for 65537 rounds",
    ),
    "OpenSSH, cut": (edit_openssh(SSH_ED25519, lambda data: data[:40]), "its OpenSSH header cannot be read"),
    "OpenSSH, no base64": (SSH_ED25519.replace("b3Blbn", "b3B=lb"), "damaged"),
    "OpenSSH, other magic": (
        edit_openssh(SSH_ED25519, lambda data: b"O" + data[1:]),
        "does not start as OpenSSH keys do",
    ),
    "OpenSSH, damaged": (
        edit_openssh(SSH_ED25519, lambda data: data[:-30] + bytes(30)),
        "is damaged or of an unknown kind",
    ),
    "PEM, damaged": (pem(KEYS["ssh-ed25519"]).replace("MC4C", "MC4D"), "is damaged or of an unknown kind"),
    "PEM, unclosed": (pem(KEYS["ssh-ed25519"])[:60], "is damaged or of an unknown kind"),
}


@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED)
def test_each_refusal_has_its_own_message(text: str | bytes, message: str) -> None:
    """What cannot be used is refused with the precise reason, even where a passphrase was given."""
    with pytest.raises(KeyFileError, match=message):
        ParsedPrivateKey.parse(text, SECRET)


def test_an_rsa_key_beyond_the_engine_is_refused() -> None:
    """More than 4096 bits are refused here, since the engine cannot load such a public key at all."""
    # An 8-bit step above the limit; a real key of this size takes seconds to make.
    key = rsa.generate_private_key(65537, 4096 + 8)
    with pytest.raises(KeyFileError, match="RSA key of 4104 bits; the engine cannot use more than 4096"):
        ParsedPrivateKey(key)


@pytest.mark.parametrize(
    "form", [PrivateFormat.OpenSSH, PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL]
)
def test_passphrase_trouble(form: PrivateFormat) -> None:
    """A missing, an empty and a wrong passphrase are told apart from damage as far as possible."""
    text = pem(KEYS["ssh-rsa"], form, SECRET)
    missing: list[Any] = [None, "", b"", lambda: ""]
    for passphrase in missing:
        with pytest.raises(KeyFileError, match=r"is encrypted; give its passphrase with passphrase=\.\.\."):
            ParsedPrivateKey.parse(text, passphrase)
    with pytest.raises(KeyFileError, match="the passphrase is wrong, or the key is damaged"):
        ParsedPrivateKey.parse(text, "wrong")


def test_missing_bcrypt_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without bcrypt, an encrypted OpenSSH key says what to install."""

    def no_bcrypt(*args: object, **kwargs: object) -> bytes:
        raise UnsupportedAlgorithm("Need bcrypt module")

    monkeypatch.setattr(ssh, "_bcrypt_kdf", no_bcrypt)
    with pytest.raises(KeyFileError, match=r'pip install "pie-anyio\[ssh\]"'):
        ParsedPrivateKey.parse(SSH_ENCRYPTED, SECRET)


def test_an_unsupported_algorithm_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the library cannot do at all is told in its words, with what would do."""

    def unsupported(*args: object) -> None:
        raise UnsupportedAlgorithm("Foo cipher")

    monkeypatch.setattr(_keys, "load_pem_private_key", unsupported)
    with pytest.raises(KeyFileError, match=r"unsupported algorithm \(Foo cipher\); the engine knows"):
        ParsedPrivateKey.parse(pem(KEYS["ssh-ed25519"]))


def test_nothing_shows_secrets(tmp_path: Path) -> None:
    """Neither repr nor any text of an error, causes included, holds passphrase or key."""
    shown = [repr(ParsedPrivateKey(KEYS["ssh-ed25519"]))]
    path = tmp_path / "key"
    for form in (PrivateFormat.OpenSSH, PrivateFormat.PKCS8):
        for text, passphrase in [
            (pem(KEYS["ssh-rsa"], form, SECRET), "hunter2"),
            (pem(KEYS["ssh-rsa"], form).replace("A", "B"), "hunter2"),
            (pem(WEAK, form), "hunter2"),
        ]:
            path.write_text(text)
            path.chmod(0o600)
            with pytest.raises(KeyFileError) as caught:
                ParsedPrivateKey.from_file(path, passphrase)
            shown.append("".join(traceback.format_exception(caught.value)))
            lines = [line for line in text.splitlines() if len(line) > 40 and "---" not in line]
            assert lines
            assert not any(line in shown[-1] for line in lines)
    assert not any(secret in text for text in shown for secret in (SECRET, "hunter2"))
    assert shown[0] == "<ParsedPrivateKey ssh-ed25519>"


def test_a_key_does_not_pickle() -> None:
    """A private key cannot slip into a process pool or a journal."""
    with pytest.raises(TypeError):
        pickle.dumps(ParsedPrivateKey(KEYS["ssh-ed25519"]))


# ------------------------------------------------------------------------------------------------------------- files


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    """Write a plain Ed25519 key as ssh-keygen would."""
    path = tmp_path / "id_ed25519"
    path.write_text(SSH_ED25519)
    path.chmod(0o600)
    return path


def test_from_file(key_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path may be a string or a Path, and starts at home with a tilde."""
    monkeypatch.setenv("HOME", str(key_file.parent))
    monkeypatch.setenv("USERPROFILE", str(key_file.parent))
    for path in (key_file, str(key_file), "~/id_ed25519", Path("~/id_ed25519")):
        check_signature("ssh-ed25519", ParsedPrivateKey.from_file(path).sign(CHALLENGE))


def test_from_file_with_a_passphrase(key_file: Path) -> None:
    """The passphrase is used, and its lack is told with the file's name."""
    key_file.write_text(SSH_ENCRYPTED)
    assert ParsedPrivateKey.from_file(key_file, lambda: SECRET).algorithm == "ssh-ed25519"
    with pytest.raises(KeyFileError, match=f"private key file {key_file} is encrypted"):
        ParsedPrivateKey.from_file(key_file)


@pytest.mark.skipif(sys.platform == "win32", reason="no such modes on Windows")
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666])
def test_an_open_file_warns(key_file: Path, mode: int) -> None:
    """A key that others can read or change works, with a warning that points at the caller and says what to do."""
    key_file.chmod(mode)
    with pytest.warns(
        InsecureKeyFileWarning, match=rf"mode {mode:04o}\); run: chmod 600 {key_file}"
    ) as caught:
        key = ParsedPrivateKey.from_file(key_file)
    assert caught[0].filename == __file__
    assert key.algorithm == "ssh-ed25519"


def test_a_closed_file_does_not_warn(key_file: Path) -> None:
    """Modes that only the owner has, read-only included, are fine."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for mode in (0o600, 0o400, 0o700):
            key_file.chmod(mode)
            ParsedPrivateKey.from_file(key_file)


def raising(error: Exception) -> Callable[..., Any]:
    """Give a function that raises."""

    def fail(*args: object, **kwargs: object) -> Any:
        raise error

    return fail


def test_file_errors_name_the_file_and_the_remedy(key_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each way in which a file cannot be read has its message."""
    folder = key_file.parent
    with pytest.raises(KeyFileError, match=f"{folder / 'none'} does not exist; make one with: ssh-keygen"):
        ParsedPrivateKey.from_file(folder / "none")
    with pytest.raises(KeyFileError, match=f"{folder} is a directory, not a private key file; .*id_ed25519"):
        ParsedPrivateKey.from_file(folder)
    with pytest.raises(KeyFileError, match=r"private key file 'a\\x00b' cannot be read: .*null"):
        ParsedPrivateKey.from_file("a\x00b")
    with pytest.raises(KeyFileError, match="Not a directory; check the path"):
        ParsedPrivateKey.from_file(key_file / "sub")
    monkeypatch.setattr("builtins.open", raising(PermissionError(13, "Permission denied")))
    with pytest.raises(
        KeyFileError, match=f"{key_file} must not be read by this user; check its owner and mode"
    ):
        ParsedPrivateKey.from_file(key_file)
    monkeypatch.setattr("builtins.open", raising(OSError("odd")))
    with pytest.raises(KeyFileError, match="cannot be read: odd; check the path"):
        ParsedPrivateKey.from_file(key_file)


def test_a_home_that_does_not_exist() -> None:
    """A tilde that stands for nothing is an error about the path."""
    with pytest.raises(KeyFileError, match=r"'~no-such-user-here/key' cannot be read: .*home"):
        ParsedPrivateKey.from_file("~no-such-user-here/key")


def test_a_huge_file_is_not_read(key_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading is bounded: one byte above the limit is no key, the limit itself may be."""
    monkeypatch.setattr(_keys, "MAX_KEY_FILE_BYTES", key_file.stat().st_size)
    assert ParsedPrivateKey.from_file(key_file).algorithm == "ssh-ed25519"
    with key_file.open("a") as file:
        file.write("\n")
    with pytest.raises(KeyFileError, match=f"{key_file} is larger than"):
        ParsedPrivateKey.from_file(key_file)


@pytest.mark.parametrize("kind", [["ed25519"], ["rsa", "-b", "2048"], ["ecdsa", "-b", "384"]])
def test_keys_of_ssh_keygen(tmp_path: Path, kind: list[str]) -> None:
    """What the real ssh-keygen writes is read, plain and encrypted."""
    for secret in ("", SECRET):
        path = tmp_path / f"key-{len(secret)}"
        command = ["ssh-keygen", "-q", "-t", *kind, "-N", secret, "-f", str(path)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except FileNotFoundError:
            pytest.skip("ssh-keygen is not installed: keys of the real tool were NOT tested")
        key = ParsedPrivateKey.from_file(path, SECRET)
        assert key.algorithm in path.with_suffix(".pub").read_text()
        assert isinstance(key.sign(CHALLENGE), bytes)


# ------------------------------------------------------------------------------------------------------ SSH encoding


def test_wire_reader() -> None:
    """Fields are taken one after the other, and lacking bytes and negative numbers are errors."""
    reader = WireReader(bytes.fromhex("00000007 00000003 616263 00000002 0080 00000000"))
    assert (reader.uint32(), reader.string(), reader.mpint(), reader.mpint()) == (7, b"abc", 128, 0)
    with pytest.raises(ValueError, match="field of 4 bytes, but only 0 are left"):
        reader.uint32()
    with pytest.raises(ValueError, match="negative number"):
        WireReader(bytes.fromhex("00000001 80")).mpint()


# ---------------------------------------------------------------------------------------------------- official client

OFFICIAL = """
import sys
from pie_client.crypto import ParsedPrivateKey
for path in sys.argv[1:]:
    print(ParsedPrivateKey.from_file(path).sign(bytes(range(48))).hex())
"""


def test_signatures_equal_those_of_the_official_client(
    tmp_path: Path, official_client_python: Callable[[str], Path]
) -> None:
    """Where signatures are deterministic, ours and those of pie-client 0.4.0 are the same bytes."""
    files = {tmp_path / name: name for name in ("ssh-ed25519", "ssh-rsa")}
    for path, name in files.items():
        path.write_text(pem(KEYS[name], PrivateFormat.OpenSSH))
    command = [str(official_client_python("0.4.0")), "-c", OFFICIAL, *map(str, files)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    ours = [ParsedPrivateKey(KEYS[name]).sign(CHALLENGE).hex() for name in files.values()]
    assert done.stdout.split() == ours
