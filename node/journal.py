"""What this node's owner reads: queries, grants, holds and settlements, each explained by a sentence.

Rule: the journal explains, it never decides. Every entry names the other side, the counts and the prices, so that a
balance can be understood without trust in this program.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Iterator
from dataclasses import dataclass, replace
from typing import Any

from node.store import Snapshot
from protocol.codec import body_hash, decode, decode_as
from protocol.errors import ErrorCode, Refused
from protocol.ids import NO_HASH, ChannelId, NodeId, QueryId, peer_id
from protocol.ledger.certificates import open_certificate
from protocol.ledger.channels import open_voucher
from protocol.ledger.orders import CheckedOrder
from protocol.ledger.state import Draft, Iterable, Puts, Reader, View, number, read_number, u64
from protocol.messages import Attach, Checkpoint, Close, Decision, Grant, Hold, Move, Pay, Recovery, Refund, Rotate
from protocol.pricing import format_credits

JOURNAL_LENGTH = b"m:journal"

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

    def __init__(self, owners: Container[NodeId], local: NodeId) -> None:
        """`owners` are the accounts whose orders are written down: the node's own ones, and its issuer's."""
        self._owners = owners
        self._local = local

    def record_receipt(self, draft: Draft, receipt: Receipt) -> str:
        """Write a query down, once. Returns its id in hex."""
        if receipt.quote == NO_HASH:  # a worker is not told the quote; the hold that pays names it
            receipt = replace(receipt, quote=_quote(View(draft), receipt.channel))
        return _append(draft, receipt.id(self._local), _receipt_entry(receipt))

    def record_order(self, draft: Draft, checked: CheckedOrder, now_ms: int) -> None:
        """Write an applied order down if it moves the owner's credits."""
        entry = self._order_entry(View(draft), checked)
        if entry is not None:
            _append(draft, checked.hash, {**entry, "time_ms": now_ms})

    def record_certificate(self, draft: Draft, identity: bytes, data: bytes, now_ms: int) -> None:
        """Write down an order that came with a checkpoint."""
        certificate = open_certificate(data)
        order = decode(certificate.body)
        checked = CheckedOrder(order, certificate.body, certificate.signature, identity, b"", 0)  # type: ignore[arg-type]
        self.record_order(draft, checked, now_ms)

    def record_checkpoint_refund(self, draft: Draft, channel: ChannelId, now_ms: int) -> None:
        """Write down that a checkpoint returned an expired hold, if it is the owner's."""
        entry = self._settled(View(draft), Refund(NodeId(NO_HASH), channel, now_ms))
        if entry is not None:
            _append(draft, hashlib.sha256(b"mtor/refund/1\0" + channel).digest(), {**entry, "time_ms": now_ms})

    def record_checkpoint(self, draft: Draft, decision: bytes, now_ms: int) -> None:
        """Write down that an epoch began."""
        body = decode_as(Decision, decision).body
        checkpoint = decode_as(Checkpoint, body)
        entry = {"kind": "checkpoint", "amount": 0, "counterparty": "", "epoch": checkpoint.epoch}
        _append(draft, body_hash(body), {**entry, "orders": checkpoint.count, "time_ms": now_ms})

    def record_void(self, draft: Draft, identity: bytes, now_ms: int) -> None:
        """Write down that an epoch change made an order void: its entry counts for nothing."""
        position = draft.get(b"i" + identity)
        stored = draft.get(b"h" + position) if position is not None else None
        if position is None or stored is None:
            return
        known = json.loads(stored)
        entry = known | {"void_ms": now_ms, "amount": 0, "was": known["amount"]}
        draft.update({b"h" + position: _packed(entry)})

    def _order_entry(self, view: View, checked: CheckedOrder) -> Json | None:
        order = checked.order
        if isinstance(order, Grant):
            return self._moved("grant", order.issuer, order.to, order.amount)
        if isinstance(order, Hold):
            return self._held(order, checked.hash)
        if isinstance(order, Move):
            return self._moved("move", order.account, order.to, order.amount)
        if isinstance(order, Attach | Recovery | Rotate):
            return self._keyed(order)
        return self._settled(view, order) if isinstance(order, Close | Refund) else None

    def _moved(self, kind: str, payer: NodeId, payee: NodeId, amount: int) -> Json | None:
        if payee in self._owners:
            return _entry(kind, amount, payer)
        return _entry(kind, -amount, payee) if payer in self._owners else None

    def _keyed(self, order: Attach | Recovery | Rotate) -> Json | None:
        """What changes who acts for an account: the other side is the owner, or the new key."""
        other = order.owner if isinstance(order, Attach) else order.key
        concerned = (order.account, other) if isinstance(order, Attach) else (order.account,)
        if not any(account in self._owners for account in concerned):
            return None
        return _entry(type(order).__name__.lower(), 0, other) | {"account": peer_id(order.account)}

    def _held(self, hold: Hold, channel: bytes) -> Json | None:
        if hold.payer not in self._owners:
            return None
        prices = {"price_in": hold.price_in, "price_out": hold.price_out}
        return _entry("hold", -hold.amount, hold.payee) | {"channel": channel.hex(), **prices}

    def _settled(self, view: View, order: Close | Refund) -> Json | None:
        channel = view.channel(order.channel)
        if channel is None or not (channel.payer in self._owners or channel.payee in self._owners):
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


