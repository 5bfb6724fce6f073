"""The library that wheels bring: made of its source, found first, named, and missed with a hint."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

from tests.kernels.image import ROOT, system_library
from x0tta6bl4.app import settings as cfg
from x0tta6bl4.edge.kernel import libbpf
from x0tta6bl4.edge.kernel.libbpf import KernelRefused, Libbpf

BUILT = ROOT / "build" / "libbpf" / "libbpf.so.1"
BUILD = ROOT / "bpf" / "libbpf" / "build.sh"
WITHIN = Path("x0tta6bl4/edge/kernel/libbpf.so.1")
built = pytest.mark.skipif(not BUILT.exists(), reason="build/libbpf is missing: make libbpf")


@pytest.fixture(scope="module")
def hook() -> ModuleType:
    spec = importlib.util.spec_from_file_location("wheel_hook", BUILD.with_name("wheel.py"))
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_a_tag_names_the_newest_symbols_that_are_asked_for(hook: ModuleType) -> None:
    machine = os.uname().machine
    said = b"\0malloc\0GLIBC_2.9\0GLIBC_2.28\0GLIBC_2.2.5\0libc.so.6\0"
    assert hook.platform(said) == f"manylinux_2_28_{machine}"
    assert hook.platform(b"\0malloc\0libc.musl-x86_64.so.1\0") == f"linux_{machine}"


def test_what_the_wheel_brought_comes_first_and_is_said_if_it_is_no_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Libbpf().about.endswith(" of the system")
    broken = tmp_path / "libbpf.so.1"
    broken.write_bytes(b"nothing")
    monkeypatch.setattr(libbpf, "SHIPPED", broken)
    monkeypatch.setattr(libbpf, "_FROM", libbpf._FROM | {str(broken): "of the wheel"})
    about = Libbpf().about
    assert about.startswith("libbpf 1.")
    assert f" of the system, as the one of the wheel ({broken}: " in about
    monkeypatch.setattr(libbpf, "SYSTEM", "libbpf-of-nobody.so.1")
    with pytest.raises(KernelRefused) as refused:
        Libbpf()
    assert refused.value.id == "X0-KRN-001"
    assert str(broken) in refused.value.what
    assert "libbpf-of-nobody.so.1" in refused.value.what
    assert "apt" not in refused.value.what
    assert "libbpf1" in refused.value.hint


@built
def test_the_library_needs_nothing_but_the_c_library() -> None:
    said = subprocess.run(
        ["ldd", BUILT], capture_output=True, text=True, check=True, timeout=20
    ).stdout
    assert "libc.so.6" in said
    assert "libelf" not in said
    assert "libz" not in said
    assert Libbpf(str(BUILT)).about == "libbpf 1.5 that was named"


@built
@pytest.mark.parametrize(
    ("at", "value", "wanted"),
    [
        (0, b"nothing!", "KRN-004"),
        (4, b"\x01", "KRN-004"),
        (40, b"\xff" * 8, "KRN-004"),
        (60, b"\xff\xfe", "KRN-004"),
        (62, b"\xff\xff", "KRN-004"),
    ],
)
def test_its_reader_refuses_objects_that_point_out_of_their_file(
    tmp_path: Path, at: int, value: bytes, wanted: str
) -> None:
    good = bytearray(libbpf.SHIPPED.with_name("mesh.bpf.o").read_bytes())
    good[at : at + len(value)] = value
    path = tmp_path / "mesh.bpf.o"
    path.write_bytes(good)
    with pytest.raises(KernelRefused, match=wanted):
        Libbpf(str(BUILT)).load(path)
    path.write_bytes(good[: len(good) // 2])
    with pytest.raises(KernelRefused, match=wanted):
        Libbpf(str(BUILT)).load(path)


_LOAD = """
from x0tta6bl4.edge.kernel.libbpf import Libbpf
from x0tta6bl4.edge.kernel.programs import OBJECT
library = Libbpf()
programs, maps = library.load(OBJECT)
print(library.about, len(programs), len(maps))
"""


class Installed:
    """A wheel of this tree in an environment of its own; dependencies are those of the tests."""

    def __init__(self, root: Path) -> None:
        subprocess.run(
            [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", root, ROOT],
            check=True, capture_output=True, timeout=60,
        )  # fmt: skip
        self.wheel = next(root.glob("*.whl"))
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", root / "v"], check=True)
        self.python = root / "v/bin/python"
        self.site = next((root / "v/lib").glob("python*/site-packages"))
        with zipfile.ZipFile(self.wheel) as archive:
            archive.extractall(self.site)
        (self.site / "others.pth").write_text(sysconfig.get_paths()["purelib"])

    def run(self, *command: str, hidden: bool) -> subprocess.CompletedProcess[str]:
        """Run Python there, with or without the system's libbpf and libelf."""
        hide = " && ".join(
            f"mount --bind /dev/null {system_library(name).resolve()}"
            for name in ("libbpf.so.1", "libelf.so.1")
        )
        script = (f"{hide} && " if hidden else "") + 'exec "$@"'
        return subprocess.run(
            ["unshare", "--mount", "sh", "-c", script, "sh", str(self.python), *command],
            capture_output=True, text=True, check=False, timeout=60, cwd="/",
        )  # fmt: skip


