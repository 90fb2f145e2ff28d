"""The HTTP side over real sockets: shapes, errors, guards, pressure, disconnects."""

import json
import re
import socket
import stat
from pathlib import Path
from typing import Any

import pytest
import trio

from node.answers import Delta, Failed, Question, Routed, Waiting
from node.config import GatewaySection
from node.gateway.failures import MEANINGS
from node.gateway.http import Gateway, GatewayError
from node.gateway.keys import ApiKeys
from node.operations import OPERATIONS, OperationFailed
from protocol.errors import ErrorCode
from protocol.ids import peer_id
from protocol.signing import Signer
from tests.node.gateway_world import (
    HANG_SECONDS,
    MODEL,
    ROUTED,
    WORKER,
    Emit,
    ScriptedAnswers,
    ScriptedFacts,
    ScriptedOperations,
    completed,
    events,
    failing,
    gateway_world,
    saying,
    until,
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
        at_once = {"queue_position": 0, "wait_ms": 0}
        assert told == [
            {"worker": peer_id(WORKER), "attempt": 1} | at_once,
            {"worker": peer_id(other), "attempt": 2} | at_once,
        ]
        assert reply.text == "one two"


async def test_a_client_that_waits_is_told_its_place_before_any_text(tmp_path: Path) -> None:
    script = events(
        Routed(WORKER, MODEL, 1, 3, 9_000),
        Routed(WORKER, MODEL, 1, 3, 9_000),  # a heartbeat is no news
        Routed(WORKER, MODEL, 1, 1, 3_000),
        ROUTED,
        Delta("text"),
        Waiting("the owner of this node needs the machine", 10_000),
        ROUTED,
        completed(),
    )
    async with gateway_world(tmp_path, script) as world:
        reply = await world.chat(stream=True)
        assert reply.text == "text" and reply.chunks[0]["choices"][0]["delta"]["role"] == "assistant"
        told = [chunk["mtor"] for chunk in reply.chunks if "shares" not in chunk.get("mtor", {"shares": 0})]
        places = [(each["queue_position"], each["wait_ms"]) for each in told if "queue_position" in each]
        assert places == [(3, 9_000), (1, 3_000), (0, 0), (0, 0)] and told[0]["worker"] == peer_id(WORKER)
        assert told[3] == {"waiting": "the owner of this node needs the machine", "retry_ms": 10_000}
        assert "queue_position" not in json.dumps(reply.chunks[4])  # text that comes after brings no old news
        whole = await world.chat()
        assert whole.headers["x-mtor-queue-position"] == "0" and whole.headers["x-mtor-wait-ms"] == "0"


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
    ({"model": "$IMAGINE"}, "model"),
    ({"model": "$not a realm"}, "model"),
    ({"stop": ["a"] * 100}, "stop"),
    ({"stop": "x" * 10_000}, "stop"),
    ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    ({"mtor": {"min_vram": 1}}, "mtor.min_vram"),
    ({"mtor": {"worker": "nobody"}}, "mtor.worker"),
    ({"mtor": {"realm": "chat"}}, "mtor.realm"),
    ({"mtor": {"deadline_ms": 1}}, "mtor.deadline_ms"),
    ({"n": 9}, "n"),
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"top_logprobs": 1}, "top_logprobs"),
    ({"response_format": {"type": "json"}}, "response_format"),
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
        for body in (b"x" * (30 * MIB), [b"x" * MIB] * 30):  # with a length, and in chunks of an untold sum
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


# --- who may call --------------------------------------------------------------------------------------


async def test_host_must_name_this_node(tmp_path: Path) -> None:
    async with gateway_world(tmp_path, allowed_hosts=("mtor.lan",)) as world:
        for host in ("localhost", "127.0.0.1:9000", "[::1]:9000", "mtor.lan", "mtor.lan:80"):
            assert (await world.ask("GET", "/v1/models", headers={"Host": host})).status == 200, host
        for host in ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example:9000", "192.168.1.7", ""):
            reply = await world.ask("GET", "/v1/models", headers={"Host": host})
            assert reply.status == 403 and reply.error["code"] == "bad_host", host


async def test_pages_of_other_sites_are_refused(tmp_path: Path) -> None:
    async with gateway_world(tmp_path, allowed_origins=("https://chat.lan",)) as world:
        own = f"http://127.0.0.1:{world.port}"
        for origin in (own, "https://chat.lan"):
            assert (await world.ask("GET", "/v1/models", headers={"Origin": origin})).status == 200, origin
        for origin in ("https://evil.example", "null", "http://chat.lan", "http://127.0.0.1:1", "http://["):
            reply = await world.ask("GET", "/v1/models", headers={"Origin": origin})
            assert reply.status == 403 and reply.error["code"] == "bad_origin", origin


