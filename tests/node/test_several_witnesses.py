"""A federation of several witnesses, with up to f of them dead, slow or lying."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial

import pytest
import trio
import trio.testing

from node import epoch_change, paging
from node.bookkeeper import Bookkeeper, Settings
from node.memory_store import MemoryStore
from protocol.codec import body_hash, decode, decode_as, encode
from protocol.errors import ErrorCode, Refused
from protocol.ids import NO_HASH, ChannelId, NodeId
from protocol.ledger.certificates import certify
from protocol.ledger.checkpoints import Union, epoch_orders, is_decision
from protocol.ledger.orders import check_order
from protocol.ledger.state import View, first_head
from protocol.messages import (
    Certificate,
    Checkpoint,
    Close,
    Decision,
    Evidence,
    FetchEvidence,
    FetchHead,
    FetchIds,
    FetchRecords,
    FetchState,
    Grant,
    Head,
    Hold,
    Ids,
    Join,
    Joined,
    Message,
    Propose,
    Records,
    Rejected,
    RequestVote,
    StateLeaves,
    StoreCertificate,
    Stored,
    Voted,
    WitnessSignature,
)
from protocol.params import HOURS, REFUND_DELAY
from protocol.signing import Signer
from tests.node.ledgers import PRICES, QUOTE, pay
from tests.node.witnesses import CREDITS, World, begun, world_of
from tests.protocol.ledger_world import ALICE, BOB, CAROL


async def query(alice: Bookkeeper, bob: Bookkeeper, units_in: int = 100, units_out: int = 50) -> None:
    """One query's worth of payment."""
    async with alice.lease(BOB.node, *PRICES, QUOTE, 1) as lease:
        await pay(lease, bob, ALICE.node, units_in, units_out)


async def all_true(world: World) -> None:
    """Every running node's ledger verifies, and all that have everything agree."""
    for ledger in world.books.values():
        report = await ledger.verify(signatures=True)
        assert report.verified, report.problems
        assert report.sum_micro == 0


def vanish(world: World, count: int) -> None:
    """The last `count` witnesses go away."""
    world.away |= {witness.node for witness in world.witnesses[len(world.witnesses) - count :]}


# --- holds, closes, finality ---


@pytest.mark.parametrize("count", [1, 4, 7])
async def test_a_query_is_paid_with_n_witnesses(count: int) -> None:
    async with world_of(count) as world:
        alice, bob = await begun(world)
        await query(alice, bob)
        assert await bob.close_idle(0) == 1
        assert (await bob.balance()).balance == 250
        await alice.sync()
        assert (await alice.balance()).balance == CREDITS - 250
        await trio.testing.wait_all_tasks_blocked()
        await all_true(world)


@pytest.mark.parametrize(("count", "faults"), [(4, 1), (7, 2)])
async def test_f_dead_witnesses_change_nothing(count: int, faults: int) -> None:
    async with world_of(count) as world:
        alice, bob = await begun(world)
        vanish(world, faults)
        await query(alice, bob)
        assert await bob.close_idle(0) == 1
        world.away.clear()
        for witness in world.witnesses:
            await world.books[witness.node].sync()
            assert (await world.books[witness.node].balance(BOB.node)).balance == 250
        await all_true(world)


async def test_with_too_few_witnesses_no_hold_opens_the_open_one_goes_on_and_the_user_is_told() -> None:
    async with world_of(4) as world:
        alice, bob = await begun(world)
        await query(alice, bob)
        vanish(world, 2)
        await query(alice, bob)  # the same channel
        with pytest.raises(Refused) as refusal:
            async with alice.lease(CAROL.node, *PRICES, QUOTE, 1):
                pass
        assert refusal.value.code is ErrorCode.OVERLOADED and refusal.value.retry_after_ms
        assert "2 of the federation's 4 witnesses" in refusal.value.message
        assert "3 are needed" in refusal.value.message and "open channels go on" in refusal.value.message
        with pytest.raises(Refused, match="2 of the federation's 4 witnesses"):
            await bob.close(await open_channel(alice))
        world.away.clear()
        assert await bob.close_idle(0) == 1
        assert (await bob.balance()).earned == 500
        async with alice.lease(CAROL.node, *PRICES, QUOTE, 1):
            pass
        await all_true(world)


async def open_channel(ledger: Bookkeeper) -> bytes:
    """The id of its one open channel."""
    return next(iter(ledger._channels.states))


