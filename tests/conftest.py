"""Every test: no ERROR line in the log, fixed seeds, a skip names what is missing."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator

import hypothesis
import pytest

hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None, database=None)
hypothesis.settings.register_profile(
    "night", derandomize=False, deadline=None, database=None, max_examples=2000, print_blob=True
)


def pytest_configure(config: pytest.Config) -> None:
    """Fixed seeds, but for a run that asks for the night tests too."""
    night = "not night" not in config.getoption("markexpr") or config.getoption("markexpr") == (
        "night or not night"
    )
    hypothesis.settings.load_profile("night" if night else "fixed")
    sbin = "/usr/sbin:/sbin"
    if sbin not in os.environ.get("PATH", ""):
        os.environ["PATH"] = f"{os.environ.get('PATH', '/usr/bin:/bin')}:{sbin}"


def _missing_for_netns() -> str:
    """Name what network namespaces lack here, empty if nothing."""
    if os.geteuid() != 0:
        return "root"
    for command, package in (("ip", "iproute2"), ("nft", "nftables"), ("unshare", "util-linux")):
        if shutil.which(command) is None:
            return f"{command} (package {package})"
    tried = subprocess.run(
        ["unshare", "--net", "true"], capture_output=True, check=False, timeout=20
    )
    return "" if tried.returncode == 0 else "a kernel that lets us make network namespaces"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests of several hosts, by name, where namespaces can't be made."""
    wanting = [item for item in items if item.get_closest_marker("netns")]
    if not wanting:
        return
    missing = _missing_for_netns()
    if missing:
        for item in wanting:
            item.add_marker(pytest.mark.skip(reason=f"netns needs {missing}"))


@pytest.fixture(scope="session", autouse=True)
def _nothing_of_kernels_left() -> Iterator[None]:
    """What is held of namespaces, programs and maps is let go: a whole run would hold hundreds."""
    yield
    held = Counter[str]()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            what = os.readlink(f"/proc/self/fd/{fd}")
            if what == "/" or what.startswith(("net:", "/run/netns/", "anon_inode:bpf")):
                held[what] += 1
    assert not held


@pytest.fixture(autouse=True)
def _no_error_lines(
    request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> Iterator[None]:
    """An ERROR line is a bug of ours: asyncio says lost exceptions so, and nobody would read it."""
    yield
    if request.node.get_closest_marker("logs_errors"):
        return
    lines = [
        f"{record.name}: {record.getMessage()}"
        for when in ("setup", "call")
        for record in caplog.get_records(when)
        if record.levelno >= logging.ERROR
    ]
    if lines:
        pytest.fail("ERROR in the log:\n" + "\n".join(lines), pytrace=False)
