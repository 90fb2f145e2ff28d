"""`/v1/completions` over HTTP: prompts and choices, streams, refusals."""

from pathlib import Path
from typing import Any

import pytest

from node.answers import Delta, Failed, Question, TokenLogprob
from protocol.errors import ErrorCode
from protocol.messages import Turn
from tests.node.gateway_world import MODEL, ROUTED, Emit, Reply, World, completed, events, gateway_world, saying, until

PATH = "/v1/completions"


async def ask(world: World, **fields: Any) -> Reply:
    return await world.ask("POST", PATH, {"model": "auto", "prompt": "hello"} | fields)


async def echoing(question: Question, emit: Emit) -> None:
    await saying("to ", question.request.turns[-1].text)(question, emit)  # type: ignore[union-attr]


async def test_one_prompt_is_one_users_message(tmp_path: Path) -> None:
    async with gateway_world(tmp_path, saying("Par", "is", finish="length")) as world:
        body = (await ask(world, max_tokens=5, temperature=0, stop=["\n"], seed=3, echo=True)).json
        assert body["object"] == "text_completion" and body["model"] == MODEL and body["id"].startswith("cmpl-")
        choice = {"index": 0, "text": "helloParis", "logprobs": None, "finish_reason": "length"}
        assert body["choices"] == [choice] and body["usage"]["total_tokens"] == 10
        request = world.answers.asked[0].request
        assert request.turns == (Turn("user", "hello"),)  # type: ignore[union-attr]
        assert (request.max_tokens, request.temperature, request.seed, request.stop) == (5, 0, 3, ("\n",))  # type: ignore[union-attr]


async def test_prompts_times_n_are_choices(tmp_path: Path) -> None:
    async with gateway_world(tmp_path, echoing) as world:
        body = (await ask(world, prompt=["a", "b"], n=2, seed=5)).json
        assert [choice["text"] for choice in body["choices"]] == ["to a", "to a", "to b", "to b"]
        assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
        assert body["usage"]["completion_tokens"] == 12 and body["mtor"]["cost_micro"] == 64
        assert sorted(question.request.seed for question in world.answers.asked) == [5, 5, 6, 6]  # type: ignore[union-attr]


async def test_choices_share_one_stream(tmp_path: Path) -> None:
    async with gateway_world(tmp_path, echoing) as world:
        reply = await ask(world, prompt=["a", "b"], stream=True, echo=True, stream_options={"include_usage": True})
        texts: dict[int, str] = {}
        for chunk in reply.chunks:
            for choice in chunk["choices"]:
                texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
        assert texts == {0: "ato a", 1: "bto b"} and reply.frames[-1] == "[DONE]"
        ends = [choice for chunk in reply.chunks for choice in chunk["choices"] if choice["finish_reason"]]
        assert sorted(choice["index"] for choice in ends) == [0, 1]
        assert reply.chunks[-1]["choices"] == [] and reply.chunks[-1]["usage"]["total_tokens"] == 20
        assert len({chunk["id"] for chunk in reply.chunks}) == 1


async def test_likelihoods_have_the_older_shape(tmp_path: Path) -> None:
    tokens = tuple(TokenLogprob(text, -0.5, ((text, -0.5),)) for text in ("Par", "is"))
    script = events(ROUTED, Delta("Par", tokens[:1]), Delta("is", tokens[1:]), completed())
    async with gateway_world(tmp_path, script) as world:
        logprobs = (await ask(world)).json["choices"][0]["logprobs"]
        assert logprobs["tokens"] == ["Par", "is"] and logprobs["text_offset"] == [0, 3]
        streamed = [chunk["choices"][0]["logprobs"] for chunk in (await ask(world, stream=True)).chunks]
        assert [each["text_offset"] for each in streamed if each] == [[0], [3]]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": [1, 2]}, "prompt"),
        ({"prompt": [[1, 2]]}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["x"] * 17}, "prompt"),
        ({"prompt": ["x"] * 9, "n": 2}, "n"),
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"logit_bias": {"1": 1}}, "logit_bias"),
        ({"temperature": 9}, "temperature"),
    ],
)
async def test_what_cannot_be_done_is_refused_by_name(tmp_path: Path, fields: dict[str, Any], param: str) -> None:
    async with gateway_world(tmp_path) as world:
        reply = await ask(world, **fields)
        assert reply.status == 400 and reply.error["param"] == param, reply.body
        assert not world.answers.asked


async def test_one_choice_that_fails_fails_all_and_ends_them(tmp_path: Path) -> None:
    async def one_fails(question: Question, emit: Emit) -> None:
        await emit(ROUTED)
        if question.request.turns[-1].text == "bad":  # type: ignore[union-attr]
            await emit(Failed(ErrorCode.ENGINE_FAILED, "broken"))
            return
        while True:
            await emit(Delta("more "))

    async with gateway_world(tmp_path, one_fails) as world:
        whole = await ask(world, prompt=["good", "bad"])
        assert whole.status == 502 and whole.error["code"] == "engine_failed"
        await until(lambda: world.answers.cancelled == 1)
        streamed = await ask(world, prompt=["good", "bad"], stream=True)
        if streamed.status == 200:  # the good one was faster
            assert streamed.chunks[-1]["error"]["code"] == "engine_failed"
            assert "[DONE]" not in streamed.frames
        await until(lambda: world.answers.cancelled == 2)


async def test_more_choices_than_may_run_are_refused(tmp_path: Path) -> None:
    async with gateway_world(tmp_path, max_concurrent=1) as world:
        assert (await ask(world, n=2)).status == 503
        assert (await ask(world)).status == 200
