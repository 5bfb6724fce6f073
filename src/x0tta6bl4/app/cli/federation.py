"""`x0 federation`, `x0 bundle`: trust domains beside our own, and what they need of ours."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import msgspec

from x0tta6bl4.app.cli.reach import (
    ask_authority,
    at,
    authority_option,
    json_option,
    print_json,
    print_table,
)
from x0tta6bl4.wire import authority as words


@click.group(
    epilog="""\b
Examples:
  x0 federation create other.test --url https://bundle.other.test/ --profile https_web
  x0 federation create other.test --url https://10.0.0.9:8443/ --profile https_spiffe \\
      --endpoint-id spiffe://other.test/authority/main --bundle other.json
  x0 federation list"""
)
def federation() -> None:
    """Foreign trust domains: where their bundles come from, and what is held of them."""


@federation.command(
    "list",
    epilog="""\b
Examples:
  x0 federation list --json""",
)
@authority_option
@json_option
def federation_list(authority_dir: Path | None, as_json: bool) -> None:
    """All foreign trust domains, and how the last poll went."""
    answer = ask_authority(authority_dir, "FederationList", words.Page())
    if as_json:
        print_json(answer.federations)
        return
    print_table(
        ("TRUST DOMAIN", "SEQUENCE", "FETCHED", "NEXT", "URL", "FAILED"),
        [
            (f.trust_domain, f.sequence or "-", at(f.fetched_unix_s), at(f.next_unix_s), f.url,
             f.failed or "-")
            for f in answer.federations
        ],
    )  # fmt: skip


@federation.command(
    "show",
    epilog="""\b
Examples:
  x0 federation show other.test""",
)
@click.argument("trust_domain")
@authority_option
@json_option
def federation_show(trust_domain: str, authority_dir: Path | None, as_json: bool) -> None:
    """One foreign trust domain, and the bundle held of it."""
    _show(ask_authority(authority_dir, "FederationShow", words.Key(trust_domain)), as_json)


def _options(command: click.decorators.FC) -> click.decorators.FC:
    for option in (
        click.option("--url", help="Its bundle endpoint, https."),
        click.option("--profile", type=click.Choice(("https_web", "https_spiffe"))),
        click.option("--endpoint-id", help="SPIFFE ID of the endpoint, for https_spiffe."),
        click.option(
            "--bundle",
            type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
            help="File with its bundle in the SPIFFE format; - reads standard input.",
        ),
    ):
        command = option(command)
    return command


@federation.command(
    "create",
    epilog="""\b
Examples:
  x0 federation create other.test --url https://bundle.other.test/ --profile https_web""",
)
@click.argument("trust_domain")
@_options
@authority_option
@json_option
def federation_create(
    trust_domain: str,
    url: str | None,
    profile: str | None,
    endpoint_id: str | None,
    bundle: Path | None,
    authority_dir: Path | None,
    as_json: bool,
) -> None:
    """Hold the bundle of a foreign trust domain, for the entries that federate with it."""
    if not url or not profile:
        raise click.UsageError("--url and --profile are needed: neither is guessed")
    wanted = words.Federation(
        trust_domain=trust_domain,
        url=url,
        profile=profile,
        endpoint_id=endpoint_id or "",
        bundle=_read(bundle),
    )
    _show(ask_authority(authority_dir, "FederationCreate", wanted), as_json)


@federation.command(
    "update",
    epilog="""\b
Examples:
  x0 federation update other.test --url https://new.other.test/
  x0 federation update other.test --bundle other.json""",
)
@click.argument("trust_domain")
@_options
@authority_option
@json_option
def federation_update(
    trust_domain: str,
    url: str | None,
    profile: str | None,
    endpoint_id: str | None,
    bundle: Path | None,
    authority_dir: Path | None,
    as_json: bool,
) -> None:
    """Change where a bundle comes from, or give one by hand."""
    old = ask_authority(authority_dir, "FederationShow", words.Key(trust_domain))
    new = msgspec.structs.replace(
        old,
        url=old.url if url is None else url,
        profile=old.profile if profile is None else profile,
        endpoint_id=old.endpoint_id if endpoint_id is None else endpoint_id,
        bundle=_read(bundle) or old.bundle,
    )
    _show(ask_authority(authority_dir, "FederationUpdate", new), as_json)


@federation.command(
    "refresh",
    epilog="""\b
Examples:
  x0 federation refresh other.test""",
)
@click.argument("trust_domain")
@authority_option
def federation_refresh(trust_domain: str, authority_dir: Path | None) -> None:
    """Poll now, not only when it is due."""
    ask_authority(authority_dir, "FederationRefresh", words.Key(trust_domain))
    print(f"{trust_domain} is polled; see x0 federation list")


@federation.command(
    "delete",
    epilog="""\b
Examples:
  x0 federation delete other.test""",
)
@click.argument("trust_domain")
@authority_option
def federation_delete(trust_domain: str, authority_dir: Path | None) -> None:
    """Forget a foreign trust domain; no workload is given its bundle any more."""
    ask_authority(authority_dir, "FederationDelete", words.Key(trust_domain))
    print(f"{trust_domain} is forgotten")


@click.group(
    epilog="""\b
Examples:
  x0 bundle show > ours.json"""
)
def bundle() -> None:
    """The trust bundle of this trust domain."""


@bundle.command(
    "show",
    epilog="""\b
Examples:
  x0 bundle show                    what another trust domain needs to federate with us
  x0 bundle show --format pem       CA certificates alone""",
)
@click.option(
    "--format", "form", type=click.Choice(("spiffe", "pem")), default="spiffe", show_default=True
)
@authority_option
def bundle_show(form: str, authority_dir: Path | None) -> None:
    """Print the bundle: as SPIFFE document, or its CA certificates as PEM."""
    from x0tta6bl4.edge.bundle.document import encode, of_bundle

    info = ask_authority(authority_dir, "BundleShow", words.Nothing())
    if form == "spiffe":
        print(encode(of_bundle(info.bundle)).decode())
        return
    import ssl

    for anchor in info.bundle.anchors:
        print(ssl.DER_cert_to_PEM_cert(anchor), end="")


def _read(path: Path | None) -> bytes:
    if path is None:
        return b""
    if str(path) == "-":
        return sys.stdin.buffer.read(words.DOCUMENT_BYTES_MAX + 1)
    with open(path, "rb") as file:
        return file.read(words.DOCUMENT_BYTES_MAX + 1)


def _show(row: words.Federation, as_json: bool) -> None:
    if as_json:
        print_json(row)
        return
    for name in ("trust_domain", "url", "profile", "endpoint_id", "sequence", "failed"):
        value = getattr(row, name)
        if value:
            print(f"{name.ljust(14)}{value}")
    print(f"{'fetched'.ljust(14)}{at(row.fetched_unix_s)}")
    print(f"{'next'.ljust(14)}{at(row.next_unix_s)}")
    if row.bundle:
        print(row.bundle.decode(errors="replace"))
