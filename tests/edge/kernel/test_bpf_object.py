"""The shipped object is what `make bpf` makes, and Python knows its structs and numbers."""

from __future__ import annotations

import enum
import hashlib
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.edge.kernel.btf import Btf
from x0tta6bl4.core.routing.paths import HOPS_MAX
from x0tta6bl4.edge.kernel import layout
from x0tta6bl4.edge.kernel.layout import LAYOUTS, Layout

ROOT = Path(__file__).resolve().parents[3]
SHIPPED = ROOT / "src/x0tta6bl4/edge/kernel/mesh.bpf.o"
CLANG = "19.1.7"
"""Another one makes other bytes."""


def test_the_checksum_is_that_of_the_object() -> None:
    said, name = SHIPPED.with_suffix("").with_suffix(".bpf.sha256").read_text().split()
    assert (name, said) == (SHIPPED.name, hashlib.sha256(SHIPPED.read_bytes()).hexdigest())


def test_the_shipped_object_is_made_of_these_sources(tmp_path: Path) -> None:
    clang = shutil.which("clang-19")
    if clang is None or shutil.which("llvm-strip-19") is None:
        pytest.skip("needs clang-19 and llvm-19 (packages of the same names)")
    version = subprocess.run([clang, "--version"], capture_output=True, text=True, check=True)
    if f"clang version {CLANG} " not in version.stdout:
        pytest.skip(f"needs clang {CLANG}, byte for byte; this is another 19")
    copy = tmp_path / "elsewhere" / "bpf"
    shutil.copytree(ROOT / "bpf", copy)
    subprocess.run([copy / "build.sh", tmp_path / "out"], check=True, timeout=60)
    made = tmp_path / "out" / SHIPPED.name
    assert made.read_bytes() == SHIPPED.read_bytes(), "make bpf, then commit the object"


@pytest.mark.parametrize("mirror", LAYOUTS, ids=lambda one: one.name)
def test_a_struct_lies_in_python_as_in_the_object(mirror: Layout) -> None:
    size, members = Btf(SHIPPED).struct(mirror.name)
    offset, mine = 0, {}
    for name, form in mirror.fields.items():
        length = Layout("", one=form).size
        mine[name] = (offset, length)
        offset += length
    assert mine == members
    assert offset == mirror.size == size


def test_every_struct_of_ours_has_its_mirror() -> None:
    ours = {name for name in Btf(SHIPPED).structs() if name.startswith("x0_")}
    assert ours == {one.name for one in LAYOUTS}


@pytest.mark.parametrize(
    ("prefix", "mirror"),
    [
        ("X0_", layout.Kind),
        ("X0_", layout.Flag),
        ("X0_FILTER_", layout.FilterFlag),
        ("X0_EVENT_", layout.EventKind),
        ("X0_", layout.Reason),
    ],
)
def test_numbers_are_the_same(prefix: str, mirror: type[enum.IntEnum]) -> None:
    said = _numbers()
    for one in mirror:
        assert said[prefix + str(one.name)] == one.value


def test_every_reason_has_a_name() -> None:
    assert _numbers()["X0_REASONS"] == len(layout.Reason)


def test_single_numbers_are_the_same() -> None:
    said = _numbers()
    for name in ("LAYOUT", "FAN", "PORT", "VERSION", "GOOD", "DIVERTED"):
        assert said["X0_" + name] == getattr(layout, name)
    assert said["X0_LINKS"] == layout.LINKS_MAX
    # Whatever repair core gives has room.
    assert said["X0_SEGMENTS"] == layout.SEGMENTS_MAX == HOPS_MAX


def _numbers() -> dict[str, int]:
    """Every enumerator of layout.h."""
    text = re.sub(r"/\*.*?\*/", "", (ROOT / "bpf/layout.h").read_text(), flags=re.DOTALL)
    found: dict[str, int] = {}
    for body in re.findall(r"enum[\w\s]*\{(.*?)\}", text, flags=re.DOTALL):
        following = 0
        for one in filter(None, map(str.strip, body.split(","))):
            name, _, value = (part.strip() for part in one.partition("="))
            following = int(value, 0) if value else following
            found[name] = following
            following += 1
    return found


def test_names_of_numbers_in_the_object_are_those_of_the_header() -> None:
    said = _numbers()
    for name, value in Btf(SHIPPED).enums().items():
        assert said[name] == value
