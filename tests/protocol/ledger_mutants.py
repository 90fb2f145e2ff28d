"""Breaks one guard of the ledger at a time, and runs the ledger's tests on what is left.

Rule: a broken ledger must turn the tests red. A mutant that survives is a rule without a test, or a check without a
purpose. `python -m tests.protocol.ledger_mutants NAME` runs the tests with that guard broken and exits 0 if they pass;
any other name breaks nothing.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

TESTS = ("test_ledger.py", "test_ledger_machine.py")


@dataclass(frozen=True)
class Mutant:
    """In `module`, `old` (which stands there once) becomes `new`."""

    module: str
    old: str
    new: str


CONTROL = Mutant("votes", "known.order != checked.hash", "known.order != checked.hash")  # nothing is broken
MUTANTS = {
    "hold-without-funds": Mutant("accounts", "isinstance(order, Hold) and balance < 0", "False"),
    "hold-may-overdraw-by-one": Mutant("accounts", "and balance < 0", "and balance < -1"),
    "grant-without-cap": Mutant("accounts", "balance < federation.floor(order.issuer)", "False"),
    "cap-for-each-issuer": Mutant("genesis", " // len(self.genesis.issuers))", ")"),
    "quorum-of-f-plus-one": Mutant("genesis", "2 * self.genesis.faults + 1", "self.genesis.faults + 1"),
    "any-number-of-witnesses": Mutant("genesis", "len(genesis.witnesses) != 3 * genesis.faults + 1", "False"),
    "witness-may-issue": Mutant("genesis", "len(set(keys)) != len(keys)", "False"),
    "genesis-keys-unchecked": Mutant("genesis", "        check_public_key(key)", "        pass"),
    "anybody-grants": Mutant("orders", "not federation.is_issuer(grant.issuer)", "False"),
    "owner-signature-unchecked": Mutant("orders", "        view.verify(owner, federation.id, body, signature)\n", ""),
    "voucher-signature-unchecked": Mutant(
        "orders", "    view.verify(channel.payer, federation.id, close.voucher, close.voucher_signature)\n", ""
    ),
    "payer-closes": Mutant(
        "orders", "return channel.payee, close.channel, 0", "return channel.payer, close.channel, 0"
    ),
    "refund-before-expiry": Mutant("orders", "refund.time_ms < channel.expiry_ms", "False"),
    "refund-dated-ahead": Mutant("orders", "order.time_ms > now_ms", "False"),
    "anybody-refunds": Mutant("orders", "refund.witness not in federation.genesis.witnesses", "False"),
    "refund-has-its-own-vote": Mutant(
        "orders", "return refund.witness, refund.channel, 0", "return refund.witness, refund.channel, 1"
    ),
    "stale-epoch": Mutant("orders", "order.epoch != epoch", "False"),
    "expired-hold": Mutant("orders", "hold.expiry_ms <= now_ms", "False"),
    "hold-for-ever": Mutant(
        "orders", "hold.expiry_ms > now_ms + params.MAX_HOLD_LIFETIME + params.CLOCK_SKEW", "False"
    ),
    "pays-itself": Mutant("orders", "payer == payee", "False"),
    "pays-nothing": Mutant("orders", "amount == 0", "False"),
    "payee-key-unchecked": Mutant("orders", "    check_public_key(payee)\n", ""),
    "voucher-for-another-channel": Mutant("channels", "voucher.channel != channel_id", "False"),
    "voucher-of-any-amount": Mutant("channels", "voucher.cumulative != owed", "False"),
    "voucher-beyond-the-hold": Mutant("channels", "voucher.cumulative > channel.amount", "False"),
    "prompt-count-goes-back": Mutant("channels", "later.units_in < earlier.units_in or ", ""),
    "output-count-goes-back": Mutant("channels", " or later.units_out < earlier.units_out", ""),
    "voucher-signature-unchecked-by-payee": Mutant(
        "channels", "    verify(channel.payer, federation, pay.voucher, pay.signature)\n", ""
    ),
    "overflow": Mutant("accounts", "not -MAX_INTEGER <= balance <= MAX_INTEGER", "False"),
    "vote-twice": Mutant("votes", "known.order != checked.hash", "False"),
    "sequence-behind": Mutant("votes", "order.sequence < account.next_sequence", "False"),
    "sequence-ahead": Mutant("votes", "order.sequence > account.next_sequence", "False"),
    "vote-without-link": Mutant("votes", "order.previous != account.head", "False"),
    "vote-for-a-settled-channel": Mutant("votes", "not required_channel(view, order.channel).open", "False"),
    "votes-unchecked": Mutant(
        "certificates", "        check_vote(federation, view, checked, vote)\n", "        pass\n"
    ),
    "one-witness-twice": Mutant("certificates", "later <= earlier", "False"),
    "sub-quorum": Mutant("certificates", "len(listed) < federation.quorum", "False"),
    "apply-twice": Mutant("certificates", "if known is not None:", "if False:"),
    "apply-ahead": Mutant("certificates", "order.sequence > account.next_sequence", "False"),
    "settle-twice": Mutant("certificates", "not channel.open", "False"),
    "close-keeps-the-rest": Mutant("certificates", "channel.amount - paid)", "0)"),
    "refund-in-part": Mutant(
        "certificates",
        "credited(view.account(channel.payer), channel.amount)",
        "credited(view.account(channel.payer), 0)",
    ),
    "audit-ignores-differences": Mutant(
        "audit", "expected.pop(key, None) != value", "expected.pop(key, None) is False"
    ),
    "audit-ignores-the-rest": Mutant("audit", "found != length", "False"),
}


class _Loader(importlib.machinery.SourceFileLoader):
    """Loads one module with its guard broken, past every cache."""

    mutant: Mutant

    def get_data(self, path: str) -> bytes:
        source = Path(path).read_text()
        assert source.count(self.mutant.old) == 1, f"{self.mutant.old!r} stands {source.count(self.mutant.old)} times"
        return source.replace(self.mutant.old, self.mutant.new).encode()

    def path_stats(self, path: str) -> dict[str, float]:
        raise OSError("no cached bytecode of a mutant")


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant
        self._name = f"protocol.ledger.{mutant.module}"

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._name or not path:
            return None
        loader = _Loader(fullname, str(Path(next(iter(path))) / f"{self._mutant.module}.py"))
        loader.mutant = self._mutant
        return importlib.util.spec_from_loader(fullname, loader)


def run(name: str) -> int:
    """pytest's exit status with that guard broken: 0 is a survivor, 1 a kill, anything else an accident."""
    sys.meta_path.insert(0, _Finder(MUTANTS.get(name, CONTROL)))
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # these tests need no plugin, and each takes time to load
    import pytest

    folder = Path(__file__).parent
    options = ["-c", os.devnull, "--rootdir", str(folder.parents[1]), "--import-mode=importlib"]
    options += ["-x", "-q", "--no-header", "--tb=line", "-p", "no:cacheprovider"]
    return int(pytest.main([*options, *(str(folder / test) for test in TESTS)]))


if __name__ == "__main__":
    sys.exit(run(sys.argv[1]))
