"""Who is blocked here, now.

Rule: one owner. Network and directory ask it whenever it matters, so that a change is in force at once; whoever changes
it also writes it into `realms.yml`, where it is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from protocol.ids import NodeId


@dataclass(frozen=True, slots=True)
class Blocked:
    """One peer that is refused."""

    node: NodeId
    reason: str = ""  # for the owner alone
    since: str = ""  # UTC, as it is written


class BlockList:
    """All of them, in the order in which they were blocked."""

    def __init__(self, blocked: Iterable[Blocked] = ()) -> None:
        self._blocked = {each.node: each for each in blocked}

    def __contains__(self, node: object) -> bool:
        return node in self._blocked

    def __iter__(self) -> Iterator[Blocked]:
        return iter(tuple(self._blocked.values()))

    def add(self, blocked: Blocked) -> None:
        """Refuse a peer from now on."""
        self._blocked[blocked.node] = blocked

    def remove(self, node: NodeId) -> None:
        """Refuse it no longer."""
        self._blocked.pop(node, None)
