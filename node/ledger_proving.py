"""Proof files: which proof an id asks for, and what a proof says in words.

Rule: words never say more than what was checked. What a proof leaves open is said beside what it shows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

from node.journal import Json, entry_of
from node.ledger_words import when
from protocol.ids import NO_HASH, NodeId, peer_id
from protocol.ledger.channels import open_voucher
from protocol.ledger.genesis import Federation
from protocol.ledger.orders import AccountOrder
from protocol.ledger.proofs import Proven, ProvenOrder, prove_order, prove_state
from protocol.ledger.state import ChannelStatus, Iterable, View
from protocol.messages import AccountState, ChannelState, Close, LedgerProof, Message
from protocol.pricing import format_credits

_KEYS = frozenset(("issuer", "to", "payer", "payee", "account", "owner", "key", "witness"))
_LEFT_OUT = frozenset(("consent", "voucher", "voucher_signature"))


def proof_of(federation: Federation, stored: Iterable, identity: bytes, *, state: bool) -> tuple[LedgerProof, bytes]:
    """The proof for an id of the ledger or a receipt, and which order or channel it is about. A channel that has ended
    is shown by its end, which has the hold inside. `state`: that a channel was open. Raises `Refused`."""
    entry = entry_of(stored, identity)
    if entry is not None and entry["kind"] == "query" and entry["channel"]:
        identity = bytes.fromhex(entry["channel"])
    if state:
        return prove_state(federation, stored, identity), identity
    channel = View(stored).channel(identity)
    if channel is not None and channel.status is not ChannelStatus.OPEN and channel.settled_by != NO_HASH:
        identity = channel.settled_by
    return prove_order(federation, stored, identity), identity


def proven_json(proven: Proven) -> Json:
    """What a proof shows."""
    federation, agreed = proven.federation, proven.agreed
    genesis = federation.genesis
    shown: Json = {
        "proven": True,
        "federation": federation.id.hex(),
        "federation_name": genesis.name,
        "witnesses": len(genesis.witnesses),
        "quorum": federation.quorum,
        "final": agreed is not None or federation.single,
        "checkpoint": None,
    }
    if agreed is not None:
        shown["checkpoint"] = {
            "id": agreed.id.hex(),
            "epoch": agreed.checkpoint.epoch,
            "time_ms": agreed.checkpoint.time_ms,
            "orders": agreed.checkpoint.count,
            "committed": [peer_id(federation.witness(index)) for index in agreed.committers],
        }
    subject = proven.subject
    shown |= _order(federation, subject) if isinstance(subject, ProvenOrder) else _state(subject)
    return shown | {"means": _means(shown), "does_not_prove": _open_questions(shown)}


def _state(leaf: AccountState | ChannelState) -> Json:
    return {"what": "account" if isinstance(leaf, AccountState) else "channel"} | _plain(leaf)


def _order(federation: Federation, order: ProvenOrder) -> Json:
    checked = order.checked
    shown: Json = {
        "what": "order",
        "type": type(checked.order).__name__.lower(),
        "id": checked.hash.hex(),
        **_plain(checked.order),
        "voted": [peer_id(federation.witness(index)) for index in order.voters],
        "signed": order.signed,
        "sequenced": isinstance(checked.order, AccountOrder),
    }
    if order.hold is not None:
        shown["hold"] = _plain(order.hold)
    if isinstance(checked.order, Close):
        shown["voucher"] = _plain(open_voucher(checked.order.voucher))
    return shown


def _plain(message: Message) -> Json:
    """The fields of a message: accounts as peer ids, hashes in hex."""
    values = {field.name: getattr(message, field.name) for field in fields(message)}  # type: ignore[arg-type]
    return {
        name: peer_id(NodeId(value)) if name in _KEYS else value.hex() if isinstance(value, bytes) else value
        for name, value in values.items()
        if name not in _LEFT_OUT and not isinstance(value, tuple)
    }


def _means(shown: Json) -> list[str]:
    checkpoint = shown["checkpoint"]
    told = [_SUBJECTS[shown["what"]](shown)]
    if checkpoint is not None:
        committed = f"{len(checkpoint['committed'])} of the federation's {shown['witnesses']} witnesses"
        told.append(f"{committed} committed to the checkpoint that says so; it takes {shown['quorum']}.")
    if shown["what"] == "order":
        told += _certified(shown)
    return told


def _certified(shown: Json) -> list[str]:
    votes = f"{len(shown['voted'])} of {shown['witnesses']} witnesses voted for it"
    number = "with its number in that account" if shown["sequenced"] else "that ends the channel"
    told = [f"{votes}, and each votes for one order {number} (it takes {shown['quorum']}): no other can be certified."]
    if shown["checkpoint"] is None and shown["final"]:
        told.append("The federation has one witness, so its vote is final.")
    if not shown["signed"]:
        told.append(
            "The signature is not by the account's first key: the key was changed since, which the witnesses checked, "
            "and this file does not show."
        )
    return told


def _open_questions(shown: Json) -> list[str]:
    told = [
        f"That this is the federation you mean: anybody can found one named {shown['federation_name']}. Compare its "
        "id, or demand it with --federation.",
        "Who is behind a key.",
    ]
    if shown["what"] != "order":
        told.append(f"What is so today: orders of epoch {shown['checkpoint']['epoch']} may have changed it.")
    if not shown["final"]:
        told.append(
            f"That it counts for good. It does once {shown['quorum']} witnesses have stored it, which they say without "
            "a signature, so no file can show it; or once a checkpoint holds it. If too few have stored it when its "
            "epoch ends, it becomes void. Ask for this proof again when the epoch has ended."
        )
    return told


def _account(shown: Json) -> str:
    moment = f"At {when(shown['checkpoint']['time_ms'])}, when epoch {shown['checkpoint']['epoch']} began"
    owner = "" if shown["owner"] == peer_id(NodeId(NO_HASH)) else f" It belongs to {shown['owner']}."
    return (
        f"{moment}, account {shown['account']} had {format_credits(shown['balance'])} to spend, without what was "
        f"locked in channels, and had made {shown['next_sequence']:,} orders.{owner}"
    )


def _channel(shown: Json) -> str:
    moment = f"At {when(shown['checkpoint']['time_ms'])}, when epoch {shown['checkpoint']['epoch']} began"
    return (
        f"{moment}, {format_credits(shown['amount'])} of {shown['payer']} were locked for {shown['payee']} in the open "
        f"channel {shown['channel'][:12]}."
    )


def _ordered(shown: Json) -> str:
    told = f"{_ORDERS[shown['type']](shown)} (order {shown['id'][:12]})."
    checkpoint = shown["checkpoint"]
    if checkpoint is None:
        return told
    counted = f"It is one of the {checkpoint['orders']:,} orders of epoch {checkpoint['epoch'] - 1}"
    return f"{told} {counted} that count for good."


_SUBJECTS = {"account": _account, "channel": _channel, "order": _ordered}


def _close(shown: Json) -> str:
    hold, voucher = shown["hold"], shown["voucher"]
    return (
        f"{hold['payer']} paid {hold['payee']} {format_credits(voucher['cumulative'])} of "
        f"{format_credits(hold['amount'])} held, for {voucher['units_in']:,} prompt tokens at "
        f"{format_credits(hold['price_in'])} per 1,000 and {voucher['units_out']:,} output tokens at "
        f"{format_credits(hold['price_out'])} per 1,000, signed by both"
    )


def _held(shown: Json) -> str:
    return f"{shown['payer']} locked {format_credits(shown['amount'])} for {shown['payee']}"


_ORDERS: dict[str, Callable[[Json], str]] = {
    "grant": lambda shown: f"{shown['issuer']} granted {shown['to']} {format_credits(shown['amount'])}",
    "hold": _held,
    "close": _close,
    "refund": lambda shown: f"{format_credits(shown['hold']['amount'])} came back to {shown['hold']['payer']}",
    "attach": lambda shown: f"{shown['account']} belongs to {shown['owner']}",
    "move": lambda shown: f"{shown['account']} moved {format_credits(shown['amount'])} to {shown['to']}",
    "recovery": lambda shown: f"{shown['key']} may change the key of {shown['account']}",
    "rotate": lambda shown: f"{shown['account']} is signed for by {shown['key']} from here on",
}
