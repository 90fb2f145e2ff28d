"""Pictures and sounds over HTTP: what clients may send, what they get, and what a broken answer looks like."""

import base64
import http.client
import io
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

from node.answers import AnswerEvent, Bytes, Delta, Failed, Progressed, Question, Routed
from node.engines.sound import RATE, hear
from node.gateway.captions import cues, subrip
from protocol.errors import ErrorCode
from protocol.ids import IMAGINE, SPEECH, VISION
from protocol.messages import ImagineRequest, SpeakRequest, TranscribeRequest, VisionRequest
from protocol.params import MAX_INPUT_BYTES, MAX_INTEGER
from tests.node.gateway_world import (
    MODEL,
    ROUTED,
    WORKER,
    Emit,
    Reply,
    Script,
    World,
    completed,
    events,
    gateway_world,
    until,
)

PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x40\0\0\0\x40" + bytes(range(256))
IMAGES, SPEAK, TRANSCRIBE = "/v1/images/generations", "/v1/audio/speech", "/v1/audio/transcriptions"
VTT = "WEBVTT\n\n00:00.000 --> 00:01.500\nHello there.\n\n00:01.500 --> 00:03.000\nSecond\nline.\n"


def painting(*more: AnswerEvent) -> Script:
    return events(ROUTED, *more, Bytes("image/png", PNG[:100]), Bytes("image/png", PNG[100:]), completed())


def shown(data: bytes = PNG, kind: str = "image/png") -> list[dict[str, Any]]:
    """The content of a message that shows a picture."""
    url = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    return [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": url}}]


async def form(world: World, sound: bytes | None, **fields: str) -> Reply:
    parts = [
        f'--B\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    if sound is not None:
        head = b'--B\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
        parts.append(head + sound + b"\r\n")
    headers = {"Content-Type": "multipart/form-data; boundary=B"}
    return await world.ask("POST", TRANSCRIBE, b"".join(parts) + b"--B--\r\n", headers)


# --- pictures in -----------------------------------------------------------------------------------------


async def test_a_conversation_with_pictures_becomes_a_vision_query(tmp_path: Path) -> None:
    async with gateway_world(tmp_path) as world:
        reply = await world.chat(messages=[{"role": "user", "content": shown()}])
        assert reply.status == 200
        question = world.answers.asked[0]
        assert question.realm == VISION and question.inputs == (PNG,)
        assert isinstance(question.request, VisionRequest)
        assert question.request.turns[0].text == "What is it?" and question.request.media[0].size == len(PNG)


@pytest.mark.parametrize(
    ("url", "status"),
    [
        ("https://example.org/cat.png", 400),
        ("file:///etc/passwd", 400),
        ("data:image/png;base64,@@@", 400),
        ("data:image/png;base64,", 400),
        ("", 400),
    ],
)
async def test_pictures_are_sent_and_never_fetched(tmp_path: Path, url: str, status: int) -> None:
    async with gateway_world(tmp_path) as world:
        content = [{"type": "text", "text": "?"}, {"type": "image_url", "image_url": {"url": url}}]
        reply = await world.chat(messages=[{"role": "user", "content": content}])
        assert reply.status == status and reply.error["param"] == "messages.0.content.1"
        assert not world.answers.asked


async def test_too_large_and_too_many_pictures_are_refused(tmp_path: Path) -> None:
    async with gateway_world(tmp_path, max_body_bytes=40 * 2**20) as world:
        large = await world.chat(messages=[{"role": "user", "content": shown(bytes(MAX_INPUT_BYTES + 1))}])
        assert large.status == 413 and large.error["code"] == "picture_too_large"
        many = await world.chat(messages=[{"role": "user", "content": shown() * 9}])
        assert many.status == 400 and "at most 8" in many.error["message"]


async def test_a_realm_of_another_route_is_named(tmp_path: Path) -> None:
    async with gateway_world(tmp_path) as world:
        reply = await world.chat(model="$IMAGINE")
        assert reply.status == 400 and IMAGES in reply.error["message"]


# --- pictures out ----------------------------------------------------------------------------------------


async def test_a_picture_is_whole_and_tells_its_cost(tmp_path: Path) -> None:
    async with gateway_world(tmp_path, painting()) as world:
        asked = {"prompt": "a cat", "size": "256x128", "steps": 9, "guidance": 3.5, "seed": 0, "negative_prompt": "dog"}
        reply = await world.ask("POST", IMAGES, asked)
        assert base64.b64decode(reply.json["data"][0]["b64_json"]) == PNG
        assert reply.json["data"][0]["mtor"]["cost_micro"] == 16 and "x-mtor-query" in reply.headers
        question = world.answers.asked[0]
        assert question.realm == IMAGINE
        assert question.request == ImagineRequest("a cat", "dog", 256, 128, 9, 3_500, MAX_INTEGER, 0)


async def test_a_picture_that_waits_says_where_it_stands(tmp_path: Path) -> None:
    step = Progressed(1, 2, b"")
    script = events(Routed(WORKER, MODEL, 1, 2, 4_000), ROUTED, step, ROUTED, Bytes("image/png", PNG), completed())
    async with gateway_world(tmp_path, script) as world:
        reply = await world.ask("POST", IMAGES, {"prompt": "a cat", "stream": True})
        waits = [chunk["mtor"] for chunk in reply.chunks if chunk["type"] == "image_generation.waiting"]
        assert [(each["queue_position"], each["wait_ms"]) for each in waits] == [(2, 4_000), (0, 0)]


async def test_several_pictures_are_queries_with_seeds_that_follow(tmp_path: Path) -> None:
    async with gateway_world(tmp_path, painting()) as world:
        reply = await world.ask("POST", IMAGES, {"prompt": "a cat", "n": 3, "seed": 5})
        assert len(reply.json["data"]) == 3
        seeds = {question.request.seed for question in world.answers.asked}  # type: ignore[union-attr]
        assert seeds == {5, 6, 7}


async def test_previews_come_as_events(tmp_path: Path) -> None:
    script = painting(Progressed(1, 4, b""), Progressed(2, 4, b"small"))
    async with gateway_world(tmp_path, script) as world:
        reply = await world.ask("POST", IMAGES, {"prompt": "a cat", "stream": True})
        kinds = [chunk["type"].rpartition(".")[2] for chunk in reply.chunks]
        assert kinds == ["progress", "partial_image", "completed"]
        assert base64.b64decode(reply.chunks[1]["b64_json"]) == b"small"
        assert base64.b64decode(reply.chunks[2]["b64_json"]) == PNG


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": "x" * 4_097}, "prompt"),
        ({"size": "50000x50000"}, "size"),
        ({"size": "0x0"}, "size"),
        ({"size": "large"}, "size"),
        ({"n": 11}, "n"),
        ({"n": 2, "stream": True}, "n"),
        ({"steps": 151}, "steps"),
        ({"response_format": "url"}, "response_format"),
        ({"output_format": "webp"}, "output_format"),
        ({"mtor": {"min_vram": 3}}, "mtor.min_vram"),
    ],
)
async def test_wrong_wishes_are_refused_by_name(tmp_path: Path, fields: dict[str, Any], param: str) -> None:
    async with gateway_world(tmp_path) as world:
        body = {"prompt": "a cat"} | fields
        reply = await world.ask("POST", IMAGES, body)
        assert reply.status == 400 and reply.error["param"] == param, reply.body


