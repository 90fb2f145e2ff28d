"""Pictures and sound of servers that speak OpenAI's protocol.

Rule: what comes back is looked at before it is handed on: a PNG of a possible size, plain sound of a known rate, text
of a bounded length. A form that a server does not take is tried in a simpler one only where nothing is lost by it.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from typing import Any

from node.engines.outer.engine import OuterGeneration, clean
from node.engines.outer.files import Wave, png_size, read_wave, sound_tenths, sound_type
from node.engines.outer.http import BadAnswer, BadStatus, OuterHttp, Upload
from node.engines.outer.json_shapes import list_at, number_at, text_at
from node.engines.port import EngineError
from protocol.errors import ErrorCode
from protocol.messages import ImagineRequest, SpeakRequest, TranscribeRequest
from protocol.params import MAX_OUTPUT_BYTES, MAX_SOUND_TENTHS, MAX_TEXT_BYTES
from protocol.requests import picture_units

LONG_READ_SECONDS = 900.0  # for one silent piece of work: a picture on a slow card
USUAL_STEPS = 20  # of a picture whose server does not say: the unit counts them
USUAL_VOICE = "alloy"  # servers that have no such voice take their own
RAW_RATE = 24_000  # of sound without a header, as OpenAI's own servers send it
LEAST_RATE, MOST_RATE = 8_000, 48_000  # frames a second
HEADER_BYTES = 64 * 1_024  # within which a WAV's sound begins
JSON_START = b"{"
RAW_TYPES = frozenset({"audio/pcm", "audio/l16", "audio/raw"})


class OpenAIMedia:
    """The routes besides chat."""

    def __init__(self, http: OuterHttp, model: str, options: Mapping[str, str]) -> None:
        self._http = http
        self._model = model
        self._options = options
        self._plain_transcripts = False  # the server takes no verbose_json

    # --- pictures ------------------------------------------------------------------------------------

    async def imagine(self, request: ImagineRequest, prefix: str, inputs: Sequence[bytes], out: OuterGeneration) -> str:
        """`/images/generations`."""
        body: dict[str, Any] = {"model": self._model, "prompt": request.prompt, "n": 1, "response_format": "b64_json"}
        if request.width and request.height:
            body["size"] = f"{request.width}x{request.height}"
        more = {"negative_prompt": request.negative_prompt, "steps": request.steps, "seed": request.seed}
        more["guidance"] = request.guidance / 1_000
        body |= {name: value for name, value in more.items() if value}
        path = "/images/generations"
        answer = await self._http.fetch("POST", path, body=body, read_seconds=LONG_READ_SECONDS)
        steps = request.steps or int(self._options.get("steps", USUAL_STEPS))
        await hand_over_picture(text_at(answer, "data", 0, "b64_json"), request, steps, out)
        return "stop"

    # --- sound to text -------------------------------------------------------------------------------

    async def transcribe(
        self, request: TranscribeRequest, prefix: str, inputs: Sequence[bytes], out: OuterGeneration
    ) -> str:
        """`/audio/transcriptions` and `/audio/translations`."""
        refuse_continuation(prefix)
        sound = inputs[0]
        ending = sound_type(sound)
        if not ending:
            raise EngineError(ErrorCode.INVALID_REQUEST, "a sound is a WAV, FLAC, Ogg, MP3, M4A or WebM file")
        answer = await self._transcript(request, Upload(self._fields(request), f"sound.{ending}", sound))
        told = round(number_at(answer, "duration") * 10 + 0.499)
        measured = sound_tenths(sound)
        tenths = min(told, MAX_SOUND_TENTHS, len(sound)) if told and read_wave(sound) is None else measured
        await hand_over_transcript(_captions(answer) if request.timestamps else text_at(answer, "text"), tenths, out)
        return "stop"

    def _fields(self, request: TranscribeRequest) -> dict[str, str]:
        fields = {"model": self._model, "temperature": str(request.temperature / 1_000)}
        more = {"language": "" if request.translate else request.language, "prompt": request.prompt}
        return fields | {name: value for name, value in more.items() if value}

    async def _transcript(self, request: TranscribeRequest, upload: Upload) -> Any:
        path = "/audio/translations" if request.translate else "/audio/transcriptions"
        # A WAV tells its own length, and times cost the server more.
        wanted = request.timestamps or not (self._plain_transcripts or upload.filename.endswith(".wav"))
        if wanted:
            try:
                return await self._post(path, upload, "verbose_json")
            except BadStatus as error:
                if request.timestamps or error.code is not ErrorCode.UNSUPPORTED_FEATURE or error.status == 404:
                    raise
            self._plain_transcripts = True
        return await self._post(path, upload, "json")

    async def _post(self, path: str, upload: Upload, form: str) -> Any:
        fields = {**upload.fields, "response_format": form}
        sent = Upload(fields, upload.filename, upload.data)
        async with self._http.open("POST", path, upload=sent, read_seconds=LONG_READ_SECONDS) as answer:
            return await answer.json()

    # --- text to sound -------------------------------------------------------------------------------

    async def speak(self, request: SpeakRequest, prefix: str, inputs: Sequence[bytes], out: OuterGeneration) -> str:
        """`/audio/speech`, relayed as it comes."""
        refuse_continuation(prefix)
        body = {
            "model": self._model,
            "input": request.text,
            "voice": request.voice or self._options.get("voice", USUAL_VOICE),
            "response_format": "wav",
            "speed": request.speed / 1_000,
        }
        async with self._http.open("POST", "/audio/speech", body=body, read_seconds=LONG_READ_SECONDS) as answer:
            relay = SoundRelay(out, len(request.text.encode()))
            async with aclosing(answer.chunks()) as chunks:
                async for chunk in chunks:
                    await relay.take(chunk, raw=answer.content_type in RAW_TYPES)
            relay.end()
        return "stop"


class SoundRelay:
    """Speech while it comes in: a header, then frames in the pace of the grants."""

    def __init__(self, out: OuterGeneration, units_in: int) -> None:
        self._out = out
        self._units_in = units_in
        self._pending = b""
        self._rate = 0
        self._left = MAX_OUTPUT_BYTES  # of the sound
        self._sent = 0

    async def take(self, data: bytes, *, raw: bool) -> None:
        """More of a WAV, or of sound without a header where `raw`. Raises `BadAnswer` if it is neither."""
        self._pending += data
        if self._rate or self._open(raw):
            await self._relay()

    def end(self) -> None:
        """Raises `BadAnswer` if there was no sound."""
        if not self._sent:
            raise BadAnswer("the worker's server sent no sound", "nothing behind the header, or no header")

    def _open(self, raw: bool) -> bool:
        """Read the header, once it is there."""
        wave = read_wave(self._pending)
        if wave is not None:
            self._begin(wave)
        elif raw and len(self._pending) >= 12 and not self._pending.startswith((b"RIFF", JSON_START)):
            self._rate = RAW_RATE
        elif len(self._pending) > HEADER_BYTES or (len(self._pending) >= 12 and sound_type(self._pending) != "wav"):
            raise BadAnswer("the worker's server sent no plain sound", "neither WAV nor audio/pcm")
        return bool(self._rate)

    def _begin(self, wave: Wave) -> None:
        if wave.channels != 1 or wave.bits != 16 or not LEAST_RATE <= wave.rate <= MOST_RATE:
            form = f"{wave.channels} channels of {wave.bits} bits at {wave.rate} Hz"
            raise BadAnswer("the worker's server sent sound of another form", form)
        self._rate = wave.rate
        self._left = min(wave.size or MAX_OUTPUT_BYTES, MAX_OUTPUT_BYTES)
        self._pending = self._pending[wave.start :]

    async def _relay(self) -> None:
        """Hand over whole frames, as many as are granted."""
        a_second = 2 * self._rate
        if not self._out.begun:
            await self._out.prompted(self._units_in)
        while (ready := min(len(self._pending), self._left - self._sent) // 2 * 2) > 0:
            granted = (self._out.granted * a_second // 10 - self._sent) // 2 * 2
            if granted <= 0:  # the unit that was begun is used up
                await self._out.wait_for_more()
                continue
            size = min(ready, granted)
            part, self._pending = self._pending[:size], self._pending[size:]
            self._sent += size
            await self._out.data(f"audio/pcm;rate={self._rate}", part, -(-self._sent * 10 // a_second))
        if self._sent >= self._left:
            self._pending = b""  # what a WAV carries behind its sound


# --- for other servers too ------------------------------------------------------------------------------


def refuse_continuation(prefix: str) -> None:
    """Raises `EngineError` if another worker began this answer."""
    if prefix:
        message = "the worker's server cannot continue an answer that another one began"
        raise EngineError(ErrorCode.UNSUPPORTED_FEATURE, message)


def decoded(text: str) -> bytes:
    """base64, with or without a data: URL before it. Raises `BadAnswer`."""
    try:
        return base64.b64decode(text.rpartition(",")[2], validate=True)
    except (binascii.Error, ValueError):
        raise BadAnswer("the worker's server sent damaged data", "no base64") from None


async def hand_over_picture(text: str, request: ImagineRequest, steps: int, out: OuterGeneration) -> None:
    """A picture as base64. Raises `BadAnswer` if it is no whole PNG."""
    picture = decoded(text)
    size = png_size(picture)
    if size is None or len(picture) > MAX_OUTPUT_BYTES:
        raise BadAnswer("the worker's server sent no picture", f"{len(picture)} bytes that are no PNG of a fit size")
    # More than was asked for is not paid.
    width, height = min(size[0], request.width or size[0]), min(size[1], request.height or size[1])
    if not out.begun:
        await out.prompted(0)
    await out.data("image/png", picture, picture_units(width, height, steps))


async def hand_over_transcript(text: str, tenths: int, out: OuterGeneration) -> None:
    """A whole text; its units are words."""
    if len(text.encode("utf-8", "replace")) > MAX_TEXT_BYTES:
        raise BadAnswer("the worker's server sent more than fits", f"a transcript over {MAX_TEXT_BYTES} bytes")
    await out.prompted(tenths)
    if text.strip():
        await out.text(text.strip(), len(text.split()))


def _captions(answer: Any) -> str:
    """WebVTT of a transcript's segments. Raises `EngineError` if it has none."""
    segments = list_at(answer, "segments")
    if not segments and text_at(answer, "text").strip():
        raise EngineError(ErrorCode.UNSUPPORTED_FEATURE, "the worker's server gives no times")
    cues = [
        f"{_clock(number_at(segment, 'start'))} --> {_clock(number_at(segment, 'end'))}\n{_cue(segment)}"
        for segment in segments
        if _cue(segment)
    ]
    return "\n\n".join(["WEBVTT", *cues]) + "\n"


def _cue(segment: Any) -> str:
    return " ".join(clean(text_at(segment, "text")).split()).replace("-->", "->")


def _clock(seconds: float) -> str:
    whole = round(min(seconds, MAX_SOUND_TENTHS / 10) * 1_000)
    return f"{whole // 3_600_000:02}:{whole // 60_000 % 60:02}:{whole // 1_000 % 60:02}.{whole % 1_000:03}"
