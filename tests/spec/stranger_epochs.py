"""The second implementation's end of an epoch and its files: chapters 09 and 11, from their text alone.

Rule: as in `stranger`: nothing of `protocol/` is imported.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from stranger_ledger import (
    ACCOUNT_OWNER,
    NO_HASH,
    Account,
    Channel,
    Effects,
    Federation,
    Ledger,
    Message,
    Refused,
    State,
    check_certified,
    encoded,
    limit,
    opened,
    require,
    sha256,
    sign,
)

Json = Any

MOST_ROUNDS = limit("MAX_ROUND_JUMP")
PREPARE, COMMIT = 1, 2


# --- Merkle trees ------------------------------------------------------------------------------------


def _leaf(data: bytes) -> bytes:
    return hashlib.sha256(b"\0" + data).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()


def merkle_root(leaves: Sequence[str]) -> str:
    """Of leaves in hexadecimal."""

    def root(part: Sequence[str]) -> bytes:
        if len(part) < 2:
            return _leaf(bytes.fromhex(part[0])) if part else hashlib.sha256().digest()
        half = 1 << (len(part) - 1).bit_length() - 1
        return _node(root(part[:half]), root(part[half:]))

    return root(leaves).hex()


def climb(leaf: str, index: int, count: int, neighbours: Sequence[str]) -> str | None:
    """The root that a proof leads to; None if its shape is wrong."""
    if index >= count:
        return None
    place, last, reached, left = index, count - 1, _leaf(bytes.fromhex(leaf)), [*neighbours]
    while last > 0:
        if place % 2 or place < last:
            if not left:
                return None
            neighbour = bytes.fromhex(left.pop(0))
            reached = _node(neighbour, reached) if place % 2 else _node(reached, neighbour)
        place, last = place // 2, last // 2
    return None if left else reached.hex()


# --- the state and its leaves ------------------------------------------------------------------------


def leaves(state: State) -> list[str]:
    """Accounts, then open channels, each ascending."""

    def since(known: list[tuple[int, str]]) -> Json:
        return [{"sequence": sequence, "key": key} for sequence, key in known]

    accounts = [
        encoded(
            "AccountState",
            account=name,
            balance=account.balance,
            next_sequence=account.next_sequence,
            head=account.head,
            owner=account.owner,
            sub_accounts=account.sub_accounts,
            keys=since(account.keys),
            recoveries=since(account.recoveries),
        )
        for name, account in sorted(state.accounts.items())
    ]
    named = ("payer", "payee", "amount", "price_in", "price_out", "expiry_ms")
    channels = [
        encoded("ChannelState", channel=name, **{field_: channel.hold[field_] for field_ in named})
        for name, channel in sorted(state.channels.items())
        if channel.status == "open"
    ]
    return accounts + channels


def state_of(given: Sequence[str]) -> State:
    """The inverse of `leaves`."""
    state = State()
    for leaf in given:
        message = opened(leaf)
        require(message["type"] in ("AccountState", "ChannelState"), "MALFORMED")
        if message["type"] == "ChannelState":
            state.channels[message["channel"]] = Channel(message)
            continue
        keys, recoveries = ([(one["sequence"], one["key"]) for one in message[name]] for name in ("keys", "recoveries"))
        fixed = (message[name] for name in ("head", "balance", "next_sequence", "owner", "sub_accounts"))
        state.accounts[message["account"]] = Account(*fixed, keys, recoveries)
    return state


# --- the union ---------------------------------------------------------------------------------------


def order_id(certificate: str) -> str:
    """The id of the order in a certificate."""
    return sha256(opened(certificate, "Certificate")["body"])


def united(certificates: Sequence[str]) -> dict[str, str]:
    """By id."""
    return {order_id(certificate): certificate for certificate in certificates}


def _place(certificate: str) -> tuple[int, str, int]:
    order = opened(opened(certificate, "Certificate")["body"])
    numbered = order["type"] in ACCOUNT_OWNER
    return (0, order[ACCOUNT_OWNER[order["type"]]], order["sequence"]) if numbered else (1, order["channel"], 0)


def merge(federation: Federation, base: State, union: dict[str, str], epoch: int) -> State:
    """The state after a usable set."""
    state, left = deepcopy(base), sorted(union.values(), key=_place)
    while left:
        waiting = []
        for certificate in left:
            try:
                state = _merge_one(federation, state, certificate, epoch)
            except Refused as refusal:
                if not refusal.missing:
                    raise
                waiting.append((certificate, refusal))
        if len(waiting) == len(left):
            signature = any(refusal.code == "BAD_SIGNATURE" for _, refusal in waiting)
            raise Refused("BAD_SIGNATURE" if signature else "BAD_SEQUENCE")
        left = [certificate for certificate, _ in waiting]
    for name, account in state.accounts.items():
        require(account.balance >= federation.floor(name), "INSUFFICIENT_FUNDS")
    return state


def _merge_one(federation: Federation, state: State, certificate: str, epoch: int) -> State:
    checked = check_certified(federation, state, opened(certificate, "Certificate"))
    require(not checked.numbered or checked.order["epoch"] == epoch, "STALE_EPOCH")
    draft = deepcopy(state)
    Effects(draft).apply(checked)
    return draft


def refund(state: State, time_ms: int) -> list[str]:
    """Return what expired long ago. Which channels."""
    expired = [
        name
        for name, channel in state.channels.items()
        if channel.status == "open" and channel.hold["expiry_ms"] + limit("REFUND_DELAY") <= time_ms
    ]
    for name in expired:
        Effects(state).settle(name, "refunded", 0)
    return sorted(expired)


@dataclass
class Outcome:
    """What a checkpoint says of a union."""

    union: dict[str, str]
    state: State
    refunded: list[str]

    @property
    def summary(self) -> dict[str, Json]:
        """The three fields of a checkpoint."""
        orders = merkle_root(sorted(self.union))
        return {"count": len(self.union), "orders": orders, "state": merkle_root(leaves(self.state))}


def outcome(ledger: Ledger, union: dict[str, str], time_ms: int) -> Outcome:
    """Unite and refund."""
    state = merge(ledger.federation, ledger.base, union, ledger.epoch)
    return Outcome(union, state, refund(state, time_ms))


# --- decisions ---------------------------------------------------------------------------------------


def open_decision(federation: Federation, data: str) -> tuple[str, Message]:
    """The checkpoint's id, and the checkpoint."""
    decision = opened(data, "Decision")
    checkpoint, identity = opened(decision["body"], "Checkpoint"), sha256(decision["body"])
    require(checkpoint["epoch"] > 0, "MALFORMED")
    ballot = _ballot(COMMIT, checkpoint["epoch"] - 1, decision["round"], identity)
    federation.check_quorum(decision["commits"], ballot)
    return identity, checkpoint


