"""Servers that speak OpenAI's protocol: Ollama, vLLM, llama.cpp's llama-server, LM Studio, another node's gateway.

Rule: a request is translated as far as the server can follow and refused where it cannot: an answer that another
worker began is only continued where the server can do that, since most would begin anew. Tokens are the server's own
count where it counts while it answers (llama.cpp, vLLM), otherwise one a piece of text that it sends.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from node.engines.outer import openai_media
from node.engines.outer.engine import Facts, OuterGeneration, clean, guess_tokens
from node.engines.outer.files import input_picture
from node.engines.outer.http import Answer, BadAnswer, BadStatus, BrokenOff, OuterError, OuterHttp
from node.engines.outer.json_shapes import at, count_at, list_at, text_at
from node.engines.outer.openai_wishes import chosen_in, told_of_wishes, wished
from node.engines.outer.sse import events
from node.engines.port import EngineError, check_roles
from protocol.errors import ErrorCode
from protocol.messages import (
    ChatRequest,
    ImagineRequest,
    Message,
    SpeakRequest,
    TranscribeRequest,
    VisionRequest,
    Wishes,
)
from protocol.requests import Request
from protocol.wishes import ModelFeature, wishes_of

PICTURE_TOKENS = 256  # of a picture, where the server does not count
TURN_TOKENS = 4  # that a chat template adds, where the server does not count
MODELS_TOLD = 8  # names in a sentence
DONE = "[DONE]"
FEATURES = {feature.name.lower(): feature for feature in ModelFeature}
NO_LIST = frozenset({404, 405, 501})  # statuses of a server without a list of models


@dataclass(frozen=True, slots=True)
class Dialect:
    """What a family of servers wants beyond OpenAI's protocol."""

    fields: Mapping[str, Any]  # always sent
    repetition: tuple[str, ...]  # names of the repetition penalty
    no_top_k: int | None  # what turns top-k off; None: by leaving it out
    continuing: Mapping[str, Any] | None  # sent to continue an answer; None: it cannot
    features: tuple[ModelFeature, ...] = ()  # what such a server does with every model


# `owned_by` of a server's model list -> its dialect.
USUAL = (ModelFeature.JSON, ModelFeature.LOGPROBS)
LLAMA_CPP = Dialect({"timings_per_token": True, "min_p": 0.0}, ("repeat_penalty",), 0, {}, USUAL)
VLLM = Dialect({}, ("repetition_penalty",), -1, {"add_generation_prompt": False, "continue_final_message": True}, USUAL)
MTOR = Dialect({}, ("repetition_penalty",), None, None)
PLAIN = Dialect({}, ("repetition_penalty", "repeat_penalty"), None, None)
DIALECTS = {"llamacpp": LLAMA_CPP, "vllm": VLLM, "mtor": MTOR}
CONTINUATIONS: Mapping[str, Mapping[str, Any] | None] = {"prefill": {}, "flags": VLLM.continuing, "none": None}


def feature_names(text: str) -> list[str]:
    """Of the option `can`."""
    return text.replace(",", " ").split()


