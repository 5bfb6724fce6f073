"""`x0 authority`: the trust domain's own process, and what its operator does."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import click

from x0tta6bl4.app.cli import services
from x0tta6bl4.app.cli.reach import (
    ask_authority,
    at,
    authority_option,
    confirmed,
    json_option,
    print_fields,
    print_json,
    print_table,
)


@click.group(
    epilog="""\b
Examples:
  x0 authority init --trust-domain example.org --config /etc/x0/authority.toml
  x0 authority run --config /etc/x0/authority.toml
  x0 authority revoke spiffe://example.org/web"""
)
def authority() -> None:
    """Run the authority of a trust domain; revoke, rotate, look at it."""


@authority.command(
    epilog="""\b
Examples:
  x0 authority init --trust-domain example.org --advertise 192.0.2.1:7000"""
)
@click.option("--trust-domain", required=True, metavar="NAME", help="For example: example.org")
@click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False, readable=False),
    default=Path("/etc/x0/authority.toml"),
    show_default=True,
    help="Where to write the settings.",
)
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path, readable=False),
    default=Path("/var/lib/x0/authority"),
    show_default=True,
    help="Admin socket; database and CA key, too, without --store.",
)
@click.option("--name", default="main", show_default=True, help="Of several in a trust domain.")
@click.option(
    "--store",
    type=click.Path(path_type=Path, readable=False),
    help="Database and CA key; several authorities of this machine may share it.",
)
@click.option("--listen", default="0.0.0.0:7000", show_default=True, metavar="HOST:PORT")
@click.option(
    "--advertise",
    multiple=True,
    metavar="HOST:PORT",
    help="Where nodes dial it; goes into tokens. Repeatable.",
)
@click.option(
    "--keys",
    type=click.Choice(("p-256", "ml-dsa-65")),
    default="p-256",
    show_default=True,
    help="Of the CA and of all SVIDs; ml-dsa-65 is post-quantum, and large.",
)
def init(
    trust_domain: str,
    config: Path,
    state_dir: Path,
    name: str,
    store: Path | None,
    listen: str,
    advertise: tuple[str, ...],
    keys: Literal["p-256", "ml-dsa-65"],
) -> None:
    """Write the settings of a new trust domain; its CA is made at the first run."""
    from x0tta6bl4.app.settings import AuthoritySettings, dump, parse_authority
    from x0tta6bl4.wire.errors import Conflict

    text = dump(
        AuthoritySettings(
            trust_domain=trust_domain,
            state_dir=str(state_dir.absolute()),
            name=name,
            store=str(store.absolute()) if store is not None else "",
            listen=listen,
            advertise=advertise,
            keys=keys,
        )
    )
    parse_authority(text, str(config))
    if config.exists():
        raise Conflict(
            "X0-CLI-030",
            f"{config} exists already",
            "this trust domain has been set up; edit the file, or name another",
        )
    if any(state_dir.glob("*")):
        raise Conflict(
            "X0-CLI-031",
            f"{state_dir} is not empty",
            "another authority lives there; name another directory",
        )
    config.parent.mkdir(parents=True, exist_ok=True)
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(os.open(config, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), "w") as file:
        file.write(text)
    print(f"wrote {config}; next: x0 authority run --config {config}")


@authority.command(
    epilog="""\b
Examples:
  x0 authority run --config /etc/x0/authority.toml"""
)
@click.option(
    "--config", type=click.Path(path_type=Path, dir_okay=False, readable=False), required=True
)
def run(config: Path) -> int:
    """Run the authority in the foreground, as systemd wants it; SIGTERM ends it."""
    return services.run_authority(config)


@authority.command(
    epilog="""\b
Examples:
  x0 authority status --json"""
)
@authority_option
@json_option
def status(authority_dir: Path | None, as_json: bool) -> None:
    """State of the authority: its sets, counts, CA."""
    from x0tta6bl4.wire.authority import Nothing

    health = ask_authority(authority_dir, "Health", Nothing())
    if as_json:
        print_json(health)
    else:
        print_fields(health)


@authority.command(
    epilog="""\b
Examples:
  x0 authority revoke spiffe://example.org/web --reason "laptop lost"
  x0 authority revoke spiffe://example.org/web --reissue    new SVIDs at once, the old ones end"""
)
@click.argument("subject")
@click.option("--reason", default="", help="For the record.")
@click.option("--reissue", is_flag=True, help="Revoke what is out, but go on issuing.")
@click.option("--yes", is_flag=True, help="Don't ask.")
@authority_option
@json_option
def revoke(
    subject: str, reason: str, reissue: bool, yes: bool, authority_dir: Path | None, as_json: bool
) -> None:
    """End an identity: its circuits and sessions everywhere, within a second."""
    from x0tta6bl4.wire.authority import Revoke

    if not confirmed(f"revoke all SVIDs of {subject}?", yes):
        raise click.Abort
    made = ask_authority(
        authority_dir, "Revoke", Revoke(subject=subject, reason=reason, ban=not reissue)
    )
    if as_json:
        print_json(made)
    else:
        print(f"{made.subject} is revoked until {at(made.until_unix_s)}")


