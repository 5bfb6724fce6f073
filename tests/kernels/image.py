"""What a guest boots from: a kernel out of a Debian package, and an archive with Python and us.

The archive holds exactly the files that `guest.py` imports on this machine, at the same paths, and
the libraries that they need: no disk, no network, no other program.  libbpf is the one of
`make libbpf` if that was run, else the system's.

Source: Documentation/driver-api/early-userspace/buffer-format.rst of Linux (cpio, newc).
"""

from __future__ import annotations

import gzip
import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from x0tta6bl4.edge.kernel.libbpf import SHIPPED

ROOT = Path(__file__).resolve().parents[2]
MADE = ROOT / "build" / "libbpf" / "libbpf.so.1"
_LIST = """
import sys
sys.path[:0] = sys.argv[1:]
import tests.kernels.guest
for module in list(sys.modules.values()):
    if getattr(module, "__file__", None):
        print(module.__file__)
"""
_CONSOLE = (5, 1)


def initramfs(instead: dict[Path, bytes] | None = None) -> bytes:
    """A compressed archive whose /init is `guest.py`.

    Args:
        instead: contents of files that are to be others than here.
    """
    paths = [str(ROOT / "src"), str(ROOT), *_site_packages()]
    python = os.path.realpath(sys.executable)
    listed = subprocess.run(
        [python, "-S", "-E", "-c", _LIST, *paths],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    files = {Path(line) for line in listed.stdout.splitlines()}
    files |= set((ROOT / "src/x0tta6bl4/edge/kernel").glob("mesh.bpf.*"))
    files |= _libraries([Path(python), *(one for one in files if ".so" in one.name)])
    contents = {path: path.read_bytes() for path in files} | (instead or {})
    if MADE.exists():
        contents[SHIPPED] = MADE.read_bytes()
    contents[Path(python)] = Path(python).read_bytes()
    init = f"#!{python} -SEB\nimport sys\nsys.path[:0] = {paths!r}\n"
    contents[Path("/init")] = (init + "from tests.kernels.guest import main\nmain()\n").encode()
    return gzip.compress(_archive(contents), 1, mtime=0)


def _site_packages() -> list[str]:
    return [path for path in sys.path if path.endswith("site-packages")]


def _libraries(users: Iterable[Path]) -> set[Path]:
    """Shared libraries of these files, the loader, and libbpf, at the paths they are asked by."""
    found: set[Path] = set()
    todo = [*users]
    if not MADE.exists():
        todo.append(system_library("libbpf.so.1"))
        found.add(todo[-1])
    for path in todo:
        said = subprocess.run(
            ["ldd", path], capture_output=True, text=True, check=False, timeout=20
        )
        found |= {Path(one) for one in re.findall(r"(/\S+) \(0x", said.stdout)}
    return found


def system_library(name: str) -> Path:
    """Where the loader of this machine finds a library."""
    cache = subprocess.run(
        ["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=True, timeout=20
    )
    found = re.search(rf"{re.escape(name)} .*=> (\S+)", cache.stdout)
    assert found, f"{name} is missing (package libbpf1)"
    return Path(found[1])


def _archive(contents: dict[Path, bytes]) -> bytes:
    out = bytearray()
    made: set[Path] = set()
    for name in ("/proc", "/sys", "/dev", "/pins"):
        _entry(out, Path(name), stat.S_IFDIR | 0o755, b"")
        made.add(Path(name))
    _entry(out, Path("/dev/console"), stat.S_IFCHR | 0o600, b"", _CONSOLE)
    for path, content in sorted(contents.items()):
        for parent in reversed(path.parents[:-1]):
            if parent not in made:
                _entry(out, parent, stat.S_IFDIR | 0o755, b"")
                made.add(parent)
        _entry(out, path, stat.S_IFREG | 0o755, content)
    _entry(out, Path("/TRAILER!!!"), 0, b"")
    return bytes(out)


def _entry(
    out: bytearray, path: Path, mode: int, content: bytes, device: tuple[int, int] = (0, 0)
) -> None:
    name = str(path)[1:].encode() + b"\0"
    fields = (len(out), mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(name), 0)
    out += b"070701" + b"".join(b"%08x" % field for field in fields) + name
    out += bytes(-len(out) % 4) + content
    out += bytes(-len(out) % 4)


def kernel(package: Path, into: Path) -> Path:
    """The compressed kernel of a Debian package."""
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as one:
        done = subprocess.run(
            ["tar", "-x", "-C", into, "--wildcards", "./boot/vmlinuz-*"],
            stdin=one.stdout, check=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0
    version = package.name.removeprefix("linux-image-").split("_")[0]
    return into / "boot" / f"vmlinuz-{version}"
