"""A real gateway on a free port, over an answerer, an operator and facts that follow a script.

Clients in tests are threads with real sockets; their time-outs make a hanging gateway a failed test, not a hanging one.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import trio

from node.answers import AnswerEvent, Completed, Delta, Failed, Question, Routed, WorkerShare
from node.asked_queries import WatchedAnswers
from node.config import GatewaySection
from node.gateway.http import Gateway
from node.gateway.ports import FederationFacts, ModelFacts, NodeSnapshot, OfferFacts, PeerFacts
from node.measures import Figure, Measured, Measures
from node.operations import Json, OperationFailed
from protocol.errors import ErrorCode
from protocol.ids import NodeId, peer_id
from protocol.signing import Signer

WORKER: NodeId = Signer.from_seed(b"\x07" * 32).node
MODEL = "smollm2-135m"
HANG_SECONDS = 45  # after which a client gives up

Emit = Callable[[AnswerEvent], Awaitable[None]]
Script = Callable[[Question, Emit], Awaitable[None]]

ROUTED = Routed(WORKER, MODEL, attempt=1, queue_position=0, wait_ms=0)
SHARE = WorkerShare(WORKER, MODEL, units_in=7, units_out=3, amount=16, receipt="ab" * 32, lane="paid")


def completed(finish: str = "stop") -> Completed:
    """The last word of a whole answer."""
    return Completed(finish, MODEL, units_in=7, units_out=3, ttft_ms=12, shares=(SHARE,), failover=False)


def events(*said: AnswerEvent) -> Script:
    """A script that emits these events and ends."""

    async def script(question: Question, emit: Emit) -> None:
        for event in said:
            await emit(event)

    return script


def saying(*texts: str, finish: str = "stop") -> Script:
    """A script that delivers a whole answer."""
    return events(ROUTED, *(Delta(text) for text in texts), completed(finish))


def failing(code: ErrorCode, message: str = "no", after: tuple[str, ...] = (), retry_after_ms: int = 0) -> Script:
    """A script that fails, after some text or before any."""
    return events(ROUTED, *(Delta(text) for text in after), Failed(code, message, retry_after_ms))


class ScriptedAnswers:
    """Answers by a script; keeps what was asked and how it ended."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.asked: list[Question] = []
        self.emitted = 0
        self.cancelled = 0

    async def answer(self, question: Question, emit: Emit) -> None:
        """See `Answers`."""
        self.asked.append(question)

        async def counted(event: AnswerEvent) -> None:
            for share in event.shares if isinstance(event, Completed | Failed) and question.charged else ():
                question.charged(share)  # as the requester does when it is in the books
            await emit(event)
            self.emitted += 1

        try:
            await self.script(question, counted)
        except trio.Cancelled:
            self.cancelled += 1
            raise


class ScriptedOperations:
    """An operator's side that repeats what it was asked."""

    def __init__(self) -> None:
        self.broken_stream: Exception | None = None
        self.accounts: list[Json] | None = None

    async def call(self, name: str, arguments: Json) -> Json:
        """The question back; `ledger.show` always fails."""
        if name == "ledger.accounts" and self.accounts is not None:
            return {"accounts": self.accounts}
        if name == "ledger.show":
            raise OperationFailed("there is no such entry")
        return {"name": name, "arguments": arguments}

    async def stream(self, name: str, arguments: Json, emit: Callable[[Json], Awaitable[None]]) -> None:
        """Two steps, then the end or the failure that the test wants."""
        await emit({"step": "fetch", "done_bytes": 1, "total_bytes": 2})
        if self.broken_stream is not None:
            raise self.broken_stream
        await emit({"step": "convert", "done": True})


@dataclass
class ScriptedFacts:
    """What the node tells of itself."""

    offered: list[ModelFacts] = field(default_factory=lambda: [ModelFacts("$CHAT", MODEL, 2, 8192)])
    ready: tuple[bool, str] = (True, "")
    measures: Measures = field(default_factory=Measures)
    snapshots: int = 0  # asked for

    async def models(self) -> list[ModelFacts]:
        """See `GatewayFacts`."""
        return self.offered

    async def readiness(self) -> tuple[bool, str]:
        """See `GatewayFacts`."""
        return self.ready

    async def figures(self) -> Sequence[Measured]:
        """See `GatewayFacts`."""
        running = Figure("mtor_running_queries", ("asked",), len(self.measures.now_running()))
        return [*self.measures.measured(), running, Figure("mtor_peers", ("connected",), 3)]

    async def snapshot(self) -> NodeSnapshot:
        """See `GatewayFacts`."""
        self.snapshots += 1
        offers = tuple(_offer(model) for model in self.offered)
        return NodeSnapshot(
            node=peer_id(WORKER),
            name="attic",
            version="0",
            uptime_seconds=self.snapshots,
            paused=False,
            pause_reason="a game",
            ready=self.ready[0],
            ready_reason=self.ready[1],
            federation=FederationFacts("friends", "00" * 32),
            peers=(PeerFacts(peer_id(WORKER), True),),
            offers=offers,
            loading=(),
        )


