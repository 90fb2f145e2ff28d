"""Chat over OpenAI's protocol: three families of servers, counts, grants, continuations, parameters, pictures."""

from __future__ import annotations

import base64
import struct
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest
import trio

from node.engines.outer.engine import OuterEngine
from node.engines.port import EngineError, Finished, Piece, Prompted
from node.engines.requests import chat_request
from protocol.errors import ErrorCode
from protocol.messages import ChatRequest, Media, VisionRequest
from tests.outer.servers import png, token
from tests.outer.world import RunningServer, answer, model_of, running, text_of

ASKED = chat_request("hello there", max_tokens=12)
CHAT = "/v1/chat/completions"


def words(first: int, last: int) -> str:
    return "".join(token(index) for index in range(first, last))


@pytest.mark.parametrize("model", ["tiny-llama", "tiny-vllm", "tiny-plain"])
async def test_an_answer_is_relayed_and_counted(server: RunningServer, model: str) -> None:
    async with running(model_of(server, model=model)) as engine:
        events = await answer(engine, ASKED)
    assert text_of(events) == words(0, 12)
    assert isinstance(events[0], Prompted) and events[0].units_in > 3
    assert events[-1] == Finished("length", events[0].units_in, 12)
    assert [event.units_out for event in events if isinstance(event, Piece)] == list(range(1, 13))


async def test_what_the_server_says_of_its_model_is_offered(server: RunningServer) -> None:
    for model, context in (("tiny-llama", 4_096), ("tiny-vllm", 2_048), ("tiny-plain", 0)):
        async with running(model_of(server, model=model)) as engine:
            assert (engine.ready, engine.info.name, engine.info.context_tokens) == (True, model, context)
            assert engine.info.device.kind == "outer" and engine.info.digest == bytes(32)
    async with running(model_of(server, model="tiny-plain", context_tokens=1_000)) as engine:
        assert engine.info.context_tokens == 1_000


async def test_prompts_are_counted_by_the_server_where_it_tells_in_time(server: RunningServer) -> None:
    counts = {}
    for model in ("tiny-llama", "tiny-vllm", "tiny-plain"):
        async with running(model_of(server, model=model)) as engine:
            events = await answer(engine, ASKED)
            counts[model] = events[0].units_in  # type: ignore[union-attr]
    assert counts["tiny-llama"] == counts["tiny-vllm"] == 5  # two words, three of the template
    assert counts["tiny-plain"] == 3 + 4  # eleven bytes are three tokens, the template's four


async def test_nothing_is_read_beyond_the_grant(server: RunningServer) -> None:
    async with running(model_of(server)) as engine, engine.generate(ASKED, "") as generation:
        await generation.grant(3)
        seen = []
        async with aclosing(generation.events()) as events:
            with trio.move_on_after(0.2):
                async for event in events:
                    seen.append(event)
        assert [event.units_out for event in seen if isinstance(event, Piece)] == [1, 2, 3]
        assert engine.stats().running == 1
    assert engine.stats().running == 0


async def test_a_bundle_larger_than_the_grant_is_handed_over_in_parts(server: RunningServer) -> None:
    await server.fault("big piece")
    async with running(model_of(server, model="tiny-plain")) as engine:
        async with engine.generate(chat_request("x"), "") as generation:
            await generation.grant(5)
            text, highest = "", 0
            async with aclosing(generation.events()) as events:
                async for event in events:
                    if isinstance(event, Piece):
                        assert event.units_out <= generation.granted and len(event.text) <= 512
                        text, highest = text + event.text, event.units_out
                        await generation.grant(highest + 5)
    assert text == "x" * 100_000
    assert highest == 100_000 // 64 + 1  # nobody sells this much text as one token


async def test_a_cancel_closes_the_connection(server: RunningServer) -> None:
    await server.fault("endless tokens")
    async with running(model_of(server, model="tiny-plain")) as engine:
        async with engine.generate(chat_request("x"), "") as generation:
            await generation.grant(4)
            seen = []
            async with aclosing(generation.events()) as events:
                async for event in events:
                    seen.append(event)
                    if isinstance(event, Piece) and event.units_out == 4:
                        await generation.cancel()
        last = seen[-1]
        assert isinstance(last, Finished) and (last.finish, last.units_out) == ("cancelled", 4)
        while (await server.seen())["cut"] == 0:
            await trio.sleep(0.01)
        assert engine.ready


@pytest.mark.parametrize(("model", "flag"), [("tiny-llama", None), ("tiny-vllm", True)])
async def test_an_answer_is_continued_where_the_server_can(server: RunningServer, model: str, flag: Any) -> None:
    async with running(model_of(server, model=model)) as engine:
        events = await answer(engine, ASKED, prefix=words(0, 7))
    assert text_of(events) == words(7, 19)
    asked = await server.body(CHAT)
    assert asked["messages"][-1] == {"role": "assistant", "content": words(0, 7)}
    assert asked.get("continue_final_message") is flag


async def test_an_answer_is_not_begun_anew_where_it_cannot(server: RunningServer) -> None:
    async with running(model_of(server, model="tiny-plain")) as engine:
        with pytest.raises(EngineError) as refused:
            await answer(engine, ASKED, prefix="alpha0 ")
        assert refused.value.code is ErrorCode.UNSUPPORTED_FEATURE
    assert CHAT not in [each["path"] for each in (await server.seen())["seen"]]
    async with running(model_of(server, model="tiny-plain", options={"continuation": "prefill"})) as engine:
        await answer(engine, ASKED, prefix="alpha0 ")  # the operator knows better
    async with running(model_of(server, options={"continuation": "none"})) as engine:
        with pytest.raises(EngineError):
            await answer(engine, ASKED, prefix="alpha0 ")