async def test_a_slow_witness_is_not_waited_for() -> None:
    async with world_of(4) as world:
        alice, bob = await begun(world)

        async def slow(asker: NodeId, request: Message, answer: Message) -> Message:
            await trio.sleep_forever()

        world.spoilt[world.witnesses[0].node] = slow
        with trio.fail_after(5):
            await query(alice, bob)
            assert await bob.close_idle(0) == 1


LIES = {
    Voted: lambda answer: Voted(answer.witness, bytes(64)),
    Stored: lambda answer: Stored(10**6, 9),
    Ids: lambda answer: Ids(answer.start, answer.total + 5, (bytes(32), *answer.ids)),
    Records: lambda answer: Records(tuple(bytes(len(record)) for record in answer.records)),
    Head: lambda answer: Head(7, 99, b"x" * 32, b"", b""),
    Evidence: lambda answer: Evidence(1, (b"nonsense",)),
}


async def test_a_lying_witness_changes_nothing() -> None:
    async with world_of(4) as world:
        await world.start_witnesses()

        async def lie(asker: NodeId, request: Message, answer: Message) -> Message:
            return LIES.get(type(answer), lambda honest: honest)(answer)

        world.spoilt[world.witnesses[1].node] = lie
        alice, bob = await begun(world)
        await query(alice, bob)
        assert await bob.close_idle(0) == 1
        for who in (ALICE, BOB):
            ledger = world.books[who.node]
            await ledger.sync()
        assert (await alice.balance()).balance == CREDITS - 250
        await all_true(world)


async def test_a_witness_that_says_no_alone_is_not_believed() -> None:
    async with world_of(4) as world:
        alice, bob = await begun(world)

        async def refuse(asker: NodeId, request: Message, answer: Message) -> Message:
            return Rejected(int(ErrorCode.INSUFFICIENT_FUNDS), "you are poor")

        world.spoilt[world.witnesses[2].node] = refuse
        await query(alice, bob)


async def test_what_most_witnesses_say_is_the_reason() -> None:
    async with world_of(4) as world:
        alice, _ = await begun(world)

        async def refuse(asker: NodeId, request: Message, answer: Message) -> Message:
            return Rejected(int(ErrorCode.SUPPLY_CAP), "no") if isinstance(request, RequestVote) else answer

        for witness in world.witnesses[:2]:
            world.spoilt[witness.node] = refuse
        with pytest.raises(Refused) as refusal:
            async with alice.lease(BOB.node, *PRICES, QUOTE, 1):
                pass
        assert refusal.value.code is ErrorCode.SUPPLY_CAP


async def test_a_worker_serves_only_a_hold_that_it_has_made_final() -> None:
    async with world_of(4) as world:
        alice, bob = await begun(world)
        async with alice.lease(BOB.node, *PRICES, QUOTE, 1) as lease:
            vanish(world, 2)
            with pytest.raises(Refused, match="witnesses"):
                await bob.cover(lease.channel, ALICE.node)
            world.away.clear()
            world.asked.clear()
            await bob.cover(lease.channel, ALICE.node)
            stores = [
                where for who, where, what in world.asked if who == BOB.node and isinstance(what, StoreCertificate)
            ]
            assert len(stores) >= 3


async def test_a_witness_that_was_away_is_told_what_it_lacks_by_the_owner() -> None:
    """I11: an owner that reaches 2f+1 witnesses finishes, though they do not reach one another."""
    async with world_of(4) as world:
        alice, bob = await begun(world)
        world.away.add(world.witnesses[3].node)
        await query(alice, bob)
        assert await bob.close_idle(0) == 1
        await alice.sync()
        world.away = {world.witnesses[2].node}
        async with alice.lease(CAROL.node, *PRICES, QUOTE, 1):
            pass
        assert (await world.books[world.witnesses[3].node].balance(BOB.node)).earned == 250


async def test_an_owner_that_lost_its_disk_finds_its_order_again() -> None:
    async with world_of(4) as world:
        alice, bob = await begun(world)
        await query(alice, bob)
        vanish(world, 2)
        with pytest.raises(Refused, match="2 of the federation's 4 witnesses voted"):
            async with alice.lease(CAROL.node, *PRICES, QUOTE, 1):
                pass
        world.stop(ALICE)
        world.away = {world.witnesses[2].node}
        again = await world.start(ALICE, MemoryStore())
        async with again.lease(CAROL.node, *PRICES, QUOTE, 1_000_000):
            pass
        held = [state.payee for state in again._channels.states.values()]
        assert set(held) == {BOB.node, CAROL.node}  # the first order was finished before the second
        assert not again.evidence.listed()
        await all_true(world)


