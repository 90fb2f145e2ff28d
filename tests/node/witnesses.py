"""Bookkeepers of a federation with several witnesses, in one process, with ways between them that can be spoiled."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from node.bookkeeper import Bookkeeper, Settings
from node.ledger_peers import Answer, LedgerPeers, PeerUnreachable
from node.memory_store import MemoryStore
from node.store import Store
from node.witness_memory import WitnessMemory
from protocol.ids import NodeId
from protocol.ledger.genesis import Federation, create
from protocol.messages import Message, Rejected
from protocol.signing import Signer
from tests.node.ledgers import Clock
from tests.protocol.ledger_world import ALICE, BOB, ISSUER, NOW, signer

CREDITS = 5_000_000  # µcredits that Alice begins with

Spoil = Callable[[NodeId, Message, Message], Awaitable[Message]]  # (who asked, request, the honest answer)


@dataclass
class World:
    """All nodes of a federation. `away` do not answer; `spoilt` answer what their function makes of the truth."""

    federation: Federation
    witnesses: tuple[Signer, ...]
    nursery: trio.Nursery
    clock: Clock = field(default_factory=Clock)
    books: dict[NodeId, Bookkeeper] = field(default_factory=dict)
    stores: dict[NodeId, Store] = field(default_factory=dict)
    scopes: dict[NodeId, trio.CancelScope] = field(default_factory=dict)
    away: set[NodeId] = field(default_factory=set)
    spoilt: dict[NodeId, Spoil] = field(default_factory=dict)
    asked: list[tuple[NodeId, NodeId, Message]] = field(default_factory=list)

    async def start(
        self,
        who: Signer,
        store: Store | None = None,
        settings: Settings | None = None,
        memory: WitnessMemory | None = None,
    ) -> Bookkeeper:
        """A node; on its store of before if it has run already."""
        made = store if store is not None else self.stores.get(who.node) or MemoryStore()
        issuer = ISSUER if who.node == self.witnesses[0].node else None
        wires = Wires(self, who.node)
        ledger = Bookkeeper(made, who, self.federation, issuer, self.clock, wires, settings, memory=memory)
        self.stores[who.node] = made

        async def run(task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:  # type: ignore[name-defined]
            with trio.CancelScope() as scope:
                self.scopes[who.node] = scope
                await ledger.run(task_status)

        await self.nursery.start(run)
        self.books[who.node] = ledger
        return ledger

    def stop(self, who: Signer) -> None:
        """End a node; its store stays."""
        self.scopes.pop(who.node).cancel()
        del self.books[who.node]

    async def start_witnesses(self) -> list[Bookkeeper]:
        """All of them."""
        return [await self.start(witness) for witness in self.witnesses]

    @property
    def first(self) -> Bookkeeper:
        """The issuer's node."""
        return self.books[self.witnesses[0].node]


class Wires(LedgerPeers):
    """One node's way to the others."""

    def __init__(self, world: World, own: NodeId) -> None:
        self._world = world
        self._own = own

    async def ask(self, node: NodeId, request: Message, expected: type[Answer]) -> Answer | Rejected:
        await trio.lowlevel.checkpoint()
        self._world.asked.append((self._own, node, request))
        there = self._world.books.get(node)
        if there is None or node in self._world.away or self._own in self._world.away:
            raise PeerUnreachable("away")
        answer = await there.answer(self._own, request)
        if node in self._world.spoilt:
            answer = await self._world.spoilt[node](self._own, request, answer)
        if not isinstance(answer, expected | Rejected):
            raise PeerUnreachable(f"answered {type(answer).__name__}")
        return answer

    def connected(self) -> list[NodeId]:
        return [node for node in self._world.books if node != self._own and node not in self._world.away]


def federation_of(count: int) -> tuple[Federation, tuple[Signer, ...]]:
    """A federation with so many witnesses."""
    witnesses = tuple(signer(f"witness {number}") for number in range(count))
    genesis = create("several", NOW, [witness.node for witness in witnesses], [ISSUER.node], supply_cap=10**12)
    return genesis, witnesses


async def begun(world: World, keep_epochs: int = 0) -> tuple[Bookkeeper, Bookkeeper]:
    """All witnesses that do not run yet, Alice with 5 cr, and Bob."""
    settings = Settings(keep_epochs=keep_epochs)
    for witness in world.witnesses:
        if witness.node not in world.books:
            await world.start(witness, settings=settings)
    alice, bob = [await world.start(who, settings=settings) for who in (ALICE, BOB)]
    await world.first.grant(ALICE.node, CREDITS)
    await alice.sync()
    return alice, bob


@asynccontextmanager
async def world_of(count: int) -> AsyncIterator[World]:
    """A running federation's place; nothing is started yet."""
    federation, witnesses = federation_of(count)
    async with trio.open_nursery() as nursery:
        yield World(federation, witnesses, nursery)
        nursery.cancel_scope.cancel()
