"""Selectors: what is parsed, what matches, what never does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from x0tta6bl4.core.identity.selectors import (
    KINDS,
    SELECTORS_MAX,
    Attributes,
    Differs,
    Matches,
    Selector,
    match,
    parse,
    parse_all,
)
from x0tta6bl4.wire.errors import BadInput

WEB = Attributes(
    uid=1000,
    gids=(1000, 33),
    path="/usr/bin/web",
    sha256="ab" * 32,
    cgroup="/system.slice/web.service/x",
)


@pytest.mark.parametrize(
    "text",
    [
        "unix:uid:1000",
        "unix:gid:33",
        "unix:path:/usr/bin/web",
        "unix:sha256:" + "ab" * 32,
        "unix:cgroup:/system.slice/web.service/x",
        "unix:cgroup:/system.slice/web.service",
        "unix:cgroup:/system.slice",
    ],
)
def test_what_matches_round_trips(text: str) -> None:
    assert str(parse(text)) == text
    assert match([parse(text)], WEB) == Matches()


@pytest.mark.parametrize(
    "text",
    [
        "unix:uid:1001",
        "unix:gid:34",
        "unix:path:/usr/bin/we",
        "unix:path:/usr/bin/web2",
        "unix:sha256:" + "ac" * 32,
        "unix:cgroup:/system.slice/web",
        "unix:cgroup:/",
    ],
)
def test_what_differs_names_itself(text: str) -> None:
    assert match([parse("unix:uid:1000"), parse(text)], WEB) == Differs(text)
    assert match([parse(text)], Attributes()) == Differs(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "uid:1",
        "unix:uid",
        "unix:uid:",
        "unix:uid:-1",
        "unix:uid:01",
        "unix:uid:+1",
        "unix:uid:4294967295",
        "unix:uid:٣",
        "unix:uid:1 ",
        "unix:name:root",
        "unix:path:bin",
        "unix:path:/a//b",
        "unix:path:/a/../b",
        "unix:path:/a/",
        "unix:path:/a\x00b",
        "unix:sha256:AB",
        "unix:sha256:" + "AB" * 32,
        "unix:cgroup:x",
        "unix:path:/" + "a" * 5000,
        "k8s:ns:default",
        "python:script-sha256:ab",
        "systemd:unit:web",
        "systemd:unit:../web.service",
        "systemd:slice:system.service",
        "systemd:invocation:" + "AB" * 16,
        "docker:label:web",
        "docker:image-id:" + "ab" * 32,
        "docker:container:abc",
        "python:module:a..b",
    ],
)
def test_what_is_no_selector(text: str) -> None:
    with pytest.raises(BadInput):
        parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "python:interpreter:/usr/bin/python3",
        "python:script-sha256:" + "ab" * 32,
        "systemd:unit:web@1.service",
        "systemd:slice:system.slice",
        "docker:label:app=web=2",
        "docker:image-id:sha256:" + "ab" * 32,
    ],
)
def test_a_fact_matches_as_a_whole(text: str) -> None:
    selector = parse(text)
    assert str(selector) == text
    assert match([selector], Attributes(facts=frozenset({text}))) == Matches()
    for facts in (frozenset[str](), frozenset({text[:-1]}), frozenset({text + "x"})):
        assert match([selector], Attributes(facts=facts)) == Differs(text)


def test_every_kind_has_an_example_of_its_form() -> None:
    for name, kind in KINDS.items():
        value = kind.example.replace("9f86…", "ab" * 32).replace("0123…", "01" * 16)
        assert str(parse(f"{name}:{value}")) == f"{name}:{value}"


def test_a_program_s_own_words_are_not_enough_for_an_entry() -> None:
    words = "python:script:/srv/web.py"
    with pytest.raises(BadInput, match="X0-SEL-004"):
        parse_all([words, "unix:gid:7"])
    assert len(parse_all([words, "unix:uid:7"])) == 2


def test_a_hint_names_what_the_family_has() -> None:
    with pytest.raises(BadInput, match=r"systemd:unit:…, systemd:slice:…"):
        parse("systemd:name:web")
    with pytest.raises(BadInput, match="families are unix, python, systemd and docker"):
        parse("k8s:ns:default")


def test_an_entry_without_selectors_matches_nobody() -> None:
    assert match([], WEB) == Differs("no selectors")
    with pytest.raises(BadInput):
        parse_all([])
    with pytest.raises(BadInput):
        parse_all([f"unix:uid:{n}" for n in range(SELECTORS_MAX + 1)])
    assert parse_all(["unix:uid:1", "unix:uid:1"]) == (Selector("unix:uid", "1"),)


@given(
    st.text(max_size=60)
    | st.text(max_size=40).map(lambda t: "unix:" + t)
    | st.builds("unix:{}:{}".format, st.sampled_from(["uid", "path", "cgroup"]), st.text())
)
def test_parse_raises_nothing_but_bad_input(text: str) -> None:
    try:
        selector = parse(text)
    except BadInput:
        return
    assert str(selector) == text
