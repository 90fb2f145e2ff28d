"""`/ws` over real sockets: events, cancelling, going on elsewhere, bounds, guards, the end."""

import asyncio
import base64
import json
import re
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trio
import trio.lowlevel
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from node.answers import Bytes, Delta, Progressed, Question, Routed, TokenLogprob, ToolCalled, Waiting
from node.gateway import ongoing, watching, websocket
from node.gateway.failures import ApiError
from node.gateway.frames import error_facts, happened, read_frame
from node.gateway.keys import ApiKeys, Terms
from node.gateway.ports import ModelFacts
from protocol.errors import ErrorCode
from protocol.ids import peer_id
from tests.node.gateway_world import (
    MODEL,
    ROUTED,
    SHARE,
    WORKER,
    Emit,
    Script,
    World,
    completed,
    events,
    failing,
    gateway_world,
    saying,
    until,
)
from tests.node.socket_client import Client, Frame, talk, text_of, without_gaps

Connect = Callable[[], Awaitable[Client]]


class Gate:
    """Lets a script go on from another thread."""

    def __init__(self) -> None:
        self.opened = 0

    async def passed(self, times: int = 1) -> None:
        """On the trio side: wait until it was opened so often."""
        await until(lambda: self.opened >= times)

    def open(self, times: int = 1) -> None:
        """From anywhere."""
        self.opened += times


def endless(text: str = "word ") -> Script:
    """A script that never stops by itself."""

    async def script(question: Question, emit: Emit) -> None:
        await emit(ROUTED)
        while True:
            await emit(Delta(text))
            await trio.sleep(0.001)

    return script


# --- events ----------------------------------------------------------------------------------------------


