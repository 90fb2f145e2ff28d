"""OpenAI's own Python client against the gateway: the interface that others' programs are written for."""

import asyncio
import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
import trio
from openai import AsyncOpenAI, OpenAI

from node.answers import Bytes, Delta, Progressed, Question, TokenLogprob, ToolCalled
from node.engines.sound import hear
from node.gateway.keys import ApiKeys
from protocol.errors import ErrorCode
from protocol.ids import IMAGINE, SPEECH, VISION, peer_id
from tests.node.gateway_world import (
    HANG_SECONDS,
    MODEL,
    ROUTED,
    WORKER,
    Emit,
    World,
    completed,
    events,
    failing,
    gateway_world,
    saying,
    until,
)

HELLO: Any = [{"role": "user", "content": "hello"}]


async def with_client(world: World, use: Callable[[OpenAI], None], key: str = "none") -> None:
    """Run `use` in a thread with a client that neither retries nor waits for ever."""

    def program() -> None:
        with OpenAI(base_url=f"{world.url}/v1", api_key=key, max_retries=0, timeout=HANG_SECONDS) as client:
            use(client)

    await trio.to_thread.run_sync(program)


async def test_models(tmp_path: Path) -> None:
    def use(client: OpenAI) -> None:
        assert [model.id for model in client.models.list()] == [MODEL]
        assert client.models.retrieve(MODEL).owned_by == "mtor"
        with pytest.raises(openai.NotFoundError) as missing:
            client.models.retrieve("gpt-9")
        assert missing.value.code == "model_not_found" and MODEL in missing.value.message

    async with gateway_world(tmp_path) as world:
        await with_client(world, use)


async def test_a_whole_answer(tmp_path: Path) -> None:
    def use(client: OpenAI) -> None:
        answer = client.chat.completions.create(model="auto", messages=HELLO, max_tokens=9, temperature=0.5, seed=3)
        assert answer.choices[0].message.content == "Paris" and answer.choices[0].finish_reason == "stop"
        assert answer.usage is not None and answer.usage.total_tokens == 10
        assert answer.id.startswith("chatcmpl-") and answer.model == MODEL

    async with gateway_world(tmp_path, saying("Par", "is")) as world:
        await with_client(world, use)


async def test_choices_calls_and_log_probabilities(tmp_path: Path) -> None:
    def use(client: OpenAI) -> None:
        tools: Any = [{"type": "function", "function": {"name": "clock", "parameters": {"type": "object"}}}]
        whole = client.chat.completions.create(
            model="auto", messages=HELLO, n=2, tools=tools, logprobs=True, top_logprobs=1
        )
        assert [choice.index for choice in whole.choices] == [0, 1]
        for choice in whole.choices:
            (call,) = choice.message.tool_calls or []
            assert call.type == "function" and call.function.name == "clock" and call.function.arguments == "{}"
            assert choice.finish_reason == "tool_calls" and choice.logprobs and choice.logprobs.content
            assert choice.logprobs.content[0].bytes == [72, 105]
            assert choice.logprobs.content[0].top_logprobs[0].logprob == -1.5
        called = []
        for chunk in client.chat.completions.create(model="auto", messages=HELLO, stream=True, tools=tools):
            called += [call for choice in chunk.choices for call in choice.delta.tool_calls or []]
        assert [(call.index, call.function and call.function.name) for call in called] == [(0, "clock")]

    likely = TokenLogprob("Hi", -0.5, (("Ho", -1.5),), b"Hi")
    script = events(ROUTED, Delta("Hi", (likely,)), ToolCalled("call_1", "clock", "{}"), completed("tool_calls"))
    async with gateway_world(tmp_path, script) as world:
        await with_client(world, use)


