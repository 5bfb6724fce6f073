"""Configuration files: `node.toml` and `authority.toml`, decoded and judged as a whole.

A file is read once, at start.  Every mistake in it is one `BadConfig`: file, key path, what is
wrong, and the nearest thing that is right.  What passes here needs no second look by the rooms.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Final, Literal, final

import msgspec
from msgspec import Meta

from x0tta6bl4.app.settings_where import Where
from x0tta6bl4.app.toml_file import Section, decode, dump, read_text
from x0tta6bl4.edge.attest.containers import ENGINES
from x0tta6bl4.wire.authority import TOKEN_TTL_S_MAX, TTL_S_DEFAULT, TTL_S_MAX, TTL_S_MIN
from x0tta6bl4.wire.ids import node_name, trust_domain

__all__ = [
    "NodeSettings",
    "AuthoritySettings",
    "read_node",
    "read_authority",
    "parse_node",
    "parse_authority",
    "dump",
]

DATA_PORT: Final = 7100
CONTROL_PORT: Final = 7101
AUTHORITY_PORT: Final = 7000
HELLO_MS: Final = 125
"""Calm: sessions find a dead relay by themselves, in a fifth of the time of three hellos."""

Level = Literal["debug", "info", "warning", "error"]
HelloMs = Annotated[int, Meta(ge=10, le=10_000)]
TtlS = Annotated[int, Meta(ge=TTL_S_MIN, le=TTL_S_MAX)]
NameText = Annotated[str, Meta(max_length=253)]


@final
class AuthorityAt(Section, frozen=True):
    """`[authority]` of a node: where it is, and how this node proves itself the first time."""

    address: str = ""
    """`host:port`; empty: this host can't reach it, its neighbours carry it there."""
    also: tuple[str, ...] = ()
    """`host:port` of further authorities of the trust domain, tried in turn when one is away."""
    token_file: str = ""
    """File with an enrol token (0600); read only while the node has no key of its own."""
    through: tuple[str, ...] = ()
    """Data ports of neighbours, `host:port`, that carry this node's enrolment to the authority."""


@final
class Data(Section, frozen=True):
    """`[data]`: the proxy's port, one number for TCP (hops) and UDP (hellos)."""

    listen: str = f"0.0.0.0:{DATA_PORT}"
    """Empty: dial out only, as behind a NAT."""
    advertise: tuple[str, ...] = ()
    """`host:port` at which neighbours reach it; empty: they can't, this node dials them."""
    plane: Literal["userspace", "kernel", "auto"] = "userspace"
    """Who passes data on between nodes: proxies, without any privilege; or the kernel, as root, to
    neighbours on the same interface that do so, too.  `auto`: the kernel where it can."""
    xdp: Literal["auto", "native", "generic"] = "auto"
    """Where the kernel's programs meet what comes in: `native` in the driver of the interface,
    `generic` behind it, as on any interface.  Native falls back to generic where the driver refuses
    or nobody answers.  `auto`: native, but generic on veth, where native mode takes joined packets
    apart."""
    member_pps: Annotated[int, Meta(ge=0, le=1_000_000_000)] = 0
    """Packets a second that the kernel takes from each mesh address on the mesh's interfaces, with
    64 more at once; 0: no limit."""
    deny_from: tuple[str, ...] = ()
    """Prefixes (`192.0.2.0/24`, `2001:db8::/32`) from which the kernel takes nothing at all on the
    mesh's interfaces; the longest prefix counts.  `192.0.2.0/24` is `::ffff:192.0.2.0/120`, so that
    `::/0` is all of IPv4, too."""
    allow_from: tuple[str, ...] = ()
    """Longer prefixes within these that are let in all the same."""
    udp: bool = True
    """Whether hellos may go by UDP; false: over a TCP connection of the proxies."""

    @property
    def filters(self) -> tuple[str, ...]:
        """Names of what is set that only the kernel does."""
        return tuple(key for key in ("member_pps", "deny_from", "allow_from") if getattr(self, key))