async def test_a_node_that_was_away_catches_up_from_any_peer_and_says_that_it_is_not_sure() -> None:
    async with world_of(4) as world:
        alice, bob = await begun(world)
        await query(alice, bob)
        await bob.close_idle(0)
        await alice.sync()
        late = await world.start(CAROL)
        vanish(world, 4)
        with pytest.raises(Refused, match="0 of the federation's 4 witnesses could be read"):
            await late.sync()
        assert (await late.balance(BOB.node)).earned == 250  # from Alice and Bob
        assert (await late.verify(signatures=True)).verified


# --- equivocation ---


def rival(world: World, who: Signer, payee: NodeId, amount: int) -> RequestVote:
    """An order with the next number of an account, made by hand."""
    account = View(world.stores[world.witnesses[0].node]).account(who.node)
    body = encode(
        Hold(who.node, account.next_sequence, account.head, payee, amount, *PRICES, world.clock() + HOURS, NO_HASH, 0)
    )
    return RequestVote(body, who.sign(world.federation.id, body))


async def test_two_orders_with_one_number_are_proven_gossiped_and_freeze_the_account() -> None:
    async with world_of(4) as world:
        await begun(world)
        first, second = rival(world, ALICE, BOB.node, 1_000_000), rival(world, ALICE, CAROL.node, 1_000_000)
        witnesses = [world.books[witness.node] for witness in world.witnesses]
        votes = [await witnesses[index].answer(ALICE.node, first) for index in (0, 1)]
        assert all(isinstance(vote, Voted) for vote in votes)
        refusal = await witnesses[0].answer(ALICE.node, second)
        assert isinstance(refusal, Rejected) and refusal.code == ErrorCode.EQUIVOCATION
        (message,) = witnesses[0].evidence.to_tell()
        assert witnesses[0].evidence.to_tell() == []
        for other in witnesses[1:]:
            assert other.evidence.judge(message).name == "ACCEPT"
            known = await witnesses[0].answer(other._signer.node, FetchEvidence(0, 10))
            assert isinstance(known, Evidence)
            await other.evidence.take_all(known)
            assert other.evidence.judge(message).name == "IGNORE"  # known by now
            assert len(other.evidence.listed()) == 1
        frozen = await witnesses[3].answer(ALICE.node, second)
        assert isinstance(frozen, Rejected) and "two orders with one number" in frozen.reason
        world.clock.now += 30 * 24 * HOURS
        assert await witnesses[0].epochs.end() == 1
        assert witnesses[0].evidence.listed() == []
        with pytest.raises(Refused):
            await witnesses[1].evidence.take(b"nonsense")


# --- epochs ---


async def end_epoch(world: World) -> None:
    """All witnesses find it due; the first coordinates."""
    world.clock.now += world.federation.genesis.epoch_length_ms
    before = world.first.epochs.status().epoch
    assert await world.first.epochs.end() == before + 1


@pytest.mark.parametrize("count", [1, 4, 7])
async def test_an_epoch_ends_everybody_goes_over_and_channels_go_on(count: int) -> None:
    async with world_of(count) as world:
        alice, bob = await begun(world)
        await query(alice, bob)
        await end_epoch(world)
        for ledger in world.books.values():
            await ledger.sync()
            assert ledger.epochs.status().epoch == 1
        roots = {View(store).reader.get(b"k" + (1).to_bytes(8, "big")) for store in world.stores.values()}
        assert len(roots) == 1
        await all_true(world)


async def test_an_expired_hold_comes_back_with_the_checkpoint() -> None:
    async with world_of(4) as world:
        alice, bob = await begun(world)
        async with alice.lease(BOB.node, *PRICES, QUOTE, 1):
            pass
        assert (await alice.balance()).held == 2_000_000
        await end_epoch(world)  # much later than its expiry and REFUND_DELAY
        assert world.federation.genesis.epoch_length_ms > HOURS + REFUND_DELAY
        await alice.sync()
        balance = await alice.balance()
        assert (balance.balance, balance.held) == (CREDITS, 0)
        assert "expired" in (await alice.history())[0]["sentence"]
        async with alice.lease(BOB.node, *PRICES, QUOTE, 1) as lease:  # in the new epoch
            await pay(lease, bob, ALICE.node, 1, 1)
        await all_true(world)


