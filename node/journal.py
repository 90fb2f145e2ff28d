"""What this node's owner reads: queries, grants, holds and settlements, each explained by a sentence.

Rule: the journal explains, it never decides. Every entry names the other side, the counts and the prices, so that a
balance can be understood without trust in this program.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from node.store import Snapshot
from protocol.errors import ErrorCode, Refused
from protocol.ids import NO_HASH, ChannelId, NodeId, QueryId, peer_id, short
from protocol.ledger.certificates import Transition
from protocol.ledger.channels import open_voucher
from protocol.ledger.state import Draft, View, channel_key, number, read_number, u64
from protocol.messages import Close, Grant, Hold, Pay, Refund
from protocol.pricing import format_credits

JOURNAL_LENGTH = b"m:journal"
MIN_PREFIX = 6  # hex digits that name an entry

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Receipt:
    """One query as this node remembers it. Amounts in µcredits, prices for 1,000 tokens."""

    query_id: QueryId
    role: str  # "requester" or "worker"
    counterparty: NodeId
    realm: str
    model: str
    units_in: int  # of this query
    units_out: int
    amount: int  # of this query; 0 in the free lane
    price_in: int
    price_out: int
    quote: bytes  # sha256 of the offer; NO_HASH if not known
    channel: ChannelId  # NO_HASH in the free lane
    pay: Pay | None  # the last voucher, which is the proof
    transcript: bytes
    digest: bytes  # sha256 of the delivered text
    outcome: str  # "stop", "length", or the name of an error code
    time_ms: int

    def id(self, local: NodeId) -> bytes:
        """32 bytes; both sides derive the same one."""
        payer, payee = (local, self.counterparty) if self.role == "requester" else (self.counterparty, local)
        return hashlib.sha256(b"mtor/receipt/1\0" + self.query_id + payer + payee + self.transcript).digest()


class Journal:
    """Writes and reads entries for one owner."""

    def __init__(self, owners: frozenset[NodeId], local: NodeId) -> None:
        """`owners` are the accounts whose orders are written down: the node's own, and its issuer's."""
        self._owners = owners
        self._local = local

    def record_receipt(self, draft: Draft, receipt: Receipt) -> str:
        """Write a query down, once. Returns its id in hex."""
        entry = _receipt_entry(receipt)
        return _append(draft, receipt.id(self._local), entry)

    def record_order(self, draft: Draft, transition: Transition, now_ms: int) -> None:
        """Write an applied order down if it moves the owner's credits."""
        entry = self._order_entry(View(draft), transition)
        if entry is not None:
            _append(draft, transition.checked.hash, {**entry, "time_ms": now_ms})

    def _order_entry(self, view: View, transition: Transition) -> Json | None:
        order = transition.checked.order
        if isinstance(order, Grant):
            return self._moved("grant", order.issuer, order.to, order.amount)
        if isinstance(order, Hold):
            return self._held(order, transition.checked.hash)
        return self._settled(view, order)

    def _moved(self, kind: str, payer: NodeId, payee: NodeId, amount: int) -> Json | None:
        if payee in self._owners:
            return _entry(kind, amount, payer)
        return _entry(kind, -amount, payee) if payer in self._owners else None

    def _held(self, hold: Hold, channel: bytes) -> Json | None:
        if hold.payer not in self._owners:
            return None
        prices = {"price_in": hold.price_in, "price_out": hold.price_out}
        return _entry("hold", -hold.amount, hold.payee) | {"channel": channel.hex(), **prices}

    def _settled(self, view: View, order: Close | Refund) -> Json | None:
        channel = view.channel(order.channel)
        if channel is None or self._owners.isdisjoint((channel.payer, channel.payee)):
            return None
        kind = "close" if isinstance(order, Close) else "refund"
        paying = channel.payer in self._owners
        if kind == "refund" and not paying:
            return None
        entry = _entry(kind, channel.amount - channel.paid, channel.payee) if paying else None
        entry = entry or _entry(kind, channel.paid, channel.payer)
        counts: Json = {"channel": order.channel.hex(), "hold": channel.amount, "paid": channel.paid}
        if isinstance(order, Close):
            voucher = open_voucher(order.voucher)
            counts |= {"units_in": voucher.units_in, "units_out": voucher.units_out}
        return entry | counts | {"price_in": channel.price_in, "price_out": channel.price_out}


def history(reader: Snapshot, limit: int, before: str) -> list[Json]:
    """The newest entries first; `before` is the `position` of the last one seen, "" for the start."""
    if before and not before.isdecimal():
        raise Refused(ErrorCode.INVALID_REQUEST, f"{before!r} is not the position of an entry")
    start = b"h" + u64(int(before)) if before else b""
    entries: list[Json] = []
    for key, value in reader.iterate(b"h", start, True):
        if len(entries) >= limit:
            break
        entries.append(_read(key, value))
    return entries


def show(reader: Snapshot, prefix: str) -> Json:
    """The entry, order or channel whose id begins with `prefix` (hex). Raises `Refused` (INVALID_REQUEST)."""
    found = {**_found(reader, b"r", prefix), **_found(reader, b"i", prefix)}
    if not found:
        raise Refused(
            ErrorCode.INVALID_REQUEST, f"nothing in this ledger begins with {prefix}; see `mtor ledger history`"
        )
    if len(found) > 1:
        some = ", ".join(sorted(identity.hex()[:12] for identity in found)[:4])
        raise Refused(ErrorCode.INVALID_REQUEST, f"{prefix} begins several ids ({some} …); give more digits")
    identity, (kind, value) = found.popitem()
    if kind == b"r":
        return _order(reader, identity)
    key = b"h" + value
    stored = reader.get(key)
    assert stored is not None  # written in one batch with its index
    return _read(key, stored)


