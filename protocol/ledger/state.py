"""The ledger's state as a mapping of bytes to bytes, and the typed view of it.

Rule: a key's first byte says what it holds; a value has one encoding. Everything here is derived from the
certificates, except the vote locks and what nodes keep for themselves (vouchers, quota, journal).

    m:<name>                meta: schema, log length, epoch
    a<account 32>           balance, next sequence, head
    b<account 32><seq u64>  hash of the account's order with that number
    c<channel 32>           the channel
    l<object 32><ver u64>   this witness's vote and the order it is for
    r<order hash 32>        its position in the log (u64), then its certificate
    n<position u64>         the log: hash of the order applied as number `position`
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
from typing import Protocol

from protocol.ids import ChannelId, FederationId, NodeId
from protocol.messages import Hold
from protocol.signing import verify as verify_signature

_U64 = struct.Struct(">Q")
_ACCOUNT = struct.Struct(">qQ32s")
_CHANNEL = struct.Struct(">32s32sQQQQ32sBQ")
_LOCK = struct.Struct(">32s64s64s")

LOG_LENGTH = b"m:log"
EPOCH = b"m:epoch"


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


@dataclass(frozen=True, slots=True)
class Account:
    """One account. `head` is the hash of its last order, or of the account itself."""

    balance: int  # µcredits; below 0 for issuers only
    next_sequence: int
    head: bytes

    def encode(self) -> bytes:
        """48 bytes."""
        return _ACCOUNT.pack(self.balance, self.next_sequence, self.head)

    @classmethod
    def decode(cls, value: bytes) -> Account:
        """The inverse of `encode`."""
        return cls(*_ACCOUNT.unpack(value))


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
    body: bytes

    def encode(self) -> bytes:
        """Hash, both signatures, body."""
        return _LOCK.pack(self.order, self.vote, self.signature) + self.body

    @classmethod
    def decode(cls, value: bytes) -> Lock:
        """The inverse of `encode`."""
        order, vote, signature = _LOCK.unpack_from(value)
        return cls(order, vote, signature, value[_LOCK.size :])


class Draft:
    """A mapping with changes that are not yet written. A value of None is a deletion."""

    def __init__(self, under: Reader) -> None:
        self._under = under
        self.puts: dict[bytes, bytes | None] = {}

    def get(self, key: bytes, /) -> bytes | None:
        """The changed value, else the one below."""
        return self.puts[key] if key in self.puts else self._under.get(key)

    def update(self, puts: Mapping[bytes, bytes | None]) -> None:
        """Take changes in. Cannot fail."""
        self.puts.update(puts)


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

    def certificate(self, order: bytes) -> bytes | None:
        """The certificate of an applied order."""
        value = self.reader.get(certificate_key(order))
        return None if value is None else value[_U64.size :]

    def position(self, order: bytes) -> int | None:
        """The place of an applied order in this node's log."""
        value = self.reader.get(certificate_key(order))
        return None if value is None else number(value[: _U64.size])

    def logged(self, position: int) -> bytes | None:
        """The certificate at a place of the log."""
        order = self.reader.get(log_key(position))
        return None if order is None else self.certificate(order)

    @property
    def log_length(self) -> int:
        """How many certificates were applied."""
        return read_number(self.reader, LOG_LENGTH)

    @property
    def epoch(self) -> int:
        """The epoch in force."""
        return read_number(self.reader, EPOCH)


def first_head(account: bytes) -> bytes:
    """What the first order of an account names as its predecessor."""
    return hashlib.sha256(account).digest()


def read_number(reader: Reader, key: bytes) -> int:
    """A stored u64; 0 if there is none."""
    value = reader.get(key)
    return 0 if value is None else number(value)


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


def voucher_key(channel: ChannelId) -> bytes:
    """Key of a channel's best voucher."""
    return b"v" + channel
