"""The operator's side of a running node: each name of `OPERATIONS` as one method.

Rule: read-only views over the owners of the state; what changes something asks its owner to do it. Arguments are
checked before anything runs, and a failure names the fix.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from node.blocking import BlockList
from node.bookkeeper import Bookkeeper
from node.bootstrap import BootstrapKeeper
from node.config_keeper import ConfigKeeper
from node.config_operations import Apply, ConfigOperations
from node.directory import Directory
from node.gameguard import guard_facts
from node.ledger_actions import LedgerActions
from node.ledger_operations import LedgerOperations
from node.ledger_service import LedgerService
from node.log_operations import LogOperations
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
from node.outer_workers import OuterWorkers
from node.owner_operations import OwnerOperations
from node.peer_operations import PeerOperations
from node.services import ModelService, Services
from node.serving import Serving
from node.serving_operations import ServingOperations
from node.version import VERSION
from protocol.ids import NodeId, peer_id
from protocol.requests import request_name

MOST_SHOWN = 64  # running queries in a status


@dataclass(frozen=True, slots=True)
class Parts:
    """The owners of the state that the operator may look at."""

    keeper: ConfigKeeper
    network: Network
    bootstrap: BootstrapKeeper
    directory: Directory
    services: Services
    bookkeeper: Bookkeeper
    ledger: LedgerService
    models: ModelStore
    serving: Serving
    workers: OuterWorkers
    blocked: BlockList
    live: Mapping[str, Apply]  # settings that can change without a restart
    measures: Measures
    logs: LogOperations
    stop: Callable[[], None]
    problems: Callable[[], tuple[str, ...]]  # what is wrong now, in words, with the fix


class NodeOperations:
    """The `Operations` port of a running node."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._began = time.monotonic()
        self._ledger = LedgerOperations(parts.bookkeeper, parts.network.node)
        self._models = ModelOperations(parts.models, parts.services.uses)
        serving, reserve_mib = parts.serving, parts.keeper.in_force.hardware.reserve_mib
        changes = ServingOperations(serving, parts.services, parts.models, parts.keeper)
        peers = PeerOperations(parts.network, parts.directory, parts.blocked, parts.keeper, self._is_witness)
        self._methods: dict[str, Method] = {
            "status": self.status,
            "peers": self.peers,
            "realms": self.realms,
            **self._models.methods,
            **self._ledger.methods,
            **LedgerActions(parts.bookkeeper, parts.ledger).methods,
            **OwnerOperations(serving.guard, serving.residency, serving.cards, reserve_mib).methods,
            **changes.methods,
            **peers.methods,
            **ConfigOperations(parts.keeper, parts.live).methods,
            "workers.list": self.workers,
            "stop": self.stop,
        }
        self._streams: dict[str, Streaming] = {**self._models.streams, **self._ledger.streams}
        self._streams |= {**changes.streams, **parts.logs.streams}
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
            "name": parts.keeper.in_force.node.name,
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
            "loading": parts.serving.loading(),
            "free": parts.keeper.in_force.free.model_dump() | {"used_today": parts.bookkeeper.free_used()},
            "limits": {"max_concurrent": parts.keeper.in_force.gateway.max_concurrent}
            | {"max_connections": parts.keeper.in_force.node.max_connections},
            "blocked": len(list(parts.blocked)),
            "guard": guard_facts(parts.serving.guard.state),
            "problems": list(parts.problems()),
        }

    def _serving(self, service: ModelService) -> Json:
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
            "engine": service.section.engine,
            "price_in": service.section.price_in,
            "price_out": service.section.price_out,
            "answered": service.tally.answered,
            "failed": service.tally.failed,
            "tokens_in": service.tally.units_in,
            "tokens_out": service.tally.units_out,
            "last_error": service.tally.last_error,
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

    async def workers(self) -> Json:
        """Models of servers that the operator runs beside the node."""
        return {"workers": self._parts.workers.facts()}

    def _is_witness(self, node: NodeId) -> bool:
        return node in self._parts.bookkeeper.genesis.witnesses


def _running(query: RunningQuery) -> Json:
    facts = {"query": query.query, "side": query.side, "realm": query.realm, "model": query.model}
    return facts | {"peer": query.peer, "state": query.state, "seconds": round(time.monotonic() - query.began, 1)}
