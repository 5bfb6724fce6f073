"""Boots kernels under qemu and tries the programs of `bpf/` on them: `make kernels`.

    python -m tests.kernels                     Debian's cloud kernels 5.10, 6.1, 6.12 and 6.18
    python -m tests.kernels --only 6.12         one of them
    python -m tests.kernels --broken            one thing broken for each check: all must turn red
    python -m tests.kernels VMLINUZ...          kernels that are here

Packages are fetched by apt with lists of its own, once, into build/kernels.  A guest that dies
before its last line is booted once more, which is counted and printed.  What a guest says is never
tried again.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from tests.kernels import image, needs

BUILD: Final = image.ROOT / "build" / "kernels"
PAGE: Final = image.ROOT / "docs" / "kernels.md"
RING: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"
SUITES: Final = ("bullseye-security", "bookworm", "bookworm-backports", "trixie-backports")
WANTED: Final = ("5.10", "6.1", "6.12", "6.18")
BOOT_S: Final = 240
MACHINE: Final = (
    "qemu-system-x86_64 -M microvm,isa-serial=on,acpi=off,rtc=on -accel tcg"
    " -m 512 -smp 1 -nodefaults -no-reboot -display none -serial stdio"
)
PROCESSOR: Final = "max,la57=off"
WITHOUT: Final = {"6.12": ",cx16=off"}
"""CMPXCHG16B: qemu 7.2 spoils the flags with it, and of 9 boots of 6.12, whose allocator uses it, 6
died. 6.18 can't make a bpf_timer without."""
LINE: Final = (
    "console=ttyS0 quiet loglevel=3 panic=-1 reboot=t nokaslr mitigations=off tsc=unstable"
    " random.trust_cpu=on"
)


class Guest(NamedTuple):
    """What one kernel said."""

    kernel: str
    lines: list[str]
    seconds: float
    retries: int

    @property
    def bad(self) -> list[str]:
        """Why it is red; empty: it is not."""
        failed = [line for line in self.lines if line.startswith("FAIL ")]
        return failed or (
            [] if "DONE" in self.lines else ["it died: " + " / ".join(self.lines[-3:])]
        )


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kernels", nargs="*", type=Path)
    parser.add_argument("--only", action="append", choices=WANTED)
    parser.add_argument("--broken", action="store_true", help="needs clang; one kernel")
    parser.add_argument("--fetch", action="store_true", help="only fetch kernels")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="write docs/kernels.md")
    options = parser.parse_args()
    missing = [tool for tool in ("qemu-system-x86_64", "dpkg-deb") if not shutil.which(tool)]
    if missing:
        print(
            f"kernels: {' and '.join(missing)} missing (package qemu-system-x86)", file=sys.stderr
        )
        return 3
    start = time.monotonic()
    if options.broken:
        return turned_red(fetched((options.only or ["6.1"])[0]), options.jobs)
    kernels = options.kernels or [fetched(one) for one in options.only or WANTED]
    if options.fetch:
        return 0
    with archived({}) as archive, concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        guests = list(pool.map(lambda one: boot(one, archive), kernels))
    for guest in guests:
        told(guest)
    red = sum(bool(guest.bad) for guest in guests)
    retries = sum(guest.retries for guest in guests)
    print(
        f"{len(guests) - red} of {len(guests)} kernels good, {retries} guests booted twice,"
        f" {time.monotonic() - start:.1f} s"
    )
    if options.write and not red:
        PAGE.write_text(page(guests))
    return 1 if red else 0


@contextlib.contextmanager
def archived(instead: dict[Path, bytes]) -> Iterator[Path]:
    """An archive in a file."""
    with tempfile.NamedTemporaryFile(suffix=".cpio.gz") as file:
        file.write(image.initramfs(instead))
        file.flush()
        yield Path(file.name)


def turned_red(kernel: Path, jobs: int) -> int:
    """Break one thing for each check; 0 if each of them was found by the check it is for."""

    def tried(check: str) -> tuple[str, list[str]]:
        with archived(BREAKS[check].contents()) as archive:
            return check, boot(kernel, archive).bad

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        found = dict(pool.map(tried, BREAKS))
    missed = [check for check, bad in found.items() if not any(f" {check}" in one for one in bad)]
    for check, bad in found.items():
        print(f"{'MISSED' if check in missed else 'red   '} {check}: {' / '.join(bad)[:160]}")
    return 1 if missed else 0


class Break(NamedTuple):
    """A change of a source that a check must find."""

    path: str
    old: str
    new: str

    def contents(self) -> dict[Path, bytes]:
        """What a guest gets instead of what is here."""
        source = (image.ROOT / self.path).read_text()
        assert source.count(self.old) == 1, self
        changed = source.replace(self.old, self.new)
        if not self.path.startswith("bpf/"):
            return {image.ROOT / self.path: changed.encode()}
        with tempfile.TemporaryDirectory() as directory:
            copy = Path(directory) / "bpf"
            shutil.copytree(image.ROOT / "bpf", copy)
            (copy / Path(self.path).name).write_text(changed)
            subprocess.run([copy / "build.sh", directory], check=True, timeout=60)
            made = (Path(directory) / "mesh.bpf.o").read_bytes()
        return {image.ROOT / "src/x0tta6bl4/edge/kernel/mesh.bpf.o": made}


