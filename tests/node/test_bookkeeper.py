"""Paying, being paid, witnessing, and what happens when machines fail in between."""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from node.bookkeeper import Bookkeeper, LedgerDamaged, Receipt, Settings
from node.earnings import LOOK_WINDOW, LOOKS_A_PAYER
from node.leases import LEASE_MARGIN
from node.ledger_writer import GROUP
from node.memory_store import MemoryStore
from node.store import LevelStore, StoreFailed
from protocol.errors import ErrorCode, Refused
from protocol.ids import NO_HASH, ChannelId, QueryId
from protocol.ledger.state import voucher_key
from protocol.messages import Certificates, FetchCertificates, Pay, Rejected, RequestVote, StoreCertificate
from protocol.params import HOLD_LIFETIME, HOURS, MINUTES, SECONDS, SETTLE_MARGIN
from tests.node.ledgers import PRICES, QUOTE, TRANSCRIPT, Books, books, pay
from tests.protocol.ledger_world import ALICE, BOB, FEDERATION, NOW, WITNESS

CREDITS = 10_000_000 // 2


async def refused(code: ErrorCode, awaitable: object) -> Refused:
    with pytest.raises(Refused) as refusal:
        await awaitable  # type: ignore[misc]
    assert refusal.value.code is code, refusal.value
    return refusal.value


async def lease_refused(code: ErrorCode, payer: Bookkeeper, need: int = 1) -> Refused:
    with pytest.raises(Refused) as refusal:
        async with payer.lease(BOB.node, *PRICES, QUOTE, need):
            pass
    assert refusal.value.code is code, refusal.value
    return refusal.value


async def three(house: Books) -> tuple[Bookkeeper, Bookkeeper, Bookkeeper]:
    """Witness, Alice with 5 cr, and Bob."""
    witness, alice, bob = [await house.start(signer) for signer in (WITNESS, ALICE, BOB)]
    await witness.grant(ALICE.node, CREDITS)
    return witness, alice, bob


# --- paying and being paid ---


async def test_a_query_is_paid_and_settled() -> None:
    async with books() as house:
        witness, alice, bob = await three(house)
        async with alice.lease(BOB.node, *PRICES, QUOTE, 1_000) as lease:
            assert (lease.prices, lease.cumulative, lease.transcript) == (PRICES, 0, NO_HASH)
            await pay(lease, bob, ALICE.node, 100, 50)
            assert (lease.spent, lease.remaining) == (250, 2_000_000 - 250)
        owing, owed = await alice.balance(), await bob.balance()
        assert (owing.balance, owing.held, owing.owed, owing.spent) == (CREDITS - 2_000_000, 2_000_000, 250, 0)
        assert (owed.balance, owed.pending, owed.earned) == (0, 250, 0)
        assert await bob.close_idle(0) == 1
        await alice.sync()
        after, earned = await alice.balance(), await bob.balance()
        assert (after.balance, after.held, after.spent, after.owed) == (CREDITS - 250, 0, 250, 0)
        assert (earned.balance, earned.earned, earned.pending) == (250, 250, 0)
        assert (await alice.balance(BOB.node)).earned == 250
        for bookkeeper in (witness, alice, bob):
            report = await bookkeeper.verify(signatures=True)
            assert (report.verified, report.sum_micro, report.certificates) == (True, 0, 3)


async def test_the_next_query_uses_the_same_channel_and_its_counts() -> None:
    async with books() as house:
        _, alice, bob = await three(house)
        async with alice.lease(BOB.node, *PRICES, QUOTE, 1) as first:
            await pay(first, bob, ALICE.node, 100, 50)
        async with alice.lease(BOB.node, *PRICES, QUOTE, 1) as second:
            assert (second.channel, second.units_in, second.units_out) == (first.channel, 100, 50)
            await pay(second, bob, ALICE.node, 1, 1)
            assert second.spent == 4


