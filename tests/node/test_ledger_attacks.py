"""What one hostile peer, payer or witness tries against an honest node's ledger."""

from __future__ import annotations

import threading

import pytest
import trio
import trio.testing

from node import ledger_pages
from node.bookkeeper import Settings
from protocol.codec import body_hash, encode
from protocol.errors import ErrorCode, Refused
from protocol.gossip import Verdict
from protocol.ids import NO_HASH, ChannelId, NodeId
from protocol.ledger import checkpoints
from protocol.ledger.checkpoints import Union
from protocol.ledger.state import Iterable, View, first_head
from protocol.messages import (
    Checkpoint,
    Equivocation,
    Evidence,
    FetchEpoch,
    FetchHead,
    FetchIds,
    FetchSnapshot,
    FetchState,
    Head,
    Hold,
    Ids,
    Join,
    Joined,
    Message,
    Promised,
    Propose,
    Records,
    Rejected,
    Source,
    StateLeaves,
)
from protocol.params import MAX_HOLD_LIFETIME, MAX_INTEGER
from protocol.signing import Signer
from tests.node.ledgers import PRICES, QUOTE
from tests.node.test_several_witnesses import query
from tests.node.witnesses import World, begun, world_of
from tests.protocol.ledger_world import ALICE, BOB, CAROL

# --- one witness lies ---


async def test_a_log_that_claims_to_be_beyond_all_numbers_is_no_log() -> None:
    async with world_of(4) as world:
        alice, _ = await begun(world)
        liar = world.witnesses[3].node
        asked: list[int] = []

        async def far(asker: NodeId, request: Message, answer: Message) -> Message:
            if isinstance(request, FetchIds):
                encode(request)  # as on the wire: a number that cannot be encoded is no question
                asked.append(request.start)
                return Ids(MAX_INTEGER, MAX_INTEGER, (b"?" * 32,))
            return answer

        world.spoilt[liar] = far
        world.away.add(world.witnesses[2].node)
        for _ in range(2):
            with pytest.raises(Refused):
                await alice.sync()
        assert asked and max(asked) <= MAX_INTEGER


async def test_an_order_of_somebody_else_that_a_witness_gives_back_is_not_sent_again() -> None:
    async with world_of(4) as world:
        await begun(world)
        await world.first.grant(BOB.node, 1_000)
        world.stop(ALICE)
        others = Hold(
            payer=BOB.node,
            sequence=7,  # what comes before it will never be
            previous=first_head(BOB.node),
            payee=ALICE.node,
            amount=1,
            price_in=1,
            price_out=1,
            expiry_ms=world.clock.now + 1_000,
            quote=QUOTE,
            epoch=0,
        )

        async def lie(asker: NodeId, request: Message, answer: Message) -> Message:
            if isinstance(request, FetchHead) and asker == ALICE.node:
                body = encode(others)
                return Head(0, 0, first_head(ALICE.node), body, BOB.sign(world.federation.id, body))
            return answer

        world.spoilt[world.witnesses[0].node] = lie
        world.away.add(world.witnesses[3].node)  # so that the liar belongs to every quorum
        alice = await world.start(ALICE)
        await query(alice, world.books[BOB.node])
        assert (await alice.balance()).owed == 250


async def test_a_witness_that_gives_its_log_in_drops_holds_nobody_up(autojump_clock: trio.testing.MockClock) -> None:
    autojump_clock.autojump_threshold = 0.05  # work goes on in threads while nobody waits for the clock
    async with world_of(4) as world:
        await begun(world)
        for amount in range(1, 21):
            await world.first.grant(BOB.node, amount)

        async def drip(asker: NodeId, request: Message, answer: Message) -> Message:
            if isinstance(answer, Records):
                await trio.sleep(9)
                return Records(answer.records[:1])
            return answer

        world.spoilt[world.witnesses[3].node] = drip
        world.away.add(world.witnesses[2].node)
        carol = await world.start(CAROL)
        with trio.fail_after(60), pytest.raises(Refused, match="takes too long"):
            await carol.sync()
        world.away.clear()
        await carol.sync()
        assert (await carol.balance(BOB.node)).balance == sum(range(1, 21))


async def test_a_log_is_read_in_whole_pages() -> None:
    async with world_of(4) as world:
        await begun(world)
        for amount in range(1, 6):
            await world.first.grant(BOB.node, amount)
        liar, questions = world.witnesses[3].node, 0

        async def drip(asker: NodeId, request: Message, answer: Message) -> Message:
            nonlocal questions
            if isinstance(answer, Ids) and asker == CAROL.node:
                questions += 1
                return Ids(answer.start, MAX_INTEGER, answer.ids[:1])
            return answer

        world.spoilt[liar] = drip
        world.away.add(world.witnesses[2].node)
        carol = await world.start(CAROL)
        await carol.sync()
        assert questions == 1
        assert (await carol.balance(BOB.node)).balance == 15


@pytest.mark.parametrize("frozen", [False, True])
async def test_nothing_is_fetched_for_a_proposal_that_nobody_signed(frozen: bool) -> None:
    async with world_of(4) as world:
        await begun(world)
        world.clock.now += world.federation.genesis.epoch_length_ms
        honest, liar = world.first, world.witnesses[1].node
        if frozen:
            assert isinstance(await honest.answer(liar, Join(0, 1)), Joined)
        sources = tuple(Source(index, 1_000_000, b"?" * 32, bytes(64)) for index in range(3))
        checkpoint = Checkpoint(1, world.federation.id, world.clock.now, 1, b"?" * 32, b"?" * 32, sources)
        promises = tuple(Promised(index, 0, NO_HASH, bytes(64)) for index in range(3))
        world.asked.clear()
        answer = await honest.answer(liar, Propose(1, encode(checkpoint), promises, ()))
        assert isinstance(answer, Rejected)
        assert not [request for _, _, request in world.asked if isinstance(request, FetchSnapshot)]


