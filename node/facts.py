"""What the gateway tells without a query: models on offer, readiness, figures, the node as its clients may see it.

Rule: derived from the owners of the state at the moment of asking; nothing is kept here.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from node.directory import Directory
from node.figures import NodeFigures
from node.gameguard import GuardState
from node.gateway.ports import FederationFacts, ModelFacts, NodeSnapshot, OfferFacts, PeerFacts
from node.measures import Measured
from node.network import Network
from node.services import Services
from node.version import VERSION
from protocol.ids import NodeId, peer_id
from protocol.messages import ModelOffer
from protocol.requests import request_name
from protocol.wishes import FEATURES

MOST_SHOWN = 512  # offers, and peers, in a snapshot: more is no picture that anybody looks at


class NodeFacts:
    """The `GatewayFacts` of a running node."""

    def __init__(
        self,
        name: str,
        network: Network,
        directory: Directory,
        services: Services,
        federation: FederationFacts,
        guard: Callable[[], GuardState],
        figures: NodeFigures,
    ) -> None:
        """`name` is the node's petname."""
        self._name = name
        self._network = network
        self._directory = directory
        self._services = services
        self._federation = federation
        self._guard = guard
        self._figures = figures
        self._began = time.monotonic()

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
        if self._services.paused:
            return False, "this node is paused for its owner, and no other offers a model"
        if self._services.loading or list(self._services):
            return False, "the models of this node are being loaded"
        if not self._network.peers():
            return False, "no peer is connected and this node serves no model; see `mtor doctor`"
        return False, "no connected peer offers a model yet"

    async def figures(self) -> list[Measured]:
        """What is counted, timed and standing now."""
        return await self._figures.read()

    async def snapshot(self) -> NodeSnapshot:
        """What a client may see: no addresses, keys or balances."""
        guard = self._guard()
        ready, reason = await self.readiness()
        return NodeSnapshot(
            node=peer_id(self._network.node),
            name=self._name,
            version=VERSION,
            uptime_seconds=round(time.monotonic() - self._began),
            paused=guard.paused,
            pause_reason=guard.why if guard.paused else "",
            ready=ready,
            ready_reason=reason,
            federation=self._federation,
            peers=self._peers(),
            offers=tuple(_offer(*each) for each in islice(self._offers(), MOST_SHOWN)),
            loading=self._services.loading,
        )

    def _peers(self) -> tuple[PeerFacts, ...]:
        """Connected ones first."""
        connected = {peer.node for peer in self._network.peers()}
        known = {offer.node for offer in self._directory.offers()} - connected - {self._network.node}
        nodes = [*sorted(connected), *sorted(known)][:MOST_SHOWN]
        return tuple(PeerFacts(peer_id(node), node in connected) for node in nodes)

    def _offers(self) -> Iterator[tuple[NodeId, bool, ModelOffer]]:
        """This node's own as they are now, then the others' as they said last."""
        own = self._network.node
        yield from ((own, True, model) for model in self._services.offers())
        for known in self._directory.offers():
            if known.node != own:
                yield from ((known.node, False, model) for model in known.offer.models)


def _offer(node: NodeId, own: bool, model: ModelOffer) -> OfferFacts:
    return OfferFacts(
        node=peer_id(node),
        own=own,
        realm=model.realm,
        model=model.model,
        device=model.device.kind,
        device_name=model.device.name,
        vram_mib=model.device.vram_mib,
        context_tokens=model.context_tokens,
        slots=model.slots,
        busy=model.busy,
        queued=model.queued,
        price_in=model.price_in,
        price_out=model.price_out,
        free=bool(model.free),
        features=_features([model]),
    )


def _together(realm: str, name: str, offers: Sequence[ModelOffer]) -> ModelFacts:
    """One model, whoever serves it."""
    cheapest = min(offers, key=lambda offer: (offer.price_out, offer.price_in))
    return ModelFacts(
        realm,
        name,
        workers=len(offers),
        context_tokens=max(offer.context_tokens for offer in offers),
        features=_features(offers),
        price_in=cheapest.price_in,
        price_out=cheapest.price_out,
    )


def _features(offers: Sequence[ModelOffer]) -> tuple[str, ...]:
    """What can be asked of a model, by the names of requests, and what it can beyond text."""
    requests = {request_name(number) for offer in offers for number in offer.requests}
    abilities = {feature for offer in offers for feature in offer.features}
    return (*sorted(requests), *(str(feature.name).lower() for feature in FEATURES if feature in abilities))