async def test_concurrent_queries_use_channels_of_their_own() -> None:
    async with books() as house:
        _, alice, bob = await three(house)
        seen: list[ChannelId] = []
        all_open = trio.Event()

        async def query() -> None:
            async with alice.lease(BOB.node, *PRICES, QUOTE, 1) as lease:
                seen.append(lease.channel)
                if len(seen) == 3:
                    all_open.set()
                await all_open.wait()
                await pay(lease, bob, ALICE.node, 10, 10)

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(query)
        assert len(set(seen)) == 3
        assert await bob.close_idle(0) == 3
        assert (await bob.balance()).earned == 120


@pytest.mark.parametrize("spoil", ["other price", "unconfirmed", "spoiled", "too little left", "near its expiry"])
async def test_a_channel_that_does_not_fit_is_not_used_again(spoil: str) -> None:
    async with books() as house:
        _, alice, _ = await three(house)
        async with alice.lease(BOB.node, *PRICES, QUOTE, 1) as first:
            if spoil == "unconfirmed":
                await first.sign(1, 1, TRANSCRIPT)
            if spoil == "spoiled":
                first.spoil()
        if spoil == "near its expiry":
            house.clock.now += HOLD_LIFETIME - LEASE_MARGIN
        need = 2_000_001 if spoil == "too little left" else 1
        price = 999 if spoil == "other price" else 1_000
        async with alice.lease(BOB.node, price, 3_000, QUOTE, need) as second:
            assert second.channel != first.channel


async def test_a_hold_is_as_large_as_the_balance_allows() -> None:
    async with books() as house:
        _, alice, _ = await three(house)
        async with alice.lease(BOB.node, *PRICES, QUOTE, 3_000_000) as large:
            assert large.remaining == 3_000_000
            async with alice.lease(BOB.node, *PRICES, QUOTE, 1) as rest:
                assert rest.remaining == 2_000_000
                error = await lease_refused(ErrorCode.INSUFFICIENT_FUNDS, alice)
                assert "balance is 0 cr" in error.message


async def test_nothing_is_signed_beyond_the_hold() -> None:
    async with books() as house:
        _, alice, _ = await three(house)
        async with alice.lease(BOB.node, *PRICES, QUOTE, 1) as lease:
            await refused(ErrorCode.INSUFFICIENT_FUNDS, lease.sign(2_000_001, 0, TRANSCRIPT))
            assert lease.spent == 0
            await lease.sign(2_000_000, 0, TRANSCRIPT)
            await refused(ErrorCode.BAD_VOUCHER, lease.sign(1_999_999, 0, TRANSCRIPT))


@pytest.mark.parametrize(
    ("counts", "transcript"), [((99, 50), TRANSCRIPT), ((100, 49), TRANSCRIPT), ((100, 50), bytes(32))]
)
async def test_a_voucher_for_something_else_is_not_taken(counts: tuple[int, int], transcript: bytes) -> None:
    async with books() as house:
        _, alice, bob = await three(house)
        async with alice.lease(BOB.node, *PRICES, QUOTE, 1) as lease:
            await bob.cover(lease.channel, ALICE.node)
            voucher = await lease.sign(100, 50, TRANSCRIPT)
            await refused(ErrorCode.BAD_VOUCHER, bob.take_voucher(lease.channel, voucher, *counts, transcript))
            forged = Pay(voucher.voucher, bytes(64))
            taken = bob.take_voucher(lease.channel, forged, 100, 50, TRANSCRIPT)
            await refused(ErrorCode.BAD_SIGNATURE, taken)
            broken = Pay(voucher.voucher + b"\0", voucher.signature)
            await refused(ErrorCode.MALFORMED, bob.take_voucher(lease.channel, broken, 100, 50, TRANSCRIPT))
            assert (await bob.balance()).pending == 0