async def test_one_picture_that_fails_fails_the_request(tmp_path: Path) -> None:
    async with gateway_world(tmp_path, events(Failed(ErrorCode.OVERLOADED, "full", 2_000))) as world:
        reply = await world.ask("POST", IMAGES, {"prompt": "a cat", "n": 2})
        assert reply.status == 503 and reply.error["code"] == "overloaded" and reply.headers["retry-after"] == "2"
        streamed = await world.ask("POST", IMAGES, {"prompt": "a cat", "stream": True})
        assert streamed.status == 503


# --- speech ----------------------------------------------------------------------------------------------

TONE = bytes(range(256)) * 20


async def test_speech_streams_as_wav(tmp_path: Path) -> None:
    script = events(ROUTED, Bytes("audio/pcm;rate=24000", TONE), Bytes("audio/pcm;rate=24000", TONE), completed())
    async with gateway_world(tmp_path, script) as world:
        asked = {"input": "Hello.", "voice": "anna", "speed": 1.5, "model": "tts-1", "response_format": "wav"}
        reply = await world.ask("POST", SPEAK, asked)
        assert reply.headers["content-type"] == "audio/wav"
        assert reply.body[:4] == b"RIFF" and reply.body[44:] == TONE + TONE
        with wave.open(io.BytesIO(reply.body)) as sound:
            assert (sound.getframerate(), sound.getnchannels(), sound.getsampwidth()) == (24_000, 1, 2)
        question = world.answers.asked[0]
        assert question.realm == SPEECH and question.request == SpeakRequest("Hello.", "anna", 1_500)
        raw = await world.ask("POST", SPEAK, {"input": "Hello.", "response_format": "pcm"})
        assert raw.body == TONE + TONE
        in_events = await world.ask("POST", SPEAK, asked | {"stream_format": "sse"})
        sound = b"".join(base64.b64decode(chunk.get("audio", "")) for chunk in in_events.chunks)
        assert sound == reply.body and in_events.chunks[-1]["type"] == "speech.audio.done"
        assert in_events.chunks[-1]["mtor"]["cost_micro"] == 16


