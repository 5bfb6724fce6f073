"""The harness for conformance suites, contract v1: a thin face of the SDK without a will.

It takes the Workload API from SPIFFE_ENDPOINT_SOCKET, prints its two ports and READY, and then
does what it is told.  Every decision is the SDK's.

    X.509 port     TLS server; writes the peer's SPIFFE ID and closes
    control port   HTTP/1.1: /v1/info, /v1/x509/dial, /v1/jwt/validate, /v1/jwt/fetch

The control port answers 200 (ok), 422 (the SDK has refused it), 501 (the Workload API does not
offer it) or 500 (anything else).
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Awaitable, Callable
from typing import Any

import x0tta6bl4
from x0tta6bl4.sdk import identity
from x0tta6bl4.wire.errors import BadInput, NotFound, Refused, X0Error

HOST = "127.0.0.1"
REQUEST_S = 10.0
BUNDLES_S = 1.0
FIRST_SVID_S = 86_400.0
"""Whoever started us decides how long to wait."""


class Control:
    """What the control port can do."""

    def __init__(self, x509: identity.X509Source, jwt: identity.JWTSource) -> None:
        self._x509 = x509
        self._jwt = jwt
        self.calls: dict[str, Callable[[Any], Awaitable[dict[str, Any]]]] = {
            "GET /v1/info": self.info,
            "POST /v1/x509/dial": self.dial,
            "POST /v1/jwt/validate": self.validate,
            "POST /v1/jwt/fetch": self.fetch,
        }

    async def info(self, asked: Any) -> dict[str, Any]:
        return {
            "sdk": "x0tta6bl4",
            "sdk_version": x0tta6bl4.__version__,
            "language": "python",
        }

    async def dial(self, asked: Any) -> dict[str, Any]:
        address = asked["address"]
        async with await identity.dial(address, self._x509, authorize=identity.anyone) as to:
            return {"spiffe_id": to.peer_id}

    async def validate(self, asked: Any) -> dict[str, Any]:
        await self._jwt.wait(BUNDLES_S)
        svid = identity.validate_jwt(asked["token"], asked["audience"], self._jwt)
        return {"spiffe_id": svid.id, "claims": svid.claims}

    async def fetch(self, asked: Any) -> dict[str, Any]:
        svids = await identity.fetch_jwt_svids(
            asked["audience"], id=asked.get("spiffe_id") or None, client=self._jwt.client
        )
        return {
            "svids": [{"spiffe_id": s.id, "token": s.token, "hint": s.hint} for s in svids],
        }

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request, one answer."""
        code, body = 500, {"status": "error", "message": "bad request"}
        try:
            async with asyncio.timeout(REQUEST_S):
                what, data = await read_request(reader)
                call = self.calls[what]
                asked = json.loads(data) if data else {}
            code, body = 200, {"status": "ok", **await call(asked)}
        except asyncio.CancelledError:
            return  # We are told to end; asyncio 3.11 would write a traceback for each.
        except NotFound as error:
            code, body = 501, {"status": "unsupported", "message": str(error)}
        except (Refused, BadInput) as error:
            code, body = 422, {"status": "rejected", "message": str(error)}
        except (X0Error, OSError, EOFError, ValueError, LookupError, TypeError) as error:
            body = {"status": "error", "message": f"{type(error).__name__}: {error}"}
        said = json.dumps(body).encode()
        writer.write(
            f"HTTP/1.1 {code} {body['status']}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(said)}\r\nConnection: close\r\n\r\n".encode()
        )
        writer.write(said)
        writer.close()


async def read_request(reader: asyncio.StreamReader) -> tuple[str, bytes]:
    """Method with path, and body."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.split("\r\n")
    fields = dict(line.lower().split(": ", 1) for line in lines if ": " in line)
    return first.rpartition(" ")[0], await reader.readexactly(int(fields.get("content-length", 0)))


async def say_who(connection: identity.Connection) -> None:
    """The X.509 port: name the peer, then close."""
    connection.writer.write(f"{connection.peer_id}\n".encode())
    await connection.writer.drain()


async def main() -> None:
    """Run until SIGTERM."""
    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, over.set)
    async with identity.X509Source() as x509, identity.JWTSource() as jwt:
        served = await identity.listen(f"{HOST}:0", x509, say_who, authorize=identity.anyone)
        control = await asyncio.start_server(Control(x509, jwt).serve, HOST, 0, limit=1 << 22)
        async with served, control:
            print("SPIFFE_HARNESS_VERSION=1")
            print(f"SPIFFE_X509_PORT={served.port}")
            print(f"SPIFFE_CONTROL_PORT={control.sockets[0].getsockname()[1]}", flush=True)
            ready = loop.create_task(first_svid(x509))
            await over.wait()
            ready.cancel()


async def first_svid(x509: identity.X509Source) -> None:
    """Say READY as soon as there is an identity; never where there never is one."""
    await x509.wait(FIRST_SVID_S)
    print("READY", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
