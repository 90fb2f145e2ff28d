"""The first peers: read `bootstrap_peers.txt`, and stay connected to those in it.

Rule: a file is taken whole or refused with file, line and fix. The keeper never gives up: each peer is dialled again
with a growing, jittered pause, and again when its connection drops.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from node.network import Network, NetworkError
from protocol.errors import Malformed
from protocol.ids import NodeId, parse_peer_id, peer_id

if TYPE_CHECKING:
    from trio_typing import TaskStatus

log = logging.getLogger("mtor.bootstrap")

FIRST_PAUSE = 1.0  # seconds before the second try
LONGEST_PAUSE = 60.0  # seconds; a whole town that lost its power does not come back at one instant
JITTER = 0.5  # a pause is shortened by up to this part of itself
WATCH_INTERVAL = 1.0  # seconds between looks at a connection that stands
EXAMPLE = "/ip4/192.0.2.7/tcp/9001/p2p/12D3KooW…"
HOST_PROTOCOLS = ("ip4", "ip6", "dns", "dns4", "dns6")
MEMORY_PROTOCOL = "memory"  # networks inside one process


class BootstrapError(Exception):
    """A bootstrap address cannot be used; the message names the place and the fix."""


@dataclass(frozen=True, slots=True)
class BootstrapPeer:
    """One peer to dial."""

    node: NodeId
    address: str


@dataclass(frozen=True, slots=True)
class BootstrapState:
    """What `mtor status` shows."""

    known: int
    reachable: int
    last_error: str
    next_try_seconds: float  # until the next dial; 0 when none is waiting


def read_bootstrap_file(path: Path) -> tuple[BootstrapPeer, ...]:
    """The peers of a file: one multiaddress a line, `#` begins a comment. Raises `BootstrapError`."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BootstrapError(f"{path} cannot be read ({error}); check the path given as node.bootstrap") from error
    peers: list[BootstrapPeer] = []
    for number, line in enumerate(text.splitlines(), 1):
        address = line.partition("#")[0].strip()
        if address:
            peers.append(parse_bootstrap_address(address, f"{path}, line {number}"))
    return tuple(dict.fromkeys(peers))


def parse_bootstrap_address(address: str, place: str = "the bootstrap address") -> BootstrapPeer:
    """One multiaddress that ends in /p2p/<peer id>. Raises `BootstrapError` that begins with `place`."""
    transport, separator, name = address.rpartition("/p2p/")
    if not separator:
        raise BootstrapError(f"{place}: {address!r} does not end in /p2p/<peer id>; write it like {EXAMPLE}")
    try:
        node = parse_peer_id(name)
    except Malformed as error:
        raise BootstrapError(f"{place}: {error}; `mtor status` on that node shows its address") from error
    if not _dialable(transport):
        raise BootstrapError(
            f"{place}: {transport!r} is not /ip4|ip6|dns4|dns6/<host>/tcp/<port>; write it like {EXAMPLE}"
        )
    return BootstrapPeer(node, address)


def _dialable(transport: str) -> bool:
    parts = transport.split("/")
    if len(parts) == 3 and parts[:2] == ["", MEMORY_PROTOCOL]:
        return True
    if len(parts) != 5 or parts[0] or parts[1] not in HOST_PROTOCOLS or not parts[2] or parts[3] != "tcp":
        return False
    return parts[4].isascii() and parts[4].isdecimal() and 0 < int(parts[4]) < 65_536


class BootstrapKeeper:
    """Keeps connections to the bootstrap peers. The owner of what is known about each."""

    def __init__(self, network: Network, peers: Iterable[BootstrapPeer], source: random.Random) -> None:
        self._network = network
        self._peers = _by_node(peer for peer in peers if peer.node != network.node)
        self._random = source
        self._reachable: set[NodeId] = set()
        self._next_try: dict[NodeId, float] = {}
        self._failed: set[NodeId] = set()  # tried and not reached since the last connection
        self._last_error = ""
        self._cut_off = False

    def state(self) -> BootstrapState:
        """How it stands now."""
        soonest = min(self._next_try.values(), default=0.0) - trio.current_time()
        waiting = max(0.0, soonest) if self._next_try else 0.0
        return BootstrapState(len(self._peers), len(self._reachable), self._last_error, waiting)

    async def run(self, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Dial until cancelled."""
        async with trio.open_nursery() as nursery:
            for node, addresses in self._peers.items():
                nursery.start_soon(self._keep, node, addresses)
            task_status.started()

    async def _keep(self, node: NodeId, addresses: Sequence[str]) -> None:
        pause = FIRST_PAUSE
        while True:
            if await self._dial(node, addresses):
                pause = FIRST_PAUSE
                await self._watch(node)
            await self._rest(node, pause * (1 - JITTER * self._random.random()))
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _dial(self, node: NodeId, addresses: Sequence[str]) -> bool:
        for address in addresses:
            try:
                await self._network.connect(address)
            except NetworkError as error:
                self._last_error = f"{address}: {error}"
                log.debug("bootstrap peer not reached: %s", self._last_error)
                continue
            self._reached(node)
            return True
        self._lost(node)
        return False

    async def _rest(self, node: NodeId, seconds: float) -> None:
        self._next_try[node] = trio.current_time() + seconds
        await trio.sleep(seconds)
        del self._next_try[node]

    async def _watch(self, node: NodeId) -> None:
        """Return when the connection is gone."""
        while any(peer.node == node for peer in self._network.peers()):  # noqa: ASYNC110 (the port tells no events)
            await trio.sleep(WATCH_INTERVAL)
        self._reachable.discard(node)
        log.info("the connection to bootstrap peer %s dropped; it is dialled again", peer_id(node))

    def _reached(self, node: NodeId) -> None:
        self._reachable.add(node)
        self._failed.discard(node)
        if self._cut_off:
            self._cut_off = False
            log.info("bootstrap peer %s is reachable again", peer_id(node))

    def _lost(self, node: NodeId) -> None:
        """Warn once when the last of them is gone."""
        self._failed.add(node)
        if self._cut_off or len(self._failed) < len(self._peers):
            return
        self._cut_off = True
        log.warning(
            "none of %d bootstrap peers can be reached (%s); this node goes on with those it knows and keeps trying",
            len(self._peers),
            self._last_error,
        )


def _by_node(peers: Iterable[BootstrapPeer]) -> dict[NodeId, list[str]]:
    """All addresses of each peer, in the file's order."""
    found: dict[NodeId, list[str]] = {}
    for peer in peers:
        found.setdefault(peer.node, []).append(peer.address)
    return found