async def test_a_chat_comes_in_numbered_events(tmp_path: Path) -> None:
    async def conversation(connect: Connect) -> None:
        client = await connect()
        await client.ask("c1")
        frames = await client.until("c1")
        assert [frame["type"] for frame in frames] == ["accepted", "routed", "delta", "delta", "completed"]
        assert without_gaps(frames) and all(frame["id"] == "c1" for frame in frames)
        accepted, routed, last = frames[0], frames[1], frames[-1]
        assert accepted["query"] == world.answers.asked[0].query_id.hex()
        assert routed == {"type": "routed", "id": "c1", "seq": 2, "worker": peer_id(WORKER), "model": MODEL} | {
            "attempt": 1,
            "queue_position": 0,
            "wait_ms": 0,
        }
        assert text_of(frames) == "Par\ud7ff🎈"
        assert last["finish"] == "stop" and last["model"] == MODEL
        assert last["usage"] == {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
        assert last["mtor"]["cost_micro"] == SHARE.amount and last["mtor"]["shares"][0]["worker"] == peer_id(WORKER)

    async with gateway_world(tmp_path, saying("Par", "\ud7ff🎈")) as world:
        await talk(world, conversation)


async def test_places_in_the_queue_waiting_and_failures_are_told(tmp_path: Path) -> None:
    second = Routed(WORKER, MODEL, 1, queue_position=1, wait_ms=700)

    async def script(question: Question, emit: Emit) -> None:
        for each in (Waiting("all are busy", 250), second, second, ROUTED):
            await emit(each)
        await failing(ErrorCode.OVERLOADED, "no slot; try later", retry_after_ms=1_500)(question, emit)

    async def conversation(connect: Connect) -> None:
        client = await connect()
        await client.ask("c1")
        frames = await client.until("c1")
        assert [frame["type"] for frame in frames] == ["accepted", "waiting", "routed", "routed", "failed"]
        assert frames[1] | {"id": "", "seq": 0} == {"type": "waiting", "id": "", "seq": 0} | {
            "reason": "all are busy",
            "retry_ms": 250,
        }
        assert [frame["queue_position"] for frame in frames[2:4]] == [1, 0]
        error = frames[-1]["error"]
        assert set(error) == {"message", "type", "param", "code", "status", "retry_ms"}
        assert (error["code"], error["status"], error["retry_ms"]) == ("overloaded", 503, 1_500)

    async with gateway_world(tmp_path, script) as world:
        await talk(world, conversation)


async def test_tools_called_and_log_probabilities_are_told(tmp_path: Path) -> None:
    likely = TokenLogprob("Par", -0.1, (("Par", -0.1), ("Lon", -2.5)))
    called = ToolCalled("call_1", "weather", '{"city":"Paris"}')

    async def conversation(connect: Connect) -> None:
        client = await connect()
        await client.ask("c1")
        _, _, delta, call, last = await client.until("c1")
        top = [{"token": "Par", "logprob": -0.1}, {"token": "Lon", "logprob": -2.5}]
        assert delta["logprobs"] == [{"token": "Par", "logprob": -0.1, "top_logprobs": top}]
        assert call["type"] == "tool_call" and last["finish"] == "tool_calls"
        assert call["call"] == {"id": "call_1", "name": "weather", "arguments": '{"city":"Paris"}'}

    async with gateway_world(
        tmp_path, events(ROUTED, Delta("Par", (likely,)), called, completed("tool_calls"))
    ) as world:
        await talk(world, conversation)


async def test_a_picture_comes_with_progress_and_previews(tmp_path: Path) -> None:
    png, jpeg = b"\x89PNG....", b"\xff\xd8\xff...."
    script = events(
        ROUTED,
        Progressed(1, 3, b""),
        Progressed(2, 3, png),
        Progressed(3, 3, jpeg),
        Bytes("image/png", b"\x00" * 40),
        Bytes("image/png", b"\x01" * 2),
        completed(),
    )

    async def conversation(connect: Connect) -> None:
        client = await connect()
        await client.ask("p", "images", prompt="a red apple", size="64x64")
        frames = await client.until("p")
        progress = [frame for frame in frames if frame["type"] == "progress"]
        assert "preview" not in progress[0] and (progress[0]["done"], progress[0]["total"]) == (1, 3)
        assert [frame["media_type"] for frame in progress[1:]] == ["image/png", "image/jpeg"]
        assert base64.b64decode(progress[1]["preview"]) == png
        parts = [frame for frame in frames if frame["type"] == "bytes"]
        assert {frame["media_type"] for frame in parts} == {"image/png"}
        assert b"".join(base64.b64decode(frame["data"]) for frame in parts) == b"\x00" * 40 + b"\x01" * 2
        request: Any = world.answers.asked[0].request
        assert request.previews == 1 and (request.width, request.height) == (64, 64)

    async with gateway_world(tmp_path, script) as world:
        await talk(world, conversation)


async def test_speech_goes_out_and_a_sound_comes_in(tmp_path: Path) -> None:
    async def script(question: Question, emit: Emit) -> None:
        spoken = Bytes("audio/pcm;rate=24000", b"\x01\x02")
        await events(ROUTED, Delta("heard") if question.inputs else spoken, completed())(question, emit)

    async def conversation(connect: Connect) -> None:
        client = await connect()
        await client.ask("s", "speech", input="Hello.", voice="anna")
        spoken = (await client.until("s"))[-2]
        assert spoken["media_type"] == "audio/pcm;rate=24000" and base64.b64decode(spoken["data"]) == b"\x01\x02"
        sound = base64.b64encode(b"RIFF").decode()
        wishes = {"temperature": 0.5, "response_format": "vtt", "mtor": {"deadline_ms": 5_000}, "prompt": None}
        await client.ask("t", "transcription", file=sound, language="EN", **wishes)
        assert text_of(await client.until("t")) == "heard"
        asked: Any = world.answers.asked[1]
        assert asked.inputs == (b"RIFF",) and asked.deadline_ms == 5_000
        assert (asked.request.language, asked.request.temperature, asked.request.timestamps) == ("en", 500, 1)

    async with gateway_world(tmp_path, script) as world:
        await talk(world, conversation)


async def test_many_queries_share_one_socket(tmp_path: Path) -> None:
    """Each waits for another one, so none would end if they came one after another."""
    begun: set[str] = set()

    async def script(question: Question, emit: Emit) -> None:
        text = _text(question)
        begun.add(text)
        await until(lambda: len(begun) == 20)
        await emit(ROUTED)
        for letter in text:
            await emit(Delta(letter))
            await trio.lowlevel.checkpoint()
        await emit(completed())

    async def conversation(connect: Connect) -> None:
        client = await connect()
        for number in range(20):
            await client.ask(f"c{number}", messages=[{"role": "user", "content": f"answer {number}"}])
        for number in reversed(range(20)):
            frames = await client.until(f"c{number}")
            assert text_of(frames) == f"answer {number}" and without_gaps(frames)

    async with gateway_world(tmp_path, script) as world:
        await talk(world, conversation)


def _text(question: Question) -> str:
    request: Any = question.request
    return str(request.turns[-1].text)


# --- cancelling ------------------------------------------------------------------------------------------


async def test_cancelling_ends_the_work_and_frees_its_place(tmp_path: Path) -> None:
    async def conversation(connect: Connect) -> None:
        client = await connect()
        await client.ask("c1")
        await client.until("c1", "delta")
        await client.send(type="cancel", id="c1")
        frames = await client.until("c1")
        assert frames[-1]["type"] == "cancelled"
        await _until(lambda: world.answers.cancelled == 1)
        world.answers.script = saying("next")
        await client.ask("c1")  # the name is free again, and so is the only place
        assert text_of(await client.until("c1")) == "next"
        await client.send(type="cancel", id="c1")
        assert (await client.of("c1"))["error"]["code"] == "no_such_query"

    async with gateway_world(tmp_path, endless(), max_concurrent=1) as world:
        await talk(world, conversation)


async def _until(seen: Callable[[], bool]) -> None:
    """Of `gateway_world`, for this side."""
    async with asyncio.timeout(30):
        while not seen():
            await asyncio.sleep(0.005)


async def test_a_query_more_than_the_node_answers_at_once_fails(tmp_path: Path) -> None:
    async def conversation(connect: Connect) -> None:
        client = await connect()
        await client.ask("c1")
        await client.until("c1", "delta")
        await client.ask("c2")
        assert (await client.until("c2"))[-1]["error"]["code"] == "overloaded"

    async with gateway_world(tmp_path, endless(), max_concurrent=1) as world:
        await talk(world, conversation)


# --- going on elsewhere ----------------------------------------------------------------------------------

WORDS = [f"w{number} " for number in range(12)]


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cuts=st.lists(st.integers(1, len(WORDS) + 3), min_size=1, max_size=3),
    back=st.integers(0, 3),
    silently=st.booleans(),
)
def test_an_answer_that_is_cut_anywhere_loses_and_doubles_nothing(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], back: int, silently: bool
) -> None:
    """`cuts`: events read before each loss of the socket; `back`: events that the client forgot to have had."""
    gate = Gate()

    async def script(question: Question, emit: Emit) -> None:
        await emit(ROUTED)
        for number, word in enumerate(WORDS):
            if number == len(WORDS) // 2:
                await gate.passed()
            await emit(Delta(word))
        await emit(completed())

    async def conversation(connect: Connect) -> None:
        client = await connect()
        await client.ask("first")
        frames = [await client.of("first")]
        query = frames[0]["query"]
        for number, cut in enumerate(sorted(cuts)):
            if cut > len(WORDS) // 2:
                gate.open()
            while len(frames) < cut:
                frames.append(await client.of("first" if not number else f"again {number - 1}"))
            if silently:
                client.vanish()
            else:
                await client.socket.close()
            del frames[max(1, len(frames) - back) :]
            client = await connect()
            await client.send(type="resume", id=f"again {number}", query=query, after=len(frames))
        gate.open()
        if len(frames) < len(WORDS) + 3:
            frames += await client.until(f"again {len(cuts) - 1}")
        assert without_gaps(frames) and text_of(frames) == "".join(WORDS)
        assert frames[-1]["type"] == "completed"

    async def run() -> None:
        async with gateway_world(tmp_path_factory.mktemp("node"), script) as world:
            await talk(world, conversation)
            assert len(world.answers.asked) == 1 and world.answers.cancelled == 0

    trio.run(run)


