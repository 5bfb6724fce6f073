#!/usr/bin/env python3
"""`x0 node run` with routes that leave TCP as it is: to measure what their metrics are good for."""

from __future__ import annotations

import sys

from x0tta6bl4.__main__ import main
from x0tta6bl4.edge.kernel import routes

if __name__ == "__main__":
    routes.RTO_MIN_MS = 0  # type: ignore[misc]
    routes._RECOVERY = b""  # type: ignore[misc]
    sys.exit(main())