def _found(reader: Snapshot, kind: bytes, prefix: str) -> dict[bytes, tuple[bytes, bytes]]:
    """The first ids of a kind that begin with `prefix`: enough to see that there are several."""
    text = prefix.lower()
    if len(text) < MIN_PREFIX or len(text) > 64 or not set(text) <= set("0123456789abcdef"):
        raise Refused(ErrorCode.INVALID_REQUEST, f"an id is given by at least {MIN_PREFIX} hexadecimal digits")
    found: dict[bytes, tuple[bytes, bytes]] = {}
    for key, value in reader.iterate(kind + bytes.fromhex(text[: len(text) // 2 * 2])):
        if key[1:].hex().startswith(text):
            found[key[1:]] = (kind, value)
        if len(found) > 4:
            break
    return found


def _order(reader: Snapshot, identity: bytes) -> Json:
    """An order of somebody else's: what the ledger knows of it."""
    view = View(reader)
    certificate = view.certificate(identity)
    assert certificate is not None
    shown: Json = {"kind": "order", "id": identity.hex(), "position": str(view.position(identity))}
    channel = reader.get(channel_key(identity))
    if channel is not None:
        hold = view.channel(identity)
        assert hold is not None
        shown |= {"payer": peer_id(hold.payer), "payee": peer_id(hold.payee), "amount": hold.amount}
        shown |= {"status": hold.status.name.lower(), "paid": hold.paid}
        shown["sentence"] = (
            f"{short(hold.payer)} locked {format_credits(hold.amount)} for {short(hold.payee)}; "
            f"the channel is {hold.status.name.lower()}, {format_credits(hold.paid)} were paid."
        )
    return shown


def _append(draft: Draft, identity: bytes, entry: Json) -> str:
    if draft.get(b"i" + identity) is None:
        position = read_number(draft, JOURNAL_LENGTH)
        text = json.dumps({**entry, "id": identity.hex()}, separators=(",", ":"))
        draft.update(
            {b"h" + u64(position): text.encode(), b"i" + identity: u64(position), JOURNAL_LENGTH: u64(position + 1)}
        )
    return identity.hex()


def _read(key: bytes, value: bytes) -> Json:
    entry: Json = json.loads(value)
    entry["position"] = str(number(key[1:]))
    entry["sentence"] = _SENTENCES[entry["kind"]](entry)
    return entry


def _entry(kind: str, amount: int, counterparty: NodeId) -> Json:
    """`amount` as the owner's balance sees it: negative when it goes down."""
    return {"kind": kind, "amount": amount, "counterparty": peer_id(counterparty)}


def _receipt_entry(receipt: Receipt) -> Json:
    paying = receipt.role == "requester"
    entry = _entry("query", -receipt.amount if paying else receipt.amount, receipt.counterparty)
    proof = receipt.pay
    return entry | {
        "time_ms": receipt.time_ms,
        "role": receipt.role,
        "query": receipt.query_id.hex(),
        "realm": receipt.realm,
        "model": receipt.model,
        "units_in": receipt.units_in,
        "units_out": receipt.units_out,
        "price_in": receipt.price_in,
        "price_out": receipt.price_out,
        "quote": receipt.quote.hex(),
        "channel": "" if receipt.channel == NO_HASH else receipt.channel.hex(),
        "voucher": proof.voucher.hex() if proof else "",
        "voucher_signature": proof.signature.hex() if proof else "",
        "transcript": receipt.transcript.hex(),
        "digest": receipt.digest.hex(),
        "outcome": receipt.outcome,
    }


def _query_sentence(entry: Json) -> str:
    asked = entry["role"] == "requester"
    who = f"{entry['model']} on {entry['counterparty'][-8:]}"
    did = f"{who} answered you" if asked else f"You answered {entry['counterparty'][-8:]} with {entry['model']}"
    if not entry["channel"]:
        return f"{did} for nothing: {entry['units_in']} prompt and {entry['units_out']} output tokens."
    amount = format_credits(abs(entry["amount"]))
    return f"{did}: {_counted(entry)} = {amount} {'paid' if asked else 'earned'}. It ended with {entry['outcome']}."


def _counted(entry: Json) -> str:
    """The charge as counts times prices. A channel rounds up once over its life, so a part may differ by 1 µcr."""
    return (
        f"{entry['units_in']:,} prompt tokens x {format_credits(entry['price_in'])} per 1,000 + "
        f"{entry['units_out']:,} output tokens x {format_credits(entry['price_out'])} per 1,000"
    )


def _grant_sentence(entry: Json) -> str:
    amount, other = format_credits(abs(entry["amount"])), entry["counterparty"][-8:]
    return f"The issuer {other} granted you {amount}." if entry["amount"] > 0 else f"You granted {other} {amount}."


def _hold_sentence(entry: Json) -> str:
    amount = format_credits(-entry["amount"])
    return f"{amount} are locked for {entry['counterparty'][-8:]}; what it does not earn comes back."


def _close_sentence(entry: Json) -> str:
    paid, other = format_credits(entry["paid"]), entry["counterparty"][-8:]
    return f"The channel with {other} is settled: {_counted(entry)} = {paid} of {format_credits(entry['hold'])} held."


def _refund_sentence(entry: Json) -> str:
    return f"{format_credits(entry['amount'])} came back from {entry['counterparty'][-8:]}: the hold expired unused."


_SENTENCES = {
    "query": _query_sentence,
    "grant": _grant_sentence,
    "hold": _hold_sentence,
    "close": _close_sentence,
    "refund": _refund_sentence,
}
