"""Writes the reference pages that are made from the code: `python docs/make.py [--check]`.

    conformance.md  every requirement of SPIFFE, and the tests that show it
    errors.md       every stable id, what it says and what helps, from the calls that raise it
    metrics.md      every metric, from telemetry/catalogue.py
    selectors.md    in it: every kind of selector, every reason of attestation
    settings.md     every key of the settings files, from app/settings.py

A test keeps them current.
"""

from __future__ import annotations

import ast
import itertools
import re
import sys
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

ROOT: Final = Path(__file__).resolve().parents[1]
SOURCE: Final = ROOT / "src" / "x0tta6bl4"
ID: Final = re.compile(r"X0-[A-Z]+-\d{3}")
HEAD: Final = "<!-- Made by docs/make.py from the code; don't edit. -->\n"
FAMILIES: Final = {
    "ADM": "Admin socket of a node",
    "AUT": "Authority",
    "BOOT": "Bootstrap (`./x0`)",
    "BUN": "SPIFFE bundles",
    "CFG": "Settings and policy files",
    "CHK": "Findings of `x0 check`",
    "CLI": "Command line",
    "DEMO": "Demo",
    "DEN": "Findings of `x0 explain denied`",
    "DEV": "`x0 dev`",
    "FED": "Federation",
    "HEL": "Hellos between proxies",
    "HOP": "Hops between proxies",
    "ID": "SPIFFE IDs and names",
    "ING": "Local listeners",
    "KRN": "Kernel data plane",
    "LNK": "Links between agents",
    "MSG": "Messages",
    "NET": "Sockets",
    "POL": "Policy",
    "PTH": "Paths",
    "PXY": "Proxy",
    "REC": "Records",
    "REN": "Renewal",
    "RUN": "Running a node",
    "SDK": "SDK: identities, Workload API client",
    "SEL": "Selectors",
    "SES": "Sessions",
    "SIM": "Simulator",
    "STO": "Store of the authority",
    "SVD": "SVIDs in files and around processes",
    "TLS": "TLS and certificates",
    "WLA": "Workload API",
    "UP": "Local mesh",
}


