"""What a TLS connection is set up with: one immutable context per snapshot of SVID and bundle.

TLS 1.3 only, ML-KEM hybrid first, no resumption, no 0-RTT, an ALPN name that both ends must
agree on.  OpenSSL's own idea of a trusted chain is not used: its trust store is empty and its
verify callback asks the judge, inside the handshake, so that a refused peer gets an alert and
neither side has sent or read one byte.

OpenSSL sends two session tickets that its binding can't switch off; nothing is kept for them, so
a client that offers one gets a full handshake and is judged again (tested).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, final

from cryptography import x509
from OpenSSL import SSL, crypto

from x0tta6bl4.core.identity.rules import Expect
from x0tta6bl4.core.machine import Denied
from x0tta6bl4.edge.tls.binding import lib
from x0tta6bl4.edge.tls.judge import Judging
from x0tta6bl4.edge.tls.x509 import Svid, load_any_key
from x0tta6bl4.wire.errors import BadInput

ALPN_LINK: Final = "x0-link/1"
ALPN_CIRCUIT: Final = "x0-circuit/1"
ALPN_AUTHORITY: Final = "x0-authority/1"

GROUP_PQ: Final = "X25519MLKEM768"
GROUPS: Final = (GROUP_PQ, "X25519")
"""Default: hybrid first, classical for those that can't."""
GROUPS_PQ: Final = (GROUP_PQ,)
"""`require_pq`: nothing else is accepted."""

_PARTIAL_WRITE: Final = 1  # Would make a write of 64 KiB emit one record of 16.


@final
class TlsContext:
    """Settings of TLS connections, for either role; never changed after it was made.

    Args:
        svid: what is presented; None: nothing (a client that enrols).
        judge: decides about the peer's chain.
        alpn: names offered, or accepted, in order of preference.
        expect: who the peer has to be.
        groups: key exchange, in order of preference.
        demand: server role: refuse a client without a certificate; if False, such a client gets
            the verdict Denied("no certificate") and the caller decides what it may do.  One that
            presents a certificate is judged in any case.
        staple: server role: gives the OCSP response about our SVID, DER, for who asks; empty: there
            is none.
        status: client role: asks for such a response, and for the verdict on (leaf, its CA,
            response or empty), DER; None: it may go on.
        demand_alpn: whether both ends must agree on a name, so that at least one is needed here
            (between our own processes); if not, a peer without ALPN is taken too.
    Raises:
        BadInput: a chain and key that don't fit, or an unknown group.
    """

    __slots__ = (
        "_ssl",
        "alpn",
        "armed",
        "demand",
        "demand_alpn",
        "expect",
        "judge",
        "staple",
        "status",
        "svid",
    )

    def __init__(
        self,
        svid: Svid | None,
        judge: Judging,
        alpn: Sequence[str],
        expect: Expect,
        groups: Sequence[str] = GROUPS,
        *,
        demand: bool = True,
        demand_alpn: bool = True,
        staple: Callable[[], bytes] | None = None,
        status: Callable[[bytes, bytes, bytes], Denied | None] | None = None,
    ) -> None:
        if not alpn and demand_alpn:
            raise BadInput("X0-TLS-011", "no ALPN name given")
        self.svid = svid
        self.judge = judge
        self.alpn = tuple(name.encode() for name in alpn)
        self.expect = expect
        self.demand = demand
        self.demand_alpn = demand_alpn
        self.staple = staple
        self.status = status
        self.armed = False
        """Whether `Engine` has put its callbacks in."""
        self._ssl = context = SSL.Context(SSL.TLS_METHOD)
        context.set_min_proto_version(SSL.TLS1_3_VERSION)
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        context.set_options(SSL.OP_NO_TICKET)
        if self.alpn:
            context.set_alpn_protos(list(self.alpn))
        handle: Any = context._context
        lib.SSL_CTX_clear_mode(handle, _PARTIAL_WRITE)
        lib.SSL_CTX_set_mode(handle, lib.SSL_MODE_RELEASE_BUFFERS)
        if lib.SSL_CTX_set1_curves_list(handle, ":".join(groups).encode()) != 1:
            lib.ERR_clear_error()
            raise BadInput("X0-TLS-012", f"unknown groups {groups!r}", "see TlsContext")
        if svid is not None:
            self._present(svid)

    def _present(self, svid: Svid) -> None:
        try:
            leaf, *others = map(x509.load_der_x509_certificate, svid.chain)
            self._ssl.use_certificate(leaf)
            for other in others:
                self._ssl.add_extra_chain_cert(other)
            load_any_key(svid.key)  # Refuses what is not in the list of kinds.
            key = crypto.load_privatekey(crypto.FILETYPE_ASN1, svid.key)
            # pyOpenSSL's own call knows no ML-DSA keys.
            if lib.SSL_CTX_use_PrivateKey(self._ssl._context, key._pkey) != 1:
                raise ValueError("key of another kind than the certificate's")
            self._ssl.check_privatekey()
        except (SSL.Error, crypto.Error, ValueError) as error:
            lib.ERR_clear_error()
            raise BadInput(
                "X0-TLS-013", "chain and key of the SVID don't fit", str(error)[:80]
            ) from None

    @property
    def ssl(self) -> SSL.Context:
        """The OpenSSL context, for `Engine`."""
        return self._ssl
