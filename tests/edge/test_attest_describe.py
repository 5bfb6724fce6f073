"""What `x0 explain program` says is what attestation finds."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from x0tta6bl4.core.identity.selectors import parse
from x0tta6bl4.edge.attest.describe import describe
from x0tta6bl4.wire.errors import NotFound, Refused


def test_a_program_is_described_by_selectors_that_an_entry_may_have() -> None:
    found = {family: (said, why) for family, said, why in describe(os.getpid())}
    assert list(found) == ["unix", "python", "systemd", "docker"]
    said, why = found["unix"]
    assert {f"unix:uid:{os.getuid()}", f"unix:path:{os.path.realpath(sys.executable)}"} < set(said)
    assert why == ""
    for selectors, reason in found.values():
        assert selectors or reason
        for selector in selectors:
            assert str(parse(selector)) == selector


def test_a_program_that_is_not_there_is_said_to_be_so() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    with pytest.raises(NotFound, match="X0-SEL-010"):
        describe(child.pid)


@pytest.mark.skipif(os.getuid() != 0, reason="needs root: to be several users")
def test_who_may_not_look_is_told_so() -> None:
    pid = os.fork()
    if not pid:
        try:
            os.setgid(65_534)
            os.setuid(65_534)
            describe(os.getppid())
        except Refused as error:
            os._exit(7 if error.id == "X0-SEL-011" else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