async def test_a_page_that_was_reloaded_takes_its_query_over(tmp_path: Path) -> None:
    gate = Gate()

    async def script(question: Question, emit: Emit) -> None:
        await events(ROUTED, Delta("one "))(question, emit)
        await gate.passed()
        await events(Delta("two"), completed())(question, emit)

    async def conversation(connect: Connect) -> None:
        old, new = await connect(), await connect()
        await old.ask("a")
        frames = await old.until("a", "delta")
        await new.send(type="resume", id="b", query=frames[0]["query"], after=0)
        told = await old.of("a")
        assert told["type"] == "error" and told["error"]["code"] == "taken_over"
        gate.open()
        again = await new.until("b")
        assert without_gaps(again) and text_of(again) == "one two"
        await old.ask("a")  # the old one is free to ask again
        assert text_of(await old.until("a")) == "one two"

    async with gateway_world(tmp_path, script) as world:
        await talk(world, conversation)


async def test_who_stays_away_too_long_loses_the_query(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ongoing, "ABSENT_SECONDS", 0.05)

    async def conversation(connect: Connect) -> None:
        client = await connect()
        await client.ask("c1")
        query = (await client.until("c1", "delta"))[0]["query"]
        client.vanish()
        await _until(lambda: world.answers.cancelled == 1)
        client = await connect()
        await client.send(type="resume", id="c1", query=query, after=1)
        assert (await client.until("c1"))[-1]["type"] == "cancelled"

    async with gateway_world(tmp_path, endless()) as world:
        await talk(world, conversation)


