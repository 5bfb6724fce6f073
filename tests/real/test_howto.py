"""The how-tos, followed to the letter: their files, their commands, in their order.

Each host is a network namespace with a file system root of its own for the paths that a page
names.  What only a real host has is played: `systemctl` starts what the unit of `deploy/systemd`
says, `scp` copies to the host with that address, users are root.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.real.host_mesh import join
from tests.real.hosts import Hosts
from tests.real.lab import scratch
from x0tta6bl4.app.admin import AdminClient
from x0tta6bl4.app.mesh import wait_for
from x0tta6bl4.wire.admin import GetStatus, Status
from x0tta6bl4.wire.errors import X0Error

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl (package curl)"),
]
REPOSITORY = Path(__file__).parents[2]
PAGE = "It came through the mesh."
PLACES = ("/etc/x0", "/etc/systemd", "/var/lib/x0", "/root/", "/opt/x0", "/usr/local/bin/x0")
PATIENCE_S = 40.0

SYSTEMCTL = """#!/bin/sh
# Plays systemd: enable --now UNIT, disable --now UNIT, daemon-reload.
set -eu
[ "$1" = daemon-reload ] && exit 0
pid={root}/$3.pid
case $1 in
enable)
    command=$(sed -n 's|^ExecStart=/usr/local/bin/||p' {units}/$3.service)
    command=$(echo "$command" | sed 's|/etc/x0|{root}/etc/x0|')
    setsid $command >>{root}/$3.log 2>&1 </dev/null &
    echo $! >$pid ;;
disable) kill "$(cat $pid)" && timeout 20 tail --pid="$(cat $pid)" -f /dev/null ;;
esac
"""
X0 = """#!/bin/sh
export X0_STATE_DIR={root}/var/lib/x0/node X0_AUTHORITY_DIR={root}/var/lib/x0/authority
export PYTHONPATH={repository}/src
exec {python} -P -m x0tta6bl4 "$@"
"""
SCP = """#!/bin/sh
# Plays scp [-p] [-J HOST] SOURCE ADDRESS:FILE.
set -eu
for last; do source=${{target-}} target=$last; done
case ${{target%%:*}} in
{cases}
*) exit 1 ;;
esac
install -m 0600 "$source" "{base}/$host/${{target#*{base}/*/}}"
"""


class Page:
    """One page, its hosts, and what it says to do.

    Args:
        name: of the page below docs/.
        hosts: name -> address, as the page has them.
        joined: the namespaces, with their cables.
        root: for their files.
    """

    def __init__(self, name: str, hosts: dict[str, str], joined: Hosts, root: Path) -> None:
        self._text = (REPOSITORY / "docs" / name).read_text()
        self.addresses = hosts
        self.hosts = joined
        self.root = root
        for host in hosts:
            self._furnish(host)

    def _furnish(self, host: str) -> None:
        root = self.root / host
        for place in ("bin", "etc/x0", "etc/systemd/system", "root", "var/lib/x0", "pages"):
            (root / place).mkdir(parents=True, mode=0o755)
        for place in ("node", "authority"):
            (root / "var/lib/x0" / place).mkdir(mode=0o700)  # StateDirectory= of the units.
        (root / "pages" / "index.html").write_text(PAGE)
        cases = "\n".join(f"{address}) host={name} ;;" for name, address in self.addresses.items())
        tools = {
            "systemctl": SYSTEMCTL.format(root=root, units=REPOSITORY / "deploy" / "systemd"),
            "x0": X0.format(root=root, repository=REPOSITORY, python=sys.executable),
            "scp": SCP.format(base=self.root, cases=cases),
            "chown": "#!/bin/sh\n",
            "userdel": "#!/bin/sh\n",
        }
        for name, script in tools.items():
            path = root / "bin" / name
            path.write_text(script)
            path.chmod(0o755)

    def follow(self, part: str) -> None:
        """Write the files and run the blocks of one part: all but `install`, or `uninstall`."""
        for kind, body in re.findall(r"```(toml|sh)\n(.*?)```", self._text, re.S):
            head, _, rest = body.partition("\n")
            match = re.fullmatch(r"# on ([a-z, ]+?)(?: and ([a-z]+))?(?:: (.*))?", head)
            assert match is not None, head
            names = [name.strip() for name in match[1].split(",")] + (
                [match[2]] if match[2] else []
            )
            note = match[3] or ""
            if kind == "toml":
                if part == "build":
                    self._write(names[0], note, body)
                continue
            if note.startswith("install") or note.startswith("uninstall") != (part == "uninstall"):
                continue
            for name in names:
                for line in rest.splitlines():
                    self._run(name, line, retry=note == "try")

    def _write(self, host: str, path: str, body: str) -> None:
        (self.root / host / path.lstrip("/")).write_text(self._moved(host, body))

    def _moved(self, host: str, text: str) -> str:
        for place in PLACES:
            text = re.sub(rf"(?<![\w./]){re.escape(place)}", f"{self.root}/{host}{place}", text)
        return re.sub(r"(?<=:)/etc/x0", f"{self.root}/{host}/etc/x0", text)

    def _run(self, host: str, line: str, retry: bool) -> None:
        command = self._moved(host, line)
        if "rm " in command:  # Nothing outside of this test's own directory, ever.
            paths = [word for word in command.split() if word.startswith("/")]
            assert paths
            assert all(path.startswith(f"{self.root}/{host}/") for path in paths), command
        said = [""]

        def works() -> bool:
            done = self.hosts.run(
                host, "sh", "-c", f"PATH={self.root}/{host}/bin:$PATH\n{command}", check=False
            )
            said[0] = done.stdout + done.stderr
            expected = PAGE in done.stdout if line.startswith("curl") else True
            return done.returncode == 0 and expected

        if retry:
            wait_for(works, f"{line} on {host}", PATIENCE_S)
        elif line.startswith(("x0 status", "x0 check")):
            wait_for(lambda: works() or "X0-CHK" in said[0], f"{line} on {host}", PATIENCE_S)
        elif line.startswith("systemctl enable"):
            assert works(), f"{host}: {line}: {said[0]}"
            self._wait_socket(host, line.split()[-1])
        else:
            assert works(), f"{host}: {line}: {said[0]}"

    def _wait_socket(self, host: str, unit: str) -> None:
        file = {"x0-node": "node/agent.sock", "x0-authority": "authority/admin.sock"}[unit]
        path = self.root / host / "var/lib/x0" / file
        wait_for(path.exists, f"{unit} on {host}", PATIENCE_S)

    def status(self, host: str) -> Status | None:
        """Status of a host's node."""
        try:
            with AdminClient(self.root / host / "var/lib/x0/node") as client:
                return client.ask(GetStatus(), Status)
        except X0Error:
            return None

    def wait_links(self) -> None:
        """Wait until every node has all its links up."""

        def up(host: str) -> bool:
            status = self.status(host)
            return status is not None and all(link.state == "up" for link in status.links)

        for host in self.addresses:
            wait_for(lambda host=host: up(host), f"links of {host}", PATIENCE_S)  # type: ignore[misc]

    def serve(self, *names: str) -> None:
        """An unmodified web server on 127.0.0.1:8080 of these hosts."""
        for name in names:
            self.hosts.start(
                name, sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "--directory",
                str(self.root / name / "pages"), "8080")  # fmt: skip


