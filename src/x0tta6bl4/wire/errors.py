"""What a caller can do wrong: one small tree, each error with a stable id and a hint.

Expected failures inside the core are data (`Failed`, `Denied`); these are for public functions,
configuration, files and commands.  `str(error)` is one line: id, what is wrong, what to do.
"""

from __future__ import annotations


class X0Error(Exception):
    """Root of all errors that a user of x0tta6bl4 can meet.

    Args:
        id: stable, e.g. `X0-CFG-003`; documented in docs/errors.md.
        what: one sentence without a full stop: what is wrong, with the offending value.
        hint: one sentence: what to do about it.
    """

    def __init__(self, id: str, what: str, hint: str = "") -> None:
        super().__init__(id, what, hint)
        self.id = id
        self.what = what
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.id}: {self.what}" + (f". {self.hint}" if self.hint else "")


class BadInput(X0Error):
    """A value given by a caller, a file or a peer does not have the form it must have."""


class BadId(BadInput):
    """A SPIFFE ID, trust domain or node name is malformed (SPIFFE-ID.md section 2)."""


class BadConfig(BadInput):
    """A configuration file has an unknown key or a wrong value."""


class BadMessage(BadInput):
    """Bytes from a peer are not a message of the protocol; the connection is to be closed."""


class Refused(X0Error):
    """A security check said no; `id` names the check."""


class Unavailable(X0Error):
    """Something outside did not answer in time or is not running."""


class Conflict(X0Error):
    """The thing exists already, or was changed meanwhile."""


class NotFound(X0Error):
    """No such thing."""