async def end_early(world: World) -> None:
    """All operators agree, so that no hold expires; the first coordinates."""
    for witness in world.witnesses:
        await world.books[witness.node].epochs.accept()
    await world.first.epochs.end()


async def certified(world: World, request: RequestVote) -> bytes:
    """The certificate of an order, stored by nobody."""
    asked = [world.books[witness.node] for witness in world.witnesses[1:]]
    answers = [await witness.answer(witness.node, request) for witness in asked]
    votes = [WitnessSignature(vote.witness, vote.signature) for vote in answers if isinstance(vote, Voted)]
    view = View(world.stores[world.witnesses[1].node])
    return certify(check_order(world.federation, view, request.body, request.signature), votes)


async def test_an_order_that_only_one_witness_stored_may_become_void_and_its_owner_goes_on() -> None:
    async with world_of(4) as world:
        alice, bob = await begun(world)
        order = rival(world, ALICE, BOB.node, 1_000_000)
        witnesses = [world.books[witness.node] for witness in world.witnesses]
        certificate = await certified(world, order)
        assert isinstance(await witnesses[3].answer(BOB.node, StoreCertificate(certificate)), Stored)
        world.away.add(world.witnesses[3].node)
        await end_epoch(world)  # without the only witness that has it
        world.away.clear()
        await witnesses[3].sync()
        assert (await witnesses[3].balance(ALICE.node)).held == 0
        refused = await witnesses[3].answer(BOB.node, StoreCertificate(certificate))
        assert isinstance(refused, Rejected) and refused.code == ErrorCode.STALE_EPOCH
        await query(alice, bob)  # the number is free again
        await all_true(world)


async def test_a_settlement_that_only_one_witness_stored_counts_after_the_epoch_and_stands_in_one_place() -> None:
    async with world_of(4) as world:
        alice, bob = await begun(world)
        world.stop(world.witnesses[3])
        late = await world.start(world.witnesses[3], settings=Settings(keep_epochs=1))
        await query(alice, bob)
        channel = ChannelId(await open_channel(alice))
        close = await bob._writer.commit(partial(bob._earnings._decide_close, channel))
        certificate = await certified(world, close)
        assert isinstance(await late.answer(BOB.node, StoreCertificate(certificate)), Stored)
        world.away.add(late.node)
        await end_early(world)  # without the only witness that has it
        world.away.clear()
        await late.sync()
        view = View(world.stores[late.node])
        identity = body_hash(close.body)
        places = [place for place in range(view.log_length) if view.id_at(place) == identity]
        assert len(places) == 2 and [view.logged(place) for place in places] == [None, certificate]
        assert (await late.balance(BOB.node)).balance == 250
        await all_true(world)
        await end_early(world)
        for ledger in world.books.values():
            await ledger.sync()
        assert await late._checkpoints.forget() == 1  # its place in the first epoch goes, the order stays
        assert view.record(identity) == certificate
        await all_true(world)


async def test_no_witness_joins_before_the_time_without_its_operator() -> None:
    async with world_of(4) as world:
        alice, bob = await begun(world)
        with pytest.raises(Refused, match="epoch accept"):
            await world.first.epochs.end()
        assert not any(world.books[witness.node].epochs.status().frozen for witness in world.witnesses)
        await query(alice, bob)  # nothing has changed
        answer = await world.books[world.witnesses[1].node].answer(world.witnesses[0].node, Join(0, 0))
        assert isinstance(answer, Rejected) and "operator has not agreed" in answer.reason
        for witness in world.witnesses[1:3]:
            assert await world.books[witness.node].epochs.accept() == 0
            assert world.books[witness.node].epochs.status().agreed
        assert await world.first.epochs.end() == 1


