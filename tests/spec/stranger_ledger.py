"""The second implementation's ledger: chapters 05, 08 and 10, from their text alone.

Rule: as in `stranger`: nothing of `protocol/` is imported. Keys, ids and signatures are hexadecimal text, as messages
are here; such text sorts like the bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import chapters
import edwards
import stranger
from stranger import BadSignature, Malformed

Json = Any
Message = dict[str, Json]

NO_HASH = "00" * 32
MAX_INTEGER = 2**53 - 1


def limit(name: str) -> int:
    """A number of chapter 07."""
    return chapters.number(stranger.LIMITS[name])


MAX_RECORD_BYTES = limit("MAX_RECORD_BYTES")
ACCOUNT_OWNER = {
    "Grant": "issuer",
    "Hold": "payer",
    "Attach": "account",
    "Move": "account",
    "Recovery": "account",
    "Rotate": "account",
}
ORDERS = {*ACCOUNT_OWNER, "Close", "Refund"}


class Refused(Exception):
    """A refusal with a code; `missing`: good as soon as something else is here."""

    def __init__(self, code: str, missing: bool = False) -> None:
        super().__init__(code)
        self.code = code
        self.missing = missing


def require(good: bool, code: str, missing: bool = False) -> None:
    """Refuse unless `good`."""
    if not good:
        raise Refused(code, missing)


# --- bytes and signatures ----------------------------------------------------------------------------


def sha256(body: str) -> str:
    """Of bytes in hexadecimal."""
    return hashlib.sha256(bytes.fromhex(body)).hexdigest()


def opened(data: str, kind: str | None = None, most: int = MAX_RECORD_BYTES) -> Message:
    """The message in `data`, or MALFORMED."""
    try:
        message = stranger.decode(bytes.fromhex(data), most)
    except Malformed:
        raise Refused("MALFORMED") from None
    require(kind is None or message["type"] == kind, "MALFORMED")
    return message


def encoded(kind: str, **fields: Json) -> str:
    """A message in hexadecimal."""
    return stranger.encode({"type": kind, **fields}).hex()


@cache
def _signed_by(key: str, federation: str, body: str, signature: str) -> bool:
    try:
        stranger.verify(*(bytes.fromhex(part) for part in (key, federation, body, signature)))
    except BadSignature:
        return False
    return True


@cache
def usable(key: str) -> bool:
    """Step 1 of chapter 01's verifier."""
    point = edwards.decode_canonical(bytes.fromhex(key))
    return point not in (None, edwards.NEUTRAL) and edwards.times(edwards.ORDER, point) == edwards.NEUTRAL


def sign(seed: str, federation: str, body: str) -> str:
    """RFC 8032 over what chapter 01 says."""
    expanded = hashlib.sha512(bytes.fromhex(seed)).digest()
    secret = int.from_bytes(expanded[:32], "little") & (2**254 - 8) | 2**254
    message = stranger.signed(bytes.fromhex(federation), bytes.fromhex(body))
    nonce = int.from_bytes(hashlib.sha512(expanded[32:] + message).digest(), "little") % edwards.ORDER
    r, key = (edwards.encode(edwards.times(scalar, edwards.BASE)) for scalar in (nonce, secret))
    challenge = int.from_bytes(hashlib.sha512(r + key + message).digest(), "little")
    return (r + ((nonce + challenge * secret) % edwards.ORDER).to_bytes(32, "little")).hex()


# --- the state ---------------------------------------------------------------------------------------


@dataclass
class Account:
    """What chapter 09 makes a leaf of."""

    head: str
    balance: int = 0
    next_sequence: int = 0
    owner: str = NO_HASH
    sub_accounts: int = 0
    keys: list[tuple[int, str]] = field(default_factory=list)
    recoveries: list[tuple[int, str]] = field(default_factory=list)

    @property
    def in_use(self) -> bool:
        """Chapter 05."""
        return self.balance != 0 or self.next_sequence > 0


@dataclass
class Channel:
    """A hold, and how it ended."""

    hold: Message
    status: str = "open"
    paid: int = 0


