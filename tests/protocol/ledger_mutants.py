"""Breaks one guard of the ledger at a time, and runs the ledger's tests on what is left.

Rule: a broken ledger must turn the tests red. A mutant that survives is a rule without a test, or a check without a
purpose. `python -m tests.protocol.ledger_mutants NAME` runs the tests with that guard broken and exits 0 if they pass;
any other name breaks nothing.

There are two ways to break a guard. Thorough: a process that imports the broken module, and then all tests. Quick:
a fork of a process that has collected the tests already, in which functions get their broken code; it runs one test.
What the quick way does not find, the thorough way looks for.
"""

from __future__ import annotations

import gc
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FunctionType, ModuleType

import pytest

ROOT = Path(__file__).parents[2]
LEDGER = ROOT / "protocol" / "ledger"
LEDGER_TESTS = "protocol/test_ledger.py"
EPOCHS = "protocol/test_ledger_epochs.py"
VECTORS = "spec/test_vectors.py"
AUDIT = "protocol/test_ledger_audit.py"
PROOFS = "protocol/test_ledger_proofs.py"
PRUNING = "protocol/test_ledger_pruning.py"
TESTS = (  # the quick ones first: the first that fails is enough
    LEDGER_TESTS,
    EPOCHS,
    VECTORS,
    AUDIT,
    PROOFS,
    PRUNING,
    "protocol/test_ledger_guards.py",
    "protocol/test_ledger_damage.py",
    "protocol/test_federation_machine.py",
    "protocol/test_ledger_machine.py",
)
FIRST = {  # where most mutants of a module are found
    "audit": AUDIT,
    "checkpoints": VECTORS,
    "epochs": EPOCHS,
    "evidence": VECTORS,
    "families": VECTORS,
    "merkle": VECTORS,
    "proofs": PROOFS,
    "pruning": PRUNING,
    "quorums": VECTORS,
    "state": VECTORS,
}
CHOSEN = "test_ledger or test_federation or ledger_ or merkle"  # of the vectors, the ledger's
FAILED = int(pytest.ExitCode.TESTS_FAILED)
PRELOADED = (
    "pytest",
    "hypothesis.stateful",
    "nacl.bindings",
    "msgpack",
    "cryptography",
    "yaml",
    "protocol.framing",
    "protocol.pricing",
    "protocol.signing",
)  # the same in all runs: no module of the ledger


@dataclass(frozen=True)
class Mutant:
    """In `module`, `old` (which stands there once) becomes `new`."""

    module: str
    old: str
    new: str

    @property
    def path(self) -> Path:
        """The module's file."""
        return LEDGER / f"{self.module}.py"

    def broken(self, source: str) -> str:
        """The module with that guard broken."""
        assert source.count(self.old) == 1, f"{self.old!r} stands {source.count(self.old)} times in {self.module}"
        return source.replace(self.old, self.new)


Broken = tuple[FunctionType, CodeType]

CONTROL = Mutant("votes", "known.order != checked.hash", "known.order != checked.hash")  # nothing is broken