async def test_who_leaves_at_once_is_noticed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The socket may be gone before anything was handed on."""
    monkeypatch.setattr(ongoing, "ABSENT_SECONDS", 0.02)

    async def conversation(connect: Connect) -> None:
        for _ in range(10):
            client = await connect()
            await client.ask("c1")
            await client.socket.close()  # on the way together with the ask
            client = await connect()
            await client.ask("c1")
            client.vanish()
        client = await connect()
        await client.ask("c1")
        query = (await client.until("c1", "delta"))[0]["query"]
        await client.socket.close()
        await _until(lambda: len(world.answers.asked) > 0 and world.answers.cancelled == len(world.answers.asked))
        assert query in {question.query_id.hex() for question in world.answers.asked}

    async with gateway_world(tmp_path, endless()) as world:
        await talk(world, conversation)


async def test_a_finished_query_is_kept_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def conversation(connect: Connect) -> None:
        client = await connect()
        await client.ask("c1")
        frames = await client.until("c1")
        for _ in range(2):
            await client.send(type="resume", id="again", query=frames[0]["query"], after=3)
            assert [frame["seq"] for frame in await client.until("again")] == [4, 5]
        monkeypatch.setattr(ongoing, "KEPT_SECONDS", 0.0)
        await client.send(type="resume", id="again", query=frames[0]["query"], after=5)
        while (await _refused(client, type="resume", id="x", query=frames[0]["query"]))["code"] != "no_such_query":
            await asyncio.sleep(0.01)

    async with gateway_world(tmp_path) as world:
        await talk(world, conversation)


async def _refused(client: Client, **frame: Any) -> Frame:
    """The error of a frame, if it has one; the frames that come instead are passed over."""
    await client.send(**frame)
    while True:
        answer = await client.of(frame["id"])
        if answer["type"] == "error":
            error: Frame = answer["error"]
            return error
        if answer["type"] in ("completed", "failed", "cancelled"):
            return {"code": None}


async def test_what_cannot_be_resumed_is_said(tmp_path: Path) -> None:
    async def conversation(connect: Connect) -> None:
        client = await connect()
        error = await _refused(client, type="resume", id="x", query="ab" * 16, after=3)
        assert error["code"] == "no_such_query" and error["status"] == 404
        await client.ask("c1")
        frames = await client.until("c1")
        error = await _refused(client, type="resume", id="x", query=frames[0]["query"], after=99)
        assert error["param"] == "after" and error["status"] == 400

    async with gateway_world(tmp_path) as world:
        await talk(world, conversation)


# --- bounds ----------------------------------------------------------------------------------------------


async def test_a_reader_that_does_not_read_stops_its_query_and_fills_no_memory(tmp_path: Path) -> None:
    """Some MB lie in sockets and in the log; then the worker has to wait, while another socket is served."""
    chunk = Bytes("audio/pcm;rate=24000", bytes(48 * 1024))

    async def script(question: Question, emit: Emit) -> None:
        if isinstance(_request(question), str):
            await saying("quick")(question, emit)
            return
        await emit(ROUTED)
        for _ in range(400):
            await emit(chunk)
        await emit(completed())

    async def conversation(connect: Connect) -> None:
        slow, other = await connect(), await connect()
        await slow.ask("s", "speech", input="A long story.")
        before = -1
        while world.answers.emitted != before or before < 5:  # until nothing moves any more
            before = world.answers.emitted
            await asyncio.sleep(0.3)
        assert before < 300
        await other.ask("c")
        assert text_of(await other.until("c")) == "quick"
        frames = await slow.until("s")  # and it goes on as soon as somebody reads
        assert without_gaps(frames) and sum(frame["type"] == "bytes" for frame in frames) == 400
        query = frames[0]["query"]
        error = await _refused(other, type="resume", id="x", query=query, after=1)
        assert error["code"] == "events_gone" and error["status"] == 410
        await other.send(type="resume", id="x", query=query, after=len(frames) - 1)
        assert (await other.until("x"))[-1]["type"] == "completed"

    async with gateway_world(tmp_path, script) as world:
        await talk(world, conversation)


def _request(question: Question) -> Any:
    request: Any = question.request
    return request.turns[-1].text if hasattr(request, "turns") else request


async def test_many_absent_clients_fill_no_more_than_the_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is finished and unread is given up for what runs; who is away and has filled the room holds up nobody."""
    chunk = Bytes("audio/pcm;rate=24000", bytes(8 * 1024))
    long = events(ROUTED, *([chunk] * 12), completed())
    most = 256 * 1024
    rooms: list[ongoing.Ongoing] = []

    class Watched(ongoing.Ongoing):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            rooms.append(self)

    async def many(connect: Connect) -> Client:
        client = await connect()
        for number in range(8):
            await client.ask(f"s{number}", "speech", input="A story.")
        return client

    async def conversation(connect: Connect) -> None:
        for _ in range(3):
            client = await many(connect)
            for number in range(8):
                assert without_gaps(await client.until(f"s{number}"))
            client.vanish()
        world.answers.script = endless_sound
        (await many(connect)).vanish()
        await _until(lambda: rooms[0].size > most // 2 - 32 * 1024)
        world.answers.script = long
        await (await many(connect)).until("s7")
        assert most // 2 - 32 * 1024 < rooms[0].size <= most
        monkeypatch.setattr(ongoing, "ABSENT_SECONDS", 0.0)
        monkeypatch.setattr(ongoing, "KEPT_SECONDS", 0.0)

    async def endless_sound(question: Question, emit: Emit) -> None:
        while True:
            await emit(chunk)

    monkeypatch.setattr(websocket, "Ongoing", Watched)
    async with gateway_world(tmp_path, long, max_kept_bytes=most) as world:
        await talk(world, conversation)


async def test_queries_and_sockets_are_bounded(tmp_path: Path) -> None:
    async def conversation(connect: Connect) -> None:
        client = await connect()
        for name in ("a", "b"):
            await client.ask(name)
            await client.until(name, "delta")
        await client.ask("c")
        error = await client.frame(lambda frame: frame["type"] == "error")
        assert error["id"] == "c" and error["error"]["code"] == "too_many_queries" and error["error"]["status"] == 429
        await client.ask("a")
        error = await client.frame(lambda frame: frame["type"] == "error")
        assert error["error"]["code"] == "id_in_use"
        await connect()
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await connect()
        assert refused.value.status == 503

    async with gateway_world(tmp_path, endless(), max_sockets=2, max_socket_queries=2) as world:
        await talk(world, conversation)


async def test_a_client_keeps_a_bounded_number_of_queries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ongoing, "CLIENT_QUERIES", 2)

    async def conversation(connect: Connect) -> None:
        client = await connect()
        queries = []
        for name in ("a", "b", "c"):
            await client.ask(name)
            queries.append((await client.until(name))[0]["query"])
        assert (await _refused(client, type="resume", id="x", query=queries[0], after=1))["code"] == "no_such_query"
        assert (await _refused(client, type="resume", id="y", query=queries[2], after=1))["code"] is None
        world.answers.script = endless()
        for name in ("a", "b"):
            await client.ask(name)
            await client.until(name, "delta")
        assert (await _refused(client, type="ask", id="z", route="chat", body=ASK_BODY))["code"] == "too_many_queries"

    async with gateway_world(tmp_path) as world:
        await talk(world, conversation)