async def test_cover_names_what_is_wrong() -> None:
    async with books() as house:
        _, alice, bob = await three(house)
        await refused(ErrorCode.UNKNOWN_CHANNEL, bob.cover(ChannelId(bytes(32)), ALICE.node))
        async with alice.lease(BOB.node, *PRICES, QUOTE, 1) as lease:
            await refused(ErrorCode.UNKNOWN_CHANNEL, bob.cover(lease.channel, WITNESS.node))
            await refused(ErrorCode.UNKNOWN_CHANNEL, alice.cover(lease.channel, ALICE.node))
            await pay(lease, bob, ALICE.node, 1, 0)
        async with alice.lease(BOB.node, 1, 1, QUOTE, 1) as late:
            house.clock.now += HOLD_LIFETIME - SETTLE_MARGIN
            await refused(ErrorCode.EXPIRED, bob.cover(late.channel, ALICE.node))
        await bob.close(lease.channel)
        await refused(ErrorCode.CHANNEL_CLOSED, bob.cover(lease.channel, ALICE.node))


async def test_only_so_many_channels_that_no_witness_knows_are_looked_for() -> None:
    async with books() as house:
        _, alice, bob = await three(house)
        for number in range(LOOKS_A_PAYER):
            await refused(ErrorCode.UNKNOWN_CHANNEL, bob.cover(ChannelId(bytes([number]) * 32), ALICE.node))
        asked = len(house.cable.asked)
        refusal = await refused(ErrorCode.OVERLOADED, bob.cover(ChannelId(b"\xee" * 32), ALICE.node))
        assert refusal.retry_after_ms == LOOK_WINDOW and len(house.cable.asked) == asked
        await refused(ErrorCode.UNKNOWN_CHANNEL, bob.cover(ChannelId(b"\xee" * 32), WITNESS.node))  # another's
        house.clock.now += LOOK_WINDOW
        async with alice.lease(BOB.node, *PRICES, QUOTE, 1) as lease:
            await bob.cover(lease.channel, ALICE.node)


async def test_an_honest_payer_may_open_as_many_channels_at_once_as_it_likes() -> None:
    """A gateway's burst of queries to one worker is a burst of new channels."""
    many = 2 * LOOKS_A_PAYER
    async with books() as house, AsyncExitStack() as stack:
        witness, bob = await house.start(WITNESS), await house.start(BOB)
        alice = await house.start(ALICE, settings=Settings(hold=1_000))
        await witness.grant(ALICE.node, CREDITS)
        leases = [await stack.enter_async_context(alice.lease(BOB.node, *PRICES, QUOTE, 1_000)) for _ in range(many)]
        for each in leases:
            await bob.cover(each.channel, ALICE.node)
        assert len({each.channel for each in leases}) == many


async def test_a_channel_serves_one_query_at_a_time() -> None:
    async with books() as house:
        _, alice, bob = await three(house)
        async with alice.lease(BOB.node, *PRICES, QUOTE, 1) as lease:
            await pay(lease, bob, ALICE.node, 1, 0)
        async with bob.serving(lease.channel):
            with pytest.raises(Refused):
                async with bob.serving(lease.channel):
                    pass
            await refused(ErrorCode.INVALID_REQUEST, bob.close(lease.channel))
            assert await bob.close_idle(0) == 0
        assert await bob.close_idle(0) == 1


async def test_only_what_is_owed_and_idle_is_closed() -> None:
    async with books() as house:
        _, alice, bob = await three(house)
        async with alice.lease(BOB.node, *PRICES, QUOTE, 1) as lease:
            await bob.cover(lease.channel, ALICE.node)
            await refused(ErrorCode.BAD_VOUCHER, bob.close(lease.channel))
            assert await bob.close_idle(0) == 0
            await pay(lease, bob, ALICE.node, 1, 0)
        assert await bob.close_idle(60 * SECONDS) == 0
        house.clock.now += 60 * SECONDS
        assert await bob.close_idle(60 * SECONDS) == 1


async def test_who_asks_to_settle_while_that_is_going_on_waits_until_it_is_done() -> None:
    async with books() as house:
        _, alice, bob = await three(house)
        leases = (alice.lease(BOB.node, *PRICES, QUOTE, 1) for _ in range(2))
        async with next(leases) as first, next(leases) as second:
            await pay(first, bob, ALICE.node, 1, 0)
            await pay(second, bob, ALICE.node, 1, 0)
        rounds: list[tuple[int, int]] = []

        async def settle() -> None:
            closed = await bob.close_idle(0)
            rounds.append((closed, (await bob.balance()).pending))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(settle)
            nursery.start_soon(settle)
        # Whichever went first, and whichever then said so first: neither says so before all is done.
        assert sorted(rounds) == [(0, 0), (2, 0)]


