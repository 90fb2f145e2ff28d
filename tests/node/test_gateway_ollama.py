"""Ollama's interface over HTTP: lines of JSON, options, models, errors in its own shape."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from node.answers import Delta, Failed, Routed, ToolCalled
from node.gateway.keys import ApiKeys
from node.gateway.ports import ModelFacts
from protocol.errors import ErrorCode
from protocol.ids import CHAT, VISION
from protocol.messages import Turn
from tests.node.gateway_world import (
    MODEL,
    ROUTED,
    WORKER,
    Reply,
    World,
    completed,
    events,
    failing,
    gateway_world,
    saying,
)

PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (64).to_bytes(4, "big") * 2 + bytes(64)
HELLO = [{"role": "user", "content": "hello"}]
CALL = ToolCalled("call_1", "weather", '{"city": "Paris"}')


async def chat(world: World, **fields: Any) -> Reply:
    return await world.ask("POST", "/api/chat", {"model": MODEL, "messages": HELLO} | fields)


async def generate(world: World, **fields: Any) -> Reply:
    return await world.ask("POST", "/api/generate", {"model": MODEL, "prompt": "hello"} | fields)


def lines(reply: Reply) -> list[dict[str, Any]]:
    assert reply.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in reply.body.splitlines()]


async def test_a_conversation_comes_in_lines(tmp_path: Path) -> None:
    async with gateway_world(tmp_path, saying("Par", "is")) as world:
        *parts, last = lines(await chat(world))
        assert [part["message"]["content"] for part in parts] == ["Par", "is"]
        assert all(
            part["done"] is False and part["model"] == MODEL and part["created_at"].endswith("Z") for part in parts
        )
        assert last["done"] is True and last["done_reason"] == "stop" and last["message"]["content"] == ""
        assert (last["prompt_eval_count"], last["eval_count"]) == (7, 3)
        spent = [last[name] for name in ("load_duration", "prompt_eval_duration", "eval_duration")]
        assert all(isinstance(each, int) and each >= 0 for each in spent) and last["total_duration"] >= sum(spent) > 0
        assert last["mtor"]["cost_micro"] == 16


async def test_a_whole_answer(tmp_path: Path) -> None:
    async with gateway_world(tmp_path, saying("Par", "is", finish="length")) as world:
        body = (await chat(world, stream=False)).json
        assert body["message"] == {"role": "assistant", "content": "Paris"} and body["done_reason"] == "length"
        body = (await generate(world, stream=False)).json
        assert body["response"] == "Paris" and body["done"] is True and "message" not in body
        assert [line["response"] for line in lines(await generate(world))] == ["Par", "is", ""]


async def test_options_decide_the_answer(tmp_path: Path) -> None:
    options = {
        "num_predict": 9,
        "temperature": 0.5,
        "top_p": 0.25,
        "top_k": 7,
        "seed": 3,
        "stop": ["x"],
        "repeat_penalty": 1.5,
        "presence_penalty": 1,
        "frequency_penalty": -1,
        "num_ctx": 4096,
        "num_gpu": 99,
    }
    async with gateway_world(tmp_path) as world:
        assert (await chat(world, model=f"{MODEL}:latest", options=options, keep_alive="5m")).status == 200
        question = world.answers.asked[0]
        request: Any = question.request
        assert question.requirements.model == MODEL
        assert (request.max_tokens, request.temperature, request.top_p, request.top_k) == (9, 500, 250, 7)
        assert (request.seed, request.stop, request.repetition_penalty) == (3, ("x",), 1_500)
        assert (request.presence_penalty, request.frequency_penalty) == (3_000, 1_000)
        assert (await chat(world, options={"num_predict": -1})).status == 200
        assert world.answers.asked[1].request.max_tokens == 0  # type: ignore[union-attr]


async def test_pictures_and_a_system_prompt(tmp_path: Path) -> None:
    picture = base64.b64encode(PNG).decode()
    async with gateway_world(tmp_path) as world:
        assert (await chat(world, messages=[{"role": "user", "content": "?", "images": [picture]}])).status == 200
        assert (await generate(world, images=[picture], system="be brief")).status == 200
        assert all(question.realm == VISION and question.inputs == (PNG,) for question in world.answers.asked)
        assert (await generate(world, system="be brief")).status == 200
        turns = world.answers.asked[2].request.turns  # type: ignore[union-attr]
        assert turns == (Turn("system", "be brief"), Turn("user", "hello"))
        assert world.answers.asked[2].realm == CHAT


async def test_a_tools_call_has_its_arguments_as_an_object(tmp_path: Path) -> None:
    async with gateway_world(tmp_path, events(ROUTED, CALL, completed("tool_calls"))) as world:
        message = (await chat(world, stream=False)).json["message"]
        assert message["tool_calls"][0]["function"] == {"name": "weather", "arguments": {"city": "Paris"}}
        first, last = lines(await chat(world))
        assert first["message"]["tool_calls"] == message["tool_calls"] and last["done_reason"] == "stop"
        world.answers.script = events(ROUTED, ToolCalled("c", "f", "no JSON"), completed("tool_calls"))
        message = (await chat(world, stream=False)).json["message"]
        assert message["tool_calls"][0]["function"]["arguments"] == {"arguments": "no JSON"}


async def test_who_waits_is_told_its_place(tmp_path: Path) -> None:
    script = events(Routed(WORKER, MODEL, 1, 3, 9_000), ROUTED, Delta("a"), completed())
    async with gateway_world(tmp_path, script) as world:
        first = lines(await chat(world))[0]
        assert first["mtor"]["queue_position"] == 3 and first["message"]["content"] == ""


async def test_models(tmp_path: Path) -> None:
    async with gateway_world(tmp_path) as world:
        world.facts.offered += [
            ModelFacts("$VISION", MODEL, 1, 4096),
            ModelFacts("$IMAGINE", "painter", 1, 0),
            ModelFacts("$LAW", "judge", 1, 512, ("chat",), 1, 2),
        ]
        rows = (await world.ask("GET", "/api/tags")).json["models"]
        assert [row["model"] for row in rows] == [MODEL, "judge"]
        assert (await world.ask("GET", "/api/ps")).json["models"][1]["context_length"] == 512
        shown = (await world.ask("POST", "/api/show", {"model": f"{MODEL}:latest"})).json
        assert shown["capabilities"] == ["completion", "vision"] and shown["model_info"]["mtor.context_length"] == 8192
        missing = await world.ask("POST", "/api/show", {"name": "gpt-9"})
        assert missing.status == 404 and MODEL in missing.json["error"]
        assert (await world.ask("GET", "/api/version")).json["version"][0].isdigit()
        assert (await world.ask("HEAD", "/api/tags")).status == 200


async def test_nothing_to_answer_is_a_question_for_the_model(tmp_path: Path) -> None:
    async with gateway_world(tmp_path) as world:
        assert (await chat(world, messages=[])).json["done_reason"] == "load"
        assert (await generate(world, prompt="")).json["done_reason"] == "load"
        assert (await generate(world, model="gpt-9", prompt="")).status == 404
        assert not world.answers.asked


@pytest.mark.parametrize(
    ("path", "fields", "said"),
    [
        ("/api/chat", {"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
        ("/api/chat", {"messages": [{"role": "user", "content": "x", "images": ["@@"]}]}, "messages.0.content.1"),
        ("/api/chat", {"messages": [{"role": "tool", "content": "x", "tool_name": "f"}]}, "messages.0"),
        ("/api/chat", {"options": {"temperature": 9}}, "options.temperature"),
        ("/api/chat", {"options": {"num_predict": "many"}}, "options.num_predict"),
        ("/api/chat", {"think": True}, "think"),
        ("/api/chat", {"format": "xml"}, "format"),
        ("/api/generate", {"suffix": "end"}, "suffix"),
        ("/api/generate", {"raw": True}, "raw"),
        ("/api/generate", {"template": "{{ .Prompt }}"}, "template"),
        ("/api/generate", {"context": [1, 2]}, "/api/chat"),
        ("/api/generate", {"images": ["@@"]}, "prompt.1"),
        ("/api/embed", {"input": "x"}, "embeddings"),
        ("/api/embeddings", {"prompt": "x"}, "embeddings"),
        ("/api/pull", {}, "mtor models pull"),
        ("/api/create", {}, "mtor models pull"),
    ],
)
async def test_what_cannot_be_done_is_refused(tmp_path: Path, path: str, fields: dict[str, Any], said: str) -> None:
    async with gateway_world(tmp_path) as world:
        usual = {"messages": HELLO} if path == "/api/chat" else {"prompt": "hello"}
        reply = await world.ask("POST", path, {"model": MODEL} | usual | fields)
        assert reply.status == 400 and said in reply.json["error"] and set(reply.json) == {"error"}
        assert not world.answers.asked


async def test_failures_have_ollamas_shape(tmp_path: Path) -> None:
    async with gateway_world(tmp_path, failing(ErrorCode.NO_SUCH_MODEL, "nobody has it")) as world:
        for stream in (False, True):
            reply = await chat(world, stream=stream)
            assert reply.status == 404 and reply.json == {"error": "nobody has it"}
        world.answers.script = events(ROUTED, Delta("Par"), Failed(ErrorCode.WORKER_LOST, "it vanished"))
        first, last = lines(await chat(world))
        assert first["message"]["content"] == "Par" and last == {"error": "it vanished"}
        unknown = await world.ask("GET", "/api/blobs/sha256:0")
        assert unknown.status == 404 and "/openapi.json" in unknown.json["error"]
        assert (await world.ask("POST", "/api/tags")).json["error"].startswith("/api/tags takes GET")
        assert "JSON" in (await world.ask("POST", "/api/chat", b"{")).json["error"]


async def test_keys_are_wanted_here_too(tmp_path: Path) -> None:
    key = ApiKeys(tmp_path).create("laptop")
    async with gateway_world(tmp_path, host="0.0.0.0") as world:
        for path in ("/api/tags", "/api/version"):
            refused = await world.ask("GET", path)
            assert refused.status == 401 and "mtor keys create" in refused.json["error"]
        allowed = await world.ask("GET", "/api/tags", headers={"Authorization": f"Bearer {key}"})
        assert allowed.status == 200


async def test_tools_their_results_and_schemas_travel(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    call = {"function": {"name": "weather", "arguments": {"city": "Paris"}}}
    said = [
        *HELLO,
        {"role": "assistant", "content": "", "tool_calls": [call, call]},
        {"role": "tool", "content": "rain", "tool_name": "weather"},
        {"role": "tool", "content": "sun", "tool_name": "weather"},
    ]
    async with gateway_world(tmp_path) as world:
        assert (await chat(world, messages=said, tools=tools)).status == 200
        (wishes,) = world.answers.asked[0].request.wishes  # type: ignore[union-attr]
        assert [tool.name for tool in wishes.tools] == ["weather"] and len(wishes.calls) == 2
        for format in ("json", {"type": "object", "properties": {"a": {"type": "string"}}}):
            assert (await chat(world, format=format)).status == 200
            assert world.answers.asked[-1].request.wishes[0].schema  # type: ignore[union-attr]
