"""Sub-accounts, moves, recovery and new keys: what an owner can do with accounts, and what nobody else can."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from node.bookkeeper import Bookkeeper
from node.memory_store import MemoryStore
from node.wallet import Wallet, WalletError
from protocol.errors import ErrorCode, Refused
from protocol.ids import NodeId, peer_id
from protocol.ledger.state import View
from protocol.signing import Signer
from tests.node.ledgers import PRICES, QUOTE, pay
from tests.node.witnesses import CREDITS, begun, world_of
from tests.protocol.ledger_world import ALICE, BOB, CAROL, signer

KEY, OTHER_KEY, VAULT = b"k" * 32, b"o" * 32, signer("a recovery key")


async def free(ledger: Bookkeeper, account: NodeId) -> int:
    return (await ledger.balance(account)).balance


@pytest.mark.parametrize("count", [1, 4])
async def test_a_sub_account_spends_what_was_moved_to_it_and_no_more(count: int) -> None:
    async with world_of(count) as world:
        alice, bob = await begun(world)
        child = await alice.accounts.create("laptop", KEY)
        await alice.accounts.move(ALICE.node, child, 1_000)
        assert await free(alice, child) == 1_000 and await free(alice, ALICE.node) == CREDITS - 1_000
        async with alice.lease(BOB.node, *PRICES, QUOTE, 1, child) as lease:
            await pay(lease, bob, ALICE.node, 100, 50)  # 250 µcr
        with pytest.raises(Refused) as caught:
            async with alice.lease(BOB.node, *PRICES, QUOTE, 1_001, child):
                pass
        assert caught.value.code is ErrorCode.INSUFFICIENT_FUNDS
        await bob.close_idle(0)
        await alice.sync()
        standing = await alice.balance(child)
        assert (standing.balance, standing.spent) == (750, 250) and await free(alice, ALICE.node) == CREDITS - 1_000
        await alice.accounts.move(child, ALICE.node, 0)
        assert await free(alice, child) == 0 and await free(alice, ALICE.node) == CREDITS - 250


async def test_credits_move_between_accounts_of_one_owner_only() -> None:
    async with world_of(4) as world:
        alice, _ = await begun(world)
        with pytest.raises(Refused) as caught:
            await alice.accounts.move(ALICE.node, BOB.node, 10)
        assert caught.value.code is ErrorCode.NOT_RELATED and "same owner" in caught.value.message
        assert await free(alice, ALICE.node) == CREDITS


async def test_a_move_that_is_not_finished_says_so_and_is_done_once() -> None:
    async with world_of(4) as world:
        alice, _ = await begun(world)
        child = await alice.accounts.create("laptop", KEY)
        await alice.accounts.move(ALICE.node, child, 3)
        world.away |= {witness.node for witness in world.witnesses[2:]}
        with pytest.raises(Refused, match=r"goes out again before the account's next one.* done twice") as caught:
            await alice.accounts.move(ALICE.node, child, 10)
        assert caught.value.code is ErrorCode.OVERLOADED and caught.value.retry_after_ms > 0
        assert await free(alice, child) == 3
        world.away.clear()
        await alice.accounts.move(ALICE.node, child, 7)
        assert await free(alice, child) == 3 + 10 + 7
        with pytest.raises(Refused) as caught:  # nothing was signed: nothing to wait for
            await alice.accounts.move(ALICE.node, child, CREDITS)
        assert "goes out again" not in caught.value.message


async def test_more_than_there_is_does_not_move() -> None:
    async with world_of(4) as world:
        alice, _ = await begun(world)
        child = await alice.accounts.create("laptop", KEY)
        for amount in (0, 1):
            with pytest.raises(Refused) as caught:
                await alice.accounts.move(child, ALICE.node, amount)
            assert caught.value.code is ErrorCode.INSUFFICIENT_FUNDS


async def test_a_name_is_used_once_and_an_interrupted_beginning_goes_on() -> None:
    async with world_of(4) as world:
        alice, _ = await begun(world)
        world.away |= {witness.node for witness in world.witnesses[2:]}
        with pytest.raises(Refused):
            await alice.accounts.create("laptop", KEY)
        world.away.clear()
        child = await alice.accounts.create("laptop", OTHER_KEY)
        assert alice.standing(child).owner == ALICE.node
        with pytest.raises(Refused, match="another name"):
            await alice.accounts.create("laptop", OTHER_KEY)


async def test_an_owner_of_sub_accounts_has_credits() -> None:
    async with world_of(4) as world:
        _, bob = await begun(world)
        with pytest.raises(Refused, match="ask the issuer"):
            await bob.accounts.create("laptop", KEY)


async def test_another_device_becomes_a_sub_account_by_its_owners_consent() -> None:
    async with world_of(4) as world:
        alice, bob = await begun(world)
        carol = await world.start(CAROL)
        await carol.accounts.join_owner(ALICE.node, alice.accounts.consent(CAROL.node))
        await alice.sync()
        await alice.accounts.move(ALICE.node, CAROL.node, 1_000)
        await carol.sync()
        async with carol.lease(BOB.node, *PRICES, QUOTE, 1) as lease:
            await pay(lease, bob, CAROL.node, 100, 50)
        await bob.close_idle(0)
        await carol.sync()
        assert await free(carol, CAROL.node) == 750
        with pytest.raises(Refused, match="already"):
            await carol.accounts.join_owner(ALICE.node, alice.accounts.consent(CAROL.node))


async def test_consent_for_one_account_is_of_no_use_to_another() -> None:
    async with world_of(4) as world:
        alice, bob = await begun(world)
        with pytest.raises(Refused) as caught:
            await bob.accounts.join_owner(ALICE.node, alice.accounts.consent(CAROL.node))
        assert caught.value.code is ErrorCode.BAD_SIGNATURE


async def test_an_account_that_has_ordered_something_is_attached_no_more() -> None:
    async with world_of(4) as world:
        alice, bob = await begun(world)
        await world.first.grant(CAROL.node, 1_000)
        carol = await world.start(CAROL)
        await carol.sync()
        async with carol.lease(BOB.node, *PRICES, QUOTE, 1) as lease:
            await pay(lease, bob, CAROL.node, 1, 1)
        with pytest.raises(Refused, match="first order"):
            await carol.accounts.join_owner(ALICE.node, alice.accounts.consent(CAROL.node))


# --- keys ---


async def test_a_lost_account_is_taken_over_by_its_recovery_key_and_the_old_key_is_of_no_use() -> None:
    async with world_of(4) as world:
        alice, _ = await begun(world)
        await alice.accounts.name_recovery(ALICE.node, VAULT.node)
        fresh = await world.start(CAROL)
        await fresh.accounts.recover(ALICE.node, VAULT, "before the fire")
        await fresh.accounts.move(ALICE.node, CAROL.node, 0)
        assert await free(fresh, CAROL.node) == CREDITS
        await alice.sync()
        with pytest.raises(Refused, match="its key was changed elsewhere"):
            async with alice.lease(BOB.node, *PRICES, QUOTE, 1):
                pass


async def test_a_thief_with_a_key_of_its_own_recovers_nothing() -> None:
    async with world_of(4) as world:
        alice, bob = await begun(world)
        with pytest.raises(Refused, match="not the recovery key"):
            await bob.accounts.recover(ALICE.node, VAULT, "stolen")
        await alice.accounts.name_recovery(ALICE.node, VAULT.node)
        with pytest.raises(Refused, match="not the recovery key"):
            await bob.accounts.recover(ALICE.node, signer("a thief"), "stolen")
        with pytest.raises(Refused, match="already"):
            await alice.accounts.name_recovery(ALICE.node, CAROL.node)


async def test_a_sub_account_gets_a_new_key_and_goes_on() -> None:
    async with world_of(4) as world:
        alice, bob = await begun(world)
        child = await alice.accounts.create("laptop", KEY)
        await alice.accounts.move(ALICE.node, child, 1_000)
        await alice.accounts.rotate(child, OTHER_KEY)
        assert alice.wallet.signer(child, View(world.stores[ALICE.node])).node == Signer.from_seed(OTHER_KEY).node
        async with alice.lease(BOB.node, *PRICES, QUOTE, 1, child) as lease:
            await pay(lease, bob, ALICE.node, 100, 50)
        await bob.close_idle(0)
        assert (await bob.balance()).earned == 250
        with pytest.raises(Refused, match="recovery-key"):
            await alice.accounts.rotate(ALICE.node, KEY)


# --- the file of keys ---


def test_keys_are_kept_in_a_private_file_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "accounts.json"
    wallet = Wallet(ALICE, path)
    child = wallet.add(Signer.from_seed(KEY).node, "laptop", KEY).node
    wallet.add(child, "laptop", OTHER_KEY)
    wallet.add(BOB.node, "recovered")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again = Wallet(ALICE, path)
    assert list(again) == [ALICE.node, child, BOB.node] and child in again and CAROL.node not in again
    assert again.named("laptop") == child and again.name(child) == "laptop" and again.name(ALICE.node) == ""
    view = View(MemoryStore())
    assert again.signer(child, view).node == child and again.signer(ALICE.node, view).node == ALICE.node
    with pytest.raises(Refused, match="changed elsewhere"):
        again.signer(BOB.node, view)
    with pytest.raises(Refused, match="another node's"):
        again.signer(CAROL.node, view)


@pytest.mark.parametrize("name", ["", "x" * 65, "a\nb"])
def test_names_are_short_and_printable(name: str) -> None:
    with pytest.raises(Refused, match="printable"):
        Wallet(ALICE).add(BOB.node, name, KEY)


@pytest.mark.parametrize("content", ["{", "[1]", '[{"account": "x", "name": "y", "seed": ""}]', '[{"account": 1}]'])
def test_a_damaged_file_of_keys_is_told(tmp_path: Path, content: str) -> None:
    path = tmp_path / "accounts.json"
    path.write_text(content)
    with pytest.raises(WalletError, match="put your copy of it back"):
        Wallet(ALICE, path)


def test_a_key_that_is_no_key_is_told(tmp_path: Path) -> None:
    path = tmp_path / "accounts.json"
    path.write_text(json.dumps([{"account": peer_id(BOB.node), "name": "x", "seed": "zz"}]))
    with pytest.raises(WalletError):
        Wallet(ALICE, path)
