"""The service of the stories as an ASGI application, and a WebSocket to it."""

from __future__ import annotations

from typing import Any

import wsproto
from wsproto.events import AcceptConnection, Request, TextMessage

from x0tta6bl4.sdk.frameworks.asgi import peer_id
from x0tta6bl4.sdk.identity import Connection


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        while True:
            event = (await receive())["type"]
            await send({"type": f"{event}.complete"})
            if event == "lifespan.shutdown":
                return
    body = peer_id(scope).encode()
    assert scope["extensions"]["tls"]["tls_version"] == 0x0304
    assert scope["extensions"]["tls"]["client_cert_chain"][0].startswith("-----BEGIN CERTIFICATE")
    assert scope["extensions"]["spiffe"]["group"] == "X25519MLKEM768"
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": body.decode()})
        while (await receive())["type"] != "websocket.disconnect":
            pass
        return
    assert scope["scheme"] == "https"
    held = scope["path"] == "/hold"
    headers = [] if held else [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": held})
    while held and (await receive())["type"] != "http.disconnect":
        pass


async def websocket(connection: Connection) -> str:
    """What the server says first on a WebSocket."""
    socket = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
    connection.writer.write(socket.send(Request(host="web", target="/")))
    said = ""
    while not said:
        socket.receive_data(await connection.reader.read(64 * 1024))
        for event in socket.events():
            if isinstance(event, TextMessage):
                said = event.data
            else:
                assert isinstance(event, AcceptConnection)
    return said
