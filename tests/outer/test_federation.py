"""Outer workers among nodes: paid for like any other, and left for another in the middle of an answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from node.engines.fake import ANSWER_TOKENS, fake_answer
from tests.node.federation import MemoryFederation, memory_federation, question
from tests.outer.world import RunningServer, model_of, running


@asynccontextmanager
async def federation_of(server: RunningServer, *models: str, **section: object) -> AsyncIterator[MemoryFederation]:
    async with AsyncExitStack() as engines:
        made = [await engines.enter_async_context(running(model_of(server, model=model))) for model in models]
        async with memory_federation(*made, **section) as federation:
            yield federation


async def test_an_answer_is_paid_as_it_was_counted(server: RunningServer) -> None:
    async with federation_of(server, "tiny-llama", window=4) as federation:
        answered = await federation.gateway.ask(question())
        assert answered.text == fake_answer(ANSWER_TOKENS)
        [share] = answered.completed.shares
        assert (share.lane, share.units_out) == ("paid", ANSWER_TOKENS) and share.amount > 0
        await federation.settle()
        assert (await federation.workers[0].bookkeeper.balance()).earned == share.amount


async def test_an_answer_goes_on_at_the_server_that_can_continue_it(server: RunningServer) -> None:
    """Whichever of the first two dies, and whether or not the one that cannot continue is asked next."""
    await server.fault("dies", times=1)
    async with federation_of(server, "tiny-plain", "tiny-llama", "tiny-vllm") as federation:
        answered = await federation.gateway.ask(question())
        assert answered.text == fake_answer(ANSWER_TOKENS)
        done = answered.completed
        assert done.failover and done.units_out == ANSWER_TOKENS
        assert [share.units_out for share in done.shares] == [9, ANSWER_TOKENS - 9]
        assert done.shares[1].model in ("tiny-llama", "tiny-vllm")
        await federation.settle()


async def test_a_hostile_server_costs_its_worker_the_query_alone(server: RunningServer) -> None:
    await server.fault("lying usage", times=1)
    async with federation_of(server, "tiny-vllm") as federation:
        answered = await federation.gateway.ask(question())
        assert answered.text == "one two three" and answered.completed.units_out <= len("one two three") + 16
        assert (await federation.gateway.ask(question(max_tokens=5))).text == fake_answer(5)
        await federation.settle()
