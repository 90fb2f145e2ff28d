"""The owner comes first: queries leave with what they have, engines end at once, and all comes back by itself."""

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest
import trio

from node.answers import Failed, Waiting
from node.engines.fake import ANSWER_TOKENS, FakeEngine, fake_answer
from node.engines.port import EngineError, Piece
from node.engines.process import EngineStartError, ModelFolder, ProcessEngine, Seat
from node.engines.requests import chat_request
from node.engines.tiny import make_tiny_model
from protocol.errors import ErrorCode
from protocol.messages import Device
from protocol.pricing import channel_cost
from tests.node.federation import Answered, memory_federation, question

RETRY_MS = 77_000


# --- queries ---------------------------------------------------------------------------------------------


async def until_said(answered: Answered, words: int) -> None:
    """Wait for so much of an answer."""
    with trio.fail_after(10):
        while len(answered.text.split()) < words:
            await trio.sleep(0.005)


async def test_a_running_answer_is_continued_elsewhere_and_paid_to_the_token() -> None:
    async with memory_federation(FakeEngine(seconds_per_token=0.01), FakeEngine(seconds_per_token=0.01)) as federation:
        answered = Answered()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(federation.gateway.router.answer, question(), answered.emit)
            await until_said(answered, 8)
            federation.by_id(answered.workers[0]).worker.pause(RETRY_MS)
        assert answered.text == fake_answer(ANSWER_TOKENS)
        done = answered.completed
        assert done.failover and len(done.shares) == 2 and done.units_out == ANSWER_TOKENS
        await federation.settle()
        for share in done.shares:
            assert share.amount == channel_cost(share.units_in, share.units_out, 1_000, 3_000)
            assert (await federation.by_id(share.worker).bookkeeper.balance()).earned == share.amount


async def test_a_paused_node_refuses_says_when_to_come_back_and_nothing_of_its_owner() -> None:
    async with memory_federation(FakeEngine()) as federation:
        worker = federation.workers[0].worker
        worker.pause(RETRY_MS)
        failed = (await federation.gateway.ask(question(deadline_ms=1_000))).failed
        assert failed.code is ErrorCode.PAUSED and 0 < failed.retry_after_ms <= RETRY_MS
        assert "owner" in failed.message
        worker.resume()
        assert not worker.paused
        assert (await federation.gateway.ask(question())).text == fake_answer(ANSWER_TOKENS)


async def test_a_pause_in_mid_answer_is_told_while_it_lasts_and_is_the_reason_in_the_end() -> None:
    async with memory_federation(FakeEngine(seconds_per_token=0.01)) as federation:
        answered = Answered()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(federation.gateway.router.answer, question(deadline_ms=2_000), answered.emit)
            await until_said(answered, 3)
            federation.workers[0].worker.pause(RETRY_MS)
        waits = [event for event in answered.events if isinstance(event, Waiting)]
        assert waits == [Waiting("the owner of this node needs the machine", RETRY_MS)]
        failed = answered.failed
        assert failed.code is ErrorCode.PAUSED and failed.retry_after_ms == RETRY_MS and failed.shares
        assert "the owner of this node needs the machine" in failed.message and "mtor up --model" in failed.message
        assert "2 s" in failed.message and "deadline" not in failed.message and "Ask for less" not in failed.message


async def test_who_waits_in_the_queue_goes_elsewhere_too() -> None:
    engine = FakeEngine(seconds_per_token=0.05)
    async with memory_federation(engine, slots=1) as federation:
        (service,) = federation.workers[0].services
        first, second = Answered(), Answered()
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(federation.gateway.router.answer, question(), first.emit)
                await until_said(first, 1)
                nursery.start_soon(federation.gateway.router.answer, question(), second.emit)
                while not service.scheduler.queued:
                    await trio.sleep(0.005)
                federation.workers[0].worker.pause(RETRY_MS)
                while service.scheduler.busy or service.scheduler.queued or engine.running:
                    await trio.sleep(0.005)
                while not (second.events and isinstance(second.events[-1], Failed)):
                    await trio.sleep(0.005)
                nursery.cancel_scope.cancel()  # the first one waits for somebody to continue it
        assert second.failed.code is ErrorCode.PAUSED


# --- engines ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """A model that loads in a second."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_tiny_model(folder)
    return ModelFolder("tiny", folder, bytes(32))


@asynccontextmanager
async def running(engine: ProcessEngine) -> AsyncIterator[ProcessEngine]:
    """Its service, for the block."""
    with trio.fail_after(90):
        async with trio.open_nursery() as nursery:
            await nursery.start(engine.run)
            yield engine
            nursery.cancel_scope.cancel()


async def test_an_engine_loads_where_it_is_told_when_it_is_told_and_ends_at_once(tiny: ModelFolder) -> None:
    card = Device("cuda", "RTX 4090 (declared)", 24_564, 89)
    engine = ProcessEngine(tiny, "cpu", 1)
    await engine.suspend()
    others = psutil.Process().children()  # what earlier tests of this process keep: multiprocessing's helpers
    async with running(engine):
        assert not engine.ready and not engine.loaded_before
        with trio.move_on_after(0.2) as short:
            await engine.resume()
        assert short.cancelled_caught and engine.process_id is None
        assert psutil.Process().children() == others
        await engine.resume(Seat("cpu", {"CUDA_VISIBLE_DEVICES": ""}, {"context": "100"}, card))
        assert engine.ready and (engine.info.device, engine.info.context_tokens) == (card, 100)
        child = psutil.Process(engine.pid)
        with pytest.raises(EngineError) as failed:
            async with engine.generate(chat_request("hi"), "") as generation, aclosing(generation.events()) as events:
                await generation.grant(80)
                async for event in events:
                    if isinstance(event, Piece):
                        await engine.suspend()
                        assert not child.is_running() and not engine.ready and engine.pid is None
        assert failed.value.code is ErrorCode.PAUSED and engine.stats().restarts == 0
        await engine.suspend()  # again: nothing is to be done


async def test_a_model_that_does_not_load_is_told_to_who_asked_for_it(tmp_path: Path) -> None:
    engine = ProcessEngine(ModelFolder("nothing", tmp_path, bytes(32), engine="no such engine"), "cpu", 1)
    await engine.suspend()
    async with running(engine):
        with pytest.raises(EngineStartError, match="nothing cannot be loaded"):
            await engine.resume()
        assert not engine.ready and engine.process_id is None
