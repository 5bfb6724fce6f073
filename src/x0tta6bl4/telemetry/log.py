"""Logs: one JSON object per line, redacted, on standard error or in a file that may be rotated.

Everything goes through the `logging` of the standard library in the end, so that libraries are in
the same stream.  What is logged: `event`, `level`, `at` (UTC), `part` (agent, proxy, authority),
`node`, and what the call adds.
"""

from __future__ import annotations

import logging
import logging.handlers
import os
import sys
from collections.abc import MutableMapping
from typing import Any, Final

import structlog

from x0tta6bl4.telemetry.redact import SECRET_FIELDS, redact_value

ROOT: Final = "x0"
LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
_CHATTY: Final = ("asyncio", "grpclib", "h2", "hpack", "alembic", "sqlalchemy")
EVENT_CHARS_MAX: Final = 4096
_TRACE_CHARS_MAX = 16_384

Line = MutableMapping[str, Any]


class _PrivateFile(logging.handlers.WatchedFileHandler):
    """Follows a rotated file, and makes its files 0600."""

    def _open(self) -> Any:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        return open(os.open(self.baseFilename, flags, 0o600), "a", encoding="utf-8")


def configure(level: str = "info", file: str = "") -> None:
    """Send all logs of this process to `file`, or to standard error where it is empty.

    Args:
        level: `debug`, `info`, `warning` or `error`.
        file: absolute path; made 0600; reopened when it was renamed away.
    Raises:
        OSError: the file can't be opened.
    """
    handler: logging.Handler = (
        _PrivateFile(file, delay=False) if file else logging.StreamHandler(sys.stderr)
    )
    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper("iso", utc=True, key="at"),
        structlog.processors.format_exc_info,
        redacted,
    ]
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(ensure_ascii=False),
            ],
        )
    )
    root = logging.getLogger()
    for old in list(root.handlers):
        if getattr(old, "_x0", False):
            root.removeHandler(old)
            old.close()
    handler._x0 = True  # type: ignore[attr-defined]
    root.addHandler(handler)
    root.setLevel(LEVELS[level])
    for library in _CHATTY:
        logging.getLogger(library).setLevel(max(LEVELS[level], logging.WARNING))
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


def logger(part: str, node: str = "") -> structlog.stdlib.BoundLogger:
    """A logger of one part of one node: `log.info("link is up", node="b", rtt_us=412)`.

    Args:
        part: `agent`, `proxy`, `authority`, `cli`.
        node: whose; a call that names another one's `node` wins.
    """
    bound: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(f"{ROOT}.{part}")
    return bound.bind(part=part, me=node) if node else bound.bind(part=part)


def redacted(_: Any, __: str, line: Line) -> Line:
    """Processor: no secrets, no bytes, no reprs of unknown things, no endless events."""
    for name, value in line.items():
        if name in ("_record", "_from_structlog"):
            continue
        if name.lower() in SECRET_FIELDS and value:
            line[name] = "[redacted]"
        else:
            line[name] = redact_value(value)
    event = str(line.get("event", ""))
    line["event"] = event[:EVENT_CHARS_MAX]
    if "exception" in line:
        line["exception"] = str(line["exception"])[-_TRACE_CHARS_MAX:]
    return line