async def test_a_channel_near_its_expiry_is_closed_even_if_it_is_in_use() -> None:
    async with books() as house:
        _, alice, bob = await three(house)
        async with alice.lease(BOB.node, *PRICES, QUOTE, 1) as lease:
            await pay(lease, bob, ALICE.node, 1, 0)
        house.clock.now += HOLD_LIFETIME - SETTLE_MARGIN
        assert await bob.close_idle(2 * HOLD_LIFETIME) == 1


async def test_a_closed_channel_is_noticed_before_it_is_used() -> None:
    async with books() as house:
        _, alice, bob = await three(house)
        async with alice.lease(BOB.node, *PRICES, QUOTE, 1) as lease:
            await pay(lease, bob, ALICE.node, 1, 0)
        await bob.close_idle(0)
        house.clock.now += 10 * SECONDS
        async with alice.lease(BOB.node, *PRICES, QUOTE, 1) as fresh:
            assert fresh.channel != lease.channel


# --- when the witness is away ---


async def test_without_the_witness_open_channels_go_on_and_new_ones_wait() -> None:
    async with books() as house:
        _, alice, bob = await three(house)
        async with alice.lease(BOB.node, *PRICES, QUOTE, 1) as lease:
            await pay(lease, bob, ALICE.node, 1, 0)
            house.cable.cut_all()
            house.clock.now += MINUTES
            error = await lease_refused(ErrorCode.OVERLOADED, alice)
            assert "witness cannot be reached" in error.message and error.retry_after_ms > 0
        async with alice.lease(BOB.node, *PRICES, QUOTE, 1) as again:
            assert again.channel == lease.channel
            await pay(again, bob, ALICE.node, 1, 0)
        assert await bob.close_idle(0) == 0
        house.cable.cut.clear()
        assert await bob.close_idle(0) == 1
        assert (await bob.balance()).earned == 2


@pytest.mark.parametrize("lost", ["vote", "store"])
async def test_an_order_whose_answer_was_lost_is_finished_not_doubled(lost: str) -> None:
    async with books() as house:
        witness, alice, _ = await three(house)
        house.cable.after.add(lost)
        await lease_refused(ErrorCode.OVERLOADED, alice)
        house.cable.after.clear()
        async with alice.lease(BOB.node, *PRICES, QUOTE, 1):
            report = await witness.verify()
            assert (report.channels, (await alice.balance()).held) == (1, 2_000_000)


async def test_an_order_left_by_an_earlier_life_is_finished_first() -> None:
    async with books() as house:
        witness, alice, _ = await three(house)
        await alice.sync()
        store = MemoryStore()
        first = await house.start(ALICE, store)
        house.cable.cut = {"vote"}
        await lease_refused(ErrorCode.OVERLOADED, first)
        house.cable.cut.clear()
        second = await house.start(ALICE, MemoryStore(dict(store.iterate())))
        async with second.lease(BOB.node, *PRICES, QUOTE, 1):
            report = await witness.verify(signatures=True)
            assert (report.verified, report.channels) == (True, 1)


async def test_an_owner_that_lost_its_disk_finds_its_head_at_the_witness() -> None:
    async with books() as house:
        witness, alice, _ = await three(house)
        async with alice.lease(BOB.node, *PRICES, QUOTE, 1):
            pass
        empty = await house.start(ALICE)
        async with empty.lease(BOB.node, *PRICES, QUOTE, 2_000_001):
            assert (await empty.balance()).held == 4_000_001
        report = await witness.verify(signatures=True)
        assert (report.verified, report.channels) == (True, 2)


