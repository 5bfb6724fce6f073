"""What is a SPIFFE ID and what is not, in tokens and in certificates.

Source: SPIFFE-ID.md section 2.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conformance.conftest import Hall
from tests.conformance.driver import Harness
from x0tta6bl4.sdk.testing.domain import Domain
from x0tta6bl4.sdk.testing.workload_api import WorkloadApi

ROLES = ("server", "client")
LONG = "a" * 63 + "."
DOMAINS = ("192.168.0.1", "a_b-c.1", "xn--bcher-kva.example", "10.0.0.256", "1", "-a-", "a..b",
           "localhost", LONG * 3 + "a" * 63)  # fmt: skip
"""The last one is 255 bytes long."""


def token_refused(hall: Hall, sub: str) -> None:
    assert hall.harness.validate(hall.domain.token("/peer")).code == 200
    answer = hall.harness.validate(hall.domain.token("/peer", claims={"sub": sub}))
    assert answer.code == 422, answer.body


def refused(hall: Hall, id: str) -> None:
    """In a token and, in both roles, in a certificate."""
    token_refused(hall, id)
    if not id.isascii():
        return
    for role in ROLES:
        assert hall.harness.accepts(role, hall.domain.svid("/peer"))
        assert hall.harness.accepts(role, hall.domain.svid("/peer", uris=(id,))) == "", id


def accepted(hall: Hall, id: str, normal: str = "", domain: Domain | None = None) -> None:
    domain = domain or hall.domain
    answer = hall.harness.validate(domain.token("/peer", claims={"sub": id}))
    assert answer.code == 200, answer.body
    assert answer.body["spiffe_id"] == (normal or id)
    for role in ROLES:
        assert hall.harness.accepts(role, domain.svid("/peer", uris=(id,))) == (normal or id)


@pytest.mark.parametrize(
    "id", ["https://example.org/a", "spiffe:/example.org/a", "spiffe:example.org/a",
           "//example.org/a", "example.org/a", "spiffe", "spiffe:", "spiffe//example.org/a",
           "xspiffe://example.org/a",
           "spiffe+x://example.org/a", " spiffe://example.org/a", "spiffe ://example.org/a"],
)  # fmt: skip
def test_SP_001_another_scheme(hall: Hall, id: str) -> None:
    refused(hall, id)


@pytest.mark.parametrize("id", ["spiffe:///a", "spiffe://", "spiffe:///", "spiffe:////a"])
def test_SP_002_an_empty_trust_domain(hall: Hall, id: str) -> None:
    refused(hall, id)


@pytest.mark.parametrize("end", ["?", "?x=1", "#", "#f", "?x#f", "/?", "/#", ";x=1"])
def test_SP_003_query_and_fragment(hall: Hall, end: str) -> None:
    refused(hall, f"spiffe://example.org/a{end}")
    refused(hall, f"spiffe://example.org{end}")


@pytest.mark.parametrize(
    "host", ["example.org:8080", "example.org:", "user@example.org", "@example.org",
             "u:p@example.org", ":@example.org"],
)  # fmt: skip
def test_SP_004_port_and_user(hall: Hall, host: str) -> None:
    refused(hall, f"spiffe://{host}/a")


def test_SP_005_016_upper_case_where_case_has_no_meaning(hall: Hall) -> None:
    for id in ("SPIFFE://example.org/a", "spiffe://EXAMPLE.org/a", "Spiffe://Example.Org/a"):
        accepted(hall, id, "spiffe://example.org/a")


def test_SP_016_upper_case_in_the_path_is_another_id(hall: Hall) -> None:
    accepted(hall, "spiffe://example.org/Web/ADMIN")
    accepted(hall, "SPIFFE://EXAMPLE.ORG/Web/ADMIN", "spiffe://example.org/Web/ADMIN")


@pytest.mark.parametrize(
    "host", ["exa$mple.org", "exa mple.org", "exa!mple.org", "[::1]", "exam~ple.org",
             "*.example.org",
             "example.org\\", "ex\u00e4mple.org", "\uff45xample.org", "exampl\u0435.org",
             "exa\tmple.org", "example.org\n", "e,xample.org", "(example.org)"],
)  # fmt: skip
def test_SP_006_other_letters_in_the_trust_domain(hall: Hall, host: str) -> None:
    refused(hall, f"spiffe://{host}/a")


@pytest.mark.parametrize(
    "host", ["exampl%65.org", "example%2eorg", "%65xample.org", "example.org%00"]
)
def test_SP_007_percent_encoding_in_the_trust_domain(hall: Hall, host: str) -> None:
    refused(hall, f"spiffe://{host}/a")


@pytest.mark.parametrize("path", ["/%41", "/a%2fb", "/a%", "/%", "/%2e%2e/a", "/a%00"])
def test_SP_009_percent_encoding_in_the_path(hall: Hall, path: str) -> None:
    refused(hall, f"spiffe://example.org{path}")


@pytest.mark.parametrize(
    "path", ["//a", "/a//b", "/./a", "/a/.", "/a/./b", "/../a", "/a/..", "/a/../b", "/.", "/.."]
)
def test_SP_010_empty_and_dot_segments(hall: Hall, path: str) -> None:
    refused(hall, f"spiffe://example.org{path}")


@pytest.mark.parametrize("path", ["/", "/a/", "/a/b/", "//", "/a//"])
def test_SP_011_a_slash_at_the_end(hall: Hall, path: str) -> None:
    refused(hall, f"spiffe://example.org{path}")


@pytest.mark.parametrize("letter", list("!$&'()*+,;=:@~ \t\n\\^`{|}<>\"\u00e9\u4e2d\uff0f\u2024"))
def test_SP_012_other_letters_in_the_path(hall: Hall, letter: str) -> None:
    token_refused(hall, f"spiffe://example.org/a{letter}b")
    if letter in "!~:@ \t\n":
        refused(hall, f"spiffe://example.org/a{letter}b")


def test_SP_012_all_letters_that_a_path_may_have(hall: Hall) -> None:
    accepted(hall, "spiffe://example.org/abcxyz/ABCXYZ/0123456789/._-/.../..a/a../-/_")


def test_SP_013_an_id_of_2048_bytes(hall: Hall) -> None:
    start = "spiffe://example.org/"
    accepted(hall, start + "a" * (2048 - len(start)))
    accepted(hall, start + "/".join(["ab"] * 675) + "ab")


def test_SP_023_036_048_no_path_in_a_token_or_a_leaf(hall: Hall) -> None:
    refused(hall, "spiffe://example.org")
    refused(hall, "spiffe://example.org/")


# ----------------------------------------------------------------------- trust domains of all forms
@pytest.fixture(scope="module")
def odd() -> Iterator[tuple[Hall, dict[str, Domain]]]:
    """A harness that knows trust domains with odd names."""
    domains = {name: Domain(name) for name in DOMAINS}
    with WorkloadApi() as api:
        api.issue("/web")
        api.federate(*domains.values())
        with Harness(api.endpoint) as harness:
            yield Hall(api, harness, Domain("other.test")), domains


@pytest.mark.parametrize("name", DOMAINS)
def test_SP_006_008_015_names_that_look_like_something_else(
    odd: tuple[Hall, dict[str, Domain]], name: str
) -> None:
    hall, domains = odd
    accepted(hall, f"spiffe://{name}/a", domain=domains[name])
    # And they are as much apart as any two names.
    token = domains[name].token("/peer", claims={"sub": "spiffe://example.org/peer"})
    assert hall.harness.validate(token).code == 422


def test_SP_015_a_trust_domain_of_256_bytes(hall: Hall) -> None:
    refused(hall, f"spiffe://{LONG * 3}{'a' * 64}/a")


def test_SP_015_a_trust_domain_of_256_bytes_has_no_bundle() -> None:
    """Even where the Workload API has one for it."""
    longest, longer = Domain(LONG * 3 + "a" * 63), Domain(LONG * 3 + "a" * 64)
    with WorkloadApi() as api:
        api.issue("/web")
        api.federate(longer, longest)
        with Harness(api.endpoint) as harness:
            for role in ROLES:
                assert harness.accepts(role, longest.svid("/a"))
                assert harness.accepts(role, longer.svid("/a")) == ""
