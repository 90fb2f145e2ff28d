"""Models of servers that the operator runs beside the node, offered like the node's own.

Rule: they take no memory here, so no model has to leave for them; a server that is down offers no slots and is used
again when it answers. What is wrong in their lines of the configuration ends the node before it starts.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

import trio

from node.config import NodeConfig, RealmSection
from node.engines.outer.engine import OuterEngine
from node.engines.outer.serving import OuterModel, outer_engine
from node.operations import Json
from node.scheduler import Scheduler
from node.services import LONGEST_REASON, ModelService, Services, Tally
from protocol.ids import CHAT, IMAGINE

if TYPE_CHECKING:
    from trio_typing import TaskStatus

log = logging.getLogger("mtor.serving")

USUAL_REALMS = {"a1111": IMAGINE}  # of a line that leaves the realm out; the others are $CHAT


class OuterWorkers:
    """All of them."""

    def __init__(self, config: NodeConfig, environment: Mapping[str, str], services: Services) -> None:
        """Raises `EngineStartError` with the remedy."""
        self._services = services
        self._served = [
            (_placed(section), self._engine(section, config, environment)) for section in config.outer_models
        ]

    async def run(self, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Watch every server for ever; started when each was asked once."""
        async with trio.open_nursery() as nursery:
            async with trio.open_nursery() as first:
                for section, engine in self._served:
                    first.start_soon(self._begin, nursery, section, engine)
            task_status.started()

    def problems(self) -> list[str]:
        """Servers that are not used now, and why."""
        return [f"the server of {engine.info.name}: {engine.problem}" for _, engine in self._served if engine.problem]

    def facts(self) -> list[Json]:
        """Each, with what became of its queries, for the operator."""
        services = {id(service.engine): service for service in self._services}
        return [_row(section, engine, services.get(id(engine))) for section, engine in self._served]

    async def _begin(self, nursery: trio.Nursery, section: RealmSection, engine: OuterEngine) -> None:
        await nursery.start(engine.run)
        self._services.add(ModelService(section, engine, Scheduler(section.slots, section.queue)))
        log.info("serving %s with %s of %s", section.realm, engine.info.name, section.url)

    def _engine(self, section: RealmSection, config: NodeConfig, environment: Mapping[str, str]) -> OuterEngine:
        model = OuterModel(
            section.engine,
            _placed(section).realm,
            section.model,
            section.url,
            section.options,
            section.api_key_env,
            section.api_key_file,
            section.max_response_bytes,
            config.workers.allowed,
            section.context,
        )
        return outer_engine(model, environment)


def _row(section: RealmSection, engine: OuterEngine, service: ModelService | None) -> Json:
    """`service` is None until the server was asked for the first time."""
    tally, queue = (service.tally, service.scheduler) if service else (Tally(), None)
    return {
        "realm": section.realm,
        "model": engine.info.name,
        "engine": section.engine,
        "url": section.url,
        "ready": engine.ready,
        "slots": section.slots,
        "busy": queue.busy if queue else 0,
        "queued": queue.queued if queue else 0,
        "answered": tally.answered,
        "failed": tally.failed,
        "last_error": (engine.problem or tally.last_error)[:LONGEST_REASON],
    }


def _placed(section: RealmSection) -> RealmSection:
    """With its realm, where the line leaves it out."""
    return section.model_copy(update={"realm": section.realm or USUAL_REALMS.get(section.engine, CHAT)})
