"""K10: known answers of ML-KEM-768 and ML-DSA-65 from the cryptography library in use.

Vectors with their provenance: `tests/vectors`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey, MLDSA65PublicKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey

VECTORS = Path(__file__).parent.parent / "vectors"

Answers = dict[str, bytes]


def known(name: str) -> list[Answers]:
    """Blocks of `key = hex` lines, each after its `count`."""
    found: list[Answers] = []
    for line in (VECTORS / name).read_text().splitlines():
        key, _, value = line.partition(" = ")
        if key == "count":
            found.append({})
        elif value and not line.startswith("#"):
            found[-1][key] = bytes.fromhex(value)
    assert len(found) == 4
    return found


@pytest.mark.parametrize("answers", known("ml_kem_768.rsp"))
def test_K10_ml_kem_768_gives_the_published_secrets(answers: Answers) -> None:
    key = MLKEM768PrivateKey.from_seed_bytes(answers["d"] + answers["z"])
    assert key.public_key().public_bytes_raw() == answers["pk"]
    assert key.decapsulate(answers["ct"]) == answers["ss"]
    assert key.decapsulate(answers["ct_n"]) == answers["ss_n"]  # Rejected, and nobody is told.
    secret, text = MLKEM768PublicKey.from_public_bytes(answers["pk"]).encapsulate()
    assert key.decapsulate(text) == secret


@pytest.mark.parametrize("answers", known("ml_dsa_65.rsp"))
def test_K10_ml_dsa_65_verifies_the_published_signatures_and_no_others(answers: Answers) -> None:
    key = MLDSA65PrivateKey.from_seed_bytes(answers["xi"])
    public = MLDSA65PublicKey.from_public_bytes(answers["pk"])
    assert key.public_key() == public
    message, context = answers["msg"], answers["ctx"]
    signature = answers["sm"][: -len(message)]
    public.verify(signature, message, context)
    public.verify(key.sign(message, context), message, context)
    for bad in (
        (signature[:-1] + bytes((signature[-1] ^ 1,)), message, context),
        (signature, message + b"\0", context),
        (signature, message, context + b"\0"),
    ):
        with pytest.raises(InvalidSignature):
            public.verify(*bad)
