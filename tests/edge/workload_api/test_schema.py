from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from x0tta6bl4.edge.workload_api import schema
from x0tta6bl4.edge.workload_api.pool import Pool

_PROTO = Path(__file__).parents[3] / "proto" / "workload.proto"


def _read(text: str) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, str]]]:
    """Messages and methods that a .proto text names."""
    text = re.sub(r"//[^\n]*", "", text)
    messages = {
        name: tuple(re.findall(r"([^;{}\n]+ = \d+);", body))
        for name, body in re.findall(r"message (\w+) \{([^}]*)\}", text)
    }
    rpcs = re.findall(r"rpc (\w+)\((\w+)\) returns \(((?:stream )?\w+)\);", text)
    return (
        {name: tuple(" ".join(line.split()) for line in lines) for name, lines in messages.items()},
        {name: (request, response) for name, request, response in rpcs},
    )


def test_the_text_for_other_languages_says_the_same() -> None:
    messages, rpcs = _read(_PROTO.read_text())
    assert messages == schema.MESSAGES
    assert rpcs == schema.RPCS
    assert f"service {schema.SERVICE} {{" in _PROTO.read_text()


def test_SP_102_103_100_methods_and_numbers_on_the_wire_are_those_of_the_specification() -> None:
    svid = schema.X509SVID(spiffe_id="a", x509_svid=b"b", x509_svid_key=b"c", bundle=b"d", hint="e")
    inner = b"\x0a\x01a\x12\x01b\x1a\x01c\x22\x01d\x2a\x01e"
    assert svid.SerializeToString() == inner
    response = schema.X509SVIDResponse(svids=[svid], crl=[b"f"], federated_bundles={"g": b"h"})
    assert response.SerializeToString() == (
        b"\x0a" + bytes([len(inner)]) + inner + b"\x12\x01f\x1a\x06\x0a\x01g\x12\x01h"
    )
    jwt = schema.JWTSVIDResponse(svids=[schema.JWTSVID(spiffe_id="a", svid="b", hint="c")])
    assert jwt.SerializeToString() == b"\x0a\x09\x0a\x01a\x12\x01b\x1a\x01c"
    bundles = schema.X509BundlesResponse(crl=[b"f"], bundles={"g": b"h"})
    assert bundles.SerializeToString() == b"\x0a\x01f\x12\x06\x0a\x01g\x12\x01h"
    assert {name: stream for name, (_, _, stream) in schema.METHODS.items()} == {
        "FetchX509SVID": True,
        "FetchX509Bundles": True,
        "FetchJWTSVID": False,
        "FetchJWTBundles": True,
        "ValidateJWTSVID": False,
        "FetchWITSVID": True,
        "FetchWITBundles": True,
    }


def test_claims_of_any_shape_come_back() -> None:
    claims = {"sub": "spiffe://a/b", "aud": ["x"], "exp": 1.0, "nested": {"null": None, "on": True}}
    response = schema.ValidateJWTSVIDResponse(spiffe_id="spiffe://a/b")
    response.claims.update(claims)
    again = schema.ValidateJWTSVIDResponse.FromString(response.SerializeToString())
    assert dict(again.claims["nested"]) == {"null": None, "on": True}
    assert list(again.claims["aud"]) == ["x"]


def test_another_library_with_the_same_names_lives_in_the_same_process() -> None:
    code = """
from google.protobuf import descriptor_pb2, descriptor_pool
from x0tta6bl4.edge.workload_api import schema
file = descriptor_pb2.FileDescriptorProto(name="workload.proto", syntax="proto3")
file.message_type.add(name="X509SVIDRequest").field.add(name="other", number=9, label=1, type=9)
descriptor_pool.Default().Add(file) if hasattr(descriptor_pool.Default(), "Add") else \\
    descriptor_pool.Default().AddSerializedFile(file.SerializeToString())
assert descriptor_pool.Default().FindMessageTypeByName("X509SVIDRequest").fields
assert not schema.X509SVIDRequest.DESCRIPTOR.fields
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


def test_a_line_that_is_no_field_is_our_mistake() -> None:
    with pytest.raises(AssertionError):
        Pool().add("a.proto", "", {"A": ("string a",)}, {})
