"""`/v1/audio/speech`, `/v1/audio/transcriptions` and `/v1/audio/translations`.

Rule: OpenAI's shapes. Sound goes out as it is made, in a WAV whose header says that its length is not known yet; the
end of a stream that broke off is a dropped connection, never a quiet end. A sound that comes in is bounded before
anything looks at it.
"""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from aiohttp import BodyPartReader, web
from pydantic import Field

from node.answers import Bytes, Completed, Delta, Question
from node.gateway.asking import Asker, Asking
from node.gateway.captions import cues, seconds_of, subrip
from node.gateway.failures import ApiError
from node.gateway.openai import facts, usage
from node.gateway.sse import DONE_EVENT, EventStream, event
from node.gateway.wishes import Lenient, MtorWishes, bounded_text, encodable, parse, question, thousandths, unsupported
from protocol import params
from protocol.ids import SPEECH
from protocol.messages import Media, SpeakRequest, TranscribeRequest

PCM = re.compile(r"audio/pcm;rate=(\d{4,6})")
SLOWEST, FASTEST = 0.25, 4.0
UNKNOWN_LENGTH = 0xFFFFFFFF
FORM_ROUTES = frozenset({"/v1/audio/transcriptions", "/v1/audio/translations"})  # these read their bodies themselves
FORM_BYTES = 64 * params.KIB  # of any field but the file
FORM_FIELDS = 32
FORM_SECONDS = 60.0  # for a form to arrive
TIMED = frozenset({"srt", "vtt", "verbose_json"})
FORMATS = frozenset({"json", "text"}) | TIMED


class SpeechRequest(Lenient):
    """`POST /v1/audio/speech`."""

    input: str
    model: str = "auto"
    voice: str | None = None
    response_format: str | None = None
    speed: float = Field(1.0, ge=SLOWEST, le=FASTEST)
    stream_format: str | None = None
    mtor: MtorWishes | None = None


@dataclass(frozen=True, slots=True)
class SpeechAsked:
    """A checked request for speech."""

    question: Question
    raw: bool  # PCM without a header
    events: bool  # in server-sent events, of which the last says what it cost


@dataclass(frozen=True, slots=True)
class TranscriptAsked:
    """A checked request for a transcript."""

    question: Question
    format: str
    stream: bool
    language: str


def read_speech_request(body: bytes) -> SpeechAsked:
    """A request's JSON. Raises `ApiError` (400) that names the parameter."""
    wanted = parse(SpeechRequest, body)
    if wanted.response_format not in (None, "wav", "pcm"):
        raise unsupported("response_format", "sound is made as wav or pcm")
    if wanted.stream_format not in (None, "audio", "sse"):
        raise unsupported("stream_format", "sound is streamed as audio or sse")
    voice = encodable("voice", wanted.voice or "")
    if len(voice.encode()) > params.MAX_NAME_BYTES:
        message = f"a voice's name has at most {params.MAX_NAME_BYTES} bytes"
        raise ApiError(400, message, code="invalid_value", param="voice")
    text = bounded_text("input", wanted.input, params.MAX_SPOKEN_BYTES)
    request = SpeakRequest(text, voice, thousandths(wanted.speed, 1.0))
    asked = question(request, wanted.model, SPEECH, wanted.mtor or MtorWishes(), ())
    return SpeechAsked(asked, wanted.response_format == "pcm", wanted.stream_format == "sse")


def read_transcript_request(fields: Mapping[str, str], sound: bytes | None, *, translate: bool) -> TranscriptAsked:
    """A form's fields and file. Raises `ApiError` (400) that names the parameter."""
    if not sound:
        raise ApiError(400, "file is missing or empty; send a sound as form field `file`", param="file")
    wished = fields.get("response_format", "json")
    if wished not in FORMATS:
        raise unsupported("response_format", f"a transcript comes as {', '.join(sorted(FORMATS))}")
    prompt, language = encodable("prompt", fields.get("prompt", "")), fields.get("language", "")
    if len(prompt.encode()) > params.MAX_PROMPT_BYTES:
        raise ApiError(400, f"prompt has at most {params.MAX_PROMPT_BYTES} bytes", param="prompt")
    if not re.fullmatch(r"[A-Za-z-]{0,16}", language):
        raise ApiError(400, "language is a code like en", code="invalid_value", param="language")
    request = TranscribeRequest(
        media=(Media("audio", len(sound), 0),),
        language=language.lower(),
        prompt=prompt,
        temperature=thousandths(_number(fields, "temperature"), 0.0),
        timestamps=int(wished in TIMED),
        translate=int(translate),
    )
    wishes = parse(MtorWishes, fields["mtor"], "mtor") if fields.get("mtor") else MtorWishes()
    asked = question(request, fields.get("model", "auto"), SPEECH, wishes, (sound,))
    return TranscriptAsked(asked, wished, fields.get("stream", "").lower() in ("true", "1"), language)