def _offer(model: ModelFacts) -> OfferFacts:
    price = {"price_in": 1_000, "price_out": 3_000, "free": True}
    load = {"slots": 2, "busy": 0, "queued": 0, "context_tokens": model.context_tokens}
    device = {"device": "cpu", "device_name": "", "vram_mib": 0}
    return OfferFacts(peer_id(WORKER), False, model.realm, model.model, **device, **load, **price, features=("chat",))


@dataclass(frozen=True)
class Reply:
    """An HTTP answer, read whole."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error, which must have OpenAI's four keys and no other."""
        error: dict[str, Any] = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"} and error["message"] and error["type"], error
        return error

    @property
    def frames(self) -> list[str]:
        """The data of server-sent events, comments left out."""
        blocks = self.body.decode().split("\n\n")
        assert blocks[-1] == "", "a stream ends with an empty line"
        return [block.removeprefix("data: ") for block in blocks[:-1] if not block.startswith(":")]

    @property
    def chunks(self) -> list[dict[str, Any]]:
        """The JSON of the events, without [DONE]."""
        return [json.loads(frame) for frame in self.frames if frame != "[DONE]"]

    @property
    def text(self) -> str:
        """The streamed text."""
        choices = [choice for chunk in self.chunks for choice in chunk.get("choices", [])]
        return "".join(choice["delta"].get("content", "") for choice in choices)


@dataclass
class World:
    """A running gateway and what lies behind it."""

    url: str
    data: Path
    answers: ScriptedAnswers
    operations: ScriptedOperations
    facts: ScriptedFacts
    stop: Callable[[], None]

    @property
    def port(self) -> int:
        """Where it listens."""
        port = urlsplit(self.url).port
        assert port is not None
        return port

    @property
    def token(self) -> str:
        """The operator's token."""
        return (self.data / "admin.token").read_text()

    async def ask(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Reply:
        """One request. `body` is sent as it is if it is bytes, in chunks if it is a list of bytes, else as JSON."""
        return await trio.to_thread.run_sync(self.ask_here, method, path, body, dict(headers or {}))

    def ask_here(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Reply:
        """The same, in the calling thread."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=HANG_SECONDS)
        in_chunks = isinstance(body, list)
        raw = body if body is None or in_chunks or isinstance(body, bytes) else json.dumps(body).encode()
        try:
            connection.request(method, path, raw, dict(headers or {}))
            response = connection.getresponse()
            return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    async def chat(self, **fields: Any) -> Reply:
        """A chat completion; `fields` go over a smallest request."""
        body = {"model": "auto", "messages": [{"role": "user", "content": "hello"}]} | fields
        return await self.ask("POST", "/v1/chat/completions", body)

    async def operate(self, name: str, body: Any = None) -> Reply:
        """An operator's call, with the token."""
        return await self.ask("POST", f"/mtor/v1/{name}", body or {}, {"Authorization": f"Bearer {self.token}"})


@asynccontextmanager
async def gateway_world(data: Path, script: Script | None = None, **section: Any) -> AsyncIterator[World]:
    """A gateway that runs until the block ends."""
    config = GatewaySection.model_validate({"port": 0} | section)
    answers, operations, facts = ScriptedAnswers(script or saying("Hel", "lo")), ScriptedOperations(), ScriptedFacts()
    gateway = Gateway(config, data, WatchedAnswers(answers, facts.measures), operations, facts)
    with trio.fail_after(4 * HANG_SECONDS):
        async with trio.open_nursery() as nursery:
            url = await nursery.start(gateway.run)
            yield World(url, data, answers, operations, facts, nursery.cancel_scope.cancel)
            nursery.cancel_scope.cancel()


async def until(seen: Callable[[], bool]) -> None:
    """Wait for what another task or thread does. Fails, and does not hang, if it never happens."""
    with trio.fail_after(HANG_SECONDS):
        while not seen():
            await trio.sleep(0.005)