@pytest.fixture
def root() -> Iterator[Path]:
    """Short, for the paths of sockets."""
    with scratch("howto") as path:
        yield path


def test_two_hosts(root: Path) -> None:
    hosts = {"a": "10.0.0.1", "b": "10.0.0.2"}
    with Hosts(*hosts) as joined:
        join(joined, "a", hosts["a"], "b", hosts["b"])
        page = Page("howto-two-hosts.md", hosts, joined, root)
        page.serve("a")
        page.follow("build")
        page.wait_links()
        page.follow("uninstall")
        for host in hosts:
            assert page.status(host) is None
            assert not (root / host / "etc/x0").exists()
        assert not (root / "a" / "var/lib/x0").exists()


def test_five_hosts(root: Path) -> None:
    hosts = {"hub": "10.0.0.1", "west": "10.0.0.2", "east": "10.0.0.3", "far": "10.0.0.4",
             "home": "192.168.1.2"}  # fmt: skip
    with Hosts(*hosts, "router") as joined:
        for one, two in (("hub", "west"), ("hub", "east"), ("east", "far")):
            join(joined, one, hosts[one], two, hosts[two])
        join(joined, "router", "10.0.0.5", "west", hosts["west"])
        joined.wire("home", "192.168.1.2/24", "router", "192.168.1.1/24")
        joined.route("home", "default", "192.168.1.1")
        joined.forwards("router")
        joined.nft(
            "router",
            'table ip nat { chain out { type nat hook postrouting priority 100; oifname "to-west"'
            " masquerade; }\n}",
        )
        for one, two in (("hub", "east"), ("east", "hub")):
            joined.nft(
                one,
                "table inet wall { chain in { type filter hook input priority 0; iifname"
                f' "to-{two}" meta l4proto udp drop; }}\n}}',
            )
        page = Page("howto-five-hosts.md", hosts, joined, root)
        page.serve("far", "home")
        page.follow("build")
        page.wait_links()
        _udp_is_seen_to_be_blocked(page)


def _udp_is_seen_to_be_blocked(page: Page) -> None:
    def blocked() -> set[tuple[str, str]]:
        found = set()
        for host in page.addresses:
            status = page.status(host)
            found |= {(host, x.node) for x in status.links if not x.udp} if status else set()
        return found

    both = {("hub", "east"), ("east", "hub")}
    wait_for(lambda: both <= blocked(), "blocked UDP to be seen", PATIENCE_S)
