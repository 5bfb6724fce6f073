"""Selectors: what is parsed, what matches, what never does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from x0tta6bl4.core.identity.selectors import (
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
