"""The two workloads of `x0 dev`: `stock` answers, `shop` asks, and each knows who the other is.

Start your own from here: nothing in it but the SDK.  Arguments: name, own ID, the other's ID, port.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import signal
import sys

from x0tta6bl4.sdk.identity import Connection, X509Source, dial, exact, listen
from x0tta6bl4.wire.errors import X0Error

PAUSE_S = 2.0
DEADLINE_S = 10.0


async def stock(source: X509Source, own: str, other: str, port: int) -> None:
    """Answer everybody who proves to be `other`, until cancelled."""

    async def answer(connection: Connection) -> None:
        async for line in connection.reader:
            connection.writer.write(b"12 of " + line)

    address = f"127.0.0.1:{port}"
    async with await listen(address, source, answer, authorize=exact(other), id=own):
        print(f"stock listens at {address}", flush=True)
        await asyncio.Event().wait()


async def shop(source: X509Source, own: str, other: str, port: int) -> None:
    """Ask every two seconds, each time over a new connection; say what came, or why nothing."""
    while True:
        try:
            async with (
                asyncio.timeout(DEADLINE_S),
                await dial(f"127.0.0.1:{port}", source, authorize=exact(other), id=own) as peer,
            ):
                peer.writer.write(b"apples\n")
                said = (await peer.reader.readline()).decode().strip()
                print(f"shop heard {said!r} from {peer.peer_id}, {peer.group}", flush=True)
        except (X0Error, OSError, TimeoutError) as error:
            print(f"shop heard nothing: {error}", flush=True)
        await asyncio.sleep(PAUSE_S)


async def main(name: str, own: str, other: str, port: int) -> None:
    """Run one of the two until SIGTERM."""
    loop = asyncio.get_running_loop()
    async with X509Source() as source:
        await source.wait()

        held: list[bytes] = []

        def renewed() -> None:
            with contextlib.suppress(X0Error):
                svid = source.current(own)
                if held != [svid.chain[0]]:  # Not each change is one of ours.
                    held[:] = [svid.chain[0]]
                    until = datetime.datetime.fromtimestamp(svid.not_after_unix_s, datetime.UTC)
                    print(f"{name} holds {svid.id} until {until:%H:%M:%S}Z", flush=True)

        renewed()
        source.on_change(renewed)
        work = loop.create_task({"stock": stock, "shop": shop}[name](source, own, other, port))
        loop.add_signal_handler(signal.SIGTERM, work.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await work


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