# --- anybody asks and asks ---


async def test_pages_of_a_long_list_are_worked_out_once_and_beside_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    honest_leaves, honest_orders = checkpoints.leaves, checkpoints.orders_between

    def counted_leaves(state: Iterable) -> list[bytes]:
        made.append(threading.get_ident())
        return honest_leaves(state)

    def counted_orders(stored: Iterable, start: int, end: int) -> Union:
        made.append(threading.get_ident())
        return honest_orders(stored, start, end)

    monkeypatch.setattr(ledger_pages, "leaves", counted_leaves)
    monkeypatch.setattr(ledger_pages, "orders_between", counted_orders)
    async with world_of(4) as world:
        await begun(world)
        world.clock.now += world.federation.genesis.epoch_length_ms
        assert await world.first.epochs.end() == 1
        made.clear()
        for _ in range(5):
            leaves = await world.first.answer(CAROL.node, FetchState(0, 1))
            assert isinstance(leaves, StateLeaves) and len(leaves.leaves) == 1
        assert len(made) == 1
        for _ in range(5):
            ids = await world.first.answer(CAROL.node, FetchEpoch(0, 0, 1))
            assert isinstance(ids, Ids) and len(ids.ids) == 1
        assert len(made) == 2 and threading.get_ident() not in made


async def test_a_snapshot_that_nobody_signed_is_given_to_nobody() -> None:
    async with world_of(4) as world:
        await begun(world)
        question = FetchSnapshot(0, 0, 8)
        refused = await world.first.answer(CAROL.node, question)
        assert isinstance(refused, Rejected) and refused.code == ErrorCode.INVALID_REQUEST
        world.clock.now += world.federation.genesis.epoch_length_ms
        assert isinstance(await world.first.answer(world.witnesses[1].node, Join(0, 1)), Joined)
        ids = await world.first.answer(world.witnesses[1].node, question)
        assert isinstance(ids, Ids) and ids.total == 1


# --- a hostile payer ---


async def test_a_hold_older_than_what_its_worker_keeps_is_served_and_ends_nothing() -> None:
    async with world_of(4) as world:
        await world.start_witnesses()
        alice = await world.start(ALICE)
        bob = await world.start(BOB, settings=Settings(keep_epochs=1))
        await world.first.grant(ALICE.node, 1_000_000)
        hold = await long_hold(world)
        for epoch in (1, 2, 3):
            world.clock.now += world.federation.genesis.epoch_length_ms
            assert await world.first.epochs.end() == epoch
            await bob.sync()
            await alice.sync()
        assert View(world.stores[BOB.node]).record(hold) is None  # pruned
        assert (await bob.cover(hold, ALICE.node)).remaining == 1_000


async def long_hold(world: World) -> ChannelId:
    """A hold of Alice's for Bob that lasts as long as any may."""
    alice = world.books[ALICE.node]
    await alice.sync()
    body = encode(
        Hold(
            payer=ALICE.node,
            sequence=0,
            previous=first_head(ALICE.node),
            payee=BOB.node,
            amount=1_000,
            price_in=PRICES[0],
            price_out=PRICES[1],
            expiry_ms=world.clock.now + MAX_HOLD_LIFETIME,
            quote=QUOTE,
            epoch=0,
        )
    )
    await alice._ordering.order(ALICE.node, ALICE, body)
    return ChannelId(body_hash(body))


# --- a thief of a key that was replaced ---


async def test_a_key_that_was_replaced_in_an_earlier_epoch_cannot_make_its_account_rest() -> None:
    async with world_of(4) as world:
        alice, _ = await begun(world)
        old = Signer.from_seed(bytes(range(32)))
        shop = await alice.accounts.create("shop", bytes(range(32)))
        await alice.accounts.rotate(shop, bytes(range(1, 33)))
        await alice.accounts.move(ALICE.node, shop, 1_000)
        world.clock.now += world.federation.genesis.epoch_length_ms
        assert await world.first.epochs.end() == 1
        await alice.sync()

        def signed(sequence: int, amount: int) -> tuple[bytes, bytes]:
            body = encode(
                Hold(shop, sequence, first_head(shop), CAROL.node, amount, 1, 1, world.clock.now, QUOTE, epoch=1)
            )
            return body, old.sign(world.federation.id, body)

        proof = encode(Equivocation(*signed(0, 1), *signed(0, 2)))
        for witness in world.witnesses:
            evidence = world.books[witness.node].evidence
            assert evidence.judge(encode(Evidence(1, (proof,)))) is Verdict.IGNORE
            assert not await evidence.take(proof)
        await alice.accounts.move(shop, ALICE.node, 1_000)


# --- keys are free ---


async def test_proofs_about_accounts_that_somebody_made_up_are_neither_kept_nor_forwarded() -> None:
    async with world_of(4) as world:
        await begun(world)
        nobody = Signer.from_seed(bytes(range(32)))

        def signed(amount: int) -> tuple[bytes, bytes]:
            head, expiry = first_head(nobody.node), world.clock.now
            body = encode(Hold(nobody.node, 0, head, CAROL.node, amount, 1, 1, expiry, QUOTE, epoch=0))
            return body, nobody.sign(world.federation.id, body)

        proof = encode(Equivocation(*signed(1), *signed(2)))
        evidence = world.first.evidence
        assert evidence.judge(encode(Evidence(1, (proof,)))) is Verdict.IGNORE
        assert not await evidence.take(proof)
        assert evidence.listed() == []
