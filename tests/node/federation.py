"""A whole federation inside one process: real protocol, ledger, routing and scheduling; fake network and engines."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from node.announcer import Announcer
from node.answers import AnswerEvent, Completed, Delta, Failed, Question, Routed
from node.blocking import BlockList
from node.bookkeeper import Bookkeeper
from node.config import FreeSection, RealmSection
from node.directory import Directory
from node.engines.fake import FakeEngine
from node.engines.port import Engine
from node.ledger_service import LedgerService, NetworkPeers
from node.loopback import loopback_pair
from node.memory_network import MemoryHub, MemoryNetwork
from node.memory_store import MemoryStore
from node.network import RecordRules, Stream
from node.requester import Requester
from node.router import Router
from node.scheduler import Scheduler
from node.services import ModelService, Services
from node.worker import Worker
from protocol.ids import CHAT, NodeId, QueryId
from protocol.ledger.genesis import Federation, create
from protocol.messages import ChatRequest, Turn
from protocol.offers import newest_record, record_valid
from protocol.params import QUERY_PROTOCOL
from protocol.routing import Requirements
from protocol.signing import Signer

RULES = RecordRules(record_valid, newest_record)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass
class Answered:
    """What an asker saw."""

    events: list[AnswerEvent] = field(default_factory=list)

    async def emit(self, event: AnswerEvent) -> None:
        self.events.append(event)

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, Delta))

    @property
    def workers(self) -> list[NodeId]:
        seen: list[NodeId] = []
        for event in self.events:
            if isinstance(event, Routed) and event.worker not in seen:
                seen.append(event.worker)
        return seen

    @property
    def completed(self) -> Completed:
        last = self.events[-1]
        assert isinstance(last, Completed), last
        return last

    @property
    def failed(self) -> Failed:
        last = self.events[-1]
        assert isinstance(last, Failed), last
        return last


def question(
    text: str = "tell me a story", *, max_tokens: int = 0, deadline_ms: int = 20_000, wanted: Requirements | None = None
) -> Question:
    request = ChatRequest((Turn("user", text),), max_tokens, 0, 1000, 0, 1000, 2000, 2000, 0, ())
    return Question(QueryId(secrets.token_bytes(16)), CHAT, request, wanted or Requirements(), deadline_ms)


class MemoryNode:
    """One node, put together as `app.py` does it, over fakes."""

    def __init__(
        self,
        hub: MemoryHub,
        signer: Signer,
        federation: Federation,
        issuer: Signer | None,
        engines: list[Engine],
        **section: object,
    ) -> None:
        self.signer = signer
        self.blocked = BlockList()
        self.network = MemoryNetwork(hub, signer.node, RULES, blocked=self.blocked)
        self.directory = Directory(signer.node, now_ms, self.blocked)
        witness = NetworkPeers(self.network, self.directory.addresses)
        self.bookkeeper = Bookkeeper(MemoryStore(), signer, federation, issuer, now_ms, witness)
        self.ledger = LedgerService(self.bookkeeper, self.network)
        free = FreeSection(tokens_per_day=int(str(section.pop("free_tokens", 0))))
        self.services = Services([self._service(engine, section) for engine in engines], free=bool(free.tokens_per_day))
        self.worker = Worker(signer.node, self.services, self.bookkeeper, free, now_ms)
        self.announcer = Announcer(self.network, self.directory, signer, federation.id, self.services.offers, now_ms)
        self.requester = Requester(signer.node, self.open_stream, self.bookkeeper, now_ms)
        self.router = Router(self.directory, self.requester, self.announcer.seek_now)
        self._nursery: trio.Nursery | None = None

    @staticmethod
    def _service(engine: Engine, section: dict[str, object]) -> ModelService:
        usual = {"realm": "$CHAT", "model": engine.info.name, "slots": 2, "queue": 4}
        settings = RealmSection.model_validate(usual | section)
        return ModelService(settings, engine, Scheduler(settings.slots, settings.queue))

    async def open_stream(self, node: NodeId) -> Stream:
        if node != self.signer.node:
            return await self.network.open_stream(node, QUERY_PROTOCOL, self.directory.addresses(node))
        asker, worker = loopback_pair(node)
        assert self._nursery is not None
        self._nursery.start_soon(self.worker.serve, worker)
        return asker

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:  # type: ignore[name-defined]
        async with trio.open_nursery() as books:
            await books.start(self.bookkeeper.run)
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                await nursery.start(self.network.run)
                self.network.serve(QUERY_PROTOCOL, self.worker.serve)
                await nursery.start(self.ledger.run)
                await nursery.start(self.announcer.run)
                task_status.started()

    async def ask(self, asked: Question) -> Answered:
        answered = Answered()
        await self.router.answer(asked, answered.emit)
        return answered

    async def settle(self) -> None:
        await self.bookkeeper.close_idle(0)
        await self.bookkeeper.sync()


@dataclass
class MemoryFederation:
    """A gateway without a model (witness and issuer) and workers."""

    hub: MemoryHub
    gateway: MemoryNode
    workers: list[MemoryNode]

    def by_id(self, node: NodeId) -> MemoryNode:
        return next(worker for worker in self.workers if worker.signer.node == node)

    async def settle(self) -> None:
        for worker in self.workers:
            await worker.settle()
        for node in (self.gateway, *self.workers):
            await node.bookkeeper.sync()
            report = await node.bookkeeper.verify(True)
            assert report.verified and report.sum_micro == 0, report


@asynccontextmanager
async def memory_federation(*engines: Engine, **section: object) -> AsyncIterator[MemoryFederation]:
    """Running nodes whose offers are known to the gateway; one worker an engine."""
    hub = MemoryHub()
    keys = [Signer.from_seed(bytes([number + 1]) * 32) for number in range(len(engines) + 2)]
    gateway_key, issuer, *worker_keys = keys
    federation = create("test", now_ms(), [gateway_key.node], [issuer.node])
    gateway = MemoryNode(hub, gateway_key, federation, issuer, [])
    workers = [
        MemoryNode(hub, key, federation, None, [engine], **dict(section))
        for key, engine in zip(worker_keys, engines, strict=True)
    ]
    async with trio.open_nursery() as nursery:
        for node in (gateway, *workers):
            await nursery.start(node.run)
        with trio.fail_after(60):
            while len(gateway.directory.offers()) < len(workers) + 1:
                await gateway.directory.wait_changed()
        yield MemoryFederation(hub, gateway, workers)
        nursery.cancel_scope.cancel()


__all__ = ["Answered", "FakeEngine", "MemoryFederation", "MemoryNode", "memory_federation", "question"]
