"""Is a stored ledger true?

Rule: make the state anew and compare. What is stored must be what the certificates make, no more and no less: epochs
that have ended by their checkpoints, the one in force order by order; balances and open holds add up to 0, and nobody
is below the floor. Signatures are checked only if asked, because they cost a thousand times more than the rest. A check
from the last checkpoint on is as strict about the state, and believes the copy that the checkpoint's root names.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from protocol.codec import body_hash
from protocol.errors import ProtocolError, Refused
from protocol.ids import NodeId
from protocol.ledger.certificates import apply, trusting
from protocol.ledger.checkpoints import (
    epoch_range,
    merged,
    orders_between,
    refund_expired,
    state_root,
)
from protocol.ledger.epochs import open_decision
from protocol.ledger.genesis import Federation
from protocol.ledger.orders import CheckedOrder
from protocol.ledger.state import (
    EPOCH,
    LOG_LENGTH,
    Account,
    Base,
    Channel,
    Draft,
    Iterable,
    Nothing,
    Verify,
    View,
    certificate_key,
    log_key,
    number,
    order_key,
    split_number,
    u64,
)
from protocol.messages import Checkpoint
from protocol.signing import verify

MAX_PROBLEMS = 20  # enough to see what happened


@dataclass(frozen=True, slots=True)
class Report:
    """What was found. `sum_micro` (balances and open holds) is 0 in a true ledger."""

    verified: bool
    certificates: int
    accounts: int
    channels: int
    sum_micro: int
    problems: tuple[str, ...]
    epoch: int = 0  # in force
    since_epoch: int = 0  # the first that was made anew


@dataclass(slots=True)
class _Findings:
    certificates: int = 0
    accounts: int = 0
    channels: int = 0
    sum_micro: int = 0
    since_epoch: int = 0
    problems: list[str] = field(default_factory=list)

    def problem(self, text: str) -> None:
        """Note one, unless there are enough already."""
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(text)

    def report(self, epoch: int) -> Report:
        """The end of it."""
        return Report(
            not self.problems,
            self.certificates,
            self.accounts,
            self.channels,
            self.sum_micro,
            tuple(self.problems),
            epoch,
            self.since_epoch,
        )


def verify_log(
    federation: Federation,
    stored: Iterable,
    *,
    signatures: bool,
    from_checkpoint: bool = False,
    check: Verify = verify,
) -> Report:
    """Make the state of `stored` anew and compare. Never raises for a bad ledger; the report says what is wrong.

    `from_checkpoint`: only the epoch in force. `check` is what verifies a signature, if `signatures`.
    """
    report, epoch = _Findings(), 0
    try:
        epoch = View(stored).epoch
        report.since_epoch = epoch if from_checkpoint else View(stored).first_epoch
        _verify(federation, stored, check if signatures else trusting, report)
    except (struct.error, ValueError, ProtocolError) as error:
        report.problem(f"a stored value is damaged: {error}")
    return report.report(epoch)


def _verify(federation: Federation, stored: Iterable, check: Verify, report: _Findings) -> None:
    view = View(stored)
    state = _begin(federation, stored, check, report)
    for epoch in range(report.since_epoch, view.epoch):
        if state is not None:
            state = _closed_epoch(federation, stored, state, epoch, check, report)
    if state is not None and _open_epoch(federation, stored, state, check, report):
        _compare(stored, state, report)
        _check_rest(stored, view, report)
    report.sum_micro = _sum(federation, stored, report)
    if report.sum_micro:
        report.problem(f"balances and open holds add up to {report.sum_micro} µcredits, not to 0")


def _begin(federation: Federation, stored: Iterable, check: Verify, report: _Findings) -> Draft | None:
    """The state from which the check starts, as its checkpoint's root names it."""
    if report.since_epoch == 0:
        return Draft(Nothing())
    checkpoint = _checkpoint(federation, stored, report.since_epoch, check, report)
    state = Draft(Base(stored, report.since_epoch))
    if checkpoint is None or state_root(state) != checkpoint.state:
        report.problem(f"the state at the beginning of epoch {report.since_epoch} is not the one in its checkpoint")
        return None
    return state


def _checkpoint(
    federation: Federation, stored: Iterable, epoch: int, check: Verify, report: _Findings
) -> Checkpoint | None:
    identity = View(stored).checkpoint(epoch)
    record = View(stored).record(identity) if identity is not None else None
    if identity is None or record is None:
        report.problem(f"the checkpoint that opened epoch {epoch} is missing")
        return None
    decision, checkpoint = open_decision(federation, View(stored, check), record)
    if body_hash(decision.body) != identity or checkpoint.epoch != epoch:
        report.problem(f"the checkpoint that opened epoch {epoch} is another one")
        return None
    return checkpoint


