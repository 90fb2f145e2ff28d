"""The operator's side of a running node: each name of `OPERATIONS` as one method.

Rule: read-only views over the owners of the state; what changes something asks its owner to do it. Arguments are
checked before anything runs, and a failure names the fix.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from node.bookkeeper import Bookkeeper
from node.bootstrap import BootstrapKeeper
from node.cards import Cards
from node.config import NodeConfig
from node.directory import Directory
from node.gameguard import GameGuard, guard_facts
from node.ledger_actions import LedgerActions
from node.ledger_operations import LedgerOperations
from node.ledger_service import LedgerService
from node.measures import Measures, RunningQuery
from node.model_operations import ModelOperations
from node.models import ModelError, ModelStore
from node.network import Network
from node.operations import (
    OPERATIONS,
    STREAMED,
    Emit,
    Json,
    Method,
    OperationFailed,
    Streaming,
    dispatch,
    dispatch_stream,
)
from node.owner_operations import OwnerOperations
from node.residency import Residency
from node.services import Services
from node.version import VERSION
from protocol.ids import NodeId, peer_id
from protocol.requests import request_name

MOST_SHOWN = 64  # running queries in a status


@dataclass(frozen=True, slots=True)
class Parts:
    """The owners of the state that the operator may look at."""

    config: NodeConfig
    network: Network
    bootstrap: BootstrapKeeper
    directory: Directory
    services: Services
    bookkeeper: Bookkeeper
    ledger: LedgerService
    models: ModelStore
    guard: GameGuard
    residency: Residency
    cards: Cards
    measures: Measures
    stop: Callable[[], None]
    problems: Callable[[], tuple[str, ...]]  # what is wrong now, in words, with the fix


class NodeOperations:
    """The `Operations` port of a running node."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._began = time.monotonic()
        self._ledger = LedgerOperations(parts.bookkeeper, parts.network.node)
        self._models = ModelOperations(parts.models, self._in_use)
        self._methods: dict[str, Method] = {
            "status": self.status,
            "peers": self.peers,
            "realms": self.realms,
            **self._models.methods,
            **self._ledger.methods,
            **LedgerActions(parts.bookkeeper, parts.ledger).methods,
            **OwnerOperations(parts.guard, parts.residency, parts.cards, parts.config.hardware.reserve_mib).methods,
            "stop": self.stop,
        }
        self._streams: dict[str, Streaming] = {**self._models.streams, **self._ledger.streams}
        assert self._methods.keys() == OPERATIONS.keys() and self._streams.keys() == STREAMED.keys()

    async def call(self, name: str, arguments: Json) -> Json:
        """Run one operation. Raises `OperationFailed`."""
        try:
            return await dispatch(self._methods, name, arguments)
        except ModelError as error:
            raise OperationFailed(str(error)) from None

    async def stream(self, name: str, arguments: Json, emit: Emit) -> None:
        """Run long work, handing on its progress. Raises `OperationFailed`."""
        try:
            await dispatch_stream(self._streams, name, arguments, emit)
        except ModelError as error:
            raise OperationFailed(str(error)) from None

    # --- the node ------------------------------------------------------------------------------------

    async def status(self) -> Json:
        """What runs here, how well, and what is wrong."""
        parts = self._parts
        peers = parts.network.peers()
        return {
            "node": peer_id(parts.network.node),
            "name": parts.config.node.name,
            "version": VERSION,
            "python": platform.python_version(),
            "uptime_seconds": round(time.monotonic() - self._began),
            "addresses": list(parts.network.addresses()),
            "federation": {"id": parts.bookkeeper.federation.hex(), "name": parts.bookkeeper.genesis.name}
            | {"epoch": parts.bookkeeper.epochs.status().epoch, "witnesses": len(parts.bookkeeper.genesis.witnesses)},
            "balance": await self._ledger.ledger_balance(),
            "peers": len(peers),
            "bootstrap": asdict(parts.bootstrap.state()),
            "serving": [self._serving(service) for service in parts.services],
            "running": [_running(query) for query in parts.measures.now_running()[:MOST_SHOWN]],
            "guard": guard_facts(parts.guard.state),
            "problems": list(parts.problems()),
        }

    def _serving(self, service: Any) -> Json:
        info, stats = service.engine.info, service.engine.stats()
        return {
            "realm": service.section.realm,
            "model": info.name,
            "requests": [request_name(number) for number in info.requests],
            "ready": service.engine.ready,
            "unloaded": service.wakes() and not service.engine.ready,
            "device": info.device.kind,
            "device_name": info.device.name,
            "slots": service.section.slots,
            "busy": service.scheduler.busy,
            "queued": service.scheduler.queued,
            "tokens_per_second": round(stats.tokens_per_second, 1),
            "memory_mib": stats.memory_mib,
            "restarts": stats.restarts,
        }

    async def peers(self) -> Json:
        """Connected peers and every node whose offer is known."""
        parts = self._parts
        connected = {peer.node: peer for peer in parts.network.peers()}
        offers = {known.node: known for known in parts.directory.offers()}
        nodes = [node for node in {**connected, **offers} if node != parts.network.node]
        return {"peers": [self._peer(node, connected, offers) for node in sorted(nodes)]}

    def _peer(self, node: NodeId, connected: dict[NodeId, Any], offers: dict[NodeId, Any]) -> Json:
        known = offers.get(node)
        models = known.offer.models if known else ()
        connection = connected.get(node)
        return {
            "node": peer_id(node),
            "connected": connection is not None,
            "connected_seconds": round(connection.connected_seconds) if connection else 0,
            "addresses": list(known.offer.addresses if known else connection.addresses if connection else ()),
            "same_federation": known is not None and known.federation == self._parts.bookkeeper.federation,
            "models": [self._offered(node, model) for model in models],
        }

    def _offered(self, node: NodeId, model: Any) -> Json:
        experience = self._parts.directory.experience(node, model.model)
        return {
            "realm": model.realm,
            "model": model.model,
            "device": model.device.kind,
            "device_name": model.device.name,
            "vram_mib": model.device.vram_mib,
            "context_tokens": model.context_tokens,
            "slots": model.slots,
            "busy": model.busy,
            "queued": model.queued,
            "price_in": model.price_in,
            "price_out": model.price_out,
            "free": bool(model.free),
            "experience": asdict(experience),
        }

    async def realms(self) -> Json:
        """Every realm on offer: by whom, with which models."""
        parts = self._parts
        realms: dict[str, list[Json]] = {}
        for known in parts.directory.offers():
            for model in known.offer.models:
                row = {"node": peer_id(known.node), "own": known.node == parts.network.node}
                realms.setdefault(model.realm, []).append(row | self._offered(known.node, model))
        return {"realms": [{"realm": realm, "offers": offers} for realm, offers in sorted(realms.items())]}

    async def stop(self) -> Json:
        """End the node as if by Ctrl-C."""
        self._parts.stop()
        return {"stopping": True}

    def _in_use(self, model: str) -> bool:
        """True if a realm of this node serves the model."""
        return any(service.engine.info.name == model for service in self._parts.services)


def _running(query: RunningQuery) -> Json:
    facts = {"query": query.query, "side": query.side, "realm": query.realm, "model": query.model}
    return facts | {"peer": query.peer, "state": query.state, "seconds": round(time.monotonic() - query.began, 1)}
