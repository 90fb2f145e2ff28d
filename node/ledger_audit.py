"""The whole federation as one replica sees it.

Rule: read-only, and from the stored ledger alone. Invariants carry the numbers of spec/05-ledger.md; one that a single
replica cannot see is listed as such and never reported as passed. What looks odd without breaking a rule is a hint, and
says why it does or does not matter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import nlargest

from node.journal import Json
from node.ledger_findings import findings
from node.signature_pool import verify_on_all_cores
from protocol.codec import decode, decode_as
from protocol.errors import ProtocolError
from protocol.ids import NO_HASH, ChannelId, NodeId, peer_id
from protocol.ledger.audit import Report
from protocol.ledger.certificates import open_certificate
from protocol.ledger.channels import check_voucher, open_voucher
from protocol.ledger.checkpoints import is_decision
from protocol.ledger.genesis import Federation
from protocol.ledger.orders import AccountOrder, owner_of
from protocol.ledger.state import (
    Account,
    Base,
    Channel,
    ChannelStatus,
    Iterable,
    View,
    first_head,
    log_key,
    number,
    split_number,
)
from protocol.messages import Checkpoint, Close, Decision, Message, Pay, Refund

TOP = 10  # accounts, channels or pairs that are named
MAX_PROBLEMS = 5  # of one invariant
NEAR_PERCENT = 90  # of the hold: a channel that is nearly used up


@dataclass(slots=True)
class _Check:
    """One invariant."""

    what: str
    problems: list[str] = field(default_factory=list)
    broken: int = 0
    checked: int = 0

    def fail(self, problem: str) -> None:
        """Note a break."""
        self.broken += 1
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(problem)


def audit(federation: Federation, reader: Iterable, now_ms: int, *, signatures: bool = False) -> Json:
    """Everything that this replica can say about its federation at `now_ms`."""
    return _Audit(federation, reader, now_ms).run(
        verify_on_all_cores(federation, reader, signatures=signatures), signatures
    )


class _Audit:
    """One walk over accounts, one over channels, one over the log."""

    def __init__(self, federation: Federation, reader: Iterable, now_ms: int) -> None:
        self._federation = federation
        self._reader = reader
        self._view = View(reader)
        self._beginning = View(Base(reader, self._view.first_epoch))  # of the part that is kept
        self._now_ms = now_ms
        self._votes: Counter[int] = Counter()  # by witness, in the epoch in force
        self._in_epoch = 0  # certificates there
        self._checks = {
            "I1": _Check("balances and open holds add up to 0"),
            "I2": _Check("no balance is below its floor (0; an issuer's its share of the cap)"),
            "I3": _Check("one certificate for each number of an account and each end of a channel"),
            "I4": _Check("an account's numbers have no gap, and each order names the one before it"),
            "I5": _Check("no voucher is above its hold, and each is its counts times the prices"),
            "I9": _Check("every stored record is in the one canonical encoding"),
            "I12": _Check("checkpoints form one chain"),
        }

    def run(self, report: Report, signatures: bool) -> Json:
        """The whole answer."""
        accounts, channels, orders = self._accounts(), self._channels(), self._log()
        self._vouchers(channels)
        total = accounts["sum"] + channels["held"]
        if total:
            self._checks["I1"].fail(f"they add up to {total} µcr")
        self._checks["I1"].checked = accounts["count"] + channels["open"]
        invariants = self._invariants(report, signatures)
        audited = {
            "federation": self._federation.id.hex(),
            "name": self._federation.genesis.name,
            "epoch": self._view.epoch,
            "first_epoch": self._view.first_epoch,
            "passed": all(invariant["result"] != "FAIL" for invariant in invariants),
            "supply": self._supply(),
            "certificates": self._view.log_length,
            "certificates_in_epoch": self._in_epoch,
            "votes_in_epoch": self._voted(),
            "orders": orders,
            "sum_micro": total,
            "accounts": accounts,
            "channels": channels,
            "evidence": self._evidence(),
            "invariants": invariants,
        }
        return audited | {"findings": findings(self._federation, self._reader, audited, self._votes)}

    def _voted(self) -> list[Json]:
        witnesses = self._federation.genesis.witnesses
        return [{"witness": peer_id(witness), "votes": self._votes[index]} for index, witness in enumerate(witnesses)]

    # --- supply and accounts ---------------------------------------------------------------------------

    def _supply(self) -> Json:
        granted = {issuer: -self._view.account(issuer).balance for issuer in self._federation.genesis.issuers}
        issuers = [
            {"issuer": peer_id(issuer), "granted": amount, "cap": -self._federation.floor(issuer)}
            for issuer, amount in granted.items()
        ]
        cap = self._federation.genesis.supply_cap
        return {"granted": sum(granted.values()), "cap": cap, "issuers": issuers}

    def _accounts(self) -> Json:
        total = count = positive = 0
        richest: list[tuple[int, bytes]] = []
        for key, value in self._reader.iterate(b"a"):
            account, identity = Account.decode(value), NodeId(key[1:])
            count, total = count + 1, total + account.balance
            if account.balance < self._federation.floor(identity):
                self._checks["I2"].fail(f"account {peer_id(identity)} has {account.balance} µcr")
            if account.balance > 0:
                positive += account.balance
                richest = nlargest(TOP, [*richest, (account.balance, bytes(identity))])
            self._check_head(identity, account)
        self._checks["I2"].checked = count
        top = [
            {"account": peer_id(NodeId(identity)), "balance": balance, "share": round(balance / positive, 4)}
            for balance, identity in richest
        ]
        return {"count": count, "sum": total, "free": positive, "top": top}

    def _check_head(self, identity: NodeId, account: Account) -> None:
        """The chain ends where the account says."""
        if account.next_sequence == 0:
            return
        last = self._view.order_at(identity, account.next_sequence - 1)
        if last is not None and last != account.head:
            self._checks["I4"].fail(f"the head of {peer_id(identity)} is not its order {account.next_sequence - 1}")
        if last is None and account.next_sequence != self._beginning.account(identity).next_sequence:
            self._checks["I4"].fail(f"order {account.next_sequence - 1} of {peer_id(identity)} is missing")

    # --- channels --------------------------------------------------------------------------------------

    def _channels(self) -> Json:
        counts: Counter[ChannelStatus] = Counter()
        held = paid = expired = expired_held = used_up = 0
        pairs = _Pairs()
        overdue: list[tuple[int, bytes]] = []
        for key, value in self._reader.iterate(b"c"):
            channel = Channel.decode(value)
            counts[channel.status] += 1
            paid += channel.paid
            pairs.add(channel)
            if channel.status is ChannelStatus.CLOSED and channel.paid * 100 >= channel.amount * NEAR_PERCENT:
                used_up += 1
            if not channel.open:
                continue
            held += channel.amount
            if channel.expiry_ms <= self._now_ms:
                expired, expired_held = expired + 1, expired_held + channel.amount
                overdue = nlargest(TOP, [*overdue, (self._now_ms - channel.expiry_ms, key[1:])])
        return {
            "count": counts.total(),
            "open": counts[ChannelStatus.OPEN],
            "closed": counts[ChannelStatus.CLOSED],
            "refunded": counts[ChannelStatus.REFUNDED],
            "held": held,
            "paid": paid,
            "open_past_expiry": expired,
            "held_past_expiry": expired_held,
            "longest_past_expiry": [
                {"channel": identity.hex(), "overdue_ms": overdue_ms} for overdue_ms, identity in overdue
            ],
            "closed_nearly_used_up": used_up,
            "only_with_one_another": pairs.shown(),
        }

    def _vouchers(self, channels: Json) -> None:
        """The vouchers that are known here: those of channels of this node's own."""
        near, check = [], self._checks["I5"]
        known = 0
        for key, value in self._reader.iterate(b"v"):
            identity, channel = ChannelId(key[1:]), self._view.channel(key[1:])
            if channel is None:
                continue
            known, check.checked = known + 1, check.checked + 1
            try:
                voucher = open_voucher(decode_as(Pay, value).voucher)
                check_voucher(channel, identity, voucher)
            except ProtocolError as error:
                check.fail(f"the voucher of channel {identity.hex()[:12]}: {error}")
                continue
            if channel.open and voucher.cumulative * 100 >= channel.amount * NEAR_PERCENT:
                near.append({"channel": identity.hex(), "promised": voucher.cumulative, "hold": channel.amount})
        channels |= {"vouchers_known_here": known, "open_nearly_used_up": near[:TOP]}

    # --- the log ---------------------------------------------------------------------------------------

    def _log(self) -> Json:
        """Every order in its place; how many there are of each kind."""
        kinds: Counter[str] = Counter()
        previous = None
        for position, identity in self._places():
            record = self._view.record(identity)
            if record is None or self._view.position(identity) != position:
                kinds["void"] += 1
                continue
            try:
                if is_decision(record):
                    previous = self._check_decision(identity, record, previous)
                    kinds["checkpoint"] += 1
                    continue
                certificate = open_certificate(record)
                order = decode(certificate.body)
            except ProtocolError as error:
                self._checks["I9"].fail(f"record {position} of the log: {error}")
                continue
            self._checks["I9"].checked += 1
            kinds[type(order).__name__.lower()] += 1
            if position >= self._view.epoch_start:
                self._in_epoch += 1
                self._votes.update(vote.witness for vote in certificate.votes)
            self._check_order(identity, order)
        return dict(sorted(kinds.items()))

    def _places(self) -> Iterator[tuple[int, bytes]]:
        first = self._view.log_first
        for key, identity in self._reader.iterate(b"n", log_key(first)):
            yield number(key[1:]), identity

    def _check_decision(self, identity: bytes, record: bytes, previous: bytes | None) -> bytes:
        checkpoint = decode_as(Checkpoint, decode_as(Decision, record).body)
        if previous is not None and checkpoint.previous != previous:
            self._checks["I12"].fail(f"the checkpoint of epoch {checkpoint.epoch} does not follow the one before it")
        self._checks["I12"].checked += 1
        return identity

    def _check_order(self, identity: bytes, order: Message) -> None:
        if isinstance(order, AccountOrder):
            self._check_numbered(identity, order)
        elif isinstance(order, Close | Refund):
            self._check_settlement(identity, order)
        else:
            self._checks["I9"].fail(f"{identity.hex()[:12]} in the log is no order but a {type(order).__name__}")

    def _check_numbered(self, identity: bytes, order: AccountOrder) -> None:
        """I3 and I4 of an account order."""
        owner = owner_of(order)
        name = f"order {order.sequence} of {peer_id(owner)}"
        self._checks["I3"].checked += 1
        self._checks["I4"].checked += 1
        if self._view.order_at(owner, order.sequence) != identity:
            self._checks["I3"].fail(f"{name} has two certificates")
        if order.sequence >= self._view.account(owner).next_sequence:
            self._checks["I4"].fail(f"{name} is beyond the end of its account")
        if order.previous != self._predecessor(owner, order.sequence):
            self._checks["I4"].fail(f"{name} does not name the order before it")

    def _predecessor(self, owner: bytes, sequence: int) -> bytes:
        if sequence == 0:
            return first_head(owner)
        began = self._beginning.account(owner)
        if began.next_sequence == sequence:
            return began.head
        return self._view.order_at(owner, sequence - 1) or NO_HASH

    def _check_settlement(self, identity: bytes, order: Close | Refund) -> None:
        """I3 of what ends a channel, and I5 of its voucher."""
        channel = self._view.channel(order.channel)
        self._checks["I3"].checked += 1
        if channel is None or channel.settled_by != identity:
            self._checks["I3"].fail(f"channel {order.channel.hex()[:12]} says that another order settled it")
            return
        if isinstance(order, Refund):
            return
        check = self._checks["I5"]
        check.checked += 1
        try:
            voucher = open_voucher(order.voucher)
            check_voucher(channel, order.channel, voucher)
        except ProtocolError as error:
            check.fail(f"channel {order.channel.hex()[:12]}: {error}")
            return
        if channel.paid != voucher.cumulative:
            paid = f"{channel.paid} µcr by a voucher of {voucher.cumulative}"
            check.fail(f"channel {order.channel.hex()[:12]} paid {paid}")

    # --- what was found --------------------------------------------------------------------------------

    def _evidence(self) -> Json:
        """Proofs of misbehaviour that are kept here."""
        proven = [(key[1:], split_number(value)[0]) for key, value in self._reader.iterate(b"e")]
        return {
            "equivocations": [{"account": peer_id(NodeId(key)), "epoch": epoch} for key, epoch in proven[:TOP]],
            "equivocations_count": len(proven),
            "double_votes": [peer_id(self._federation.witness(key[1])) for key, _ in self._reader.iterate(b"w")],
        }

    def _invariants(self, report: Report, signatures: bool) -> list[Json]:
        found = [
            _result(name, check.what, not check.broken, check.checked, check.problems, check.broken)
            for name, check in self._checks.items()
        ]
        what = "the state is what the log makes of it" + (", every signature is good" if signatures else "")
        problems = list(report.problems)
        found.append(
            _result("I6, I13", what, report.verified, report.certificates, problems[:MAX_PROBLEMS], len(problems))
        )
        found += [
            {"invariant": name, "what": what, "result": "not visible here", "checked": 0, "broken": 0, "problems": []}
            for name, what in _NOT_VISIBLE.items()
        ]
        return found