async def test_a_frozen_witness_gives_nothing_new_and_brings_the_change_to_its_end(
    autojump_clock: trio.testing.MockClock,
) -> None:
    autojump_clock.autojump_threshold = 0.05  # work goes on in threads while nobody waits for the clock
    async with world_of(4) as world:
        alice, bob = await begun(world)
        world.clock.now += world.federation.genesis.epoch_length_ms
        for witness in world.witnesses[1:]:  # the first one begins, and vanishes
            joined = await world.books[witness.node].answer(world.witnesses[0].node, Join(0, 0))
            assert isinstance(joined, Joined)
        world.away.add(world.witnesses[0].node)
        with pytest.raises(Refused, match="changes epochs"):
            async with alice.lease(BOB.node, *PRICES, QUOTE, 1):
                pass
        with trio.fail_after(10 * epoch_change.PATIENCE_SECONDS):
            while world.books[world.witnesses[2].node].epochs.status().epoch == 0:
                await trio.sleep(1)
        await query(alice, bob)
        world.away.clear()
        await world.first.sync()
        assert world.first.epochs.status().epoch == 1
        await all_true(world)


async def test_a_coordinator_that_was_killed_after_the_prepares_cannot_be_contradicted() -> None:
    async with world_of(4) as world:
        alice, bob = await begun(world)
        world.clock.now += world.federation.genesis.epoch_length_ms
        seen: list[bytes] = []

        async def cut(asker: NodeId, request: Message, answer: Message) -> Message:
            if isinstance(request, Propose):
                seen.append(request.checkpoint)
            if type(request).__name__ == "Commit":
                return Rejected(int(ErrorCode.OVERLOADED), "lost on the way") if len(seen) < 90 else answer
            return answer

        for witness in world.witnesses[1:]:
            world.spoilt[witness.node] = cut  # they commit, and the coordinator never hears of it
        with pytest.raises(Refused):
            await world.first.epochs.end()
        world.spoilt.clear()
        world.away.add(world.witnesses[0].node)
        assert await world.books[world.witnesses[1].node].epochs.end() == 1
        decided = View(world.stores[world.witnesses[1].node]).reader.get(b"k" + (1).to_bytes(8, "big"))
        assert decided == body_hash(seen[0])
        await query(alice, bob)


async def test_a_bad_coordinator_gets_no_ballots() -> None:
    async with world_of(4) as world:
        await begun(world)
        world.clock.now += world.federation.genesis.epoch_length_ms
        witness = world.books[world.witnesses[1].node]
        wrong_turn = await witness.answer(world.witnesses[2].node, Join(0, 1))
        stranger = await witness.answer(ALICE.node, Join(0, 1))
        too_far = await witness.answer(world.witnesses[1].node, Join(0, 2**40 + 1))
        codes = [answer.code for answer in (wrong_turn, stranger, too_far) if isinstance(answer, Rejected)]
        assert codes == [ErrorCode.NOT_A_WITNESS, ErrorCode.NOT_A_WITNESS, ErrorCode.INVALID_REQUEST]


async def test_a_witness_restored_from_a_backup_abstains_until_the_epoch_ends() -> None:
    async with world_of(4) as world:
        alice, bob = await begun(world)
        third = world.witnesses[2]
        backup = MemoryStore(dict(world.stores[third.node].iterate()))
        vanish(world, 1)  # so that every certificate has the third one's vote
        await query(alice, bob)
        await bob.close_idle(0)
        await trio.testing.wait_all_tasks_blocked()
        world.away.clear()
        world.stop(third)
        restored = await world.start(third, backup)
        await restored.sync()
        assert restored.epochs.status().abstaining
        refusal = await restored.answer(ALICE.node, rival(world, ALICE, CAROL.node, 5))
        assert isinstance(refusal, Rejected) and refusal.code == ErrorCode.ABSTAINING
        await alice.sync()
        await query(alice, bob)  # the other three are a quorum
        await end_epoch(world)
        await restored.sync()
        assert not restored.epochs.status().abstaining
        await all_true(world)


async def test_several_epochs_and_a_node_that_missed_them() -> None:
    async with world_of(4) as world:
        alice, bob = await begun(world)
        late = await world.start(CAROL)
        await late.sync()
        world.away.add(CAROL.node)
        for _ in range(3):
            await query(alice, bob)
            await bob.close_idle(0)
            await end_epoch(world)
            for who in (ALICE, BOB):
                await world.books[who.node].sync()
        world.away.clear()
        await late.sync()
        assert late.epochs.status().epoch == 3
        assert (await late.balance(BOB.node)).earned == 750
        assert (await world.start(Signer.from_seed(b"n" * 32))).epochs.status().epoch == 0
        await world.books[Signer.from_seed(b"n" * 32).node].sync()
        await all_true(world)