@final
class Control(Section, frozen=True):
    """`[control]`: the agent's port for links."""

    listen: str = f"0.0.0.0:{CONTROL_PORT}"
    """Empty: dial out only."""


@final
class Link(Section, frozen=True):
    """`[[link]]`: one neighbour."""

    node: str
    """Name of the neighbour."""
    address: str = ""
    """`host:port` of the neighbour's agent; empty: it dials this node."""
    hello_ms: HelloMs = HELLO_MS
    """Time between hellos; three missed ones are a suspicion.  10 costs about 1 % CPU a link.

    Where the kernel watches a link and finds it good there is one a second.
    """


@final
class Listen(Section, frozen=True):
    """`[[listen]]`: where programs of this host hand connections in."""

    address: str
    """`127.0.0.1:1080`, `[::1]:1080` or `unix:/path`; port 0 takes a free one."""
    kind: Literal["plain", "socks5", "connect"]
    """How programs say whom they want: not at all, by SOCKS5, by HTTP CONNECT."""
    name: NameText = ""
    """The service behind a plain listener; the other kinds are told by their clients."""
    sessions: Literal["shared", "own"] = "shared"
    """`own`: each connection has a mutual handshake and circuits to itself, for some 2 ms of CPU;
    at most 512 at once of one workload to one node.  `shared`: all connections of one workload to
    one service on one node go together."""


@final
class Metrics(Section, frozen=True):
    """`[metrics]`: `/metrics` for Prometheus, on loopback only."""

    listen: str = ""
    """Empty: off."""


@final
class WorkloadApi(Section, frozen=True):
    """`[workload_api]`: SPIFFE identities for programs of this host, on a Unix socket."""

    socket: str = ""
    """Empty: `/run/x0tta6bl4/<node>/workload.sock` where `state_dir` is below `/var/lib`, else
    `<state_dir>.api/sock`.  Every user of the host may connect; the kernel says who it is."""
    hold_s: Annotated[float, Meta(ge=0, le=60)] = 5.0
    """How long a program without an identity waits for one before it is refused."""


@final
class Attest(Section, frozen=True):
    """`[attest]`: how the programs of this host are told apart."""

    engines: tuple[str, ...] = ENGINES
    """Sockets of container engines, asked in turn for `docker:` selectors; only those of root or of
    this node's user are believed."""


@final
class Log(Section, frozen=True):
    """`[log]`: JSON lines."""

    level: Level = "info"
    """Least that is written."""
    file: str = ""
    """Empty: standard error, which systemd takes to the journal."""
    access_file: str = ""
    """One line per stream with both IDs, path, bytes and duration; empty: none."""


@final
class NodeSettings(Section, frozen=True):
    """The whole of `node.toml`."""

    trust_domain: str
    """The same on all nodes and at the authority."""
    node: str
    """Name of this node, `[a-z0-9-]`, as its enrolment token has it."""
    state_dir: str
    """Directory of keys, records and sockets: 0700, of this node alone."""
    authority: AuthorityAt = AuthorityAt()
    data: Data = Data()
    control: Control = Control()
    link: tuple[Link, ...] = ()
    listen: tuple[Listen, ...] = ()
    metrics: Metrics = Metrics()
    workload_api: WorkloadApi = WorkloadApi()
    attest: Attest = Attest()
    log: Log = Log()
    area: Annotated[int, Meta(ge=0, le=65_535)] = 0
    """For meshes beyond 500 nodes; the same on all nodes for now."""
    revocation_max_age_s: Annotated[int, Meta(ge=0, le=31_536_000)] = 0
    """Refuse everything once the authority's newest word is older; 0: never (static stability)."""
    require_pq: bool = False
    """Refuse connections whose key exchange is not post-quantum."""


@final
class Svid(Section, frozen=True):
    """`[svid]` of the authority: what it issues."""

    ttl_s: TtlS = TTL_S_DEFAULT
    """Life of a workload's SVID where its entry says nothing; renewed at half of it."""
    node_ttl_s: TtlS = TTL_S_DEFAULT
    """Life of a node SVID: so long do its neighbours depend on a revocation."""