ASK_BODY = {"model": "auto", "messages": [{"role": "user", "content": "hello"}]}


# --- frames that cannot be used --------------------------------------------------------------------------

GARBAGE: list[tuple[str, str | None]] = [
    ("", None),
    ("not json", None),
    ("[1, 2]", None),
    ('"hello"', None),
    ("null", None),
    ("[" * 5_000, None),
    ("{}", None),
    ('{"type":"asks","id":"q"}', "q"),
    ('{"type":["ask"],"id":"q"}', "q"),
    ('{"type":"ask","id":"q","route":"chat"}', "q"),
    ('{"type":"ask","id":"q","route":"/v1/chat/completions","body":{}}', "q"),
    ('{"type":"ask","id":"q","route":"chat","body":[]}', "q"),
    ('{"type":"ask","id":"q","route":"chat","body":{},"more":1}', "q"),
    ('{"type":"ask","id":"","route":"chat","body":{}}', None),
    ('{"type":"ask","id":7,"route":"chat","body":{}}', None),
    ('{"type":"cancel","id":"' + "x" * 65 + '"}', None),
    ('{"type":"cancel","id":"q"}', "q"),
    ('{"type":"resume","id":"q","query":"AB","after":0}', "q"),
    ('{"type":"resume","id":"q","query":"' + "ab" * 16 + '","after":-1}', "q"),
    ('{"type":"resume","id":"q","query":"' + "ab" * 16 + '","after":"1"}', "q"),
    ('{"type":"resume","id":"q","query":"' + "ab" * 16 + '\\n"}', "q"),
    ('{"type":"watch","id":"q"}', "q"),
    ('{"type":"ping","type":"pong"}', None),
]