async def test_operators_routes_want_the_token(tmp_path: Path) -> None:
    async with gateway_world(tmp_path) as world:
        for credentials in ("", "Bearer", "Bearer wrong", f"Basic {world.token}", b"Bearer \xff\xfe"):
            headers: Any = {"Authorization": credentials}
            reply = await world.ask("POST", "/mtor/v1/status", {}, headers)
            assert reply.status == 401 and reply.error["code"] == "bad_token", credentials
        assert (await world.operate("status")).status == 200
        assert (await world.ask("POST", "/mtor/v1/x", {})).status == 401  # also where there is nothing


async def test_an_empty_token_file_lets_nobody_in(tmp_path: Path) -> None:
    (tmp_path / "admin.token").touch()
    async with gateway_world(tmp_path) as world:
        assert (await world.ask("POST", "/mtor/v1/status", {})).status == 401
        assert (await world.operate("status")).status == 200


async def test_private_files_are_private_and_the_address_goes_with_the_node(tmp_path: Path) -> None:
    async with gateway_world(tmp_path) as world:
        token = world.token
        for name in ("admin.token", "gateway.json"):
            assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
        assert json.loads((tmp_path / "gateway.json").read_text())["url"] == world.url
    assert not (tmp_path / "gateway.json").exists()
    async with gateway_world(tmp_path) as world:
        assert world.token == token and len(token) >= 32


async def test_without_keys_only_loopback_is_served(tmp_path: Path) -> None:
    gateway = _gateway(tmp_path, host="0.0.0.0")
    with pytest.raises(GatewayError, match="mtor keys create"):
        with trio.fail_after(HANG_SECONDS):
            await gateway.run()
    assert not (tmp_path / "gateway.json").exists()


async def test_with_keys_the_world_is_asked_for_one(tmp_path: Path) -> None:
    keys = ApiKeys(tmp_path)
    first, second = keys.create("laptop"), keys.create("phone")
    async with gateway_world(tmp_path, host="0.0.0.0") as world:
        for key, status in ((first, 200), (second, 200), ("mtor-wrong", 401), ("", 401), (world.token, 200)):
            reply = await world.ask("GET", "/v1/models", headers={"Authorization": f"Bearer {key}"})
            assert reply.status == status
        not_text: Any = {"Authorization": b"Bearer \xff"}
        assert (await world.ask("GET", "/v1/models", headers=not_text)).error["code"] == "invalid_api_key"
        assert (await world.ask("POST", CHAT, b"{")).status == 401  # before the body is looked at
        assert (await world.ask("GET", "/healthz")).status == 200
        assert (await world.ask("POST", "/mtor/v1/status", {}, {"Authorization": f"Bearer {first}"})).status == 401
        keys.revoke(keys.all()[0].id)
        assert (await world.ask("GET", "/v1/models", headers={"Authorization": f"Bearer {first}"})).status == 401


async def test_a_key_with_a_limit_names_the_account_that_pays(tmp_path: Path) -> None:
    keys = ApiKeys(tmp_path)
    limited, free = keys.create("laptop", peer_id(WORKER)), keys.create("phone")
    for host in ("127.0.0.1", "0.0.0.0"):
        async with gateway_world(tmp_path, saying("x"), host=host) as world:
            wanted = [(limited, WORKER), (free, None)] + ([("sk-anything", None)] if host == "127.0.0.1" else [])
            for key, payer in wanted:
                asked = {"model": "auto", "messages": [{"role": "user", "content": "x"}]}
                assert (await world.ask("POST", CHAT, asked, {"Authorization": f"Bearer {key}"})).status == 200
                assert world.answers.asked[-1].payer == payer


def test_keys_are_kept_as_hashes_in_a_private_file(tmp_path: Path) -> None:
    keys = ApiKeys(tmp_path)
    key = keys.create("laptop")
    file = tmp_path / "api_keys"
    assert key not in file.read_text() and key.removeprefix("mtor-") not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [kept.name for kept in keys.all()] == ["laptop"] and keys.accepts(key) and not keys.accepts(key + "x")


async def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(GatewayError, match=rf"{port} is in use.*--port"):
            await _gateway(tmp_path, port=port).run()


async def test_an_address_of_nobody_here_is_named(tmp_path: Path) -> None:
    ApiKeys(tmp_path).create("laptop")
    with pytest.raises(GatewayError, match=r"203\.0\.113\.9.*gateway\.host"):
        await _gateway(tmp_path, host="203.0.113.9").run()


def _gateway(data: Path, **section: Any) -> Gateway:
    config = GatewaySection.model_validate({"port": 0} | section)
    return Gateway(config, data, ScriptedAnswers(saying("x")), ScriptedOperations(), ScriptedFacts())


# --- the operator's routes -----------------------------------------------------------------------------


