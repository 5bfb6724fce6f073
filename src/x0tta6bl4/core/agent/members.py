"""What other nodes said last, for views; the map and the directory keep what paths need."""

from __future__ import annotations

from typing import final

from x0tta6bl4.core.agent.directory import Directory
from x0tta6bl4.core.agent.words import NodeView
from x0tta6bl4.core.machine import Value
from x0tta6bl4.core.routing.routing import Routing
from x0tta6bl4.wire.records import NodeBody, Record


@final
class _Member(Value, frozen=True):
    generation: int
    expires_unix_s: int
    stub: bool
    authority: bool
    links: int


class Members:
    """Nodes with a record of their own; bounded by the records held."""

    __slots__ = ("_members",)

    def __init__(self) -> None:
        self._members: dict[str, _Member] = {}

    def say(self, record: Record, body: NodeBody) -> None:
        """A node's own record says this now."""
        self._members[record.writer] = _Member(
            record.generation, record.expires_unix_s, body.stub, body.authority, len(body.links)
        )

    def gone(self, node: str) -> None:
        """A node's own record is gone."""
        self._members.pop(node, None)

    def views(
        self, routing: Routing, directory: Directory, wanted: dict[str, bool]
    ) -> tuple[NodeView, ...]:
        """All members by name, with paths to those that are in use."""
        return tuple(
            NodeView(
                node=node,
                generation=member.generation,
                expires_unix_s=member.expires_unix_s,
                cost=routing.cost(node),
                paths=routing.paths(node) if node in wanted else (),
                endpoints=tuple(directory.ids_at(node)),
                stub=member.stub,
                authority=member.authority,
                links=member.links,
            )
            for node, member in sorted(self._members.items())
        )