def _closed_epoch(
    federation: Federation, stored: Iterable, state: Draft, epoch: int, check: Verify, report: _Findings
) -> Draft | None:
    """The state after an epoch that has ended; None if it cannot be made."""
    checkpoint = _checkpoint(federation, stored, epoch + 1, check, report)
    places = epoch_range(View(stored), epoch)
    if checkpoint is None or places is None:
        report.problem(f"epoch {epoch} is not complete")
        return None
    union = orders_between(stored, *places)
    report.certificates += len(union.certificates)
    try:
        draft = merged(federation, state, union, epoch, check)
    except Refused as refusal:
        report.problem(f"epoch {epoch}: {refusal}")
        return None
    refund_expired(draft, checkpoint.time_ms)
    made = (len(union.certificates), union.root, state_root(draft))
    if made != (checkpoint.count, checkpoint.orders, checkpoint.state):
        report.problem(f"epoch {epoch} does not end in the state of its checkpoint")
        return None
    state.update(draft.puts)  # one draft, however many epochs there were
    return state


def _open_epoch(federation: Federation, stored: Iterable, state: Draft, check: Verify, report: _Findings) -> bool:
    """Apply the epoch in force, order by order. False if the log is broken."""
    view = View(stored)
    replayed = View(state, check)
    state.update({LOG_LENGTH: None, EPOCH: u64(view.epoch)})
    for position in range(view.epoch_start, view.log_length):
        if not _replay(federation, stored, replayed, state, position, report):
            return False
        report.certificates += 1
    return True


def _replay(
    federation: Federation, stored: Iterable, view: View, state: Draft, position: int, report: _Findings
) -> bool:
    """Apply one certificate of the log. False if the log is broken there."""
    order = stored.get(log_key(position))
    value = stored.get(certificate_key(order)) if order is not None else None
    if order is None or value is None:
        report.problem(f"certificate {position} of the log is missing")
        return False
    place, record = split_number(value)
    try:
        transition = apply(federation, view, record)
    except Refused as refusal:
        report.problem(f"certificate {position} of the log: {refusal}")
        return False
    if transition.id != order or transition.checked is None:
        report.problem(f"certificate {position} of the log is not the order that the log names")
        return False
    if place != position:
        report.problem(f"certificate {position} of the log says that it stands elsewhere")
    _check_index(federation, stored, transition.checked, report)
    state.update({key: value for key, value in transition.puts.items() if key[:1] in _MADE})
    return True


_MADE = (b"a", b"c", b"o")  # and compared


def _check_index(federation: Federation, stored: Iterable, checked: CheckedOrder, report: _Findings) -> None:
    """An only witness voted for what is in its log. One of several may have voted for what an equivocator lost."""
    object_id, version = checked.object, checked.version
    lock = View(stored).lock(object_id, version) if federation.single else None
    if lock is not None and lock.epoch == View(stored).epoch and lock.order != checked.hash:
        report.problem(f"the vote lock of {object_id.hex()[:16]}… {version} is for another order")
    numbered = stored.get(order_key(object_id, version))
    if numbered not in (checked.hash, None) or (numbered is None and stored.get(b"c" + object_id) is None):
        report.problem(f"order {version} of account {object_id.hex()[:16]}… is not the one in the log")


def _compare(stored: Iterable, state: Draft, report: _Findings) -> None:
    """Accounts and channels are what was made. Channels settled before the start of the check were not."""
    for kind in _MADE:
        expected = dict(state.iterate(kind))
        for key, value in stored.iterate(kind):
            settled_before = kind == b"c" and report.since_epoch > 0 and key not in expected
            if settled_before and not Channel.decode(value).open:
                continue
            if expected.pop(key, None) != value:
                report.problem(f"{_NAMES[kind]} {key[1:].hex()[:16]}… differs from what the log makes of it")
        for key in expected:
            report.problem(f"{_NAMES[kind]} {key[1:].hex()[:16]}… is missing")


_NAMES = {b"a": "account", b"c": "channel", b"o": "open channel"}


def _check_rest(stored: Iterable, view: View, report: _Findings) -> None:
    """No place in the log beyond its length, and no record that the log does not name."""
    first = view.log_first
    log = {number(key[1:]): identity for key, identity in stored.iterate(b"n", log_key(first))}
    if len(log) != view.log_length - first:
        report.problem(f"{len(log)} places in the log for a log of {view.log_length - first}")
    records = named = 0
    for key, value in stored.iterate(b"r"):
        position = split_number(value)[0]
        records += position >= first
        named += log.get(position) == key[1:]
    if records != named:
        report.problem(f"{records} certificates for a log of {named}")


def _sum(federation: Federation, stored: Iterable, report: _Findings) -> int:
    total = 0
    for key, value in stored.iterate(b"a"):
        report.accounts += 1
        balance = Account.decode(value).balance
        total += balance
        if balance < federation.floor(NodeId(key[1:])):
            report.problem(f"account {key[1:].hex()[:16]}… is below its floor")
    for _, value in stored.iterate(b"c"):
        report.channels += 1
        channel = Channel.decode(value)
        total += channel.amount if channel.open else 0
    return total