@final
class Ca(Section, frozen=True):
    """`[ca]` of the authority: the key that signs SVIDs."""

    ttl_s: Annotated[int, Meta(ge=3600, le=86_400 * 3650)] = 86_400 * 30
    """Prepared anew at 1/2 of it, activated at 5/6."""


@final
class BundleEndpointAt(Section, frozen=True):
    """`[bundle_endpoint]` of the authority: its bundle for other trust domains, at `/`."""

    listen: str = ""
    """Empty: off."""
    profile: Literal["https_web", "https_spiffe"] = "https_spiffe"
    """Whether it shows a certificate of the web, or the authority's own X.509-SVID."""
    certificate: str = ""
    """`https_web`: PEM chain, leaf first; read anew when the authority renews its SVID."""
    key: str = ""
    """`https_web`: PEM key of the certificate, 0600."""


@final
class OcspAt(Section, frozen=True):
    """`[ocsp]` of the authority: whether one certificate is revoked, for programs elsewhere."""

    listen: str = ""
    """Plain HTTP, the answers are signed; empty: off."""
    url: str = ""
    """`http://host:port` at which workloads reach it: goes into SVIDs, so that servers of the SDK
    staple its answers; empty: they don't."""


@final
class FederationAt(Section, frozen=True):
    """`[federation]` of the authority: how it fetches the bundles of other trust domains."""

    roots: str = ""
    """PEM file of the CAs that `https_web` endpoints are judged by; empty: the system's."""


@final
class AuthoritySettings(Section, frozen=True):
    """The whole of `authority.toml`."""

    trust_domain: str
    """Of the IDs that it issues: `spiffe://<trust_domain>/...`."""
    state_dir: str
    """Directory of the admin socket, and of the store where `store` is empty: 0700."""
    name: NameText = "main"
    """Of this authority, in its ID; each of several in a trust domain has its own."""
    store: str = ""
    """Directory of the database with the CA's key, 0700, on a local disk; empty: `state_dir`.
    Several authorities of this machine that name the same one serve one trust domain."""
    listen: str = f"0.0.0.0:{AUTHORITY_PORT}"
    """Where nodes reach it."""
    advertise: tuple[str, ...] = ()
    """`host:port` at which nodes dial it: goes into enrolment tokens."""
    svid: Svid = Svid()
    ca: Ca = Ca()
    token_ttl_s: Annotated[int, Meta(ge=10, le=TOKEN_TTL_S_MAX)] = TOKEN_TTL_S_MAX
    """Life of an enrolment token where the command says nothing."""
    heartbeat_s: Annotated[int, Meta(ge=1, le=60)] = 30
    """How often it signs that it lives; nodes warn after 120 s without."""
    keys: Literal["p-256", "ml-dsa-65"] = "p-256"
    """Of CAs that are made from now on and of all that they sign for: ECDSA, or the post-quantum
    ML-DSA-65."""
    require_pq: bool = False
    """Refuse nodes whose key exchange is not post-quantum."""
    bundle_endpoint: BundleEndpointAt = BundleEndpointAt()
    federation: FederationAt = FederationAt()
    ocsp: OcspAt = OcspAt()
    metrics: Metrics = Metrics()
    log: Log = Log()


def read_node(path: Path) -> NodeSettings:
    """Read and judge a `node.toml`.

    Raises:
        BadConfig: the file can't be read, or something in it is wrong.
    """
    return parse_node(read_text(path), str(path))


def read_authority(path: Path) -> AuthoritySettings:
    """Read and judge an `authority.toml`.

    Raises:
        BadConfig: the file can't be read, or something in it is wrong.
    """
    return parse_authority(read_text(path), str(path))


