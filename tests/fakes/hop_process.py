"""A data port in a process of its own, to be killed: prints its port, takes its neighbours."""

from __future__ import annotations

import sys

import msgspec

from x0tta6bl4.core.machine import Allowed
from x0tta6bl4.edge.hop.setup import LinkSeal
from x0tta6bl4.runtime.loop.connect import data_port
from x0tta6bl4.runtime.loop.hops import Hops
from x0tta6bl4.runtime.loop.poll import Loop
from x0tta6bl4.wire.ids import NodeName, SpiffeId
from x0tta6bl4.wire.messages import NeighbourItem


def main(name: str, incarnation: str) -> None:
    loop = Loop()
    tcp, _udp = data_port("127.0.0.1", 0)
    hops = Hops(
        loop,
        tcp,
        me=NodeName(name),
        incarnation=int(incarnation),
        maker=LinkSeal,
        admit=lambda previous, node: Allowed(SpiffeId(f"spiffe://mesh.test/node/{node}")),
        on_circuit=lambda sock, previous, target, first: sock.close(),
        on_notice=lambda kind, text: print(kind, text, file=sys.stderr),
    )
    print(tcp.getsockname()[1], flush=True)
    for item in msgspec.json.decode(sys.stdin.readline(), type=list[NeighbourItem]):
        hops.neighbour_set(item)
    print("up", flush=True)
    loop.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