@pytest.mark.parametrize("count", [1, 4])
async def test_what_is_pruned_is_gone_and_a_late_node_begins_with_the_checkpoint(count: int) -> None:
    async with world_of(count) as world:
        for witness in world.witnesses:
            await world.start(witness, settings=Settings(keep_epochs=1))
        alice, bob = [await world.start(who, settings=Settings(keep_epochs=1)) for who in (ALICE, BOB)]
        await world.first.grant(ALICE.node, CREDITS)
        for _ in range(3):
            await alice.sync()
            await query(alice, bob)
            await bob.close_idle(0)
            await end_epoch(world)
            for ledger in world.books.values():
                await ledger.sync()
        store = world.stores[world.witnesses[0].node]
        assert View(store).first_epoch == 2 and View(store).log_first > 0
        assert not any(int.from_bytes(key[1:]) < View(store).log_first for key, _ in store.iterate(b"n"))
        await all_true(world)
        late = await world.start(CAROL)
        await late.sync()
        assert late.epochs.status().epoch == 3
        assert (await late.balance(BOB.node)).balance == (await bob.balance()).balance
        async with alice.lease(CAROL.node, *PRICES, QUOTE, 1) as lease:
            await pay(lease, late, ALICE.node, 10, 10)
        await late.close_idle(0)
        await all_true(world)


# --- what anybody may ask ---


async def test_the_log_is_open_to_all_and_answers_what_it_can() -> None:
    async with world_of(4) as world:
        await begun(world)
        witness = world.first
        ids = await witness.answer(CAROL.node, FetchIds(0, 10))
        assert isinstance(ids, Ids) and ids.total == 1
        records = await witness.answer(CAROL.node, FetchRecords((bytes(32), *ids.ids)))
        assert isinstance(records, Records) and len(records.records) == 1
        nothing = await witness.answer(CAROL.node, FetchState(0, 10))
        assert isinstance(nothing, StateLeaves) and nothing.decision == b""
        head = await witness.answer(CAROL.node, FetchHead(CAROL.node))
        assert head == Head(0, 0, first_head(CAROL.node), b"", b"")
        assert isinstance(await witness.answer(CAROL.node, Close(bytes(32), b"x", bytes(64))), Rejected)  # type: ignore[arg-type]


async def test_an_answer_holds_as_much_as_fits_and_the_rest_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async with world_of(4) as world:
        alice, _ = await begun(world)
        await alice.accounts.create("second", bytes(32))
        ids = await world.first.answer(CAROL.node, FetchIds(0, 10))
        assert isinstance(ids, Ids) and ids.total == 2
        records = await world.first.answer(CAROL.node, FetchRecords(ids.ids))
        assert isinstance(records, Records) and len(records.records) == 2
        monkeypatch.setattr(paging, "MAX_ANSWER_BYTES", sum(map(len, records.records)) - 1)
        assert await world.first.answer(CAROL.node, FetchRecords(ids.ids)) == Records(records.records[:1])
        late = await world.start(CAROL)
        await late.sync()
        assert (await late.verify()).certificates == 2


class _NoSource:
    """Whoever has the orders of a checkpoint keeps them back."""

    async def union(self, checkpoint: Checkpoint) -> list[bytes]:
        raise Refused(ErrorCode.OVERLOADED, "nobody tells")

    async def records(self, ids: Sequence[bytes]) -> list[bytes]:
        raise Refused(ErrorCode.OVERLOADED, "nobody tells")


async def test_every_union_that_was_prepared_can_be_adopted_from_memory() -> None:
    """A later round may go back to what was prepared before the last, and its coordinator may keep the orders back."""
    async with world_of(4) as world:
        alice, bob = await begun(world)
        late = world.witnesses[3]
        world.away.add(late.node)  # it lacks what comes now
        await query(alice, bob)
        await bob.close_idle(0)
        whole = epoch_orders(world.stores[world.witnesses[0].node])
        world.clock.now += world.federation.genesis.epoch_length_ms
        await world.first.epochs.end()
        decision = next(
            message.certificate
            for _, _, message in reversed(world.asked)
            if isinstance(message, StoreCertificate) and is_decision(message.certificate)
        )
        ledger, store = world.books[late.node], world.stores[late.node]
        some = Union(dict(list(whole.certificates.items())[:1]))
        for union in (whole, some):  # prepared in two rounds, one after the other
            store.write(ledger._checkpoints.keep_prepared(store.snapshot(), union))
        assert await ledger._checkpoints.adopt(decision, _NoSource())
        assert ledger.epochs.status().epoch == 1
        await all_true(world)