async def test_a_witness_that_was_set_back_is_not_followed() -> None:
    async with books() as house:
        _, alice, _ = await three(house)
        await alice.sync()
        await house.start(WITNESS)  # with an empty ledger
        error = await refused(ErrorCode.INTERNAL, alice.sync())
        assert "set back" in error.message
        again = await house.start(ALICE, MemoryStore(dict(alice._store.iterate())))
        assert "set back" in (await lease_refused(ErrorCode.OVERLOADED, again)).message


async def test_a_witness_that_was_set_back_takes_its_log_back_and_votes_in_the_next_epoch() -> None:
    async with books() as house:
        _, alice, bob = await three(house)
        async with alice.lease(BOB.node, *PRICES, QUOTE, 1) as lease:
            await pay(lease, bob, ALICE.node, 100, 50)
        await bob.close_idle(0)
        await alice.sync()
        witness = await house.start(WITNESS)  # with an empty ledger
        with pytest.raises(Refused, match="set back"):
            await alice.sync()  # gives the witness what it lost
        await alice.sync()
        assert (await witness.balance(ALICE.node)).balance == (await alice.balance()).balance
        assert witness.epochs.status().abstaining
        assert "--after-restore" in (await refused(ErrorCode.ABSTAINING, witness.epochs.end())).message
        assert await witness.epochs.end(after_restore=True) == 1
        async with alice.lease(BOB.node, *PRICES, QUOTE, 1) as lease:
            await pay(lease, bob, ALICE.node, 1, 1)
        for ledger in (witness, alice, bob):
            report = await ledger.verify(signatures=True)
            assert (report.verified, report.sum_micro) == (True, 0), report


async def test_a_replica_follows_a_long_log() -> None:
    async with books() as house:
        witness = await house.start(WITNESS)
        for _ in range(70):
            await witness.grant(ALICE.node, 1)
        alice = await house.start(ALICE)
        await alice.sync()
        assert (await alice.balance()).balance == 70
        assert (await alice.verify(signatures=True)).certificates == 70


# --- the witness ---


async def test_an_expired_hold_is_refunded() -> None:
    async with books() as house:
        witness, alice, bob = await three(house)
        async with alice.lease(BOB.node, *PRICES, QUOTE, 1) as lease:
            await bob.cover(lease.channel, ALICE.node)
            await lease.sign(1, 0, TRANSCRIPT)
        house.clock.now += HOLD_LIFETIME - 1
        await witness.keep_house()
        assert (await witness.balance(ALICE.node)).held == 2_000_000
        house.clock.now += 1
        await witness.keep_house()
        await alice.sync()
        assert (await alice.balance()).balance == CREDITS
        assert (await witness.verify(signatures=True)).verified


async def test_a_close_that_comes_after_the_refund_ends_the_workers_hope() -> None:
    async with books() as house:
        witness, alice, bob = await three(house)
        async with alice.lease(BOB.node, *PRICES, QUOTE, 1) as lease:
            await pay(lease, bob, ALICE.node, 1, 0)
        house.clock.now += HOLD_LIFETIME
        await witness.keep_house()
        assert await bob.close_idle(0) == 0
        assert await bob.close_idle(0) == 0
        assert (await bob.balance()).pending == 0


async def test_a_node_that_is_no_witness_gives_no_votes_but_serves_its_log() -> None:
    async with books() as house:
        _, alice, _ = await three(house)
        await alice.sync()
        vote = await alice.answer(BOB.node, RequestVote(b"x", bytes(64)))
        stored = await alice.answer(BOB.node, StoreCertificate(b"x"))
        assert [vote.code, stored.code] == [ErrorCode.NOT_A_WITNESS] * 2  # type: ignore[attr-defined]
        log = await alice.answer(BOB.node, FetchCertificates(0, 10))
        assert isinstance(log, Certificates) and log.total == 1
        await refused(ErrorCode.NOT_ISSUER, alice.grant(BOB.node, 1))


async def test_the_witness_says_what_is_wrong_with_an_order() -> None:
    async with books() as house:
        witness, *_ = await three(house)
        for request in (RequestVote(b"x", bytes(64)), StoreCertificate(b"x")):
            answer = await witness.answer(BOB.node, request)
            assert isinstance(answer, Rejected) and answer.code == ErrorCode.MALFORMED


