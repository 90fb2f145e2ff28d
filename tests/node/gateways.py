"""Real gateways over nodes in memory: what `app.py` puts together, with fake network and engines."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from node.asked_queries import WatchedAnswers
from node.config import GatewaySection
from node.engines.fake import FakeEngine
from node.facts import NodeFacts
from node.figures import NodeFigures
from node.gameguard import GuardState
from node.gateway.http import Gateway
from node.gateway.ports import FederationFacts
from node.measures import Measures
from tests.node.federation import MemoryFederation, MemoryNode, memory_federation
from tests.node.gateway_world import ScriptedAnswers, ScriptedFacts, ScriptedOperations, World, saying

RUNS = GuardState(False, "", 0, None, None, (), ())


def facts_of(node: MemoryNode, measures: Measures | None = None, guard: GuardState = RUNS) -> NodeFacts:
    """What a gateway over this node tells without a query."""
    parts = (node.network, node.directory, node.services)
    figures = NodeFigures(
        measures or Measures(), *parts, node.worker, node.bookkeeper, lambda: node.worker.paused, lambda: ["one"]
    )
    federation = FederationFacts(node.bookkeeper.genesis.name, node.bookkeeper.federation.hex())
    return NodeFacts("attic", *parts, federation, lambda: guard, figures)


@asynccontextmanager
async def gateway_of(node: MemoryNode, data: Path) -> AsyncIterator[World]:
    """A real gateway over a node in memory, with the figures that a real one has."""
    measures = Measures(lambda: {service.realm for service in node.services})
    node.worker.measures = node.router.measures = measures
    facts = facts_of(node, measures)
    answers = WatchedAnswers(node.router, measures)
    gateway = Gateway(GatewaySection(port=0), data, answers, ScriptedOperations(), facts)
    async with trio.open_nursery() as nursery:
        url = await nursery.start(gateway.run)
        unused = ScriptedAnswers(saying())
        yield World(url, data, unused, ScriptedOperations(), ScriptedFacts(), nursery.cancel_scope.cancel)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def two_gateways(
    data: Path, engine: FakeEngine | None = None
) -> AsyncIterator[tuple[MemoryFederation, World, World]]:
    """The gateway of a node that asks, with credits, and the one of a worker."""
    async with memory_federation(engine or FakeEngine("own-model")) as federation:
        worker = federation.workers[0]
        (data / "asker").mkdir()
        (data / "worker").mkdir()
        await federation.gateway.bookkeeper.grant(federation.gateway.signer.node, 50_000_000)
        async with (
            gateway_of(federation.gateway, data / "asker") as asker,
            gateway_of(worker, data / "worker") as served,
        ):
            yield federation, asker, served
