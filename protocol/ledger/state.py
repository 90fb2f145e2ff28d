"""The ledger's state as a mapping of bytes to bytes, and the typed view of it.

Rule: a key's first byte says what it holds; a value has one encoding. Everything here is derived from the
certificates, except the vote locks and what nodes keep for themselves (vouchers, quota, journal).

    m:<name>                meta: schema, log length, epoch, where the epoch began in the log, the epoch change
    a<account 32>           balance, next sequence, head, owner, recovery key, totals, keys
    b<account 32><seq u64>  id of the account's order with that number
    c<channel 32>           the channel
    o<channel 32>           empty; present while the channel is open
    l<object 32><ver u64>   this witness's vote and the order it is for
    r<id 32>                its position in the log (u64), then its certificate or decision
    n<position u64>         the log: id of what was applied as number `position`
    k<epoch u64>            id of the checkpoint that opened an epoch
    s<epoch u64><key>       the state at the beginning of an epoch: copies of `a`, `c`, `o`
    e<account 32>           epoch (u64) and proof of an equivocation: the account is frozen in that epoch
    w<witness u8>           proof that a witness voted twice
    v<channel 32>           the channel's best voucher (an encoded Pay)
    q<day u32>[peer 32]     free quota used, in tokens
    h<position u64>         journal: what this node's owner reads
    i<id 32>                journal position of an id
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from heapq import merge
from typing import Protocol

from protocol.ids import NO_HASH, ChannelId, FederationId, NodeId
from protocol.messages import Hold
from protocol.signing import verify as verify_signature

_U64 = struct.Struct(">Q")
_ACCOUNT = struct.Struct(">qQ32s32sQQQH")
_KEY_SINCE = struct.Struct(">Q32s")
_CHANNEL = struct.Struct(">32s32sQQQQ32sBQ")
_LOCK = struct.Struct(">32s64s64sQ")

LOG_LENGTH = b"m:log"
LOG_FIRST = b"m:log-first"  # the first position that was not pruned
FIRST_EPOCH = b"m:first-epoch"  # the first whose orders were not pruned
EPOCH = b"m:epoch"
EPOCH_START = b"m:epoch-start"  # the log's length when the epoch began
EPOCH_TIME = b"m:epoch-time"  # Unix ms of the checkpoint that opened it; none in the first
ABSTAIN = b"m:abstain"  # the last epoch (u64) in which this witness does not vote: its storage was set back
SILENT = b"m:silent"  # holds before this place in the log were open then: no vote for their settlements, ever

STATE_KINDS = (b"a", b"c", b"o")  # the prefixes that orders change, beside the log


class Reader(Protocol):
    """A mapping that can be read."""

    def get(self, key: bytes, /) -> bytes | None:
        """The value of `key`, None if there is none."""


class Iterable(Reader, Protocol):
    """A mapping that can be walked in the order of its keys."""

    def iterate(self, prefix: bytes = b"", start: bytes = b"", reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """Pairs whose key begins with `prefix`, from the key `start` on (down from it, `start` excluded, if
        `reverse`)."""


Verify = Callable[[NodeId, FederationId, bytes, bytes], None]
Puts = dict[bytes, bytes | None]  # changes; None deletes


@dataclass(frozen=True, slots=True)
class Account:
    """One account. `head` is the id of its last order, or the hash of the account itself."""

    balance: int  # µcredits; below 0 for issuers only
    next_sequence: int
    head: bytes
    owner: bytes = NO_HASH  # the account that it belongs to
    earned: int = 0  # by settled channels, µcredits over its life
    spent: int = 0
    sub_accounts: int = 0  # attached to it
    rotations: tuple[tuple[int, NodeId], ...] = ()  # (sequence from which on, key)
    recoveries: tuple[tuple[int, NodeId], ...] = ()  # the keys that may rotate it, likewise

    @property
    def known(self) -> bool:
        """True once credits or an order touched it."""
        return self.balance != 0 or self.next_sequence > 0

    def key_at(self, account: bytes, sequence: int) -> NodeId:
        """The key that signs the order with that number, as far as is known here."""
        return _at(self.rotations, sequence) or NodeId(account)

    def recovery_at(self, sequence: int) -> NodeId | None:
        """The recovery key when the order with that number was made."""
        return _at(self.recoveries, sequence)

    def encode(self) -> bytes:
        """122 bytes, and 40 for each rotation and recovery key."""
        fixed = _ACCOUNT.pack(
            self.balance,
            self.next_sequence,
            self.head,
            self.owner,
            self.earned,
            self.spent,
            self.sub_accounts,
            len(self.rotations),
        )
        return fixed + b"".join(_KEY_SINCE.pack(*since) for since in (*self.rotations, *self.recoveries))

    @classmethod
    def decode(cls, value: bytes) -> Account:
        """The inverse of `encode`."""
        keys = tuple((since, NodeId(key)) for since, key in _KEY_SINCE.iter_unpack(value[_ACCOUNT.size :]))
        balance, following, head, owner, earned, spent, sub_accounts, rotations = _ACCOUNT.unpack_from(value)
        return cls(balance, following, head, owner, earned, spent, sub_accounts, keys[:rotations], keys[rotations:])


def _at(keys: tuple[tuple[int, NodeId], ...], sequence: int) -> NodeId | None:
    """The last key whose time has come."""
    found = [key for since, key in keys if since <= sequence]
    return found[-1] if found else None


class ChannelStatus(IntEnum):
    """A channel is settled once, in one of two ways."""

    OPEN = 0
    CLOSED = 1
    REFUNDED = 2


@dataclass(frozen=True, slots=True)
class Channel:
    """One hold, and how it ended. `paid` is 0 until it is closed."""

    payer: NodeId
    payee: NodeId
    amount: int
    price_in: int
    price_out: int
    expiry_ms: int
    settled_by: bytes  # hash of the order that settled it; zeros while open
    status: ChannelStatus
    paid: int

    @classmethod
    def opened(cls, hold: Hold) -> Channel:
        """The channel that a hold opens."""
        return cls(
            hold.payer,
            hold.payee,
            hold.amount,
            hold.price_in,
            hold.price_out,
            hold.expiry_ms,
            bytes(32),
            ChannelStatus.OPEN,
            0,
        )

    @property
    def open(self) -> bool:
        """True until it is closed or refunded."""
        return self.status is ChannelStatus.OPEN

    def encode(self) -> bytes:
        """137 bytes."""
        return _CHANNEL.pack(
            self.payer,
            self.payee,
            self.amount,
            self.price_in,
            self.price_out,
            self.expiry_ms,
            self.settled_by,
            self.status,
            self.paid,
        )

    @classmethod
    def decode(cls, value: bytes) -> Channel:
        """The inverse of `encode`."""
        payer, payee, amount, price_in, price_out, expiry, settled_by, status, paid = _CHANNEL.unpack(value)
        return cls(payer, payee, amount, price_in, price_out, expiry, settled_by, ChannelStatus(status), paid)


@dataclass(frozen=True, slots=True)
class Lock:
    """A witness's one vote for an (object, version), with the order itself: a second one is then provable."""

    order: bytes  # hash of `body`
    vote: bytes  # this witness's signature
    signature: bytes  # the owner's, over `body`
    epoch: int  # in which it was given
    body: bytes

    def encode(self) -> bytes:
        """Id, both signatures, epoch, body."""
        return _LOCK.pack(self.order, self.vote, self.signature, self.epoch) + self.body

    @classmethod
    def decode(cls, value: bytes) -> Lock:
        """The inverse of `encode`."""
        order, vote, signature, epoch = _LOCK.unpack_from(value)
        return cls(order, vote, signature, epoch, value[_LOCK.size :])