async def test_every_operation_is_reached_with_its_arguments(tmp_path: Path) -> None:
    async with gateway_world(tmp_path) as world:
        for name in OPERATIONS:
            if name != "ledger.show":
                assert (await world.operate(name, {"limit": 3})).json == {"name": name, "arguments": {"limit": 3}}


async def test_operations_that_fail_say_why(tmp_path: Path) -> None:
    async with gateway_world(tmp_path) as world:
        failed = await world.operate("ledger.show")
        assert failed.status == 400 and failed.error["message"] == "there is no such entry"
        unknown = await world.operate("ledger.balanse")
        assert unknown.status == 404 and "did you mean ledger.balance?" in unknown.error["message"]
        for body in (b"{", b"[1]", b"[" * 100_000):
            reply = await world.operate("status", body)
            assert reply.status == 400 and reply.error["code"] == "invalid_json"


@pytest.mark.parametrize("broken", [None, OperationFailed("the disk is full"), ZeroDivisionError("a secret detail")])
async def test_long_operations_come_as_lines(tmp_path: Path, broken: Exception | None) -> None:
    async with gateway_world(tmp_path) as world:
        world.operations.broken_stream = broken
        reply = await world.operate("models.pull", {"model": MODEL})
        lines = [json.loads(line) for line in reply.body.splitlines()]
        assert reply.headers["content-type"] == "application/x-ndjson" and len(lines) == 2
        assert lines[0] == {"step": "fetch", "done_bytes": 1, "total_bytes": 2} and lines[1]["done"] is True
        assert ("error" in lines[1]) == (broken is not None) and b"secret" not in reply.body
        if isinstance(broken, OperationFailed):
            assert lines[1]["error"]["message"] == "the disk is full"


# --- small routes --------------------------------------------------------------------------------------


async def test_models_are_listed_and_found(tmp_path: Path) -> None:
    async with gateway_world(tmp_path) as world:
        listed = (await world.ask("GET", "/v1/models")).json
        assert listed["object"] == "list" and [row["id"] for row in listed["data"]] == [MODEL]
        one = (await world.ask("GET", f"/v1/models/{MODEL}")).json
        assert one == listed["data"][0] and one["object"] == "model" and one["mtor"]["workers"] == 2
        missing = await world.ask("GET", "/v1/models/a/folder")
        assert (
            missing.status == 404
            and missing.error["code"] == "model_not_found"
            and MODEL in missing.json["error"]["message"]
        )


async def test_health_is_not_readiness(tmp_path: Path) -> None:
    async with gateway_world(tmp_path) as world:
        assert (await world.ask("GET", "/readyz")).json == {"ready": True, "reason": ""}
        world.facts.ready = (False, "no model is on offer")
        not_ready = await world.ask("GET", "/readyz")
        assert not_ready.status == 503 and not_ready.json["reason"] == "no model is on offer"
        assert (await world.ask("GET", "/healthz")).json == {"ok": True}


async def test_metrics_count_and_hold_no_ids(tmp_path: Path) -> None:
    async with gateway_world(tmp_path) as world:
        await world.chat(model="a-name-of-the-clients-choosing")
        await world.chat(stream=True)
        world.answers.script = failing(ErrorCode.NO_PEER)
        await world.chat()
        world.answers.script = _bug_after("text")
        await world.chat(stream=True)
        await world.ask("GET", "/a/path/of/the/clients/choosing")
        text = (await world.ask("GET", "/metrics")).body.decode()
        assert 'mtor_queries_total{outcome="completed",realm="$CHAT"} 2.0' in text
        assert 'mtor_queries_total{outcome="no_peer",realm="$CHAT"} 1.0' in text
        assert 'mtor_queries_total{outcome="internal",realm="$CHAT"} 1.0' in text
        assert 'mtor_tokens_total{direction="out",realm="$CHAT"} 6.0' in text
        assert 'mtor_running_queries{side="asked"} 0.0' in text and 'mtor_peers{state="connected"} 3.0' in text
        names = {"realm", "outcome", "direction", "route", "status", "code", "side", "state", "le"}
        assert set(re.findall(r"[{,](\w+)=", text)) == names
        ids = [peer_id(WORKER), WORKER.hex(), *(asked.query_id.hex() for asked in world.answers.asked)]
        assert not any(found in text for found in [*ids, "choosing"])


async def test_answers_say_that_they_are_what_they_say(tmp_path: Path) -> None:
    async with gateway_world(tmp_path) as world:
        index = await world.ask("GET", "/")
        assert b"MTOR node" in index.body and "default-src 'none'" in index.headers["content-security-policy"]
        for path in ("/", "/v1/models", "/nothing"):
            assert (await world.ask("GET", path)).headers["x-content-type-options"] == "nosniff"


# --- pressure and leaving ------------------------------------------------------------------------------


