"""The child process: it may crash, hang or be orphaned, and nothing else breaks.

What holds for every engine is tried with one that loads nothing; a start of torch's takes seconds.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest
import trio

from node.engines.port import EngineError, Finished, Piece, Prompted
from node.engines.process import EngineStartError, ModelFolder, ProcessEngine
from node.engines.requests import chat_request
from node.engines.tiny import CONTEXT_TOKENS, make_tiny_model
from protocol.errors import ErrorCode
from tests.node.light_child import light_engine

pytestmark = pytest.mark.slow

ASKED = chat_request("hello", max_tokens=400)
LONG = 1_000.0  # seconds


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_tiny_model(folder)
    return ModelFolder("tiny", folder, bytes(32))


@pytest.fixture(autouse=True)
def starts_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.engines.process.FIRST_RESTART_SECONDS", 0.05)


@asynccontextmanager
async def running(engine: ProcessEngine) -> AsyncIterator[ProcessEngine]:
    with trio.fail_after(90):
        async with trio.open_nursery() as nursery:
            await nursery.start(engine.run)
            yield engine
            nursery.cancel_scope.cancel()


async def until_ready(engine: ProcessEngine) -> None:
    while not engine.ready:
        await trio.sleep(0.05)


async def count(engine: ProcessEngine) -> int:
    """Tokens of one whole answer."""
    async with engine.generate(ASKED, "") as generation, aclosing(generation.events()) as events:
        await generation.grant(ASKED.max_tokens)
        async for event in events:
            if isinstance(event, Finished):
                return event.units_out
    raise AssertionError("no Finished")


async def test_a_crash_costs_the_running_queries_and_the_engine_comes_back() -> None:
    async with running(light_engine()) as engine:
        first_pid = engine.pid
        assert first_pid
        with pytest.raises(EngineError) as failed:
            async with engine.generate(ASKED, "") as generation, aclosing(generation.events()) as events:
                await generation.grant(10)
                async for event in events:
                    if isinstance(event, Piece) and event.units_out == 10:
                        psutil.Process(first_pid).kill()
        assert failed.value.code is ErrorCode.ENGINE_FAILED
        await generation.grant(20)  # too late, and no error of its own
        await generation.cancel()
        await until_ready(engine)
        assert engine.pid != first_pid
        assert engine.stats().restarts == 1
        assert await count(engine) == 400


async def test_a_query_while_the_model_is_loading_is_told_so() -> None:
    engine = light_engine()
    with pytest.raises(EngineError) as failed:
        async with engine.generate(ASKED, ""):
            pass
    assert failed.value.code is ErrorCode.ENGINE_FAILED
    assert not engine.ready


@pytest.mark.skipif(sys.platform == "win32", reason="a process is stopped by a POSIX signal here")
async def test_a_child_that_hangs_is_ended_and_started_again() -> None:
    async with running(light_engine(hang_seconds=1.0)) as engine:
        assert engine.pid
        os.kill(engine.pid, signal.SIGSTOP)
        with pytest.raises(EngineError) as failed:
            await count(engine)
        assert failed.value.code is ErrorCode.ENGINE_FAILED
        engine._hang_seconds = LONG  # what follows is no hang, on however busy a machine
        await until_ready(engine)
        assert await count(engine) == 400


@pytest.mark.skipif(sys.platform == "win32", reason="a process is stopped by a POSIX signal here")
async def test_a_model_whose_steps_are_known_is_waited_for_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.engines.process.LEAST_PATIENCE_SECONDS", 0.5)
    monkeypatch.setattr("node.engines.process.PATIENCE", 0)
    async with running(light_engine(hang_seconds=LONG)) as engine:
        assert await count(engine) == 400 and engine.pid
        os.kill(engine.pid, signal.SIGSTOP)
        with pytest.raises(EngineError):
            await count(engine)


@pytest.mark.skipif(sys.platform == "win32", reason="a process is stopped by a POSIX signal here")
async def test_a_hang_is_noticed_when_nobody_waits_any_more() -> None:
    async with running(light_engine(hang_seconds=1.0)) as engine:
        assert engine.pid
        os.kill(engine.pid, signal.SIGSTOP)
        async with engine.generate(ASKED, ""):
            pass
        assert engine.stats().running == 0
        while not engine.stats().restarts:
            await trio.sleep(0.05)
        engine._hang_seconds = LONG
        await until_ready(engine)
        assert await count(engine) == 400


async def test_a_query_that_waits_for_its_grant_is_no_hang() -> None:
    async with running(light_engine(hang_seconds=1.0)) as engine, engine.generate(ASKED, "") as generation:
        async with aclosing(generation.events()) as events:
            assert isinstance(await anext(events), Prompted)
            await trio.sleep(2.0)
            await generation.grant(1)
            assert isinstance(await anext(events), Piece)
        assert engine.stats().restarts == 0


async def test_cancelling_the_service_ends_the_child() -> None:
    async with running(light_engine()) as engine:
        assert engine.pid
        child = psutil.Process(engine.pid)
        assert child.is_running()
    assert not child.is_running()


def test_a_killed_parent_leaves_no_child() -> None:
    program = (
        "import trio\nfrom tests.node.light_child import light_engine\n"
        "async def main():\n"
        "    engine = light_engine()\n"
        "    async with trio.open_nursery() as nursery:\n"
        "        await nursery.start(engine.run)\n"
        "        print(engine.pid, flush=True)\n"
        "trio.run(main)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    psutil.wait_procs([child], timeout=30)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


async def test_a_folder_that_is_no_model_is_an_error_with_a_name_at_the_start(tmp_path: Path) -> None:
    engine = light_engine(tmp_path / "nothing")
    with pytest.raises(EngineStartError, match="nothing cannot be loaded: FileNotFoundError"), trio.fail_after(60):
        await engine.run()


async def overflow_is_told_in_numbers_before_any_work(engine: ProcessEngine) -> None:
    with pytest.raises(EngineError, match=rf"\d+ tokens.*{CONTEXT_TOKENS}") as refused:
        async with engine.generate(chat_request("x" * CONTEXT_TOKENS), "") as generation:
            async for event in generation.events():
                pytest.fail(f"{event}")
    assert refused.value.code is ErrorCode.CONTEXT_OVERFLOW


async def more_queries_than_slots_are_all_answered(engine: ProcessEngine) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(count, engine)
    assert engine.stats().tokens_per_second > 0


async def a_query_behind_the_slots_can_be_cancelled(engine: ProcessEngine) -> None:
    async with engine.generate(ASKED, "") as first, engine.generate(ASKED, "") as second:
        await second.cancel()
        async with aclosing(second.events()) as events:
            assert isinstance([event async for event in events][-1], Finished)
        await first.cancel()


async def test_a_model_of_torchs_in_its_child(
    tiny: ModelFolder, caplog: pytest.LogCaptureFixture, subtests: pytest.Subtests
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = "correct horse battery staple"
    async with running(ProcessEngine(tiny, device="cpu", threads=1, slots=1)) as engine:
        for check in (
            overflow_is_told_in_numbers_before_any_work,
            more_queries_than_slots_are_all_answered,
            a_query_behind_the_slots_can_be_cancelled,
        ):
            with subtests.test(check.__name__):
                await check(engine)
        async with engine.generate(chat_request(secret, max_tokens=20), secret) as generation:
            await generation.grant(20)
            async with aclosing(generation.events()) as events:
                answer = "".join([event.text async for event in events if isinstance(event, Piece)])
        assert engine.stats().restarts == 0
    with subtests.test("prompts and answers never reach the log"):
        assert "is loaded on cpu" in caplog.text
        assert answer and secret not in caplog.text and answer not in caplog.text


GARBAGE = """
import sys, msgpack
from protocol.framing import frame
def say(*parts): sys.stdout.buffer.write(frame(msgpack.packb(parts))); sys.stdout.buffer.flush()
GOOD = ("loaded", 512, ["cpu", "fake", 0, 0, 0, ""], 1, [32], [])
say(*GOOD)
sys.stdin.buffer.read(1)
{said}
import time; time.sleep(60)
"""


@pytest.mark.parametrize(
    "said",
    [
        "sys.stdout.buffer.write(frame(b'\\xc1')); sys.stdout.buffer.flush()",
        "say('piece', 1, 'text')",
        "say('piece', 1, b'text', 1, [])",
        "say('piece', 1, 'x' * 70_000, 1, [])",
        "say('piece', 1, 'text', -1, [])",
        "say('piece', 'one', 'text', 1, [])",
        "say('data', 1, 'image/png', b'', 1)",
        "say('finished', 1, 'whatever', 1, 1)",
        "say('failed', 1, 9_999, 'no such code')",
        "say(7)",
        "say('broken')",
        "say('broken', 'the model, after it was loaded')",
        "say(*GOOD)",
        "say('loaded', 'x', ['cuda', 5, {}, None], 'y', ['z'], [])",
        "sys.stdout.buffer.write(b'\\xff' * 64); sys.stdout.buffer.flush()",
    ],
)
async def test_a_child_that_speaks_garbage_is_ended_and_costs_its_queries_alone(said: str) -> None:
    engine = light_engine()
    engine._command = lambda seat: [sys.executable, "-c", GARBAGE.format(said=said)]  # type: ignore[method-assign]
    async with running(engine):
        first = engine.pid
        with pytest.raises(EngineError) as failed:
            await count(engine)
        assert failed.value.code is ErrorCode.ENGINE_FAILED
        await until_ready(engine)
        assert engine.pid != first


SECOND_LIFE = """
import sys, msgpack
from pathlib import Path
from protocol.framing import frame
def say(*parts): sys.stdout.buffer.write(frame(msgpack.packb(parts))); sys.stdout.buffer.flush()
lives = Path({lives!r})
lives.write_text(lives.read_text() + "x" if lives.exists() else "x")
if lives.read_text() == "xx":
    {said}
