"""Tell others what this node serves, and hear what they serve.

Rule: gossip is the source of truth while connected; the DHT is for a cold start. Either alone is enough: what is
published by one is published by both, what is heard from either goes through the same door of the directory.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import trio

from node.directory import Directory
from node.network import Network, NetworkError
from protocol import params
from protocol.ids import BUILT_IN_REALMS, FederationId, NodeId, RealmId
from protocol.messages import ModelOffer, Offer
from protocol.offers import KnownOffer, pace_of_change, provider_name, record_key, seal_offer
from protocol.signing import Signer

if TYPE_CHECKING:
    from trio_typing import TaskStatus

log = logging.getLogger("mtor.announcer")

WATCH_SECONDS = 0.5  # how often connections and the own load are looked at
DHT_SECONDS = 30.0  # between two refreshes of the DHT record
SEEK_SECONDS = 20.0  # between two searches in the DHT while offers are known
FIRST_SEEK_SECONDS = 1.0  # between searches while nobody else serves, doubling up to the next
LONELY_SEEK_SECONDS = 5.0
MOST_SOUGHT = 16  # realms that are looked for


class Announcer:
    """Publishes this node's offer and takes in others'. The owner of the own offer's sequence."""

    def __init__(
        self,
        network: Network,
        directory: Directory,
        signer: Signer,
        federation: FederationId,
        describe: Callable[[], tuple[ModelOffer, ...]],
        clock: Callable[[], int],
        *,
        use_gossip: bool = True,
        use_dht: bool = True,
        witnesses: Sequence[NodeId] = (),
    ) -> None:
        """`witnesses` are looked for by name, for they need not serve anything."""
        self._witnesses = tuple(node for node in witnesses if node != signer.node)
        self._network = network
        self._directory = directory
        self._signer = signer
        self._federation = federation
        self._describe = describe
        self._clock = clock
        self._use_gossip = use_gossip
        self._use_dht = use_dht
        self._last: KnownOffer | None = None
        self._seek_now = trio.Event()
        self._sought: dict[RealmId, None] = dict.fromkeys(BUILT_IN_REALMS)  # least recently asked for first

    async def run(self, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run until cancelled; started when the own offer stands in the directory."""
        self._refresh()
        async with trio.open_nursery() as nursery:
            if self._use_gossip:
                await nursery.start(self._listen)
            nursery.start_soon(self._keep_published)
            if self._use_dht:
                nursery.start_soon(self._keep_recorded)
                nursery.start_soon(self._seek)
            task_status.started()

    def seek_now(self, realm: RealmId) -> None:
        """Search the DHT at once: a query found nobody in `realm`, which is looked for from now on."""
        self._sought.pop(realm, None)
        self._sought[realm] = None
        while len(self._sought) > MOST_SOUGHT:
            self._sought.pop(next(iter(self._sought)))
        self._seek_now.set()

    # --- telling -----------------------------------------------------------------------------------

    def _refresh(self) -> KnownOffer:
        """Sign a new offer if it is time or something changed; the sequence is the time, so it survives restarts."""
        now = self._clock()
        models = self._describe()
        last = self._last
        if last is not None and not self._stale(last, models, now):
            return last
        sequence = max(now, last.offer.sequence + 1 if last else 0)
        addresses = self._network.addresses()[: params.MAX_ADDRESSES]
        offer = Offer(self._signer.node, sequence, now, now + params.OFFER_LIFETIME, addresses, models, ())
        self._last = seal_offer(self._signer, self._federation, offer)
        self._directory.set_own(self._last)
        return self._last

    def _stale(self, last: KnownOffer, models: tuple[ModelOffer, ...], now: int) -> bool:
        age = now - last.offer.issued_ms
        moved = self._network.addresses()[: params.MAX_ADDRESSES] != last.offer.addresses
        return age >= (params.OFFER_MIN_INTERVAL if moved else pace_of_change(last.offer.models, models))

    async def _keep_published(self) -> None:
        published = -1
        connected: frozenset[NodeId] = frozenset()
        while True:
            peers = frozenset(peer.node for peer in self._network.peers())
            for newcomer in peers - connected:
                self._directory.recovered(newcomer)
            offer = self._refresh()
            if self._use_gossip and (offer.offer.sequence != published or peers - connected):
                await self._publish(offer)
                published = offer.offer.sequence
            connected = peers
            await trio.sleep(WATCH_SECONDS)

    async def _publish(self, offer: KnownOffer) -> None:
        try:
            await self._network.publish(params.OFFERS_TOPIC, offer.sealed)
        except NetworkError as error:
            log.debug("offer not gossiped: %s", error)

    async def _keep_recorded(self) -> None:
        """Keep the DHT's record fresh, and this node among the providers of its realms."""
        recorded: frozenset[tuple[str, str]] | None = None
        due = 0.0
        while True:
            served = frozenset((model.realm, model.model) for model in self._describe() if model.slots)
            if served != recorded or trio.current_time() >= due:
                reached = await self._record()
                recorded = served if reached else None
                due = trio.current_time() + DHT_SECONDS
            await trio.sleep(FIRST_SEEK_SECONDS)

    async def _record(self) -> bool:
        """Put the record; False if it reached nobody, so that it is tried again soon."""
        if not self._network.peers():
            return False
        offer = self._refresh()
        try:
            await self._network.put_record(record_key(self._signer.node), offer.sealed)
            for realm in sorted({model.realm for model in offer.offer.models}):
                await self._network.provide(provider_name(RealmId(realm)))
        except NetworkError as error:
            log.debug("offer not recorded: %s", error)
            return False
        return True

    # --- hearing -----------------------------------------------------------------------------------

    async def _listen(self, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with self._network.subscribe(params.OFFERS_TOPIC, self._directory.take_in) as accepted:
            task_status.started()
            async for _ in accepted:
                pass  # the check took it in already; it ran before the message was forwarded

    async def _seek(self) -> None:
        """Look for providers in the DHT: often while nobody is known, now and then later."""
        pause = FIRST_SEEK_SECONDS
        while True:
            with trio.move_on_after(pause):
                await self._seek_now.wait()
            self._seek_now = trio.Event()
            if self._network.peers():
                await self._search()
            settled = self._somebody_serves() and all(map(self._directory.known, self._witnesses))
            pause = SEEK_SECONDS if settled else min(pause * 2, LONELY_SEEK_SECONDS)

    def _somebody_serves(self) -> bool:
        """True if a model of another node is known."""
        own = self._signer.node
        return any(known.offer.models for known in self._directory.offers() if known.node != own)

    async def _search(self) -> None:
        async with trio.open_nursery() as nursery:
            for witness in self._witnesses:
                if self._wants(witness):
                    nursery.start_soon(self._fetch, witness)
            await self._search_realms()

    async def _search_realms(self) -> None:
        for realm in tuple(self._sought):
            try:
                providers = await self._network.find_providers(provider_name(realm))
            except NetworkError as error:
                log.debug("search for %s: %s", realm, error)
                continue
            async with trio.open_nursery() as nursery:
                for node, _ in providers:
                    if node != self._signer.node and self._wants(node):
                        nursery.start_soon(self._fetch, node)

    def _wants(self, node: NodeId) -> bool:
        """True if its offer is not known, or will soon be no longer valid: without gossip nobody renews it."""
        known = self._directory.known(node)
        return known is None or known.offer.expires_ms - self._clock() < params.OFFER_LIFETIME // 2

    async def _fetch(self, node: NodeId) -> None:
        try:
            record = await self._network.get_record(record_key(node))
        except NetworkError as error:
            log.debug("record: %s", error)
            return
        if record is not None:
            self._directory.take_in(record)