async def test_an_answer_holds_no_more_than_was_asked_for() -> None:
    async with books() as house:
        witness = await house.start(WITNESS)
        for _ in range(5):
            await witness.grant(ALICE.node, 1)
        answer = await witness.answer(BOB.node, FetchCertificates(1, 3))
        assert isinstance(answer, Certificates)
        assert (answer.start, answer.total, len(answer.certificates)) == (1, 5, 3)
        beyond = await witness.answer(BOB.node, FetchCertificates(9, 3))
        assert isinstance(beyond, Certificates) and beyond.certificates == ()


# --- the writer ---


class CountingStore(MemoryStore):
    """Counts synced batches, and fails when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.batches = 0
        self.full = False

    def write(self, batch: object, *, sync: bool = True) -> None:
        assert sync
        if self.full:
            raise StoreFailed("the disk is full")
        self.batches += 1
        super().write(batch, sync=sync)  # type: ignore[arg-type]


async def test_changes_that_wait_are_written_together() -> None:
    async with books() as house:
        store = CountingStore()
        bookkeeper = await house.start(BOB, store)
        before = store.batches
        async with trio.open_nursery() as nursery:
            for _ in range(2 * GROUP):
                nursery.start_soon(bookkeeper.use_free, ALICE.node, 1, 1_000, 1_000)
        assert await bookkeeper.free_left(ALICE.node, 1_000, 1_000) == 1_000 - 2 * GROUP
        assert store.batches - before < GROUP


async def test_a_full_disk_acknowledges_nothing() -> None:
    async with books() as house:
        _, alice, _ = await three(house)
        store = CountingStore()
        bob = await house.start(BOB, store)
        async with alice.lease(BOB.node, *PRICES, QUOTE, 1) as lease:
            await pay(lease, bob, ALICE.node, 1, 0)
            voucher = await lease.sign(2, 0, TRANSCRIPT)
            store.full = True
            error = await refused(ErrorCode.INTERNAL, bob.take_voucher(lease.channel, voucher, 2, 0, TRANSCRIPT))
            assert "disk is full" in error.message
            assert (await bob.balance()).pending == 1


async def test_a_closed_ledger_refuses() -> None:
    async with trio.open_nursery() as nursery:
        house = Books(nursery)
        bookkeeper = await house.start(BOB)
        nursery.cancel_scope.cancel()
    await refused(ErrorCode.INTERNAL, bookkeeper.use_free(ALICE.node, 1, 10, 10))


# --- the start ---


async def started(store: MemoryStore, signer: object = BOB) -> None:
    async with books() as house:
        await house.start(signer, store)  # type: ignore[arg-type]


async def saved() -> dict[bytes, bytes]:
    """Bob's ledger after a paid query."""
    async with books() as house:
        _, alice, bob = await three(house)
        async with alice.lease(BOB.node, *PRICES, QUOTE, 1) as lease:
            await pay(lease, bob, ALICE.node, 1, 0)
        return dict(bob._store.iterate())


async def test_a_ledger_that_is_not_true_is_not_used() -> None:
    values = await saved()
    key = b"a" + ALICE.node
    values[key] = values[key][:7] + b"\xff" + values[key][8:]
    before = dict(values)
    store = MemoryStore(values)
    with pytest.RaisesGroup(LedgerDamaged, flatten_subgroups=True, allow_unwrapped=True) as raised:
        await started(store)
    assert "Move the ledger folder away" in str(_leaf(raised.value))
    assert dict(store.iterate()) == before