def _number(fields: Mapping[str, str], name: str) -> float:
    """A number from 0 to 1."""
    try:
        value = float(fields.get(name) or 0)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise ApiError(400, f"{name} is a number from 0 to 1", code="invalid_value", param=name)
    return value


class AudioRoutes:
    """Handlers of the sound routes."""

    def __init__(self, asker: Asker) -> None:
        self._asker = asker

    def add_to(self, app: web.Application) -> None:
        """Register the routes."""
        app.router.add_post("/v1/audio/speech", self.speech)
        app.router.add_post("/v1/audio/transcriptions", self.transcription)
        app.router.add_post("/v1/audio/translations", self.translation)

    async def speech(self, request: web.Request) -> web.StreamResponse:
        """Text to sound."""
        asked = read_speech_request(await request.read())
        async with self._asker.ask(request, asked.question) as asking:
            if asked.events:
                stream = EventStream(request, asking.headers)
                return await stream.run(lambda: _follow_sound(asking, stream, raw=asked.raw))
            return await _send_sound(request, asking, raw=asked.raw)

    async def transcription(self, request: web.Request) -> web.StreamResponse:
        """Sound to text."""
        return await self._transcript(request, translate=False)

    async def translation(self, request: web.Request) -> web.StreamResponse:
        """Sound to English text."""
        return await self._transcript(request, translate=True)

    async def _transcript(self, request: web.Request, *, translate: bool) -> web.StreamResponse:
        fields, sound = await _form(request)
        asked = read_transcript_request(fields, sound, translate=translate)
        async with self._asker.ask(request, asked.question) as asking:
            if asked.stream and asked.format not in TIMED:
                stream = EventStream(request, asking.headers)
                return await stream.run(lambda: _follow_transcript(asking, stream))
            parts = [item.text async for item in asking.events() if isinstance(item, Delta)]
            assert asking.completed is not None
            return _transcript("".join(parts), asked, asking.completed, asking.headers())


# --- speech ------------------------------------------------------------------------------------------------


async def _send_sound(request: web.Request, asking: Asking, *, raw: bool) -> web.StreamResponse:
    """The sound as it comes. What fails after the first byte drops the connection: a cut sound must not look whole."""
    response: web.StreamResponse | None = None
    try:
        async with aclosing(asking.events()) as events:
            async for item in events:
                if isinstance(item, Bytes):
                    if response is None:
                        response = await _begin_sound(request, asking, item.media_type, raw=raw)
                    await response.write(item.data)
    except ApiError as error:
        if response is None:
            raise
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError(error.message) from None
    if response is None:
        raise ApiError(502, "the worker made no sound of this text", code="engine_failed")
    await response.write_eof()
    return response


async def _begin_sound(request: web.Request, asking: Asking, media_type: str, *, raw: bool) -> web.StreamResponse:
    header = _header(media_type, raw=raw)
    kind = media_type if raw else "audio/wav"
    response = web.StreamResponse(headers={"Content-Type": kind} | asking.headers())
    await response.prepare(request)
    if header:
        await response.write(header)
    return response


def _header(media_type: str, *, raw: bool) -> bytes:
    """What goes before the samples. Raises `ApiError` (502)."""
    match = PCM.fullmatch(media_type)
    if match is None:
        raise ApiError(502, "the worker sent something else than sound", code="engine_failed")
    return b"" if raw else wav_header(int(match[1]))


async def _follow_sound(asking: Asking, stream: EventStream, *, raw: bool) -> None:
    """The same bytes in events."""
    begun = False
    async with aclosing(asking.events_and_pauses()) as events:
        async for item in events:
            if item is None:
                await stream.waiting()
            if isinstance(item, Bytes):
                data = item.data if begun else _header(item.media_type, raw=raw) + item.data
                begun = True
                await stream.send({"type": "speech.audio.delta", "audio": base64.b64encode(data).decode()})
            if isinstance(item, Completed):
                counts = usage(item)
                spoken = {
                    "input_tokens": counts["prompt_tokens"],
                    "output_tokens": counts["completion_tokens"],
                    "total_tokens": counts["total_tokens"],
                }
                await stream.send({"type": "speech.audio.done", "usage": spoken, "mtor": facts(item)})


