"""The pages that are made from the code are current, and the others name what there is."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from docs import make
from x0tta6bl4.app.cli.main import COMMANDS, root
from x0tta6bl4.app.settings import parse_authority, parse_node

ROOT = Path(__file__).parents[2]
BY_HAND = ("README.md", "ARCHITECTURE.md", "SECURITY.md", "CHANGELOG.md",
           "docs/howto-two-hosts.md", "docs/howto-five-hosts.md",
           "docs/howto-federation.md", "docs/howto-two-authorities.md")  # fmt: skip


def test_pages_made_from_the_code_are_current() -> None:
    assert make.stale() == [], "run: .venv/bin/python docs/make.py"


def test_every_id_of_the_code_is_in_the_page() -> None:
    page = (ROOT / "docs" / "errors.md").read_text()
    code = "".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    missing = sorted(set(make.ID.findall(code)) - set(make.ID.findall(page)))
    assert missing == []


@pytest.mark.parametrize("page", BY_HAND)
def test_links_between_pages_lead_somewhere(page: str) -> None:
    path = ROOT / page
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), target


@pytest.mark.parametrize("page", [*BY_HAND, "docs/errors.md"])
def test_commands_in_pages_exist(page: str) -> None:
    """Groups with their subcommands; of the others the name."""
    text = (ROOT / page).read_text()
    context = click.Context(root)
    begin = r"(?:`|see |: )" if page.endswith("errors.md") else r"(?:^|[ `(]|\./)"
    for name, rest in re.findall(begin + r"x0 ([a-z][a-z-]+)((?: [a-z-]+)?)", text, re.M):
        if name in ("test", "night", "setup"):
            continue
        command = root.get_command(context, name)
        assert command is not None, name
        word = rest.strip()
        if isinstance(command, click.Group) and word and word in _VERBS:
            assert command.get_command(context, word) is not None, f"{name} {word}"


_VERBS = {
    word
    for name in COMMANDS
    if isinstance(group := root.get_command(click.Context(root), name), click.Group)
    for word in group.list_commands(click.Context(group))
} | {"rotate", "enrol", "start", "restart", "remove", "add", "set", "edit", "revocation"}
"""Words that are meant as a subcommand where they follow a group."""


def _files(page: str, name: str) -> list[str]:
    """TOML blocks that begin with a comment that names such a file."""
    text = (ROOT / page).read_text()
    return [
        block
        for block in re.findall(r"```toml\n(.*?)```", text, re.S)
        if name in block.splitlines()[0]
    ]


def test_settings_of_two_authorities_are_right() -> None:
    page = "docs/howto-two-authorities.md"
    text = re.sub("^   ", "", (ROOT / page).read_text(), flags=re.M)
    blocks = re.findall(r"```toml\n(.*?)```", text, re.S)
    first, second = map(parse_authority, blocks[:2])
    assert (first.trust_domain, first.store) == (second.trust_domain, second.store)
    for one, other in ((first.name, second.name), (first.state_dir, second.state_dir),
                       (first.listen, second.listen)):  # fmt: skip
        assert one != other
    node = parse_node('trust_domain = "example.org"\nnode = "a"\nstate_dir = "/s"\n' + blocks[2])
    assert (node.authority.address, *node.authority.also) == first.advertise == second.advertise


@pytest.mark.parametrize(
    ("page", "nodes"), [("docs/howto-two-hosts.md", 2), ("docs/howto-five-hosts.md", 5)]
)
def test_settings_in_a_howto_are_right(page: str, nodes: int) -> None:
    found = [parse_node(text) for text in _files(page, "node.toml")]
    assert len({settings.node for settings in found}) == nodes
    (authority,) = [parse_authority(text) for text in _files(page, "authority.toml")]
    assert {settings.trust_domain for settings in found} == {authority.trust_domain}
    by_name = {settings.node: settings for settings in found}
    for settings in found:
        for link in settings.link:
            back = {other.node: other for other in by_name[link.node].link}[settings.node]
            assert bool(link.address) + bool(back.address) == 1, (settings.node, link.node)
