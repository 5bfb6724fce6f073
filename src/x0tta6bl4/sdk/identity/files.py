"""SVIDs in files, for programs that read nothing else.

Chain, key and bundle change together.  They lie in a directory of their own behind one symbolic
link, which is replaced by a rename: a reader that opens them all finds the old set or the new one.

    folder/svid.pem -> .x509/svid.pem        folder/.x509 -> .x509-5f0c…/       one set
    folder/svid.jwt -> .jwt/svid.jwt         folder/.jwt  -> .jwt-91be…/        another

The set before the newest stays for readers that are about to open it; older ones are removed.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final, final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from x0tta6bl4.core.machine import Value
from x0tta6bl4.edge.tls.x509 import Svid, load_any_key

CHAIN: Final = "svid.pem"
KEY: Final = "svid_key.pem"
BUNDLE: Final = "bundle.pem"
TOKEN: Final = "svid.jwt"
_X509: Final = ".x509"
_JWT: Final = ".jwt"
_FOLDER: Final = 0o700
_PUBLIC: Final = 0o644


@final
class Form(Value, frozen=True):
    """How the files are called, and who may read them."""

    chain: str = CHAIN
    key: str = KEY
    bundle: str = BUNDLE
    token: str = TOKEN
    secret_mode: int = 0o600
    """Of key and token; the directory is 0700 if it is made here."""
    uid: int = -1
    gid: int = -1
    """Owner of the files; -1: as the process."""


PLAIN: Final = Form()


def write_x509(folder: Path, svid: Svid, anchors: Sequence[bytes], form: Form = PLAIN) -> None:
    """Write an identity: chain, key (PKCS#8), and the bundle of its own trust domain alone; PEM.

    Args:
        folder: made if it is missing.
        svid: the identity.
        anchors: CA certificates, DER.
        form: names, modes, owner.
    Raises:
        OSError: the disk says no; what was there before is still there.
    """
    key = load_any_key(svid.key).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    files = [
        (form.key, key, form.secret_mode),
        (form.bundle, _pem(anchors), _PUBLIC),
        (form.chain, _pem(svid.chain), _PUBLIC),
    ]
    _replace(folder, _X509, files, form)


def write_token(folder: Path, token: str, form: Form = PLAIN) -> None:
    """Write a JWT-SVID.

    Raises:
        OSError: the disk says no; what was there before is still there.
    """
    _replace(folder, _JWT, [(form.token, token.encode(), form.secret_mode)], form)


def remove_x509(folder: Path, form: Form = PLAIN) -> None:
    """Take an identity away that is not held any more.

    Raises:
        OSError: the disk says no.
    """
    for name in (form.key, form.chain, form.bundle):
        (folder / name).unlink(missing_ok=True)
    (folder / _X509).unlink(missing_ok=True)
    for old in folder.glob(f"{_X509}-*"):
        shutil.rmtree(old)


def _pem(certificates: Sequence[bytes]) -> bytes:
    parsed = map(x509.load_der_x509_certificate, certificates)
    return b"".join(one.public_bytes(Encoding.PEM) for one in parsed)


def _replace(folder: Path, link: str, files: list[tuple[str, bytes, int]], form: Form) -> None:
    """Put a set of files in place of the one before."""
    folder.mkdir(mode=_FOLDER, parents=True, exist_ok=True)
    before = os.readlink(folder / link) if (folder / link).is_symlink() else ""
    made = folder / f"{link}-{secrets.token_hex(8)}"
    made.mkdir(mode=0o755)
    try:
        for name, data, mode in files:
            _write(made / name, data, mode, form)
        _link(folder / link, made.name)
        for name, _, _ in files:
            if not _leads(folder / name, f"{link}/{name}"):
                _link(folder / name, f"{link}/{name}")
    except OSError:
        if not _leads(folder / link, made.name):
            shutil.rmtree(made, ignore_errors=True)
        raise
    _sync(folder)
    for old in folder.glob(f"{link}-*"):
        if old.name not in (made.name, before):
            shutil.rmtree(old, ignore_errors=True)


def _write(path: Path, data: bytes, mode: int, form: Form) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    with os.fdopen(fd, "wb") as file:
        os.fchmod(fd, mode)
        if form.uid >= 0 or form.gid >= 0:
            os.fchown(fd, form.uid, form.gid)
        file.write(data)
        file.flush()
        os.fsync(fd)


def _leads(path: Path, target: str) -> bool:
    return path.is_symlink() and os.readlink(path) == target


def _link(path: Path, target: str) -> None:
    """Make or replace a symbolic link; a file of that name gives way, too."""
    beside = path.with_name(f".{path.name.lstrip('.')}.new")
    beside.unlink(missing_ok=True)
    beside.symlink_to(target)
    try:
        beside.rename(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise


def _sync(folder: Path) -> None:
    with contextlib.suppress(OSError):  # Not every file system can.
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