def wav_header(rate: int, data_bytes: int | None = None) -> bytes:
    """Of one channel, 16 bits. Without `data_bytes` the length is given as unknown, as streaming players expect."""
    riff = UNKNOWN_LENGTH if data_bytes is None else data_bytes + 36
    size = UNKNOWN_LENGTH if data_bytes is None else data_bytes
    return b"".join(
        (
            b"RIFF" + riff.to_bytes(4, "little") + b"WAVEfmt ",
            (16).to_bytes(4, "little") + (1).to_bytes(2, "little") + (1).to_bytes(2, "little"),
            rate.to_bytes(4, "little") + (2 * rate).to_bytes(4, "little"),
            (2).to_bytes(2, "little") + (16).to_bytes(2, "little"),
            b"data" + size.to_bytes(4, "little"),
        )
    )


# --- transcripts -------------------------------------------------------------------------------------------


async def _form(request: web.Request) -> tuple[dict[str, str], bytes | None]:
    """Fields, and the bytes of `file`."""
    if not request.content_type.startswith("multipart/"):
        raise ApiError(400, "send multipart/form-data with the sound as `file`", code="invalid_value")
    fields: dict[str, str] = {}
    sound: bytes | None = None
    try:
        async with asyncio.timeout(FORM_SECONDS):
            reader = await request.multipart()
            while (part := await reader.next()) is not None:
                if not isinstance(part, BodyPartReader) or not part.name:
                    continue
                if part.name == "file":
                    sound = await _read(part, params.MAX_INPUT_BYTES)
                elif len(fields) < FORM_FIELDS:
                    fields[part.name] = (await _read(part, FORM_BYTES)).decode("utf-8", "replace")
                else:
                    raise ApiError(400, f"a form has at most {FORM_FIELDS} fields", code="invalid_value")
    except (ValueError, AssertionError) as error:
        raise ApiError(400, f"the form cannot be read: {error}", code="invalid_value") from None
    except TimeoutError:
        raise ApiError(408, f"the form did not arrive within {FORM_SECONDS:.0f} s", code="slow_body") from None
    return fields, sound


async def _read(part: BodyPartReader, most: int) -> bytes:
    data = bytearray()
    while chunk := await part.read_chunk(params.MAX_CHUNK_BYTES):
        data += chunk
        if len(data) > most:
            raise ApiError(413, f"{part.name} has more than {most} bytes", code="request_too_large", param=part.name)
    return bytes(data)


async def _follow_transcript(asking: Asking, stream: EventStream) -> None:
    parts: list[str] = []
    async with aclosing(asking.events_and_pauses()) as events:
        async for item in events:
            if item is None:
                await stream.waiting()
            if isinstance(item, Delta):
                parts.append(item.text)
                await stream.send({"type": "transcript.text.delta", "delta": item.text})
            if isinstance(item, Completed):
                done = {"type": "transcript.text.done", "text": "".join(parts), "mtor": facts(item)}
                await stream.write(event(done) + DONE_EVENT)


def _transcript(text: str, asked: TranscriptAsked, done: Completed, headers: Mapping[str, str]) -> web.Response:
    if asked.format == "text":
        return web.Response(text=text.strip() + "\n", headers=headers)
    if asked.format == "vtt":
        return web.Response(text=text, content_type="text/vtt", headers=headers)
    if asked.format == "srt":
        return web.Response(text=subrip(text), content_type="application/x-subrip", headers=headers)
    body: dict[str, Any] = {"text": text.strip(), "usage": _usage(done), "mtor": facts(done)}
    if asked.format == "verbose_json":
        segments = [
            {"id": index, "start": seconds_of(cue.start), "end": seconds_of(cue.end), "text": cue.text}
            for index, cue in enumerate(cues(text))
        ]
        body |= {"text": " ".join(cue.text for cue in cues(text)), "segments": segments}
        body |= {"language": asked.language, "duration": done.units_in / 10}
    return web.json_response(body, headers=headers)


def _usage(done: Completed) -> dict[str, Any]:
    counts = usage(done)
    return {"type": "duration", "seconds": -(-counts["prompt_tokens"] // 10)}