def sine(rate: int, seconds: float) -> bytes:
    """A tone of 440 Hz, as a worker sends it."""
    samples = np.sin(np.arange(int(rate * seconds)) * 2 * np.pi * 440 / rate) * 16_000
    return samples.astype("<i2").tobytes()


def loudest(samples: Any, rate: int) -> float:
    """The frequency that a sound has most of."""
    return float(np.argmax(np.abs(np.fft.rfft(samples)))) * rate / len(samples)


@pytest.mark.parametrize("rate", [24_000, 22_050, 20_000])
@pytest.mark.parametrize(("wanted", "kind"), [("mp3", "mpeg"), ("opus", "ogg"), ("flac", "flac"), (None, "mpeg")])
async def test_speech_is_packed_as_it_is_made(tmp_path: Path, wanted: str | None, kind: str, rate: int) -> None:
    tone = sine(rate, 2.0)
    parts = [tone[start : start + 9_001] for start in range(0, len(tone), 9_001)]  # cut within samples, too
    said = [Bytes(f"audio/pcm;rate={rate}", part) for part in parts]
    asked = {"input": "Hello."} | ({"response_format": wanted} if wanted else {})
    async with gateway_world(tmp_path, events(ROUTED, *said, completed())) as world:
        reply = await world.ask("POST", SPEAK, asked)
        assert reply.headers["content-type"] == f"audio/{kind}"
        samples = hear(reply.body)
        assert abs(len(samples) / RATE - 2.0) < 0.1 and abs(loudest(samples, RATE) - 440) < 2
        in_events = await world.ask("POST", SPEAK, asked | {"stream_format": "sse"})
        streamed = b"".join(base64.b64decode(chunk.get("audio", "")) for chunk in in_events.chunks)
        assert len(streamed) == len(reply.body) and (len(in_events.chunks) > 2 or wanted == "flac")


async def test_packed_sound_is_sent_before_all_of_it_is_made(tmp_path: Path) -> None:
    heard = trio.Event()

    async def halves(question: Question, emit: Emit) -> None:
        await emit(ROUTED)
        await emit(Bytes("audio/pcm;rate=24000", sine(24_000, 3.0)))
        await heard.wait()
        await emit(completed())

    async with gateway_world(tmp_path, halves) as world:
        client = await trio.open_tcp_stream("127.0.0.1", world.port)
        await client.send_all(_posted(SPEAK, b'{"input": "Hello."}'))
        received = b""
        with trio.fail_after(30):
            while len(received) < 4_000:
                received += await client.receive_some()
        heard.set()
        await client.aclose()
    assert b"audio/mpeg" in received


async def test_a_sound_that_breaks_off_does_not_look_whole(tmp_path: Path) -> None:
    broken = events(ROUTED, Bytes("audio/pcm;rate=24000", TONE), Failed(ErrorCode.WORKER_LOST, "gone"))
    async with gateway_world(tmp_path, broken) as world:
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            await world.ask("POST", SPEAK, {"input": "Hello."})
        world.answers.script = events(ROUTED, Failed(ErrorCode.WORKER_LOST, "gone"))
        assert (await world.ask("POST", SPEAK, {"input": "Hello."})).status == 502
        world.answers.script = events(ROUTED, Bytes("text/html", b"<p>"), completed())
        assert (await world.ask("POST", SPEAK, {"input": "Hello."})).status == 502


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": " "}, "input"),
        ({"input": "x" * 40_000}, "input"),
        ({"voice": "v" * 129}, "voice"),
        ({"speed": 9}, "speed"),
        ({"response_format": "aac"}, "response_format"),
    ],
)
async def test_wrong_speech_is_refused_by_name(tmp_path: Path, fields: dict[str, Any], param: str) -> None:
    async with gateway_world(tmp_path) as world:
        reply = await world.ask("POST", SPEAK, {"input": "Hello."} | fields)
        assert reply.status == 400 and reply.error["param"] == param


# --- transcripts -----------------------------------------------------------------------------------------


