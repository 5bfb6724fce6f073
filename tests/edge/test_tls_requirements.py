"""Requirements that issuer and verifier keep in one place: what is issued, and the one judge.

Source: SPIFFE-ID.md section 3.2, X509-SVID.md sections 2 to 5.
"""

from __future__ import annotations

import pytest
from cryptography import x509

from tests.fakes.ca import DOMAIN, FakeCa
from x0tta6bl4.core.identity.rules import ANYBODY, MESH, SPIFFE, Rules
from x0tta6bl4.core.machine import Allowed
from x0tta6bl4.edge.tls.impostors import IMPOSTORS
from x0tta6bl4.edge.tls.judge import Judge, allow_all
from x0tta6bl4.edge.tls.recipes import Recipe, bake

both_rules = pytest.mark.parametrize("rules", [MESH, SPIFFE], ids=["mesh", "spiffe"])


def test_SP_018_id_and_key_are_in_the_signed_part() -> None:
    ca = FakeCa()
    svid = ca.svid("web")
    leaf = x509.load_der_x509_certificate(svid.chain[0])
    signed = leaf.tbs_certificate_bytes
    assert svid.id.encode() in signed
    for at in (signed.index(svid.id.encode()), len(signed) // 2):
        changed = bytearray(svid.chain[0])
        changed[svid.chain[0].index(signed) + at] ^= 1
        judged = ca.judge().judge([bytes(changed)], ANYBODY)
        assert type(judged.verdict) is not Allowed
    assert type(ca.judge().judge(svid.chain, ANYBODY).verdict) is Allowed


@both_rules
def test_SP_026_a_signing_certificate_never_authenticates(rules: Rules) -> None:
    ca = FakeCa()
    judge = Judge(DOMAIN, [ca.issuer.certificate], allow_all, ca.clock, rules)
    (case,) = (one for one in IMPOSTORS if one.name == "signing certificate as leaf")
    made = case.make(ca.issuer, ca.now_unix_s)
    assert type(judge.judge(made.chain, ANYBODY).verdict) is not Allowed
    twin = case.twin(ca.issuer, ca.now_unix_s)
    assert type(judge.judge(twin.chain, ANYBODY).verdict) is Allowed


@both_rules
def test_SP_022_names_of_other_kinds_are_allowed(rules: Rules) -> None:
    ca = FakeCa()
    judge = Judge(DOMAIN, [ca.issuer.certificate], allow_all, ca.clock, rules)
    above = (ca.issuer.key, ca.issuer.certificate)
    made = bake(Recipe(dns=("web.example", "*.example")), DOMAIN, ca.now_unix_s, above)
    assert type(judge.judge(made.chain, ANYBODY).verdict) is Allowed
