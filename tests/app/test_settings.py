"""Settings files: what is right reads back the same, what is wrong is one line with its place."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from x0tta6bl4.app.settings import (
    HELLO_MS,
    AuthoritySettings,
    NodeSettings,
    dump,
    parse_authority,
    parse_node,
    read_node,
)
from x0tta6bl4.wire.errors import BadConfig

HEAD = 'trust_domain = "example.org"\nnode = "a"\nstate_dir = "/var/lib/x0/a"\n'

FULL = (
    HEAD
    + """
area = 3
revocation_max_age_s = 600
require_pq = true

[authority]
address = "192.0.2.1:7000"
token_file = "/etc/x0/token"

[data]
listen = "0.0.0.0:7100"
advertise = ["192.0.2.2:7100", "[2001:db8::2]:7100"]

[control]
listen = "0.0.0.0:7101"

[[link]]
node = "b"
address = "192.0.2.3:7101"
hello_ms = 50

[[link]]
node = "c"

[[listen]]
address = "127.0.0.1:1080"
kind = "socks5"

[[listen]]
address = "[::1]:8080"
kind = "plain"
name = "web"

[metrics]
listen = "127.0.0.1:9100"

[log]
level = "debug"
"""
)


def link(rest: str) -> str:
    return HEAD + "[[link]]\n" + rest


def listen(rest: str) -> str:
    return HEAD + "[[listen]]\n" + rest


# text -> id, and words that must stand in the one line: the key path first, then help.
BAD: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "no TOML": ("node = a", "X0-CFG-002", ("line 1", "quotes")),
    "the same key twice": (HEAD + 'node = "b"', "X0-CFG-002", ("stands there already",)),
    "unknown key": (HEAD + "arae = 1", "X0-CFG-003", ("arae", "'area'")),
    "unknown key, nothing near": (HEAD + "xyzzy = 1", "X0-CFG-003", ("xyzzy", "trust_domain")),
    "unknown key in a table": (
        HEAD + "[data]\nlisen = 'x'",
        "X0-CFG-003",
        ("data.lisen", "'listen'"),
    ),
    "unknown key in a list": (
        link('node = "b"\nadress = "h:1"'),
        "X0-CFG-003",
        ("link[0].adress", "'address'"),
    ),
    "unknown table": (HEAD + '[[links]]\nnode = "b"', "X0-CFG-003", ("links", "'link'")),
    "no trust domain": (
        'node = "a"\nstate_dir = "/x"',
        "X0-CFG-004",
        ("trust_domain", "example.org"),
    ),
    "no state_dir": ('trust_domain = "e.org"\nnode = "a"', "X0-CFG-004", ("state_dir", "/var/")),
    "a link without a node": (link('address = "h:1"'), "X0-CFG-004", ("link[0].node",)),
    "a plain listener without a name": (
        listen('address = "127.0.0.1:1"\nkind = "plain"'),
        "X0-CFG-004",
        ("listen[0].name",),
    ),
    "a number in quotes": (HEAD + 'area = "1"', "X0-CFG-005", ("area", "whole number")),
    "a string without quotes": (
        'trust_domain = 1\nnode = "a"\nstate_dir = "/x"',
        "X0-CFG-005",
        ("trust_domain", "string"),
    ),
    "a table for a list": (HEAD + '[link]\nnode = "b"', "X0-CFG-005", ("link", "[[link]]")),
    "a value for a table": (HEAD + 'data = "0.0.0.0:7100"', "X0-CFG-005", ("data", "[data]")),
    "yes for true": (HEAD + 'require_pq = "yes"', "X0-CFG-005", ("require_pq", "true or false")),
    "hellos too fast": (
        link('node = "b"\nhello_ms = 1'),
        "X0-CFG-006",
        ("link[0].hello_ms", "at least 10"),
    ),
    "hellos too slow": (link('node = "b"\nhello_ms = 100000'), "X0-CFG-006", ("at most 10000",)),
    "a negative age": (HEAD + "revocation_max_age_s = -1", "X0-CFG-006", ("at least 0",)),
    "unknown kind of listener": (
        listen('address = "127.0.0.1:1"\nkind = "sock5"'),
        "X0-CFG-006",
        ("listen[0].kind", "'socks5'"),
    ),
    "unknown log level": (HEAD + '[log]\nlevel = "warn"', "X0-CFG-006", ("log.level", "warning")),
    "nine advertised addresses": (
        HEAD + "[data]\nadvertise = " + str([f"192.0.2.{i}:1" for i in range(9)]),
        "X0-CFG-006",
        ("data.advertise",),
    ),
    "a prefix with host bits": (
        HEAD + '[data]\ndeny_from = ["192.0.2.0/24", "192.0.2.1/24"]',
        "X0-CFG-008",
        ("data.deny_from[1]", "192.0.2.1/24"),
    ),
    "a host name let in": (
        HEAD + '[data]\nallow_from = ["example.org"]',
        "X0-CFG-008",
        ("data.allow_from[0]", "example.org"),
    ),
    "more prefixes than the filter holds": (
        HEAD + "[data]\ndeny_from = " + str(["192.0.2.1"] * 8_193),
        "X0-CFG-006",
        ("data.deny_from", "8192"),
    ),
    "a negative rate": (HEAD + "[data]\nmember_pps = -1", "X0-CFG-006", ("at least 0",)),
    "a prefix that is denied and let in": (
        HEAD + '[data]\nplane = "kernel"\ndeny_from = ["192.0.2.0/24"]\n'
        'allow_from = ["192.0.2.7", "192.0.2.0/24"]',
        "X0-CFG-010",
        ("data.allow_from[1]", "data.deny_from"),
    ),
    "a prefix of IPv4 that is denied, let in as one of IPv6": (
        HEAD + '[data]\nplane = "auto"\ndeny_from = ["192.0.2.0/24"]\n'
        'allow_from = ["::ffff:192.0.2.0/120"]',
        "X0-CFG-010",
        ("data.allow_from[0]", "data.deny_from"),
    ),
    "prefixes denied without a kernel that does it": (
        HEAD + '[data]\ndeny_from = ["192.0.2.0/24"]',
        "X0-CFG-017",
        ("data.deny_from", "userspace"),
    ),
    "a rate without a kernel that keeps it": (
        HEAD + '[data]\nplane = "userspace"\nmember_pps = 5',
        "X0-CFG-017",
        ("data.member_pps", "userspace"),
    ),
    "a trust domain with a space": (
        'trust_domain = "a b"\nnode = "a"\nstate_dir = "/x"',
        "X0-CFG-007",
        ("trust_domain", "a-z0-9"),
    ),
    "a node name in upper case": (HEAD.replace('"a"', '"A"'), "X0-CFG-007", ("node", "a-z0-9-")),
    "the reserved node name": (HEAD.replace('"a"', '"authority"'), "X0-CFG-007", ("reserved",)),
    "a service in node.toml": (
        HEAD + '[[service]]\nid = "/web"\naddress = "127.0.0.1:80"',
        "X0-CFG-003",
        ("service", "x0 entry create"),
    ),
    "a caller in node.toml": (HEAD + "[[caller]]", "X0-CFG-003", ("caller", "x0 entry create")),
    "a neighbour to enrol through, without its port": (
        HEAD + '[authority]\nthrough = ["192.0.2.1"]',
        "X0-CFG-008",
        ("authority.through[0]", "host:port"),
    ),
    "a relative token file": (
        HEAD + '[authority]\ntoken_file = "token"',
        "X0-CFG-014",
        ("authority.token_file",),
    ),
    "localhost, which is whatever DNS says": (
        listen('address = "localhost:1080"\nkind = "socks5"'),
        "X0-CFG-009",
        ("listen[0].address", "127.0.0.1"),
    ),
    "a socket path longer than the kernel's": (
        listen(f'address = "unix:/{"x" * 107}"\nkind = "socks5"'),
        "X0-CFG-014",
        ("listen[0].address", "107"),
    ),
    "a service name with .. in it": (
        listen('address = "127.0.0.1:1"\nkind = "plain"\nname = "a..b"'),
        "X0-CFG-007",
        ("listen[0].name", ".mesh"),
    ),
    "an address without a port": (
        link('node = "b"\naddress = "host"'),
        "X0-CFG-008",
        ("link[0].address", "host:port"),
    ),
    "port 0 for a neighbour": (
        link('node = "b"\naddress = "h:0"'),
        "X0-CFG-008",
        ("link[0].address", "port"),
    ),
    "a port above 65535": (link('node = "b"\naddress = "h:70000"'), "X0-CFG-008", ("65535",)),
    "IPv6 without brackets": (
        HEAD + '[data]\nadvertise = ["2001:db8::1:7100"]',
        "X0-CFG-008",
        ("data.advertise[0]", "brackets"),
    ),
    "a name to listen on": (
        HEAD + '[data]\nlisten = "eth0:7100"',
        "X0-CFG-008",
        ("data.listen", "0.0.0.0"),
    ),
    "everybody's address advertised": (
        HEAD + '[data]\nadvertise = ["0.0.0.0:7100"]',
        "X0-CFG-008",
        ("data.advertise[0]",),
    ),
    "plaintext on the network": (
        listen('address = "0.0.0.0:1080"\nkind = "socks5"'),
        "X0-CFG-009",
        ("listen[0].address", "127.0.0.1"),
    ),
    "metrics for everybody": (
        HEAD + '[metrics]\nlisten = "0.0.0.0:9100"',
        "X0-CFG-009",
        ("metrics.listen",),
    ),
    "a neighbour twice": (
        link('node = "b"\n[[link]]\nnode = "b"'),
        "X0-CFG-010",
        ("link[1].node", "link[0].node"),
    ),
    "an address for two neighbours": (
        link('node = "b"\naddress = "h:1"\n[[link]]\nnode = "c"\naddress = "h:1"'),
        "X0-CFG-010",
        ("link[1].address",),
    ),
    "two listeners on one port": (
        listen(
            'address = "127.0.0.1:1"\nkind = "socks5"\n'
            '[[listen]]\naddress = "127.0.0.1:1"\nkind = "connect"'
        ),
        "X0-CFG-010",
        ("listen[1].address",),
    ),
    "one port for both planes": (
        HEAD + '[control]\nlisten = "0.0.0.0:7100"',
        "X0-CFG-010",
        ("control.listen",),
    ),
    "a link to itself": (link('node = "a"'), "X0-CFG-011", ("link[0].node",)),
    "a link that nobody can dial": (
        HEAD + '[control]\nlisten = ""\n[[link]]\nnode = "b"',
        "X0-CFG-011",
        ("link[0].address",),
    ),
    "advertised without a listener": (
        HEAD + '[data]\nlisten = ""\nadvertise = ["192.0.2.1:7100"]',
        "X0-CFG-011",
        ("data.advertise",),
    ),
    "a name for SOCKS": (
        listen('address = "127.0.0.1:1"\nkind = "socks5"\nname = "web"'),
        "X0-CFG-011",
        ("listen[0].name",),
    ),
    "a relative state_dir": (HEAD.replace("/var", "var"), "X0-CFG-014", ("state_dir",)),
    "a state_dir too long for sockets": (
        HEAD.replace("/var", "/" + "x" * 100),
        "X0-CFG-014",
        ("state_dir", "sockets"),
    ),
}

BAD_AUTHORITY: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "a node's key": (
        'trust_domain = "e.org"\nstate_dir = "/x"\nnode = "a"',
        "X0-CFG-003",
        ("node",),
    ),
    "SVIDs too short to renew": (
        'trust_domain = "e.org"\nstate_dir = "/x"\n[svid]\nttl_s = 5',
        "X0-CFG-006",
        ("svid.ttl_s", "at least 10"),
    ),
    "tokens that live for a day": (
        'trust_domain = "e.org"\nstate_dir = "/x"\ntoken_ttl_s = 86400',
        "X0-CFG-006",
        ("token_ttl_s", "600"),
    ),
    "nothing at all": ("", "X0-CFG-004", ("trust_domain",)),
}


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_one_line_with_file_key_id_and_hint(case: str) -> None:
    text, id, words = BAD[case]
    with pytest.raises(BadConfig) as caught:
        parse_node(text, "/etc/x0/node.toml")
    _is_one_clear_line(caught.value, id, ("/etc/x0/node.toml", *words))


@pytest.mark.parametrize("case", BAD_AUTHORITY)
def test_the_authoritys_mistakes_too(case: str) -> None:
    text, id, words = BAD_AUTHORITY[case]
    with pytest.raises(BadConfig) as caught:
        parse_authority(text, "authority.toml")
    _is_one_clear_line(caught.value, id, ("authority.toml", *words))


def _is_one_clear_line(error: BadConfig, id: str, words: tuple[str, ...]) -> None:
    line = str(error)
    assert error.id == id, line
    assert "\n" not in line
    assert error.hint, line
    for word in words:
        assert word in line, line


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match=r"X0-CFG-001.*no such file.*--config"):
        read_node(tmp_path / "node.toml")


def test_a_file_that_is_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_bytes(b"\x89PNG\r\n\xff\xfe")
    with pytest.raises(BadConfig, match=r"X0-CFG-002.*UTF-8"):
        read_node(path)


def test_a_directory(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match=r"X0-CFG-001.*is a directory"):
        read_node(tmp_path)


def test_what_is_not_said_has_its_default() -> None:
    settings = parse_node(FULL)
    assert settings.link[1].address == ""
    assert settings.link[1].hello_ms == HELLO_MS


def test_what_is_written_reads_back_the_same() -> None:
    settings = parse_node(FULL)
    assert parse_node(dump(settings)) == settings
    authority = parse_authority('trust_domain = "e.org"\nstate_dir = "/x"\n[svid]\nttl_s = 60\n')
    assert parse_authority(dump(authority)) == authority


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_path_survives_being_written(text: str) -> None:
    settings = NodeSettings(trust_domain="e.org", node="a", state_dir="/" + text)
    if "\0" in text or "\n" in text or len(text.encode()) > 91:
        with pytest.raises(BadConfig, match=r"X0-CFG-014"):
            parse_node(dump(settings))
    else:
        assert parse_node(dump(settings)) == settings


def test_the_least_that_works() -> None:
    assert parse_node(HEAD) == NodeSettings("example.org", "a", "/var/lib/x0/a")
    assert parse_authority('trust_domain = "e.org"\nstate_dir = "/x"') == AuthoritySettings(
        "e.org", "/x"
    )
