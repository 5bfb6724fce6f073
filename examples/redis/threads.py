"""The same for threads."""

import sys

from redis import Redis

from x0tta6bl4.sdk.frameworks.redis import blocking_pool
from x0tta6bl4.sdk.identity import exact
from x0tta6bl4.sdk.identity.blocking import X509Source

with X509Source() as source:
    source.wait()
    who = exact("spiffe://example.org/web")
    address = f"127.0.0.1:{sys.argv[1]}"
    with blocking_pool(address, source, authorize=who, decode_responses=True) as made:
        print(Redis(connection_pool=made).acl_whoami())
