"""What the gateway tells without a query: models on offer, readiness, figures.

Rule: derived from the owners of the state at the moment of asking; nothing is kept here.
"""

from __future__ import annotations

from collections import Counter

from node.directory import Directory
from node.figures import NodeFigures
from node.gateway.ports import ModelFacts
from node.measures import Measured
from node.network import Network
from node.services import Services


class NodeFacts:
    """The `GatewayFacts` of a running node."""

    def __init__(self, network: Network, directory: Directory, services: Services, figures: NodeFigures) -> None:
        self._network = network
        self._directory = directory
        self._services = services
        self._figures = figures

    async def models(self) -> list[ModelFacts]:
        """Each model that somebody offers with a slot, once."""
        workers: Counter[tuple[str, str]] = Counter()
        context: dict[tuple[str, str], int] = {}
        for known in self._directory.offers():
            for model in known.offer.models:
                if model.slots:
                    key = (str(model.realm), model.model)
                    workers[key] += 1
                    context[key] = max(context.get(key, 0), model.context_tokens)
        return [ModelFacts(*key, workers[key], context[key]) for key in sorted(workers)]

    async def readiness(self) -> tuple[bool, str]:
        """Ready when a query could be answered by somebody."""
        if await self.models():
            return True, ""
        own = list(self._services)
        if own:
            return False, "the models of this node are being loaded"
        if not self._network.peers():
            return False, "no peer is connected and this node serves no model; see `mtor doctor`"
        return False, "no connected peer offers a model yet"

    async def figures(self) -> list[Measured]:
        """What is counted, timed and standing now."""
        return await self._figures.read()