_ACCOUNTS = {
    "spend-what-is-not-there": ("account.balance - debit(order) >= federation.floor(owner_of(order))", "True"),
    "overdraw-by-one": ("account.balance - debit(order) >=", "account.balance - debit(order) + 1 >="),
    "move-is-free": ("isinstance(order, Grant | Hold | Move)", "isinstance(order, Grant | Hold)"),
    "overflow": ("not -MAX_INTEGER <= balance <= MAX_INTEGER", "False"),
}
_GENESIS = {
    "cap-for-each-issuer": (" // len(self.genesis.issuers))", ")"),
    "quorum-of-f-plus-one": ("2 * self.genesis.faults + 1", "self.genesis.faults + 1"),
    "any-number-of-witnesses": ("len(genesis.witnesses) != 3 * genesis.faults + 1", "False"),
    "witness-may-issue": ("len(set(keys)) != len(keys)", "False"),
    "genesis-keys-unchecked": ("        check_public_key(key)", "        pass"),
}
_ORDERS = {
    "anybody-grants": ("not federation.is_issuer(grant.issuer)", "False"),
    "owner-signature-unchecked": ("        verify_any(view, keys, federation.id, body, signature)\n", "        pass\n"),
    "unknown-key-is-for-good": ("if version > view.account(object_id).next_sequence:", "if False:"),
    "voucher-signature-unchecked": (
        "    verify_any(view, keys_of(view, channel.payer), federation.id, close.voucher, close.voucher_signature)\n",
        "",
    ),
    "payer-closes": ("return keys_of(view, channel.payee), close", "return keys_of(view, channel.payer), close"),
    "only-the-first-key-closes": ("return keys_of(view, channel.payee), close", "return (channel.payee,), close"),
    "refund-before-expiry": ("refund.time_ms < channel.expiry_ms", "False"),
    "refund-dated-ahead": ("order.time_ms > now_ms", "False"),
    "anybody-refunds": (" or refund.witness not in federation.genesis.witnesses", ""),
    "one-of-four-refunds": ("not federation.single or ", ""),
    "refund-has-its-own-vote": (
        "return (refund.witness,), refund.channel, 0",
        "return (refund.witness,), refund.channel, 1",
    ),
    "any-epoch": ("order.epoch != epoch", "False"),
    "hold-for-ever": ("hold.expiry_ms > now_ms + params.MAX_HOLD_LIFETIME + params.CLOCK_SKEW", "False"),
    "pays-itself": ("payer == payee", "False"),
    "pays-nothing": ("amount == 0", "False"),
    "payee-key-unchecked": ("    check_public_key(payee)\n", ""),
    "issuers-do-anything": ("any(federation.is_issuer(account) for account in accounts)", "False"),
    "attach-late": ("attach.sequence != 0", "False"),
    "own-owner": ("attach.account == attach.owner", "False"),
    "attach-without-consent": (
        "    verify_any(view, keys_of(view, attach.owner), federation.id, consent, attach.consent)\n",
        "",
    ),
    "move-to-anybody": ("not related(view, move.account, move.to)", "False"),
    "recovery-key-unchecked": ("    check_public_key(recovery.key)\n", ""),
    "recovery-changed-by-the-key-in-force": (
        "return ((known,) if known is not None else keys), object_id, version",
        "return keys, object_id, version",
    ),
    "rotation-without-consent": ("    view.verify(rotate.key, federation.id, consent, rotate.consent)\n", ""),
    "recovery-key-does-not-rotate": (
        "return (*keys, *((known,) if known is not None else ())), object_id, version",
        "return keys, object_id, version",
    ),
    "id-signs-for-ever": (
        "return (view.account(owner).key_at(owner, order.sequence),), owner, order.sequence",
        "return (owner,), owner, order.sequence",
    ),
    "any-key-signs": (
        "return (view.account(owner).key_at(owner, order.sequence),), owner, order.sequence",
        "return keys_of(view, owner), owner, order.sequence",
    ),
}
_FAMILIES = {
    "keys-without-rotations": (
        "return (NodeId(account), *(key for _, key in view.account(account).rotations))",
        "return (NodeId(account),)",
    ),
    "owner-is-no-family": ("(keys_of(view, owner) if owner != NO_HASH else ())", "()"),
    "old-keys-may-use": ("return standing.key_at(account, standing.next_sequence)", "return NodeId(account)"),
    "owner-may-not-use": (
        "named = (account,) if standing.owner == NO_HASH else (account, standing.owner)",
        "named = (account,)",
    ),
    "no-key-is-enough": ("    raise failure\n", ""),
}
_CHANNELS = {
    "voucher-for-another-channel": ("voucher.channel != channel_id", "False"),
    "voucher-of-any-amount": ("voucher.cumulative != owed", "False"),
    "voucher-beyond-the-hold": ("voucher.cumulative > channel.amount", "False"),
    "prompt-count-goes-back": ("later.units_in < earlier.units_in or ", ""),
    "output-count-goes-back": (" or later.units_out < earlier.units_out", ""),
    "voucher-signature-unchecked-by-payee": (
        "    verify_any(view, keys_of(view, channel.payer), federation, pay.voucher, pay.signature)\n",
        "",
    ),
}
_STATE = {
    "abstains-for-one-epoch-only": ("number(value) >= self.epoch", "number(value) == self.epoch"),
    "never-abstains": ("value is not None and number(value) >= self.epoch", "False"),
    "forgot-no-settlement": ("return until > 0 and (position is None or position < until)", "return False"),
    "silent-for-new-channels-too": ("return until > 0 and (position is None or position < until)", "return until > 0"),
    "frozen-for-ever": (" and split_number(value)[0] == self.epoch", ""),
    "never-frozen": ("return value is not None and split_number(value)[0] == self.epoch", "return False"),
    "rotation-counts-at-once": ("if since <= sequence]", "]"),
    "first-rotation-counts": ("found[-1] if found", "found[0] if found"),
}
_VOTES = {
    "vote-twice": ("known.order != checked.hash", "False"),
    "abstaining-votes": ("    if view.abstaining:", "    if False:"),
    "frozen-votes": ("if moment.frozen:", "if False:"),
    "old-locks-bind": ("lock.epoch < view.epoch", "False"),
    "locks-on-channels-end": (" and isinstance(order, AccountOrder) and lock.epoch", " and lock.epoch"),
    "locks-bind-nobody": ("return None if outlived else lock", "return None"),
    "vote-for-what-is-not-due": ("    check_now(checked.order, view.epoch, now_ms)\n", ""),
    "sequence-behind": ("order.sequence < account.next_sequence", "False"),
    "sequence-ahead": ("order.sequence > account.next_sequence", "False"),
    "vote-without-link": ("order.previous != account.head", "False"),
    "vote-for-the-insolvent": ("    check_solvent(federation, account, order)\n", ""),
    "vote-for-a-settled-channel": ("not required_channel(view, channel).open", "False"),
    "settlement-votes-forgotten": ("if view.may_have_settled(channel):", "if False:"),
    "equivocators-get-votes": ("if view.frozen(owner)", "if False"),
    "vote-for-any-move": ("        check_related(view, order)\n", "        pass\n"),
    "owner-without-credits": ("owner.balance <= 0 or ", ""),
    "any-number-of-sub-accounts": (" or owner.sub_accounts >= MAX_SUB_ACCOUNTS", ""),
    "keys-of-unknown-accounts": ("not account.known or ", ""),
    "any-number-of-keys": (" or had >= most", ""),
    "recovery-cannot-rotate-any-more": ("MAX_ROTATIONS if recovers or isinstance", "MAX_ROTATIONS if isinstance"),
    "the-frozen-cannot-recover": ("view.frozen(owner) and not recovers", "view.frozen(owner)"),
}
_CERTIFICATES = {
    "votes-unchecked": ('    check_quorum(federation, view, vote_body(checked), votes, "votes")\n', "    pass\n"),
    "votes-of-certificates-unchecked": (
        "    check_votes(federation, view, checked, certificate.votes)\n    return checked",
        "    return checked",
    ),
    "no-votes-behind-an-unknown-key": ("        check_votes(federation, view, unsigned, certificate.votes)\n", ""),
    "unknown-key-is-a-forgery": (
        "raise MissingPredecessor(refusal.code, refusal.message) from None\n    check_votes",
        "raise\n    check_votes",
    ),
    "apply-twice": ("if known is not None:", "if False:"),
    "apply-without-credits": ("    _check_solvent(federation, view, checked)\n", ""),
    "insolvent-for-good": (
        "            raise MissingPredecessor(refusal.code, refusal.message) from None\n\n\n_Effect",
        "            raise\n\n\n_Effect",
    ),
    "orders-of-any-epoch": ("    _check_epoch(view, checked)\n", ""),
    "orders-of-later-epochs-for-good": (
        "MissingPredecessor if checked.order.epoch > view.epoch else Refused",
        "Refused",
    ),
    "apply-ahead": ("order.sequence > account.next_sequence", "False"),
    "apply-behind": ("order.sequence < account.next_sequence", "False"),
    "apply-without-link": ("order.previous != account.head", "False"),
    "settle-twice": ("not channel.open", "False"),
    "close-keeps-the-rest": ("credited(payer, channel.amount - paid,", "credited(payer, 0,"),
    "close-pays-all": ("credited(payee, paid,", "credited(payee, channel.amount,"),
    "refund-in-part": (
        "credited(view.account(channel.payer), channel.amount)",
        "credited(view.account(channel.payer), 0)",
    ),
    "move-between-strangers": ("    check_related(view, move)\n", ""),
    "sub-accounts-uncounted": ("sub_accounts=owner.sub_accounts + 1", "sub_accounts=owner.sub_accounts"),
    "attached-to-nobody": ("owner=attach.owner)", "owner=attach.account)"),
    "recovery-forgets": (
        "(*account.recoveries, (account.next_sequence, recovery.key))",
        "((account.next_sequence, recovery.key),)",
    ),
    "rotation-forgets": (
        "(*account.rotations, (account.next_sequence, rotate.key))",
        "((account.next_sequence, rotate.key),)",
    ),
    "nothing-is-taken": ("credited(account, -debit(order),", "credited(account, 0,"),
    "settled-stays-open": ("open_key(channel_id): None}", "open_key(channel_id): b''}"),
}
_CHECKPOINTS = {
    "decisions-are-orders": (" and not is_decision(entry[1])", ""),
    "snapshot-of-an-empty-set": (
        "Snapshot(view.epoch, previous_checkpoint(federation, view), len(union.certificates), union.root)",
        "Snapshot(view.epoch, previous_checkpoint(federation, view), 0, merkle.root([]))",
    ),
    "ids-unsorted": ("return sorted(self.certificates)", "return list(self.certificates)"),
    "union-overdraws": ("    _check_floors(federation, draft)\n    late", "    late"),
    "union-has-gaps": (
        'raise Refused(ErrorCode.BAD_SEQUENCE, f"{len(left)} orders of the union lack what they build on")',
        "return",
    ),
    "union-of-another-epoch": ("checked.order.epoch != epoch:", "False:"),
    "union-waits-for-nothing": ("waiting.append(identity)", "raise"),
    "votes-of-a-union-unchecked": (
        (
            "        checked = check_order(federation, view, certificate.body, certificate.signature)\n"
            "        check_votes(federation, view, checked, certificate.votes)\n\n\n"
            "def state_from"
        ),
        "        check_order(federation, view, certificate.body, certificate.signature)\n\n\ndef state_from",
    ),
    "owners-of-a-union-unchecked": (
        (
            "        checked = check_order(federation, view, certificate.body, certificate.signature)\n"
            "        check_votes(federation, view, checked, certificate.votes)\n\n\n"
            "def state_from"
        ),
        (
            "        trust = View(view.reader, trusting)\n"
            "        checked = check_order(federation, trust, certificate.body, certificate.signature)\n"
            "        check_votes(federation, view, checked, certificate.votes)\n\n\n"
            "def state_from"
        ),
    ),
    "nothing-is-late": ("    check_signatures(federation, View(draft, check), Union(late))\n", ""),
    "votes-unchecked-on-the-way": (
        "            check_votes(federation, view, checked, certificate.votes)\n        return checked, True",
        "            pass\n        return checked, True",
    ),
    "begin-from-any-state": ("merkle.root(found) != checkpoint.state", "False"),
    "begin-over-old-orders": (
        "    draft.update({key: None for kind in _LEDGER_KINDS for key, _ in stored.iterate(kind)})\n",
        "",
    ),
    "begin-not-silent": ("    _stay_silent(draft, View(stored))\n    _copy", "    _copy"),
    "refund-at-expiry": ("channel.expiry_ms + params.REFUND_DELAY <= time_ms", "channel.expiry_ms <= time_ms"),
    "refund-one-early": (
        "channel.expiry_ms + params.REFUND_DELAY <= time_ms",
        "channel.expiry_ms + params.REFUND_DELAY <= time_ms + 1",
    ),
    "refund-never": ("channel.expiry_ms + params.REFUND_DELAY <= time_ms", "False"),
    "channels-are-no-state": ("for leaf in (*accounts, *channels)", "for leaf in accounts"),
    "adopt-any-union": (
        "(result.count, result.orders, result.state) != (checkpoint.count, checkpoint.orders, checkpoint.state)",
        "False",
    ),
    "adopt-without-state": (
        "(result.count, result.orders, result.state) != (checkpoint.count, checkpoint.orders, checkpoint.state)",
        "(result.count, result.orders) != (checkpoint.count, checkpoint.orders)",
    ),
    "own-orders-are-the-union": ("union.certificates.keys() == own.certificates.keys()", "True"),
    "void-stays": ("    _withdraw(draft, void)\n", ""),
    "void-orders-keep-their-number": (
        "            draft.update({order_key(owner_of(order), order.sequence): None})\n",
        "            pass\n",
    ),
    "void-closes-are-lost": ("    _settle_again(federation, draft, void)\n", ""),
    "missing-orders-stay-away": ("    _append_missing(draft, missing)\n", ""),
    "epochs-left-out": ("checkpoint.epoch > view.epoch + 1", "False"),
    "epochs-again": ("checkpoint.epoch <= view.epoch or ", ""),
    "another-history": (" or checkpoint.previous != previous_checkpoint(federation, view)", ""),
    "adopt-not-silent": ("    _stay_silent(draft, view)\n", ""),
    "silent-without-reason": ("    if before.abstaining:\n        draft", "    if True:\n        draft"),
    "base-with-settled-channels": ("            if channel is None or channel.open:\n", "            if True:\n"),
    "bases-kept-for-ever": ("if old < keep_from and old != view.first_epoch:", "if False:"),
    "first-base-dropped": (" and old != view.first_epoch:", ":"),
    "epoch-begins-at-genesis": (
        "return read_number(view.reader, EPOCH_TIME) or federation.genesis.created_ms",
        "return federation.genesis.created_ms",
    ),
}
_EPOCHS = {
    "due-early": ("now_ms >= last_checkpoint_ms(federation, view) + federation.genesis.epoch_length_ms", "True"),
    "abstaining-is-willing": ("not view.abstaining and (frozen or agreed", "(frozen or agreed"),
    "another-coordinators-round": ("number % len(federation.genesis.witnesses) != coordinator", "False"),
    "role-of-another-epoch": ("known if known is not None and known.snapshot.epoch == view.epoch else None", "known"),
    "unwilling-joins": ("known is None and not willing", "False"),
    "abstaining-takes-part": ("    if view.abstaining:", "    if False:"),
    "ends-another-epoch": ("    if epoch != view.epoch:", "    if False:"),
    "promise-is-forgotten": ("joined = replace(held, promised=request.round)", "joined = held"),
    "goes-back-to-a-round": ("if asked < promised:", "if False:"),
    "jumps-over-all-rounds": ("if asked > promised + params.MAX_ROUND_JUMP:", "if False:"),
    "snapshot-made-anew": (
        "held = known or Role(snapshot(seat.federation, stored), request.round)",
        "held = Role(snapshot(seat.federation, stored), request.round)",
    ),
    "joined-hides-what-it-prepared": (
        "promise = Promise(request.epoch, request.round, joined.prepared, _hash(joined.checkpoint))\n    answer",
        (
            "joined = replace(joined, prepared=0, checkpoint=b'')\n"
            "    promise = Promise(request.epoch, request.round, 0, NO_HASH)\n"
            "    answer"
        ),
    ),
    "ballots-without-joining": (
        (
            "    if known is None:\n"
            '        raise Refused(ErrorCode.BAD_SEQUENCE, "this witness has not joined")\n'
            "    return known"
        ),
        "    return known or Role(Snapshot(view.epoch, NO_HASH, 0, NO_HASH), 0)",
    ),
    "ballots-twice-in-a-round": ("known.balloted == propose.round + 1 and known.ballot != identity", "False"),
    "ballot-is-forgotten": (
        "changed = replace(known, promised=propose.round, balloted=propose.round + 1, ballot=identity)",
        "changed = replace(known, promised=propose.round)",
    ),
    "prepares-the-unjustified": ("    check_justified(seat.federation, view, propose, epoch)\n", ""),
    "prepares-without-looking": (
        "        _check_new(seat.federation, view, checkpoint, now_ms, result)\n",
        "        pass\n",
    ),
    "everything-is-prepared": ("all(promised.prepared == 0 for promised in propose.promises)", "False"),
    "some-unprepared-is-enough": ("return all(promised.prepared == 0", "return any(promised.prepared == 0"),
    "prepare-promises-nothing": (
        "changed = replace(known, promised=propose.round, balloted",
        "changed = replace(known, balloted",
    ),
    "commits-without-prepares": (
        "    check_ballots(seat.federation, view, Ballot(PREPARE, epoch, request.round, identity), request.ballots)\n",
        "",
    ),
    "commits-below-its-promise": (
        (
            "    known = _frozen(view)\n"
            "    _check_round(known.promised, request.round)\n"
            "    identity = body_hash(request.checkpoint)"
        ),
        "    known = _frozen(view)\n    identity = body_hash(request.checkpoint)",
    ),
    "prepares-below-its-promise": ("    _check_round(known.promised, propose.round)\n", ""),
    "commit-is-forgotten": ("        prepared=request.round + 1,\n", ""),
    "commit-promises-nothing": ("        known,\n        promised=request.round,\n", "        known,\n"),
    "promises-of-too-few": (
        "    check_witnesses(federation, [promised.witness for promised in propose.promises])\n",
        "",
    ),
    "promises-unsigned": (
        "        _verify(federation, view, promised.witness, promise, promised.signature)\n",
        "        pass\n",
    ),
    "highest-prepared-binds-nobody": ("    if highest:\n", "    if False:\n"),
    "any-prepared-binds": ("highest = max(promised.prepared", "highest = min(promised.prepared"),
    "ballots-unchecked": ("    check_quorum(federation, view, encode(ballot), given)\n", "    pass\n"),
    "decision-for-the-first-epoch": ("checkpoint.epoch == 0", "False"),
    "decision-by-prepares": (
        "ballot = Ballot(COMMIT, checkpoint.epoch - 1",
        "ballot = Ballot(PREPARE, checkpoint.epoch - 1",
    ),
    "decision-without-commits": ("    check_ballots(federation, view, ballot, decision.commits)\n", ""),
    "sources-unsigned": (
        "        check_snapshot(federation, view, source, checkpoint.epoch - 1, checkpoint.previous)\n",
        "        pass\n",
    ),
    "sources-twice": ("    check_witnesses(federation, [source.witness for source in checkpoint.sources])\n", ""),
    "too-many-sources": ("len(checkpoint.sources) != federation.quorum", "False"),
    "follows-another-checkpoint": (
        "    if checkpoint.previous != previous_checkpoint(federation, view):\n",
        "    if False:\n",
    ),
    "checkpoint-at-any-time": ("not earliest <= checkpoint.time_ms <= now_ms + params.CLOCK_SKEW", "False"),
    "checkpoint-long-ago": (
        "earliest = max(last_checkpoint_ms(federation, view) + 1, now_ms - params.CHECKPOINT_LAG)",
        "earliest = last_checkpoint_ms(federation, view) + 1",
    ),
    "checkpoint-before-the-last": (
        "earliest = max(last_checkpoint_ms(federation, view) + 1, now_ms - params.CHECKPOINT_LAG)",
        "earliest = now_ms - params.CHECKPOINT_LAG",
    ),
    "checkpoint-of-anything": (
        "    if found != (checkpoint.count, checkpoint.orders, checkpoint.state):\n",
        "    if False:\n",
    ),
    "joined-with-any-snapshot": (
        "    _verify(federation, view, joined.witness, held, joined.snapshot_signature)\n",
        "",
    ),
    "joined-with-any-promise": (
        "    _verify(federation, view, joined.witness, promise, joined.promise_signature)\n",
        "",
    ),
    "joined-with-any-ballots": ("        check_ballots(federation, view, ballot, joined.ballots)\n", "        pass\n"),
    "coordinator-takes-the-lowest": (
        "highest = max(joined, key=lambda answer: answer.prepared)",
        "highest = min(joined, key=lambda answer: answer.prepared)",
    ),
    "coordinator-forgets-the-prepared": ("return highest if highest.prepared else None", "return None"),
    "balloted-unchecked": ("    _verify(federation, view, balloted.witness, ballot, balloted.signature)\n", ""),
}
_QUORUMS = {
    "one-witness-twice": ("any(later <= earlier for earlier, later in pairwise(indexes))", "False"),
    "sub-quorum": ("len(indexes) < federation.quorum", "False"),
    "signatures-of-too-few": (
        "    check_witnesses(federation, [signature.witness for signature in listed], what)\n",
        "",
    ),
    "signatures-unchecked": (
        "        check_signature(federation, view, signature.witness, body, signature.signature)\n",
        "        pass\n",
    ),
}
_EVIDENCE = {
    "conflict-of-strangers": (" or not same or ", " or "),
    "conflict-with-itself": (" or first.hash == second.hash", ""),
    "conflict-of-two-epochs": (" and len(epochs) < 2", ""),
    "refunds-prove": ("if refunds or not same", "if not same"),
    "settled-channels-prove": ("    if not channel.open:\n", "    if False:\n"),
    "votes-of-a-proof-unchecked": (
        "        check_vote(federation, view, checked, WitnessSignature(proof.witness, vote))\n",
        "        pass\n",
    ),
    "first-order-unsigned": (
        "first = check_order(federation, view, proof.first, proof.first_signature)",
        "first = _unsigned(federation, view, proof.first)",
    ),
    "second-order-unsigned": (
        "second = check_order(federation, view, proof.second, proof.second_signature)",
        "second = _unsigned(federation, view, proof.second)",
    ),
    "close-freezes-the-payer": (
        "Proof(record, channel.payee, 0, view.epoch)",
        "Proof(record, channel.payer, 0, view.epoch)",
    ),
    "old-proofs-count": ("self.epoch != view.epoch or ", ""),
    "proofs-again": (" or view.frozen(self.account)", ""),
    "proofs-with-numbers-of-before-count": ("sequence < taken or ", ""),
    "proofs-against-who-has-nothing-count": (" or not view.account(account).known", ""),
    "proofs-against-witnesses-again": ("return {} if known is not None else {key", "return {key"),
    "nothing-conflicts": ("return lock is not None and lock.order != checked.hash", "return False"),
    "everything-conflicts": ("return lock is not None and lock.order != checked.hash", "return lock is not None"),
}
_MERKLE = {
    "leaf-like-a-node": ('b"\\0" + leaf', 'b"\\1" + leaf'),
    "node-like-a-leaf": ('b"\\1" + left', 'b"\\0" + left'),
    "last-is-doubled": (
        "return paired + list(level[len(paired) * 2 :])",
        "return paired + [_node(one, one) for one in level[len(paired) * 2 :]]",
    ),
    "index-out-of-range": ("not 0 <= proof.index < proof.count", "False"),
    "too-many-neighbours": ("return None if left else reached", "return reached"),
    "too-few-neighbours": (
        "            if not left:\n                return None\n",
        "            if not left:\n                return reached\n",
    ),
    "sides-swapped": ("if place % 2 else", "if not place % 2 else"),
}
_PROOFS = {
    "proof-without-checkpoint": ("if agreed is None or proof.hold:", "if proof.hold and agreed is None:"),
    "state-proof-with-a-hold": ("agreed is None or proof.hold", "agreed is None"),
    "path-to-nothing": ("root is None and path != merkle.Path(0, 0, ())", "False"),
    "path-to-another-root": ("root is not None and merkle.climb(leaf, path) != root", "False"),
    "order-of-another-epoch": ("order.epoch + 1 != agreed.checkpoint.epoch", "False"),
    "hold-beside-any-order": ("hold is not None and not isinstance(checked.order, Close | Refund)", "False"),
    "order-without-votes": ("    check_votes(federation, View(state, check), checked, certificate.votes)\n", ""),
    "always-signed": ("        signed = False\n", "        signed = True\n"),
    "path-unchecked": (
        "    _check_path(proof, order.checked.hash, None if agreed is None else agreed.checkpoint.orders)\n",
        "",
    ),
    "epochs-of-a-proof-unchecked": ("    _check_epochs(order.checked, agreed)\n", ""),
}
_PRUNING = {
    "prune-what-was-pruned": ("view.first_epoch <= epoch", "True"),
    "prune-without-a-base": ('begun and next(iter(stored.iterate(base_key(epoch, b"a"))), None) is not None', "begun"),
    "prune-into-the-kept-part": ("LOG_FIRST: u64(decision + 1)", "LOG_FIRST: u64(decision)"),
    "channels-of-the-kept-part-are-pruned": (" or kept.get(channel_key(identity)) is not None", ""),
    "ended-channels-stay": (", **_ended(stored, kept)}", "}"),
    "orders-stay": ("    puts[certificate_key(identity)] = None\n", ""),
    "locks-of-channels-stay": (
        "{channel_key(identity): None, lock_key(identity, 0): None}",
        "{channel_key(identity): None}",
    ),
    "numbers-stay": ("order_key(owner_of(order), order.sequence): None, ", ""),
}
_AUDIT = {
    "audit-ignores-differences": ("expected.pop(key, None) != value", "expected.pop(key, None) is False"),
    "audit-ignores-what-is-gone": ("        for key in expected:\n", "        for key in ():\n"),
    "audit-ignores-places": ("len(log) != view.log_length - first", "False"),
    "audit-ignores-records": ("records != named", "False"),
    "audit-ignores-the-sum": ("    if report.sum_micro:\n", "    if False:\n"),
    "audit-ignores-floors": ("balance < federation.floor(NodeId(key[1:]))", "False"),
    "audit-ignores-locks": ("lock.epoch == View(stored).epoch and lock.order != checked.hash", "False"),
    "audit-ignores-numbers": ("numbered not in (checked.hash, None)", "False"),
    "audit-ignores-missing-numbers": (' or (numbered is None and stored.get(b"c" + object_id) is None)', ""),
    "audit-ignores-the-beginning": (
        "checkpoint is None or state_root(state) != checkpoint.state",
        "checkpoint is None",
    ),
    "audit-ignores-the-decision": ("body_hash(decision.body) != identity or checkpoint.epoch != epoch", "False"),
    "audit-ignores-the-end": ("made != (checkpoint.count, checkpoint.orders, checkpoint.state)", "False"),
    "audit-ignores-misplaced-orders": ("if place != position:", "if False:"),
    "audit-ignores-other-orders": (
        "transition.id != order or transition.checked is None",
        "transition.checked is None",
    ),
}

