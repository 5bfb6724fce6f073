"""`x0 policy`: who may call whom."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from x0tta6bl4.app.cli.reach import (
    ask_authority,
    authority_option,
    confirmed,
    json_option,
    print_json,
    print_table,
)

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.group(
    epilog="""\b
Examples:
  x0 policy show --toml > policy.toml
  x0 policy test policy.toml
  x0 policy apply policy.toml
  x0 policy explain spiffe://example.org/client web"""
)
def policy() -> None:
    """Who may call whom: show, apply, test, explain.

    A deny wins over every allow; the callers of a name may call its ID; what nothing allows is
    denied. A change is in force on every node within a second, for open connections too.
    """


@policy.command(
    epilog="""\b
Examples:
  x0 policy show
  x0 policy show --toml > policy.toml"""
)
@click.option("--toml", "as_toml", is_flag=True, help="As a file for x0 policy apply.")
@authority_option
@json_option
def show(as_toml: bool, authority_dir: Path | None, as_json: bool) -> None:
    """The rules in force."""
    from x0tta6bl4.app import policy as text

    answer = _in_force(authority_dir)
    if as_json:
        print_json(answer)
    elif as_toml:
        sys.stdout.write(text.as_toml(answer.rules))
    else:
        print_table(
            ("RULE", "EFFECT", "CALLERS", "TARGETS"),
            [(r.id, r.effect, " ".join(r.callers), " ".join(r.targets)) for r in answer.rules],
        )


@policy.command(
    epilog="""\b
Examples:
  x0 policy apply policy.toml
  x0 policy apply policy.toml --plan       only show what would change
  x0 policy apply policy.toml --yes"""
)
@click.argument("file", type=_FILE)
@click.option("--plan", "plan_only", is_flag=True, help="Show the plan and stop.")
@click.option("--yes", is_flag=True, help="Don't ask.")
@authority_option
@json_option
def apply(
    file: Path, plan_only: bool, yes: bool, authority_dir: Path | None, as_json: bool
) -> None:
    """Replace all rules by those of a file: tests first, then the plan, then a question."""
    from x0tta6bl4.app import policy as text
    from x0tta6bl4.wire.authority import Policy

    wanted = text.read_policy(file)
    rules = text.rules_of(wanted)
    failed = [row for row in _run_tests(wanted, authority_dir) if not row["passed"]]
    if failed:
        _refuse(failed)
    current = _in_force(authority_dir)
    changes = text.plan(current.rules, rules)
    if as_json:
        print_json({"version": current.version, "changes": changes})
    else:
        for change in changes:
            print(f"{change.what} {change.id}")
            for line in change.lines:
                print(f"    {line}")
        print(
            f"{len(changes)} of {len(current.rules)} rules change" if changes else "nothing changes"
        )
    if plan_only or not changes:
        return
    if not confirmed("apply this?", yes):
        raise click.Abort
    made = ask_authority(authority_dir, "PolicyApply", Policy(rules, current.version))
    if not as_json:
        print(f"applied, version {made.version}")


@policy.command(
    epilog="""\b
Examples:
  x0 policy test policy.toml"""
)
@click.argument("file", type=_FILE)
@authority_option
@json_option
def test(file: Path, authority_dir: Path | None, as_json: bool) -> None:
    """Run the [[test]] cases of a file against its rules and the names in force."""
    from x0tta6bl4.app import policy as text

    rows = _run_tests(text.read_policy(file), authority_dir)
    if as_json:
        print_json(rows)
    else:
        print_table(
            ("", "CALLER", "TARGET", "EXPECTED", "BECAUSE"),
            [
                (
                    "ok" if r["passed"] else "FAILED",
                    r["caller"],
                    r["target"],
                    r["expect"],
                    f"{r['by']}: {r['why']}",
                )
                for r in rows
            ],
        )
    failed = [row for row in rows if not row["passed"]]
    if failed:
        _refuse(failed)


@policy.command(
    epilog="""\b
Examples:
  x0 policy explain spiffe://example.org/client web
  x0 policy explain spiffe://example.org/client spiffe://example.org/db --file policy.toml"""
)
@click.argument("caller")
@click.argument("target")
@click.option("--file", type=_FILE, help="Ask the rules of a file instead of those in force.")
@authority_option
@json_option
def explain(
    caller: str, target: str, file: Path | None, authority_dir: Path | None, as_json: bool
) -> None:
    """Would this caller get through to this ID or name, and because of what?"""
    from x0tta6bl4.app import policy as text
    from x0tta6bl4.wire.ids import spiffe_id

    spiffe_id(caller)
    if target.startswith("spiffe:"):
        spiffe_id(target)
    rules = text.rules_of(text.read_policy(file)) if file else _in_force(authority_dir).rules
    reason = text.explain(caller, target, _names(authority_dir), rules)
    if as_json:
        print_json(reason)
    else:
        print(f"{'allowed' if reason.allowed else 'denied'} by {reason.by}: {reason.why}")


def _in_force(authority_dir: Path | None) -> Any:
    from x0tta6bl4.wire.authority import Nothing

    return ask_authority(authority_dir, "PolicyShow", Nothing())


def _names(authority_dir: Path | None) -> list[Any]:
    from x0tta6bl4.wire.authority import Page

    found: list[Any] = []
    more = True
    while more:
        page = ask_authority(authority_dir, "NameList", Page(after=found[-1].name if found else ""))
        found += page.names
        more = page.more and bool(page.names)
    return found


def _run_tests(wanted: Any, authority_dir: Path | None) -> list[dict[str, Any]]:
    from x0tta6bl4.app import policy as text

    if not wanted.test:
        return []
    names, rules = _names(authority_dir), text.rules_of(wanted)
    rows = []
    for case in wanted.test:
        reason = text.explain(case.caller, case.target, names, rules)
        rows.append(
            {
                "caller": case.caller,
                "target": case.target,
                "expect": case.expect,
                "passed": reason.allowed == (case.expect == "allow"),
                "by": reason.by,
                "why": reason.why,
            }
        )
    return rows


def _refuse(failed: list[dict[str, Any]]) -> None:
    from x0tta6bl4.wire.errors import Refused

    first = failed[0]
    more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
    raise Refused(
        "X0-POL-001",
        f"test failed: {first['caller']} to {first['target']} was to be "
        f"{first['expect']}, but {first['by']} says otherwise{more}",
        "mend the rules or the test; nothing was applied",
    )