async def _endless(question: Question, emit: Emit) -> None:
    await emit(ROUTED)
    for _ in range(3_000):  # 30 MB, far more than any buffer: a gateway that never holds back fails and does not hang
        await emit(Delta("x" * 10_000))
    await trio.sleep_forever()


async def _silent(question: Question, emit: Emit) -> None:
    await emit(ROUTED)
    await trio.sleep_forever()


def _request(stream: bool) -> bytes:
    body = json.dumps({"model": "auto", "messages": [{"role": "user", "content": "hi"}], "stream": stream}).encode()
    return b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % (CHAT.encode(), len(body)) + body


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("script", [_endless, _silent])
async def test_a_client_that_leaves_cancels_its_query(tmp_path: Path, script: Any, stream: bool) -> None:
    async with gateway_world(tmp_path, script) as world:
        client = await trio.open_tcp_stream("127.0.0.1", world.port)
        await client.send_all(_request(stream))
        await until(lambda: world.answers.emitted > 0)
        await client.aclose()
        await until(lambda: world.answers.cancelled == 1)
        text = ""
        while 'outcome="client_gone"' not in text:
            text = (await world.ask("GET", "/metrics")).body.decode()
        assert 'mtor_running_queries{side="asked"} 0.0' in text


async def test_a_client_that_does_not_read_slows_its_own_query_alone(tmp_path: Path) -> None:
    async with gateway_world(tmp_path, _endless) as world:
        client = await trio.open_tcp_stream("127.0.0.1", world.port)
        await client.send_all(_request(stream=True))
        before = -1
        while before != world.answers.emitted:  # until it stands still
            before = world.answers.emitted
            await trio.sleep(0.3)
        assert 0 < world.answers.emitted < 2_000  # 20 MB: what the kernel's buffers take, and ours
        world.answers.script = saying("not slowed")
        assert (await world.chat(stream=True)).text == "not slowed"
        stood = world.answers.emitted
        world.answers.script = _endless
        received = 0
        while received < 5 * MIB:
            received += len(await client.receive_some(MIB))
        await until(lambda: world.answers.emitted > stood)  # it goes on when the client reads
        await client.aclose()
        await until(lambda: world.answers.cancelled == 1)


async def test_a_hundred_streams_get_their_own_text(tmp_path: Path) -> None:
    async def echo(question: Question, emit: Emit) -> None:
        text = question.request.turns[0].text
        await saying(*(f"{text}/{number} " for number in range(20)))(question, emit)

    async with gateway_world(tmp_path, echo) as world:
        got: dict[int, str] = {}

        async def ask(number: int) -> None:
            body = {"model": "auto", "stream": True, "messages": [{"role": "user", "content": f"q{number}"}]}
            reply = await trio.to_thread.run_sync(world.ask_here, "POST", CHAT, body, limiter=trio.CapacityLimiter(1))
            assert reply.frames[-1] == "[DONE]"
            got[number] = reply.text

        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(ask, number)
        assert got == {number: "".join(f"q{number}/{part} " for part in range(20)) for number in range(100)}


async def test_more_than_max_concurrent_is_overloaded(tmp_path: Path) -> None:
    async with gateway_world(tmp_path, _silent, max_concurrent=1) as world:
        client = await trio.open_tcp_stream("127.0.0.1", world.port)
        await client.send_all(_request(stream=True))
        await until(lambda: world.answers.emitted == 1)
        reply = await world.chat()
        assert reply.status == 503 and reply.error["code"] == "overloaded" and reply.headers["retry-after"] == "1"
        await client.aclose()
        await until(lambda: world.answers.cancelled == 1)
        world.answers.script = saying("free again")
        with trio.fail_after(HANG_SECONDS):
            while (await world.chat()).status != 200:
                await trio.sleep(0.01)


async def test_a_stopping_node_tells_streams_that_it_stops(tmp_path: Path) -> None:
    async def one_word(question: Question, emit: Emit) -> None:
        await emit(ROUTED)
        await emit(Delta("word"))
        await trio.sleep_forever()

    async with gateway_world(tmp_path, one_word) as world:
        client = await trio.open_tcp_stream("127.0.0.1", world.port)
        await client.send_all(_request(stream=True))
        received = await client.receive_some()
        while b"word" not in received:
            received += await client.receive_some()
        world.stop()
        with trio.fail_after(HANG_SECONDS) as limit:
            limit.shield = True
            async for data in client:
                received += data
            await client.aclose()
        assert b'"code":"stopping"' in received and b"[DONE]" not in received


async def test_a_packed_body_is_not_taken(tmp_path: Path) -> None:
    async with gateway_world(tmp_path) as world:
        for packing in ("gzip", "deflate"):
            headers = {"Content-Type": "application/json", "Content-Encoding": packing}
            reply = await world.ask("POST", CHAT, b"not packed at all", headers)
            assert reply.status == 415 and reply.error["code"] == "unsupported_encoding"
        assert not world.answers.asked
