"""A settings file as a tree of structs: read, decoded with an error that helps, written again.

Which keys there are comes from the structs; nothing here knows what they mean.
"""

from __future__ import annotations

import re
import tomllib
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from x0tta6bl4.wire.errors import BadConfig

FILE_BYTES_MAX: Final = 1024 * 1024


class Section(
    msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True, omit_defaults=True
):
    """Root of all parts of a settings file."""


S = TypeVar("S", bound=Section)


def read_text(path: Path) -> str:
    """The text of a settings file.

    Raises:
        BadConfig: it can't be read, is too large or not UTF-8.
    """
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        raise BadConfig(
            "X0-CFG-001", f"{path}: no such file", "give its path with --config"
        ) from None
    except OSError as error:
        raise BadConfig(
            "X0-CFG-001",
            f"{path}: {_lower(error.strerror)}",
            "run as the user who owns it, or fix its mode",
        ) from None
    if len(data) > FILE_BYTES_MAX:
        raise BadConfig("X0-CFG-001", f"{path}: larger than 1 MiB", "is it the right file?")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadConfig(
            "X0-CFG-002", f"{path}: not UTF-8 at byte {error.start}", "save it as UTF-8"
        ) from None


def decode(text: str, source: str, kind: type[S], elsewhere: Mapping[str, str] | None = None) -> S:
    """Decode TOML into structs.

    Args:
        text: TOML.
        source: name of the file, for errors.
        kind: struct of the whole file.
        elsewhere: keys that one might look for here, and where they are.
    Raises:
        BadConfig: not TOML, an unknown or missing key, a wrong type or value.
    """
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        hint = (
            "this key or table stands there already"
            if "overwrite" in str(error) or "declare" in str(error)
            else "this is not TOML; strings stand in quotes"
        )
        raise BadConfig("X0-CFG-002", f"{source}: {_lower(str(error))}", hint) from None
    _unknown_keys(raw, kind, source, elsewhere or {})
    try:
        return msgspec.convert(raw, kind, strict=True)
    except msgspec.ValidationError as error:
        raise _as_config_error(str(error), source, raw) from None


def dump(settings: Section) -> str:
    """The settings as TOML that reads back as the same settings (defaults left out)."""
    lines: list[str] = []
    values = msgspec.to_builtins(settings)
    assert isinstance(values, dict)
    tables = {key: value for key, value in values.items() if isinstance(value, dict)}
    lists = {
        key: value
        for key, value in values.items()
        if isinstance(value, list | tuple) and value and isinstance(value[0], dict)
    }
    lines += [
        f"{key} = {_toml(value)}"
        for key, value in values.items()
        if key not in tables and key not in lists
    ]
    for key, table in tables.items():
        if table:
            lines += ["", f"[{key}]", *(f"{k} = {_toml(v)}" for k, v in table.items())]
    for key, rows in lists.items():
        for row in rows:
            lines += ["", f"[[{key}]]", *(f"{k} = {_toml(v)}" for k, v in row.items())]
    return "\n".join(lines) + "\n"


def _unknown_keys(
    raw: Mapping[str, Any],
    kind: type[Section],
    source: str,
    elsewhere: Mapping[str, str],
    at: str = "",
) -> None:
    """Refuse keys that the struct does not have, naming the nearest that it has."""
    known, kinds = kind.__struct_fields__, _tables(kind)
    for key, value in raw.items():
        if key not in known:
            raise BadConfig(
                "X0-CFG-003",
                f"{source}: {at}{key}: unknown key",
                elsewhere.get(f"{at}{key}") or _nearest(key, known, "key"),
            )
        inner = kinds.get(key)
        if inner is None:
            continue
        if isinstance(value, dict):
            _unknown_keys(value, inner, source, elsewhere, f"{key}.")
        elif isinstance(value, list):
            for index, row in enumerate(value):
                if isinstance(row, dict):
                    _unknown_keys(row, inner, source, elsewhere, f"{key}[{index}].")


def _tables(kind: type[Section]) -> dict[str, type[Section]]:
    """Keys of a struct whose values are tables, or lists of tables."""
    found: dict[str, type[Section]] = {}
    for key, hint in typing.get_type_hints(kind).items():
        for candidate in (hint, *typing.get_args(hint)):
            if isinstance(candidate, type) and issubclass(candidate, Section):
                found[key] = candidate
    return found