def _leaf(error: BaseException) -> BaseException:
    return _leaf(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


@pytest.mark.parametrize(("key", "value"), [(b"m:schema", b"3"), (b"m:genesis", bytes(32))])
async def test_another_schema_or_federation_is_refused(key: bytes, value: bytes) -> None:
    with pytest.RaisesGroup(LedgerDamaged, flatten_subgroups=True, allow_unwrapped=True):
        await started(MemoryStore(await saved() | {key: value}))


async def test_a_witness_whose_disk_was_damaged_does_not_vote() -> None:
    store = MemoryStore()
    store.damaged = "a bad checksum"
    with pytest.RaisesGroup(LedgerDamaged, flatten_subgroups=True, allow_unwrapped=True) as raised:
        await started(store, WITNESS)
    assert "votes that were given must not be forgotten" in str(_leaf(raised.value))
    await started(store, BOB)


async def test_vouchers_of_an_earlier_life_are_settled() -> None:
    async with books() as house:
        _, alice, _ = await three(house)
        store = MemoryStore()
        bob = await house.start(BOB, store)
        async with alice.lease(BOB.node, *PRICES, QUOTE, 1) as lease:
            await pay(lease, bob, ALICE.node, 1, 0)
        reborn = await house.start(BOB, MemoryStore(dict(store.iterate())))
        await reborn.keep_house()
        assert (await reborn.balance()).earned == 1


async def test_a_payer_that_starts_again_does_not_reuse_a_channel_with_vouchers() -> None:
    async with books() as house:
        _, _, bob = await three(house)
        store = MemoryStore()
        alice = await house.start(ALICE, store)
        async with alice.lease(BOB.node, *PRICES, QUOTE, 1) as lease:
            await pay(lease, bob, ALICE.node, 1, 0)
        reborn = await house.start(ALICE, MemoryStore(dict(store.iterate())))
        async with reborn.lease(BOB.node, *PRICES, QUOTE, 1) as fresh:
            assert fresh.channel != lease.channel


# --- reading ---


def receipt(**changes: object) -> Receipt:
    whole = Receipt(
        query_id=QueryId(b"q" * 16),
        role="requester",
        counterparty=BOB.node,
        realm="$CHAT",
        model="tiny",
        units_in=100,
        units_out=50,
        amount=250,
        price_in=1_000,
        price_out=3_000,
        quote=QUOTE,
        channel=ChannelId(b"c" * 32),
        pay=Pay(b"v", bytes(64)),
        transcript=TRANSCRIPT,
        digest=bytes(32),
        outcome="stop",
        time_ms=NOW,
    )
    return replace(whole, **changes)  # type: ignore[arg-type]


async def test_both_sides_keep_the_same_receipt_and_can_explain_it() -> None:
    async with books() as house:
        _, alice, bob = await three(house)
        asked = await alice.record_receipt(receipt())
        answered = await bob.record_receipt(receipt(role="worker", counterparty=ALICE.node))
        assert asked == answered
        shown, earned = await alice.show(asked[:6]), await bob.show(asked)
        assert (shown["amount"], earned["amount"]) == (-250, 250)
        assert "100 prompt tokens x 0.001 cr per 1,000 + 50 output tokens x 0.003 cr" in shown["sentence"]
        assert "0.00025 cr paid" in shown["sentence"] and "0.00025 cr earned" in earned["sentence"]


async def test_a_receipt_is_kept_once() -> None:
    async with books() as house:
        bob = await house.start(BOB)
        first = await bob.record_receipt(receipt())
        assert await bob.record_receipt(receipt()) == first
        assert len(await bob.history()) == 1
        await bob.record_receipt(receipt(transcript=bytes(32)))
        assert len(await bob.history()) == 2


async def test_the_free_lane_is_explained_too() -> None:
    async with books() as house:
        bob = await house.start(BOB)
        kept = await bob.record_receipt(receipt(channel=ChannelId(NO_HASH), pay=None, amount=0))
        assert "for nothing" in (await bob.show(kept))["sentence"]


async def test_history_is_newest_first_and_goes_on_where_it_ended() -> None:
    async with books() as house:
        _, alice, bob = await three(house)
        async with alice.lease(BOB.node, *PRICES, QUOTE, 1) as lease:
            await pay(lease, bob, ALICE.node, 1, 1)
        await bob.close_idle(0)
        await alice.sync()
        entries = await alice.history()
        assert [entry["kind"] for entry in entries] == ["close", "hold", "grant"]
        assert [entry["amount"] for entry in entries] == [1_999_996, -2_000_000, CREDITS]
        assert all(entry["sentence"] and entry["time_ms"] == NOW for entry in entries)
        first = await alice.history(2)
        rest = await alice.history(2, first[-1]["position"])
        assert first + rest == entries
        assert [entry["kind"] for entry in await bob.history()] == ["close"]


async def test_show_finds_orders_of_others_and_names_what_it_cannot_find() -> None:
    async with books() as house:
        witness, alice, _ = await three(house)
        async with alice.lease(BOB.node, *PRICES, QUOTE, 1) as lease:
            shown = await witness.show(lease.channel.hex()[:9])
        assert shown["status"] == "open" and "locked 2 cr" in shown["sentence"]
        for bad in ("abc", "xyzxyz", "0" * 65, "000000"):
            await refused(ErrorCode.INVALID_REQUEST, witness.show(bad))
        await refused(ErrorCode.INVALID_REQUEST, witness.history(1, "x"))


# --- the free lane ---


async def test_the_free_quota_is_a_peers_and_everybodys_and_returns_at_midnight() -> None:
    async with books() as house:
        bob = await house.start(BOB)
        await bob.use_free(ALICE.node, 70, 100, 150)
        assert await bob.free_left(ALICE.node, 100, 150) == 30
        error = await refused(ErrorCode.QUOTA_EXCEEDED, bob.use_free(ALICE.node, 31, 100, 150))
        await refused(ErrorCode.QUOTA_EXCEEDED, bob.use_free(WITNESS.node, 81, 100, 150))
        assert await bob.free_left(WITNESS.node, 100, 150) == 80
        house.clock.now += error.retry_after_ms - 1
        assert await bob.free_left(ALICE.node, 100, 150) == 30
        house.clock.now += 1
        assert await bob.free_left(ALICE.node, 100, 150) == 100
        assert house.clock.now % (24 * HOURS) == 0


# --- a killed process ---

KILLED = """
import sys, trio
from pathlib import Path
from node.store import LevelStore
from tests.node.ledgers import *
from tests.protocol.ledger_world import ALICE, BOB, WITNESS

async def main():
    async with books() as house:
        witness = await house.start(WITNESS)
        alice = await house.start(ALICE)
        bob = await house.start(BOB, LevelStore(Path(sys.argv[1])))
        await witness.grant(ALICE.node, 5_000_000)
        async with alice.lease(BOB.node, 1_000, 3_000, QUOTE, 1) as lease:
            for count in range(1, 1_000_000):
                await pay(lease, bob, ALICE.node, 1, 1)
                print(lease.channel.hex(), lease.cumulative + lease.spent, flush=True)
                lease.units_in, lease.units_out = count, count
trio.run(main)
"""


@pytest.mark.parametrize("lines", [1, 20, 150])
def test_nothing_acknowledged_is_lost_when_the_process_is_killed(tmp_path: Path, lines: int) -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", KILLED, str(tmp_path / "ledger")]
    process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    seen = [process.stdout.readline() for _ in range(lines)]
    process.send_signal(signal.SIGKILL)
    seen += [line for line in process.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
    process.wait()
    process.stdout.close()
    channel, acknowledged = seen[-1].split()

    async def reopened() -> tuple[int, bool]:
        async with books() as house:
            bob = await house.start(BOB, LevelStore(tmp_path / "ledger"))
            return (await bob.balance()).pending, (await bob.verify(signatures=True)).verified

    pending, verified = trio.run(reopened)
    assert verified and int(acknowledged) <= pending <= int(acknowledged) + 4
    store = LevelStore(tmp_path / "ledger")
    assert store.get(voucher_key(ChannelId(bytes.fromhex(channel)))) is not None
    assert store.damaged == ""
    store.close()


def test_the_settings_have_the_documented_defaults() -> None:
    assert Settings() == Settings(hold=2_000_000, close_after_ms=60_000)
    assert FEDERATION.single
