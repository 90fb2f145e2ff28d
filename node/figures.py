"""The figures of a running node for `/metrics`: what was counted, and how things stand now.

Rule: read from the owners of the state at the moment of asking; labels as `node.measures` wants them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import psutil

from node.bookkeeper import Bookkeeper
from node.directory import Directory
from node.measures import Figure, Measured, Measures
from node.network import Network
from node.services import ModelService, Services
from node.version import VERSION
from node.worker import Worker
from protocol.ids import BUILT_IN_REALMS
from protocol.params import MIB, MICRO


@dataclass(frozen=True, slots=True)
class NodeFigures:
    """Asks everybody."""

    measures: Measures
    network: Network
    directory: Directory
    services: Services
    worker: Worker
    bookkeeper: Bookkeeper
    paused: Callable[[], bool]  # the node is aside for its owner
    problems: Callable[[], Sequence[str]]

    async def read(self) -> list[Measured]:
        """Everything as it is now."""
        return [
            *self.measures.measured(),
            *self._running(),
            *self._serving(),
            *self._peers(),
            *await self._ledger(),
            *_process(),
            Figure("mtor_guard_paused", (), self.paused()),
            Figure("mtor_problems", (), len(self.problems())),
            Figure("mtor_query_streams", (), self.worker.streams),
            Figure("mtor_build_info", (VERSION,), 1),
        ]

    def _running(self) -> Iterator[Figure]:
        sides = Counter(query.side for query in self.measures.now_running())
        return (Figure("mtor_running_queries", (side,), sides[side]) for side in ("asked", "served"))

    def _serving(self) -> Iterator[Figure]:
        """A model that several engines serve in a realm is one series."""
        together: Counter[tuple[str, tuple[str, str]]] = Counter()
        for service in self.services:
            labels = (str(service.realm), service.engine.info.name)
            together.update({(name, labels): value for name, value in _service(service).items()})
        return (Figure(*key, value) for key, value in together.items())

    def _peers(self) -> Iterator[Figure]:
        own = self.network.node
        offers = [known.offer for known in self.directory.offers() if known.node != own]
        connected = {peer.node for peer in self.network.peers()}
        yield Figure("mtor_peers", ("connected",), len(connected))
        yield Figure("mtor_peers", ("known",), len(connected | {offer.node for offer in offers}))
        realms: Counter[str] = Counter(dict.fromkeys(BUILT_IN_REALMS, 0))
        for offer in offers:
            realms.update({self.measures.realm(model.realm) for model in offer.models if model.slots})
        for realm, number in realms.items():
            yield Figure("mtor_offering_peers", (realm,), number)

    async def _ledger(self) -> list[Figure]:
        balance = await self.bookkeeper.balance()
        paying, paid = self.bookkeeper.channel_counts()
        return [
            Figure("mtor_balance_credits", (), balance.balance / MICRO),
            Figure("mtor_held_credits", (), balance.held / MICRO),
            Figure("mtor_unsettled_credits", ("in",), balance.pending / MICRO),
            Figure("mtor_unsettled_credits", ("out",), balance.owed / MICRO),
            Figure("mtor_earned_credits", (), balance.earned / MICRO),
            Figure("mtor_spent_credits", (), balance.spent / MICRO),
            Figure("mtor_open_channels", ("payer",), paying),
            Figure("mtor_open_channels", ("payee",), paid),
            Figure("mtor_epoch", (), self.bookkeeper.epochs.status().epoch),
        ]


def _service(service: ModelService) -> dict[str, float]:
    stats = service.engine.stats()
    return {
        "mtor_slots": service.section.slots,
        "mtor_busy_slots": service.scheduler.busy,
        "mtor_queued_queries": service.scheduler.queued,
        "mtor_engine_ready": service.engine.ready,
        "mtor_engine_tokens_per_second": stats.tokens_per_second,
        "mtor_engine_memory_bytes": stats.memory_mib * MIB,
        "mtor_engine_restarts": stats.restarts,
    }


def _process() -> Iterator[Figure]:
    process = psutil.Process()
    with process.oneshot():
        times = process.cpu_times()
        yield Figure("process_resident_memory_bytes", (), process.memory_info().rss)
        yield Figure("process_cpu_seconds", (), times.user + times.system)
        yield Figure("process_start_time_seconds", (), process.create_time())