class OpenAIServer:
    """A `Server`. `options`: `continuation` (auto, prefill, flags, none), `can` (features), `steps`, `voice`."""

    def __init__(self, http: OuterHttp, model: str, options: Mapping[str, str]) -> None:
        self._http = http
        self._model = model
        self._options = options
        self._dialect = PLAIN
        self._media = openai_media.OpenAIMedia(http, model, options)

    async def aclose(self) -> None:
        """See `Server`."""
        await self._http.aclose()

    async def check(self) -> Facts:
        """See `Server`: the model must be on the server's list. Some that only hear or speak have none."""
        try:
            listed = list_at(await self._http.fetch("GET", "/models", attempts=1), "data")
        except BadStatus as error:
            if error.status not in NO_LIST:
                raise
            return Facts(0, self._features())
        row = next((row for row in listed if self._is_named(row)), None)
        if row is None:
            names = ", ".join(clean(text_at(row, "id"))[:80] for row in listed[:MODELS_TOLD]) or "nothing"
            raise OuterError("the worker's server lost its model", f"it has no model {self._model}; it has {names}")
        self._dialect = DIALECTS.get(text_at(row, "owned_by"), PLAIN)
        places = (("meta", "n_ctx"), ("max_model_len",), ("mtor", "context_tokens"), ("max_context_length",))
        return Facts(next((count for place in places if (count := count_at(row, *place))), 0), self._features())

    def _features(self) -> tuple[int, ...]:
        """The operator's word goes over what such servers do."""
        if "can" not in self._options:
            return tuple(map(int, self._dialect.features))
        return tuple(sorted(int(FEATURES[name]) for name in feature_names(self._options["can"])))

    def _is_named(self, row: Any) -> bool:
        return self._model in (text_at(row, "id"), *list_at(row, "aliases"))

    async def answer(self, request: Request, prefix: str, inputs: Sequence[bytes], out: OuterGeneration) -> str:
        """See `Server`."""
        answers: dict[type[Message], Callable[..., Any]] = {
            ChatRequest: self._chat,
            VisionRequest: self._chat,
            ImagineRequest: self._media.imagine,
            TranscribeRequest: self._media.transcribe,
            SpeakRequest: self._media.speak,
        }
        finish: str = await answers[type(request)](request, prefix, inputs, out)
        return finish

    async def _chat(self, request: ChatRequest, prefix: str, inputs: Sequence[bytes], out: OuterGeneration) -> str:
        check_roles(request)
        body = self._body(request, prefix, inputs)
        out.most_units = request.max_tokens or out.most_units
        guess = sum(guess_tokens(turn.text) + TURN_TOKENS for turn in request.turns)
        guess += guess_tokens(prefix) + PICTURE_TOKENS * len(inputs)
        async with self._http.open("POST", "/chat/completions", body=body) as answer:
            return await _Reply(out, guess, wishes_of(request)).read(answer)

    def _body(self, request: ChatRequest, prefix: str, inputs: Sequence[bytes]) -> dict[str, Any]:
        messages = _messages(request, inputs)
        body: dict[str, Any] = {
            "model": self._model,
            "messages": messages,
            "stream": True,
            "stream_options": {"include_usage": True} | ({"continuous_usage_stats": True} if self._is_vllm else {}),
            "temperature": request.temperature / 1_000,
            "top_p": max(request.top_p, 1) / 1_000,
        }
        if prefix:
            messages.append({"role": "assistant", "content": prefix})
            body |= self._continuing()
        return {**body, **self._dialect.fields, **_wishes(request, self._dialect), **wished(wishes_of(request))}

    @property
    def _is_vllm(self) -> bool:
        return self._dialect is VLLM

    def _continuing(self) -> Mapping[str, Any]:
        """What makes the server continue the last message. Raises `EngineError` if it cannot."""
        fields = CONTINUATIONS.get(self._options.get("continuation", "auto"), self._dialect.continuing)
        if fields is None:
            message = "the worker's server cannot continue an answer that another one began"
            raise EngineError(ErrorCode.UNSUPPORTED_FEATURE, message)
        return fields


def _messages(request: ChatRequest, inputs: Sequence[bytes]) -> list[dict[str, Any]]:
    """The conversation; a turn's pictures stand before its text, as data: URLs."""
    shown: dict[int, list[dict[str, Any]]] = {}
    if isinstance(request, VisionRequest):
        for media, data in zip(request.media, inputs, strict=True):
            shown.setdefault(media.turn, []).append({"type": "image_url", "image_url": {"url": _data_url(data)}})
    messages: list[dict[str, Any]] = [
        {"role": turn.role, "content": [*shown[index], {"type": "text", "text": turn.text}]}
        if index in shown
        else {"role": turn.role, "content": turn.text}
        for index, turn in enumerate(request.turns)
    ]
    told_of_wishes(messages, wishes_of(request))
    return messages


def _data_url(data: bytes) -> str:
    return f"data:{input_picture(data)};base64,{base64.b64encode(data).decode()}"


def _wishes(request: ChatRequest, dialect: Dialect) -> dict[str, Any]:
    """What a request asks for beyond the defaults, in OpenAI's units."""
    wishes: dict[str, Any] = {}
    if request.max_tokens:
        wishes["max_tokens"] = request.max_tokens
    if request.top_k or dialect.no_top_k is not None:
        wishes["top_k"] = request.top_k or dialect.no_top_k
    if request.repetition_penalty != 1_000:
        wishes |= dict.fromkeys(dialect.repetition, request.repetition_penalty / 1_000)
    if request.frequency_penalty != 2_000:
        wishes["frequency_penalty"] = (request.frequency_penalty - 2_000) / 1_000
    if request.presence_penalty != 2_000:
        wishes["presence_penalty"] = (request.presence_penalty - 2_000) / 1_000
    if request.seed:
        wishes["seed"] = request.seed
    if request.stop:
        wishes["stop"] = list(request.stop)
    return wishes


