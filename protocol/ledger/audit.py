"""Is a stored ledger true?

Rule: replay the whole log from nothing and compare. What is stored must be what the certificates make, no more and no
less; balances and open holds add up to 0; with one witness no account was ever below its floor. Signatures are
checked only if asked, because they cost a thousand times more than the rest.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from protocol.errors import Refused
from protocol.ids import FederationId, NodeId
from protocol.ledger.certificates import apply
from protocol.ledger.genesis import Federation
from protocol.ledger.state import (
    LOG_LENGTH,
    Account,
    Channel,
    Draft,
    Iterable,
    Lock,
    View,
    log_key,
    order_key,
    u64,
)
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


@dataclass(slots=True)
class _Findings:
    certificates: int = 0
    accounts: int = 0
    channels: int = 0
    sum_micro: int = 0
    problems: list[str] = field(default_factory=list)

    def problem(self, text: str) -> None:
        """Note one, unless there are enough already."""
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(text)

    def report(self) -> Report:
        """The end of it."""
        return Report(
            not self.problems,
            self.certificates,
            self.accounts,
            self.channels,
            self.sum_micro,
            tuple(self.problems),
        )


def verify_log(federation: Federation, stored: Iterable, *, signatures: bool) -> Report:
    """Replay the log of `stored` and compare. Never raises for a bad ledger; the report says what is wrong."""
    report = _Findings()
    try:
        _verify(federation, stored, signatures, report)
    except (struct.error, ValueError) as error:
        report.problem(f"a stored value is damaged: {error}")
    return report.report()


def _verify(federation: Federation, stored: Iterable, signatures: bool, report: _Findings) -> None:
    replayed = Draft(_Nothing())
    view = View(replayed, verify if signatures else _trusting)
    length = View(stored).log_length
    for position in range(length):
        if not _replay(federation, stored, view, replayed, position, report):
            break
        report.certificates += 1
    else:
        _compare(stored, replayed, report)
        _check_rest(stored, length, report)
    report.sum_micro = _sum(stored, report)
    if report.sum_micro:
        report.problem(f"balances and open holds add up to {report.sum_micro} µcredits, not to 0")


class _Nothing:
    def get(self, key: bytes, /) -> bytes | None:
        return None


def _trusting(key: NodeId, federation: FederationId, body: bytes, signature: bytes) -> None:
    """In place of a signature check."""


def _replay(
    federation: Federation, stored: Iterable, view: View, replayed: Draft, position: int, report: _Findings
) -> bool:
    """Apply one certificate of the log. False if the log is broken there."""
    order = stored.get(log_key(position))
    data = View(stored).logged(position)
    if order is None or data is None:
        report.problem(f"certificate {position} of the log is missing")
        return False
    try:
        transition = apply(federation, view, data)
    except Refused as refusal:
        report.problem(f"certificate {position} of the log: {refusal}")
        return False
    if transition.checked.hash != order or transition.repeated:
        report.problem(f"certificate {position} of the log is not the order that the log names")
        return False
    if View(stored).position(order) != position:
        report.problem(f"certificate {position} of the log says that it stands elsewhere")
    if transition.insolvent and federation.single:
        report.problem(f"certificate {position} takes an account below its floor")
    _check_index(stored, transition.checked.object, transition.checked.version, order, report)
    kept = {key: value for key, value in transition.puts.items() if key[:1] in _COMPARED or key == LOG_LENGTH}
    replayed.update(kept)
    return True


_COMPARED = (b"a", b"c")


def _check_index(stored: Iterable, object_id: bytes, version: int, order: bytes, report: _Findings) -> None:
    lock = stored.get(b"l" + object_id + u64(version))
    if lock is not None and Lock.decode(lock).order != order:
        report.problem(f"the vote lock of {object_id.hex()[:16]}… {version} is for another order")
    numbered = stored.get(order_key(object_id, version))
    if numbered not in (order, None) or (numbered is None and stored.get(b"c" + object_id) is None):
        report.problem(f"order {version} of account {object_id.hex()[:16]}… is not the one in the log")


def _compare(stored: Iterable, replayed: Draft, report: _Findings) -> None:
    expected = {key: value for key, value in replayed.puts.items() if key[:1] in _COMPARED}
    for key, value in _walk(stored):
        if expected.pop(key, None) != value:
            report.problem(f"{_NAMES[key[:1]]} {key[1:].hex()[:16]}… differs from what the log makes of it")
    for key in expected:
        report.problem(f"{_NAMES[key[:1]]} {key[1:].hex()[:16]}… is missing")


_NAMES = {b"a": "account", b"c": "channel"}


def _check_rest(stored: Iterable, length: int, report: _Findings) -> None:
    """No certificate and no place in the log beyond its length."""
    for prefix, what in ((b"r", "certificates"), (b"n", "places in the log")):
        found = sum(1 for _ in stored.iterate(prefix))
        if found != length:
            report.problem(f"{found} {what} for a log of {length}")


def _sum(stored: Iterable, report: _Findings) -> int:
    total = 0
    for key, value in _walk(stored):
        report.accounts += key[:1] == b"a"
        report.channels += key[:1] == b"c"
        total += Account.decode(value).balance if key[:1] == b"a" else _locked(Channel.decode(value))
    return total


def _locked(channel: Channel) -> int:
    return channel.amount if channel.open else 0


def _walk(stored: Iterable) -> Iterator[tuple[bytes, bytes]]:
    for prefix in _COMPARED:
        yield from stored.iterate(prefix)