def _ballot(phase: int, epoch: int, number: int, checkpoint: str) -> str:
    return encoded("Ballot", phase=phase, epoch=epoch, round=number, checkpoint=checkpoint)


@dataclass
class Adoption:
    """What became of orders and holds."""

    void: list[str]
    missing: list[str]
    refunded: list[str]


def adopt(ledger: Ledger, data: str, union: dict[str, str]) -> Adoption:
    """Go over to the next epoch."""
    identity, checkpoint = open_decision(ledger.federation, data)
    require(checkpoint["epoch"] <= ledger.epoch + 1, "STALE_EPOCH", missing=True)
    follows = checkpoint["epoch"] == ledger.epoch + 1 and checkpoint["previous"] == ledger.checkpoint
    require(follows, "STALE_EPOCH")
    result = outcome(ledger, union, checkpoint["time_ms"])
    require(all(checkpoint[name] == value for name, value in result.summary.items()), "BAD_QUORUM")
    void = {name: certificate for name, certificate in ledger.orders.items() if name not in union}
    missing = sorted(set(union) - set(ledger.orders), key=lambda name: _place(union[name]))
    for name in void:
        del ledger.places[name]
    for name in missing:
        ledger.append(name)
    ledger.append(identity)
    if ledger.abstaining:
        ledger.silent = set(result.state.channels)
    _begin(ledger, identity, checkpoint, result.state)
    again = [name for name, certificate in void.items() if _settled_again(ledger, certificate)]
    return Adoption(sorted(set(void) - set(again)), sorted(missing), result.refunded)


