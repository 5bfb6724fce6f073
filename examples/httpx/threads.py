"""The same without asyncio: the source's thread does the work for any number of others."""

import sys

import httpx

from x0tta6bl4.sdk.frameworks.httpx import BlockingTransport, peer_id
from x0tta6bl4.sdk.identity import exact
from x0tta6bl4.sdk.identity.blocking import X509Source

with X509Source() as source:
    source.wait()
    transport = BlockingTransport(source, authorize=exact("spiffe://example.org/web"))
    with httpx.Client(transport=transport) as client:
        response = client.get(f"https://127.0.0.1:{int(sys.argv[1])}/")
        print(response.text)
        print("said", peer_id(response))
