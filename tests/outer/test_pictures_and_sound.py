"""Pictures, transcripts and speech of outer servers; the WebUI's progress and interrupt; RENTAHAL's workers."""

from __future__ import annotations

import struct
from contextlib import aclosing
from dataclasses import replace

import pytest
import trio

from node.engines.outer.files import png_size, read_wave, sound_tenths
from node.engines.port import Data, EngineError, Finished, Piece, Prompted, Step
from node.engines.requests import chat_request
from protocol.errors import ErrorCode
from protocol.messages import ChatRequest, ImagineRequest, Media, SpeakRequest, TranscribeRequest, VisionRequest
from protocol.params import MAX_CHUNK_BYTES
from tests.outer.servers import TENTH, png, wav
from tests.outer.world import RunningServer, answer, data_of, model_of, running, text_of

PICTURE = ImagineRequest("a red barn", "blur", 64, 48, 20, 7_500, 11, 0)
SOUND = wav(25)
OGG = b"OggS" + bytes(16_000)


def transcribe(sound: bytes = SOUND, timestamps: int = 0, translate: int = 0) -> TranscribeRequest:
    return TranscribeRequest((Media("audio", len(sound), 0),), "de", "Müller", 200, timestamps, translate)


def speak(text: str = "seven!!", speed: int = 1_250) -> SpeakRequest:
    return SpeakRequest(text, "", speed)


# --- OpenAI ---------------------------------------------------------------------------------------------


async def test_a_picture(server: RunningServer) -> None:
    async with running(model_of(server, realm="$IMAGINE")) as engine:
        events = await answer(engine, PICTURE)
    assert data_of(events) == png(64, 48)
    assert events[0] == Prompted(0) and events[-1] == Finished("stop", 0, 1)  # 64 * 48 * 20 / 65,536
    body = await server.body("/v1/images/generations")
    assert body["size"] == "64x48" and body["response_format"] == "b64_json" and body["seed"] == 11
    assert body["negative_prompt"] == "blur" and body["guidance"] == 7.5