def _begin(ledger: Ledger, identity: str, checkpoint: Message, state: State) -> None:
    ledger.state, ledger.base = state, deepcopy(state)
    ledger.epoch, ledger.checkpoint, ledger.time_ms = checkpoint["epoch"], identity, checkpoint["time_ms"]
    ledger.orders, ledger.resting = {}, set()
    ledger.frozen = False


def _settled_again(ledger: Ledger, certificate: str) -> bool:
    if opened(opened(certificate)["body"])["type"] != "Close":
        return False
    try:
        ledger.apply(certificate)
    except Refused:
        return False
    return True


def begin_from(federation: Federation, data: str, given: Sequence[str], position: int) -> Ledger:
    """A ledger that begins with a state."""
    identity, checkpoint = open_decision(federation, data)
    require(merkle_root(given) == checkpoint["state"], "BAD_QUORUM")
    ledger = Ledger(federation)
    _begin(ledger, identity, checkpoint, state_of(given))
    ledger.length = position
    ledger.append(identity)
    return ledger


def replica(given: dict[str, Json]) -> Ledger:
    """What a log makes of nothing."""
    ledger = Ledger(Federation(given["genesis"]))
    for record in given["log"]:
        take(ledger, record)
    return ledger


def take(ledger: Ledger, record: str) -> None:
    """A certificate or a decision."""
    if opened(record)["type"] == "Decision":
        adopt(ledger, record, ledger.orders)
    else:
        ledger.apply(record)


# --- the witness at the end of an epoch --------------------------------------------------------------


