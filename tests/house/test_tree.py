"""What must never be in the tree, and what must always be there."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.house import tree

# Written in pieces, so that this file is not its own finding.
_NEVER = {
    "private key": re.compile("-----BEGIN ([A-Z]+ )?PRIVATE " + "KEY-----"),
    "credential": re.compile(
        r"\b(AKIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{36}|glpat-[\w-]{20}|xox[abp]-[\w-]{10,}"
        r"|eyJ[\w-]{20,}\.eyJ[\w-]{20,}\.[\w-]{20,})"
    ),
    "machine path": re.compile(
        r"(^|[^A-Za-z0-9_.])/(work|root|farm|home|Users)/[A-Za-z.]|/tmp/" + "x0/", re.MULTILINE
    ),
    "merge marker": re.compile(r"^(<{7}|>{7}) ", re.MULTILINE),
}
_ROOT_ENTRIES_MAX = 20
_FILE_BYTES_MAX = 1 << 20


def forbidden(path: Path, content: str) -> Iterator[str]:
    """What must not stand in any file."""
    for what, pattern in _NEVER.items():
        if pattern.search(content):
            yield f"{path}: {what}"


def address(path: Path, content: str) -> Iterator[str]:
    """Addresses in a lock: it names packages and hashes, never where they are."""
    is_lock = path.suffix == ".lock" or path.parts[0] == "requirements" or "-lock." in path.name
    if is_lock and re.search(r"://|--(extra-)?index-url|--find-links|--trusted-host", content):
        yield f"{path}: address in a lock"


def test_no_secret_no_machine_path_no_address() -> None:
    found = [
        finding
        for path in tree.files()
        for look in (forbidden, address)
        for finding in look(path, tree.text(path))
        if finding not in tree.exceptions()["tree"]
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("src/a.py", "key = '''-----BEGIN EC PRIVATE " + "KEY-----'''"),
        ("docs/a.md", "token gh" + "p_" + "a" * 36),
        ("docs/a.md", "see `/ro" + "ot/notes.md`"),
        ("a.sh", "cd /ho" + "me/me/x0"),
        ("a.py", "<<<<<<" + "< HEAD\n"),
        ("requirements/runtime.txt", "--index-url https" + "://example.org/simple"),
        ("console/package-lock.json", '"resolved": "https' + '://example.org/a.tgz"'),
    ],
)
def test_what_must_not_be_there_is_found(path: str, content: str) -> None:
    assert [*forbidden(Path(path), content), *address(Path(path), content)]


def test_files_are_small_text() -> None:
    large = [str(path) for path in tree.files() if _size(path) > _FILE_BYTES_MAX]
    assert not large
    made = [str(path) for path in tree.files() if path.suffix in (".pyc", ".o", ".whl", ".so")]
    assert not [path for path in made if f"{path}: made" not in tree.exceptions()["tree"]]


def _size(path: Path) -> int:
    return (tree.ROOT / path).stat().st_size


def test_the_root_is_short() -> None:
    visible = {path.parts[0] for path in tree.files() if not path.parts[0].startswith(".")}
    assert len(visible) <= _ROOT_ENTRIES_MAX, sorted(visible)


def test_the_readme_names_the_two_commands() -> None:
    readme = tree.text(Path("README.md"))
    for command in ("./x0 demo", "./x0 test"):
        assert command in readme


def test_links_in_documents_lead_somewhere() -> None:
    broken = []
    for path in tree.files():
        if path.suffix != ".md":
            continue
        for target in re.findall(r"\]\(([^)#\s]+)", tree.text(path)):
            if "://" in target or target.startswith("mailto:"):
                continue
            if not (tree.ROOT / path.parent / target).exists():
                broken.append(f"{path}: {target}")
    assert not broken, "\n".join(broken)


def test_scripts_can_be_run() -> None:
    scripts = [
        path
        for path in tree.files()
        if path.name in ("x0", "run", "run.sh") and tree.text(path).startswith("#!")
    ]
    assert Path("x0") in scripts
    assert Path(".ci/run") in scripts
    assert not [str(path) for path in scripts if not os.access(tree.ROOT / path, os.X_OK)]


# --- locks ----------------------------------------------------------------------------------------


def wanted(name: str) -> dict[str, str]:
    """Requirements of `requirements/<name>.in`, by normalised package name."""
    lines = tree.text(Path("requirements", f"{name}.in")).splitlines()
    return {_normal(line): line for line in lines if re.match(r"[A-Za-z]", line)}


def locked(name: str) -> dict[str, tuple[str, int]]:
    """Version and number of hashes of each package in `requirements/<name>.txt`."""
    found: dict[str, tuple[str, int]] = {}
    for block in re.split(r"\n(?=\S)", tree.text(Path("requirements", f"{name}.txt"))):
        pinned = re.match(r"([\w.-]+)==([\w.+!-]+)", block)
        assert pinned, f"not a pin: {block[:80]}"
        found[_normal(pinned[1])] = (pinned[2], block.count("--hash=sha256:"))
    return found


def _normal(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[<>=~! \[;]", requirement)[0]).lower()


def test_locks_hold_what_is_asked_for() -> None:
    assert wanted("runtime").keys() <= locked("runtime").keys()
    assert wanted("dev").keys() <= locked("dev").keys(), "run make lock"
    assert wanted("fuzz").keys() <= locked("fuzz").keys(), "run make lock"


def test_every_pin_has_a_hash() -> None:
    for name in ("runtime", "dev", "fuzz"):
        assert not [package for package, (_, hashes) in locked(name).items() if not hashes]


def test_developers_run_the_versions_that_users_run() -> None:
    developers = locked("dev")
    users = locked("runtime")
    assert {package: developers.get(package) for package in users} == users


def test_the_wheel_asks_for_what_the_lock_has() -> None:
    project = tomllib.loads(tree.text(Path("pyproject.toml")))["project"]
    assert {_normal(line): line for line in project["dependencies"]} == wanted("runtime")


def test_every_dependency_is_explained() -> None:
    explained = {
        _normal(row.split("|")[1].strip(" `"))
        for row in tree.text(Path("docs/dependencies.md")).splitlines()
        if row.startswith("| `")
    }
    needed = locked("runtime").keys() | locked("dev").keys() | locked("fuzz").keys()
    assert explained == needed, f"docs/dependencies.md: {sorted(explained ^ needed)}"
