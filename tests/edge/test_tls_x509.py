"""Certificates: what the CA issues, what CSRs prove, what records are signed with."""

from __future__ import annotations

import gc
import sys

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from tests.fakes.ca import DOMAIN, NOW_UNIX_S, FakeCa, FakeClock, new_svid
from x0tta6bl4.core.identity.revocation import Revocations
from x0tta6bl4.core.identity.rules import ANYBODY, NODE, WORKLOAD
from x0tta6bl4.core.machine import SECOND, Allowed, Denied
from x0tta6bl4.edge.tls import judge as judge_module
from x0tta6bl4.edge.tls.impostors import below_ca
from x0tta6bl4.edge.tls.judge import Judge, allow_all
from x0tta6bl4.edge.tls.x509 import (
    CERTIFICATE_BYTES_MAX,
    CHAIN_MAX,
    issue_leaf,
    key_bytes,
    load_key,
    new_anchor,
    new_csr,
    new_key,
    parse,
    parse_chain,
    public_point,
    read_csr,
    sign,
    signer,
    verify,
)
from x0tta6bl4.wire.errors import BadInput, Unavailable
from x0tta6bl4.wire.ids import NodeName, SpiffeId

WEB = SpiffeId(f"spiffe://{DOMAIN}/web")


def loaded(der: bytes) -> x509.Certificate:
    return x509.load_der_x509_certificate(der)


@pytest.mark.parametrize("kind", ["P-384", "P-256"])
def test_the_anchor_says_what_a_signing_certificate_must(kind: str) -> None:
    anchor = new_anchor(DOMAIN, NOW_UNIX_S, kind=kind)
    fields = anchor.parsed.fields
    assert fields.ca  # SP-027
    assert fields.key == kind
    assert fields.key_usage == ("key_cert_sign", "crl_sign")  # SP-029
    assert fields.key_usage_critical  # SP-028
    assert fields.uris == (f"spiffe://{DOMAIN}",)  # SP-017, SP-025
    assert fields.not_before_unix_s == NOW_UNIX_S - 35
    certificate = loaded(anchor.certificate)
    assert certificate.issuer == certificate.subject
    certificate.verify_directly_issued_by(certificate)


def test_a_leaf_says_what_a_leaf_must() -> None:
    ca = FakeCa()
    key = new_key()
    (leaf,) = issue_leaf(ca.issuer, new_csr(key), WEB, NOW_UNIX_S)
    fields = parse(leaf).fields
    assert fields.uris == (WEB,)  # SP-018, SP-020
    assert fields.subject_empty
    assert fields.san_critical  # SP-024
    assert not fields.ca  # SP-027
    assert fields.key_usage == ("digital_signature",)  # SP-030
    assert fields.key_usage_critical  # SP-028
    assert fields.extended_key_usage == ("1.3.6.1.5.5.7.3.1", "1.3.6.1.5.5.7.3.2")  # SP-031
    assert fields.via == ""
    assert (fields.not_before_unix_s, fields.not_after_unix_s) == (
        NOW_UNIX_S - 35,
        NOW_UNIX_S - 35 + 3_600,
    )  # Back-dated inside the lifetime.
    assert loaded(leaf).public_key() == key.public_key()
    names = loaded(leaf).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert names.critical


def test_the_node_it_was_issued_through_stands_in_it() -> None:
    ca = FakeCa()
    (leaf,) = issue_leaf(ca.issuer, new_csr(new_key()), WEB, NOW_UNIX_S, via=NodeName("node-a"))
    fields = parse(leaf).fields
    assert fields.via == "node-a"
    assert not fields.subject_empty
    assert ca.judge().judge((leaf,), WORKLOAD).via == "node-a"
    node = new_svid(ca.issuer, ca.id("node/b"), NOW_UNIX_S)
    assert ca.judge().judge(node.chain, NODE).via == "b"


def test_no_leaf_outlives_its_issuer() -> None:
    anchor = new_anchor(DOMAIN, NOW_UNIX_S, kind="P-256", ttl_s=1_000)
    (leaf,) = issue_leaf(anchor, new_csr(new_key()), WEB, NOW_UNIX_S)
    assert parse(leaf).fields.not_after_unix_s == anchor.parsed.fields.not_after_unix_s
    with pytest.raises(Unavailable):
        issue_leaf(anchor, new_csr(new_key()), WEB, NOW_UNIX_S + 965)
    with pytest.raises(Unavailable):
        issue_leaf(anchor, new_csr(new_key()), WEB, NOW_UNIX_S, ttl_s=35)


