"""What the operator may say about a peer: that it is refused, or no longer.

Rule: first it is written down, then it is in force; in force means that it has no connection, no stream, no gossip and
no offer here, from the answer on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Annotated

from pydantic import Field

from node.blocking import Blocked, BlockList
from node.config_edit import Append, Change, Drop
from node.config_file import ConfigError
from node.config_keeper import ConfigKeeper, Written
from node.directory import Directory
from node.network import Network
from node.operations import Json, Method, OperationFailed
from protocol.errors import ProtocolError
from protocol.ids import NodeId, parse_peer_id, peer_id

AT = ("blocked_peers",)
ALL_ALIKE = len("12D3KooW")  # how every peer id begins
SHORTEST = 4  # characters of a peer id's end


class PeerOperations:
    """Its `methods` are some of `OPERATIONS`."""

    def __init__(
        self,
        network: Network,
        directory: Directory,
        blocked: BlockList,
        keeper: ConfigKeeper,
        is_witness: Callable[[NodeId], bool],
    ) -> None:
        self._network = network
        self._directory = directory
        self._blocked = blocked
        self._keeper = keeper
        self._is_witness = is_witness
        self.methods: dict[str, Method] = {
            "peers.block": self.block,
            "peers.unblock": self.unblock,
            "peers.blocked": self.list,
        }

    async def list(self) -> Json:
        """All that are blocked."""
        return {"blocked": [_row(each) for each in self._blocked]}

    async def block(self, peer: str, reason: Annotated[str, Field(max_length=200)] = "") -> Json:
        """Refuse a peer from now on."""
        node = self._find(peer)
        if node == self._network.node:
            raise OperationFailed("that is this node itself; `mtor pause` makes it answer nobody")
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        blocked = next((each for each in self._blocked if each.node == node), Blocked(node, reason, since))
        row = {key: value for key, value in _row(blocked).items() if value}
        await self._keep(lambda written: [] if _places(written, node) else [Append(AT, row)])
        self._blocked.add(blocked)
        self._directory.forget(node)
        await self._network.disconnect(node)
        note = "it is a witness of this federation: what is paid here may have to wait for it"
        return _row(blocked) | ({"note": note} if self._is_witness(node) else {})

    async def unblock(self, peer: str) -> Json:
        """Let a peer in again."""
        node = self._find(peer)
        if node not in self._blocked:
            raise OperationFailed(f"{peer_id(node)} is not blocked; `mtor peers blocked` lists who is")
        await self._keep(lambda written: [Drop(AT, place) for place in reversed(_places(written, node))])
        self._blocked.remove(node)
        return {"unblocked": peer_id(node)}

    async def _keep(self, decide: Callable[[Written], Sequence[Change]]) -> None:
        if above := self._keeper.above(AT):
            raise OperationFailed(f"{above} says who is blocked, and stands above realms.yml; change it there")
        try:
            await self._keeper.change(decide)
        except ConfigError as error:
            raise OperationFailed(f"nothing was changed: {error}") from None

    def _find(self, said: str) -> NodeId:
        """A peer by its id, or by the begin or end of the id of one that is known here. Raises `OperationFailed`."""
        try:
            return parse_peer_id(said)
        except ProtocolError as error:
            wrong = str(error)
        known = {peer.node for peer in self._network.peers()} | {known.node for known in self._directory.offers()}
        names = {peer_id(node): node for node in known | {each.node for each in self._blocked}}
        found = [name for name in names if _means(said.strip("…"), name)]
        if len(found) == 1:
            return names[found[0]]
        if found:
            raise OperationFailed(f"{said!r} could be {' or '.join(sorted(found))}; write more of it")
        raise OperationFailed(f"no peer that is known here is called {said!r} ({wrong}); `mtor peers` lists them")


def _means(said: str, name: str) -> bool:
    return (len(said) > ALL_ALIKE and name.startswith(said)) or (len(said) >= SHORTEST and name.endswith(said))


def _places(written: Written, node: NodeId) -> Sequence[int]:
    """Where the file names a peer."""
    name = peer_id(node)
    items = written.tree.get("blocked_peers", [])
    return [place for place, item in enumerate(items) if name in (item, isinstance(item, dict) and item.get("node"))]


def _row(blocked: Blocked) -> Json:
    return {"node": peer_id(blocked.node), "reason": blocked.reason, "since": blocked.since}
