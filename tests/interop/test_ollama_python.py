"""Ollama's own Python client against the gateway."""

from collections.abc import Callable
from pathlib import Path

import ollama
import pytest
import trio

from node.answers import ToolCalled
from protocol.errors import ErrorCode
from protocol.ids import VISION
from tests.interop.answering import PNG
from tests.node.gateway_world import (
    HANG_SECONDS,
    MODEL,
    ROUTED,
    World,
    completed,
    events,
    failing,
    gateway_world,
    saying,
)

HELLO = [{"role": "user", "content": "hello"}]


async def with_client(world: World, use: Callable[[ollama.Client], None]) -> None:
    """Run `use` in a thread."""

    def program() -> None:
        with ollama.Client(host=world.url, timeout=HANG_SECONDS) as client:
            use(client)

    await trio.to_thread.run_sync(program)


async def test_models(tmp_path: Path) -> None:
    def use(client: ollama.Client) -> None:
        assert [model.model for model in client.list().models] == [MODEL]
        assert client.show(MODEL).capabilities == ["completion"]
        assert client.ps().models[0].context_length == 8192

    async with gateway_world(tmp_path) as world:
        await with_client(world, use)


async def test_answers(tmp_path: Path) -> None:
    def use(client: ollama.Client) -> None:
        whole = client.chat(model=MODEL, messages=HELLO, options={"num_predict": 9})
        assert whole.message.content == "Paris" and whole.done_reason == "stop" and whole.eval_count == 3
        assert whole.total_duration is not None and whole.total_duration > 0
        parts = list(client.chat(model=MODEL, messages=HELLO, stream=True))
        assert "".join(part.message.content or "" for part in parts) == "Paris" and parts[-1].done
        assert client.generate(model=MODEL, prompt="hello").response == "Paris"
        assert "".join(part.response for part in client.generate(model=MODEL, prompt="hello", stream=True)) == "Paris"

    async with gateway_world(tmp_path, saying("Par", "is")) as world:
        await with_client(world, use)


async def test_pictures(tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    picture.write_bytes(PNG)

    def use(client: ollama.Client) -> None:
        client.chat(model=MODEL, messages=[{"role": "user", "content": "?", "images": [str(picture)]}])

    async with gateway_world(tmp_path) as world:
        await with_client(world, use)
        assert world.answers.asked[0].realm == VISION and world.answers.asked[0].inputs == (picture.read_bytes(),)


async def test_a_tools_call(tmp_path: Path) -> None:
    def use(client: ollama.Client) -> None:
        (call,) = client.chat(model=MODEL, messages=HELLO).message.tool_calls or ()
        assert call.function.name == "weather" and call.function.arguments == {"city": "Paris"}

    script = events(ROUTED, ToolCalled("c", "weather", '{"city": "Paris"}'), completed("tool_calls"))
    async with gateway_world(tmp_path, script) as world:
        await with_client(world, use)


async def test_failures(tmp_path: Path) -> None:
    def refused(client: ollama.Client) -> None:
        with pytest.raises(ollama.ResponseError, match="nobody has it") as failure:
            client.chat(model=MODEL, messages=HELLO)
        assert failure.value.status_code == 404
        with pytest.raises(ollama.ResponseError, match="mtor models pull"):
            client.pull("llama3")
        with pytest.raises(ollama.ResponseError, match="embeddings"):
            client.embed(MODEL, "hello")

    def broken(client: ollama.Client) -> None:
        with pytest.raises(ollama.ResponseError, match="it vanished"):
            list(client.chat(model=MODEL, messages=HELLO, stream=True))

    async with gateway_world(tmp_path, failing(ErrorCode.NO_SUCH_MODEL, "nobody has it")) as world:
        await with_client(world, refused)
        world.answers.script = failing(ErrorCode.WORKER_LOST, "it vanished", after=("Par",))
        await with_client(world, broken)