def test_serial_numbers_and_keys_are_new_each_time() -> None:
    ca = FakeCa()
    leaves = [loaded(ca.svid("web").chain[0]) for _ in range(20)]
    assert len({leaf.serial_number for leaf in leaves}) == 20
    assert min(leaf.serial_number.bit_length() for leaf in leaves) > 64


def test_a_csr_proves_possession_and_decides_nothing() -> None:
    key = new_key()
    builder = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "root")]))
        .add_extension(x509.BasicConstraints(True, None), True)
    )
    request = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)
    (leaf,) = issue_leaf(FakeCa().issuer, request, WEB, NOW_UNIX_S)
    assert parse(leaf).fields.subject_empty
    assert not parse(leaf).fields.ca

    broken = bytearray(new_csr(key))
    broken[-1] ^= 1
    rsa_key = rsa.generate_private_key(65537, 2048)
    odd = builder.sign(ec.generate_private_key(ec.SECP224R1()), hashes.SHA256())
    for bad in (
        bytes(broken),
        b"",
        b"\x30\x00",
        bytes(20_000),
        odd.public_bytes(serialization.Encoding.DER),
        builder.sign(rsa_key, hashes.SHA256()).public_bytes(serialization.Encoding.DER),
    ):
        with pytest.raises(BadInput):
            read_csr(bad)


def test_keys_go_to_bytes_and_back() -> None:
    for kind in ("P-256", "P-384", "ML-DSA-65"):
        key = new_key(kind)
        again = load_key(key_bytes(key))
        assert again.public_key() == key.public_key()
        assert verify(public_point(again), b"x", sign(key, b"x")) is (kind != "P-384")
    assert len(public_point(new_key())) == 65
    rsa_key = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for bad in (b"", b"key", rsa_key):
        with pytest.raises(BadInput):
            load_key(bad)
    with pytest.raises(BadInput):
        new_key("RSA-2048")


def test_records_are_signed_by_a_key_or_by_the_leaf_of_a_chain() -> None:
    ca = FakeCa()
    svid, other = ca.svid("node/a"), ca.svid("node/a")
    signature = signer(svid.key)(b"data")
    assert verify(svid.chain, b"data", signature)
    assert verify(public_point(load_key(svid.key)), b"data", signature)
    assert not verify(other.chain, b"data", signature)
    assert not verify(svid.chain, b"date", signature)
    assert not verify(svid.chain, b"data", signature[:-1])
    for bad in (b"", b"\x04" + bytes(64), (b"x",), ()):
        assert not verify(bad, b"data", signature)
    assert sign(load_key(svid.key), b"x") != sign(load_key(svid.key), b"x")  # Not deterministic.


def test_a_signed_statement_needs_both_the_chain_and_the_signature() -> None:
    ca = FakeCa()
    judge = ca.judge()
    node = ca.svid("node/a")
    signature = signer(node.key)(b"data")
    assert judge.judge_signed(node.chain, b"data", signature, NODE).verdict == Allowed(
        ca.id("node/a")
    )
    assert judge.judge_signed(node.chain, b"date", signature, NODE).verdict == Denied(
        "bad record signature"
    )
    web = ca.svid("web")
    assert judge.judge_signed(web.chain, b"data", signer(web.key)(b"data"), NODE).verdict == (
        Denied("not a node")
    )


def test_parsing_is_bounded() -> None:
    ca = FakeCa()
    with pytest.raises(BadInput, match="too large"):
        parse(bytes(CERTIFICATE_BYTES_MAX + 1))
    with pytest.raises(BadInput, match="no certificate"):
        parse_chain([])
    with pytest.raises(BadInput, match="chain too long"):
        parse_chain([ca.issuer.certificate] * (CHAIN_MAX + 1))
    assert ca.judge().judge([ca.issuer.certificate] * 9, ANYBODY).verdict == (
        Denied("chain too long")
    )


# --------------------------------------------------------------------------------------- the judge
def test_a_judge_without_usable_anchors_denies_everybody() -> None:
    ca = FakeCa()
    leaf = ca.svid("web")
    for anchors in (
        [],
        [leaf.chain[0]],
        [FakeCa(domain=type(DOMAIN)("other.test")).issuer.certificate],
    ):  # SP-082
        judge = Judge(DOMAIN, anchors, allow_all, ca.clock)
        assert judge.judge(leaf.chain, ANYBODY).verdict == Denied("no trust anchor")
    with pytest.raises(BadInput):
        Judge(DOMAIN, [b"junk"], allow_all, ca.clock)