@dataclass
class State:
    """Accounts, and every channel that was ever opened."""

    accounts: dict[str, Account] = field(default_factory=dict)
    channels: dict[str, Channel] = field(default_factory=dict)

    def account(self, name: str) -> Account:
        """An account to read; one that nobody has named is empty."""
        return self.accounts.get(name) or Account(sha256(name))

    def touched(self, name: str) -> Account:
        """An account to change."""
        return self.accounts.setdefault(name, Account(sha256(name)))

    def keys(self, name: str) -> list[str]:
        """The account's id, and every key that it rotated to."""
        return [name, *(key for _, key in self.account(name).keys)]

    def key_at(self, name: str, sequence: int) -> str:
        """The key in force at a number."""
        return [name, *(key for since, key in self.account(name).keys if since <= sequence)][-1]

    def recovery_at(self, name: str, sequence: int) -> str | None:
        """The recovery key at a number."""
        known: list[str | None] = [key for since, key in self.account(name).recoveries if since <= sequence]
        return [None, *known][-1]

    def family(self, name: str) -> set[str]:
        """All its keys, and all keys of its owner."""
        owner = self.account(name).owner
        return {*self.keys(name), *(self.keys(owner) if owner != NO_HASH else ())}

    def related(self, one: str, other: str) -> bool:
        """Chapter 10: a key in common."""
        return bool(self.family(one) & self.family(other))

    def may_use(self, peer: str, name: str) -> bool:
        """Chapter 10: who may ask."""
        owner = self.account(name).owner
        named = [name] if owner == NO_HASH else [name, owner]
        return any(self.key_at(one, self.account(one).next_sequence) == peer for one in named)


class Federation:
    """A genesis and what follows from it."""

    def __init__(self, body: str) -> None:
        self.body = body
        genesis = stranger.decode(bytes.fromhex(body), MAX_RECORD_BYTES)
        if genesis["type"] != "Genesis":
            raise Malformed("another message")
        self.witnesses, self.issuers = genesis["witnesses"], genesis["issuers"]
        keys = [*self.witnesses, *self.issuers]
        good = len(set(keys)) == len(keys) and len(self.witnesses) == 3 * genesis["faults"] + 1
        if not good or not genesis["supply_cap"] or not genesis["epoch_length_ms"]:
            raise Malformed("not by the rules")
        if not all(map(usable, keys)):
            raise BadSignature("a key that must not be used")
        self.id = sha256(body)
        self.created_ms = genesis["created_ms"]
        self.epoch_length_ms = genesis["epoch_length_ms"]
        self.quorum = 2 * genesis["faults"] + 1
        self._share = genesis["supply_cap"] // len(self.issuers)

    def floor(self, account: str) -> int:
        """The lowest balance."""
        return -self._share if account in self.issuers else 0

    def check_key(self, witness: int, body: str, signature: str) -> None:
        """A witness's signature over a statement."""
        require(witness < len(self.witnesses), "NOT_A_WITNESS")
        self.check_signed([self.witnesses[witness]], body, signature)

    def check_signed(self, keys: Iterable[str], body: str, signature: str) -> None:
        """One of `keys` signed."""
        require(any(_signed_by(key, self.id, body, signature) for key in keys), "BAD_SIGNATURE")

    def check_quorum(self, listed: list[Message], body: str) -> None:
        """Signatures of a quorum over one statement, in ascending order."""
        self.check_ascending(listed)
        for one in listed:
            self.check_key(one["witness"], body, one["signature"])

    def check_ascending(self, listed: list[Message]) -> None:
        """At least a quorum, by ascending witness, each once."""
        indexes = [one["witness"] for one in listed]
        require(indexes == sorted(set(indexes)) and len(indexes) >= self.quorum, "BAD_QUORUM")


# --- chapter 05: the rules of an order ---------------------------------------------------------------


@dataclass(frozen=True)
class Checked:
    """An order that keeps L1 … L8."""

    order: Message
    body: str
    id: str
    object: str
    version: int

    @property
    def numbered(self) -> bool:
        """True for account orders."""
        return self.order["type"] in ACCOUNT_OWNER

    @property
    def vote(self) -> str:
        """What a witness signs."""
        return encoded("Vote", order=self.id, version=self.version, object=self.object)