# ------------------------------------------------------------------ errors
def errors_page() -> str:
    """`docs/errors.md`."""
    found: dict[str, list[tuple[str, str]]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        for id, what, hint in _said(ast.parse(path.read_text(encoding="utf-8"))):
            said = found.setdefault(id, [])
            if what and (what, hint) not in said:
                said.append((what, hint))
    for id, what, hint in _said_by_shell((ROOT / "x0").read_text(encoding="utf-8")):
        found.setdefault(id, []).append((what, hint))
    lines = [
        HEAD,
        "# Errors and findings\n",
        "Every error is one line: `x0: ID: what is wrong. what to do`. IDs never change their"
        " meaning. `…` stands for a value.\n",
    ]
    families = sorted({id.split("-")[1] for id in found})
    for family in families:
        lines += [
            f"## {FAMILIES[family]}\n",
            "| id | what is wrong | what to do |",
            "|---|---|---|",
        ]
        for id in sorted(one for one in found if one.split("-")[1] == family):
            whats = _unique(what for what, _ in found[id]) or ["(see the log)"]
            hints = _unique(hint for _, hint in found[id] if hint)
            lines.append(f"| {id} | {_cell(whats)} | {_cell(hints)} |")
        lines.append("")
    return "\n".join(lines)


def _said(tree: ast.AST) -> Iterator[tuple[str, str, str]]:
    """(id, what, hint) of every call or tuple that has an id among its first two strings."""
    for node in ast.walk(tree):
        parts: list[ast.expr] = []
        if isinstance(node, ast.Call):
            parts = list(node.args)
        elif isinstance(node, ast.Tuple):
            parts = list(node.elts)
        for at, part in enumerate(parts[:2]):
            if isinstance(part, ast.Constant) and isinstance(part.value, str):
                if not ID.fullmatch(part.value):
                    continue
                texts = [_text(rest) for rest in parts[at + 1 :]]
                yield part.value, *_what_and_hint(node, texts)
    for node in ast.walk(tree):  # Whole lines: "X0-CLI-003: stopped. nothing was changed".
        text = _text(node) if isinstance(node, ast.Constant | ast.JoinedStr) else ""
        match = re.match(r"(?:x0: )?(X0-[A-Z]+-\d{3}): (.+)", text)
        if match:
            what, _, hint = match[2].partition(". ")
            yield match[1], what, hint


def _what_and_hint(node: ast.AST, texts: list[str]) -> tuple[str, str]:
    called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
    if called.endswith("Finding"):
        return (texts[1], texts[2]) if len(texts) > 2 else ("", "")
    if called.endswith(".error") and len(texts) == 3:  # settings_where: the key path comes first.
        return f"FILE: KEY: {texts[1]}", texts[2]
    if isinstance(node, ast.Tuple):
        return ("", texts[0]) if texts else ("", "")
    return (texts + ["", ""])[0], (texts + ["", ""])[1]


def _text(node: ast.AST) -> str:
    """A string expression with `…` for what is only known when it runs."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(
            _text(part) if isinstance(part, ast.Constant) else "…" for part in node.values
        )
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return (_text(node.left) or "…") + (_text(node.right) or "…")
    if isinstance(node, ast.IfExp):
        return f"{_text(node.body)} / {_text(node.orelse)}"
    return "…"


def _said_by_shell(text: str) -> Iterator[tuple[str, str, str]]:
    joined = text.replace("\\\n", " ")
    for match in re.finditer(r'die (X0-BOOT-\d{3})\s+"([^"]*)"\s+"([^"]*)"', joined):
        yield match[1], _unshelled(match[2]), _unshelled(match[3])


def _unshelled(text: str) -> str:
    return re.sub(r"\$\{[^}]*\}|\$\([^)]*\)|\$\w+", "…", text)


def _unique(texts: Iterable[str]) -> list[str]:
    return [text for text in dict.fromkeys(texts) if text.strip("… ")]


def _cell(texts: list[str]) -> str:
    return "<br>".join(texts[:4]).replace("|", "\\|").replace("\n", " ")


# ------------------------------------------------------------------ metrics
def metrics_page() -> str:
    """`docs/metrics.md`."""
    from x0tta6bl4.telemetry import catalogue

    lines = [
        HEAD,
        "# Metrics\n",
        "`/metrics` on the address of `[metrics] listen`, loopback only. A node's endpoint has"
        " agent and proxy together; the authority has its own. Every name begins with `x0_`.\n",
    ]
    for title, metrics in (("Node", catalogue.NODE), ("Authority", catalogue.AUTHORITY)):
        lines += [
            f"## {title}\n",
            "| metric | type | labels | room | what |",
            "|---|---|---|---|---|",
        ]
        lines += [
            f"| `x0_{m.name}` | {m.kind} | {', '.join(m.labels) or '–'} | {m.room} | {m.help} |"
            for m in metrics
        ]
        lines.append("")
    return "\n".join(lines)


# ------------------------------------------------------------------ settings
def settings_page() -> str:
    """`docs/settings.md`."""
    from x0tta6bl4.app import policy, settings

    lines = [
        HEAD,
        "# Settings\n",
        "TOML. An unknown key is an error. Paths are absolute; an address is `host:port`, an IPv6"
        " address stands in brackets.\n",
    ]
    trees = (
        ("node.toml", settings.NodeSettings),
        ("authority.toml", settings.AuthoritySettings),
        ("Policy file (`x0 policy apply FILE`)", policy.PolicyFile),
    )
    for title, kind in trees:
        lines += [f"## {title}\n", *_section("", kind)]
    return "\n".join(lines)


def _section(name: str, kind: type[msgspec.Struct]) -> list[str]:
    said = _docs(kind)
    hints = typing.get_type_hints(kind, include_extras=True)
    rows, inner = [], []
    for field in msgspec.structs.fields(kind):
        table = _table_of(hints[field.name])
        if table is not None:
            repeated = typing.get_origin(hints[field.name]) is tuple
            key = f"[[{field.name}]]" if repeated else f"[{field.name}]"
            inner += _section(key, table)
            continue
        default = "required" if field.required else f"`{_value(field.default)}`"
        rows.append(
            f"| `{field.name}` | {_kind(hints[field.name])} | {default} |"
            f" {said.get(field.name, '')} |"
        )
    lines = []
    if name:
        lines.append(f"### `{name}`\n")
        doc = (kind.__doc__ or "").partition(": ")[2] or (kind.__doc__ or "")
        lines.append(doc[:1].upper() + doc[1:].strip() + "\n")
    if rows:
        rows = ["| key | form | default | meaning |", "|---|---|---|---|", *rows, ""]
    return [*lines, *rows, *inner]


def _table_of(hint: Any) -> type[msgspec.Struct] | None:
    for candidate in (hint, *typing.get_args(hint)):
        if isinstance(candidate, type) and issubclass(candidate, msgspec.Struct):
            return candidate
    return None


def _docs(kind: type[msgspec.Struct]) -> Mapping[str, str]:
    """Docstrings below the fields of a struct."""
    module = sys.modules[kind.__module__]
    assert module.__file__ is not None
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    body = classes[kind.__name__].body
    found: dict[str, str] = {}
    for field, doc in itertools.pairwise(body):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(doc, ast.Expr)
            and isinstance(doc.value, ast.Constant)
        ):
            found[field.target.id] = " ".join(str(doc.value.value).split())
    return found


def _kind(hint: Any) -> str:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        meta = parts[1]
        bounds = [
            f"≥ {meta.ge}" if meta.ge is not None else "",
            f"≤ {meta.le}" if meta.le is not None else "",
        ]
        return " ".join([_kind(parts[0]), *filter(None, bounds)])
    if origin is typing.Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if origin is tuple:
        return "list of strings"
    names = {str: "string", int: "whole number", float: "number", bool: "true or false"}
    return names[hint]


def _value(default: Any) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    return f'"{default}"' if isinstance(default, str) else "[]" if default == () else str(default)


# ------------------------------------------------------------------ conformance
REQUIREMENTS: Final = ROOT / "docs" / "spiffe-requirements.txt"
_NAMED: Final = re.compile(r"test_SP((?:_\d{3})+)_(\w+)")
_CLIENT_TESTS: Final = ("tests/conformance/", "tests/sdk/")
_SHARED_TESTS: Final = tuple(
    f"tests/{room}" for room in ("core/test_identity", "core/test_wire", "edge/test_tls",
                                 "edge/test_jwt", "edge/test_wit", "edge/test_bundle")
)  # fmt: skip
_SIDES: Final = {"S": ("server",), "C": ("client",), "B": ("server", "client")}
AREAS: Final = {"ID": "SPIFFE-ID", "X509": "X509-SVID", "JWT": "JWT-SVID", "WIT": "WIT-SVID",
                "TD": "Trust domain and bundle", "WE": "Workload endpoint", "WA": "Workload API",
                "FED": "Federation", "BR": "Broker"}  # fmt: skip


class Requirement(msgspec.Struct, frozen=True):
    """One line of spiffe-requirements.txt, and what is known of it."""

    number: int
    who: str
    section: str
    level: str
    says: str

    @property
    def sides(self) -> tuple[str, ...]:
        """Who has to keep it: `server` (issuer, agent), `client` (SDK, validator)."""
        return _SIDES[self.who]


class Conformance(msgspec.Struct, frozen=True):
    """What is asked for, what shows it, what is left."""

    requirements: list[Requirement]
    shown: dict[tuple[int, str], list[tuple[str, str]]]
    """(number, side) -> (file, what the test's name says)."""
    not_ours: dict[tuple[int, str], str]
    """Why a requirement does not apply to a side."""
    open: dict[tuple[int, str], str]
    """What is still to be shown."""

    def missing(self) -> list[tuple[int, str]]:
        """MUST and SHOULD that nothing is said about."""
        return [
            (one.number, side)
            for one in self.requirements
            for side in one.sides
            if one.level != "MAY"
            and not any(
                (one.number, side) in known for known in (self.shown, self.not_ours, self.open)
            )
        ]

    def settled(self) -> list[tuple[int, str]]:
        """Said to be open or not ours although a test shows it, or about no requirement."""
        asked = {(one.number, side) for one in self.requirements for side in one.sides}
        said = [*self.not_ours, *self.open]
        return [key for key in said if key in self.shown or key not in asked]


def conformance() -> Conformance:
    """Read the requirements, and the names of all tests."""
    requirements: list[Requirement] = []
    who_of: dict[int, str] = {}
    notes: dict[str, dict[tuple[int, str], str]] = {"-": {}, "?": {}}
    for line in REQUIREMENTS.read_text(encoding="utf-8").splitlines():
        parts = [part.strip() for part in line.lstrip("-? ").split("|")]
        if line[:1] in notes:
            first, _, last = parts[0].partition("..")
            for number in range(int(first), int(last or first) + 1):
                sides = _SIDES[who_of.get(number, "B")]
                for side in set(_SIDES[parts[1]]).intersection(sides):
                    notes[line[0]][number, side] = parts[2]
        elif line and not line.startswith("#"):
            requirements.append(Requirement(int(parts[0]), *parts[1:]))
            who_of[int(parts[0])] = parts[1]
    shown: dict[tuple[int, str], list[tuple[str, str]]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        file = path.relative_to(ROOT).as_posix()
        for name in _test_names(path.read_text(encoding="utf-8")):
            match = _NAMED.match(name)
            if match is None:
                continue
            for text in match[1].split("_")[1:]:
                for side in _sides_of(file, name, who_of.get(int(text), "B")):
                    shown.setdefault((int(text), side), []).append((file, _plain(match[2])))
    return Conformance(requirements, shown, notes["-"], notes["?"])


def _plain(name: str) -> str:
    return re.sub(r"_(by_the_)?(server|client)$", "", name).replace("_", " ")


def _test_names(code: str) -> list[str]:
    return sorted(set(re.findall(r"^ *(?:async )?def (test_SP_\w+)", code, re.MULTILINE)))


def _sides_of(file: str, name: str, who: str) -> tuple[str, ...]:
    """For which side a test speaks: the one that is asked, else by its suffix or its directory."""
    if who != "B":
        return _SIDES[who]
    if file.startswith(_CLIENT_TESTS):
        return ("client",)
    for side in ("server", "client"):
        if name.endswith(f"_{side}"):
            return (side,)
    return ("server", "client") if file.startswith(_SHARED_TESTS) else ("server",)


def conformance_page() -> str:
    """`docs/conformance.md`."""
    found = conformance()
    lines = [
        HEAD,
        "# What SPIFFE asks for, and what shows it\n",
        "Every requirement of the SPIFFE specifications with its number, and the tests whose names"
        " carry it. *Server* is whoever issues and serves (authority, agent, endpoint), *client*"
        " whoever asks and validates (SDK). `tests/conformance` drives the SDK from outside, as a"
        " process, against a Workload API and peers that do whatever a test needs.\n",
        "| area | requirements | shown by tests | does not apply | open |",
        "|---|---|---|---|---|",
    ]
    for area, title in AREAS.items():
        keys = [(one.number, side) for one in found.requirements
                if one.section.split()[0] == area for side in one.sides]  # fmt: skip
        counts = [sum(key in known for key in keys)
                  for known in (found.shown, found.not_ours, found.open)]  # fmt: skip
        lines.append(f"| {title} | {len(keys)} | {' | '.join(map(str, counts))} |")
    lines.append("\nA requirement that both sides have to keep is counted twice.\n")
    for area, title in AREAS.items():
        lines += [f"## {title}\n", "| SP | level | section | what | server | client |",
                  "|---|---|---|---|---|---|"]  # fmt: skip
        for one in found.requirements:
            if one.section.split()[0] == area:
                cells = [_evidence(found, one, side) for side in ("server", "client")]
                lines.append(
                    f"| {one.number:03} | {one.level} | {one.section} | {one.says} |"
                    f" {cells[0]} | {cells[1]} |"
                )
        lines.append("")
    return "\n".join(lines)


def _evidence(found: Conformance, one: Requirement, side: str) -> str:
    key = one.number, side
    if side not in one.sides:
        return "–"
    if key in found.shown:
        return "<br>".join(f"[{says}](../{file})" for file, says in found.shown[key])
    if key in found.not_ours:
        return f"*does not apply:* {found.not_ours[key]}"
    return f"**open:** {found.open[key]}" if key in found.open else "**nothing**"


# ------------------------------------------------------------------ selectors
def selectors_page() -> str:
    """`docs/selectors.md`: its text as it stands, its lists made anew."""
    from x0tta6bl4.core.identity.selectors import KINDS

    kinds = ["| selector | holds for |", "|---|---|"]
    kinds += [f"| `{name}:{kind.example}` | {kind.says} |" for name, kind in KINDS.items()]
    reasons = {
        _text(node.args[0])
        for path in sorted((SOURCE / "edge" / "attest").glob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Denied" and node.args
    }
    text = (ROOT / "docs" / "selectors.md").read_text(encoding="utf-8")
    said = "\n".join(f"- {reason}" for reason in sorted(reasons) if reason.strip("… "))
    for mark, made in (("kinds", "\n".join(kinds)), ("reasons", said)):
        begin, end = f"<!-- {mark}: made by docs/make.py -->\n", f"<!-- /{mark} -->"
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}{made}\n{end}{rest.partition(end)[2]}"
    return text


PAGES: Final = {
    "conformance.md": conformance_page,
    "errors.md": errors_page,
    "metrics.md": metrics_page,
    "selectors.md": selectors_page,
    "settings.md": settings_page,
}


def stale() -> list[str]:
    """Pages that are not what the code says."""
    folder = ROOT / "docs"
    return [
        name
        for name, make in PAGES.items()
        if not (folder / name).exists() or (folder / name).read_text(encoding="utf-8") != make()
    ]


def main() -> int:
    """Write the pages, or with `--check` say which are stale."""
    if "--check" in sys.argv[1:]:
        return int(bool(stale()))
    for name, make in PAGES.items():
        (ROOT / "docs" / name).write_text(make(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
