"""`/api/…`: Ollama's interface, for programs that know no other.

Rule: Ollama's shapes, streamed as lines of JSON unless told otherwise; durations are measured here; a broken answer
never has a last line with `done`. What would change models on this machine is refused and names `mtor models`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from node.answers import AnswerEvent, Completed, Delta, Question, Routed, ToolCalled
from node.gateway.answer_shapes import (
    OllamaChatAnswer,
    OllamaGenerateAnswer,
    OllamaModelsAnswer,
    OllamaShowAnswer,
    OllamaVersionAnswer,
)
from node.gateway.asking import Asker, Asking
from node.gateway.bridge import Bridge
from node.gateway.conversing import Said
from node.gateway.embeddings import NO_EMBEDDINGS
from node.gateway.failures import ApiError
from node.gateway.models import named
from node.gateway.ollama_shapes import (
    Json,
    OllamaChatRequest,
    OllamaGenerateRequest,
    OllamaQuery,
    OllamaShowRequest,
    chat_query,
    generate_query,
    plain_name,
)
from node.gateway.openai import OTHER_ROUTES, facts
from node.gateway.ports import GatewayFacts, ModelFacts
from node.gateway.routes import LINES, Answered, Handler, Route
from node.gateway.sse import EventStream, compact
from node.gateway.standing import Standing
from node.gateway.wishes import ANY_MODEL, parse
from node.version import VERSION
from protocol.ids import VISION

SPOKEN_VERSION = "0.12.0"  # of Ollama: the interface that is spoken here; clients compare it
ARCHITECTURE = "mtor"
KEEPING = {
    "pull": ("POST", "`mtor models pull NAME` fetches a model"),
    "push": ("POST", "models are not given away from here; `mtor models pull` fetches them"),
    "create": ("POST", "`mtor models pull` takes folders and files, too"),
    "copy": ("POST", "`mtor models pull` gives a model its name"),
    "delete": ("DELETE", "`mtor models rm NAME` removes one"),
}

Shape = Callable[[str, list[ToolCalled]], Json]


class OllamaRoutes:
    """Handlers of Ollama's routes."""

    def __init__(self, asker: Asker, bridge: Bridge, facts: GatewayFacts) -> None:
        self._asker = asker
        self._bridge = bridge
        self._facts = facts
        self._started_at = _now()

    def routes(self) -> tuple[Route, ...]:
        """See `Routes`."""
        chat = (Answered(shape=OllamaChatAnswer), Answered(LINES))
        text = (Answered(shape=OllamaGenerateAnswer), Answered(LINES))
        models, show = (Answered(shape=OllamaModelsAnswer),), (Answered(shape=OllamaShowAnswer),)
        version = (Answered(shape=OllamaVersionAnswer),)
        return (
            _post("/api/chat", self.chat, "The next message of a conversation.", chat, OllamaChatRequest, asks=True),
            _post("/api/generate", self.generate, "An answer to a text.", text, OllamaGenerateRequest, asks=True),
            _get("/api/tags", self.tags, "Models that can be talked to.", models),
            _get("/api/ps", self.running, "The same: whatever is on offer can be asked.", models),
            _post("/api/show", self.show, "One model.", show, OllamaShowRequest, errors=(404,)),
            _get("/api/version", self.version, "The version of Ollama whose interface this is.", version),
            *(
                _post(path, self.refuse_embedding, "Refused: no realm makes embeddings.")
                for path in ("/api/embed", "/api/embeddings")
            ),
            *(
                Route(method, f"/api/{name}", self.refuse_keeping, "ollama", f"Refused: {instead}.")
                for name, (method, instead) in KEEPING.items()
            ),
        )

    # --- asking --------------------------------------------------------------------------------------

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """A conversation."""
        wanted = parse(OllamaChatRequest, await request.read())
        answer = _Answer(wanted, _message)
        if not wanted.messages:
            return await self._loaded(wanted, answer)
        return await self._ask(request, chat_query(wanted), wanted, answer)

    async def generate(self, request: web.Request) -> web.StreamResponse:
        """One prompt."""
        wanted = parse(OllamaGenerateRequest, await request.read())
        answer = _Answer(wanted, _response)
        if not wanted.prompt:
            return await self._loaded(wanted, answer)
        return await self._ask(request, generate_query(wanted), wanted, answer)

    async def _ask(
        self, request: web.Request, question: Question, wanted: OllamaQuery, answer: _Answer
    ) -> web.StreamResponse:
        async with self._asker.ask(request, question) as asking:
            if wanted.stream is False:
                return await answer.whole(asking)
            stream = LineStream(request, asking.headers)
            return await stream.run(lambda: answer.follow(asking, stream))

    async def _loaded(self, wanted: OllamaQuery, answer: _Answer) -> web.StreamResponse:
        """Without a word to answer, Ollama loads the model. Here somebody has it loaded, or nobody has it."""
        model = plain_name(wanted.model)
        if not (model in ANY_MODEL or model.startswith("$")):
            named(await self._models(), model)
        return web.json_response(answer.part("", []) | {"done": True, "done_reason": "load"})

    # --- models --------------------------------------------------------------------------------------

    async def tags(self, request: web.Request) -> web.StreamResponse:
        """All models that a conversation can be held with."""
        return web.json_response({"models": [self._row(model) for model in _by_name(await self._models())]})

    async def running(self, request: web.Request) -> web.StreamResponse:
        """What is loaded. A worker may load on demand, which is not seen from here."""
        rows = [
            self._row(model) | {"size_vram": 0, "context_length": model.context_tokens}
            for model in _by_name(await self._models())
        ]
        return web.json_response({"models": rows})

    async def show(self, request: web.Request) -> web.StreamResponse:
        """One model."""
        wanted = parse(OllamaShowRequest, await request.read())
        name = plain_name(wanted.model or wanted.name or "")
        if not name:
            raise ApiError(400, "model is missing", code="missing_value", param="model")
        models = await self._models()
        model = named(models, name)
        realms = {each.realm for each in models if each.model == name}
        about = {
            "general.architecture": ARCHITECTURE,
            "general.basename": name,
            f"{ARCHITECTURE}.context_length": model.context_tokens,
        }
        return web.json_response(
            {
                "modelfile": "",
                "parameters": "",
                "template": "",
                "modified_at": self._started_at,
                "details": _details(),
                "model_info": about,
                "capabilities": _capabilities(model, realms),
            }
        )

    async def version(self, request: web.Request) -> web.StreamResponse:
        """Not this node's own version, which stands beside it."""
        return web.json_response({"version": SPOKEN_VERSION, "mtor": VERSION})

    async def _models(self) -> list[ModelFacts]:
        models: list[ModelFacts] = await self._bridge.call(self._facts.models)
        return [model for model in models if model.realm not in OTHER_ROUTES]

    def _row(self, model: ModelFacts) -> Json:
        """Weights are with the workers, so size and digest are not known here."""
        known = {"name": model.model, "model": model.model, "modified_at": self._started_at}
        return known | {"size": 0, "digest": "", "details": _details()}

    # --- refusals ------------------------------------------------------------------------------------

    async def refuse_embedding(self, request: web.Request) -> web.StreamResponse:
        """Always 400."""
        raise ApiError(400, f"{request.path}: {NO_EMBEDDINGS}")

    async def refuse_keeping(self, request: web.Request) -> web.StreamResponse:
        """Always 400."""
        name = request.path.removeprefix("/api/")
        _, instead = KEEPING[name]
        raise ApiError(400, f"{request.path}: models are kept by this node's operator, not through this API: {instead}")