_GROUPS = {
    "accounts": _ACCOUNTS,
    "audit": _AUDIT,
    "certificates": _CERTIFICATES,
    "channels": _CHANNELS,
    "checkpoints": _CHECKPOINTS,
    "epochs": _EPOCHS,
    "evidence": _EVIDENCE,
    "families": _FAMILIES,
    "genesis": _GENESIS,
    "merkle": _MERKLE,
    "orders": _ORDERS,
    "proofs": _PROOFS,
    "pruning": _PRUNING,
    "quorums": _QUORUMS,
    "state": _STATE,
    "votes": _VOTES,
}
MUTANTS = {name: Mutant(module, old, new) for module, group in _GROUPS.items() for name, (old, new) in group.items()}


class _Loader(importlib.machinery.SourceFileLoader):
    """Loads one module with its guard broken, past every cache."""

    mutant: Mutant

    def get_data(self, path: str) -> bytes:
        return self.mutant.broken(Path(path).read_text()).encode()

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


class _Killer:
    """Which test failed."""

    test: str | None = None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called by pytest."""
        if report.failed and self.test is None:
            self.test = report.nodeid


def run(name: str) -> tuple[int, str | None]:
    """pytest's exit status with that guard broken (0 is a survivor, 1 a kill, anything else an accident), and the test
    that killed it. In a process that has not imported the ledger yet."""
    mutant = MUTANTS.get(name, CONTROL)
    _break(mutant)
    first = FIRST.get(mutant.module, TESTS[0])
    killer = _Killer()
    for test in (first, *(test for test in TESTS if test != first)):
        status = _run_tests(killer, f"tests/{test}")
        if status:
            return status, killer.test
    return 0, None


@dataclass
class Quick:
    """Runs the test that each mutant fell to before in a fork of this process, which collected all tests once.

    A test that fails on the whole ledger as well says nothing about a mutant: `unsound`.
    """

    known: Mapping[str, str]  # mutant -> test
    killed: set[str] = field(default_factory=set)
    unsound: set[str] = field(default_factory=set)  # tests

    def run(self) -> None:
        """In a process that has not imported the ledger yet, and has one thread."""
        if self.known:  # pytest would take no files for all files
            _run_tests(self, *dict.fromkeys(test.partition("::")[0] for test in self.known.values()))

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Called by pytest, instead of its own loop."""
        items = {item.nodeid: item for item in session.items}
        functions = _functions_by_file()
        gc.freeze()  # so that a fork's collector leaves the pages alone that it shares with this process
        self.unsound = {test for test in set(self.known.values()) & items.keys() if _fails(items[test], ())}
        for name, test in self.known.items():
            broken = _broken_functions(MUTANTS[name], functions) if name in MUTANTS else ()
            if broken and test in items and test not in self.unsound and _fails(items[test], broken):
                self.killed.add(name)
        return True


