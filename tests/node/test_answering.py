"""Queries from end to end over fakes: paying, failing over, cancelling, refusing."""

from dataclasses import replace

import pytest
import trio

from node.answers import WorkerShare
from node.engines.fake import ANSWER_TOKENS, FakeEngine, fake_answer
from node.scheduler import FIRST_GUESS_MS
from node.worker import MAX_STREAMS_PER_PEER
from protocol.errors import ErrorCode
from protocol.ids import peer_id
from protocol.pricing import channel_cost
from protocol.routing import Requirements
from tests.node.federation import Answered, memory_federation, question


async def test_an_answer_is_whole_and_paid_to_the_token() -> None:
    async with memory_federation(FakeEngine()) as federation:
        answered = await federation.gateway.ask(question())
        done = answered.completed
        assert answered.text == fake_answer(ANSWER_TOKENS) and done.finish == "stop" and not done.failover
        share = done.shares[0]
        assert share.lane == "paid" and share.amount == channel_cost(share.units_in, share.units_out, 1_000, 3_000)
        await federation.settle()
        worker = federation.workers[0].bookkeeper
        assert (await worker.balance()).earned == share.amount
        assert (await federation.gateway.bookkeeper.show(share.receipt))["amount"] == -share.amount
        assert (await worker.show(share.receipt))["amount"] == share.amount


async def test_max_tokens_ends_with_length() -> None:
    async with memory_federation(FakeEngine()) as federation:
        answered = await federation.gateway.ask(question(max_tokens=7))
        assert answered.text == fake_answer(7) and answered.completed.finish == "length"


async def test_a_crashed_engine_is_continued_elsewhere_without_gap_or_repeat() -> None:
    engines = [FakeEngine(), FakeEngine()]
    async with memory_federation(*engines) as federation:
        for engine in engines:
            engine.crash_after = 9
        asked = question()

        async def heal_after_first_crash() -> None:
            while not any(engine.running for engine in engines):
                await trio.sleep(0.001)
            next(engine for engine in engines if not engine.running).crash_after = None

        async with trio.open_nursery() as nursery:
            nursery.start_soon(heal_after_first_crash)
            answered = await federation.gateway.ask(asked)
        assert answered.text == fake_answer(ANSWER_TOKENS)
        done = answered.completed
        assert done.failover and len(done.shares) == 2 and done.units_out == ANSWER_TOKENS
        assert [share.units_out for share in done.shares] == [9, ANSWER_TOKENS - 9]
        await federation.settle()
        for share in done.shares:
            paid = (await federation.by_id(share.worker).bookkeeper.balance()).earned
            assert paid == share.amount > 0


async def test_a_lost_worker_is_continued_by_the_other() -> None:
    async with memory_federation(FakeEngine(seconds_per_token=0.02), FakeEngine(seconds_per_token=0.02)) as federation:
        answered = Answered()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(federation.gateway.router.answer, question(), answered.emit)
            while len(answered.text.split()) < 10:
                await trio.sleep(0.01)
            first = answered.workers[0]
            federation.hub.kill(first)
        assert answered.text == fake_answer(ANSWER_TOKENS)
        assert answered.completed.failover and answered.workers[0] == first and len(answered.workers) == 2


async def test_a_stalled_worker_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.requester.SILENCE_SECONDS", 0.5)
    async with memory_federation(FakeEngine(seconds_per_token=0.02), FakeEngine(seconds_per_token=0.02)) as federation:
        answered = Answered()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(federation.gateway.router.answer, question(), answered.emit)
            while len(answered.text.split()) < 5:
                await trio.sleep(0.01)
            federation.hub.stall(answered.workers[0])
        assert answered.text == fake_answer(ANSWER_TOKENS) and answered.completed.failover