async def test_garbage_costs_its_frame_and_nothing_else(tmp_path: Path) -> None:
    async def conversation(connect: Connect) -> None:
        client = await connect()
        for text, name in GARBAGE:
            await client.socket.send_str(text)
            answer = await client.frame()
            assert answer["type"] == "error" and answer.get("id") == name, (text[:80], answer)
            assert answer["error"]["status"] in (400, 404) and answer["error"]["message"], answer
        await client.socket.send_bytes(b'{"type":"ping"}')
        assert (await client.frame())["error"]["code"] == "invalid_frame"
        await client.send(type="ping")
        assert await client.frame() == {"type": "pong"}
        await client.ask("ok")
        assert text_of(await client.until("ok")) == "Hello"

    async with gateway_world(tmp_path) as world:
        await talk(world, conversation)


BAD_BODIES: list[tuple[str, Frame, str]] = [
    ("chat", {"messages": []}, "model"),
    ("chat", {"model": "auto", "messages": []}, "messages"),
    ("chat", ASK_BODY | {"n": 2}, "n"),
    ("chat", ASK_BODY | {"mtor": {"max_prize_in": 1}}, "mtor.max_prize_in"),
    ("images", {"prompt": "x", "n": 2}, "n"),
    ("images", {"prompt": "x", "size": "big"}, "size"),
    ("speech", {"input": ""}, "input"),
    ("speech", {"input": "x", "response_format": "mp3"}, "response_format"),
    ("transcription", {}, "file"),
    ("transcription", {"file": "*"}, "file"),
    ("transcription", {"file": ""}, "file"),
    ("transcription", {"file": "AAAA", "language": "?"}, "language"),
    ("transcription", {"file": "AAAA", "prompt": "x" * 70_000}, "prompt"),
    ("transcription", {"file": "AAAA", "temperature": [1]}, "temperature"),
]


async def test_a_wrong_body_is_refused_with_its_parameter(tmp_path: Path) -> None:
    async def conversation(connect: Connect) -> None:
        client = await connect()
        for route, body, parameter in BAD_BODIES:
            error = await _refused(client, type="ask", id="q", route=route, body=body)
            assert error["param"] == parameter and error["status"] in (400, 413), (route, body, error)
        fields = {f"x{number}": 1 for number in range(40)}
        error = await _refused(client, type="ask", id="q", route="transcription", body={"file": "AAAA"} | fields)
        assert error["status"] == 400
        assert not world.answers.asked

    async with gateway_world(tmp_path) as world:
        await talk(world, conversation)


async def test_a_flood_ends_the_socket_and_a_large_frame_does(tmp_path: Path) -> None:
    async def conversation(connect: Connect) -> None:
        client = await connect()
        for _ in range(websocket.FRAMES_AT_ONCE * 2):
            if not client.socket.closed:
                await client.send(type="ping")
        last: Frame = {}
        while last.get("type") != "error":
            last = await client.frame()
        assert last["error"]["code"] == "flood"
        assert await client.closed() == aiohttp.WSCloseCode.POLICY_VIOLATION
        client = await connect()
        await client.socket.send_str("x" * 5_000)
        assert await client.closed() == aiohttp.WSCloseCode.MESSAGE_TOO_BIG

    async with gateway_world(tmp_path, max_body_bytes=4_096) as world:
        await talk(world, conversation)


async def test_pace_refills() -> None:
    now = [0.0]
    pace = websocket.Pace(2.0, 3, lambda: now[0])
    assert [pace.allows() for _ in range(4)] == [True, True, True, False]
    now[0] = 0.5
    assert [pace.allows() for _ in range(2)] == [True, False]
    now[0] = 100.0
    assert [pace.allows() for _ in range(4)] == [True, True, True, False]


# --- who may ---------------------------------------------------------------------------------------------


async def test_pages_of_other_sites_are_refused(tmp_path: Path) -> None:
    async def refused(headers: dict[str, str]) -> int:
        with pytest.raises(aiohttp.WSServerHandshakeError) as error:
            await talk(world, lambda connect: connect(), headers)  # type: ignore[arg-type,return-value]
        return int(error.value.status)

    async def conversation(connect: Connect) -> None:
        await (await connect()).send(type="ping")

    async with gateway_world(tmp_path, allowed_origins=["https://friend.example"]) as world:
        assert await refused({"Origin": "https://evil.example"}) == 403
        assert await refused({"Host": "evil.example"}) == 403
        await talk(world, conversation, {"Origin": world.url})
        await talk(world, conversation, {"Origin": "https://friend.example"})
        reply = await world.ask("GET", "/ws")
        assert reply.status == 426 and reply.error["code"] == "upgrade_required"


