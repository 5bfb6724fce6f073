"""`x0 status`, `path`, `check`, `support-bundle`: what a node says of itself."""

from __future__ import annotations

from pathlib import Path

import click

from x0tta6bl4.app.cli.reach import (
    json_option,
    node_dirs,
    node_options,
    one_node,
    print_json,
    print_table,
)


@click.command(
    epilog="""\b
Examples:
  x0 status
  x0 status --watch
  x0 status --node n1 --json"""
)
@click.option("--watch", is_flag=True, help="A live view; Ctrl-C ends it.")
@json_option
@node_options
def status(watch: bool, as_json: bool, name: str, state_dir: Path | None) -> None:
    """How nodes, links, paths, services and sessions are.

    Of all nodes that run here, or of one.
    """
    if watch and as_json:
        raise click.UsageError("--watch and --json exclude each other")
    dirs = node_dirs(state_dir, name)
    from x0tta6bl4.app.cli import gather, view

    if watch:
        view.live(lambda: gather.statuses(dirs))
        return
    found = gather.statuses(dirs)
    gather.raise_if_none(found)
    if as_json:
        print_json([one for one in found if not isinstance(one, gather.Silent)])
    else:
        view.print_once(found)


@click.command(
    epilog="""\b
Examples:
  x0 path n1 n4
  x0 path n1 web.mesh"""
)
@click.argument("a")
@click.argument("b")
@json_option
@node_options
def path(a: str, b: str, as_json: bool, name: str, state_dir: Path | None) -> None:
    """Which way from node A to B (a node, a service name or an ID), and what backs it up."""
    from x0tta6bl4.wire.admin import GetPath, PathAnswer

    with one_node(state_dir, name) as client:
        answer = client.ask(GetPath(a, b.removesuffix(".mesh")), PathAnswer)
    if as_json:
        print_json(answer)
        return
    costs = answer.costs or (0,) * len(answer.paths)
    print_table(
        ("", "COST", "PATH"),
        [
            ("in use" if i == 0 else "backup", f"{cost / 16:.2f} ms", " -> ".join(way))
            for i, (way, cost) in enumerate(zip(answer.paths, costs, strict=False))
        ],
    )
    if len(answer.paths) > 1 and not answer.disjoint:
        print("the backup shares a relay or a link with the path in use")


@click.command(
    epilog="""\b
Examples:
  x0 check
  x0 check --json"""
)
@json_option
@node_options
def check(as_json: bool, name: str, state_dir: Path | None) -> int:
    """What is wrong here, each finding with a stable id and a hint.

    The exit status is 1 if something does not work, 0 otherwise.
    """
    from x0tta6bl4.app.cli import gather

    found, planes = gather.findings(node_dirs(state_dir, name))
    if as_json:
        print_json(
            [
                {"node": node, **{f: getattr(one, f) for f in one.__struct_fields__}}
                for node, one in found
            ]
        )
    else:
        for node, plane in planes.items():
            print(f"data plane of {node}: {plane}")
        if not found:
            print("nothing is wrong")
        for node, one in found:
            print(f"{one.level.upper():7}  {node}: {one.id}: {one.what}. {one.hint}")
    return int(any(one.level == "error" for _, one in found))


@click.command(
    "support-bundle",
    epilog="""\b
Examples:
  x0 support-bundle --out bundle.tar.gz""",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("x0-support.tar.gz"),
    show_default=True,
)
@node_options
def support_bundle(out: Path, name: str, state_dir: Path | None) -> None:
    """Collect status, findings, metrics, settings and logs; key material is taken out."""
    from x0tta6bl4.app.cli import gather

    count = gather.write_bundle(out, node_dirs(state_dir, name))
    print(f"wrote {out}, {count} files; look into it before you pass it on")