async def test_a_stream(tmp_path: Path) -> None:
    def use(client: OpenAI) -> None:
        chunks = list(client.chat.completions.create(model="auto", messages=HELLO, stream=True))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Paris 🎈"
        assert chunks[0].choices[0].delta.role == "assistant" and chunks[-1].choices[0].finish_reason == "length"
        assert len({chunk.id for chunk in chunks}) == 1 and all(chunk.usage is None for chunk in chunks)

    async with gateway_world(tmp_path, saying("Par", "is", " 🎈", finish="length")) as world:
        await with_client(world, use)


async def test_usage_of_a_stream(tmp_path: Path) -> None:
    def use(client: OpenAI) -> None:
        wanted: Any = {"include_usage": True}
        *_, last = client.chat.completions.create(model="auto", messages=HELLO, stream=True, stream_options=wanted)
        assert last.choices == [] and last.usage is not None
        assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (7, 3)

    async with gateway_world(tmp_path) as world:
        await with_client(world, use)


async def test_the_stream_helper_puts_an_answer_together(tmp_path: Path) -> None:
    def use(client: OpenAI) -> None:
        with client.chat.completions.stream(model="auto", messages=HELLO) as stream:
            texts = [event.delta for event in stream if event.type == "content.delta"]
            assert stream.get_final_completion().choices[0].message.content == "Paris" == "".join(texts)

    async with gateway_world(tmp_path, saying("Par", "is")) as world:
        await with_client(world, use)


async def test_headers_tell_who_answered(tmp_path: Path) -> None:
    def use(client: OpenAI) -> None:
        raw = client.chat.completions.with_raw_response.create(model="auto", messages=HELLO)
        assert raw.headers["x-mtor-worker"] == peer_id(WORKER) and len(raw.headers["x-mtor-query"]) == 32
        assert raw.parse().choices[0].message.content == "Hello"

    async with gateway_world(tmp_path) as world:
        await with_client(world, use)


async def test_wishes_go_in_the_extra_body(tmp_path: Path) -> None:
    def use(client: OpenAI) -> None:
        wishes = {"mtor": {"device": "cuda", "max_price_out": 5}}
        answer = client.chat.completions.create(model="auto", messages=HELLO, extra_body=wishes)
        assert answer.model_extra is not None and answer.model_extra["mtor"]["cost_micro"] == 16

    async with gateway_world(tmp_path) as world:
        await with_client(world, use)
        wanted = world.answers.asked[0].requirements
        assert (wanted.device_kind, wanted.max_price_out) == ("cuda", 5)


ERRORS: list[tuple[ErrorCode, type[openai.APIStatusError], int]] = [
    (ErrorCode.CONTEXT_OVERFLOW, openai.BadRequestError, 400),
    (ErrorCode.NO_SUCH_MODEL, openai.NotFoundError, 404),
    (ErrorCode.QUOTA_EXCEEDED, openai.RateLimitError, 429),
    (ErrorCode.PAYMENT_REQUIRED, openai.APIStatusError, 402),
    (ErrorCode.ENGINE_FAILED, openai.InternalServerError, 502),
    (ErrorCode.OVERLOADED, openai.InternalServerError, 503),
    (ErrorCode.DEADLINE_EXCEEDED, openai.InternalServerError, 504),
]


@pytest.mark.parametrize("stream", [False, True])
async def test_errors_are_the_clients_own_classes(tmp_path: Path, stream: bool) -> None:
    async with gateway_world(tmp_path) as world:
        for code, kind, status in ERRORS:
            world.answers.script = failing(code, f"because of {code.name}")

            def use(client: OpenAI, code: ErrorCode = code, kind: Any = kind, status: int = status) -> None:
                with pytest.raises(kind) as failure:
                    client.chat.completions.create(model="auto", messages=HELLO, stream=stream)
                assert failure.value.status_code == status and f"because of {code.name}" in failure.value.message

            await with_client(world, use)


