"""What stands in the way of loading programs is said in one line, with what to do."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from x0tta6bl4.edge.kernel.libbpf import KernelRefused, Libbpf, is_bpffs
from x0tta6bl4.edge.kernel.programs import OBJECT, VERDICTS, Programs, is_veth

pytestmark = pytest.mark.netns


def test_without_the_library() -> None:
    with pytest.raises(KernelRefused, match="X0-KRN-001.*libbpf1.*userspace"):
        Libbpf("libbpf-of-nobody.so.1")


def test_what_is_no_object(tmp_path: Path) -> None:
    path = tmp_path / "mesh.bpf.o"
    path.write_bytes(b"nothing")
    with pytest.raises(KernelRefused, match="X0-KRN-004"):
        Libbpf().load(path)


def test_what_the_verifier_refuses_is_said_in_its_words(tmp_path: Path) -> None:
    path = tmp_path / "mesh.bpf.o"
    elf = bytearray(OBJECT.read_bytes())
    # The first instruction of the XDP program becomes a read of a register that has no value.
    start = _offset(elf, b"xdp")
    elf[start : start + 8] = struct.pack("<BBhi", 0xBF, 0x96, 0, 0)
    path.write_bytes(elf)
    with pytest.raises(KernelRefused, match="X0-KRN-003.*x0_ingress.*R9 !read_ok"):
        Libbpf().load(path)
    with pytest.raises(KernelRefused, match="X0-KRN-003"):
        Programs.open(Libbpf(), tmp_path / "pins", path)
    assert not (tmp_path / "pins").exists(), "nothing is left of it"
    loaded, maps = Libbpf().load(path, without=["x0_ingress"])
    assert "x0_ingress" not in loaded
    assert {one.name for one in maps} > {"x0_links", "x0_states"}
    for descriptor in (*loaded.values(), *(one.fd for one in maps)):
        os.close(descriptor)


def test_a_kernel_without_timers_gets_all_but_verdicts(tmp_path: Path) -> None:
    path = tmp_path / "mesh.bpf.o"
    elf = bytearray(OBJECT.read_bytes())
    start = _offset(elf, b"syscall")
    elf[start : start + 8] = struct.pack("<BBhi", 0xBF, 0x96, 0, 0)
    path.write_bytes(elf)
    programs = Programs.open(Libbpf(), tmp_path / "pins", path)
    assert VERDICTS not in programs.programs
    assert "user space" in programs.without_verdicts
    programs.remove()


def _offset(elf: bytes | bytearray, wanted: bytes) -> int:
    table = struct.unpack_from("<Q", elf, 40)[0]
    size, count, names = struct.unpack_from("<HHH", elf, 58)
    heads = [struct.unpack_from("<IIQQQQ", elf, table + size * index) for index in range(count)]
    text = heads[names][4]
    found: int = next(head[4] for head in heads if elf[text + head[0] :].startswith(wanted + b"\0"))
    return found


_NOBODY = """
import os, sys
from pathlib import Path
from x0tta6bl4.edge.kernel.libbpf import KernelRefused, Libbpf
from x0tta6bl4.edge.kernel.programs import OBJECT, Programs
data = OBJECT.read_bytes()
os.setgid(65534); os.setuid(65534)
for what in (lambda: Libbpf().load(Path(sys.argv[1])), lambda: Programs.open(Libbpf(), Path("/p"))):
    try:
        what()
    except KernelRefused as error:
        print(error)
"""


def test_without_rights(tmp_path: Path) -> None:
    copy = tmp_path / "mesh.bpf.o"
    copy.write_bytes(OBJECT.read_bytes())
    for directory in (copy, *copy.parents[:3]):
        directory.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", _NOBODY, str(copy)],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    rights, pins = done.stdout.splitlines()
    assert rights.startswith("X0-KRN-002: this process may not load programs")
    assert "CAP_BPF" in rights
    assert pins.startswith("X0-KRN-006: /p can't be made")


def test_pins_get_a_file_system_of_their_own(tmp_path: Path) -> None:
    pins = tmp_path / "pins"
    programs = Programs.open(Libbpf(), pins)
    assert is_bpffs(pins)
    assert {path.name for path in pins.glob("x0_*")} == {*programs.programs, *programs.maps}
    programs.remove()
    assert not pins.exists()


def test_what_programs_take_is_counted_when_the_kernel_is_told_to(tmp_path: Path) -> None:
    programs = Programs.open(Libbpf(), tmp_path / "pins")
    switch = Path("/proc/sys/kernel/bpf_stats_enabled")
    before = switch.read_text()
    switch.write_text("1")
    try:
        programs.run("x0_ingress", bytes(64), repeat=10)
    finally:
        switch.write_text(before)
    spent_ns, runs = programs.library.spent(programs.programs["x0_ingress"])
    assert runs == 10
    assert 0 < spent_ns < 10_000_000
    programs.remove()


def test_which_interfaces_are_veth() -> None:
    assert not is_veth(1)
    assert not is_veth(1 << 20)