else:
    say("loaded", 512, ["cpu", "fake", 0, 0, 0, ""], 1, [32], [])
    sys.stdin.buffer.read(1)
    if lives.read_text() == "x":
        sys.exit(1)
    say("prompted", 1, 5)
    say("finished", 2, "stop", 5, 1)
import time; time.sleep(60)
"""


@pytest.mark.parametrize(
    "said",
    [
        "say('broken')",
        "say('broken', {'why': 7})",
        "say('loaded')",
        "say('loaded', 'x', ['cuda', 5, {}, None], 'y', ['z'], [])",
        "say('loaded', 512, 7, 1, [32], [])",
        "say('loaded', 512, ['cpu', 'fake', 0, 0, 0, ''], 1, None, [])",
    ],
)
async def test_a_child_that_garbles_its_start_is_started_again(tmp_path: Path, said: str) -> None:
    engine = light_engine()
    program = SECOND_LIFE.format(lives=str(tmp_path / "lives"), said=said)
    engine._command = lambda seat: [sys.executable, "-c", program]  # type: ignore[method-assign]
    async with running(engine):
        known = engine.info
        with pytest.raises(EngineError):
            await count(engine)
        await until_ready(engine)
        assert engine.info == known and engine.stats().restarts == 2
        assert await count(engine) == 1


async def test_a_first_start_that_is_garbled_is_an_error_with_a_name() -> None:
    engine = light_engine()
    program = GARBAGE.replace("say(*GOOD)", "say('loaded', 512, ['cpu'], 1, [32])").format(said="")
    engine._command = lambda seat: [sys.executable, "-c", program]  # type: ignore[method-assign]
    with pytest.raises(EngineStartError, match="ended before it was loaded"), trio.fail_after(30):
        await engine.run()
