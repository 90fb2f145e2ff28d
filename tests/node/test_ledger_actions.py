"""What the operator does to a running node's ledger, by the names and arguments that `mtor` sends."""

from __future__ import annotations

from typing import Any

import pytest

from node.bookkeeper import Bookkeeper
from node.ledger_actions import LedgerActions
from node.ledger_service import LedgerService
from node.memory_network import MemoryHub, MemoryNetwork
from node.network import RecordRules
from node.operations import OperationFailed, dispatch
from protocol.ids import NodeId, peer_id
from protocol.signing import Signer
from tests.node.witnesses import World, world_of
from tests.protocol.ledger_world import ALICE, BOB, CAROL

Json = dict[str, Any]


def actions(ledger: Bookkeeper) -> LedgerActions:
    network = MemoryNetwork(MemoryHub(), ledger.node, RecordRules(lambda key, value: True, lambda key, values: 0))
    return LedgerActions(ledger, LedgerService(ledger, network))


async def do(ledger: Bookkeeper, operation: str, /, **arguments: Any) -> Json:
    return await dispatch(actions(ledger).methods, operation, arguments)


async def rich(world: World) -> Bookkeeper:
    await world.start_witnesses()
    alice = await world.start(ALICE)
    await do(world.first, "federation.grant", to=peer_id(ALICE.node), credits="5")
    await do(alice, "ledger.settle")
    return alice


async def test_accounts_are_made_funded_and_listed() -> None:
    async with world_of(4) as world:
        alice = await rich(world)
        made = await do(alice, "ledger.account.create", name="laptop", credits="1.5")
        assert made["balance"] == 1_500_000 and made["owner"] == peer_id(ALICE.node)
        moved = await do(alice, "ledger.move", to=peer_id(ALICE.node), credits="all", source="laptop")
        assert moved["amount"] == 1_500_000 and moved["from"] == made["account"]
        await do(alice, "ledger.move", to="laptop", credits="0.5")
        rows = (await do(alice, "ledger.accounts"))["accounts"]
        assert [(row["name"], row["main"], row["balance"]) for row in rows] == [
            ("", True, 4_500_000),
            ("laptop", False, 500_000),
        ]


@pytest.mark.parametrize(
    "name, arguments, words",
    [
        ("ledger.move", {"to": "laptop", "credits": "1"}, "no account"),
        ("ledger.move", {"to": peer_id(BOB.node), "credits": "1"}, "same owner"),
        ("ledger.move", {"to": peer_id(BOB.node), "credits": "0"}, "amount is 0"),
        ("ledger.move", {"to": peer_id(BOB.node), "credits": "a few"}, "credits"),
        ("ledger.account.create", {"name": "x", "credits": "6"}, "free to move"),
        ("ledger.account.attach", {"owner": peer_id(BOB.node), "consent": "zz"}, "128 hexadecimal digits"),
        ("ledger.recover", {"account": peer_id(BOB.node), "seed": "00"}, "64 hexadecimal digits"),
        ("ledger.rotate", {"account": peer_id(ALICE.node)}, "recovery-key"),
        ("ledger.recovery", {"key": "x"}, "peer id"),
        ("ledger.epoch.propose", {}, "only a witness"),
        ("ledger.epoch.accept", {}, "only a witness"),
        ("federation.grant", {"to": peer_id(BOB.node), "credits": "1"}, "created the federation"),
    ],
)
async def test_what_cannot_be_done_is_told(name: str, arguments: Json, words: str) -> None:
    async with world_of(4) as world:
        alice = await rich(world)
        with pytest.raises(OperationFailed, match=words):
            await do(alice, name, **arguments)
        assert sum(row["balance"] for row in (await do(alice, "ledger.accounts"))["accounts"]) == 5_000_000


async def test_a_device_joins_its_owner_and_a_lost_one_is_recovered() -> None:
    async with world_of(4) as world:
        alice, carol = await rich(world), await world.start(CAROL)
        consent = await do(alice, "ledger.account.consent", account=peer_id(CAROL.node))
        await do(carol, "ledger.account.attach", owner=consent["owner"], consent=consent["consent"])
        await do(alice, "ledger.settle")
        await do(alice, "ledger.move", to=peer_id(CAROL.node), credits="2")
        await do(carol, "ledger.settle")
        seed = b"\x05" * 32
        key = peer_id(Signer.from_seed(seed).node)
        await do(carol, "ledger.recovery", key=key)
        assert (await do(carol, "ledger.accounts"))["accounts"][0]["recovery"] == key
        world.stop(CAROL)
        found = await do(alice, "ledger.recover", account=peer_id(CAROL.node), seed=seed.hex())
        assert found["amount"] == 2_000_000
        assert [row["balance"] for row in (await do(alice, "ledger.accounts"))["accounts"]] == [5_000_000, 0]


async def test_an_epoch_ends_when_the_operators_agree() -> None:
    async with world_of(4) as world:
        alice = await rich(world)
        assert (await do(alice, "ledger.epoch.status"))["epoch"] == 0
        with pytest.raises(OperationFailed, match="mtor ledger epoch accept"):
            await do(world.first, "ledger.epoch.propose")
        for witness in world.witnesses[1:]:
            assert await do(world.books[witness.node], "ledger.epoch.accept") == {"epoch": 0}
        assert (await do(world.first, "ledger.epoch.propose"))["epoch"] == 1
        away = world.witnesses[3].node
        world.away.add(away)
        facts = await do(world.first, "ledger.epoch.status")
        assert (facts["epoch"], facts["quorum"], facts["witness"], facts["due"]) == (1, 3, True, False)
        rows = {row["witness"]: row for row in facts["witnesses"]}
        assert [row["epoch"] for node, row in rows.items() if node != peer_id(NodeId(away))] == [1, 1, 1]
        assert rows[peer_id(NodeId(away))]["problem"]


async def test_the_only_witness_ends_its_epoch_alone() -> None:
    async with world_of(1) as world:
        await rich(world)
        assert await do(world.first, "ledger.epoch.propose") == {"epoch": 1, "restored": 0}
        assert (await do(world.first, "ledger.epoch.propose", after_restore=True))["epoch"] == 2