async def test_a_wrong_parameter_is_named(tmp_path: Path) -> None:
    def use(client: OpenAI) -> None:
        with pytest.raises(openai.BadRequestError) as failure:
            client.chat.completions.create(model="auto", messages=HELLO, temperature=3)
        assert failure.value.param == "temperature" and failure.value.type == "invalid_request_error"
        with pytest.raises(openai.BadRequestError, match="less than or equal to 8"):
            client.chat.completions.create(model="auto", messages=HELLO, n=9)
        with pytest.raises(openai.BadRequestError, match="different tokens"):
            client.chat.completions.create(model="auto", messages=HELLO, logit_bias={"5": 1})
        with pytest.raises(openai.NotFoundError, match="/v1/embeddings"):
            client.embeddings.create(model="auto", input="text")

    async with gateway_world(tmp_path) as world:
        await with_client(world, use)


async def test_a_stream_that_breaks_raises_after_its_text(tmp_path: Path) -> None:
    def use(client: OpenAI) -> None:
        said: list[str] = []
        with pytest.raises(openai.APIError, match="it vanished"):
            for chunk in client.chat.completions.create(model="auto", messages=HELLO, stream=True):
                said.append(chunk.choices[0].delta.content or "")
        assert "".join(said) == "Hello"

    async with gateway_world(tmp_path, failing(ErrorCode.WORKER_LOST, "it vanished", after=("Hel", "lo"))) as world:
        await with_client(world, use)


async def test_the_client_tries_again_when_told_to(tmp_path: Path) -> None:
    tries: list[int] = []

    async def second_time(question: Question, emit: Emit) -> None:
        tries.append(1)
        busy = len(tries) == 1
        await (failing(ErrorCode.OVERLOADED, retry_after_ms=1) if busy else saying("now"))(question, emit)

    def use(client: OpenAI) -> None:
        answer = client.with_options(max_retries=1).chat.completions.create(model="auto", messages=HELLO)
        assert answer.choices[0].message.content == "now"

    async with gateway_world(tmp_path, second_time) as world:
        await with_client(world, use)
    assert len(tries) == 2


async def test_keys(tmp_path: Path) -> None:
    key = ApiKeys(tmp_path).create("laptop")

    def refused(client: OpenAI) -> None:
        with pytest.raises(openai.AuthenticationError, match="mtor keys create"):
            client.chat.completions.create(model="auto", messages=HELLO)

    def accepted(client: OpenAI) -> None:
        assert client.chat.completions.create(model="auto", messages=HELLO).choices[0].message.content == "Hello"

    async with gateway_world(tmp_path, host="0.0.0.0") as world:
        await with_client(world, refused, "mtor-wrong")
        await with_client(world, accepted, key)


async def _endless(question: Question, emit: Emit) -> None:
    await emit(ROUTED)
    while True:
        await emit(Delta("more "))


async def test_closing_a_stream_early_cancels_the_query(tmp_path: Path) -> None:
    def use(client: OpenAI) -> None:
        with client.chat.completions.create(model="auto", messages=HELLO, stream=True) as stream:
            for _ in range(5):
                next(stream)

    async with gateway_world(tmp_path, _endless) as world:
        await with_client(world, use)
        await until(lambda: world.answers.cancelled == 1)


async def test_the_asynchronous_client(tmp_path: Path) -> None:
    async def echo(question: Question, emit: Emit) -> None:
        await saying("you said ", question.request.turns[-1].text)(question, emit)

    async def program(url: str) -> list[str]:
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=HANG_SECONDS) as client:

            async def ask(text: str) -> str:
                messages: Any = [{"role": "user", "content": text}]
                stream = await client.chat.completions.create(model="auto", messages=messages, stream=True)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            return await asyncio.gather(*(ask(str(number)) for number in range(20)))

    async with gateway_world(tmp_path, echo) as world:
        said = await trio.to_thread.run_sync(lambda: asyncio.run(program(world.url)))
    assert said == [f"you said {number}" for number in range(20)]


async def test_a_client_that_gives_up_waiting_cancels_its_query(tmp_path: Path) -> None:
    async def silent(question: Question, emit: Emit) -> None:
        await emit(ROUTED)
        await trio.sleep_forever()

    def use(client: OpenAI) -> None:
        with pytest.raises(openai.APITimeoutError):
            client.with_options(timeout=0.2).chat.completions.create(model="auto", messages=HELLO)

    async with gateway_world(tmp_path, silent) as world:
        await with_client(world, use)
        await until(lambda: world.answers.cancelled == 1)