def entry_of(reader: Reader, identity: bytes) -> Json | None:
    """The entry with this id; None if there is none."""
    position = reader.get(b"i" + identity)
    stored = reader.get(b"h" + position) if position is not None else None
    return None if stored is None else json.loads(stored)


def receipts_of(reader: Iterable, channel: ChannelId) -> Iterator[Json]:
    """The entries of a channel's queries, oldest first."""
    for key, _ in reader.iterate(b"j" + channel):
        stored = reader.get(b"h" + key[-8:])
        if stored is not None:
            yield json.loads(stored)


def receipt_index(reader: Iterable) -> Puts:
    """What finds a channel's queries, for a journal that was written without it."""
    puts: Puts = {}
    for key, value in reader.iterate(b"h"):
        puts.update(_indexed(json.loads(value), key[1:]))
    return puts


def _append(draft: Draft, identity: bytes, entry: Json) -> str:
    known = entry_of(draft, identity)
    if known is None or "void_ms" in known:  # a settlement that became void may be applied again
        position = u64(read_number(draft, JOURNAL_LENGTH))
        puts: Puts = {
            b"h" + position: _packed({**entry, "id": identity.hex()}),
            b"i" + identity: position,
            JOURNAL_LENGTH: u64(number(position) + 1),
        }
        draft.update(puts | _indexed(entry, position))
    return identity.hex()


def _indexed(entry: Json, position: bytes) -> Puts:
    """Finds a query by its channel."""
    channel = entry["channel"] if entry["kind"] == "query" else ""
    return {b"j" + bytes.fromhex(channel) + position: b""} if channel else {}


def _packed(entry: Json) -> bytes:
    return json.dumps(entry, separators=(",", ":")).encode()


def _quote(view: View, channel: ChannelId) -> bytes:
    """The quote that a channel's hold names; NO_HASH if it is not known here."""
    record = view.record(channel)
    hold = decode(open_certificate(record).body) if record is not None else None
    return hold.quote if isinstance(hold, Hold) else NO_HASH


def _read(key: bytes, value: bytes) -> Json:
    entry: Json = json.loads(value)
    entry["position"] = str(number(key[1:]))
    entry["sentence"] = sentence(entry)
    return entry


def sentence(entry: Json) -> str:
    """An entry in words, for its owner."""
    void = " An epoch change made it void: it counts for nothing." if "void_ms" in entry else ""
    return _SENTENCES[entry["kind"]](entry | {"amount": entry.get("was", entry["amount"])}) + void


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


def _move_sentence(entry: Json) -> str:
    amount, other = format_credits(abs(entry["amount"])), entry["counterparty"][-8:]
    return (
        f"{amount} came from your account {other}."
        if entry["amount"] > 0
        else f"{amount} went to your account {other}."
    )


def _attach_sentence(entry: Json) -> str:
    return f"The account {entry['account'][-8:]} belongs to {entry['counterparty'][-8:]}, for ever."


def _recovery_sentence(entry: Json) -> str:
    return (
        f"The key {entry['counterparty'][-8:]} may change the key of your account {entry['account'][-8:]}, "
        "if that is lost or stolen."
    )


def _rotate_sentence(entry: Json) -> str:
    return f"The key of your account {entry['account'][-8:]} was changed to {entry['counterparty'][-8:]}."


def _checkpoint_sentence(entry: Json) -> str:
    return f"Epoch {entry['epoch']} began: {entry['orders']:,} orders of the one before count for good."


_SENTENCES = {
    "checkpoint": _checkpoint_sentence,
    "attach": _attach_sentence,
    "recovery": _recovery_sentence,
    "rotate": _rotate_sentence,
    "move": _move_sentence,
    "query": _query_sentence,
    "grant": _grant_sentence,
    "hold": _hold_sentence,
    "close": _close_sentence,
    "refund": _refund_sentence,
}