async def test_a_sound_is_transcribed(tmp_path: Path) -> None:
    async with gateway_world(tmp_path, events(ROUTED, Delta(" Hello"), Delta(" there."), completed())) as world:
        reply = await form(world, b"RIFFsound", model="whisper-1", language="EN", prompt="names", temperature="0.2")
        assert reply.json["text"] == "Hello there."
        question = world.answers.asked[0]
        assert isinstance(question.request, TranscribeRequest) and question.inputs == (b"RIFFsound",)
        assert (question.request.language, question.request.prompt, question.request.temperature) == (
            "en",
            "names",
            200,
        )
        assert question.requirements.model == "whisper-1"
        assert (await form(world, b"x", response_format="text")).body == b"Hello there.\n"
        streamed = await form(world, b"x", stream="true")
        assert [chunk["type"] for chunk in streamed.chunks] == ["transcript.text.delta"] * 2 + ["transcript.text.done"]


async def test_times_come_as_captions(tmp_path: Path) -> None:
    async with gateway_world(tmp_path, events(ROUTED, Delta(VTT), completed())) as world:
        assert (await form(world, b"x", response_format="vtt")).body.decode() == VTT
        srt = (await form(world, b"x", response_format="srt")).body.decode()
        assert srt.startswith("1\n00:00:00,000 --> 00:00:01,500\nHello there.\n")
        verbose = (await form(world, b"x", response_format="verbose_json")).json
        assert verbose["text"] == "Hello there. Second line."
        assert [segment["end"] for segment in verbose["segments"]] == [1.5, 3.0]
        assert all(question.request.timestamps for question in world.answers.asked)  # type: ignore[union-attr]


async def test_forms_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    async with gateway_world(tmp_path) as world:
        assert (await form(world, None)).error["param"] == "file"
        assert (await form(world, b"x", response_format="html")).error["param"] == "response_format"
        assert (await form(world, b"x", temperature="warm")).error["param"] == "temperature"
        assert (await form(world, b"x", language="../..")).error["param"] == "language"
        assert (await form(world, b"x", mtor='{"min_vram": 1}')).error["param"] == "min_vram"
        assert (await form(world, bytes(MAX_INPUT_BYTES + 1))).status == 413
        for headers, body in (({}, b"x"), ({"Content-Type": "multipart/form-data"}, b"x")):
            assert (await world.ask("POST", TRANSCRIBE, body, headers)).status == 400
        broken = {"Content-Type": "multipart/form-data; boundary=B"}
        for body in (
            b"--C\r\n\r\n",
            b"--B\r\nno header",
            b'--B\r\nContent-Disposition: form-data; name="file"\r\n\r\nhalf',
        ):
            assert (await world.ask("POST", TRANSCRIBE, body, broken)).status == 400
        assert not world.answers.asked


def test_captions_of_a_stranger_cost_nothing() -> None:
    assert cues("") == [] and cues("WEBVTT\n\nno time\n\n99:99.000 --> x\n") == []
    assert subrip(VTT.replace("00:00.000", "01:02:03.004")).startswith("1\n01:02:03,004 -->")


# --- leaving ---------------------------------------------------------------------------------------------


async def _silent(question: Question, emit: Emit) -> None:
    await emit(ROUTED)
    await trio.sleep_forever()


async def _begun(question: Question, emit: Emit) -> None:
    """A sound that has begun and a picture that is being painted."""
    await emit(ROUTED)
    while True:
        await emit(
            Bytes("audio/pcm;rate=24000", TONE) if isinstance(question.request, SpeakRequest) else Progressed(1, 3, PNG)
        )
        await trio.sleep(0.01)


def _posted(path: str, body: bytes, kind: str = "application/json") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


FORM = b'--B\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\nx\r\n--B--\r\n'
ASKED = {
    "picture": _posted("/v1/images/generations", b'{"prompt": "a cat"}'),
    "painting": _posted("/v1/images/generations", b'{"prompt": "a cat", "stream": true, "partial_images": 1}'),
    "sound": _posted("/v1/audio/speech", b'{"input": "Hello.", "response_format": "pcm"}'),
    "sound-events": _posted("/v1/audio/speech", b'{"input": "Hello.", "stream_format": "sse"}'),
    "transcript": _posted(TRANSCRIBE, FORM, "multipart/form-data; boundary=B"),
}


@pytest.mark.parametrize("script", [_silent, _begun])
@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
async def test_a_client_that_leaves_cancels_what_is_made_for_it(tmp_path: Path, asked: bytes, script: Script) -> None:
    async with gateway_world(tmp_path, script) as world:
        client = await trio.open_tcp_stream("127.0.0.1", world.port)
        await client.send_all(asked)
        await until(lambda: world.answers.emitted > 0)
        await client.aclose()
        await until(lambda: world.answers.cancelled == 1)
        text = ""
        while 'mtor_running_queries{side="asked"} 0.0' not in text:
            text = (await world.ask("GET", "/metrics")).body.decode()
