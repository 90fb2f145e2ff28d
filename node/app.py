"""The composition root: the only place where the node is put together.

Rule: everything is built here in the order of its dependencies and ends in the reverse order: the gateway first, so
that nothing new comes in; then announcer, network and queries; then the engines; the ledger last, so that whatever
was still paid is written. A part that fails for good ends the node with a sentence that names the fix.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from node.announcer import Announcer
from node.asked_queries import WatchedAnswers
from node.blocking import Blocked, BlockList
from node.bookkeeper import LedgerDamaged, Settings
from node.bootstrap import BootstrapError, BootstrapKeeper, BootstrapPeer, parse_bootstrap_address, read_bootstrap_file
from node.clock import now_ms
from node.config import NodeConfig, RealmSection
from node.config_keeper import ConfigKeeper
from node.config_operations import Apply
from node.directory import Directory
from node.engines.process import EngineStartError, ModelFolder
from node.facts import NodeFacts
from node.fake_cards import CardsFileError
from node.federation import FederationError
from node.figures import NodeFigures
from node.garbage import calm_collector
from node.gateway.http import Gateway, GatewayError
from node.gateway.keys import KeysError
from node.gateway.ports import FederationFacts
from node.identity import IdentityError, load_or_create_identity
from node.ledger_service import LedgerService, open_bookkeeper
from node.libp2p_host import Libp2pNetwork
from node.log_operations import LogOperations
from node.logs import set_level, start_logging
from node.loopback import loopback_pair
from node.measures import Measures
from node.models import ModelError, ModelStore
from node.network import NetworkError, RecordRules, Stream
from node.nurseries import one_error
from node.operator import NodeOperations, Parts
from node.outer_workers import OuterWorkers
from node.paths import DataFolderError, config_file, exclusive, models_folder
from node.requester import Requester
from node.router import Router
from node.services import Services
from node.serving import Serving
from node.store import StoreError
from node.worker import Worker
from protocol import params
from protocol.ids import NodeId, RealmId, parse_peer_id, peer_id, short
from protocol.offers import newest_record, record_valid

if TYPE_CHECKING:
    from trio_typing import TaskStatus

log = logging.getLogger("mtor.node")

NAMED_FAILURES = (
    BootstrapError,
    CardsFileError,
    DataFolderError,
    EngineStartError,
    FederationError,
    GatewayError,
    IdentityError,
    KeysError,
    LedgerDamaged,
    ModelError,
    NetworkError,
    StoreError,
)  # each carries a message that names the fix

FAREWELL_SECONDS = 0.3  # for the answer to `mtor stop`
BUNDLED_BOOTSTRAP = Path(__file__).resolve().parent.parent / "bootstrap_peers.txt"


@dataclass(frozen=True, slots=True)
class Launch:
    """How `mtor up` was called, beside the configuration."""

    data: Path
    bootstrap: tuple[str, ...] = ()  # more peers, for this run
    config: Path | None = None  # the file of the configuration; None: the one in the data folder
    flags: Mapping[str, Any] = field(default_factory=dict)  # what stood above the file, in its shape


def run_node(config: NodeConfig, launch: Launch) -> int:
    """Run a node until it is told to stop; the process's exit code."""
    try:
        with exclusive(launch.data):
            start_logging(config.log, launch.data)
            with one_error():
                trio.run(partial(Node(config, launch).run), strict_exception_groups=True)
    except NAMED_FAILURES as error:
        print(f"mtor: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    return 0


class Node:
    """All parts of one node."""

    def __init__(self, config: NodeConfig, launch: Launch) -> None:
        data = launch.data
        identity = load_or_create_identity(data)
        blocked = BlockList(Blocked(parse_peer_id(each.node), each.reason, each.since) for each in config.blocked_peers)
        self._config = config
        self._models = ModelStore(models_folder(data))
        served = [_resolved(section, self._models.find(section.model)) for section in config.local_models]
        self._network = Libp2pNetwork(
            identity.seed,
            RecordRules(record_valid, newest_record),
            listen=config.node.listen,
            announce=config.node.announce,
            gossip=config.node.gossip,
            dht=config.node.dht,
            max_connections=config.node.max_connections,
            blocked=blocked,
        )
        self._node = identity.node
        self._directory = Directory(identity.node, now_ms, blocked)
        self._bootstrap = BootstrapKeeper(self._network, _bootstrap_peers(config, launch), random.Random())
        self._bookkeeper = open_bookkeeper(
            data,
            config.node.name or f"home of {short(identity.node)}",
            identity.signer,
            self._network,
            self._directory.addresses,
            Settings(config.spend.hold, config.spend.close_after_seconds * params.SECONDS, config.ledger.keep_epochs),
        )
        self._ledger = LedgerService(self._bookkeeper, self._network)
        self._services = Services(free=config.free.tokens_per_day > 0)
        measures = Measures(lambda: {service.realm for service in self._services})
        self._worker = Worker(identity.node, self._services, self._bookkeeper, config.free, now_ms, measures)
        self._serving = Serving(config, data, served, self._services, self._worker, now_ms)
        self._outer = OuterWorkers(config, os.environ, self._services)
        self._announcer = Announcer(
            self._network,
            self._directory,
            identity.signer,
            self._bookkeeper.federation,
            self._services.offers,
            now_ms,
            use_gossip=config.node.gossip,
            use_dht=config.node.dht,
            witnesses=self._bookkeeper.genesis.witnesses,
        )
        requester = Requester(identity.node, self._open_stream, self._bookkeeper, now_ms)
        seek, hint = self._announcer.seek_now, self._serving.hint
        self._router = Router(self._directory, requester, seek, hint, _backups(config), measures)
        operations = NodeOperations(
            Parts(
                ConfigKeeper(config_file(data, launch.config), config, launch.flags),
                self._network,
                self._bootstrap,
                self._directory,
                self._services,
                self._bookkeeper,
                self._ledger,
                self._models,
                self._serving,
                self._outer,
                blocked,
                self._live(),
                measures,
                LogOperations(data),
                self._stop_soon,
                self._problems,
            )
        )
        figures = NodeFigures(
            measures,
            self._network,
            self._directory,
            self._services,
            self._worker,
            self._bookkeeper,
            lambda: self._serving.guard.state.paused,
            self._problems,
        )
        facts = NodeFacts(
            config.node.name,
            self._network,
            self._directory,
            self._services,
            FederationFacts(self._bookkeeper.genesis.name, self._bookkeeper.federation.hex()),
            lambda: self._serving.guard.state,
            figures,
        )
        self._gateway = Gateway(config.gateway, data, WatchedAnswers(self._router, measures), operations, facts)
        self._scope = trio.CancelScope()
        self._local: trio.Nursery | None = None

    def stop(self) -> None:
        """End the node in order."""
        self._scope.cancel()

    async def run(self) -> None:
        """Run until `stop`, a signal, or a failure of a part."""
        async with trio.open_nursery() as books:
            await books.start(self._bookkeeper.run)
            with self._scope:
                books.start_soon(self._watch_signals)
                async with trio.open_nursery() as nursery:
                    await self._start(nursery)
            log.info("stopped")
            books.cancel_scope.cancel()

    async def _start(self, nursery: trio.Nursery) -> None:
        self._local = nursery
        await nursery.start(self._network.run)
        self._network.serve(params.QUERY_PROTOCOL, self._worker.serve)
        await nursery.start(self._ledger.run)
        await nursery.start(self._announcer.run)
        nursery.start_soon(self._bootstrap.run)
        url = await nursery.start(self._gateway.run)
        log.info("node %s", peer_id(self._node))
        log.info("listening on %s", ", ".join(self._network.addresses()))
        log.info("asking: %s/v1 (OpenAI-compatible)", url)
        if sys.stderr.isatty():  # never through a logger: the link is as good as the operator's token, once
            print(f"page:   {self._gateway.page_link()} (ten minutes, once; then `mtor open`)", file=sys.stderr)
        nursery.start_soon(self._serving.run)
        nursery.start_soon(self._outer.run)
        calm_collector()

    async def _open_stream(self, node: NodeId) -> Stream:
        """A query stream; to the own node one that stays inside this process."""
        if node != self._node:
            return await self._network.open_stream(node, params.QUERY_PROTOCOL, self._directory.addresses(node))
        asker, worker = loopback_pair(node)
        assert self._local is not None
        self._local.start_soon(self._worker.serve, worker)
        return asker

    async def _watch_signals(self, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Ctrl-C and a polite kill end the node in order; the second time at once."""
        wanted = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGBREAK") if hasattr(signal, name)]
        with trio.open_signal_receiver(*wanted) as signals:
            async for number in signals:
                log.info("signal %s: stopping", signal.Signals(number).name)
                self.stop()
                for again in wanted:
                    with suppress(ValueError):
                        signal.signal(again, signal.SIG_DFL)
                return

    def _stop_soon(self) -> None:
        """End the node once the answer to whoever asked for it is out."""
        assert self._local is not None
        self._local.start_soon(self._stop_after, FAREWELL_SECONDS)

    async def _stop_after(self, seconds: float) -> None:
        await trio.sleep(seconds)
        self.stop()

    def _live(self) -> dict[str, Apply]:
        """What puts a setting in force without a restart."""

        def free(config: NodeConfig) -> None:
            self._worker.free = config.free
            self._services.free = config.free.tokens_per_day > 0

        def idle(config: NodeConfig) -> None:
            self._serving.residency.idle_unload_seconds = config.hardware.idle_unload_seconds

        def backup(config: NodeConfig) -> None:
            self._router.backups = _backups(config)

        return {
            "backup": backup,
            "free.tokens_per_day": free,
            "free.total_tokens_per_day": free,
            "gateway.max_concurrent": lambda config: self._gateway.admit(config.gateway.max_concurrent),
            "hardware.idle_unload_seconds": idle,
            "log.level": lambda config: set_level(config.log.level),
            "node.name": lambda config: None,  # it is read where it is shown
        }

    def _problems(self) -> tuple[str, ...]:
        """What is wrong now, with the fix."""
        problems = self._serving.problems() + self._outer.problems()
        problems += self._ledger.problems()
        state = self._bootstrap.state()
        if state.known and not state.reachable:
            problems.append(f"no bootstrap peer can be reached (last error: {state.last_error}); see `mtor doctor`")
        return tuple(problems)


def _backups(config: NodeConfig) -> dict[RealmId, tuple[RealmId, ...]]:
    return {RealmId(realm): tuple(map(RealmId, names)) for realm, names in config.backup.items()}


def _resolved(section: RealmSection, folder: ModelFolder) -> tuple[RealmSection, ModelFolder]:
    """What the operator left open, as the model says it."""
    if section.engine != "auto":
        folder = replace(folder, engine=section.engine)
    return section.model_copy(update={"realm": section.realm or folder.realm}), folder


def _bootstrap_peers(config: NodeConfig, launch: Launch) -> list[BootstrapPeer]:
    """The configured list, or the bundled one; and what this run adds."""
    path = config.node.bootstrap or (BUNDLED_BOOTSTRAP if BUNDLED_BOOTSTRAP.exists() else None)
    listed = list(read_bootstrap_file(path)) if path else []
    return listed + [parse_bootstrap_address(address, "--bootstrap") for address in launch.bootstrap]
