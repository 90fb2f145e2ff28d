"""`/v1/responses` over HTTP: the conversation that is asked, the answer's shape, the order of events, refusals."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from node.answers import Delta, Failed, TokenLogprob, ToolCalled, Waiting
from protocol.errors import ErrorCode
from protocol.ids import CHAT, VISION
from protocol.messages import Turn
from tests.node.gateway_world import MODEL, ROUTED, Reply, World, completed, events, failing, gateway_world, saying

PATH = "/v1/responses"
PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (64).to_bytes(4, "big") * 2 + bytes(64)
CALL = ToolCalled("call_1", "weather", '{"city": "Paris"}')


async def ask(world: World, **fields: Any) -> Reply:
    return await world.ask("POST", PATH, {"model": "auto", "input": "hello"} | fields)


def told(reply: Reply) -> list[dict[str, Any]]:
    """The events, whose names and numbers must be right."""
    found = []
    for number, block in enumerate(each for each in reply.body.decode().split("\n\n") if each.startswith("event:")):
        name, data = block.split("\n", 1)
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}" and event["sequence_number"] == number
        found.append(event)
    return found


async def test_a_whole_response(tmp_path: Path) -> None:
    async with gateway_world(tmp_path, saying("Par", "is")) as world:
        reply = await ask(world, instructions="be brief", max_output_tokens=9, store=True, metadata={"a": "b"})
        body = reply.json
        assert (body["object"], body["status"], body["model"], body["store"]) == ("response", "completed", MODEL, False)
        (item,) = body["output"]
        assert item["role"] == "assistant" and item["content"][0]["text"] == "Paris" and item["status"] == "completed"
        assert (body["usage"]["input_tokens"], body["usage"]["output_tokens"], body["usage"]["total_tokens"]) == (
            7,
            3,
            10,
        )
        assert body["mtor"]["cost_micro"] == 16 and body["metadata"] == {"a": "b"} and "x-mtor-query" in reply.headers
        question = world.answers.asked[0]
        assert question.realm == CHAT and question.request.max_tokens == 9  # type: ignore[union-attr]
        assert question.request.turns == (Turn("system", "be brief"), Turn("user", "hello"))  # type: ignore[union-attr]


async def test_an_answer_that_was_cut_is_incomplete(tmp_path: Path) -> None:
    async with gateway_world(tmp_path, saying("Par", finish="length")) as world:
        body = (await ask(world)).json
        assert body["status"] == "incomplete" and body["incomplete_details"] == {"reason": "max_output_tokens"}
        assert told(await ask(world, stream=True))[-1]["type"] == "response.incomplete"


async def test_events_come_in_openais_order(tmp_path: Path) -> None:
    async with gateway_world(tmp_path, saying("Par", "is")) as world:
        events_ = told(await ask(world, stream=True))
    assert [event["type"].removeprefix("response.") for event in events_] == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *("output_text.delta", "output_text.delta"),
        *("output_text.done", "content_part.done", "output_item.done", "completed"),
    ]
    assert "".join(event["delta"] for event in events_ if "delta" in event) == "Paris"
    assert events_[6]["text"] == "Paris" and events_[-1]["response"]["output"] == [events_[-2]["item"]]
    assert len({event["item_id"] for event in events_ if "item_id" in event}) == 1


async def test_a_call_of_a_tool_is_an_item(tmp_path: Path) -> None:
    async with gateway_world(tmp_path, events(ROUTED, CALL, completed("tool_calls"))) as world:
        (item,) = (await ask(world)).json["output"]
        assert (item["type"], item["call_id"], item["name"]) == ("function_call", "call_1", "weather")
        assert json.loads(item["arguments"]) == {"city": "Paris"}
        events_ = told(await ask(world, stream=True))
        assert [event["type"].removeprefix("response.") for event in events_[2:]] == [
            *("output_item.added", "function_call_arguments.delta", "function_call_arguments.done"),
            *("output_item.done", "completed"),
        ]
        assert events_[-1]["response"]["output"][0]["call_id"] == "call_1"
        world.answers.script = events(ROUTED, Delta("Let me look."), CALL, completed("tool_calls"))
        both = told(await ask(world, stream=True))[-1]["response"]["output"]
        assert [item["type"] for item in both] == ["message", "function_call"]


async def test_likelihoods_are_told_with_the_text(tmp_path: Path) -> None:
    token = TokenLogprob("Par", -0.5, (("Par", -0.5), ("Lon", -1.5)))
    async with gateway_world(tmp_path, events(ROUTED, Delta("Par", (token,)), completed())) as world:
        part = (await ask(world)).json["output"][0]["content"][0]
        assert part["logprobs"][0]["token"] == "Par" and part["logprobs"][0]["top_logprobs"][1]["logprob"] == -1.5


async def test_pictures_go_to_vision(tmp_path: Path) -> None:
    url = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
    content = [
        {"type": "input_text", "text": "What is it?"},
        {"type": "input_image", "image_url": url, "detail": "auto"},
    ]
    async with gateway_world(tmp_path) as world:
        reply = await ask(world, input=[{"role": "user", "content": content}])
        assert reply.status == 200 and world.answers.asked[0].realm == VISION
        assert world.answers.asked[0].inputs == (PNG,)


async def test_what_was_said_before_comes_along(tmp_path: Path) -> None:
    said = [
        {"role": "user", "content": "hello"},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "Hi.", "annotations": []}],
        },
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "input_text", "text": "and now?"}]},
    ]
    async with gateway_world(tmp_path) as world:
        assert (await ask(world, input=said)).status == 200
        turns = world.answers.asked[0].request.turns  # type: ignore[union-attr]
        roles = [(turn.role, turn.text) for turn in turns]
        assert roles == [("user", "hello"), ("assistant", "Hi."), ("system", "be brief"), ("user", "and now?")]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"input": []}, "input"),
        ({"input": 3}, "input"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input.0.type"),
        ({"input": [{"role": "user", "content": "a"}, {"role": "robot", "content": "b"}]}, "input.1.role"),
        ({"input": [{"role": "user"}]}, "input.0.content"),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]}, "input.0.content.0"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "http://x/y.png"}]}]},
            "input.0.content.0",
        ),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input.0.call_id"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"temperature": 3}, "temperature"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"mtor": {"min_vram": 1}}, "mtor.min_vram"),
    ],
)
async def test_what_cannot_be_done_is_refused_by_name(tmp_path: Path, fields: dict[str, Any], param: str) -> None:
    async with gateway_world(tmp_path) as world:
        reply = await ask(world, **fields)
        assert reply.status == 400 and reply.error["param"] == param, reply.body
        assert "messages." not in reply.error["message"] and not world.answers.asked


async def test_failures_before_and_after_the_first_word(tmp_path: Path) -> None:
    async with gateway_world(tmp_path, failing(ErrorCode.OVERLOADED, "full", retry_after_ms=2_000)) as world:
        early = await ask(world, stream=True)
        assert early.status == 503 and early.headers["retry-after"] == "2" and early.error["code"] == "overloaded"
        world.answers.script = events(ROUTED, Delta("Par"), Failed(ErrorCode.WORKER_LOST, "it vanished"))
        late = told(await ask(world, stream=True))
        assert late[-1]["type"] == "response.failed" and late[-1]["response"]["status"] == "failed"
        assert late[-1]["response"]["error"] == {"code": "server_error", "message": "it vanished"}
        assert late[-1]["response"]["mtor"]["error"]["code"] == "worker_lost"
        assert late[-1]["response"]["output"][0]["content"][0]["text"] == "Par"


async def test_who_waits_is_told_why(tmp_path: Path) -> None:
    script = events(ROUTED, Delta("a"), Waiting("the owner of this node needs the machine", 9), ROUTED, completed())
    async with gateway_world(tmp_path, script) as world:
        news = [event["mtor"] for event in told(await ask(world, stream=True)) if "mtor" in event]
        assert {"waiting": "the owner of this node needs the machine", "retry_ms": 9} in news


async def test_nothing_is_kept(tmp_path: Path) -> None:
    async with gateway_world(tmp_path) as world:
        made = (await ask(world, store=True)).json["id"]
        for method in ("GET", "DELETE"):
            reply = await world.ask(method, f"{PATH}/{made}")
            assert reply.status == 404 and "nothing is kept" in reply.error["message"]


async def test_tools_and_their_results_travel(tmp_path: Path) -> None:
    tools = [{"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": True}]
    said = [
        {"role": "user", "content": "hello"},
        {"type": "function_call", "call_id": "call_1", "name": "weather", "arguments": '{"city": "Paris"}'},
        {"type": "function_call_output", "call_id": "call_1", "output": "rain"},
    ]
    schema = {"format": {"type": "json_schema", "name": "city", "schema": {"type": "object"}}}
    async with gateway_world(tmp_path) as world:
        named = {"type": "function", "name": "weather"}
        reply = await ask(world, input=said, tools=tools, tool_choice=named, text=schema)
        assert reply.status == 200, reply.body
        request: Any = world.answers.asked[0].request
        (wishes,) = request.wishes
        assert [tool.name for tool in wishes.tools] == ["weather"] and wishes.must_call == 1 and wishes.schema
        assert [call.name for call in wishes.calls] == ["weather"] and request.turns[-1].text == "rain"
        lost = await ask(world, input=[said[0], said[2]])
        assert lost.status == 400 and lost.error["param"].startswith("input.1"), lost.body
