"""Logs: one JSON object per line, redacted, on standard error or in a file that may be rotated.

Everything goes through the `logging` of the standard library, so that libraries are in the same
stream.  What is logged: `event`, `level`, `at` (UTC), `part` (agent, proxy, authority), `me` (the
node), and what the call adds.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
import sys
from datetime import UTC, datetime
from typing import Any, Final, final

from x0tta6bl4.telemetry.redact import GONE, SECRET_FIELDS, redact_value

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


class _PrivateFile(logging.handlers.WatchedFileHandler):
    """Follows a rotated file, and makes its files 0600."""

    def _open(self) -> Any:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        return open(os.open(self.baseFilename, flags, 0o600), "a", encoding="utf-8")


class _Json(logging.Formatter):
    """One line: no secrets, no bytes, no reprs of unknown things, no endless events."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        fields: dict[str, Any] | None = getattr(record, "x0", None)
        line = {"logger": record.name} if fields is None else fields
        line = {
            name: GONE if name.lower() in SECRET_FIELDS and value else redact_value(value)
            for name, value in line.items()
        }
        line["event"] = str(redact_value(record.getMessage()))[:EVENT_CHARS_MAX]
        line["level"] = record.levelname.lower()
        line["at"] = f"{datetime.fromtimestamp(record.created, UTC):%Y-%m-%dT%H:%M:%S.%fZ}"
        if record.exc_info:
            trace = str(redact_value(self.formatException(record.exc_info)))
            line["exception"] = trace[-_TRACE_CHARS_MAX:]
        return json.dumps(line, ensure_ascii=False)


@final
class Logger:
    """Logs of one part of one node.

    Args:
        part, node: see `logger`.
    """

    __slots__ = ("_bound", "_logger")

    def __init__(self, part: str, node: str) -> None:
        self._logger = logging.getLogger(f"{ROOT}.{part}")
        self._bound = {"part": part, "me": node} if node else {"part": part}

    def debug(self, event: str, **fields: Any) -> None:
        """For whoever looks for a fault in the code."""
        self._log(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: Any) -> None:
        """What happens."""
        self._log(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        """What an operator should look at."""
        self._log(logging.WARNING, event, fields)

    def error(self, event: str, *, exc_info: bool = False, **fields: Any) -> None:
        """A fault of ours; `exc_info` adds the exception that is being handled."""
        self._log(logging.ERROR, event, fields, exc_info)

    def _log(self, level: int, event: str, fields: dict[str, Any], trace: bool = False) -> None:
        if self._logger.isEnabledFor(level):
            extra = {"x0": {**self._bound, **fields}}
            self._logger.log(level, "%s", event, extra=extra, exc_info=trace)


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
    handler.setFormatter(_Json())
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


def logger(part: str, node: str = "") -> Logger:
    """A logger of one part of one node: `log.info("link is up", peer="b", rtt_us=412)`.

    Args:
        part: `agent`, `proxy`, `authority`, `cli`.
        node: whose.
    """
    return Logger(part, node)