def parse_node(text: str, source: str = "node.toml") -> NodeSettings:
    """Judge the text of a `node.toml`; short IDs come out complete.

    Args:
        text: TOML.
        source: name of the file, for errors.
    Raises:
        BadConfig: with file, key path and hint.
    """
    settings = decode(text, source, NodeSettings, _ELSEWHERE)
    return _NodeJudge(settings, source).judged()


def parse_authority(text: str, source: str = "authority.toml") -> AuthoritySettings:
    """Judge the text of an `authority.toml`.

    Raises:
        BadConfig: with file, key path and hint.
    """
    settings = decode(text, source, AuthoritySettings)
    where = Where(source)
    where.identifier("trust_domain", settings.trust_domain, trust_domain)
    where.state_dir("state_dir", settings.state_dir)
    where.identifier("name", settings.name, node_name)
    if settings.store:
        where.path("store", settings.store)
    where.bindable("listen", settings.listen)
    _advertised(where, "advertise", settings.advertise)
    _bundle_endpoint(where, settings.bundle_endpoint)
    _ocsp(where, settings.ocsp)
    if settings.federation.roots:
        where.path("federation.roots", settings.federation.roots)
    _metrics_and_log(where, settings.metrics, settings.log)
    return settings


def _ocsp(where: Where, at: OcspAt) -> None:
    if at.listen:
        where.bindable("ocsp.listen", at.listen)
    if at.url and not re.fullmatch(r"http://[A-Za-z0-9.:\[\]-]{1,255}(/[!-~]{0,255})?", at.url):
        raise where.error(
            "X0-CFG-016", "ocsp.url", f"{at.url!r} is no http address", "http://host:port"
        )


def _bundle_endpoint(where: Where, at: BundleEndpointAt) -> None:
    if not at.listen:
        return
    where.bindable("bundle_endpoint.listen", at.listen)
    files = {"certificate": at.certificate, "key": at.key}
    for name, path in files.items():
        key = f"bundle_endpoint.{name}"
        if at.profile == "https_web":
            where.path(key, path)
        elif path:
            raise where.error(
                "X0-CFG-015", key, "set, but the profile is https_spiffe", "leave it out"
            )


def _advertised(where: Where, key: str, addresses: tuple[str, ...]) -> None:
    if len(addresses) > 8:
        raise where.error(
            "X0-CFG-006", key, "more than 8 addresses", "name those that neighbours use"
        )
    for i, text in enumerate(addresses):
        host, _ = where.endpoint(f"{key}[{i}]", text, 1)
        if host in ("0.0.0.0", "::"):
            raise where.error(
                "X0-CFG-008",
                f"{key}[{i}]",
                f"{host!r} is nobody's address",
                "write the one that others dial",
            )


def _metrics_and_log(where: Where, metrics: Metrics, log: Log) -> None:
    if metrics.listen:
        where.loopback("metrics.listen", metrics.listen, unix=False, port_min=0)
    for key, text in (("log.file", log.file), ("log.access_file", log.access_file)):
        if text:
            where.path(key, text)


