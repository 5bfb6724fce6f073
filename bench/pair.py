#!/usr/bin/env python3
"""A real mesh of two nodes (or three, with one relay between) for the pair benchmark.

    bench/pair.py --listen PORT --target PORT --dir DIR [--relays N] [--sessions own]

Takes plain TCP on 127.0.0.1:LISTEN and carries it, with everything switched on (authority, agents,
attestation of caller and listener, policy, hellos, hybrid key exchange), to 127.0.0.1:TARGET.
Give it to a harness of proxy pairs as one command; it runs until SIGTERM.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import signal
import sys
from pathlib import Path

from x0tta6bl4.app import settings as cfg
from x0tta6bl4.app.mesh import Mesh, Plan
from x0tta6bl4.app.operator import Operator
from x0tta6bl4.wire.authority import Entry
from x0tta6bl4.wire.records import Name

DOMAIN = "bench.mesh"
ENDS = (signal.SIGTERM, signal.SIGINT)


def main() -> int:
    """Start, serve, stop."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--listen", type=int, required=True)
    parser.add_argument("--target", type=int, required=True)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--relays", type=int, default=0, choices=(0, 1, 2))
    parser.add_argument("--sessions", default="shared", choices=("shared", "own"))
    options = parser.parse_args()
    relays = [f"r{i}" for i in range(options.relays)]
    nodes = ["a", *relays, "b"]
    mesh = Mesh(
        options.dir / "mesh",
        Plan(
            trust_domain=DOMAIN,
            nodes=tuple(nodes),
            links=tuple(itertools.pairwise(nodes)),
            listeners=(
                (
                    "a",
                    cfg.Listen(
                        address=f"127.0.0.1:{options.listen}",
                        kind="plain",
                        name="target",
                        sessions=options.sessions,
                    ),
                ),
            ),
        ),
    )
    mesh.lay_out()
    try:
        mesh.start("authority")
        operator = Operator(mesh.state("authority"))
        mesh.wait("authority", operator.is_serving, "the authority")
        uid = f"unix:uid:{os.getuid()}"
        operator.create_entries(
            [
                Entry(
                    id=f"spiffe://{DOMAIN}/target",
                    node="b",
                    selectors=(uid,),
                    address=f"127.0.0.1:{options.target}",
                ),
                Entry(id=f"spiffe://{DOMAIN}/load", node="a", selectors=(uid,)),
            ]
        )
        operator.create_name(
            Name("target", f"spiffe://{DOMAIN}/target", (f"spiffe://{DOMAIN}/load",))
        )
        for node in nodes:
            operator.enrol_file(node, mesh.state(node) / "enrol-token")
            mesh.start(node)
        signal.pause()
    except KeyboardInterrupt:
        pass
    finally:
        for number in ENDS:
            signal.signal(number, signal.SIG_IGN)
        mesh.stop()
        shutil.rmtree(options.dir / "mesh", ignore_errors=True)
    return 0


if __name__ == "__main__":
    for end in ENDS:  # Not blocked: the processes of the mesh would inherit that.
        signal.signal(end, signal.default_int_handler)
    sys.exit(main())