def _fails(item: pytest.Item, broken: Iterable[Broken]) -> bool:
    """Whether the test fails in a fork in which these functions have that code."""
    child = os.fork()
    if not child:
        failed = False
        try:
            for function, code in broken:
                function.__code__ = code
            item.ihook.pytest_runtest_protocol(item=item, nextitem=None)
            failed = item.session.testsfailed > 0
        finally:
            os._exit(FAILED if failed else 0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == FAILED


def _functions_by_file() -> dict[str, list[FunctionType]]:
    """All that there are, wherever they are held."""
    found: dict[str, list[FunctionType]] = {}
    for one in gc.get_objects():
        if isinstance(one, FunctionType):
            found.setdefault(one.__code__.co_filename, []).append(one)
    return found


def _broken_functions(mutant: Mutant, functions: Mapping[str, list[FunctionType]]) -> list[Broken]:
    """The functions that the mutant changes, with their broken code; none if it changes anything else."""
    source, file = mutant.path.read_text(encoding="utf-8"), str(mutant.path)
    whole, broken = (compile(text, file, "exec", dont_inherit=True) for text in (source, mutant.broken(source)))
    changed = _changed_functions(whole, broken)
    found = [[(one, new) for one in functions.get(file, ()) if one.__code__ == old] for old, new in changed or ()]
    return [each for several in found for each in several] if all(found) else []


def _changed_functions(old: CodeType, new: CodeType) -> list[tuple[CodeType, CodeType]] | None:
    """The functions and methods of a module that differ; None if something else does."""
    olds, news = _inner(old), _inner(new)
    if len(olds) != len(news) or _outer(old) != _outer(new):
        return None
    changed = []
    for one, other in zip(olds, news, strict=True):
        if one == other:
            continue
        if one.co_flags & inspect.CO_OPTIMIZED:  # a function; a class's body is not
            changed.append((one, other))
            continue
        within = _changed_functions(one, other)
        if within is None:
            return None
        changed += within
    return changed


def _inner(code: CodeType) -> list[CodeType]:
    return [constant for constant in code.co_consts if isinstance(constant, CodeType)]


def _outer(code: CodeType) -> tuple[object, ...]:
    """What a module or a class does itself, whatever its functions do."""
    constants = [repr(constant) for constant in code.co_consts if not isinstance(constant, CodeType)]
    return code.co_code, code.co_names, constants


def _break(mutant: Mutant) -> None:
    assert not any(module.startswith("protocol.ledger") for module in sys.modules)
    sys.meta_path.insert(0, _Finder(mutant))


def _run_tests(plugin: object, *tests: str) -> int:
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # these tests need no plugin, and each takes time to load
    options = ["-c", os.devnull, "--rootdir", str(ROOT), "--import-mode=importlib", "-k", CHOSEN]
    options += ["-o", f"pythonpath={ROOT / 'tests' / 'spec'}"]
    options += ["-x", "-q", "--no-header", "--tb=line", "-p", "no:cacheprovider"]
    return int(pytest.main([*options, *(str(ROOT / test) for test in tests)], plugins=[plugin]))


if __name__ == "__main__":
    sys.exit(run(sys.argv[1])[0])