@authority.command(
    epilog="""\b
Examples:
  x0 authority revocations"""
)
@authority_option
@json_option
def revocations(authority_dir: Path | None, as_json: bool) -> None:
    """What is revoked, and who is banned."""
    from x0tta6bl4.wire.authority import Nothing

    answer = ask_authority(authority_dir, "RevocationList", Nothing())
    if as_json:
        print_json(answer)
        return
    print_table(
        ("REVOKED", "UNTIL", "REASON"),
        [(r.subject, at(r.until_unix_s), r.reason) for r in answer.revocations],
    )
    print_table(
        ("BANNED", "SINCE", "REASON"),
        [(b.subject, at(b.since_unix_s), b.reason) for b in answer.bans],
    )


@authority.command(
    epilog="""\b
Examples:
  x0 authority crl > crl.pem
  x0 authority crl --der lists    one file for each CA"""
)
@click.option(
    "--der",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write them here as DER, <key identifier of the CA>.crl, instead.",
)
@authority_option
def crl(directory: Path | None, authority_dir: Path | None) -> None:
    """Print the revocation list of each CA as PEM, for programs outside of the mesh."""
    from base64 import encodebytes

    from x0tta6bl4.wire.authority import Nothing

    lists = ask_authority(authority_dir, "CrlShow", Nothing()).lists
    if directory is None:
        for der in lists:
            print(f"-----BEGIN X509 CRL-----\n{encodebytes(der).decode()}-----END X509 CRL-----")
        return
    from x0tta6bl4.edge.tls.crl import signer_of

    directory.mkdir(parents=True, exist_ok=True)
    for der in lists:
        path = directory / f"{signer_of(der)}.crl"
        path.with_suffix(".new").write_bytes(der)
        path.with_suffix(".new").replace(path)
        print(path)


@authority.command(
    epilog="""\b
Examples:
  x0 authority unban spiffe://example.org/web"""
)
@click.argument("subject")
@authority_option
def unban(subject: str, authority_dir: Path | None) -> None:
    """Let a banned subject have SVIDs again; those revoked stay so."""
    from x0tta6bl4.wire.authority import Key

    ask_authority(authority_dir, "Unban", Key(subject))
    print(f"{subject} may have SVIDs again")


@authority.command(
    epilog="""\b
Examples:
  x0 authority bundle --json"""
)
@authority_option
@json_option
def bundle(authority_dir: Path | None, as_json: bool) -> None:
    """The trust bundle and the life of its CAs."""
    from x0tta6bl4.wire.authority import Nothing

    info = ask_authority(authority_dir, "BundleShow", Nothing())
    if as_json:
        print_json(info)
        return
    print(f"{info.bundle.trust_domain}, sequence {info.bundle.sequence}, sha256 {info.sha256}")
    print_table(
        ("CA", "STATE", "FROM", "UNTIL"),
        [(ca.id, ca.state, at(ca.not_before_unix_s), at(ca.not_after_unix_s)) for ca in info.cas],
    )


@authority.command(
    epilog="""\b
Examples:
  x0 authority rotate-ca prepare
  x0 authority rotate-ca activate"""
)
@click.argument("step", type=click.Choice(("prepare", "activate", "retire", "next")))
@click.option("--force", is_flag=True, help="Even when nodes may not have learnt it yet.")
@authority_option
@json_option
def rotate_ca(step: str, force: bool, authority_dir: Path | None, as_json: bool) -> None:
    """Move the life cycle of the CA on by hand."""
    from x0tta6bl4.wire.authority import BundleRotate

    info = ask_authority(authority_dir, "BundleRotate", BundleRotate(step=step, force=force))
    if as_json:
        print_json(info)
    else:
        print(f"done; {len(info.cas)} CAs, bundle {info.sha256}")


@authority.command(
    epilog="""\b
Examples:
  x0 authority renew-all"""
)
@authority_option
def renew_all(authority_dir: Path | None) -> None:
    """Have every node renew every SVID now."""
    from x0tta6bl4.wire.authority import Nothing

    ask_authority(authority_dir, "RenewAll", Nothing())
    print("every node has been told")
