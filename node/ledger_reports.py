"""Why is the balance this? Summaries, lines and single explanations, down to the receipts.

Rule: every number comes from the ledger's certificates and vouchers; the journal adds only when it was, and the queries
of a channel. Whatever should add up is added up here, and `adds_up` says whether it does. Nothing is changed, and
nothing but groups and one channel's receipts is kept in memory. Amounts are µcredits, prices for 1,000 tokens, accounts
peer ids, hashes hex.
"""

from __future__ import annotations

import datetime
from bisect import bisect
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from node.journal import Json, entry_of, receipts_of
from node.ledger_lines import AccountLines, Line, Part, hold_of, order_of
from node.ledger_words import explained
from node.open_channels import last_voucher
from protocol.codec import decode_as
from protocol.errors import BadSignature, ErrorCode, Malformed, Refused
from protocol.ids import NO_HASH, ChannelId, NodeId, peer_id
from protocol.ledger.certificates import open_certificate
from protocol.ledger.channels import no_voucher, open_voucher
from protocol.ledger.checkpoints import is_decision
from protocol.ledger.families import keys_of, verify_any
from protocol.ledger.genesis import Federation
from protocol.ledger.orders import AccountOrder
from protocol.ledger.state import Channel, ChannelStatus, Iterable, View
from protocol.messages import Checkpoint, Close, Decision, Grant, Message, Move, Refund, Voucher
from protocol.pricing import channel_cost, cost

MIN_PREFIX = 6  # hex digits that name an id
GROUPS = 20  # counterparties or days in a summary, the largest first
RECEIPTS = 50  # of one channel in an explanation
BY = ("counterparty", "day")

_HEX = frozenset("0123456789abcdef")


@dataclass(slots=True)
class _Group:
    """What one counterparty, or one day, has done to a balance."""

    amounts: dict[Part, int] = field(default_factory=dict)
    locked: int = 0  # came back whole
    lines: int = 0
    queries: int = 0
    last_ms: int = 0

    def add(self, line: Line, queries: int, time_ms: int) -> None:
        """One line more."""
        self.amounts[line.part] = self.amounts.get(line.part, 0) + line.amount
        self.locked += line.channel.amount if line.part is Part.RETURNED and line.channel else 0
        self.lines += 1
        self.queries += queries
        self.last_ms = max(self.last_ms, time_ms)

    @property
    def size(self) -> int:
        """How much passed: what decides which groups are shown."""
        return sum(abs(amount) for amount in self.amounts.values())

    def shown(self) -> Json:
        """As JSON."""
        return {
            "amount": sum(self.amounts.values()),
            **{part.value: amount for part, amount in self.amounts.items()},
            "lines": self.lines,
            "queries": self.queries,
            "last_ms": self.last_ms or None,
        }


