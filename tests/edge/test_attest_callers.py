"""Callers of a Unix socket are told by the kernel, outside of what they send."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from x0tta6bl4.edge.attest.peer import Peer, PeerAttestor
from x0tta6bl4.edge.attest.process import Needs

CALLER = "import socket,sys\ns=socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\ninput()\n"


def test_SP_097_a_caller_is_known_by_its_process_not_by_its_words(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        caller = subprocess.Popen([sys.executable, "-c", CALLER, path], stdin=subprocess.PIPE)
        with caller, listening.accept()[0] as sock:
            attestor = PeerAttestor()
            peer = attestor.meet(sock)
            assert isinstance(peer, Peer)
            assert (peer.pid, peer.uid, peer.gid) == (caller.pid, os.getuid(), os.getgid())
            found = peer.attributes(Needs(path=True))
            assert getattr(found, "path", "") == os.path.realpath(sys.executable)
            caller.communicate(b"\n")
            assert not hasattr(peer.attributes(Needs(path=True)), "path")
            peer.close()
            attestor.close()