def test_trust_domains_are_never_merged() -> None:
    """Each by its own judge; the anchor of one says nothing about the other (SP-076, SP-128)."""
    ours, theirs = FakeCa(), FakeCa(domain=type(DOMAIN)("other.test"))
    web, bank = ours.svid("web"), theirs.svid("bank")
    assert type(ours.judge().judge(web.chain, ANYBODY).verdict) is Allowed
    assert type(theirs.judge().judge(bank.chain, ANYBODY).verdict) is Allowed
    assert ours.judge().judge(bank.chain, ANYBODY).verdict == Denied("foreign trust domain")
    assert theirs.judge().judge(web.chain, ANYBODY).verdict == Denied("foreign trust domain")
    both = [ours.issuer.certificate, theirs.issuer.certificate]
    assert Judge(DOMAIN, both, allow_all, ours.clock).judge(bank.chain, ANYBODY).verdict == (
        Denied("foreign trust domain")
    )
    forged = new_svid(theirs.issuer, ours.id("admin"), NOW_UNIX_S)
    assert Judge(DOMAIN, both, allow_all, ours.clock).judge(forged.chain, ANYBODY).verdict == (
        Denied("issuer of a foreign trust domain")
    )  # Not used, even if it is given.


def test_both_anchors_count_while_the_ca_rotates() -> None:
    old, new = FakeCa(), FakeCa()
    judge = Judge(DOMAIN, [old.issuer.certificate, new.issuer.certificate], allow_all, old.clock)
    for ca in (old, new):
        assert type(judge.judge(ca.svid("web").chain, ANYBODY).verdict) is Allowed


def test_a_judgement_carries_the_earliest_end_of_the_path() -> None:
    ca = FakeCa()
    judgement = ca.judge().judge(new_svid(ca.issuer, WEB, NOW_UNIX_S).chain, ANYBODY)
    assert judgement.not_after_unix_s == NOW_UNIX_S - 35 + 3_600
    assert judgement.issued_unix_s == NOW_UNIX_S - 35
    foreign_habit = below_ca({"life_s": 900})(ca.issuer, NOW_UNIX_S)  # The leaf says 3,600.
    assert ca.judge().judge(foreign_habit.chain, ANYBODY).not_after_unix_s == NOW_UNIX_S - 35 + 900


def test_time_and_revocation_are_asked_each_time_although_paths_are_remembered() -> None:
    clock = FakeClock()
    ca, table = FakeCa(clock=clock), Revocations()
    judge, svid = ca.judge(table.check), ca.svid("web")
    for _ in range(2):
        assert type(judge.judge(svid.chain, ANYBODY).verdict) is Allowed
    table.put(WEB, 2**40)
    assert judge.judge(svid.chain, ANYBODY).verdict == Denied("revoked")
    table.drop(WEB)
    assert judge.judge(svid.chain, NODE).verdict == Denied("not a node")
    clock.unix_us += 3_564 * SECOND
    assert type(judge.judge(svid.chain, ANYBODY).verdict) is Allowed
    clock.unix_us += 1
    assert judge.judge(svid.chain, ANYBODY).verdict == Denied("expired")
    assert judge.judge(svid.chain, ANYBODY, 0).verdict == Denied("not yet valid")
    clock.unix_us -= 1
    assert type(judge.judge(svid.chain, ANYBODY).verdict) is Allowed


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge_module, "CACHE_MAX", 3)
    ca = FakeCa()
    judge = ca.judge()
    for _ in range(6):
        assert type(judge.judge(ca.svid("web").chain, ANYBODY).verdict) is Allowed
        assert len(judge._cache) <= 3
    assert judge.judge([b"junk"], ANYBODY).verdict == Denied("malformed certificate")
    assert len(judge._cache) == 3  # What is denied takes no room.


def test_what_is_kept_of_a_validated_chain_is_small() -> None:
    """Whoever is judged anew at each renewal stands here until the bound is met."""
    ca = FakeCa()
    judge = ca.judge()
    chains = [ca.svid(f"n{n}").chain for n in range(40)]
    judge.judge(chains[0], WORKLOAD)
    gc.collect()
    before = sys.getallocatedblocks()
    for chain in chains[1:]:
        judge.judge(chain, WORKLOAD)
    gc.collect()
    assert sys.getallocatedblocks() - before < 40 * len(chains), "80 with a parsed certificate"