def _as_config_error(message: str, source: str, raw: Mapping[str, Any]) -> BadConfig:
    """Say in our form what msgspec says in its own."""
    found = _AT.match(message)
    assert found is not None
    what, path = found["what"], found["path"] or ""
    missing = _MISSING.search(what)
    if missing:
        key = f"{path}.{missing['key']}" if path else missing["key"]
        return BadConfig(
            "X0-CFG-004",
            f"{source}: {key}: this key is missing",
            _EXAMPLES.get(missing["key"], "add it"),
        )
    value = _at_path(raw, path)
    if what.startswith("Invalid enum value"):
        choices = _CHOICES[path.rpartition(".")[2]]
        return BadConfig(
            "X0-CFG-006",
            f"{source}: {path}: {value!r} is none of {', '.join(choices)}",
            _nearest(str(value), choices, "value"),
        )
    bound = re.match(r"Expected `\w+` (of length )?(>=|<=) (\S+)", what)
    if bound:
        noun = ("item(s)" if isinstance(value, list) else "character(s)") if bound[1] else ""
        limit = f"{'at least' if bound[2] == '>=' else 'at most'} {bound[3]}"
        hint = f"it has {limit} {noun}" if noun else f"it is {limit}"
        return BadConfig("X0-CFG-006", f"{source}: {path}: {value!r} is out of range", hint)
    typed = re.match(r"Expected `([^`]+)`, got `([^`]+)`", what)
    if typed:
        want, got = (_TYPES.get(t, t) for t in (typed[1], typed[2]))
        table = path.partition("[")[0]
        hint = (
            f"write [[{table}]]"
            if typed[2] == "object" and typed[1] == "array"
            else (
                f"write [{path}]"
                if typed[1] == "object"
                else _EXAMPLES.get(
                    path.rpartition(".")[2], f"write {_TYPE_EXAMPLES.get(typed[1], want)}"
                )
            )
        )
        return BadConfig("X0-CFG-005", f"{source}: {path}: expected {want}, got {got}", hint)
    return BadConfig("X0-CFG-005", f"{source}: {path}: {_lower(what)}", "see README.md")


_AT = re.compile(r"^(?P<what>.*?)(?: - at `\$?\.?(?P<path>[^`]*)`)?$", re.DOTALL)
_MISSING = re.compile(r"missing required field `(?P<key>[^`]+)`")
_TYPES: Final = {
    "str": "a string",
    "int": "a whole number",
    "float": "a fraction",
    "bool": "true or false",
    "array": "a list",
    "object": "a table",
}
_TYPE_EXAMPLES: Final = {
    "str": 'it in quotes: "..."',
    "int": "it without quotes: 100",
    "bool": "true or false, without quotes",
    "array": 'a list: ["..."]',
}
_CHOICES: Final = {
    "kind": ("plain", "socks5", "connect"),
    "effect": ("allow", "deny"),
    "expect": ("allow", "deny"),
    "level": ("debug", "info", "warning", "error"),
}
_EXAMPLES: Final = {
    "trust_domain": 'for example: trust_domain = "example.org"',
    "node": 'for example: node = "a"',
    "state_dir": 'for example: state_dir = "/var/lib/x0/a"',
    "id": 'for example: id = "/web"',
    "address": 'for example: address = "127.0.0.1:8080"',
    "selectors": 'for example: selectors = ["unix:uid:1000"]',
    "kind": "it is plain, socks5 or connect",
}


def _at_path(raw: Any, path: str) -> Any:
    for step in re.findall(r"[^.\[\]]+", path):
        if isinstance(raw, list) and step.isdigit() and int(step) < len(raw):
            raw = raw[int(step)]
        elif isinstance(raw, dict) and step in raw:
            raw = raw[step]
        else:
            return None
    return raw


def _nearest(word: str, known: Iterable[str], noun: str) -> str:
    options = list(known)
    import difflib  # Late: only mistakes need it.

    close = difflib.get_close_matches(word, options, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"each {noun} is one of {', '.join(options)}"


def _lower(text: str | None) -> str:
    return text[:1].lower() + text[1:] if text else "error"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        escaped = "".join(
            f"\\u{ord(c):04x}" if ord(c) < 32 or ord(c) == 127 else "\\" + c if c in '"\\' else c
            for c in value
        )
        return f'"{escaped}"'
    return "[" + ", ".join(_toml(item) for item in value) + "]"