@dataclass
class Seat:
    """One witness's part: what it keeps."""

    ledger: Ledger
    index: int
    seed: str
    snapshot: str = ""  # encoded; empty: not frozen
    promised: int = 0
    balloted: int = 0
    ballot: str = NO_HASH
    prepared: int = 0
    checkpoint: str = ""
    ballots: list[Message] = field(default_factory=list)

    def answer(self, step: dict[str, Json]) -> Message:
        """The answer to one message of a coordinator."""
        message = step["message"]
        answers = {
            "FetchStanding": self._standing,
            "Join": self._join,
            "Propose": self._propose,
            "Commit": self._commit,
        }
        return answers[message["type"]](message, step)

    def _sign(self, statement: str) -> str:
        return sign(self.seed, self.ledger.federation.id, statement)

    def _check_part(self, epoch: int, number: int, coordinator: int) -> None:
        require(not self.ledger.abstaining, "ABSTAINING")
        require(epoch == self.ledger.epoch, "STALE_EPOCH")
        require(number % len(self.ledger.federation.witnesses) == coordinator, "NOT_A_WITNESS")

    def _check_round(self, number: int) -> None:
        require(number >= self.promised, "BAD_SEQUENCE")
        require(number <= self.promised + MOST_ROUNDS, "INVALID_REQUEST")

    def _standing(self, _: Message, step: dict[str, Json]) -> Message:
        frozen, ledger = bool(self.snapshot), self.ledger
        due = step["now_ms"] >= ledger.time_ms + ledger.federation.epoch_length_ms
        willing = not ledger.abstaining and (frozen or due or step["agreed"] == 1)
        flags = {"willing": int(willing), "frozen": int(frozen), "abstaining": int(ledger.abstaining)}
        return {"type": "Standing", "epoch": ledger.epoch, **flags}

    def _join(self, join: Message, step: dict[str, Json]) -> Message:
        self._check_part(join["epoch"], join["round"], step["coordinator"])
        require(bool(step["willing"] or self.snapshot), "INVALID_REQUEST")
        self._check_round(join["round"])
        self.promised, prepared = join["round"], sha256(self.checkpoint) if self.checkpoint else NO_HASH
        if not self.snapshot:
            held = {"count": len(self.ledger.orders), "root": merkle_root(sorted(self.ledger.orders))}
            self.snapshot = encoded("Snapshot", epoch=join["epoch"], previous=self.ledger.checkpoint, **held)
        promise = encoded(
            "Promise", epoch=join["epoch"], round=join["round"], prepared=self.prepared, checkpoint=prepared
        )
        snapshot = opened(self.snapshot)
        return {
            "type": "Joined",
            "witness": self.index,
            "count": snapshot["count"],
            "root": snapshot["root"],
            "snapshot_signature": self._sign(self.snapshot),
            "promise_signature": self._sign(promise),
            "prepared": self.prepared,
            "checkpoint": self.checkpoint,
            "ballots": self.ballots,
        }

    def _propose(self, propose: Message, step: dict[str, Json]) -> Message:
        number, checkpoint, identity = self._opened(propose, step)
        require(not (self.balloted == number + 1 and self.ballot != identity), "EQUIVOCATION")
        epoch = checkpoint["epoch"] - 1
        highest = self._check_promises(propose, epoch)
        if highest:
            self.ledger.federation.check_quorum(propose["ballots"], _ballot(PREPARE, epoch, highest - 1, identity))
        else:
            self._check_new(checkpoint, step)
        self.promised, self.balloted, self.ballot = number, number + 1, identity
        return self._balloted(PREPARE, epoch, number, identity)

    def _opened(self, request: Message, step: dict[str, Json]) -> tuple[int, Message, str]:
        """P1 and P2."""
        checkpoint = opened(request["checkpoint"], "Checkpoint")
        self._check_part(checkpoint["epoch"] - 1, request["round"], step["coordinator"])
        require(bool(self.snapshot), "BAD_SEQUENCE")
        self._check_round(request["round"])
        return request["round"], checkpoint, sha256(request["checkpoint"])

    def _check_promises(self, propose: Message, epoch: int) -> int:
        federation = self.ledger.federation
        federation.check_ascending(propose["promises"])
        for one in propose["promises"]:
            told = {name: one[name] for name in ("prepared", "checkpoint")}
            promise = encoded("Promise", epoch=epoch, round=propose["round"], **told)
            federation.check_key(one["witness"], promise, one["signature"])
        return max(one["prepared"] for one in propose["promises"])

    def _check_new(self, checkpoint: Message, step: dict[str, Json]) -> None:
        ledger, sources = self.ledger, checkpoint["sources"]
        ledger.federation.check_ascending(sources)
        require(len(sources) == ledger.federation.quorum, "BAD_QUORUM")
        require(checkpoint["previous"] == ledger.checkpoint, "STALE_EPOCH")
        for source in sources:
            held = {name: source[name] for name in ("count", "root")}
            snapshot = encoded("Snapshot", epoch=ledger.epoch, previous=ledger.checkpoint, **held)
            ledger.federation.check_key(source["witness"], snapshot, source["signature"])
        earliest, latest = step["now_ms"] - limit("CHECKPOINT_LAG"), step["now_ms"] + limit("CLOCK_SKEW")
        require(max(earliest, ledger.time_ms + 1) <= checkpoint["time_ms"] <= latest, "INVALID_REQUEST")
        found = outcome(ledger, united(step["union"]), checkpoint["time_ms"]).summary
        require(all(checkpoint[name] == value for name, value in found.items()), "BAD_QUORUM")

    def _commit(self, commit: Message, step: dict[str, Json]) -> Message:
        number, checkpoint, identity = self._opened(commit, step)
        epoch = checkpoint["epoch"] - 1
        self.ledger.federation.check_quorum(commit["ballots"], _ballot(PREPARE, epoch, number, identity))
        self.promised, self.prepared = number, number + 1
        self.checkpoint, self.ballots = commit["checkpoint"], commit["ballots"]
        return self._balloted(COMMIT, epoch, number, identity)

    def _balloted(self, phase: int, epoch: int, number: int, identity: str) -> Message:
        signature = self._sign(_ballot(phase, epoch, number, identity))
        return {"type": "Balloted", "witness": self.index, "signature": signature}


def check_joined(ledger: Ledger, join: Message, joined: Message) -> None:
    """Whether a coordinator counts an answer."""
    federation, witness = ledger.federation, joined["witness"]
    held = {name: joined[name] for name in ("count", "root")}
    snapshot = encoded("Snapshot", epoch=join["epoch"], previous=ledger.checkpoint, **held)
    federation.check_key(witness, snapshot, joined["snapshot_signature"])
    identity = sha256(joined["checkpoint"]) if joined["checkpoint"] else NO_HASH
    told = {"epoch": join["epoch"], "round": join["round"], "prepared": joined["prepared"]}
    federation.check_key(witness, encoded("Promise", **told, checkpoint=identity), joined["promise_signature"])
    if joined["prepared"]:
        ballot = _ballot(PREPARE, join["epoch"], joined["prepared"] - 1, identity)
        federation.check_quorum(joined["ballots"], ballot)
