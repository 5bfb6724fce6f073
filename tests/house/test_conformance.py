"""Every requirement of SPIFFE has a test that names it, or a reason why it needs none."""

from __future__ import annotations

import re

import pytest

from docs import make
from tests.house import tree

OPEN_MAX = 0
"""Requirements still to be shown."""


def test_every_must_and_should_is_shown_or_explained() -> None:
    assert make.conformance().missing() == []


def test_what_is_shown_is_neither_open_nor_explained_away() -> None:
    assert make.conformance().settled() == [], "remove from docs/spiffe-requirements.txt"


def test_the_list_of_open_requirements_only_gets_shorter() -> None:
    assert len(make.conformance().open) <= OPEN_MAX


def test_numbers_are_complete_and_every_test_names_one_of_them() -> None:
    found = make.conformance()
    assert [one.number for one in found.requirements] == list(range(1, 151))
    assert {number for number, _ in found.shown} <= set(range(1, 151))
    assert {one.level for one in found.requirements} <= {"MUST", "SHOULD", "MAY"}
    assert all(one.section.split()[0] in make.AREAS for one in found.requirements)


def test_ids_in_names_of_tests_are_written_so_that_they_are_found() -> None:
    """`test_SP_046_...`, not `test_sp46` or `test_x_SP_046`."""
    wrong = [
        f"{path}: {name}"
        for path in tree.files()
        if path.parts[0] == "tests" and path.suffix == ".py"
        for name in re.findall(r"def (test_\w*)", tree.text(path))
        if re.search(r"sp_?\d", name, re.IGNORECASE) and not re.match(r"test_SP(_\d{3})+_", name)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("file", "name", "who", "sides"),
    [
        ("tests/conformance/test_a.py", "test_SP_001_x_server", "B", ("client",)),
        ("tests/app/test_a.py", "test_SP_001_x", "B", ("server",)),
        ("tests/app/test_a.py", "test_SP_001_x_client", "B", ("client",)),
        ("tests/edge/test_tls_a.py", "test_SP_001_x", "B", ("server", "client")),
        ("tests/app/test_a.py", "test_SP_091_x", "C", ("client",)),
    ],
)
def test_sides_of_tests(file: str, name: str, who: str, sides: tuple[str, ...]) -> None:
    assert make._sides_of(file, name, who) == sides


def test_a_requirement_without_a_test_is_found() -> None:
    found = make.conformance()
    less = make.Conformance(found.requirements, {}, {}, {})
    assert (1, "server") in less.missing()
    assert (42, "server") not in less.missing()
