#!/usr/bin/env python3
"""`x0 node run` with routes that leave TCP as it is: to measure what their metrics are good for."""

from __future__ import annotations

import sys

from x0tta6bl4.__main__ import main
from x0tta6bl4.edge.kernel import rtnetlink


def nothing(rto_min_ms: int, mss: int) -> bytes:
    """No metrics: see `rtnetlink.recovery`."""
    return b""


if __name__ == "__main__":
    rtnetlink.recovery = nothing
    sys.exit(main())
