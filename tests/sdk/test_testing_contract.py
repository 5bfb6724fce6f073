"""The Workload API for tests says what the real one says of the same identities."""

from __future__ import annotations

import json
from typing import Any

from x0tta6bl4.edge.bundle.document import encode_jwks, parse
from x0tta6bl4.edge.workload_api import answers, schema
from x0tta6bl4.edge.workload_api.words import Snapshot, Svid, TrustBundle
from x0tta6bl4.sdk.testing.domain import Domain
from x0tta6bl4.sdk.testing.workload_api import WorkloadApi
from x0tta6bl4.wire.ids import TrustDomain


def bundle_of(domain: Domain) -> TrustBundle:
    """As the agent makes it, from the document that the authority would publish."""
    document = parse(domain.document(), TrustDomain(domain.name))
    return TrustBundle(domain.name, document.x509, encode_jwks(document))


def snapshot_of(api: WorkloadApi, *federated: Domain) -> Snapshot:
    return Snapshot(
        tuple(Svid(svid.id, svid.chain, svid.key, svid.hint) for svid in api.svids),
        bundle_of(api.domain),
        tuple(map(bundle_of, federated)),
        (api.domain.crl(api.svids[0]),),
    )


def keys_of(message: Any) -> dict[str, list[Any]]:
    found = {name: json.loads(data)["keys"] for name, data in message.bundles.items()}
    return {name: sorted(keys, key=lambda one: one["kid"]) for name, keys in found.items()}


def test_it_answers_as_the_real_one_does() -> None:
    other = Domain("other.test")
    with WorkloadApi() as api:
        api.issue("/web", hint="first")
        api.issue("/db", signers=[{}])
        api.domain.rotate_anchor()
        api.domain.rotate_token_key("RS256")
        api.federate(other)
        snapshot = snapshot_of(api, other)
        api._crl = snapshot.crl
        for name in ("FetchX509SVID", "FetchX509Bundles", "FetchJWTBundles"):
            ours = api.answer(name, None)
            real = schema.METHODS[name][1].FromString(answers.STREAMS[name](snapshot))
            if name == "FetchJWTBundles":
                assert keys_of(ours) == keys_of(real)
            else:
                assert ours == real