class Draft:
    """A mapping with changes that are not yet written. A value of None is a deletion."""

    def __init__(self, under: Iterable) -> None:
        self._under = under
        self.puts: Puts = {}

    def get(self, key: bytes, /) -> bytes | None:
        """The changed value, else the one below."""
        return self.puts[key] if key in self.puts else self._under.get(key)

    def iterate(self, prefix: bytes = b"", start: bytes = b"", reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """See `Iterable`; forwards only. What lies below is read as it is walked."""
        assert not reverse
        changed = sorted(key for key in self.puts if key.startswith(prefix) and key >= start)
        below = ((key, value) for key, value in self._under.iterate(prefix, start) if key not in self.puts)
        ours = ((key, value) for key in changed if (value := self.puts[key]) is not None)
        return merge(below, ours)

    def update(self, puts: Mapping[bytes, bytes | None]) -> None:
        """Take changes in. Cannot fail."""
        self.puts.update(puts)


class Nothing:
    """The empty mapping: what was before the first order."""

    def get(self, key: bytes, /) -> bytes | None:
        """Nothing."""
        return None

    def iterate(self, prefix: bytes = b"", start: bytes = b"", reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """Nothing."""
        return iter(())


class Base:
    """The state at the beginning of an epoch, under the keys that it had then."""

    def __init__(self, stored: Iterable, epoch: int) -> None:
        self._stored = stored
        self._prefix = base_key(epoch, b"")

    def get(self, key: bytes, /) -> bytes | None:
        """See `Reader`."""
        return self._stored.get(self._prefix + key)

    def iterate(self, prefix: bytes = b"", start: bytes = b"", reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """See `Iterable`; forwards only."""
        assert not reverse
        cut = len(self._prefix)
        pairs = self._stored.iterate(self._prefix + prefix, self._prefix + start if start else b"")
        return ((key[cut:], value) for key, value in pairs)


class View:
    """Typed reading of a mapping."""

    def __init__(self, reader: Reader, verify: Verify = verify_signature) -> None:
        self.reader = reader
        self.verify = verify

    def account(self, account: bytes) -> Account:
        """An account; one that nobody has mentioned is empty and its head is its own hash."""
        value = self.reader.get(account_key(account))
        return Account(0, 0, first_head(account)) if value is None else Account.decode(value)

    def channel(self, channel: bytes) -> Channel | None:
        """A channel, None if no certificate of its hold was applied."""
        value = self.reader.get(channel_key(channel))
        return None if value is None else Channel.decode(value)

    def lock(self, object_id: bytes, version: int) -> Lock | None:
        """This witness's vote, None if it has not voted."""
        value = self.reader.get(lock_key(object_id, version))
        return None if value is None else Lock.decode(value)

    def order_at(self, account: bytes, sequence: int) -> bytes | None:
        """The hash of the account's order with that number."""
        return self.reader.get(order_key(account, sequence))

    def record(self, identity: bytes) -> bytes | None:
        """The certificate of an applied order, or an adopted decision."""
        value = self.reader.get(certificate_key(identity))
        return None if value is None else split_number(value)[1]

    def position(self, order: bytes) -> int | None:
        """The place of an applied order in this node's log."""
        value = self.reader.get(certificate_key(order))
        return None if value is None else split_number(value)[0]

    def id_at(self, position: int) -> bytes | None:
        """The id at a place of the log."""
        return self.reader.get(log_key(position))

    def logged(self, position: int) -> bytes | None:
        """The record at a place of the log; None for an order that an epoch change made void, even if it was applied
        again later and stands at another place, too."""
        found = self.entry(position)
        return None if found is None else found[1]

    def entry(self, position: int) -> tuple[bytes, bytes] | None:
        """The id and the record at a place of the log, as `logged`."""
        identity = self.id_at(position)
        value = None if identity is None else self.reader.get(certificate_key(identity))
        if identity is None or value is None:
            return None
        place, record = split_number(value)
        return (identity, record) if place == position else None

    def frozen(self, account: bytes) -> bool:
        """True if the account's owner equivocated in this epoch."""
        value = self.reader.get(equivocation_key(account))
        return value is not None and split_number(value)[0] == self.epoch

    def checkpoint(self, epoch: int) -> bytes | None:
        """The id of the checkpoint that opened an epoch."""
        return self.reader.get(checkpoint_key(epoch))

    @property
    def log_length(self) -> int:
        """How many certificates were applied."""
        return read_number(self.reader, LOG_LENGTH)

    @property
    def epoch(self) -> int:
        """The epoch in force."""
        return read_number(self.reader, EPOCH)

    @property
    def epoch_start(self) -> int:
        """The log's length when the epoch began."""
        return read_number(self.reader, EPOCH_START)

    @property
    def first_epoch(self) -> int:
        """The first epoch whose orders were not pruned."""
        return read_number(self.reader, FIRST_EPOCH)

    @property
    def log_first(self) -> int:
        """The first place of the log that was not pruned."""
        return read_number(self.reader, LOG_FIRST)

    @property
    def abstaining(self) -> bool:
        """True if this witness was set back, and this epoch is one in which it may have signed what it forgot."""
        value = self.reader.get(ABSTAIN)
        return value is not None and number(value) >= self.epoch

    def may_have_settled(self, channel: bytes) -> bool:
        """True if this witness was set back while the channel was open: it may have voted for a settlement."""
        until = read_number(self.reader, SILENT)
        position = self.position(channel) if until else None
        return until > 0 and (position is None or position < until)


def open_channels(stored: Iterable) -> Iterator[tuple[ChannelId, Channel]]:
    """The open channels, ascending by their ids."""
    view = View(stored)
    for key, _ in stored.iterate(b"o"):
        channel = view.channel(key[1:])
        if channel is not None:  # written together: missing in a damaged ledger only
            yield ChannelId(key[1:]), channel


def first_head(account: bytes) -> bytes:
    """What the first order of an account names as its predecessor."""
    return hashlib.sha256(account).digest()


def read_number(reader: Reader, key: bytes) -> int:
    """A stored u64; 0 if there is none."""
    value = reader.get(key)
    return 0 if value is None else number(value)


def split_number(value: bytes) -> tuple[int, bytes]:
    """The u64 in front of a stored value, and what stands behind it."""
    return number(value[: _U64.size]), value[_U64.size :]


def number(value: bytes) -> int:
    """The u64 in eight bytes."""
    decoded: int = _U64.unpack(value)[0]
    return decoded


def u64(value: int) -> bytes:
    """Eight bytes, big-endian: sorts like the number."""
    return _U64.pack(value)


def account_key(account: bytes) -> bytes:
    """Key of an account."""
    return b"a" + account


def order_key(account: bytes, sequence: int) -> bytes:
    """Key of an account's order hash."""
    return b"b" + account + u64(sequence)


def channel_key(channel: bytes) -> bytes:
    """Key of a channel."""
    return b"c" + channel


def lock_key(object_id: bytes, version: int) -> bytes:
    """Key of a vote lock."""
    return b"l" + object_id + u64(version)


def certificate_key(order: bytes) -> bytes:
    """Key of a certificate."""
    return b"r" + order


def log_key(position: int) -> bytes:
    """Key of a place in the log."""
    return b"n" + u64(position)


def open_key(channel: bytes) -> bytes:
    """Key that is present while a channel is open."""
    return b"o" + channel


def checkpoint_key(epoch: int) -> bytes:
    """Key of the id of the checkpoint that opened an epoch."""
    return b"k" + u64(epoch)


def base_key(epoch: int, key: bytes) -> bytes:
    """Key of the copy of `key` as it was at the beginning of an epoch."""
    return b"s" + u64(epoch) + key


def equivocation_key(account: bytes) -> bytes:
    """Key of the proof against an account."""
    return b"e" + account


def double_vote_key(witness: int) -> bytes:
    """Key of the proof against a witness."""
    return b"w" + bytes([witness])


def voucher_key(channel: ChannelId) -> bytes:
    """Key of a channel's best voucher."""
    return b"v" + channel
