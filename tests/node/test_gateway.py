"""The HTTP side over real sockets: shapes, errors, guards, pressure, disconnects."""

from pathlib import Path
from typing import Any

import pytest

from node.answers import Delta, Failed, Question, Routed
from node.gateway.failures import MEANINGS
from protocol.errors import ErrorCode
from protocol.ids import peer_id
from protocol.signing import Signer
from tests.node.gateway_world import (
    MODEL,
    ROUTED,
    WORKER,
    Emit,
    completed,
    events,
    failing,
    gateway_world,
    saying,
)

CHAT = "/v1/chat/completions"
MIB = 1024 * 1024


# --- shapes of answers ---------------------------------------------------------------------------------


async def test_a_whole_answer_has_openai_shape(tmp_path: Path) -> None:
    async with gateway_world(tmp_path, saying("Par", "is", finish="length")) as world:
        reply = await world.chat()
        body = reply.json
        assert reply.status == 200 and body["object"] == "chat.completion" and body["model"] == MODEL
        choice = body["choices"][0]
        assert choice["message"] == {"role": "assistant", "content": "Paris", "refusal": None}
        assert choice["finish_reason"] == "length" and choice["index"] == 0
        assert body["usage"] == {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
        assert body["mtor"]["shares"][0]["worker"] == peer_id(WORKER) and body["mtor"]["cost_micro"] == 16
        assert reply.headers["x-mtor-worker"] == peer_id(WORKER)
        assert reply.headers["x-mtor-query"] == world.answers.asked[0].query_id.hex()


async def test_a_stream_has_openai_shape(tmp_path: Path) -> None:
    async with gateway_world(tmp_path, saying("Par", "is", " – größer 🎈")) as world:
        reply = await world.chat(stream=True)
        assert reply.status == 200 and reply.headers["content-type"].startswith("text/event-stream")
        assert reply.frames[-1] == "[DONE]" and reply.frames.count("[DONE]") == 1
        chunks = reply.chunks
        assert len({(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in chunks}) == 1
        assert chunks[0]["object"] == "chat.completion.chunk"
        assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert reply.text == "Paris – größer 🎈"
        finishes = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
        assert finishes == [None] * (len(chunks) - 1) + ["stop"]
        assert all("usage" not in chunk for chunk in chunks)
        assert [chunk["mtor"]["worker"] for chunk in chunks if "worker" in chunk.get("mtor", {})] == [peer_id(WORKER)]


async def test_usage_comes_in_a_chunk_without_choices(tmp_path: Path) -> None:
    async with gateway_world(tmp_path) as world:
        reply = await world.chat(stream=True, stream_options={"include_usage": True})
        last = reply.chunks[-1]
        assert last["choices"] == [] and last["usage"]["total_tokens"] == 10
        assert last["id"] == reply.chunks[0]["id"] and reply.frames[-1] == "[DONE]"


async def test_an_answer_without_text_is_still_whole(tmp_path: Path) -> None:
    async with gateway_world(tmp_path, saying()) as world:
        reply = await world.chat(stream=True)
        assert [chunk["choices"][0]["delta"] for chunk in reply.chunks] == [{"role": "assistant", "content": ""}, {}]
        assert reply.frames[-1] == "[DONE]"
        assert (await world.chat()).json["choices"][0]["message"]["content"] == ""


async def test_a_failover_tells_the_second_worker(tmp_path: Path) -> None:
    other = Signer.from_seed(b"\x08" * 32).node
    script = events(ROUTED, Delta("one "), Routed(other, MODEL, 2, 0, 0), Delta("two"), completed())
    async with gateway_world(tmp_path, script) as world:
        reply = await world.chat(stream=True)
        told = [chunk["mtor"] for chunk in reply.chunks if "attempt" in chunk.get("mtor", {})]
        assert told == [{"worker": peer_id(WORKER), "attempt": 1}, {"worker": peer_id(other), "attempt": 2}]
        assert reply.text == "one two"


async def test_the_question_is_what_the_client_asked(tmp_path: Path) -> None:
    async with gateway_world(tmp_path) as world:
        await world.chat(
            model=MODEL,
            messages=[
                {"role": "developer", "content": "be brief"},
                {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            ],
            max_tokens=5,
            max_completion_tokens=9,
            temperature=0,
            seed=-1,
            stop="END",
            frequency_penalty=-2,
            mtor={"worker": peer_id(WORKER), "min_vram_mib": 12_000, "deadline_ms": 5_000},
            an_unknown_field={"is": "ignored"},
        )
        asked = world.answers.asked[0]
        assert [(turn.role, turn.text) for turn in asked.request.turns] == [("system", "be brief"), ("user", "ab")]
        assert (asked.request.max_tokens, asked.request.temperature, asked.request.stop) == (9, 0, ("END",))
        assert asked.request.frequency_penalty == 0 and asked.request.presence_penalty == 2_000
        assert asked.request.seed >= 0 and asked.deadline_ms == 5_000
        assert asked.requirements.model == MODEL and asked.requirements.min_vram_mib == 12_000
        assert asked.requirements.worker == peer_id(WORKER)


@pytest.mark.parametrize("model", ["auto", "", "$CHAT"])
async def test_any_model_is_asked_for_by_these_names(tmp_path: Path, model: str) -> None:
    async with gateway_world(tmp_path) as world:
        assert (await world.chat(model=model)).status == 200
        assert world.answers.asked[0].requirements.model == ""


# --- answers that fail ---------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_a_failure_before_text_is_an_http_status(tmp_path: Path, stream: bool) -> None:
    async with gateway_world(tmp_path) as world:
        for code, meaning in MEANINGS.items():
            world.answers.script = failing(code, f"because of {code.name}")
            reply = await world.chat(stream=stream)
            assert reply.status == meaning.status, code
            assert reply.error == {
                "message": f"because of {code.name}",
                "type": meaning.type,
                "param": None,
                "code": meaning.code,
            }


async def test_a_code_outside_the_table_is_a_bad_gateway(tmp_path: Path) -> None:
    async with gateway_world(tmp_path, failing(ErrorCode.BAD_VOUCHER)) as world:
        reply = await world.chat()
        assert reply.status == 502 and reply.error["code"] == "bad_voucher"


async def test_waiting_time_is_told_in_whole_seconds_rounded_up(tmp_path: Path) -> None:
    async with gateway_world(tmp_path, failing(ErrorCode.OVERLOADED, retry_after_ms=2_001)) as world:
        assert (await world.chat()).headers["retry-after"] == "3"
        world.answers.script = failing(ErrorCode.QUOTA_EXCEEDED)
        assert (await world.chat()).headers["retry-after"] == "1"


async def test_a_failure_after_text_is_a_frame_and_no_done(tmp_path: Path) -> None:
    async with gateway_world(tmp_path, failing(ErrorCode.WORKER_LOST, "it vanished", after=("Hel", "lo"))) as world:
        reply = await world.chat(stream=True)
        assert reply.status == 200 and reply.text == "Hello"
        assert "[DONE]" not in reply.frames
        assert reply.chunks[-1]["error"]["code"] == "worker_lost"
        assert not any(choice["finish_reason"] for chunk in reply.chunks[:-1] for choice in chunk["choices"])


async def test_a_failure_after_text_fails_a_whole_answer(tmp_path: Path) -> None:
    async with gateway_world(tmp_path, failing(ErrorCode.WORKER_LOST, "it vanished", after=("Hello",))) as world:
        reply = await world.chat()
        assert reply.status == 502 and b"Hello" not in reply.body and reply.error["code"] == "worker_lost"


@pytest.mark.parametrize("texts", [(), ("Hello",)])
@pytest.mark.parametrize("stream", [False, True])
async def test_an_end_without_a_last_word_is_an_error(tmp_path: Path, stream: bool, texts: tuple[str, ...]) -> None:
    async with gateway_world(tmp_path, events(ROUTED, *map(Delta, texts))) as world:
        reply = await world.chat(stream=stream)
        if stream and texts:
            assert reply.status == 200 and reply.chunks[-1]["error"]["code"] == "internal"
            assert "[DONE]" not in reply.frames
        else:
            assert reply.status == 500 and reply.error["code"] == "internal"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_bug_before_text_is_a_plain_500(tmp_path: Path, stream: bool) -> None:
    async with gateway_world(tmp_path, _bug_after()) as world:
        reply = await world.chat(stream=stream)
        assert reply.status == 500 and "secret" not in reply.error["message"]
        assert (await world.ask("GET", "/healthz")).status == 200


async def test_a_bug_after_text_is_a_frame_and_no_done(tmp_path: Path) -> None:
    async with gateway_world(tmp_path, _bug_after("Hel", "lo")) as world:
        reply = await world.chat(stream=True)
        assert reply.status == 200 and reply.text == "Hello" and "[DONE]" not in reply.frames
        assert reply.chunks[-1]["error"]["type"] == "api_error" and b"secret" not in reply.body


def _bug_after(*texts: str) -> Any:
    async def script(question: Question, emit: Emit) -> None:
        await events(*([ROUTED] if texts else []), *map(Delta, texts))(question, emit)
        raise ZeroDivisionError("a secret detail")

    return script


async def test_a_wanted_model_that_nobody_serves_is_404(tmp_path: Path) -> None:
    failed = Failed(ErrorCode.NO_PEER, "no peer offers the model gpt-9")
    async with gateway_world(tmp_path, events(failed)) as world:
        reply = await world.chat(model="gpt-9")
        assert reply.status == 404 and reply.error["code"] == "model_not_found" and reply.error["param"] == "model"
        assert (await world.chat(model="auto")).status == 503


# --- requests that are wrong ---------------------------------------------------------------------------

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": 2.5}, "temperature"),
    ({"top_p": -1}, "top_p"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"max_tokens": True}, "max_tokens"),
    ({"stream": "yes"}, "stream"),
    ({"seed": 2**70}, "seed"),
    ({"messages": []}, "messages"),
    ({"messages": "hello"}, "messages"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "messages.0.role"),
    ({"messages": [{"content": "x"}]}, "messages.0.role"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content"),
    ({"model": None}, "model"),
    ({"model": 7}, "model"),
    ({"model": "$IMAGE"}, "model"),
    ({"model": "$not a realm"}, "model"),
    ({"stop": ["a"] * 100}, "stop"),
    ({"stop": "x" * 10_000}, "stop"),
    ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    ({"mtor": {"min_vram": 1}}, "mtor.min_vram"),
    ({"mtor": {"worker": "nobody"}}, "mtor.worker"),
    ({"mtor": {"realm": "chat"}}, "mtor.realm"),
    ({"mtor": {"deadline_ms": 1}}, "mtor.deadline_ms"),
    ({"n": 2}, "n"),
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"functions": [{"name": "f"}]}, "tools"),
    ({"logprobs": True}, "logprobs"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
]


async def test_wrong_values_are_refused_with_their_name(tmp_path: Path) -> None:
    async with gateway_world(tmp_path) as world:
        for fields, parameter in WRONG:
            reply = await world.chat(**fields)
            assert reply.status == 400, (fields, reply.body)
            assert reply.error["param"] is not None and reply.error["param"].startswith(parameter), (fields, reply.body)
            assert reply.error["type"] == "invalid_request_error"
        assert world.answers.asked == []


async def test_harmless_values_are_taken(tmp_path: Path) -> None:
    fields = {"n": 1, "tools": [], "logprobs": False, "response_format": {"type": "text"}, "stop": [], "user": "me"}
    async with gateway_world(tmp_path) as world:
        reply = await world.chat(**fields, temperature=None, max_tokens=None, stream=None, seed=None)
        assert reply.status == 200, reply.body


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"model": "a", "messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
        b'{"model": "a", "messages": [{"role": "user", "content": "\\ud800"}]}',
    ],
    ids=["empty", "cut", "list", "null", "string", "not-utf8", "deep", "nan", "surrogate"],
)
async def test_a_body_that_is_no_request_is_400(tmp_path: Path, body: bytes) -> None:
    async with gateway_world(tmp_path) as world:
        reply = await world.ask("POST", CHAT, body)
        assert reply.status == 400 and reply.error["type"] == "invalid_request_error"


async def test_a_large_body_is_413(tmp_path: Path) -> None:
    async with gateway_world(tmp_path) as world:
        for body in (b"x" * (10 * MIB), [b"x" * MIB] * 10):  # with a length, and in chunks of an untold sum
            reply = await world.ask("POST", CHAT, body)
            assert reply.status == 413 and reply.error["code"] == "request_too_large"
            assert "gateway.max_body_bytes" in reply.error["message"]
        assert (await world.chat()).status == 200


async def test_a_conversation_that_fits_no_frame_is_413(tmp_path: Path) -> None:
    async with gateway_world(tmp_path) as world:
        reply = await world.chat(messages=[{"role": "user", "content": "x" * (MIB + 512 * 1024)}])
        assert reply.status == 413 and reply.error["param"] == "messages"


async def test_unknown_routes_and_methods_have_openai_shape(tmp_path: Path) -> None:
    async with gateway_world(tmp_path) as world:
        unknown = await world.ask("POST", "/v1/embeddings", {})
        assert unknown.status == 404 and "/v1/embeddings" in unknown.error["message"]
        method = await world.ask("GET", CHAT)
        assert method.status == 405 and "POST" in method.error["message"]
        assert method.error["code"] == "method_not_allowed"
