"""What a node tells of itself without a query: the public view holds what it should, and nothing that is not public."""

import json
from dataclasses import asdict

from node.engines.fake import FakeEngine
from node.gameguard import GuardState
from protocol.ids import peer_id
from tests.node.federation import memory_federation
from tests.node.gateways import facts_of

PAUSED = GuardState(True, "a game", 5, None, None, (), ())


async def test_the_view_names_peers_and_all_that_is_on_offer() -> None:
    async with memory_federation(FakeEngine(), FakeEngine()) as federation:
        seen = await facts_of(federation.gateway).snapshot()
        workers = sorted(peer_id(worker.signer.node) for worker in federation.workers)
        assert seen.node == peer_id(federation.gateway.signer.node) and seen.name == "attic" and seen.ready
        assert seen.federation.name == "test" and seen.federation.id == federation.gateway.bookkeeper.federation.hex()
        assert sorted(peer.node for peer in seen.peers) == workers
        assert sorted(offer.node for offer in seen.offers) == workers
        for offer in seen.offers:
            assert (offer.realm, offer.own, offer.slots, offer.features) == ("$CHAT", False, 2, ("chat",))


async def test_own_models_are_told_as_they_are_now() -> None:
    async with memory_federation(FakeEngine()) as federation:
        worker = federation.workers[0]
        [own] = [offer for offer in (await facts_of(worker).snapshot()).offers if offer.own]
        assert own.slots == 2
        worker.services.paused = True  # no offer of it went out yet
        paused = await facts_of(worker, guard=PAUSED).snapshot()
        assert [offer.slots for offer in paused.offers if offer.own] == [0]
        assert paused.paused and paused.pause_reason == "a game"


async def test_a_node_that_loads_or_is_paused_says_why_it_is_not_ready() -> None:
    async with memory_federation() as federation:
        node = federation.gateway
        assert "no model" in (await facts_of(node).snapshot()).ready_reason
        node.services.expect("$CHAT", "smollm2-135m")
        loading = await facts_of(node).snapshot()
        assert loading.loading == ("smollm2-135m",) and "being loaded" in loading.ready_reason
        node.services.paused = True
        assert "paused" in (await facts_of(node, guard=PAUSED).snapshot()).ready_reason


async def test_the_view_holds_no_address_and_no_balance() -> None:
    async with memory_federation(FakeEngine()) as federation:
        for node in (federation.gateway, *federation.workers):
            told = json.dumps(asdict(await facts_of(node).snapshot()))
            assert node.network.addresses() and not any(address in told for address in node.network.addresses())
            assert not any(word in told for word in ("address", "balance", "held", "/ip4", "/memory"))
