"""Runs the ledger's cases of `spec/vectors/`: the kinds that spec/05-ledger.md describes.

Rule: as in `runners`: nothing is repaired, nothing is judged.
"""

from __future__ import annotations

from typing import Any

from protocol.codec import decode_as
from protocol.ids import ChannelId, FederationId
from protocol.ledger import certificates, genesis, votes
from protocol.ledger.channels import check_pay, no_voucher, open_voucher
from protocol.ledger.orders import check_order
from protocol.ledger.state import Account, Channel, Draft, View, lock_key
from protocol.messages import Hold, Pay
from protocol.pricing import channel_cost
from protocol.signing import Signer, verify

Json = Any


class _Empty:
    def get(self, key: bytes, /) -> bytes | None:
        return None


def pricing(given: dict[str, Json]) -> Json:
    """Counts and prices -> µcredits."""
    names = ("units_in", "units_out", "price_in", "price_out")
    return {"amount": channel_cost(*(given[name] for name in names))}


def federation(given: dict[str, Json]) -> Json:
    """A genesis -> its id and quorum."""
    opened = genesis.open_genesis(bytes.fromhex(given["genesis"]))
    return {"federation": opened.id.hex(), "quorum": opened.quorum}


def voucher(given: dict[str, Json]) -> Json:
    """A voucher on a hold, after an earlier one -> its amount."""
    hold = decode_as(Hold, bytes.fromhex(given["hold"]))
    channel = ChannelId(bytes.fromhex(given["channel"]))
    earlier = open_voucher(bytes.fromhex(given["earlier"])) if given["earlier"] else no_voucher(channel)
    pay = Pay(bytes.fromhex(given["voucher"]), bytes.fromhex(given["signature"]))
    federation_id = FederationId(bytes.fromhex(given["federation"]))
    taken = check_pay(federation_id, channel, Channel.opened(hold), earlier, pay, verify)
    return {"cumulative": taken.cumulative}


def vote(given: dict[str, Json]) -> Json:
    """An order, at a witness that has applied `certificates` and voted for `voted` -> its vote."""
    opened, draft = _state(given)
    witness = Signer.from_seed(bytes.fromhex(given["witness_seed"]))
    lock = None
    for order in [*given["voted"], {"body": given["body"], "signature": given["signature"]}]:
        body, signature = bytes.fromhex(order["body"]), bytes.fromhex(order["signature"])
        checked = check_order(opened, View(draft), body, signature)
        lock = votes.decide(opened, View(draft), checked, given["now_ms"], witness)
        draft.update({lock_key(checked.object, checked.version): lock.encode()})
    assert lock is not None
    return {
        "order": checked.hash.hex(),
        "object": checked.object.hex(),
        "version": checked.version,
        "vote": lock.vote.hex(),
    }


def apply(given: dict[str, Json]) -> Json:
    """A certificate, after `certificates` -> all accounts and channels."""
    opened, draft = _state(given)
    transition = certificates.apply(opened, View(draft), bytes.fromhex(given["certificate"]))
    draft.update(transition.puts)
    return {"repeated": transition.repeated, "position": transition.position, **_shown(draft)}


def _state(given: dict[str, Json]) -> tuple[genesis.Federation, Draft]:
    opened = genesis.open_genesis(bytes.fromhex(given["genesis"]))
    draft = Draft(_Empty())
    for certificate in given["certificates"]:
        draft.update(certificates.apply(opened, View(draft), bytes.fromhex(certificate)).puts)
    return opened, draft


def _shown(draft: Draft) -> dict[str, Json]:
    accounts, channels = {}, {}
    for key, value in sorted(draft.puts.items()):
        assert value is not None
        if key[:1] == b"a":
            account = Account.decode(value)
            accounts[key[1:].hex()] = [account.balance, account.next_sequence, account.head.hex()]
        if key[:1] == b"c":
            channel = Channel.decode(value)
            channels[key[1:].hex()] = [channel.status.name.lower(), channel.amount, channel.paid]
    return {"accounts": accounts, "channels": channels}


LEDGER_RUNNERS = {
    "pricing": pricing,
    "ledger_genesis": federation,
    "ledger_voucher": voucher,
    "ledger_vote": vote,
    "ledger_apply": apply,
}