# --- pictures and sounds -----------------------------------------------------------------------------------

PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (64).to_bytes(4, "big") * 2 + bytes(64)


async def test_pictures_out(tmp_path: Path) -> None:
    def use(client: OpenAI) -> None:
        made = client.images.generate(
            model="emoji-64", prompt="a red apple", n=2, size="256x256", extra_body={"seed": 7}
        )
        assert made.data is not None and [base64.b64decode(one.b64_json or "") for one in made.data] == [PNG, PNG]
        kinds = [
            event.type
            for event in client.images.generate(model="emoji-64", prompt="a red apple", stream=True, partial_images=2)
        ]
        assert kinds == ["image_generation.partial_image", "image_generation.completed"]

    script = events(ROUTED, Progressed(1, 2, b"preview"), Bytes("image/png", PNG), completed())
    async with gateway_world(tmp_path, script) as world:
        await with_client(world, use)
        assert {question.realm for question in world.answers.asked} == {IMAGINE}


async def test_pictures_in(tmp_path: Path) -> None:
    def use(client: OpenAI) -> None:
        url = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
        shown: Any = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": url}}]
        answer = client.chat.completions.create(model="auto", messages=[{"role": "user", "content": shown}])
        assert answer.choices[0].message.content == "Paris"

    async with gateway_world(tmp_path, saying("Paris")) as world:
        await with_client(world, use)
        assert world.answers.asked[0].realm == VISION and world.answers.asked[0].inputs == (PNG,)


async def test_speech_and_back(tmp_path: Path) -> None:
    def speak(client: OpenAI) -> None:
        spoken = client.audio.speech.create(model="auto", voice="anna", input="Hello.", response_format="wav")
        (tmp_path / "hello.wav").write_bytes(spoken.content)
        assert (tmp_path / "hello.wav").read_bytes()[44:] == bytes(4_800)

    def listen(client: OpenAI) -> None:
        with (tmp_path / "hello.wav").open("rb") as sound:
            assert client.audio.transcriptions.create(model="whisper-1", file=sound).text == "Hello."
        with (tmp_path / "hello.wav").open("rb") as sound:
            heard = client.audio.transcriptions.create(model="auto", file=sound, stream=True)
            assert [event.type for event in heard] == ["transcript.text.delta", "transcript.text.done"]

    async with gateway_world(
        tmp_path, events(ROUTED, Bytes("audio/pcm;rate=24000", bytes(4_800)), completed())
    ) as world:
        await with_client(world, speak)
        world.answers.script = events(ROUTED, Delta("Hello."), completed())
        await with_client(world, listen)
        assert {question.realm for question in world.answers.asked} == {SPEECH}


async def test_speech_in_the_formats_that_clients_know(tmp_path: Path) -> None:
    def use(client: OpenAI) -> None:
        usual = client.audio.speech.create(model="auto", voice="anna", input="Hello.")
        assert usual.response.headers["content-type"] == "audio/mpeg" and len(hear(usual.content)) > 16_000 * 0.9
        for kind, begins in (("opus", b"OggS"), ("flac", b"fLaC"), ("wav", b"RIFF"), ("mp3", b"\xff")):
            asked: Any = {"model": "auto", "voice": "anna", "input": "Hello.", "response_format": kind}
            with client.audio.speech.with_streaming_response.create(**asked) as streamed:
                assert b"".join(streamed.iter_bytes()).startswith(begins)
        with pytest.raises(openai.BadRequestError, match="response_format"):
            client.audio.speech.create(model="auto", voice="anna", input="Hello.", response_format="aac")

    script = events(ROUTED, Bytes("audio/pcm;rate=24000", bytes(48_000)), completed())
    async with gateway_world(tmp_path, script) as world:
        await with_client(world, use)