async def test_a_large_picture_comes_in_parts_that_are_owed_together(server: RunningServer) -> None:
    async with running(model_of(server, realm="$IMAGINE", options={"steps": "50"})) as engine:
        events = await answer(engine, replace(PICTURE, width=1_999, height=499, steps=0))
    parts = [event for event in events if isinstance(event, Data)]
    assert all(len(part.data) <= MAX_CHUNK_BYTES for part in parts)
    assert {part.units_out for part in parts[:-1]} <= {0} and parts[-1].units_out == -(-1_999 * 499 * 50 // 65_536)
    assert data_of(events) == png(1_999, 499)


@pytest.mark.parametrize("fault", ["no picture", "giant picture", "html", "500"])
@pytest.mark.parametrize("engine", ["openai", "a1111"])
async def test_what_is_no_picture_is_no_answer(server: RunningServer, fault: str, engine: str) -> None:
    model = "tiny-llama" if engine == "openai" else "dream"
    async with running(model_of(server, engine, model, "$IMAGINE", first_pause_seconds=0.01)) as made:
        await server.fault(fault)
        with pytest.raises(EngineError) as failed:
            await answer(made, replace(PICTURE, steps=1))
    assert failed.value.code is ErrorCode.ENGINE_FAILED


async def test_a_transcript(server: RunningServer) -> None:
    async with running(model_of(server, realm="$SPEECH", options={"serves": "transcribe"})) as engine:
        events = await answer(engine, transcribe(), inputs=(SOUND,))
    assert text_of(events) == f"heard {len(SOUND)} bytes"
    assert events[0] == Prompted(25) and events[-1] == Finished("stop", 25, 3)
    fields = await server.body("/v1/audio/transcriptions")
    assert (fields["language"], fields["prompt"], fields["temperature"]) == ("de", "Müller", "0.2")


async def test_a_sound_that_is_no_wav_is_as_long_as_the_server_says(server: RunningServer) -> None:
    async with running(model_of(server, realm="$SPEECH", options={"serves": "transcribe"})) as engine:
        assert (await answer(engine, transcribe(OGG), inputs=(OGG,)))[0] == Prompted(613)
        with pytest.raises(EngineError) as refused:
            await answer(engine, transcribe(b"hello"), inputs=(b"hello",))
    assert refused.value.code is ErrorCode.INVALID_REQUEST


async def test_a_transcript_with_times_is_webvtt(server: RunningServer) -> None:
    async with running(model_of(server, realm="$SPEECH", options={"serves": "transcribe"})) as engine:
        events = await answer(engine, transcribe(timestamps=1, translate=1), inputs=(SOUND,))
        text = text_of(events)
        await server.fault("no verbose")
        with pytest.raises(EngineError) as refused:
            await answer(engine, transcribe(timestamps=1), inputs=(SOUND,))
    assert text == "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\nheard\n\n00:00:01.500 --> 00:01:01.250\na -> b"
    assert "language" not in await server.body("/v1/audio/translations")
    assert refused.value.code is ErrorCode.UNSUPPORTED_FEATURE


async def test_a_server_without_verbose_answers_is_asked_plainly(server: RunningServer) -> None:
    await server.fault("no verbose")
    async with running(model_of(server, realm="$SPEECH", options={"serves": "transcribe"})) as engine:
        for _ in range(2):
            assert text_of(await answer(engine, transcribe(OGG), inputs=(OGG,))) != ""
    forms = [each["body"]["response_format"] for each in (await server.seen())["seen"] if "body" in each]
    assert forms == ["verbose_json", "json", "json"]  # the second time it is known


async def test_speech_comes_in_the_pace_of_the_grants(server: RunningServer) -> None:
    async with running(model_of(server, realm="$SPEECH", options={"serves": "speak", "voice": "nova"})) as engine:
        async with engine.generate(speak(), "") as generation:
            seen: list[object] = []
            async with aclosing(generation.events()) as events:
                await generation.grant(3)
                with trio.move_on_after(0.3):
                    async for event in events:
                        seen.append(event)
            parts = [event for event in seen if isinstance(event, Data)]
            assert sum(len(part.data) for part in parts) == 3 * TENTH and parts[-1].units_out == 3
        events_ = await answer(engine, speak())
    assert data_of(events_) == wav(7)[44:] and events_[-1] == Finished("stop", 7, 7)
    assert {event.media_type for event in events_ if isinstance(event, Data)} == {"audio/pcm;rate=24000"}
    body = await server.body("/v1/audio/speech")
    assert (body["voice"], body["speed"], body["response_format"]) == ("nova", 1.25, "wav")


@pytest.mark.parametrize("fault", ["stereo", "mp3", "html", "no json"])
async def test_sound_of_another_form_is_refused(server: RunningServer, fault: str) -> None:
    await server.fault(fault)
    async with running(model_of(server, realm="$SPEECH", options={"serves": "speak"})) as engine:
        with pytest.raises(EngineError) as failed:
            await answer(engine, speak())
    assert failed.value.code is ErrorCode.ENGINE_FAILED


async def test_sound_without_a_header_is_taken_where_its_type_says_so(server: RunningServer) -> None:
    await server.fault("pcm")
    async with running(model_of(server, realm="$SPEECH", options={"serves": "speak"})) as engine:
        assert len(data_of(await answer(engine, speak()))) == 3 * TENTH


# --- Stable Diffusion WebUI -----------------------------------------------------------------------------


async def test_the_webui_paints_and_tells_how_far_it_is(server: RunningServer) -> None:
    async with running(model_of(server, "a1111", "dream", "$IMAGINE", options={"sampler": "Euler a"})) as engine:
        events = await answer(engine, replace(PICTURE, steps=14, previews=1))
    steps = [event for event in events if isinstance(event, Step)]
    assert events[0] == Prompted(0) and steps and all(0 < step.done <= step.total == 14 for step in steps)
    assert steps[0].preview == png(16, 16)
    assert data_of(events) == png(64, 48)
    body = await server.body("/sdapi/v1/txt2img")
    assert (body["cfg_scale"], body["seed"], body["sampler_name"]) == (7.5, 11, "Euler a")
    assert body["override_settings"]["sd_model_checkpoint"] == "dream.safetensors [0123456789]"


async def test_what_is_left_open_is_the_operators_choice(server: RunningServer) -> None:
    options = {"steps": "2", "side": "32", "guidance": "3.5"}
    async with running(model_of(server, "a1111", "dream", "$IMAGINE", options=options)) as engine:
        events = await answer(engine, ImagineRequest("a barn", "", 0, 0, 0, 0, 0, 0))
    body = await server.body("/sdapi/v1/txt2img")
    asked = [body[name] for name in ("width", "height", "steps", "cfg_scale", "seed")]
    assert asked == [32, 32, 2, 3.5, -1] and png_size(data_of(events)) == (32, 32)


async def test_a_cancel_interrupts_the_webui(server: RunningServer) -> None:
    async with running(model_of(server, "a1111", "dream", "$IMAGINE")) as engine:
        async with (
            engine.generate(replace(PICTURE, steps=100), "") as generation,
            aclosing(generation.events()) as events,
        ):
            async for event in events:
                if isinstance(event, Step):
                    await generation.cancel()
                last = event
        assert last == Finished("cancelled", 0, 0)
    assert (await server.seen())["interrupted"]


async def test_a_refusal_interrupts_nobody_elses_picture(server: RunningServer) -> None:
    async with running(model_of(server, "a1111", "dream", "$IMAGINE")) as engine:
        await server.fault("400")
        with pytest.raises(EngineError):
            await answer(engine, PICTURE)
    assert not (await server.seen())["interrupted"]


# --- RENTAHAL -------------------------------------------------------------------------------------------


async def test_a_rentahal_worker_answers_behind_its_redirect(server: RunningServer) -> None:
    async with running(model_of(server, "predict", "2070sLABCHAT")) as engine:
        events = await answer(engine, chat_request("who was first on the moon?"))
    assert text_of(events) == "You said: who was first on the moon?"
    assert events[-1] == Finished("stop", 7, 9)
    body = await server.body("/predict/")
    assert body == {
        "prompt": "who was first on the moon?",
        "type": "chat",
        "model_type": "worker_node",
        "model_name": "2070sLABCHAT",
    }


async def test_its_answer_is_cut_where_the_asker_wanted_it(server: RunningServer) -> None:
    async with running(model_of(server, "predict", "m")) as engine:
        cut = await answer(engine, chat_request("abcdefghijklmnop", max_tokens=3))
        stopped = await answer(engine, chat_request("abcdefghijklmnop", stop=("def",)))
    assert text_of(cut) == "You said: ab" and cut[-1] == Finished("length", 4, 3)
    assert text_of(stopped) == "You said: abc" and isinstance(stopped[-1], Finished) and stopped[-1].finish == "stop"


async def test_its_answer_leaves_as_it_is_granted(server: RunningServer) -> None:
    async with (
        running(model_of(server, "predict", "m")) as engine,
        engine.generate(chat_request("x" * 400), "") as made,
    ):
        await made.grant(10)
        seen = []
        async with aclosing(made.events()) as events:
            with trio.move_on_after(0.2):
                async for event in events:
                    seen.append(event)
    assert [event.units_out for event in seen if isinstance(event, Piece)][-1] == 10


async def test_a_conversation_becomes_one_prompt(server: RunningServer) -> None:
    async with running(model_of(server, "predict", "m")) as engine:
        await answer(engine, chat_request("hi", "hello", "who?", system="be brief"))
    prompt = (await server.body("/predict/"))["prompt"]
    assert prompt == "System: be brief\n\nUser: hi\n\nAssistant: hello\n\nUser: who?\n\nAssistant:"


async def test_it_sees_paints_hears_and_speaks(server: RunningServer) -> None:
    chat = chat_request("what is it?")
    fields = {name: getattr(chat, name) for name in ChatRequest.__dataclass_fields__}
    picture = png(9, 9)
    seeing = VisionRequest(**fields, media=(Media("image", len(picture), 0),))
    async with running(
        model_of(server, "predict", "m", options={"serves": "vision, imagine transcribe speak"})
    ) as engine:
        assert text_of(await answer(engine, seeing, inputs=(picture,))).startswith("A picture of")
        assert png_size(data_of(await answer(engine, PICTURE))) == (32, 32)
        heard = await answer(engine, transcribe(), inputs=(SOUND,))
        assert text_of(heard) == "hello from afar" and heard[-1] == Finished("stop", 25, 3)
        spoken = await answer(engine, speak())
        assert data_of(spoken) == wav(7)[44:] and spoken[-1] == Finished("stop", 7, 7)
        with pytest.raises(EngineError) as refused:
            await answer(engine, chat_request("x"), prefix="I began")
    assert refused.value.code is ErrorCode.UNSUPPORTED_FEATURE


# --- what files say of themselves -----------------------------------------------------------------------


def test_a_wav_that_claims_a_gigabyte_is_as_long_as_its_bytes() -> None:
    sound = bytearray(wav(12))
    sound[40:44] = struct.pack("<I", 1_000_000_000)
    assert sound_tenths(bytes(sound)) == 12
    assert read_wave(bytes(sound[:40])) is None and sound_tenths(b"RIFF\0\0\0\0WAVE") == 1


def test_a_sound_of_unknown_form_is_guessed_from_its_bytes() -> None:
    assert sound_tenths(OGG) == 11


def test_half_a_picture_is_none() -> None:
    whole = png(20, 10)
    assert png_size(whole) == (20, 10)
    assert [png_size(whole[:end]) for end in range(len(whole))] == [None] * len(whole)