class Rules:
    """L1 … L8 over one state. `trusting`: signatures of owners, in consents and over vouchers are not looked at."""

    def __init__(self, federation: Federation, state: State, trusting: bool = False) -> None:
        self._federation = federation
        self._state = state
        self._trusting = trusting

    def check(self, body: str, signature: str) -> Checked:
        """The order, or the first rule that it breaks."""
        order = opened(body)
        kind = order["type"]
        require(kind in ORDERS, "MALFORMED")
        self._check_issuers(order)
        if kind in ("Grant", "Hold", "Move"):
            self._check_transfer(order)
        more = getattr(self, f"_check_{kind.lower()}", None)
        if more is not None:
            more(order)
        numbered = kind in ACCOUNT_OWNER
        named, version = (order[ACCOUNT_OWNER[kind]], order["sequence"]) if numbered else (order["channel"], 0)
        self._check_owner(order, body, signature, named, version)
        return Checked(order, body, sha256(body), named, version)

    def _signed(self, keys: Iterable[str], body: str, signature: str) -> None:
        if not self._trusting:
            self._federation.check_signed(keys, body, signature)

    def _check_issuers(self, order: Message) -> None:
        if order["type"] == "Grant":
            require(order["issuer"] in self._federation.issuers, "NOT_ISSUER")
            return
        names = {"Hold": ["payer"], "Attach": ["account", "owner"], "Move": ["account", "to"]}
        named = names.get(order["type"], ["account"] if order["type"] in ACCOUNT_OWNER else [])
        require(all(order[name] not in self._federation.issuers for name in named), "INVALID_REQUEST")

    def _check_transfer(self, order: Message) -> None:
        receiver = order["payee"] if order["type"] == "Hold" else order["to"]
        require(order["amount"] != 0 and receiver != order[ACCOUNT_OWNER[order["type"]]], "INVALID_REQUEST")
        require(usable(receiver), "BAD_SIGNATURE")

    def _check_attach(self, order: Message) -> None:
        require(order["sequence"] == 0 and order["owner"] != order["account"], "INVALID_REQUEST")
        require(usable(order["owner"]), "BAD_SIGNATURE")
        consent = encoded("Consent", account=order["account"], key=order["owner"])
        self._signed(self._state.keys(order["owner"]), consent, order["consent"])

    def _check_recovery(self, order: Message) -> None:
        require(usable(order["key"]), "BAD_SIGNATURE")

    def _check_rotate(self, order: Message) -> None:
        require(usable(order["key"]), "BAD_SIGNATURE")
        consent = encoded("Consent", account=order["account"], key=order["key"])
        self._signed([order["key"]], consent, order["consent"])

    def _channel(self, order: Message) -> Channel:
        channel = self._state.channels.get(order["channel"])
        if channel is None:
            raise Refused("UNKNOWN_CHANNEL", missing=True)
        return channel

    def _check_close(self, order: Message) -> None:
        channel = self._channel(order)
        check_voucher(opened(order["voucher"], "Voucher"), order["channel"], channel.hold)
        self._signed(self._state.keys(channel.hold["payer"]), order["voucher"], order["voucher_signature"])

    def _check_refund(self, order: Message) -> None:
        channel = self._channel(order)
        require(self._federation.witnesses == [order["witness"]], "NOT_A_WITNESS")
        require(order["time_ms"] >= channel.hold["expiry_ms"], "INVALID_REQUEST")

    def _check_owner(self, order: Message, body: str, signature: str, named: str, version: int) -> None:
        try:
            self._signed(self._owner_keys(order, version), body, signature)
        except Refused:
            ahead = order["type"] in ACCOUNT_OWNER and version > self._state.account(named).next_sequence
            raise (Refused("BAD_SEQUENCE", missing=True) if ahead else Refused("BAD_SIGNATURE")) from None

    def _owner_keys(self, order: Message, version: int) -> list[str]:
        """The table *Who signs*."""
        if order["type"] == "Close":
            return self._state.keys(self._channel(order).hold["payee"])
        if order["type"] == "Refund":
            return [order["witness"]]
        owner = order[ACCOUNT_OWNER[order["type"]]]
        current, recovery = self._state.key_at(owner, version), self._state.recovery_at(owner, version)
        if order["type"] == "Recovery":
            return [recovery or current]
        return [current, *([recovery] if order["type"] == "Rotate" and recovery else [])]