_NOT_VISIBLE = {
    "I7": "what is final is in every union: takes the logs of the other witnesses",
    "I8": "witnesses vote once: a second vote shows as evidence",
    "I10": "no worker runs more than the window ahead: between the two of a query",
    "I11": "an owner that reaches a quorum finishes: takes more than one moment",
    "I14": "keys and owners are only added to: takes more than one moment",
}


def _result(name: str, what: str, passed: bool, checked: int, problems: list[str], broken: int) -> Json:
    return {
        "invariant": name,
        "what": what,
        "result": "PASS" if passed else "FAIL",
        "checked": checked,
        "broken": broken,
        "problems": problems,
    }


class _Pairs:
    """Who trades with whom, as far as it takes to find two that trade with nobody else."""

    def __init__(self) -> None:
        self._partners: dict[bytes, bytes | None] = {}  # the only one; None: there are several
        self._volume: Counter[tuple[bytes, bytes]] = Counter()

    def add(self, channel: Channel) -> None:
        """One channel more."""
        for one, other in ((channel.payer, channel.payee), (channel.payee, channel.payer)):
            if self._partners.setdefault(one, other) != other:
                self._partners[one] = None
        first, second = sorted((bytes(channel.payer), bytes(channel.payee)))
        if self._partners[first] == second and self._partners[second] == first:
            self._volume[first, second] += channel.paid

    def shown(self) -> list[Json]:
        """The pairs that paid most."""
        alone = (
            (volume, pair)
            for pair, volume in self._volume.items()
            if volume and self._partners[pair[0]] == pair[1] and self._partners[pair[1]] == pair[0]
        )
        return [
            {"accounts": [peer_id(NodeId(account)) for account in pair], "paid": volume}
            for volume, pair in nlargest(TOP, alone)
        ]
