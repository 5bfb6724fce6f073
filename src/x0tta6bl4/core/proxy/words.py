"""Words of the proxy's composite beside those of its rooms."""

from __future__ import annotations

from typing import Final, final

from x0tta6bl4.core.machine import Value
from x0tta6bl4.core.session.facts import Path
from x0tta6bl4.wire.ids import NodeName, SpiffeId
from x0tta6bl4.wire.messages import Item

AGENT: Final = "agent"
"""Source and destination of what passes over the agent's socket; no node can have this name."""


@final
class OpenSession(Value, frozen=True):
    """A workload of this node wants its first stream to a workload on a node."""

    session: int
    """From `Proxy.token()`."""
    session_id: bytes
    """16 random bytes."""
    source: SpiffeId
    target: SpiffeId
    node: NodeName
    own: bool = False
    """Nothing but this stream shall go over it: no other will find it."""


@final
class Dial(Value, frozen=True):
    """Set up a circuit: a hop along `path`, then TLS as `source` with `target`."""

    token: int
    session: int
    path: Path
    source: SpiffeId
    target: SpiffeId


@final
class Changed(Value, frozen=True):
    """The snapshot has changed; keys are those of `wire.messages.item_key`."""

    puts: tuple[Item, ...]
    drops: tuple[str, ...]
