"""Try a real server by hand: what an engine promises, asked of a model on a server that really runs.

    python -m tests.outer.try_server http://127.0.0.1:11434/v1 smollm2:135m [--continuation prefill]

Prints one line for each promise. The server must be at a loopback address, or name its network with --allow.
"""

from __future__ import annotations

import argparse
import ipaddress
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace

import trio

from node.engines.outer.engine import OuterEngine
from node.engines.outer.http import LOOPBACK
from node.engines.outer.serving import OuterModel, outer_engine
from node.engines.port import EngineError, Finished, Piece, Prompted
from node.engines.requests import chat_request
from tests.outer.world import answer, running, text_of

ASKED = chat_request("Count from one to twenty in words, with commas.", max_tokens=24, seed=7)

Promise = Callable[[OuterEngine], Awaitable[str]]


async def answers(engine: OuterEngine) -> str:
    """An answer comes, whole and counted."""
    events = await answer(engine, ASKED)
    first, last = events[0], events[-1]
    assert isinstance(first, Prompted) and isinstance(last, Finished)
    assert 0 < last.units_out <= 24 and text_of(events)
    return f"{first.units_in} + {last.units_out} units, {last.finish}: {text_of(events)!r}"


async def repeats(engine: OuterEngine) -> str:
    """The same question without chance has the same answer."""
    texts = [text_of(await answer(engine, ASKED)) for _ in range(2)]
    assert texts[0] == texts[1], texts
    return "twice the same"


async def holds(engine: OuterEngine) -> str:
    """Nothing comes beyond the grant."""
    async with engine.generate(ASKED, "") as generation, aclosing(generation.events()) as events:
        await generation.grant(5)
        highest = 0
        with trio.move_on_after(5):
            async for event in events:
                highest = max(highest, event.units_out if isinstance(event, Piece) else 0)
    assert highest == 5, highest
    return "5 of 5 units, then silence"


async def stops(engine: OuterEngine) -> str:
    """A cancel ends it at once."""
    async with engine.generate(replace(ASKED, max_tokens=2_000), "") as generation:
        await generation.grant(2_000)
        async with aclosing(generation.events()) as events:
            async for event in events:
                if isinstance(event, Piece) and event.units_out >= 3:
                    began = time.monotonic()
                    await generation.cancel()
                last = event
    assert isinstance(last, Finished) and last.finish == "cancelled", last
    return f"after {last.units_out} units, in {time.monotonic() - began:.2f} s"


async def continues(engine: OuterEngine) -> str:
    """A begun answer goes on where it ended, or is refused."""
    whole = text_of(await answer(engine, ASKED))
    first = text_of(await answer(engine, replace(ASKED, max_tokens=10)))
    try:
        second = text_of(await answer(engine, replace(ASKED, max_tokens=14), prefix=first))
    except EngineError as error:
        return f"refused: {error.code.name.lower()}"
    verdict = "as one answer" if first + second == whole else "not token by token as one answer"
    return f"{verdict}: {first!r} + {second!r}"


async def keeps_apart(engine: OuterEngine) -> str:
    """Answers at the same time do not mix."""
    questions = [chat_request(f"Say only the word {word}.", max_tokens=8) for word in ("apple", "river")]
    alone = [text_of(await answer(engine, question)) for question in questions]
    together = ["", ""]

    async def ask(index: int) -> None:
        together[index] = text_of(await answer(engine, questions[index]))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, 0)
        nursery.start_soon(ask, 1)
    return "the same as alone" if together == alone else f"not as alone: {alone} {together}"


PROMISES: tuple[Promise, ...] = (answers, repeats, holds, stops, continues, keeps_apart)


async def try_all(engine: OuterEngine) -> int:
    """How many promises were broken."""
    broken = 0
    async with running(engine):
        if not engine.ready:
            print(f"not ready: {engine.problem}")
            return 1
        print(f"ready: {engine.info.name}, context {engine.info.context_tokens or 'not told'}")
        for promise in PROMISES:
            try:
                print(f"ok      {promise.__name__}: {await promise(engine)}", flush=True)
            except (AssertionError, EngineError) as error:
                broken += 1
                print(f"BROKEN  {promise.__name__}: {getattr(error, 'detail', error)}", flush=True)
    return broken


def main() -> int:
    """0 if every promise was kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("model")
    parser.add_argument("--continuation", default="auto")
    parser.add_argument("--allow", action="append", default=[], help="a network besides loopback")
    asked = parser.parse_args()
    allowed = (*LOOPBACK, *(ipaddress.ip_network(each) for each in asked.allow))
    options = {"continuation": asked.continuation}
    return trio.run(
        try_all, outer_engine(OuterModel("openai", "$CHAT", asked.model, asked.url, options, allowed=allowed), {})
    )


if __name__ == "__main__":
    sys.exit(main())