async def test_cancelling_stops_the_engine_and_pays_what_came() -> None:
    engine = FakeEngine(seconds_per_token=0.02)
    shares: list[WorkerShare] = []
    async with memory_federation(engine) as federation:
        answered = Answered()
        async with trio.open_nursery() as nursery:
            asked = replace(question(), charged=shares.append)
            nursery.start_soon(federation.gateway.router.answer, asked, answered.emit)
            while len(answered.text.split()) < 5:
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
        with trio.fail_after(5):
            while engine.running:
                await trio.sleep(0.01)
        assert engine.cancelled == 1
        await federation.settle()
        scheduler = next(iter(federation.workers[0].services)).scheduler
        assert scheduler.busy == 0 and scheduler.wait_estimate_ms(2) == FIRST_GUESS_MS  # it says nothing of others
        paid = (await federation.workers[0].bookkeeper.balance()).earned
        assert paid >= channel_cost(1, len(answered.text.split()), 1_000, 3_000)
        [share] = shares  # told also to whoever hears no last word
        assert share.amount == paid and share.units_out >= 5


async def test_one_channel_serves_many_queries_and_parallel_ones_have_their_own() -> None:
    async with memory_federation(FakeEngine()) as federation:
        for _ in range(3):
            (await federation.gateway.ask(question(max_tokens=3))).completed  # noqa: B018
        await federation.gateway.bookkeeper.sync()
        assert (await federation.gateway.bookkeeper.verify()).channels == 1
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(federation.gateway.ask, question(max_tokens=30))
        assert (await federation.gateway.bookkeeper.verify()).channels == 2
        await federation.settle()


async def test_nobody_fits_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.router.DISCOVERY_SECONDS", 0.1)
    async with memory_federation(FakeEngine()) as federation:
        failed = (await federation.gateway.ask(question(wanted=Requirements(min_vram_mib=8_000)))).failed
        assert failed.code is ErrorCode.NO_PEER and "8000 MiB of VRAM" in failed.message and "0 MiB" in failed.message


async def test_overload_is_refused_early_and_says_when_to_come_back() -> None:
    engine = FakeEngine(seconds_per_token=0.05)
    async with memory_federation(engine, slots=1, queue=0) as federation:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(federation.gateway.ask, question())
            while not engine.running:
                await trio.sleep(0.01)
            failed = (await federation.gateway.ask(question())).failed
            assert failed.code is ErrorCode.OVERLOADED and failed.retry_after_ms > 0
            nursery.cancel_scope.cancel()


async def test_the_deadline_ends_an_answer_honestly() -> None:
    async with memory_federation(FakeEngine(seconds_per_token=0.1)) as federation:
        failed = (await federation.gateway.ask(question(deadline_ms=700))).failed
        assert failed.code is ErrorCode.DEADLINE_EXCEEDED and failed.shares[0].units_out > 0


async def test_a_stranger_without_cover_uses_the_free_lane_until_the_quota_ends() -> None:
    async with memory_federation(FakeEngine(), free_tokens=60) as federation:
        worker, gateway = federation.workers[0], federation.gateway
        gateway.requester.bookkeeper = worker.bookkeeper  # an account of another owner: it has no credits here
        done = (await gateway.ask(question(max_tokens=20))).completed
        assert done.shares[0].lane == "free" and done.shares[0].amount == 0
        cut = await gateway.ask(question(max_tokens=40))
        assert cut.failed.code is ErrorCode.QUOTA_EXCEEDED and cut.text == fake_answer(30)
        failed = (await gateway.ask(question(max_tokens=20))).failed
        assert failed.code is ErrorCode.PAYMENT_REQUIRED and "no free quota" in failed.message


async def test_the_own_node_answers_its_own_questions_for_nothing() -> None:
    async with memory_federation(FakeEngine()) as federation:
        worker = federation.workers[0]
        wanted = Requirements(worker=peer_id(worker.signer.node))
        done = (await worker.ask(question(wanted=wanted))).completed
        assert done.shares[0].lane == "own" and done.shares[0].amount == 0


async def test_an_engine_error_that_is_the_askers_fault_is_told() -> None:
    async with memory_federation(FakeEngine()) as federation:
        failed = (await federation.gateway.ask(question("   "))).failed
        assert failed.code is ErrorCode.INVALID_REQUEST and "empty" in failed.message


