"""Metrics say what the rooms counted; logs say what happened, and never a secret."""

from __future__ import annotations

import asyncio
import json
import logging
import stat
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from tests.fakes.node_admin import UNIX_S, a_status
from x0tta6bl4.edge.tls import x509
from x0tta6bl4.telemetry import access, catalogue, log, metrics
from x0tta6bl4.telemetry.redact import GONE, redact, redact_value
from x0tta6bl4.wire.authority import Health
from x0tta6bl4.wire.messages import SvidItem
from x0tta6bl4.wire.token import Token, write_token


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """What a scraper reads: (name, labels) -> value."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


# ------------------------------------------------------------------ metrics
def test_a_status_says_how_the_node_is() -> None:
    got = samples(metrics.render(a_status()))
    assert got["x0_link_up", (("peer", "b"),)] == 1
    assert got["x0_link_suspected", (("peer", "f"),)] == 1
    assert got["x0_link_rtt_seconds", (("peer", "b"),)] == 0.000412
    assert got["x0_link_loss_ratio", (("peer", "f"),)] == 0.021
    assert got["x0_svid_not_after_seconds", (("id", "spiffe://example.org/client"),)] == (
        UNIX_S + 3000
    )
    assert got["x0_records", ()] == 12
    assert got["x0_members", ()] == 6
    assert got["x0_authority_age_seconds", ()] == 4
    assert got["x0_state", (("state", "ready"),)] == 1
    assert got["x0_requests_total", (("outcome", "ok"), ("side", "client"))] == 1000
    assert got["x0_undeclared", ()] == 0


def test_a_link_that_is_down_has_no_rtt() -> None:
    status = a_status()
    down = msgspec.structs.replace(status.links[0], state="down")
    got = samples(metrics.render(msgspec.structs.replace(status, links=(down,))))
    assert got["x0_link_up", (("peer", "b"),)] == 0
    assert ("x0_link_rtt_seconds", (("peer", "b"),)) not in got


@pytest.mark.parametrize("metric", catalogue.METRICS, ids=lambda metric: metric.name)
def test_each_declared_metric_is_moved_by_its_count(metric: catalogue.Metric) -> None:
    labels = [f"{label} <1>" for label in metric.labels]
    key = "|".join([metric.name, *labels])
    got = samples(metrics.text_of({key: 6}))
    at = tuple(sorted(zip(metric.labels, labels, strict=True)))
    assert got[f"x0_{metric.name}", at] == pytest.approx(6 / metric.per)


@pytest.mark.parametrize("metric", catalogue.METRICS, ids=lambda metric: metric.name)
def test_each_metric_is_named_as_prometheus_wants(metric: catalogue.Metric) -> None:
    assert (metric.kind == "counter") == metric.name.endswith("_total")
    assert metric.help.endswith(".")
    assert metric.room
    assert not metric.name.startswith("x0_")
    for banned in ("_ms", "_us", "_kb", "_count"):
        assert banned not in metric.name


@pytest.mark.parametrize("key", ["nobody_knows", "requests_total", "requests_total|a|b|c"])
def test_what_is_not_declared_is_counted_and_not_shown(key: str) -> None:
    got = samples(metrics.text_of({key: 1}))
    assert got == {("x0_undeclared", ()): 1}


def test_label_sets_are_bounded() -> None:
    many = {f"refused_total|caller|{i}": 1 for i in range(catalogue.SERIES_MAX + 500)}
    got = samples(metrics.text_of(many))
    assert len(got) == catalogue.SERIES_MAX + 2
    assert got["x0_refused_total", (("reason", "other"), ("what", "other"))] == 500


def test_an_authority_says_what_it_keeps() -> None:
    health = Health(
        "e.org",
        "spiffe://e.org/authority/main",
        "0.1.0",
        "x0-authority/1",
        1,
        1,
        (),
        read_only="X0-STO-003",
        ca_not_after_unix_s=UNIX_S,
        counts={"node": 2},
        sequences={"policy": 7},
        leading=True,
        others=("b", "c"),
    )
    shared = {"learnt": 4, "superseded": 1, "behind": 1}
    sums = metrics.authority_sums(
        health, {"connections": 2, "calls|Issue|ok": 5, "done": 9, "nodes": 2, **shared}
    )
    got = samples(metrics.text_of(sums))
    assert got["x0_authority_calls_total", (("method", "Issue"), ("result", "ok"))] == 5
    assert got["x0_authority_connections", ()] == 2
    assert got["x0_authority_decisions_total", (("what", "done"),)] == 9
    assert got["x0_authority_rows", (("what", "node"),)] == 2
    assert got["x0_authority_set_sequence", (("set", "policy"),)] == 7
    assert got["x0_authority_read_only", ()] == 1
    assert got["x0_authority_leading", ()] == 1
    assert got["x0_authority_others", ()] == 2
    assert got["x0_authority_behind", ()] == 1
    assert got["x0_authority_learnt_total", ()] == 4
    assert got["x0_authority_superseded_total", ()] == 1
    assert got["x0_undeclared", ()] == 0


async def _get(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        ("GET /metrics HTTP/1.1", "200"),
        ("HEAD /metrics HTTP/1.1", "200"),
        ("GET /metrics?name=x HTTP/1.1", "200"),
        ("GET / HTTP/1.1", "404"),
        ("POST /metrics HTTP/1.1", "405"),
        ("nonsense", "405"),
    ],
)
def test_the_endpoint_answers_metrics_and_nothing_else(request_line: str, status: str) -> None:
    async def ask() -> bytes:
        server = metrics.MetricsServer("127.0.0.1:0", lambda: metrics.render(a_status()))
        port = await server.start()
        try:
            return await _get(port, f"{request_line}\r\nHost: x\r\n\r\n".encode())
        finally:
            await server.close()

    head, _, body = asyncio.run(ask()).decode().partition("\r\n\r\n")
    assert head.split()[1] == status
    if request_line.startswith("GET /metrics"):
        assert samples(body)["x0_records", ()] == 12
    if request_line.startswith("HEAD"):
        assert body == ""


# ------------------------------------------------------------------ redaction
def _secrets() -> dict[str, str]:
    key = x509.new_key()
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
    )

    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    der = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    token = write_token(Token("e.org", (), b"b" * 32, "a", 1, b"i" * 8, b"s" * 32))
    return {
        "PEM": pem,
        "PEM cut off": pem[: len(pem) // 2],
        "PEM in JSON": json.dumps(pem)[1:-1],
        "DER in hex": der.hex(),
        "DER in base64": "".join(pem.splitlines()[1:-1]),
        "enrolment token": token,
        "JWT": "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJzcGlmZmU6Ly9lIn0.c2lnbmF0dXJlc2lnbmF0dXJl",
    }


@pytest.mark.parametrize("kind", sorted(_secrets()))
def test_a_secret_in_a_text_is_gone(kind: str) -> None:
    secret = _secrets()[kind]
    text = redact(f"enrolling with {secret} at 192.0.2.1:7000")
    core = "".join(
        line for line in secret.replace("\\n", "\n").splitlines() if "-----" not in line
    )[:40]
    assert core not in text.replace("\\n", "").replace("\n", "")
    assert "enrolling with" in text
    assert GONE in text


def test_settings_keep_paths_and_lose_values() -> None:
    text = redact('token_file = "/etc/x0/token"\npassword = "hunter2"\n{"secret": "abc"} pin=1')
    assert '"/etc/x0/token"' in text
    assert "hunter2" not in text
    assert '"abc"' not in text


@given(st.text())
def test_ordinary_text_is_left_alone(text: str) -> None:
    if not any(word in text.lower() for word in ("secret", "password", "token", "passphrase")):
        assert redact(text) == text or GONE in redact(text)


def test_a_struct_with_a_key_shows_everything_but_the_key() -> None:
    item = SvidItem("spiffe://e.org/web", (b"der",), b"private", 7)
    assert redact_value(item) == {
        "id": "spiffe://e.org/web",
        "chain": ["<3 bytes>"],
        "key": GONE,
        "not_after_unix_s": 7,
    }


class _Odd:
    def __repr__(self) -> str:
        return "a secret in a repr"


def test_values_without_an_end_or_a_form() -> None:
    loop: list[object] = []
    loop.append(loop)
    assert "..." in str(redact_value(loop))
    assert redact_value(_Odd()) == "<_Odd>"
    assert redact_value({"error": ValueError("password=hunter2")}) == {"error": f"password={GONE}"}


# ------------------------------------------------------------------ logs
@pytest.fixture
def log_file(tmp_path: Path) -> Iterator[Path]:
    """A configured log, taken down again."""
    level = logging.getLogger().level
    yield tmp_path / "node.log"
    root = logging.getLogger()
    for handler in list(root.handlers):
        if getattr(handler, "_x0", False):
            root.removeHandler(handler)
            handler.close()
    root.setLevel(level)


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_is_json_with_who_and_when(log_file: Path) -> None:
    log.configure("info", str(log_file))
    log.logger("agent", "a").info("link is up", peer="b", rtt_us=412)
    log.logger("agent", "a").debug("not wanted")
    (line,) = lines(log_file)
    assert line["event"] == "link is up"
    assert (line["level"], line["part"], line["me"], line["peer"], line["rtt_us"]) == (
        "info",
        "agent",
        "a",
        "b",
        412,
    )
    assert str(line["at"]).endswith("Z")
    assert stat.S_IMODE(log_file.stat().st_mode) == 0o600


def test_no_secret_reaches_the_file(log_file: Path) -> None:
    log.configure("debug", str(log_file))
    for kind, secret in _secrets().items():
        log.logger("agent").info(
            f"{kind}: {secret}", value=secret, key=secret, deep=[{"x": secret}]
        )
    log.logger("agent").info("bytes", svid=SvidItem("spiffe://e/x", (), b"private", 1))
    text = log_file.read_text()
    for kind, secret in _secrets().items():
        assert secret[:60] not in text, kind
    assert "private" not in text


def test_libraries_log_into_the_same_stream(log_file: Path) -> None:
    log.configure("info", str(log_file))
    logging.getLogger("grpclib").warning("a stream was %s", "reset")
    (line,) = lines(log_file)
    assert line["event"] == "a stream was reset"
    assert line["logger"] == "grpclib"


@pytest.mark.logs_errors
def test_an_exception_is_one_line(log_file: Path) -> None:
    log.configure("info", str(log_file))
    try:
        raise ValueError("boom")
    except ValueError:
        log.logger("proxy").error("a task failed", exc_info=True)
    (line,) = lines(log_file)
    assert "ValueError: boom" in str(line["exception"])


def test_a_rotated_file_is_followed(log_file: Path) -> None:
    log.configure("info", str(log_file))
    log.logger("agent").info("one")
    log_file.rename(log_file.with_suffix(".1"))
    log.logger("agent").info("two")
    assert [line["event"] for line in lines(log_file)] == ["two"]


# ------------------------------------------------------------------ access log
ACCESS = access.Access(
    UNIX_S * 10**6,
    "client",
    "spiffe://e/shop",
    "spiffe://e/web",
    "web",
    "c",
    ("a", "b", "c"),
    100,
    2000,
    1500,
    "ok",
)


def test_the_access_log_has_both_ids_path_bytes_and_duration(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    writer = access.AccessLog(str(path))
    writer.write(ACCESS)
    assert path.read_text() == ""  # In batches.
    writer.flush()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert msgspec.json.decode(path.read_bytes(), type=access.Access) == ACCESS
    path.rename(tmp_path / "access.1")
    writer.write(ACCESS)
    writer.flush()
    assert len(path.read_text().splitlines()) == 1
    assert writer.lines == 2
    writer.close()


def test_a_full_disk_costs_lines_and_nothing_else(tmp_path: Path) -> None:
    writer = access.AccessLog("/dev/full")
    for _ in range(20_000):
        writer.write(ACCESS)
    writer.flush()
    assert writer.dropped > 0
    assert writer.lines + writer.dropped == 20_000
    writer.close()