async def test_an_eclipsed_node_is_starved_and_never_lied_to() -> None:
    """All that a node hears is made up by somebody who has every record and no keys."""
    async with world_of(4) as world:
        alice, bob = await begun(world)
        await query(alice, bob)
        await bob.close_idle(0)
        forger = Forger(world)
        carol = await world.start(CAROL)
        for node in list(world.books):
            world.spoilt[node] = forger.forge
        for lie in forger.lies:
            forger.lie = lie
            with suppress(Refused):
                await carol.sync()
            assert forger.told[lie], lie
            for who in (ALICE, BOB, CAROL):
                known = (await carol.balance(who.node)).balance
                assert known in (0, (await world.first.balance(who.node)).balance, CREDITS), lie
            assert (await carol.balance(CAROL.node)).balance == 0
            report = await carol.verify(signatures=True)
            assert report.verified and report.sum_micro == 0, (lie, report.problems)
        world.spoilt.clear()
        await carol.sync()
        assert await carol.balance(BOB.node) == replace(await world.first.balance(BOB.node), pending=0)


class Forger:
    """Answers a node with lies made of true records."""

    lies = ("nothing", "other amounts", "other owners", "own votes", "a decision by one", "endless")

    def __init__(self, world: World) -> None:
        self._world = world
        self.lie = ""
        self.told: Counter[str] = Counter()

    async def forge(self, asker: NodeId, request: Message, answer: Message) -> Message:
        """The lie of the moment, to Carol alone."""
        if asker != CAROL.node:
            return answer
        self.told[self.lie] += 1
        if isinstance(answer, Ids) and self.lie == "nothing":
            return Ids(answer.start, 0, ())
        if isinstance(answer, Ids) and self.lie == "endless":
            return Ids(answer.start, 2**40, tuple(bytes([n]) * 32 for n in range(1, 200)))
        if isinstance(answer, Ids) and answer.ids:
            return Ids(answer.start, answer.total, tuple(body_hash(self._forged(record)) for record in self._records()))
        if isinstance(answer, Records):
            return Records(tuple(self._forged(record) for record in self._records()))
        return answer

    def _records(self) -> list[bytes]:
        view = View(self._world.stores[self._world.first.node])
        return [view.record(view.id_at(place) or b"") or b"" for place in range(view.log_length)]

    def _forged(self, record: bytes) -> bytes:
        found = decode_as(Certificate, record)
        order = decode(found.body)
        if self.lie == "other amounts" and isinstance(order, Grant | Hold):
            return encode(replace(found, body=encode(replace(order, amount=order.amount + 1))))
        if self.lie == "other owners" and isinstance(order, Grant):
            return encode(replace(found, body=encode(replace(order, to=CAROL.node))))
        if self.lie == "own votes":
            votes = tuple(
                replace(vote, signature=CAROL.sign(self._world.federation.id, found.body)) for vote in found.votes
            )
            return encode(replace(found, votes=votes))
        if self.lie == "a decision by one":
            checkpoint = Checkpoint(1, self._world.federation.id, 2**45, 0, bytes(32), bytes(32), ())
            return encode(Decision(encode(checkpoint), 0, found.votes[:1]))
        return record


class MovingStore(MemoryStore):
    """Its writer goes over to another epoch while somebody walks it."""

    moves = False

    def iterate(self, prefix: bytes = b"", start: bytes = b"", reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        pairs = list(super().iterate(prefix, start, reverse))
        if self.moves and prefix.startswith(b"s"):
            self.write({key: None for key, _ in super().iterate(b"s")})
        return iter(pairs)


async def test_the_state_is_handed_out_whole_while_the_epoch_changes() -> None:
    async with world_of(4) as world:
        store = MovingStore()
        world.stores[world.witnesses[0].node] = store
        alice, bob = await begun(world)
        await query(alice, bob)
        await end_early(world)
        asked = world.first
        before = await asked.answer(BOB.node, FetchState(0, 10))
        store.moves = True
        assert await asked.answer(BOB.node, FetchState(0, 10)) == before
        assert isinstance(before, StateLeaves)
        assert before.total == 3  # the issuer, Alice, a channel
