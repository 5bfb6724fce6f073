"""Whom the SDK takes for whom, by X.509-SVID: as a TLS server and as a TLS client.

Every refusal is asked for together with its twin, the same certificate without the one fault, by
the same harness with the same bundles: one that refuses everybody fails.

Source: X509-SVID.md sections 2 to 5, SPIFFE_Workload_API.md section 4.6.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID as Eku

from tests.conformance.conftest import Hall
from x0tta6bl4.sdk.testing.domain import Domain, Svid

CLIENT, SERVER, CODE = Eku.CLIENT_AUTH, Eku.SERVER_AUTH, Eku.CODE_SIGNING
SIGN = "digital_signature"
DAY = 86_400
NAME = "spiffe://example.org/peer"

both_roles = pytest.mark.parametrize("role", ["server", "client"])
"""What the harness is in the TLS connection."""


def refused(hall: Hall, role: str, wrong: Svid, right: Svid | None = None) -> None:
    """The one is refused, its twin accepted."""
    right = right or hall.domain.svid("/peer")
    assert hall.harness.accepts(role, right) == right.id
    assert hall.harness.accepts(role, wrong) == ""


def accepted(hall: Hall, role: str, svid: Svid, id: str = "") -> None:
    assert hall.harness.accepts(role, svid) == (id or svid.id)


# --------------------------------------------------------------------------------- what is valid
@both_roles
def test_SP_032_a_plain_svid_is_accepted(hall: Hall, role: str) -> None:
    accepted(hall, role, hall.domain.svid("/peer"), NAME)


@both_roles
@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_SP_032_intermediates_are_accepted(hall: Hall, role: str, count: int) -> None:
    accepted(hall, role, hall.domain.svid("/peer", signers=[{}] * count))


@both_roles
@pytest.mark.parametrize("order", [(0, 2, 1, 3), (0, 3, 2, 1), (0, 1, 1, 2, 3)])
def test_SP_032_intermediates_in_any_order(hall: Hall, role: str, order: tuple[int, ...]) -> None:
    made = hall.domain.svid("/peer", signers=[{}, {}, {}])
    accepted(hall, role, Svid(made.id, tuple(made.chain[n] for n in order), made.key))


@both_roles
def test_SP_032_a_root_sent_along_does_no_harm(hall: Hall, role: str) -> None:
    made = hall.domain.svid("/peer", signers=[{}])
    accepted(hall, role, Svid(made.id, (*made.chain, *hall.domain.anchors), made.key))
    stranger = Domain("example.org").anchors
    accepted(hall, role, Svid(made.id, (*made.chain, *stranger), made.key))


@both_roles
@pytest.mark.parametrize("key", ["P-256", "P-384", "P-521", "RSA-2048", "RSA-3072", "ML-DSA-65"])
def test_SP_032_keys_of_every_usual_kind(hall: Hall, role: str, key: str) -> None:
    accepted(hall, role, hall.domain.svid("/peer", key=key))


@both_roles
@pytest.mark.parametrize("hash", ["sha256", "sha384", "sha512"])
def test_SP_032_signatures_of_every_usual_kind(hall: Hall, role: str, hash: str) -> None:
    accepted(hall, role, hall.domain.svid("/peer", hash=hash))


@both_roles
@pytest.mark.parametrize(
    ("start_s", "life_s"), [(-30, 60), (-3_500, 3_600), (-DAY, 2 * DAY), (-DAY, 20 * DAY), (-1, 30)]
)
def test_SP_032_lives_of_any_length(hall: Hall, role: str, start_s: int, life_s: int) -> None:
    accepted(hall, role, hall.domain.svid("/peer", start_s=start_s, life_s=life_s))


@both_roles
@pytest.mark.parametrize("dns", [("web.example",), ("*.example",), ("a.example", "b.example")])
def test_SP_022_other_names_beside_the_uri(hall: Hall, role: str, dns: tuple[str, ...]) -> None:
    accepted(hall, role, hall.domain.svid("/peer", dns=dns))


@both_roles
def test_SP_024_subjects_and_critical_names(hall: Hall, role: str) -> None:
    accepted(hall, role, hall.domain.svid("/peer", subject="", san_critical=True))
    accepted(hall, role, hall.domain.svid("/peer", subject="peer", san_critical=False))
    accepted(hall, role, hall.domain.svid("/peer", subject="peer", san_critical=True))


@both_roles
@pytest.mark.parametrize("usage", ["key_encipherment", "key_agreement", "content_commitment"])
def test_SP_030_further_key_usages_are_allowed(hall: Hall, role: str, usage: str) -> None:
    accepted(hall, role, hall.domain.svid("/peer", usages=(SIGN, usage)))


@both_roles
@pytest.mark.parametrize("extended", [None, (CLIENT, SERVER), (SERVER, CLIENT, CODE)])
def test_SP_031_extended_key_usage_is_optional(hall: Hall, role: str, extended: Any) -> None:
    accepted(hall, role, hall.domain.svid("/peer", extended=extended))


@both_roles
def test_SP_025_signers_with_and_without_an_id(hall: Hall, role: str) -> None:
    accepted(hall, role, hall.domain.svid("/peer", signers=[{"uris": None}]))
    accepted(hall, role, hall.domain.svid("/peer", signers=[{"uris": ("spiffe://example.org",)}]))


@both_roles
def test_SP_029_signers_with_and_without_crl_sign(hall: Hall, role: str) -> None:
    accepted(hall, role, hall.domain.svid("/peer", signers=[{"usages": ("key_cert_sign",)}]))
    usages = ("key_cert_sign", "crl_sign", "digital_signature")
    accepted(hall, role, hall.domain.svid("/peer", signers=[{"usages": usages}]))


@both_roles
def test_SP_032_unknown_extensions_that_are_not_critical(hall: Hall, role: str) -> None:
    accepted(hall, role, hall.domain.svid("/peer", unknown="plain"))
    accepted(hall, role, hall.domain.svid("/peer", signers=[{"unknown": "plain"}]))


@both_roles
def test_SP_032_path_length_as_long_as_it_has_to_be(hall: Hall, role: str) -> None:
    accepted(hall, role, hall.domain.svid("/peer", signers=[{"path_length": 1}, {}]))
    accepted(hall, role, hall.domain.svid("/peer", signers=[{"path_length": 0}]))


@both_roles
def test_SP_042_name_constraints_that_are_kept(hall: Hall, role: str) -> None:
    inside = {"dns": ("web.inside.example",)}
    signers: list[Any] = [{"permitted": "dns:inside.example"}]
    accepted(hall, role, hall.domain.svid("/peer", signers=signers, **inside))  # type: ignore[arg-type]


# ---------------------------------------------------------------------------- what the leaf may be
@both_roles
def test_SP_020_021_more_than_one_uri_is_refused(hall: Hall, role: str) -> None:
    refused(hall, role, hall.domain.svid("/peer", uris=(NAME, "spiffe://example.org/admin")))
    refused(hall, role, hall.domain.svid("/peer", uris=(NAME, NAME)))
    refused(hall, role, hall.domain.svid("/peer", uris=(NAME, "https://example.org/")))


@both_roles
def test_SP_020_no_uri_is_refused(hall: Hall, role: str) -> None:
    right = hall.domain.svid("/peer", dns=("peer.example",))
    refused(hall, role, hall.domain.svid("/peer", uris=(), dns=("peer.example",)), right)
    refused(hall, role, hall.domain.svid("/peer", uris=None, subject=NAME))


@both_roles
def test_SP_023_036_an_id_without_a_path_is_refused(hall: Hall, role: str) -> None:
    refused(hall, role, hall.domain.svid("/peer", uris=("spiffe://example.org",)))
    refused(hall, role, hall.domain.svid("/peer", uris=("spiffe://example.org/",)))


@both_roles
def test_SP_024_a_name_that_is_not_critical_needs_a_subject(hall: Hall, role: str) -> None:
    right = hall.domain.svid("/peer", subject="peer", san_critical=False)
    refused(hall, role, hall.domain.svid("/peer", subject="", san_critical=False), right)


@both_roles
def test_SP_026_a_signing_certificate_never_authenticates(hall: Hall, role: str) -> None:
    refused(hall, role, hall.domain.anchor_as_svid())
    usages = (SIGN, "key_cert_sign")
    refused(hall, role, hall.domain.svid("/peer", ca=True, usages=usages, path_length=0))


@both_roles
def test_SP_027_033_a_leaf_with_ca_true_is_refused(hall: Hall, role: str) -> None:
    refused(hall, role, hall.domain.svid("/peer", ca=True))


@both_roles
@pytest.mark.parametrize("usage", ["key_cert_sign", "crl_sign"])
def test_SP_030_034_a_leaf_that_may_sign_is_refused(hall: Hall, role: str, usage: str) -> None:
    right = hall.domain.svid("/peer", usages=(SIGN, "key_agreement"))
    refused(hall, role, hall.domain.svid("/peer", usages=(SIGN, usage)), right)


@both_roles
def test_SP_028_030_key_usage_is_there_critical_and_for_signatures(hall: Hall, role: str) -> None:
    refused(hall, role, hall.domain.svid("/peer", usages=None))
    refused(hall, role, hall.domain.svid("/peer", usage_critical=False))
    refused(hall, role, hall.domain.svid("/peer", usages=("key_agreement",)))


@both_roles
@pytest.mark.parametrize("extended", [(CLIENT,), (SERVER,), (CODE,), (SERVER, CODE)])
def test_SP_031_extended_key_usage_has_both(hall: Hall, role: str, extended: Any) -> None:
    refused(hall, role, hall.domain.svid("/peer", extended=extended))


@both_roles
@pytest.mark.parametrize(
    "uri", ["https://example.org/peer", "urn:uuid:1", "spiffe:example.org/peer", "http:/peer",
            "spiffes://example.org/peer", "peer"],
)  # fmt: skip
def test_SP_035_a_uri_of_another_scheme_is_refused(hall: Hall, role: str, uri: str) -> None:
    refused(hall, role, hall.domain.svid("/peer", uris=(uri,)))


# ------------------------------------------------------------------------------------------- when
@both_roles
@pytest.mark.parametrize("start_s", [-3_700, -DAY, 300, DAY])
def test_SP_032_out_of_its_time(hall: Hall, role: str, start_s: int) -> None:
    refused(hall, role, hall.domain.svid("/peer", start_s=start_s))


@both_roles
def test_SP_032_a_signer_out_of_its_time(hall: Hall, role: str) -> None:
    for start_s in (-2 * DAY, DAY):
        refused(hall, role, hall.domain.svid("/peer", signers=[{"start_s": start_s}]))


# ------------------------------------------------------------------------------------- who signed
def _stranger(hall: Hall) -> Svid:
    return Domain("example.org").svid("/peer")


def _stranger_with_root(hall: Hall) -> Svid:
    stranger = Domain("example.org")
    made = stranger.svid("/peer")
    return Svid(made.id, (*made.chain, *stranger.anchors), made.key)


def _spoilt(hall: Hall) -> Svid:
    return hall.domain.svid("/peer", spoilt=True)


def _below_a_leaf(hall: Hall) -> Svid:
    leaf: Any = {"ca": False, "usages": (SIGN,), "uris": ("spiffe://example.org/mallory",)}
    return hall.domain.svid("/peer", signers=[leaf])


def _below_no_ca(hall: Hall) -> Svid:
    return hall.domain.svid("/peer", signers=[{"ca": False}])


def _below_no_cert_sign(hall: Hall) -> Svid:
    return hall.domain.svid("/peer", signers=[{"usages": ("crl_sign",)}])


def _signer_missing(hall: Hall) -> Svid:
    made = hall.domain.svid("/peer", signers=[{}])
    return Svid(made.id, made.chain[:1], made.key)


def _path_too_long(hall: Hall) -> Svid:
    return hall.domain.svid("/peer", signers=[{"path_length": 0}, {}])


def _unknown_critical(hall: Hall) -> Svid:
    return hall.domain.svid("/peer", unknown="critical")


def _signer_unknown_critical(hall: Hall) -> Svid:
    return hall.domain.svid("/peer", signers=[{"unknown": "critical"}])


def _outside_its_constraint(hall: Hall) -> Svid:
    signers: Any = [{"permitted": "dns:inside.example"}]
    return hall.domain.svid("/peer", signers=signers, dns=("web.outside.example",))


def _sha1(hall: Hall) -> Svid:
    return hall.domain.svid("/peer", hash="sha1")


def _rsa_1024(hall: Hall) -> Svid:
    return hall.domain.svid("/peer", key="RSA-1024")


def _self_signed(hall: Hall) -> Svid:
    made = Domain("example.org", key="P-256").anchor_as_svid()
    return made


@both_roles
@pytest.mark.parametrize(
    "make",
    [_stranger, _stranger_with_root, _spoilt, _below_a_leaf, _below_no_ca, _below_no_cert_sign,
     _signer_missing, _path_too_long, _unknown_critical, _signer_unknown_critical,
     _outside_its_constraint, _sha1, _rsa_1024, _self_signed],
)  # fmt: skip
def test_SP_032_a_path_that_leads_nowhere(
    hall: Hall, role: str, make: Callable[[Hall], Svid]
) -> None:
    refused(hall, role, make(hall))


@both_roles
def test_SP_076_111_a_trust_domain_without_a_bundle_is_refused(hall: Hall, role: str) -> None:
    refused(hall, role, Domain("unknown.test").svid("/peer"))
    for id in ("spiffe://unknown.test/peer", "spiffe://example.org.evil/peer"):
        refused(hall, role, hall.domain.svid("/peer", uris=(id,)))


@both_roles
def test_SP_111_128_bundles_are_never_merged(hall: Hall, role: str) -> None:
    ours, theirs = hall.domain, hall.other
    refused(hall, role, ours.svid("/peer", uris=("spiffe://other.test/peer",)), theirs.svid("/p"))
    refused(hall, role, theirs.svid("/peer", uris=(NAME,)))
    below: Any = [{"uris": ("spiffe://example.org",)}]
    refused(hall, role, theirs.svid("/peer", uris=(NAME,), signers=below))
    # Nor by way of a chain that carries the other domain's root.
    made = theirs.svid("/peer", uris=(NAME,))
    refused(hall, role, Svid(made.id, (*made.chain, *theirs.anchors, *ours.anchors), made.key))


# ------------------------------------------------------------------------------- the conversation
def test_SP_032_nobody_comes_in_without_a_certificate(hall: Hall) -> None:
    assert not hall.harness.meet(None).accepted
    assert hall.harness.meet(hall.domain.svid("/peer")).accepted


def test_SP_032_nobody_uses_the_certificate_of_somebody_else(hall: Hall) -> None:
    """OpenSSL refuses to load such a pair, so the thief is one that knows only the chain."""
    victim = hall.domain.svid("/victim")
    thief = hall.domain.svid("/thief")
    stolen = Svid(victim.id, (thief.chain[0], *victim.chain), thief.key)
    assert hall.harness.meet(stolen).said.strip() == "spiffe://example.org/thief"


@both_roles
def test_SP_032_only_tls_13(hall: Hall, role: str) -> None:
    svid = hall.domain.svid("/peer")
    assert hall.harness.accepts(role, svid) == NAME
    if role == "server":
        assert not hall.harness.meet(svid, tls12=True).accepted
    else:
        assert hall.harness.dials(svid, tls12=True)[0].code == 422