async def test_a_key_is_shown_in_a_header_or_in_the_first_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = ApiKeys(tmp_path)
    key, other = keys.create("phone"), keys.create("laptop")
    monkeypatch.setattr(websocket, "HELLO_SECONDS", 0.2)
    queries: list[str] = []

    async def greeted(connect: Connect) -> None:
        client = await connect()
        await client.send(type="hello", key=key)
        await client.ask("a")
        queries.append((await client.until("a"))[0]["query"])
        await client.send(type="hello", key=key)
        assert (await client.frame())["error"]["code"] == "invalid_frame"

    async def another(connect: Connect) -> None:
        client = await connect()
        await client.ask("a")
        await client.until("a")
        error = await _refused(client, type="resume", id="x", query=queries[0], after=0)
        assert error["code"] == "no_such_query"

    async def strangers(connect: Connect) -> None:
        for first in ({"type": "hello", "key": "mtor-wrong"}, {"type": "ping"}, {"type": "nonsense"}, b"\x00", None):
            client = await connect()
            if isinstance(first, bytes):
                await client.socket.send_bytes(first)
            elif first is not None:
                await client.socket.send_str(json.dumps(first))
            answer = await client.frame()
            assert answer["type"] == "error" and (answer["error"]["status"] == 401 or first == {"type": "nonsense"})
            assert await client.closed() == aiohttp.WSCloseCode.POLICY_VIOLATION

    async def crowd(connect: Connect) -> None:
        waiting = [await connect() for _ in range(websocket.MOST_STRANGERS)]
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await connect()
        assert refused.value.status == 503 and waiting

    async with gateway_world(tmp_path, host="0.0.0.0") as world:
        await talk(world, greeted)
        await talk(world, another, {"Authorization": f"Bearer {other}"})
        await talk(world, strangers)
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await talk(world, another, {"Authorization": "Bearer mtor-wrong"})
        assert refused.value.status == 401
        monkeypatch.setattr(websocket, "HELLO_SECONDS", 30)
        await talk(world, crowd)


async def test_limits_hold_and_a_revoked_key_is_refused_where_a_socket_is_open(tmp_path: Path) -> None:
    keys = ApiKeys(tmp_path)
    key = keys.create("phone", terms=Terms(requests_per_minute=2))

    async def conversation(connect: Connect) -> None:
        client = await connect()
        codes = []
        for _ in range(3):
            await client.ask("a")
            codes.append((await client.until("a"))[-1].get("error", {}).get("status"))
        assert codes == [None, None, 429]
        keys.revoke(keys.all()[0].id)
        await client.ask("a")
        assert (await client.until("a"))[-1]["error"]["code"] == "revoked_api_key"

    async with gateway_world(tmp_path) as world:
        await talk(world, conversation, {"Authorization": f"Bearer {key}"})


# --- the node's state ------------------------------------------------------------------------------------


async def test_the_nodes_state_is_told_when_it_changes_and_worked_out_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "LOOK_SECONDS", 0.1)

    async def conversation(connect: Connect) -> None:
        clients = [await connect() for _ in range(5)]
        for client in clients:
            await client.send(type="watch")
        frames = [await client.frame() for client in clients]
        assert all(frame["type"] == "node" and frame["name"] == "attic" for frame in frames)
        assert frames[0]["federation"] == {"name": "friends", "id": "00" * 32}
        assert frames[0]["offers"][0]["model"] == MODEL and frames[0]["peers"][0]["connected"] is True
        assert frames[0]["pause_reason"] == "a game" and frames[0]["running"] == 0
        await _until(lambda: world.facts.snapshots >= 3)  # time goes by, and nothing is told
        world.facts.offered = [ModelFacts("$CHAT", "another", 1, 8192)]
        frames = [await client.frame() for client in clients]
        assert all(frame["offers"][0]["model"] == "another" for frame in frames)
        assert len({frame["uptime_seconds"] for frame in frames}) == 1  # one look for all of them
        await clients[0].ask("c")
        assert (await clients[1].frame())["running"] == 1
        await clients[0].send(type="unwatch")
        for client in clients[1:]:
            client.vanish()
        await clients[0].send(type="ping")
        await clients[0].frame(lambda frame: frame["type"] == "pong")
        looked = -1
        while world.facts.snapshots != looked:  # nobody watches, nobody looks
            looked = world.facts.snapshots
            await asyncio.sleep(0.5)
        monkeypatch.setattr(watching, "LOOK_SECONDS", 30.0)
        client = await connect()
        for _ in range(5):  # who comes and goes is told, and makes nobody look again
            await client.send(type="watch")
            assert (await client.frame())["type"] == "node"
            await client.send(type="unwatch")
        assert world.facts.snapshots == looked

    async with gateway_world(tmp_path, endless()) as world:
        await talk(world, conversation)