async def asked_of(server: RunningServer, model: str, request: ChatRequest) -> dict[str, Any]:
    async with running(model_of(server, model=model)) as engine:
        await answer(engine, request)
    return await server.body(CHAT)


async def test_parameters_are_translated(server: RunningServer) -> None:
    request = chat_request("q", max_tokens=2, temperature=700, top_p=920, top_k=40, repetition_penalty=1_100)
    request = replace(request, frequency_penalty=1_500, presence_penalty=2_250, seed=9, stop=("E",))
    common = {"max_tokens": 2, "temperature": 0.7, "top_p": 0.92, "top_k": 40, "seed": 9, "stop": ["E"]}
    common |= {"frequency_penalty": -0.5, "presence_penalty": 0.25, "stream": True}
    llama, vllm, plain = [await asked_of(server, model, request) for model in ("tiny-llama", "tiny-vllm", "tiny-plain")]
    for body in (llama, vllm, plain):
        assert {name: body[name] for name in common} == common
        assert body["messages"] == [{"role": "user", "content": "q"}]
        assert body["stream_options"]["include_usage"] is True
    assert llama["repeat_penalty"] == 1.1 and "repetition_penalty" not in llama
    assert vllm["repetition_penalty"] == 1.1 and vllm["stream_options"]["continuous_usage_stats"] is True
    assert plain["repeat_penalty"] == plain["repetition_penalty"] == 1.1 and "min_p" not in plain


async def test_what_is_not_asked_for_is_not_sent(server: RunningServer) -> None:
    left_out = {"seed", "stop", "frequency_penalty", "presence_penalty", "repetition_penalty", "repeat_penalty"}
    plain = await asked_of(server, "tiny-plain", chat_request("q", max_tokens=1))
    assert not (left_out | {"top_k"}) & plain.keys() and plain["temperature"] == 0
    # These two have limits of their own unless they are told that there is none.
    assert (await asked_of(server, "tiny-llama", chat_request("q", max_tokens=1)))["top_k"] == 0
    assert (await asked_of(server, "tiny-vllm", chat_request("q", max_tokens=1)))["top_k"] == -1


JPEG = bytes.fromhex("ffd8ffc0000b080004000401011100ffd9")


def vision(pictures: tuple[bytes, ...], turns: tuple[int, ...]) -> VisionRequest:
    chat = chat_request("look", "I did", "and now?", max_tokens=3)
    fields = {name: getattr(chat, name) for name in ChatRequest.__dataclass_fields__}
    media = [Media("image", len(data), turn) for data, turn in zip(pictures, turns, strict=True)]
    return VisionRequest(**fields, media=tuple(media))


async def test_pictures_stand_in_their_turns(server: RunningServer) -> None:
    first, second = png(4, 4), JPEG
    engine = model_of(server, realm="$VISION")
    async with running(engine):
        await answer(engine, vision((first, second), (0, 2)), inputs=(first, second))
    messages = (await server.body(CHAT))["messages"]
    url = messages[0]["content"][0]["image_url"]["url"]
    assert url == "data:image/png;base64," + base64.b64encode(first).decode()
    assert messages[0]["content"][1] == {"type": "text", "text": "look"}
    assert messages[1] == {"role": "assistant", "content": "I did"}
    assert messages[2]["content"][0]["image_url"]["url"].startswith("data:image/jpeg;base64,")


BOMB = png(4, 4)[:16] + struct.pack(">II", 60_000, 60_000) + png(4, 4)[24:]


@pytest.mark.parametrize("kind", ["openai", "predict"])
@pytest.mark.parametrize(
    "picture", [b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"hello", BOMB], ids=["svg", "text", "bomb"]
)
async def test_what_is_no_picture_is_not_sent_on(server: RunningServer, picture: bytes, kind: str) -> None:
    async with running(model_of(server, kind, realm="$VISION")) as engine:
        with pytest.raises(EngineError) as refused:
            await answer(engine, vision((picture,), (0,)), inputs=(picture,))
    assert refused.value.code is ErrorCode.INVALID_REQUEST
    assert all("body" not in each for each in (await server.seen())["seen"])


async def test_an_answer_without_a_stream_is_taken(server: RunningServer) -> None:
    await server.fault("gzip")
    async with running(model_of(server)) as engine:
        events = await answer(engine, ASKED)
    assert text_of(events) == "packed" and events[-1] == Finished("stop", 7, 2)


async def test_thoughts_are_marked(server: RunningServer) -> None:
    await server.fault("thinker")
    async with running(model_of(server, model="tiny-plain")) as engine:
        assert text_of(await answer(engine, ASKED)) == "<think>hm so</think>\n\n42"


async def test_keys_are_sent_and_speed_is_measured(server: RunningServer) -> None:
    engine: OuterEngine = model_of(server, key_variable="OUTER_KEY", environment={"OUTER_KEY": " s3cret\n"})
    async with running(engine):
        await answer(engine, ASKED)
        assert engine.stats().tokens_per_second > 0
    assert {each["key"] for each in (await server.seen())["seen"]} == {"Bearer s3cret"}
