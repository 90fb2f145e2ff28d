"""RENTAHAL's workers: one `POST /predict` a query, the whole answer at once.

Rule: such a worker takes one prompt and nothing else: no turns, no limits, no stream. A conversation becomes one text,
an answer that is longer than asked for is cut, and its tokens are counted as one for four bytes, since nobody tells.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from node.engines.outer.engine import BYTES_A_TOKEN, Facts, OuterGeneration, guess_tokens
from node.engines.outer.files import input_picture, sound_tenths, sound_type
from node.engines.outer.http import BadAnswer, OuterHttp
from node.engines.outer.json_shapes import text_at
from node.engines.outer.openai_media import (
    LONG_READ_SECONDS,
    USUAL_STEPS,
    SoundRelay,
    decoded,
    hand_over_picture,
    hand_over_transcript,
    refuse_continuation,
)
from node.engines.port import EngineError, check_roles
from protocol.errors import ErrorCode
from protocol.messages import ChatRequest, ImagineRequest, Message, SpeakRequest, TranscribeRequest, VisionRequest
from protocol.requests import Request

USUAL_MODEL_TYPE = "worker_node"
TYPES: dict[type[Message], str] = {
    ChatRequest: "chat",
    VisionRequest: "vision",
    ImagineRequest: "imagine",
    TranscribeRequest: "speech",
    SpeakRequest: "speech",
}
SPEAKERS = {"system": "System", "user": "User", "assistant": "Assistant"}


class PredictServer:
    """A `Server`. `options`: `model_type`, `type` (in place of chat, vision …), `steps`."""

    def __init__(self, http: OuterHttp, model: str, options: Mapping[str, str]) -> None:
        self._http = http
        self._model = model
        self._options = options

    async def aclose(self) -> None:
        """See `Server`."""
        await self._http.aclose()

    async def check(self) -> Facts:
        """See `Server`: `GET /health` is answered well."""
        async with self._http.open("GET", "/health", attempts=1):
            return Facts()

    async def answer(self, request: Request, prefix: str, inputs: Sequence[bytes], out: OuterGeneration) -> str:
        """See `Server`."""
        refuse_continuation(prefix)
        answers: dict[type[Message], Any] = {
            ChatRequest: self._chat,
            VisionRequest: self._chat,
            ImagineRequest: self._imagine,
            TranscribeRequest: self._transcribe,
            SpeakRequest: self._speak,
        }
        finish: str = await answers[type(request)](request, inputs, out)
        return finish

    async def _chat(self, request: ChatRequest, inputs: Sequence[bytes], out: OuterGeneration) -> str:
        check_roles(request)
        if len(inputs) > 1:
            raise EngineError(ErrorCode.UNSUPPORTED_FEATURE, "this worker looks at one picture at a time")
        for picture in inputs:
            input_picture(picture)
        prompt = one_prompt(request)
        more = {"image": base64.b64encode(inputs[0]).decode()} if inputs else {}
        text = text_at(await self._ask(request, prompt, more), "response")
        if not text:
            raise BadAnswer("the worker's server sent no answer", "no text in response")
        out.most_units = request.max_tokens or out.most_units
        await out.prompted(guess_tokens(prompt))
        kept, cut = _cut(text, out.most_units, request.stop)
        await out.text(kept, guess_tokens(kept))
        return "length" if cut else "stop"

    async def _imagine(self, request: ImagineRequest, inputs: Sequence[bytes], out: OuterGeneration) -> str:
        answer = await self._ask(request, request.prompt, {})
        steps = request.steps or int(self._options.get("steps", USUAL_STEPS))
        text = text_at(answer, "image") or text_at(answer, "images", 0) or text_at(answer, "response")
        await hand_over_picture(text, request, steps, out)
        return "stop"

    async def _transcribe(self, request: TranscribeRequest, inputs: Sequence[bytes], out: OuterGeneration) -> str:
        if request.timestamps or request.translate:
            raise EngineError(ErrorCode.UNSUPPORTED_FEATURE, "the worker's server gives neither times nor translations")
        if not sound_type(inputs[0]):
            raise EngineError(ErrorCode.INVALID_REQUEST, "a sound is a WAV, FLAC, Ogg, MP3, M4A or WebM file")
        audio = base64.b64encode(inputs[0]).decode()
        answer = await self._ask(request, request.prompt, {"audio": audio})
        await hand_over_transcript(text_at(answer, "text") or text_at(answer, "response"), sound_tenths(inputs[0]), out)
        return "stop"

    async def _speak(self, request: SpeakRequest, inputs: Sequence[bytes], out: OuterGeneration) -> str:
        answer = await self._ask(request, request.text, {})
        sound = decoded(text_at(answer, "audio_base64"))
        relay = SoundRelay(out, len(request.text.encode()))
        await relay.take(sound, raw=False)
        relay.end()
        return "stop"

    async def _ask(self, request: Request, prompt: str, more: Mapping[str, str]) -> Any:
        body = {
            "prompt": prompt,
            "type": self._options.get("type", TYPES[type(request)]),
            "model_type": self._options.get("model_type", USUAL_MODEL_TYPE),
            "model_name": self._model,
            **more,
        }
        return await self._http.fetch("POST", "/predict", body=body, read_seconds=LONG_READ_SECONDS)


def one_prompt(request: ChatRequest) -> str:
    """A conversation as one text: a single question as it is, more turns with their speakers' names."""
    if len(request.turns) == 1:
        return request.turns[0].text
    told = [f"{SPEAKERS[turn.role]}: {turn.text}" for turn in request.turns]
    return "\n\n".join([*told, "Assistant:"])


def _cut(text: str, most_units: int, stop: Sequence[str]) -> tuple[str, bool]:
    """The text up to the first stop string and at most so many tokens; whether the latter cut it."""
    ends = [place for each in stop if (place := text.find(each)) >= 0]
    text = text[: min(ends)] if ends else text
    if guess_tokens(text) <= most_units:
        return text, False
    return text.encode("utf-8", "replace")[: most_units * BYTES_A_TOKEN].decode("utf-8", "ignore"), True
