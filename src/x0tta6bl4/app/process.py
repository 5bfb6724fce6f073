"""What agent, proxy and authority do first.

Source: getrlimit(2), RLIMIT_NOFILE.
"""

from __future__ import annotations

import resource

from x0tta6bl4.app.settings import Log
from x0tta6bl4.runtime.secrecy import keep_secrets
from x0tta6bl4.telemetry import log


def begin(wanted: Log) -> None:
    """Keep secrets, open as many files as this process may, log where the settings say.

    Raises:
        OSError: the log's file can't be opened.
    """
    keep_secrets()
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    log.configure(wanted.level, wanted.file)
