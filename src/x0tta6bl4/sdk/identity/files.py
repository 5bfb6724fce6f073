"""SVIDs in files, for programs that read nothing else.

Each file is written beside its place and moved there, so a reader sees the old one or the new one;
keys and tokens are 0600 in a directory of 0700.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from x0tta6bl4.edge.tls.x509 import load_any_key
from x0tta6bl4.sdk.identity.answers import X509Set
from x0tta6bl4.wire.ids import domain_of

CHAIN: Final = "svid.pem"
KEY: Final = "svid_key.pem"
BUNDLE: Final = "bundle.pem"
TOKEN: Final = "svid.jwt"
_SECRET: Final = 0o600
_PUBLIC: Final = 0o644


def write_x509(folder: Path, held: X509Set) -> None:
    """Write the default identity: chain, key, and the bundle of its own trust domain alone.

    The key goes first and the chain last: who waits for a new chain finds its key there.

    Raises:
        OSError: the disk says no; what was there before is still there.
    """
    svid = held.svids[0]
    key = load_any_key(svid.key).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    _write(folder, KEY, key, _SECRET)
    _write(folder, BUNDLE, _pem(held.bundles[domain_of(svid.id)]), _PUBLIC)
    _write(folder, CHAIN, _pem(svid.chain), _PUBLIC)


def write_token(folder: Path, token: str) -> None:
    """Write a JWT-SVID.

    Raises:
        OSError: the disk says no; what was there before is still there.
    """
    _write(folder, TOKEN, token.encode(), _SECRET)


def _pem(certificates: tuple[bytes, ...]) -> bytes:
    parsed = map(x509.load_der_x509_certificate, certificates)
    return b"".join(one.public_bytes(Encoding.PEM) for one in parsed)


def _write(folder: Path, name: str, data: bytes, mode: int) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    beside = folder / f".{name}.new"
    beside.unlink(missing_ok=True)
    try:
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
        with os.fdopen(fd, "wb") as file:
            os.fchmod(fd, mode)
            file.write(data)
            file.flush()
            os.fsync(fd)
        beside.rename(folder / name)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