@dataclass(slots=True)
class _Reply:
    """One chat answer while it comes in."""

    out: OuterGeneration
    guess: int  # tokens of the prompt, if the server does not tell in time
    wishes: Wishes
    calls: int = 0  # of tools
    begun: bool = False
    thinking: bool = False
    finish: str = ""
    counted: int = 0  # output tokens, by the server
    full: bool = False  # the server goes on beyond what was asked for

    async def read(self, answer: Answer) -> str:
        """Relay all of it; how it ended. Raises `OuterError`."""
        if answer.content_type == "application/json":  # the server does not stream
            await self._take(await answer.json(), "message")
        elif answer.content_type == "text/event-stream":
            await self._read_stream(answer)
        else:
            raise BadAnswer("the worker's server sent no answer", f"content type {answer.content_type[:80]}")
        await self._begin(None)
        await self.out.correct(self.counted)
        if self.full or self.finish == "length":
            return "length"
        return "tool_calls" if self.calls else "stop"

    async def _read_stream(self, answer: Answer) -> None:
        async with aclosing(answer.chunks()) as chunks, aclosing(events(chunks)) as messages:
            async for message in messages:
                if message == DONE:
                    await answer.finish(chunks)
                    return
                await self._take(_parsed(message), "delta")
                if self.full:
                    return
        if not self.finish:
            raise BrokenOff("the worker's server broke off", "the stream ended in the middle of the answer")

    async def _take(self, message: Any, holder: str) -> None:
        """One event of a stream, or a whole answer."""
        if at(message, "error") is not None:
            raise BadAnswer("the worker's server failed in the middle", "an error in the stream")
        choice = at(message, "choices", 0)
        told = count_at(message, "usage", "completion_tokens") or count_at(message, "timings", "predicted_n")
        self.counted = told or self.counted
        text = self._visible(at(choice, holder))
        if text and not self.calls:  # what is said behind calls is no part of an answer
            await self._begin(message)
            self.full = self.out.units_out >= self.out.most_units
            uncounted = guess_tokens(text) if holder == "message" else self.out.units_out + 1
            if not self.full:
                await self.out.text(text, told or uncounted, chosen_in(choice, self.wishes))
        for place, call in enumerate(list_at(choice, holder, "tool_calls")):
            await self._begin(message)
            await self._called(place, call, told)
        self.finish = text_at(choice, "finish_reason") or self.finish

    async def _called(self, place: int, call: Any, told: int) -> None:
        """A call, or more of the last one; servers send calls one after the other."""
        number, name = count_at(call, "index") or place, text_at(call, "function", "name")
        arguments = clean(text_at(call, "function", "arguments"))
        begins = number == self.calls and bool(name)
        if (begins and name not in {tool.name for tool in self.wishes.tools}) or not (
            begins or number == self.calls - 1
        ):
            raise BadAnswer("the worker's server called no tool of this query", "a call of something else")
        self.calls += begins
        await self.out.call(name if begins else "", arguments, told or self.out.units_out + guess_tokens(arguments))

    async def _begin(self, message: Any) -> None:
        """Tell the size of the prompt, once."""
        if not self.begun:
            self.begun = True
            timings = at(message, "timings")
            told = count_at(timings, "prompt_n") + count_at(timings, "cache_n")
            await self.out.prompted(count_at(message, "usage", "prompt_tokens") or told or self.guess)

    def _visible(self, delta: Any) -> str:
        """A delta's text. What a reasoning model thinks is part of it, marked as the models themselves mark it."""
        thought = text_at(delta, "reasoning_content") or text_at(delta, "reasoning")
        text = text_at(delta, "content")
        if thought:
            thought = thought if self.thinking else f"<think>{thought}"
            self.thinking = True
        if text and self.thinking:
            text = f"</think>\n\n{text}"
            self.thinking = False
        return thought + text


def _parsed(message: str) -> Any:
    try:
        return json.loads(message)
    except (ValueError, RecursionError):
        raise BadAnswer("the worker's server sent garbage", "an event that is no JSON") from None