# --- the other two ways of asking --------------------------------------------------------------------------


async def test_completions(tmp_path: Path) -> None:
    def use(client: OpenAI) -> None:
        whole = client.completions.create(model="auto", prompt=["a", "b"], max_tokens=5)
        assert [choice.text for choice in whole.choices] == ["Paris", "Paris"]
        wanted: Any = {"include_usage": True}
        *chunks, last = client.completions.create(model="auto", prompt="a", stream=True, stream_options=wanted)
        assert "".join(chunk.choices[0].text for chunk in chunks) == "Paris" and last.usage is not None
        with pytest.raises(openai.BadRequestError) as failure:
            client.completions.create(model="auto", prompt="a", suffix="b")
        assert failure.value.param == "suffix"

    async with gateway_world(tmp_path, saying("Par", "is")) as world:
        await with_client(world, use)


async def test_responses(tmp_path: Path) -> None:
    def use(client: OpenAI) -> None:
        whole = client.responses.create(model="auto", input="hello", instructions="be brief")
        assert whole.output_text == "Paris" and whole.status == "completed" and whole.store is False
        assert whole.usage is not None and whole.usage.total_tokens == 10
        with client.responses.stream(model="auto", input="hello") as stream:
            texts = [event.delta for event in stream if event.type == "response.output_text.delta"]
            assert stream.get_final_response().output_text == "Paris" == "".join(texts)
        again: Any = [{"role": "user", "content": "hello"}, *whole.output, {"role": "user", "content": "more"}]
        assert client.responses.create(model="auto", input=again).output_text == "Paris"
        with pytest.raises(openai.BadRequestError, match="nothing is kept here"):
            client.responses.create(model="auto", input="more", previous_response_id=whole.id)
        with pytest.raises(openai.NotFoundError, match="nothing is kept here"):
            client.responses.retrieve(whole.id)

    async with gateway_world(tmp_path, saying("Par", "is")) as world:
        await with_client(world, use)


async def test_a_response_that_calls_a_tool(tmp_path: Path) -> None:
    def use(client: OpenAI) -> None:
        (call,) = client.responses.create(model="auto", input="hello").output
        assert call.type == "function_call" and call.name == "weather" and call.arguments == '{"city": "Paris"}'
        with client.responses.stream(model="auto", input="hello") as stream:
            said = [event.delta for event in stream if event.type == "response.function_call_arguments.delta"]
            assert "".join(said) == call.arguments and stream.get_final_response().output[0].type == "function_call"

    script = events(ROUTED, ToolCalled("call_1", "weather", '{"city": "Paris"}'), completed("tool_calls"))
    async with gateway_world(tmp_path, script) as world:
        await with_client(world, use)


async def test_a_response_that_breaks_says_so_in_its_last_event(tmp_path: Path) -> None:
    def use(client: OpenAI) -> None:
        *_, last = client.responses.create(model="auto", input="hello", stream=True)
        assert last.type == "response.failed" and last.response.error is not None
        assert last.response.error.message == "it vanished" and last.response.output_text == "Par"

    async with gateway_world(tmp_path, failing(ErrorCode.WORKER_LOST, "it vanished", after=("Par",))) as world:
        await with_client(world, use)


async def test_who_asks_too_often_is_told_when_to_come_back(tmp_path: Path) -> None:
    def use(client: OpenAI) -> None:
        asks: list[Callable[[], Any]] = [
            lambda: client.chat.completions.create(model="auto", messages=HELLO),
            lambda: client.completions.create(model="auto", prompt="hello"),
            lambda: client.responses.create(model="auto", input="hello", stream=True),
        ]
        for ask in asks:
            with pytest.raises(openai.RateLimitError) as failure:
                ask()
            assert failure.value.response.headers["retry-after"] == "7" and failure.value.code == "quota_exceeded"

    async with gateway_world(tmp_path, failing(ErrorCode.QUOTA_EXCEEDED, retry_after_ms=6_500)) as world:
        await with_client(world, use)
