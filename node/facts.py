"""What the gateway tells without a query: models on offer, readiness, figures.

Rule: derived from the owners of the state at the moment of asking; nothing is kept here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from node.directory import Directory
from node.figures import NodeFigures
from node.gateway.ports import ModelFacts
from node.measures import Measured
from node.network import Network
from node.services import Services
from protocol.messages import ModelOffer
from protocol.requests import request_name


class NodeFacts:
    """The `GatewayFacts` of a running node."""

    def __init__(self, network: Network, directory: Directory, services: Services, figures: NodeFigures) -> None:
        self._network = network
        self._directory = directory
        self._services = services
        self._figures = figures

    async def models(self) -> list[ModelFacts]:
        """Each model that somebody offers with a slot, once."""
        offered: defaultdict[tuple[str, str], list[ModelOffer]] = defaultdict(list)
        for known in self._directory.offers():
            for model in known.offer.models:
                if model.slots:
                    offered[str(model.realm), model.model].append(model)
        return [_together(*key, offered[key]) for key in sorted(offered)]

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


def _together(realm: str, name: str, offers: Sequence[ModelOffer]) -> ModelFacts:
    """One model, whoever serves it."""
    cheapest = min(offers, key=lambda offer: (offer.price_out, offer.price_in))
    return ModelFacts(
        realm,
        name,
        workers=len(offers),
        context_tokens=max(offer.context_tokens for offer in offers),
        features=tuple(sorted({request_name(number) for offer in offers for number in offer.requests})),
        price_in=cheapest.price_in,
        price_out=cheapest.price_out,
    )
