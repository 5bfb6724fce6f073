"""The table of attacks is the one that the tests declare."""

from __future__ import annotations

from tests.real import attacks


def test_the_document_is_current() -> None:
    text = attacks.DOC.read_text()
    assert text == attacks.document(), "python -m tests.real.attacks --doc"


def test_every_attack_says_what_and_why() -> None:
    declared = attacks.declared()
    assert len(declared) >= 40
    assert len({(a.group, a.tried) for a in declared}) == len(declared)
    assert all(a.reason and a.twin for a in declared)
