"""The attack set against the backend of the standard library: nothing gets through there either."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.edge.attack import cases
from tests.edge.attack.attacker import Attacker
from tests.edge.attack.cases import ROLES, STDLIB_SAYS, Outcome
from tests.fakes.ca import ALPN, FakeCa, FakeClock
from tests.fakes.tls_twin import TlsTwin
from x0tta6bl4.core.identity.rules import WORKLOAD
from x0tta6bl4.edge.tls.aio import SslRefused
from x0tta6bl4.edge.tls.context import TlsContext
from x0tta6bl4.edge.tls.impostors import IMPOSTORS, Impostor
from x0tta6bl4.edge.tls.recipes import Presented
from x0tta6bl4.edge.tls.stdlib import StdlibContext

PRESENTABLE = [one for one in IMPOSTORS if one.presentable and one.name != "Brainpool key"]
"""OpenSSL 3.0 can't present the one that is left out."""
each_impostor = pytest.mark.parametrize("impostor", PRESENTABLE, ids=lambda i: i.name)
each_role = pytest.mark.parametrize("role", ROLES)


@pytest.fixture(scope="module")
def ca() -> FakeCa:
    """At the real time of day: the standard library has no other."""
    return FakeCa(clock=FakeClock(time.clock_gettime(time.CLOCK_REALTIME)))


def present(ca: FakeCa, impostor: Impostor, role: str, presented: Presented) -> Outcome:
    context = TlsContext(ca.svid("web"), ca.judge(), [ALPN], impostor.expect)
    victim: Any = TlsTwin(context, role == "client", (ca.issuer.certificate,))
    attacker = Attacker(role == "server", presented)
    return cases.meet(victim, attacker, role, impostor.name, (impostor.reason,))


@each_role
@each_impostor
def test_an_impostor_is_refused_and_its_twin_is_not(
    ca: FakeCa, impostor: Impostor, role: str
) -> None:
    wrong = present(ca, impostor, role, impostor.make(ca.issuer, ca.now_unix_s))
    assert not wrong.accepted
    # OpenSSL asks first, and sometimes has another reason.
    assert wrong.reason == STDLIB_SAYS.get(impostor.name, impostor.reason)
    assert present(ca, impostor, role, impostor.twin(ca.issuer, ca.now_unix_s)).accepted


def test_most_impostors_get_past_openssl_and_are_refused_by_the_judge(ca: FakeCa) -> None:
    judged = [
        impostor.name
        for impostor in PRESENTABLE
        if present(ca, impostor, "client", impostor.make(ca.issuer, ca.now_unix_s)).reason
        == impostor.reason
    ]
    assert len(judged) > len(PRESENTABLE) / 2


def test_new_settings_are_made_when_the_svid_changes_and_only_then(ca: FakeCa) -> None:
    contexts = [TlsContext(ca.svid("web"), ca.judge(), [ALPN], WORKLOAD) for _ in range(2)]
    shell = StdlibContext(lambda: contexts[0], lambda: [ca.issuer.certificate])
    first = shell.settings(True)
    assert shell.settings(True) is first
    assert shell.settings(False) is not first
    contexts.reverse()
    assert shell.settings(True) is not first


def test_without_an_svid_there_is_no_handshake(ca: FakeCa) -> None:
    def nothing() -> TlsContext:
        raise SslRefused("no such SVID")

    import socket

    shell = StdlibContext(nothing, tuple)
    here, there = socket.socketpair()
    with here, there, pytest.raises(SslRefused):
        shell.wrap_socket(here)
