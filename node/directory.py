"""Who offers what, now, and how they did for us.

Rule: the only owner of offers and experience. Nothing enters without passing the rules of `protocol/gossip.py`,
whether it came by gossip or from the DHT; what has expired is never handed out. Claims and own measurements
are kept apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import trio

from node.network import Verdict
from protocol import gossip
from protocol.errors import ProtocolError
from protocol.ids import NodeId, RealmId
from protocol.offers import KnownOffer
from protocol.params import SECONDS
from protocol.routing import (
    Experience,
    Knowledge,
    Ranking,
    Requirements,
    after_failure,
    after_refusal,
    after_success,
    rank,
)

MAX_KNOWN_NODES = 4_096  # 8 KiB each at most; newcomers are ignored when a flood has filled it
UNREACHABLE_PAUSE_MS = 10 * SECONDS


class Directory:
    """Offers by node, experience by (node, model)."""

    def __init__(self, local: NodeId, clock: Callable[[], int], blocked: Container[NodeId] = frozenset()) -> None:
        self._local = local
        self._clock = clock
        self._blocked = blocked
        self._offers: dict[NodeId, KnownOffer] = {}
        self._experience: dict[tuple[NodeId, str], Experience] = {}
        self._in_flight: Counter[NodeId] = Counter()
        self._changed = trio.Event()

    # --- offers ------------------------------------------------------------------------------------

    def take_in(self, sealed: bytes) -> Verdict:
        """Judge an offer that arrived, and keep it if it is accepted. Quick: one signature check at most."""
        try:
            judgement = gossip.judge_offer(sealed, self._known_signer(sealed), self._clock())
        except ProtocolError:
            return Verdict.REJECT
        offer = judgement.offer
        if offer is None:
            return judgement.verdict
        if offer.node in self._blocked or offer.node == self._local or not self._room_for(offer.node):
            return Verdict.IGNORE
        self._keep(offer)
        return Verdict.ACCEPT

    def forget(self, node: NodeId) -> None:
        """It is no longer a candidate."""
        self._offers.pop(node, None)

    def set_own(self, own: KnownOffer) -> None:
        """Replace this node's own offer: it is one more candidate."""
        self._keep(own)

    def offers(self) -> tuple[KnownOffer, ...]:
        """All unexpired offers, this node's own among them."""
        now = self._clock()
        self._offers = {node: offer for node, offer in self._offers.items() if not offer.expired(now)}
        return tuple(self._offers.values())

    def known(self, node: NodeId) -> KnownOffer | None:
        """The unexpired offer of one node."""
        return next((offer for offer in self.offers() if offer.node == node), None)

    def addresses(self, node: NodeId) -> Sequence[str]:
        """Where a node says that it can be dialled; empty if it is not known."""
        known = self._offers.get(node)
        return known.offer.addresses if known else ()

    async def wait_changed(self) -> None:
        """Return when an offer came in."""
        await self._changed.wait()

    def _known_signer(self, sealed: bytes) -> KnownOffer | None:
        """The offer that `sealed` may replace. The signer's key stands at a fixed place in an envelope."""
        signer = sealed[4:36]  # array header, number, bin header (2), key
        return self._offers.get(NodeId(signer))

    def _room_for(self, node: NodeId) -> bool:
        return node in self._offers or len(self._offers) < MAX_KNOWN_NODES or len(self.offers()) < MAX_KNOWN_NODES

    def _keep(self, offer: KnownOffer) -> None:
        self._offers[offer.node] = offer
        self._changed.set()
        self._changed = trio.Event()

    # --- experience --------------------------------------------------------------------------------

    def rank(
        self, realm: RealmId, requirements: Requirements, tie: bytes, without: frozenset[NodeId] = frozenset()
    ) -> Ranking:
        """Candidates for a query, best first, leaving out the nodes that were tried."""
        offers = [offer for offer in self.offers() if offer.node not in without]
        knowledge = Knowledge(self._local, self._experience, self._in_flight)
        return rank(realm, requirements, offers, knowledge, self._clock(), tie)

    def experience(self, node: NodeId, model: str) -> Experience:
        """How a worker's model did for us so far."""
        return self._experience.get((node, model), Experience())

    def succeeded(self, node: NodeId, model: str, ttft_ms: float, tokens_per_second: float) -> None:
        """A whole answer came."""
        self._update(node, model, after_success(self.experience(node, model), ttft_ms, tokens_per_second))

    def failed(self, node: NodeId, model: str) -> None:
        """An answer broke, or what came was against the rules."""
        self._update(node, model, after_failure(self.experience(node, model), self._clock()))

    def unreachable(self, node: NodeId, model: str) -> None:
        """The worker could not be reached or vanished: a failure, and no use asking again at once."""
        failed = after_failure(self.experience(node, model), self._clock())
        self._update(node, model, after_refusal(failed, UNREACHABLE_PAUSE_MS, self._clock()))

    def refused(self, node: NodeId, model: str, retry_after_ms: int) -> None:
        """The worker said honestly that it cannot now."""
        self._update(node, model, after_refusal(self.experience(node, model), retry_after_ms, self._clock()))

    def recovered(self, node: NodeId) -> None:
        """The worker gave a sign of life (a new connection): forget that it should be avoided."""
        for key, known in list(self._experience.items()):
            if key[0] == node:
                self._experience[key] = replace(known, avoid_until_ms=0)

    @contextmanager
    def asking(self, node: NodeId) -> Iterator[None]:
        """Count a query of ours at `node` while it runs, so that a stale offer does not draw all of them."""
        self._in_flight[node] += 1
        try:
            yield
        finally:
            self._in_flight[node] -= 1
            if not self._in_flight[node]:
                del self._in_flight[node]

    def _update(self, node: NodeId, model: str, experience: Experience) -> None:
        self._experience[node, model] = experience
