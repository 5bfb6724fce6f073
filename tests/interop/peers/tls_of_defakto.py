"""Speaks mutual TLS with the SVIDs of `spiffe-defakto`, as told on standard input: see
go/wire/main.go.

That package has no TLS of its own: here the standard library's presents what it has got, and asks
its `verify_x509_svid` about the peer.  Runs in an environment of its own, where the package is.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import sys
import tempfile
import threading
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from spiffe_defakto import (
    LocalWorkloadAPIClient,
    SpiffeError,
    UnixOptions,
    marshal_x509_svid,
    verify_x509_svid,
)


def say(*words: object) -> None:
    print(" ".join(map(str, words)).replace("\n", " "), flush=True)


class Peer:
    """What the Workload API said last, and the connection that was dialled."""

    def __init__(self) -> None:
        path = os.environ["SPIFFE_ENDPOINT_SOCKET"].removeprefix("unix://")
        self.client = LocalWorkloadAPIClient(UnixOptions(path))
        self.context: Any = None
        self.ready = asyncio.Event()
        self.dialled: Any = None

    async def watch(self) -> None:
        async for context in self.client.watch_x509_context():
            self.context = context
            self.ready.set()

    def tls(self, purpose: int) -> ssl.SSLContext:
        """Made anew for each connection, so that it has the newest SVID."""
        made = ssl.SSLContext(purpose)
        made.minimum_version = ssl.TLSVersion.TLSv1_3
        made.check_hostname = False
        made.verify_mode = ssl.CERT_REQUIRED
        (svid,) = (one for one in self.context.svids if str(one.id) == os.environ["X0_ID"])
        pem = marshal_x509_svid(svid)
        with tempfile.NamedTemporaryFile("w") as file:
            file.write(pem.cert_chain_pem + pem.private_key_pem)
            file.flush()
            made.load_cert_chain(file.name)
        for bundle in self.context.bundles.values():
            for authority in bundle.x509_authorities:
                made.load_verify_locations(cadata=authority.public_bytes(Encoding.DER))
        return made

    async def get_bundle_for_trust_domain(self, domain: Any) -> Any:
        """Asked by `verify_x509_svid`."""
        return self.context.bundles[domain.name]

    async def judge(self, writer: asyncio.StreamWriter, allowed: str) -> None:
        """Tell of the peer, or hang up."""
        tls: ssl.SSLObject = writer.get_extra_info("ssl_object")
        der = tls.getpeercert(True)
        assert der is not None
        peer = str(await verify_x509_svid([der], self))
        if peer != allowed:
            raise PermissionError(f"unexpected peer {peer}")
        group = tls.group() if hasattr(tls, "group") else "unknown"
        say("met", peer, group, x509.load_der_x509_certificate(der).serial_number)

    async def serve(self, allowed: str) -> None:
        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await writer.start_tls(self.tls(ssl.PROTOCOL_TLS_SERVER))
                await self.judge(writer, allowed)
                while line := await reader.readline():
                    writer.write(line)
            except (OSError, SpiffeError) as error:
                say("refused", repr(error))
            finally:
                writer.transport.abort()

        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        say("port", server.sockets[0].getsockname()[1])
        self.server = server

    async def dial(self, port: str, allowed: str) -> None:
        try:
            self.dialled = await asyncio.open_connection(
                "127.0.0.1", int(port), ssl=self.tls(ssl.PROTOCOL_TLS_CLIENT)
            )
            await self.judge(self.dialled[1], allowed)
        except (OSError, SpiffeError) as error:
            say("refused", repr(error))
            if self.dialled is not None:
                self.dialled[1].transport.abort()

    async def speak(self, word: str) -> None:
        reader, writer = self.dialled
        try:
            writer.write(word.encode() + b"\n")
            line = await reader.readline()
            say(*(["heard", line.decode().strip()] if line else ["refused", "the end"]))
        except OSError as error:
            say("refused", repr(error))

    async def main(self) -> None:
        watching = asyncio.create_task(self.watch())
        await asyncio.wait(
            {watching, asyncio.create_task(self.ready.wait())},
            return_when=asyncio.FIRST_COMPLETED,
        )
        say("ready" if self.ready.is_set() else watching.result())
        told: asyncio.Queue[list[str]] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def listen() -> None:
            for line in sys.stdin:
                loop.call_soon_threadsafe(told.put_nowait, line.split())

        threading.Thread(target=listen, daemon=True).start()
        while not watching.done():
            match await told.get():
                case "serve", allowed:
                    await self.serve(allowed)
                case "dial", port, allowed:
                    await self.dial(port, allowed)
                case "say", word:
                    await self.speak(word)
                case ("hang",):
                    self.dialled[1].close()


async def main() -> None:
    await Peer().main()


asyncio.run(main())
