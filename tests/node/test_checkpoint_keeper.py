"""What a witness has prepared it can adopt from its own memory, whatever it prepared since."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from node.checkpoint_keeper import CheckpointKeeper, Retention
from node.journal import Journal
from node.ledger_writer import LedgerWriter
from node.memory_store import MemoryStore
from protocol.ledger.checkpoints import Union, epoch_orders
from protocol.ledger.state import View
from protocol.messages import Checkpoint
from protocol.signing import verify
from tests.node.ledgers import Clock
from tests.protocol.ledger_world import ALICE, BOB, CAROL
from tests.protocol.vector_world import FOUR, Ledger, four_witnesses


class Nobody:
    """Everybody who has the orders is silent."""

    async def union(self, checkpoint: Checkpoint) -> Sequence[bytes]:
        raise AssertionError("asked for the ids")

    async def records(self, ids: Sequence[bytes]) -> list[bytes]:
        raise AssertionError("asked for orders")


def keeper_of(store: MemoryStore, writer: LedgerWriter) -> CheckpointKeeper:
    return CheckpointKeeper(
        FOUR,
        store,
        writer,
        Journal(frozenset(), BOB.node),
        Clock(),
        verify,
        Retention(),
        forgot=lambda view, certificate: False,
        changed=lambda: None,
    )


def grown(world: Ledger, amount: int) -> Ledger:
    """The same ledger with one order more."""
    other = world.copy()
    other.do(other.hold(ALICE, CAROL.node, amount))
    return other


async def test_a_union_that_was_prepared_before_another_one_is_adopted_from_memory() -> None:
    world, _ = four_witnesses()
    first, second = grown(world, 1), grown(world, 2)
    store = MemoryStore(world.state.values)
    async with trio.open_nursery() as nursery:
        writer = LedgerWriter(store, lambda puts: None)
        await nursery.start(writer.run)
        keeper = keeper_of(store, writer)
        for prepared in (first, second):
            union = epoch_orders(prepared.state)
            store.write(keeper.keep_prepared(store.snapshot(), Union(union.certificates)))
        decision = first.decision(first.checkpoint())
        assert await keeper.adopt(decision, Nobody())
        nursery.cancel_scope.cancel()
    first.adopt(decision)
    assert View(store).epoch == 1
    assert View(store).account(ALICE.node) == first.view.account(ALICE.node)
    assert list(store.iterate(b"x")) == list(store.iterate(b"u")) == []