async def test_a_worker_that_comes_back_gets_the_voucher_that_it_missed() -> None:
    async with memory_federation(FakeEngine(seconds_per_token=0.02), FakeEngine(seconds_per_token=0.02)) as federation:
        answered = Answered()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(federation.gateway.router.answer, question(), answered.emit)
            while len(answered.text.split()) < 10:
                await trio.sleep(0.01)
            lost = answered.workers[0]
            federation.hub.partition(lost, federation.gateway.signer.node)
        share = answered.completed.shares[0]
        assert share.worker == lost and answered.completed.failover
        assert len(federation.gateway.bookkeeper.unheard_vouchers()) <= 1
        federation.hub.heal(lost, federation.gateway.signer.node)
        with trio.fail_after(5):
            while await federation.gateway.ledger.deliver_vouchers():
                await trio.sleep(0.05)
        await federation.settle()
        assert (await federation.by_id(lost).bookkeeper.balance()).earned == share.amount


# --- sub-accounts ---


async def test_a_sub_account_pays_and_is_refused_when_it_has_nothing_left() -> None:
    async with memory_federation(FakeEngine(), free_tokens=1_000) as federation:
        books = federation.gateway.bookkeeper
        child = await books.accounts.create("key laptop", b"k" * 32)
        poor = await federation.gateway.ask(replace(question(max_tokens=5), payer=child))
        assert poor.failed.code is ErrorCode.INSUFFICIENT_FUNDS  # no free lane for a key with a limit
        await books.accounts.move(books.node, child, 1_000)
        before = (await books.balance()).balance
        answered = await federation.gateway.ask(replace(question(max_tokens=5), payer=child))
        share = answered.completed.shares[0]
        assert share.lane == "paid" and share.amount > 0
        await federation.settle()
        assert (await books.balance(child)).balance == 1_000 - share.amount
        assert (await books.balance()).balance == before


async def test_a_sub_accounts_limit_holds_for_the_nodes_own_card_too() -> None:
    async with memory_federation(FakeEngine()) as federation:
        [worker] = federation.workers
        await federation.gateway.bookkeeper.grant(worker.signer.node, 1_000_000)
        await worker.bookkeeper.sync()
        child = await worker.bookkeeper.accounts.create("key laptop", b"k" * 32)
        await worker.bookkeeper.accounts.move(worker.signer.node, child, 1_000)
        own = await worker.ask(question(max_tokens=5))
        assert own.completed.shares[0].lane == "own"
        answered = await worker.ask(replace(question(max_tokens=5), payer=child))
        assert answered.completed.shares[0].lane == "paid"
        await federation.settle()
        amount = answered.completed.shares[0].amount
        assert (await worker.bookkeeper.balance(child)).balance == 1_000 - amount
        assert (await worker.bookkeeper.balance()).earned == amount > 0
        again = await worker.ask(replace(question(max_tokens=600), payer=child))
        assert again.failed.code is ErrorCode.INSUFFICIENT_FUNDS


async def test_more_queries_than_one_requester_may_have_are_refused_and_not_dropped() -> None:
    """A dropped stream would look like a lost worker, which is then left alone for minutes."""
    engine = FakeEngine(seconds_per_token=3_600)  # nobody is served before the last one has asked
    async with memory_federation(engine, slots=64, queue=100, free_tokens=100_000) as federation:
        ended: list[Answered] = []

        async def ask() -> None:
            ended.append(await federation.gateway.ask(question(deadline_ms=600_000)))

        async with trio.open_nursery() as nursery:
            for _ in range(MAX_STREAMS_PER_PEER + 10):
                nursery.start_soon(ask)
            with trio.fail_after(60):
                while engine.running < MAX_STREAMS_PER_PEER or len(ended) < 10:
                    await trio.sleep(0.01)
            assert len(ended) == 10
            assert {answered.failed.code for answered in ended} == {ErrorCode.OVERLOADED}
            nursery.cancel_scope.cancel()