def _post(path: str, handler: Handler, summary: str, *more: Any, **named: Any) -> Route:
    return Route("POST", path, handler, "ollama", summary, *more, **named)


def _get(path: str, handler: Handler, summary: str, answers: tuple[Answered, ...]) -> Route:
    return Route("GET", path, handler, "ollama", summary, answers)


def _by_name(models: list[ModelFacts]) -> list[ModelFacts]:
    """Each name once, though several realms may have it."""
    return list({model.model: model for model in models}.values())


def _details() -> Json:
    """Ollama's keys; what they hold is known to the workers alone."""
    words = ("parent_model", "format", "family", "parameter_size", "quantization_level")
    return dict.fromkeys(words, "") | {"families": []}


def _capabilities(model: ModelFacts, realms: set[str]) -> list[str]:
    more = {"vision": VISION in realms, "tools": "tools" in model.features}
    return ["completion", *(name for name, able in more.items() if able)]


class LineStream(EventStream):
    """An answer in lines of JSON."""

    media_type = LINES

    def encode(self, data: Json) -> bytes:
        """One line."""
        return compact(data) + b"\n"

    def failure(self, error: ApiError) -> Json:
        """Ollama's shape."""
        return error.ollama_body()


def _message(text: str, calls: list[ToolCalled]) -> Json:
    message: Json = {"role": "assistant", "content": text}
    if calls:
        message["tool_calls"] = [
            {"id": call.id, "function": {"name": call.name, "arguments": _arguments(call)}} for call in calls
        ]
    return {"message": message}


