"""`/v1/audio/speech`, `/v1/audio/transcriptions` and `/v1/audio/translations`.

Rule: OpenAI's shapes. Sound goes out as it is made; the end of a stream that broke off is a dropped connection, never a
quiet end. A sound that comes in is bounded before anything looks at it.
"""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal

from aiohttp import BodyPartReader, web
from pydantic import Field

from node.answers import Bytes, Completed, Delta, Question
from node.gateway.answer_shapes import TranscriptAnswer
from node.gateway.asking import Asker, Asking
from node.gateway.captions import cues, seconds_of, subrip
from node.gateway.failures import ApiError
from node.gateway.openai import facts, usage
from node.gateway.routes import EVENTS, FORM, Answered, Route
from node.gateway.sounds import DEFAULT_FORMAT, SOUND_KINDS, Sound, sound_as
from node.gateway.sounds import FORMATS as SOUND_FORMATS
from node.gateway.sse import DONE_EVENT, EventStream, event
from node.gateway.wishes import Lenient, MtorWishes, bounded_text, encodable, parse, question, thousandths, unsupported
from protocol import params
from protocol.ids import SPEECH
from protocol.messages import Media, SpeakRequest, TranscribeRequest
from protocol.requests import sound_rate

SLOWEST, FASTEST = 0.25, 4.0
SPEECH_PATH = "/v1/audio/speech"
TRANSCRIPTS_PATH, TRANSLATIONS_PATH = "/v1/audio/transcriptions", "/v1/audio/translations"
FORM_ROUTES = frozenset({TRANSCRIPTS_PATH, TRANSLATIONS_PATH})  # these read their bodies themselves
FORM_BYTES = 64 * params.KIB  # of any field but the file
FORM_FIELDS = 32
FORM_SECONDS = 60.0  # for a form to arrive
TIMED = frozenset({"srt", "vtt", "verbose_json"})
FORMATS = frozenset({"json", "text"}) | TIMED
TEXT_KINDS = ("text/plain", "text/vtt", "application/x-subrip")  # of transcripts that are no JSON


class SpeechRequest(Lenient):
    """`POST /v1/audio/speech`."""

    input: str = Field(json_schema_extra={"minLength": 1})
    model: str = "auto"
    voice: str | None = None
    response_format: str | None = Field(None, json_schema_extra={"enum": [*SOUND_FORMATS, None]})
    speed: float = Field(1.0, ge=SLOWEST, le=FASTEST)
    stream_format: str | None = Field(None, json_schema_extra={"enum": ["audio", "sse", None]})
    mtor: MtorWishes | None = None


class TranscriptForm(Lenient):
    """The form of a sound to transcribe, for `/openapi.json`: `read_transcript_request` checks it, field by field."""

    file: bytes
    model: str = "auto"
    language: str | None = Field(None, pattern=r"^[A-Za-z-]{0,16}$")
    prompt: str | None = None
    response_format: Literal["json", "text", "srt", "vtt", "verbose_json"] = "json"
    temperature: float | None = Field(None, ge=0, le=1)
    stream: bool | None = None
    mtor: MtorWishes | None = None