@built
@pytest.mark.netns
def test_a_wheel_in_an_empty_environment(tmp_path: Path) -> None:
    installed = Installed(tmp_path)
    assert f"-py3-none-manylinux_2_33_{os.uname().machine}.whl" in installed.wheel.name
    assert (installed.site / WITHIN).read_bytes() == BUILT.read_bytes()
    assert "Redistribution" in (installed.site / WITHIN.with_name("libbpf.LICENSE")).read_text()
    for hidden in (False, True):
        done = installed.run("-c", _LOAD, hidden=hidden)
        assert done.stdout.startswith("libbpf 1.5 of the wheel 7 "), done.stderr
    (installed.site / WITHIN).unlink()
    done = installed.run("-c", _LOAD, hidden=False)
    assert " of the system 7 " in done.stdout, done.stderr
    said = said_by_a_node(installed, tmp_path)
    assert "libbpf1" in said
    assert said.count("X0-KRN-001") == 1


def said_by_a_node(installed: Installed, root: Path) -> str:
    """The one line of a node that is to use the kernel and has no library at all."""
    state = root / "n"
    state.mkdir(mode=0o700)
    settings = cfg.NodeSettings(
        trust_domain="a.mesh", node="n", state_dir=str(state),
        data=cfg.Data(listen="127.0.0.1:0", plane="kernel"), control=cfg.Control(listen=""),
    )  # fmt: skip
    (state / "node.toml").write_text(cfg.dump(settings))
    done = installed.run(
        "-m", "x0tta6bl4", "node", "run", "--config", str(state / "node.toml"), hidden=True
    )
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if "X0-KRN-" in line]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return lines[0]


@pytest.mark.night
@pytest.mark.skipif(not BUILT.exists(), reason="build/libbpf is missing: make libbpf")
def test_it_is_made_the_same_in_another_directory(tmp_path: Path) -> None:
    source = next(BUILT.parent.glob("*.orig.tar.gz"))
    subprocess.run(
        [BUILD, tmp_path], check=True, capture_output=True, timeout=300,
        env={**os.environ, "SOURCE": str(source)},
    )  # fmt: skip
    assert (tmp_path / BUILT.name).read_bytes() == BUILT.read_bytes()


@pytest.mark.night
def test_another_source_than_the_pinned_one_is_not_built(tmp_path: Path) -> None:
    source = tmp_path / "libbpf.tar.gz"
    source.write_bytes(b"anything else")
    done = subprocess.run(
        [BUILD, tmp_path / "out"], capture_output=True, text=True, check=False, timeout=60,
        env={**os.environ, "SOURCE": str(source)},
    )  # fmt: skip
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1].startswith("bpf/libbpf/build.sh: ")
    assert not (tmp_path / "out" / "libbpf.so.1").exists()
