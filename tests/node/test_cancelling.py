"""A hundred queries that end at random points: nothing of them is left, and the next one starts at once."""

import random
import time

import psutil  # type: ignore[import-untyped]
import pytest
import trio

from node.answers import AnswerEvent
from node.engines.process import ModelFolder, ProcessEngine
from node.engines.tiny import make_tiny_model
from tests.node.federation import Answered, MemoryFederation, memory_federation, question

QUERIES = 100
AT_ONCE = 8
LONGEST_SECONDS = 0.25  # of a query's life, or of its answer's
PATIENCE_SECONDS = 30.0  # with an answer's first word, on a busy machine
GROWN_BYTES = 48 * 2**20  # that an allocator may keep of what was freed


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_tiny_model(folder)
    return ModelFolder("tiny", folder, bytes(32))


async def _cancelled(federation: MemoryFederation, seconds: float, *, from_first_word: bool = False) -> Answered:
    """A query that is given up after some time: since it was asked, or since its answer began."""
    answered = Answered()

    async def emit(event: AnswerEvent) -> None:
        first = not answered.text
        await answered.emit(event)
        if from_first_word and first and answered.text:
            scope.deadline = trio.current_time() + seconds

    with trio.move_on_after(PATIENCE_SECONDS if from_first_word else seconds) as scope:
        await federation.gateway.router.answer(question("tell me " * 20), emit)
    return answered


async def _quiet(federation: MemoryFederation, engine: ProcessEngine) -> None:
    scheduler = next(iter(federation.workers[0].services)).scheduler
    with trio.fail_after(10):
        while scheduler.busy or scheduler.queued or engine.stats().running or federation.workers[0].worker._open:
            await trio.sleep(0.01)


async def test_a_hundred_cancelled_queries_leave_nothing(tiny: ModelFolder) -> None:
    chance = random.Random(4)
    engine = ProcessEngine(tiny, device="cpu", threads=1, slots=4)
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.run)
        async with memory_federation(engine, slots=4, queue=8) as federation:
            await _cancelled(federation, 5.0)  # warm
            await _quiet(federation, engine)
            process = psutil.Process(engine.pid)
            before, life = process.memory_info().rss, engine.pid
            cut = 0
            limit = trio.CapacityLimiter(AT_ONCE)

            async def one(from_first_word: bool) -> None:
                nonlocal cut
                async with limit:
                    seconds = chance.random() * LONGEST_SECONDS
                    answered = await _cancelled(federation, seconds, from_first_word=from_first_word)
                    cut += bool(answered.text)

            async with trio.open_nursery() as asking:
                for number in range(QUERIES):
                    asking.start_soon(one, number % 2 == 0)
            assert cut >= QUERIES // 10  # in mid-answer, not only before it
            await _quiet(federation, engine)
            assert engine.pid == life and engine.ready
            assert process.memory_info().rss - before < GROWN_BYTES
            began = time.monotonic()
            answered = await federation.gateway.ask(question("and now?", max_tokens=20))
            assert answered.completed.units_out <= 20 and time.monotonic() - began < 5.0
            await federation.settle()
        nursery.cancel_scope.cancel()