def amount_of(number: int) -> int:
    """Refused, never clipped."""
    require(0 <= number <= MAX_INTEGER, "OVERFLOW")
    return number


def price(given: dict[str, int]) -> int:
    """channel_cost."""
    kinds = ("in", "out")
    return amount_of(sum(amount_of(-(-given[f"units_{kind}"] * given[f"price_{kind}"] // 1_000)) for kind in kinds))


def check_voucher(voucher: Message, channel: str, hold: Message) -> None:
    """L6 without signatures."""
    require(voucher["channel"] == channel, "BAD_VOUCHER")
    counts = {name: voucher[name] for name in ("units_in", "units_out")}
    owed = price({**counts, "price_in": hold["price_in"], "price_out": hold["price_out"]})
    require(voucher["cumulative"] == owed <= hold["amount"], "BAD_VOUCHER")


# --- chapter 05: certificates and effects ------------------------------------------------------------


class Effects:
    """C6, and the table *Effects*. Called on a copy: a refusal leaves it half done."""

    def __init__(self, state: State) -> None:
        self._state = state

    def apply(self, checked: Checked) -> None:
        """What the order changes."""
        getattr(self, f"_{checked.order['type'].lower()}")(checked, checked.order)

    def _add(self, name: str, amount: int) -> None:
        account = self._state.touched(name)
        require(abs(account.balance + amount) <= MAX_INTEGER, "OVERFLOW")
        account.balance += amount

    def _advance(self, checked: Checked, debit: int = 0) -> Account:
        account, order = self._state.account(checked.object), checked.order
        require(order["sequence"] <= account.next_sequence, "BAD_SEQUENCE", missing=True)
        require(order["sequence"] == account.next_sequence, "EQUIVOCATION")
        require(order["previous"] == account.head, "BAD_SEQUENCE")
        self._add(checked.object, -debit)
        account = self._state.touched(checked.object)
        account.next_sequence, account.head = order["sequence"] + 1, checked.id
        return account

    def _grant(self, checked: Checked, order: Message) -> None:
        self._add(order["to"], order["amount"])
        self._advance(checked, order["amount"])

    def _move(self, checked: Checked, order: Message) -> None:
        require(self._state.related(order["account"], order["to"]), "NOT_RELATED", missing=True)
        self._grant(checked, order)

    def _hold(self, checked: Checked, order: Message) -> None:
        self._advance(checked, order["amount"])
        self._state.channels[checked.id] = Channel(order)

    def _attach(self, checked: Checked, order: Message) -> None:
        self._advance(checked).owner = order["owner"]
        self._state.touched(order["owner"]).sub_accounts += 1

    def _recovery(self, checked: Checked, order: Message) -> None:
        self._advance(checked).recoveries.append((order["sequence"] + 1, order["key"]))

    def _rotate(self, checked: Checked, order: Message) -> None:
        self._advance(checked).keys.append((order["sequence"] + 1, order["key"]))

    def _close(self, _: Checked, order: Message) -> None:
        paid = opened(order["voucher"], "Voucher")["cumulative"]
        self.settle(order["channel"], "closed", paid)

    def _refund(self, _: Checked, order: Message) -> None:
        self.settle(order["channel"], "refunded", 0)

    def settle(self, name: str, status: str, paid: int) -> None:
        """End a channel: `paid` to the payee (nothing of a refund), the rest to the payer."""
        channel = self._state.channels[name]
        require(channel.status == "open", "CHANNEL_CLOSED")
        self._add(channel.hold["payer"], channel.hold["amount"] - paid)
        if status == "closed":
            self._add(channel.hold["payee"], paid)
        self._state.channels[name] = Channel(channel.hold, status, paid)


@dataclass
class Vote:
    """What a witness keeps of one."""

    order: str
    epoch: int
    vote: str


class Ledger:
    """One replica: its log, its state, and the state with which the epoch began."""

    def __init__(self, federation: Federation) -> None:
        self.federation = federation
        self.state = State()
        self.base = State()
        self.epoch = 0
        self.checkpoint = federation.id  # the one in force
        self.time_ms = federation.created_ms
        self.places: dict[str, int] = {}  # what is applied -> its place in the log
        self.length = 0
        self.orders: dict[str, str] = {}  # of this epoch: id -> certificate
        self.votes: dict[tuple[str, int], Vote] = {}
        self.resting: set[str] = set()  # accounts with a proof against them, of this epoch
        self.double_voters: set[int] = set()
        self.abstains_until = -1  # the last epoch in which it signs nothing
        self.frozen = False
        self.silent: set[str] = set()  # channels for whose settlement it never votes

    @property
    def abstaining(self) -> bool:
        """Chapter 08: this witness was set back."""
        return self.abstains_until >= self.epoch

    def rules(self, trusting: bool = False) -> Rules:
        """L1 … L8 here."""
        return Rules(self.federation, self.state, trusting)

    def append(self, identity: str) -> int:
        """The next place of the log."""
        self.places[identity], self.length = self.length, self.length + 1
        return self.places[identity]

    def apply(self, data: str) -> tuple[bool, int]:
        """C1 … C7: whether it was applied before, and its place."""
        certificate = opened(data, "Certificate")
        identity = sha256(certificate["body"])
        if identity in self.places:
            return True, self.places[identity]
        checked = check_certified(self.federation, self.state, certificate)
        if checked.numbered:
            require(checked.order["epoch"] >= self.epoch, "STALE_EPOCH")
            require(checked.order["epoch"] == self.epoch, "STALE_EPOCH", missing=True)
        draft = deepcopy(self.state)
        Effects(draft).apply(checked)
        if checked.numbered:
            code = "SUPPLY_CAP" if checked.order["type"] == "Grant" else "INSUFFICIENT_FUNDS"
            floor = self.federation.floor(checked.object)
            require(draft.account(checked.object).balance >= floor, code, missing=True)
        self.state, self.orders[identity] = draft, data
        return False, self.append(identity)

    # --- the witness ---

    def vote(self, seed: str, now_ms: int, body: str, signature: str) -> Message:
        """L1 … L18, and the vote."""
        checked = self.rules().check(body, signature)
        require(not self.abstaining, "ABSTAINING")
        place = (checked.object, checked.version)
        known = self.votes.get(place)
        if known is not None and (not checked.numbered or known.epoch == self.epoch):
            require(known.order == checked.id, "EQUIVOCATION")
        else:
            require(not self.frozen, "EPOCH_CHANGING")
            if checked.id not in self.places:
                self._check_first(checked, now_ms, self._recovers(checked, signature))
            known = Vote(checked.id, self.epoch, sign(seed, self.federation.id, checked.vote))
            self.votes[place] = known
        return {"order": checked.id, "object": checked.object, "version": checked.version, "vote": known.vote}

    def _check_first(self, checked: Checked, now_ms: int, recovers: bool) -> None:
        order = checked.order
        if checked.numbered:
            require(order["epoch"] == self.epoch, "STALE_EPOCH")
        if order["type"] == "Hold":
            latest = now_ms + limit("MAX_HOLD_LIFETIME") + limit("CLOCK_SKEW")
            require(order["expiry_ms"] <= latest, "INVALID_REQUEST")
        if order["type"] == "Refund":
            require(order["time_ms"] <= now_ms, "INVALID_REQUEST")
        if checked.numbered:
            self._check_numbered(checked, recovers)
        else:
            require(self.state.channels[order["channel"]].status == "open", "CHANNEL_CLOSED")
            require(order["channel"] not in self.silent, "ABSTAINING")

    def _recovers(self, checked: Checked, signature: str) -> bool:
        """True for a Rotate or Recovery that the recovery key signed."""
        recovery = self.state.recovery_at(checked.object, checked.version)
        changes = checked.order["type"] in ("Rotate", "Recovery") and recovery is not None
        return changes and _signed_by(str(recovery), self.federation.id, checked.body, signature)

    def _check_numbered(self, checked: Checked, recovers: bool) -> None:
        order, account = checked.order, self.state.account(checked.object)
        require(recovers or checked.object not in self.resting, "EQUIVOCATION")
        require(order["sequence"] <= account.next_sequence, "BAD_SEQUENCE", missing=True)
        require(order["sequence"] == account.next_sequence, "EQUIVOCATION")
        require(order["previous"] == account.head, "BAD_SEQUENCE")
        code = "SUPPLY_CAP" if order["type"] == "Grant" else "INSUFFICIENT_FUNDS"
        left = account.balance - order.get("amount", 0)
        require(left >= self.federation.floor(checked.object), code)
        more = getattr(self, f"_check_{order['type'].lower()}", None)
        if more is not None:
            more(order, recovers)

    def _check_move(self, order: Message, _: bool) -> None:
        require(self.state.related(order["account"], order["to"]), "NOT_RELATED", missing=True)

    def _check_attach(self, order: Message, _: bool) -> None:
        owner = self.state.account(order["owner"])
        require(owner.balance > 0 and owner.sub_accounts < limit("MAX_SUB_ACCOUNTS"), "INVALID_REQUEST")

    def _check_recovery(self, order: Message, _: bool) -> None:
        account = self.state.account(order["account"])
        require(account.in_use and len(account.recoveries) < limit("MAX_ROTATIONS"), "INVALID_REQUEST")

    def _check_rotate(self, order: Message, recovers: bool) -> None:
        account, most = self.state.account(order["account"]), limit("MAX_ROTATIONS") // (1 if recovers else 2)
        require(account.in_use and len(account.keys) < most, "INVALID_REQUEST")


def check_certified(federation: Federation, state: State, certificate: Message) -> Checked:
    """C3 and C4."""
    body, signature = certificate["body"], certificate["signature"]
    unsigned = Rules(federation, state, trusting=True).check(body, signature)
    federation.check_quorum(certificate["votes"], unsigned.vote)
    try:
        return Rules(federation, state).check(body, signature)
    except Refused as refusal:
        raise Refused(refusal.code, missing=True) from None


# --- chapter 10: evidence ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Proof:
    """Against whom, and in which epoch it counts."""

    account: str | None
    witness: int
    epoch: int
    sequence: int | None = None  # of two account orders


def open_proof(ledger: Ledger, data: str) -> Proof:
    """A proof that is valid here."""
    proof = opened(data, most=limit("MAX_EVIDENCE_BYTES"))
    kinds: dict[str, Callable[[Ledger, Message], Proof]] = {"Equivocation": _equivocation, "DoubleVote": _double_vote}
    require(proof["type"] in kinds, "MALFORMED")
    return kinds[proof["type"]](ledger, proof)


def _equivocation(ledger: Ledger, proof: Message) -> Proof:
    rules = ledger.rules()
    first, second = (rules.check(proof[name], proof[f"{name}_signature"]) for name in ("first", "second"))
    _check_conflict(first, second)
    if first.numbered:
        return Proof(first.object, 0, first.order["epoch"], first.version)
    channel = ledger.state.channels[first.object]
    require(channel.status == "open", "CHANNEL_CLOSED")
    return Proof(channel.hold["payee"], 0, ledger.epoch)


def _double_vote(ledger: Ledger, proof: Message) -> Proof:
    rules = ledger.rules(trusting=True)
    first, second = (rules.check(proof[name], "00" * 64) for name in ("first", "second"))
    _check_conflict(first, second)
    for checked, vote in ((first, proof["first_vote"]), (second, proof["second_vote"])):
        ledger.federation.check_key(proof["witness"], checked.vote, vote)
    return Proof(None, proof["witness"], ledger.epoch)


def _check_conflict(first: Checked, second: Checked) -> None:
    same = (first.object, first.version, first.numbered) == (second.object, second.version, second.numbered)
    epochs = {one.order["epoch"] for one in (first, second) if one.numbered}
    refunds = "Refund" in (first.order["type"], second.order["type"])
    require(same and len(epochs) < 2 and first.id != second.id and not refunds, "INVALID_REQUEST")


def take_proof(ledger: Ledger, proof: Proof) -> bool:
    """Keep it. False if it does not count, or is known."""
    if proof.account is None:
        known, named = ledger.double_voters, proof.witness
        counts = named not in known
        known.add(named)
        return counts
    taken = proof.sequence is not None and proof.sequence < ledger.base.account(proof.account).next_sequence
    made_up = proof.sequence is not None and not ledger.state.account(proof.account).in_use
    counts = proof.epoch == ledger.epoch and proof.account not in ledger.resting and not (taken or made_up)
    if counts:
        ledger.resting.add(proof.account)
    return counts
