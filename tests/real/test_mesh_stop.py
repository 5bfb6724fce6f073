"""A mesh that is ended is gone: soon, and nothing of it is left running."""

from __future__ import annotations

import time

from tests.real.lab import Lab, Service, Shape, running, scratch
from x0tta6bl4.app.mesh import STOP_S, wait_for

SHAPE = Shape(services=(Service("web", ("n3",), ("shop",)),), callers=(("n1", "shop"),))
SOON_S = STOP_S * 0.6
"""Who waits for anything waits until STOP_S; by itself a mesh takes half a second of two cores."""


def test_a_mesh_ends_soon_and_leaves_nothing_whenever_it_is_ended() -> None:
    with scratch("stop") as root, Lab(root, SHAPE) as lab:
        mesh = lab.mesh
        mesh.lay_out()
        mesh.start("authority")
        mesh.wait("authority", lab.operator.is_serving, "the authority")
        for node in lab.shape.nodes:
            lab.operator.enrol_file(node, mesh.state(node) / "enrol-token")
            mesh.start(node)
        # Agents that have just begun to start a proxy.
        wait_for(lambda: any(mesh.pids(node) for node in lab.shape.nodes), "the first agent")
        _stop(lab)
        mesh.start("authority")
        for node in lab.shape.nodes:
            mesh.start(node)
        lab.wait_ready(*lab.shape.nodes)
        _stop(lab)


def _stop(lab: Lab) -> None:
    began = time.monotonic()
    lab.mesh.stop()
    took = time.monotonic() - began
    assert running(lab.mesh.root) == []
    assert took < SOON_S, took