def _arguments(call: ToolCalled) -> Json:
    """Ollama gives arguments as an object. A model may write something else; then it stands under one name."""
    try:
        arguments = json.loads(call.arguments)
    except (ValueError, RecursionError):
        arguments = call.arguments
    return arguments if isinstance(arguments, dict) else {"arguments": arguments}


def _response(text: str, calls: list[ToolCalled]) -> Json:
    return {"response": text}


class _Answer:
    """One answer: its shapes and its clock."""

    def __init__(self, wanted: OllamaQuery, shape: Shape) -> None:
        self._model = wanted.model
        self._shape = shape
        self._began = time.monotonic_ns()
        self._accepted_at = 0
        self._first_at = 0

    async def whole(self, asking: Asking) -> web.Response:
        """In one piece."""
        said = Said()
        async for item in asking.events():
            self._note(item)
            said.take(item)
        assert asking.completed is not None
        body = self.part(said.text, said.calls) | self._end(asking.completed)
        return web.json_response(body, headers=asking.headers())

    async def follow(self, asking: Asking, stream: EventStream) -> None:
        """In lines."""
        standing = Standing()
        async with aclosing(asking.events_and_pauses()) as events:
            async for item in events:
                self._note(item)
                told = standing.note(item, begun=stream.begun)
                if item is None or told:  # an empty part is what keeps such a stream alive
                    await stream.send(self.part("", []) | standing.news())
                if isinstance(item, Delta):
                    await stream.send(self.part(item.text, []) | standing.news())
                if isinstance(item, ToolCalled):
                    await stream.send(self.part("", [item]) | standing.news())
                if isinstance(item, Completed):
                    await stream.send(self.part("", []) | self._end(item))

    def part(self, text: str, calls: list[ToolCalled]) -> Json:
        """One piece."""
        return {"model": self._model, "created_at": _now()} | self._shape(text, calls) | {"done": False}

    def _note(self, item: AnswerEvent | None) -> None:
        now = time.monotonic_ns()
        if isinstance(item, Routed) and not item.queue_position:
            self._accepted_at = self._accepted_at or now
        if isinstance(item, Delta | ToolCalled):
            self._first_at = self._first_at or now

    def _end(self, done: Completed) -> Json:
        """The last line. Waiting for a worker is told as loading, reading until the first word as the prompt's."""
        now = time.monotonic_ns()
        accepted = self._accepted_at or self._began
        first = self._first_at or now
        return {
            "done": True,
            "done_reason": "length" if done.finish == "length" else "stop",
            "total_duration": now - self._began,
            "load_duration": accepted - self._began,
            "prompt_eval_count": done.units_in,
            "prompt_eval_duration": max(0, first - accepted),
            "eval_count": done.units_out,
            "eval_duration": now - first,
            "mtor": facts(done),
        }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