class LedgerReports:
    """What one snapshot of a ledger says."""

    def __init__(self, federation: Federation, reader: Iterable, node: NodeId, owners: frozenset[NodeId]) -> None:
        """`node` is whose journal this is, `owners` the accounts that it writes about."""
        self._federation = federation
        self._reader = reader
        self._view = View(reader)
        self._node = node
        self._owners = owners
        self._epochs: list[int] | None = None  # where epochs begin in the log, from the first that is kept

    # --- one account -----------------------------------------------------------------------------------

    def why(self, account: NodeId, by: str = "counterparty", limit: int = GROUPS) -> Json:
        """An account's balance as a sum. Raises `Refused` (INVALID_REQUEST)."""
        if by not in BY:
            raise Refused(ErrorCode.INVALID_REQUEST, f"a summary is by {' or by '.join(BY)}, not by {by!r}")
        lines = AccountLines(self._federation, self._reader, account)
        opening = lines.opening()
        parts = {part: _Group() for part in Part}
        groups: dict[str, _Group] = {}
        promised = owed = 0
        for line in lines.walk():
            queries, time_ms = self._times(line)
            parts[line.part].add(line, queries, time_ms)
            groups.setdefault(self._group_name(line, by, time_ms), _Group()).add(line, queries, time_ms)
            if line.part in (Part.PROMISED, Part.HELD):
                cumulative = last_voucher(self._reader, ChannelId(line.id)).cumulative
                promised += cumulative if line.part is Part.PROMISED else 0
                owed += cumulative if line.part is Part.HELD else 0
        total = opening.balance + opening.held + sum(sum(group.amounts.values()) for group in parts.values())
        missing = lines.missing + _difference(lines.balance, total)
        return {
            **self._heading(account),
            "balance": lines.balance,
            "opening": {"epoch": opening.epoch, "balance": opening.balance, "held": opening.held},
            "parts": [
                {"part": part.value, "amount": sum(group.amounts.values()), "lines": group.lines}
                | ({"locked": group.locked} if part is Part.RETURNED else {})
                for part, group in parts.items()
                if group.lines
            ],
            "sum": total,
            "adds_up": not missing,
            "missing": missing,
            "owed": owed,
            "pending": promised,
            "by": by,
            "groups": _largest(groups, by, limit),
            "groups_left_out": max(0, len(groups) - limit),
        }

    def lines(self, account: NodeId) -> Iterator[Json]:
        """Every line of the sum, in the order of this node's log, behind one of what was there before (if anything
        was forgotten here)."""
        lines = AccountLines(self._federation, self._reader, account)
        opening = lines.opening()
        total = opening.balance + opening.held
        if opening.epoch:
            yield {"part": "opening", "amount": total, "epoch": opening.epoch, "balance": total}
        for line in lines.in_order():
            total += line.amount
            yield self._line(line) | {"balance": total}

    def _heading(self, account: NodeId) -> Json:
        return {
            "account": peer_id(account),
            "own": account in self._owners,
            "issuer": self._federation.is_issuer(account),
            "federation": self._federation.id.hex(),
            "federation_name": self._federation.genesis.name,
            "epoch": self._view.epoch,
            "certificates": self._view.log_length,
        }

    def _times(self, line: Line) -> tuple[int, int]:
        """How many queries a line covers, and when it last changed (0: not known here)."""
        settled = line.channel.settled_by if line.channel is not None else NO_HASH
        entry = (entry_of(self._reader, settled) if settled != NO_HASH else None) or entry_of(self._reader, line.id)
        queries = 0
        if line.channel is not None and {line.channel.payer, line.channel.payee} & self._owners:
            queries = sum(1 for _ in receipts_of(self._reader, ChannelId(line.id)))
        return queries, int(entry["time_ms"]) if entry else 0

    def _group_name(self, line: Line, by: str, time_ms: int) -> str:
        if by == "counterparty":
            return peer_id(line.counterparty)
        if not time_ms:  # the ledger has no clock but its checkpoints; days are from this node's journal
            return f"epoch {self._epoch(line)}, day not known here"
        return datetime.datetime.fromtimestamp(time_ms / 1_000, datetime.UTC).date().isoformat()

    def _epoch(self, line: Line) -> int:
        """The epoch in which a line last changed."""
        if self._epochs is None:
            later = range(self._view.first_epoch + 1, self._view.epoch + 1)
            opened = map(self._view.checkpoint, later)
            self._epochs = [self._view.position(identity or b"") or 0 for identity in opened]
        settled = line.channel.settled_by if line.channel is not None else NO_HASH
        position = self._view.position(line.id if settled == NO_HASH else settled)
        return self._view.first_epoch + bisect(self._epochs, position or 0)

    def _line(self, line: Line) -> Json:
        _, time_ms = self._times(line)
        shown = {
            "part": line.part.value,
            "id": line.id.hex(),
            "amount": line.amount,
            "counterparty": peer_id(line.counterparty),
            "epoch": self._epoch(line),
            "time_ms": time_ms or None,
        }
        return shown | (self._channel(ChannelId(line.id), line.channel) if line.channel is not None else {})

    # --- one channel -----------------------------------------------------------------------------------

    def _channel(self, identity: ChannelId, channel: Channel) -> Json:
        """Counts, prices, sums and proofs of a channel."""
        hold, voucher = hold_of(self._view, identity), self._settling_voucher(identity, channel)
        due = channel_cost(voucher.units_in, voucher.units_out, channel.price_in, channel.price_out)
        shown: Json = {
            "channel": identity.hex(),
            "payer": peer_id(channel.payer),
            "payee": peer_id(channel.payee),
            "status": channel.status.name.lower(),
            "hold": channel.amount,
            "paid": channel.paid,
            "promised": voucher.cumulative,
            "units_in": voucher.units_in,
            "units_out": voucher.units_out,
            "price_in": channel.price_in,
            "price_out": channel.price_out,
            "cost_in": cost(voucher.units_in, channel.price_in),
            "cost_out": cost(voucher.units_out, channel.price_out),
            "expiry_ms": channel.expiry_ms,
            "quote": hold.quote.hex() if hold is not None and hold.quote != NO_HASH else "",
            "quote_by": peer_id(channel.payee),
            "settled_by": "" if channel.settled_by == NO_HASH else channel.settled_by.hex(),
            "voucher_transcript": voucher.transcript.hex(),
        }
        counted = due == voucher.cumulative and voucher.cumulative <= channel.amount
        agreed = channel.status is not ChannelStatus.CLOSED or channel.paid == voucher.cumulative
        receipts = amount = 0
        for entry in receipts_of(self._reader, identity):
            receipts, amount = receipts + 1, amount + abs(int(entry["amount"]))
        own = bool({channel.payer, channel.payee} & self._owners)
        return shown | {
            "adds_up": counted and agreed,
            "receipts_count": receipts,
            "receipts_amount": amount,
            "receipts_left": voucher.cumulative - amount if own else None,
        }

    def _settling_voucher(self, identity: ChannelId, channel: Channel) -> Voucher:
        """The voucher that settled a channel; of an open one the best that is known here."""
        order = order_of(self._view, channel.settled_by) if channel.settled_by != NO_HASH else None
        return open_voucher(order.voucher) if isinstance(order, Close) else last_voucher(self._reader, identity)

    # --- one id ----------------------------------------------------------------------------------------

    def explain(self, prefix: str, limit: int = RECEIPTS) -> Json:
        """One order, channel, receipt or checkpoint, by the beginning of its id. Raises `Refused` (INVALID_REQUEST)."""
        found = self._explain(self.resolve(prefix), limit)
        return found | {"sentence": explained(found)}

    def _explain(self, identity: bytes, limit: int) -> Json:
        channel = self._view.channel(identity)
        if channel is not None:
            return self._explain_channel(ChannelId(identity), channel, limit)
        record = self._view.record(identity)
        if record is not None and is_decision(record):
            return self._explain_checkpoint(identity, record)
        order = order_of(self._view, identity)
        if order is not None:
            return self._explain_order(identity, order, limit)
        entry = entry_of(self._reader, identity)
        assert entry is not None  # `resolve` found it
        return self._explain_entry(identity, entry, limit)

    def resolve(self, prefix: str) -> bytes:
        """The whole id that begins like this. Raises `Refused` (INVALID_REQUEST) if there is none, or several."""
        text = prefix.lower()
        if not MIN_PREFIX <= len(text) <= 64 or not set(text) <= _HEX:
            raise Refused(
                ErrorCode.INVALID_REQUEST,
                f"an id is at least {MIN_PREFIX} hexadecimal digits from `mtor ledger history`, or a peer id",
            )
        found: set[bytes] = set()
        for kind in (b"r", b"i", b"c"):
            for key, _ in self._reader.iterate(kind + bytes.fromhex(text[: len(text) // 2 * 2])):
                if key[1:].hex().startswith(text):
                    found.add(key[1:])
                if len(found) > 4:
                    break
        if not found:
            raise Refused(
                ErrorCode.INVALID_REQUEST, f"nothing in this ledger begins with {prefix}; see `mtor ledger history`"
            )
        if len(found) > 1:
            some = ", ".join(sorted(identity.hex()[:12] for identity in found)[:4])
            raise Refused(ErrorCode.INVALID_REQUEST, f"{prefix} begins several ids ({some} …); give more digits")
        return found.pop()

    def _explain_channel(self, identity: ChannelId, channel: Channel, limit: int, asked: str = "hold") -> Json:
        shown: list[Json] = []
        for entry in receipts_of(self._reader, identity):
            if len(shown) == limit:
                break
            shown.append(self._receipt(entry))
        summary = self._channel(identity, channel)
        opened, settled = entry_of(self._reader, identity), entry_of(self._reader, channel.settled_by)
        return {
            "kind": "channel",
            "id": identity.hex(),
            "asked": asked,
            "role": self._role(channel),
            "opened_ms": opened["time_ms"] if opened else None,
            "settled_ms": settled["time_ms"] if settled else None,
            **summary,
            "order": self._order(identity),
            "settlement": self._order(channel.settled_by) if channel.settled_by != NO_HASH else None,
            "receipts": shown,
            "receipts_left_out": summary["receipts_count"] - len(shown),
        }

    def _role(self, channel: Channel) -> str:
        roles = (("payer", channel.payer), ("payee", channel.payee))
        return next((name for name, account in roles if account in self._owners), "other")

    def _order(self, identity: bytes) -> Json | None:
        """Number, place and witnesses of an order that is here."""
        order, record = order_of(self._view, identity), self._view.record(identity)
        if order is None or record is None:
            return None
        votes = open_certificate(record).votes
        numbered = {"sequence": order.sequence, "epoch": order.epoch} if isinstance(order, AccountOrder) else {}
        return {
            "id": identity.hex(),
            "type": type(order).__name__.lower(),
            **numbered,
            "position": self._view.position(identity),
            "witnesses": [peer_id(self._federation.witness(vote.witness)) for vote in votes],
        }

    def _explain_order(self, identity: bytes, order: Message, limit: int) -> Json:
        if isinstance(order, Close | Refund):
            channel = self._view.channel(order.channel)
            if channel is not None:
                return self._explain_channel(order.channel, channel, limit, type(order).__name__.lower())
        entry = entry_of(self._reader, identity)
        shown: Json = {
            "kind": type(order).__name__.lower(),
            "id": identity.hex(),
            "time_ms": entry["time_ms"] if entry else None,
            "order": self._order(identity),
        }
        if isinstance(order, Grant | Move):
            payer = order.issuer if isinstance(order, Grant) else order.account
            shown |= {"from": peer_id(payer), "to": peer_id(order.to), "amount": order.amount}
        named = {name: getattr(order, name, None) for name in ("account", "owner", "key")}
        shown |= {name: peer_id(NodeId(value)) for name, value in named.items() if value is not None}
        if isinstance(order, Grant):
            floor, standing = self._federation.floor(order.issuer), self._view.account(order.issuer).balance
            shown |= {"issued_in_all": -standing, "issuer_cap": -floor}
        return shown

    def _explain_checkpoint(self, identity: bytes, record: bytes) -> Json:
        decision = decode_as(Decision, record)
        checkpoint = decode_as(Checkpoint, decision.body)
        return {
            "kind": "checkpoint",
            "id": identity.hex(),
            "epoch": checkpoint.epoch,
            "time_ms": checkpoint.time_ms,
            "orders": checkpoint.count,
            "orders_root": checkpoint.orders.hex(),
            "state_root": checkpoint.state.hex(),
            "sources": [peer_id(self._federation.witness(source.witness)) for source in checkpoint.sources],
            "commits": len(decision.commits),
            "witnesses": len(self._federation.genesis.witnesses),
        }

    def _explain_entry(self, identity: bytes, entry: Json, limit: int) -> Json:
        """What stands in the journal alone: a receipt, a checkpoint's refund, an order that was pruned or is void."""
        if entry["kind"] == "query":
            return {"kind": "receipt", **self._receipt(entry), "id": identity.hex()}
        channel = self._view.channel(bytes.fromhex(entry.get("channel", "")))
        if channel is not None:
            return self._explain_channel(ChannelId(bytes.fromhex(entry["channel"])), channel, limit, entry["kind"])
        gone = "void" if "void_ms" in entry else "forgotten"
        return {
            "kind": gone,
            **{name: value for name, value in entry.items() if name != "kind"},
            "entry": entry["kind"],
        }

    def _receipt(self, entry: Json) -> Json:
        """One query: its counts, what the channel's voucher was before and after, and whether that is its price."""
        shown = {name: entry[name] for name in _RECEIPT_FIELDS} | {"quote_by": _quoting(entry, self._node)}
        if not entry["channel"]:
            return shown | {"adds_up": entry["amount"] == 0, "voucher": None}
        prices = (entry["price_in"], entry["price_out"])
        voucher = _kept_voucher(entry)
        units_in, units_out = voucher.units_in - entry["units_in"], voucher.units_out - entry["units_out"]
        whole = units_in >= 0 and units_out >= 0
        before = channel_cost(units_in, units_out, *prices) if whole else 0
        channel = self._view.channel(bytes.fromhex(entry["channel"]))
        signed = None if channel is None else self._signed(channel, entry)
        exact = whole and voucher.cumulative - before == abs(entry["amount"]) and signed is not False
        return shown | {
            "adds_up": bool(exact),
            "voucher": {
                "cumulative": voucher.cumulative,
                "before": before,
                "units_in": voucher.units_in,
                "units_out": voucher.units_out,
                "signed": signed,
                "body": entry["voucher"],
                "signature": entry["voucher_signature"],
            },
            "channel_status": channel.status.name.lower() if channel is not None else "not here",
        }

    def _signed(self, channel: Channel, entry: Json) -> bool:
        body, signature = bytes.fromhex(entry["voucher"]), bytes.fromhex(entry["voucher_signature"])
        try:
            verify_any(self._view, keys_of(self._view, channel.payer), self._federation.id, body, signature)
        except (BadSignature, Malformed):
            return False
        return True


_RECEIPT_FIELDS = (
    "id",
    "time_ms",
    "role",
    "counterparty",
    "query",
    "realm",
    "model",
    "amount",
    "units_in",
    "units_out",
    "price_in",
    "price_out",
    "quote",
    "channel",
    "transcript",
    "digest",
    "outcome",
)


def _kept_voucher(entry: Json) -> Voucher:
    """The voucher that a receipt keeps as its proof; an empty one if it keeps none."""
    try:
        return open_voucher(bytes.fromhex(entry["voucher"]))
    except Malformed:
        return no_voucher(ChannelId(NO_HASH))


def _quoting(entry: Json, node: NodeId) -> str:
    """Who offered the price: the worker of the query."""
    return str(entry["counterparty"]) if entry["role"] == "requester" else peer_id(node)


def _difference(balance: int, total: int) -> list[str]:
    if balance == total:
        return []
    return [f"the lines add up to {total} µcr, the balance is {balance} µcr: {balance - total} µcr are not explained"]


def _largest(groups: dict[str, _Group], by: str, limit: int) -> list[Json]:
    """The first groups: counterparties by what passed, days from the newest."""
    names: Any = sorted(groups) if by == "day" else sorted(groups, key=lambda name: groups[name].size)
    return [{by: name} | groups[name].shown() for name in list(reversed(names))[:limit]]