async def test_why_the_owner_needs_the_machine_is_not_told_to_strangers(tmp_path: Path) -> None:
    async def conversation(connect: Connect) -> None:
        client = await connect()
        await client.send(type="watch")
        assert (await client.frame())["pause_reason"] == ""

    key = ApiKeys(tmp_path).create("phone")
    async with gateway_world(tmp_path, host="0.0.0.0") as world:
        await talk(world, conversation, {"Authorization": f"Bearer {key}"})


# --- the end ---------------------------------------------------------------------------------------------


async def test_a_node_that_stops_gives_every_query_a_last_word(tmp_path: Path) -> None:
    async def conversation(connect: Connect) -> None:
        client = await connect()
        for name in ("a", "b"):
            await client.ask(name)
            await client.until(name, "delta")
        stop.open()
        for name in ("a", "b"):
            last = (await client.until(name))[-1]
            assert last["type"] == "failed" and last["error"]["code"] == "stopping", last
        assert await client.closed() == aiohttp.WSCloseCode.GOING_AWAY

    stop = Gate()
    async with gateway_world(tmp_path, endless()) as world:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_stop_when, stop, world)
            with trio.CancelScope(shield=True):
                await talk(world, conversation)


async def _stop_when(gate: Gate, world: World) -> None:
    await gate.passed()
    world.stop()


# --- docs/websocket.md -----------------------------------------------------------------------------------

BOOK = (Path(__file__).resolve().parents[2] / "docs" / "websocket.md").read_text(encoding="utf-8")
FROM_CLIENTS = {"ask", "cancel", "resume", "hello", "watch", "unwatch", "ping"}


def test_the_frames_in_the_documentation_are_true() -> None:
    frames = [json.loads(line) for block in _blocks("json") for line in block.splitlines()]
    told = {frame["type"] for frame in frames}
    assert told == FROM_CLIENTS | {*frames_of_the_node(), "node", "error", "pong", "accepted", "failed", "cancelled"}
    for frame in frames:
        if frame["type"] in FROM_CLIENTS:
            assert read_frame(json.dumps(frame)).model_dump() == frame
        if frame["type"] in ("failed", "error"):
            assert set(frame["error"]) == set(error_facts(ApiError(400, "x")))
        if frame["type"] in frames_of_the_node() and frame["type"] != "progress":
            assert set(frame) == set(frames_of_the_node()[frame["type"]]) | {"id", "seq"}, frame


def frames_of_the_node() -> dict[str, Frame]:
    """One of each event of an answer, as it is told."""
    picture = (Progressed(1, 2, b"\x89PNG"), Bytes("image/png", b"x"))
    happenings = (ROUTED, Waiting("x", 1), Delta("x"), ToolCalled("1", "x", "{}"), *picture, completed())
    return {(told := happened(each))["type"]: told for each in happenings}


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", BOOK, re.MULTILINE | re.DOTALL)


async def test_the_client_in_the_documentation_goes_on_after_a_lost_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    [program] = _blocks("python")

    async def script(question: Question, emit: Emit) -> None:
        await events(ROUTED, Delta("Par"))(question, emit)
        await until(lambda: len(connections) == 2)
        await events(Delta("is"), completed())(question, emit)

    said, connections = [""], list[trio.CancelScope]()

    async def pass_on(client: trio.SocketStream) -> None:
        async with client, await trio.open_tcp_stream("127.0.0.1", world.port) as node, trio.open_nursery() as nursery:
            connections.append(nursery.cancel_scope)
            nursery.start_soon(_pump, client, node)
            nursery.start_soon(_pump, node, client)

    def has_said(text: str) -> bool:
        said[0] += capsys.readouterr().out
        return text in said[0]

    async with gateway_world(tmp_path, script) as world, trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, pass_on, 0, host="127.0.0.1"))
        port = listener.socket.getsockname()[1]
        monkeypatch.setattr(sys, "argv", ["client.py", f"ws://127.0.0.1:{port}/ws", "Which city?"])
        async with trio.open_nursery() as programs:
            programs.start_soon(trio.to_thread.run_sync, exec, program, {})
            await until(lambda: has_said("Par"))
            connections[0].cancel()
        assert has_said("Paris\ncompleted: {'prompt_tokens': 7") and len(world.answers.asked) == 1
        nursery.cancel_scope.cancel()


async def _pump(source: trio.SocketStream, sink: trio.SocketStream) -> None:
    async for data in source:
        await sink.send_all(data)