BREAKS: Final = {
    "load x0_ingress": Break("bpf/filter.h", "if (!member)", "if (0)"),
    "good hellos": Break(
        "bpf/hello.h",
        "put_tag(hello, link->send_key[link->send_slot & 1]);",
        "put_tag(hello, link->receive_key[link->send_slot & 1]);",
    ),
    "bad hellos": Break("bpf/hello.h", "tag_of(hello, link->receive_key[slot]) != hello->tag", "0"),
    "verdict": Break("bpf/hello.h", "state->downs++;", "state->told = 0;"),
    "diversion": Break("bpf/divert.h", "is_dead(link, state) || is_suspect(state))", "0)"),
    "repair": Break("bpf/divert.h", ".routing.next = NEXT_IPV6,", ".routing.next = NEXT_ROUTING,"),
    "filter": Break("bpf/filter.h", "return X0_FILTER_NO_MEMBER;", "return UNCOUNTED;"),
    "adoption": Break(
        "src/x0tta6bl4/edge/kernel/programs.py", "old.adopted = True", "old.adopted = False"
    ),
}


def fetched(series: str) -> Path:
    """The newest cloud kernel of a series, fetched if it is not here."""
    BUILD.mkdir(parents=True, exist_ok=True)
    have = sorted(BUILD.glob(f"boot/vmlinuz-{series}.*-cloud-amd64"))
    if have:
        return have[-1]
    for part in ("lists/partial", "cache/archives/partial"):
        (BUILD / part).mkdir(parents=True, exist_ok=True)
    sources = BUILD / "sources.list"
    if not sources.exists():
        lines = [f"deb [signed-by={RING}] {mirror(one)} {one} main\n" for one in SUITES]
        sources.write_text("".join(lines))
        apt("get", "-qq", "update")
    names = re.findall(
        rf"^linux-image-{re.escape(series)}\.\S+-cloud-amd64$",
        apt("cache", "pkgnames", f"linux-image-{series}."),
        re.MULTILINE,
    )
    names = [name for name in names if "deb11" not in name or series == "5.10"]
    assert names, f"no cloud kernel {series} in {SUITES}"
    newest = max(names, key=lambda name: [int(part) for part in re.findall(r"\d+", name)])
    apt("get", "-qq", "download", newest)
    package = next(iter(BUILD.glob(f"{newest}_*.deb")))
    found = image.kernel(package, BUILD)
    package.unlink()
    return found


def mirror(suite: str) -> str:
    """Where apt of this machine gets Debian from, for a suite that it may not know yet."""
    done = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Origin: Debian",
         "Created-By: Packages"],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    wanted = "security" in suite
    found = [one for one in done.stdout.splitlines() if ("security" in one) == wanted]
    assert found, f"apt of this machine knows no mirror for {suite} (apt-get update)"
    return found[0]


def apt(tool: str, *arguments: str) -> str:
    """apt with lists and caches of its own."""
    own = {
        "Dir::Etc::sourcelist": BUILD / "sources.list", "Dir::Etc::sourceparts": "-",
        "Dir::State::lists": BUILD / "lists", "Dir::Cache": BUILD / "cache",
        "APT::Sandbox::User": "root",
    }  # fmt: skip
    options = [word for key, value in own.items() for word in ("-o", f"{key}={value}")]
    done = subprocess.run(
        [f"apt-{tool}", *options, *arguments],
        cwd=BUILD, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def boot(kernel: Path, archive: Path) -> Guest:
    """Boot it, twice if it dies."""
    first = once(kernel, archive, 0)
    return first if "DONE" in first.lines else once(kernel, archive, 1)


def once(kernel: Path, archive: Path, retries: int) -> Guest:
    """Boot it until it ends, at most BOOT_S."""
    start = time.monotonic()
    name = kernel.name.removeprefix("vmlinuz-")
    without = next((less for kind, less in WITHOUT.items() if name.startswith(kind + ".")), "")
    command = [*MACHINE.split(), "-cpu", PROCESSOR + without, "-append", LINE]
    command += ["-kernel", str(kernel), "-initrd", str(archive)]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=BOOT_S
        )
        said = done.stdout + done.stderr
    except subprocess.TimeoutExpired as error:
        said = (error.stdout or b"") + b"\n(too slow)"
    lines = said.decode(errors="replace").replace("\r", "").splitlines()
    return Guest(name, [line for line in lines if line], time.monotonic() - start, retries)


def told(guest: Guest) -> None:
    """Print what it said."""
    count = {
        word: sum(line.startswith(word + " ") for line in guest.lines) for word in ("PASS", "OLD")
    }
    for line in guest.lines:
        if line.startswith("OLD "):
            print(f"    {line}")
    for line in guest.bad:
        print(f"    {line}")
    print(
        f"{'bad ' if guest.bad else 'good'} {guest.kernel}: {count['PASS']} passed, {count['OLD']}"
        f" not in this kernel, {guest.seconds:.1f} s" + ", second boot" * bool(guest.retries)
    )


def page(guests: list[Guest]) -> str:
    """docs/kernels.md."""
    checks = [
        re.split(r" \d+ ms$|: ", line.split(" ", 1)[1])[0]
        for line in guests[-1].lines
        if line.startswith(("PASS ", "OLD "))
    ]
    rows = []
    for name in checks:
        cells = []
        for guest in guests:
            line = next((one for one in guest.lines if one.partition(" ")[2].startswith(name)), "")
            cells.append("yes" if line.startswith("PASS") else line.partition(": ")[2] or "no")
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(
        [
            "# Kernels",
            "",
            "<!-- Written by `make kernels ARGS=--write`: don't edit. -->",
            "",
            "What the programs of `bpf/` do on Debian's cloud kernels, each booted under qemu with",
            "the loader of this tree.",
            "",
            "| | " + " | ".join(guest.kernel for guest in guests) + " |",
            "|---|" + "---|" * len(guests),
            *rows,
            "",
            needs.page(),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
