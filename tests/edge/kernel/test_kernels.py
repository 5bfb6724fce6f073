"""What `make kernels` boots: its checks hold here, its archive is whole, its breaks fit."""

from __future__ import annotations

import gzip
import struct
import sys
from pathlib import Path

import pytest

from tests.edge.kernel.kernel_world import World
from tests.kernels import __main__ as kernels
from tests.kernels import guest, image, needs
from x0tta6bl4.edge.kernel.programs import OBJECT


@pytest.mark.netns
@pytest.mark.parametrize("name", guest.CHECKS)
def test_what_guests_check_holds_here(world: World, name: str) -> None:
    guest.CHECKS[name](world)


def test_each_break_fits_the_sources_of_now() -> None:
    for name, one in kernels.BREAKS.items():
        assert (image.ROOT / one.path).read_text().count(one.old) == 1, name
    assert kernels.BREAKS.keys() >= guest.CHECKS.keys()


def test_the_archive_has_python_our_object_and_an_init() -> None:
    changed = Path("/etc/changed")
    archive = gzip.decompress(image.initramfs({changed: b"instead"}))
    assert archive.startswith(b"070701")
    for path in (Path("/init"), Path(sys.executable).resolve(), OBJECT, changed):
        assert str(path)[1:].encode() + b"\0" in archive
    assert OBJECT.read_bytes() in archive
    assert b"libbpf.so.1\0" in archive


def test_a_guest_is_red_for_a_failed_check_and_for_its_death() -> None:
    good = ["GUEST 6.1", "PASS filter 3 ms", "DONE"]
    assert not kernels.Guest("6.1", good, 1.0, 0).bad
    assert kernels.Guest("6.1", [*good, "FAIL verdict: late"], 1.0, 0).bad
    assert kernels.Guest("6.1", good[:-1], 1.0, 0).bad


def test_kernels_that_are_not_booted_are_named_with_what_was_found() -> None:
    assert needs.oldest() == {"xdp": (5, 8), "tc": (5, 8), "syscall": guest.TIMERS}
    assert (image.ROOT / "docs/kernels.md").read_text().endswith("\n" + needs.page())


def test_what_numbers_can_not_tell_is_not_passed_over(tmp_path: Path) -> None:
    found = needs.sections()
    path = tmp_path / "mesh.bpf.o"
    for place, wanted in (
        (found["xdp"].content, KeyError),  # A helper that nobody knows.
        (found[".BTF.ext"].content, AssertionError),  # A relocation against the kernel's types.
    ):
        changed = bytearray(place)
        if wanted is KeyError:
            changed[:8] = struct.pack("<BBhi", 0x85, 0, 0, 999)
        else:
            changed[28:32] = struct.pack("<I", 16)
        path.write_bytes(OBJECT.read_bytes().replace(place, bytes(changed), 1))
        with pytest.raises(wanted):
            needs.oldest(path)