@dataclass(frozen=True, slots=True)
class SpeechAsked:
    """A checked request for speech."""

    question: Question
    format: str  # one of `sounds.FORMATS`
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
    format = wanted.response_format or DEFAULT_FORMAT
    if format not in SOUND_FORMATS:
        raise unsupported("response_format", f"sound is made as {', '.join(SOUND_FORMATS)}")
    if wanted.stream_format not in (None, "audio", "sse"):
        raise unsupported("stream_format", "sound is streamed as audio or sse")
    voice = encodable("voice", wanted.voice or "")
    if len(voice.encode()) > params.MAX_NAME_BYTES:
        message = f"a voice's name has at most {params.MAX_NAME_BYTES} bytes"
        raise ApiError(400, message, code="invalid_value", param="voice")
    text = bounded_text("input", wanted.input, params.MAX_SPOKEN_BYTES)
    request = SpeakRequest(text, voice, thousandths(wanted.speed, 1.0))
    asked = question(request, wanted.model, SPEECH, wanted.mtor or MtorWishes(), ())
    return SpeechAsked(asked, format, wanted.stream_format == "sse")


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

    def routes(self) -> tuple[Route, ...]:
        """See `Routes`."""
        sounds = (*(Answered(kind) for kind in SOUND_KINDS), Answered(EVENTS))
        said = (Answered(shape=TranscriptAnswer), *(Answered(kind) for kind in TEXT_KINDS), Answered(EVENTS))
        return (
            Route(
                "POST", SPEECH_PATH, self.speech, "openai", "A text, spoken.", sounds, takes=SpeechRequest, asks=True
            ),
            *(
                Route("POST", path, handler, "openai", summary, said, TranscriptForm, FORM, asks=True)
                for path, handler, summary in (
                    (TRANSCRIPTS_PATH, self.transcription, "What a sound says."),
                    (TRANSLATIONS_PATH, self.translation, "What a sound says, in English."),
                )
            ),
        )

    async def speech(self, request: web.Request) -> web.StreamResponse:
        """Text to sound."""
        asked = read_speech_request(await request.read())
        async with self._asker.ask(request, asked.question) as asking:
            if asked.events:
                stream = EventStream(request, asking.headers)
                return await stream.run(lambda: _follow_sound(asking, stream, asked.format))
            return await _send_sound(request, asking, asked.format)

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


async def _send_sound(request: web.Request, asking: Asking, format: str) -> web.StreamResponse:
    """The sound as it comes. What fails after the first byte drops the connection: a cut sound must not look whole."""
    response: web.StreamResponse | None = None
    sound: Sound | None = None
    try:
        async with aclosing(asking.events()) as events:
            async for item in events:
                if isinstance(item, Bytes):
                    sound = sound or _sound(item, format)
                    response = response or await _begin_sound(request, asking, sound)
                    await response.write(await sound.add(item.data))
    except ApiError as error:
        if response is None:
            raise
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError(error.message) from None
    if response is None or sound is None:
        raise ApiError(502, "the worker made no sound of this text", code="engine_failed")
    await response.write(await sound.end())
    await response.write_eof()
    return response


async def _begin_sound(request: web.Request, asking: Asking, sound: Sound) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": sound.media_type} | asking.headers())
    await response.prepare(request)
    return response


def _sound(first: Bytes, format: str) -> Sound:
    """What the worker's samples become. Raises `ApiError` (502)."""
    rate = sound_rate(first.media_type)
    if not rate:
        raise ApiError(502, "the worker sent something else than sound", code="engine_failed")
    return sound_as(format, rate)


async def _follow_sound(asking: Asking, stream: EventStream, format: str) -> None:
    """The same bytes in events."""
    sound: Sound | None = None
    async with aclosing(asking.events_and_pauses()) as events:
        async for item in events:
            if item is None:
                await stream.waiting()
            if isinstance(item, Bytes):
                sound = sound or _sound(item, format)
                await _send_part(stream, await sound.add(item.data))
            if isinstance(item, Completed):
                await _send_part(stream, await sound.end() if sound else b"")
                counts = usage(item)
                spoken = {
                    "input_tokens": counts["prompt_tokens"],
                    "output_tokens": counts["completion_tokens"],
                    "total_tokens": counts["total_tokens"],
                }
                await stream.send({"type": "speech.audio.done", "usage": spoken, "mtor": facts(item)})


async def _send_part(stream: EventStream, data: bytes) -> None:
    if data:
        await stream.send({"type": "speech.audio.delta", "audio": base64.b64encode(data).decode()})


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
            parts = 0
            while (part := await reader.next()) is not None:
                parts += 1
                if parts > FORM_FIELDS + 1:
                    raise ApiError(400, f"a form has at most {FORM_FIELDS} fields", code="invalid_value")
                if not isinstance(part, BodyPartReader) or not part.name:
                    continue
                if part.name == "file":
                    sound = await _read(part, params.MAX_INPUT_BYTES)
                else:
                    fields[part.name] = (await _read(part, FORM_BYTES)).decode("utf-8", "replace")
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