class _NodeJudge:
    """What the types of `NodeSettings` can't say."""

    __slots__ = ("settings", "where")

    def __init__(self, settings: NodeSettings, source: str) -> None:
        self.settings = settings
        self.where = Where(source)

    def judged(self) -> NodeSettings:
        """The settings, normalised, once everything in them is right."""
        where, settings = self.where, self.settings
        domain = where.identifier("trust_domain", settings.trust_domain, trust_domain)
        where.identifier("node", settings.node, node_name)
        if settings.node == "authority":
            raise where.error("X0-CFG-007", "node", "'authority' is reserved", "choose another")
        where.state_dir("state_dir", settings.state_dir)
        self._authority()
        self._ports()
        self._links()
        self._listeners()
        if settings.workload_api.socket:
            where.socket("workload_api.socket", settings.workload_api.socket)
        _metrics_and_log(where, settings.metrics, settings.log)
        return msgspec.structs.replace(settings, trust_domain=domain)

    def _authority(self) -> None:
        at = self.settings.authority
        if at.address:
            self.where.endpoint("authority.address", at.address, 1)
        elif at.also:
            raise self.where.error(
                "X0-CFG-011",
                "authority.also",
                "authority.address is not set",
                "name that first",
            )
        _advertised(self.where, "authority.also", at.also)
        if at.token_file:
            self.where.path("authority.token_file", at.token_file)
        _advertised(self.where, "authority.through", at.through)

    def _ports(self) -> None:
        data, control = self.settings.data, self.settings.control
        if data.listen:
            self.where.bindable("data.listen", data.listen)
        if control.listen:
            self.where.bindable("control.listen", control.listen)
        if data.listen and data.listen == control.listen and not data.listen.endswith(":0"):
            raise self.where.error(
                "X0-CFG-010",
                "control.listen",
                f"{data.listen!r} is data.listen too",
                "use another port",
            )
        _advertised(self.where, "data.advertise", data.advertise)
        denied = self.where.networks("data.deny_from", data.deny_from)
        allowed = self.where.networks("data.allow_from", data.allow_from)
        for i, prefix in enumerate(allowed):
            if prefix in denied:
                raise self.where.error(
                    "X0-CFG-010",
                    f"data.allow_from[{i}]",
                    f"{data.allow_from[i]!r} is in data.deny_from too",
                    "remove one: of two prefixes the longer counts, and these are the same",
                )
        for key in data.filters if data.plane == "userspace" else ():
            raise self.where.error(
                "X0-CFG-017",
                f"data.{key}",
                'plane is "userspace", and only the kernel turns packets away',
                'say plane = "kernel", or leave it out',
            )
        if data.advertise and not data.listen:
            raise self.where.error(
                "X0-CFG-011",
                "data.advertise",
                "nothing listens there",
                "set data.listen, or leave it out",
            )

    def _links(self) -> None:
        where, links = self.where, self.settings.link
        if len(links) > 256:
            raise where.error("X0-CFG-006", "link", f"{len(links)} links", "at most 256")
        for i, link in enumerate(links):
            where.identifier(f"link[{i}].node", link.node, node_name)
            if link.node == self.settings.node:
                raise where.error(
                    "X0-CFG-011", f"link[{i}].node", "this is the node itself", "name the neighbour"
                )
            if link.address:
                where.endpoint(f"link[{i}].address", link.address, 1)
            elif not self.settings.control.listen:
                raise where.error(
                    "X0-CFG-011",
                    f"link[{i}].address",
                    "neither side can dial: control.listen is empty",
                    "give the neighbour's address",
                )
        where.distinct("node", ((f"link[{i}].node", link.node) for i, link in enumerate(links)))
        where.distinct(
            "address",
            ((f"link[{i}].address", link.address) for i, link in enumerate(links) if link.address),
        )

    def _listeners(self) -> None:
        listeners = self.settings.listen
        for i, listener in enumerate(listeners):
            self.where.loopback(f"listen[{i}].address", listener.address, unix=True, port_min=0)
            key = f"listen[{i}].name"
            if listener.kind == "plain" and not listener.name:
                raise self.where.error(
                    "X0-CFG-004", key, "a plain listener needs a name", 'for example: name = "web"'
                )
            if listener.kind != "plain" and listener.name:
                raise self.where.error(
                    "X0-CFG-011",
                    key,
                    f"a {listener.kind} listener has none",
                    "its clients name the service; remove it",
                )
            if listener.name and not _SERVICE_NAME.fullmatch(listener.name):
                raise self.where.error(
                    "X0-CFG-007",
                    key,
                    f"{listener.name!r} is no service name",
                    "use [a-z0-9-] and dots, without .mesh",
                )
        self.where.distinct(
            "address",
            (
                (f"listen[{i}].address", listener.address)
                for i, listener in enumerate(listeners)
                if not listener.address.endswith(":0")
            ),
        )


_ELSEWHERE: Final = {
    "service": "services are registered at the authority: x0 entry create --address ...",
    "caller": "callers are registered at the authority: x0 entry create",
}
_SERVICE_NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")
