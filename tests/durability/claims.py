"""What was acknowledged, and whether the stores still stand by it.

Rule: whatever a process said before it was killed holds in every state after it: votes are given again and to no other
order, certificates keep their places in the log, vouchers never fall, settled stays settled. And nothing stands in a
store that its owner did not sign: the audit checks all signatures of orders and votes, and here those of the vouchers
are checked, and that who signed something knows it at least as well as who holds it.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import trio

from node.bookkeeper import Bookkeeper, LedgerDamaged
from node.ledger_peers import Answer, LedgerPeers, PeerUnreachable
from node.open_channels import last_voucher
from node.store import Store, StoreError
from protocol.codec import body_hash, decode, decode_as, encode
from protocol.errors import BadSignature, ErrorCode, Refused
from protocol.ids import ChannelId, NodeId
from protocol.ledger.channels import open_voucher
from protocol.ledger.state import Channel, ChannelStatus, View, voucher_key
from protocol.messages import (
    Certificate,
    Close,
    Grant,
    Hold,
    Message,
    Pay,
    Rejected,
    RequestVote,
    Voted,
)
from protocol.signing import Signer, verify
from tests.durability.small_world import PAYERS, WITNESS, WORKERS, SmallWorld, federation, signers
from tests.durability.wire import Json

NAMES = (WITNESS, *PAYERS, *WORKERS)
RIVALS = 40  # votes tried against another order, at each look
NEVER = (ErrorCode.EQUIVOCATION, ErrorCode.INTERNAL)  # refusals that honest nodes never meet
NO_SECOND_VOTE = (ErrorCode.EQUIVOCATION, ErrorCode.BAD_SEQUENCE, ErrorCode.CHANNEL_CLOSED, ErrorCode.STALE_EPOCH)
PRICES, NEED, TRANSCRIPT = (1_000, 3_000), 3_000, b"t" * 32


@dataclass
class Claims:
    """All that was acknowledged in one world."""

    voted: dict[bytes, tuple[RequestVote, bytes]] = field(default_factory=dict)  # order: request, vote
    certified: set[bytes] = field(default_factory=set)  # orders
    signed: dict[bytes, int] = field(default_factory=dict)  # channel: µcredits
    taken: dict[bytes, int] = field(default_factory=dict)
    closed: set[bytes] = field(default_factory=set)
    log: list[bytes] = field(default_factory=list)  # certificates of the witness, as last seen
    refusals: Counter[str] = field(default_factory=Counter)
    heard: Counter[str] = field(default_factory=Counter)
    fresh: list[bytes] = field(default_factory=list)  # orders voted for since the last look
    problems: list[str] = field(default_factory=list)
    underpaid: list[str] = field(default_factory=list)  # taken after a close whose answer was lost

    def hear(self, said: Json) -> None:
        """Take in a line of a process."""
        self.heard[said["what"]] += 1
        _HEARERS.get(said["what"], _nothing)(self, said)

    def problem(self, text: str) -> None:
        """Something is lost, or claimed without right."""
        self.problems.append(text)


def _voted(claims: Claims, said: Json) -> None:
    body = bytes.fromhex(said["body"])
    request = RequestVote(body, bytes.fromhex(said["signature"]))
    claims.voted[body_hash(body)] = request, bytes.fromhex(said["vote"])
    claims.fresh.append(body_hash(body))


def _stored(claims: Claims, said: Json) -> None:
    claims.certified.add(body_hash(decode_as(Certificate, bytes.fromhex(said["certificate"])).body))


def _granted(claims: Claims, said: Json) -> None:
    claims.certified.add(bytes.fromhex(said["order"]))


def _held(claims: Claims, said: Json) -> None:
    claims.certified.add(bytes.fromhex(said["channel"]))


def _signed(claims: Claims, said: Json) -> None:
    _raise(claims.signed, said)


def _taken(claims: Claims, said: Json) -> None:
    _raise(claims.taken, said)


def _raise(amounts: dict[bytes, int], said: Json) -> None:
    voucher = open_voucher(bytes.fromhex(said["voucher"]))
    amounts[voucher.channel] = max(amounts.get(voucher.channel, 0), voucher.cumulative)


def _closed(claims: Claims, said: Json) -> None:
    claims.closed.add(bytes.fromhex(said["channel"]))


def _refused(claims: Claims, said: Json) -> None:
    claims.refusals[said["code"]] += 1
    if said["code"] in {code.name for code in NEVER}:
        claims.problem(f"an honest node was refused: {said['code']}: {said['message']}")


def _nothing(claims: Claims, said: Json) -> None:
    """A line that claims nothing."""


_HEARERS: dict[str, Callable[[Claims, Json], None]] = {
    "voted": _voted,
    "stored": _stored,
    "granted": _granted,
    "held": _held,
    "signed": _signed,
    "taken": _taken,
    "heard": _taken,
    "closed": _closed,
    "refused": _refused,
}


class NearWitness(LedgerPeers):
    """The witness in this process."""

    def __init__(self) -> None:
        self.book: Bookkeeper | None = None

    async def ask(self, node: NodeId, request: Message, expected: type[Answer]) -> Answer | Rejected:
        """See `LedgerPeers`."""
        if self.book is None or node != self.book.node:
            raise PeerUnreachable("it is not here")
        answer = await self.book.answer(node, request)
        assert isinstance(answer, expected | Rejected)
        return answer

    def connected(self) -> list[NodeId]:
        """See `LedgerPeers`."""
        return []


@dataclass
class Reopened:
    """Bookkeepers of all stores, running in this process."""

    books: dict[str, Bookkeeper]
    stores: dict[str, Store]

    @property
    def witness(self) -> Bookkeeper:
        """The federation's."""
        return self.books[WITNESS]

    def log(self, name: str) -> list[bytes]:
        """All certificates of a replica."""
        view = View(self.stores[name])
        records = (view.record(view.id_at(position) or b"") for position in range(view.log_length))
        return [record for record in records if record is not None]

    def channel(self, name: str, channel: bytes) -> Channel | None:
        """A channel as a replica has it."""
        value = self.stores[name].get(b"c" + channel)
        return None if value is None else Channel.decode(value)


@asynccontextmanager
async def reopened(world: SmallWorld, names: Sequence[str] = NAMES) -> AsyncIterator[Reopened]:
    """Ledgers opened as a node opens them, the witness's first. Raises `StoreError` or `LedgerDamaged`."""
    near = NearWitness()
    books: dict[str, Bookkeeper] = {}
    stores: dict[str, Store] = {}
    async with trio.open_nursery() as nursery:
        for name in names:
            book = world.bookkeeper(name, near, as_intended=True)
            books[name], stores[name] = book, book._store
            if name == WITNESS:
                near.book = book
            await nursery.start(book.run)
        yield Reopened(books, stores)
        nursery.cancel_scope.cancel()


async def look(world: SmallWorld, claims: Claims, chance: random.Random) -> None:
    """Open all stores, check every claim, and see that business goes on. Problems are noted in `claims`."""
    try:
        async with reopened(world) as found:
            await _check_audits(found, claims)
            _check_logs(found, claims)
            _check_orders(found, claims)
            _check_vouchers(found, claims, world.now_ms())
            await _check_business(found, claims, chance)
            claims.log = found.log(WITNESS)
        with tempfile.TemporaryDirectory() as folder:  # a rival is a proof against its owner, who must go on
            copy = replace(world, folder=Path(folder))
            shutil.copytree(world.ledger(WITNESS), copy.ledger(WITNESS))
            async with reopened(copy, (WITNESS,)) as found:
                await _check_votes(found, claims, chance)
    except* (StoreError, LedgerDamaged) as errors:
        for error in errors.exceptions:
            claims.problem(f"a store does not open: {type(error).__name__}: {error}")


async def _check_audits(found: Reopened, claims: Claims) -> None:
    for name, book in found.books.items():
        report = await book.verify(signatures=name == WITNESS)
        if not report.verified or report.sum_micro:
            claims.problem(f"{name}: verify: {report.problems[:3]}, sum {report.sum_micro}")


def _check_logs(found: Reopened, claims: Claims) -> None:
    log = found.log(WITNESS)
    if log[: len(claims.log)] != claims.log:
        claims.problem(f"the witness's log of {len(log)} does not continue the one of {len(claims.log)} seen before")
    for name in (*PAYERS, *WORKERS):
        replica = found.log(name)
        if replica != log[: len(replica)]:
            claims.problem(f"{name}'s log of {len(replica)} is no beginning of the witness's, {len(log)}")


def _check_orders(found: Reopened, claims: Claims) -> None:
    orders = [decode_as(Certificate, data).body for data in found.log(WITNESS)]
    there = {body_hash(body) for body in orders}
    for what, claimed in (("certificate", claims.certified), ("order voted for", claims.voted.keys())):
        for order in claimed - there:
            claims.problem(f"{what} {order.hex()[:12]} is lost")
    closes = (decode(body) for body in orders)
    closed = {close.channel for close in closes if isinstance(close, Close)}
    for channel in claims.closed - closed:
        claims.problem(f"the close of {channel.hex()[:12]} is lost")


def _check_vouchers(found: Reopened, claims: Claims, now_ms: int) -> None:
    names = {key.node: name for name, key in signers().items()}
    channels = {data[1:]: Channel.decode(value) for data, value in found.stores[WITNESS].iterate(b"c")}
    for channel, state in channels.items():
        id_ = ChannelId(channel)
        signed = last_voucher(found.stores[names[state.payer]], id_).cumulative
        taken = last_voucher(found.stores[names[state.payee]], id_).cumulative
        short = channel.hex()[:12]
        for holder in (state.payer, state.payee):
            _check_signature(found.stores[names[holder]], id_, state, claims)
        if signed < claims.signed.get(channel, 0):
            claims.problem(f"{short}: {claims.signed[channel]} signed, the payer knows of {signed}")
        if taken < claims.taken.get(channel, 0):
            claims.problem(f"{short}: {claims.taken[channel]} taken, the worker knows of {taken}")
        if max(taken, state.paid) > signed:
            claims.problem(f"{short}: the payer signed {signed}, the worker has {taken} and was paid {state.paid}")
        if state.status is ChannelStatus.CLOSED and state.paid < claims.taken.get(channel, 0):
            claims.underpaid.append(f"{short}: {claims.taken[channel]} taken, settled for {state.paid}")
        if state.status is ChannelStatus.REFUNDED and state.expiry_ms > now_ms:
            claims.problem(f"{short}: refunded before its expiry")
    for channel in (claims.signed.keys() | claims.taken.keys()) - channels.keys():
        claims.problem(f"{channel.hex()[:12]}: a voucher was acknowledged, its hold is lost")


def _check_signature(store: Store, channel: ChannelId, state: Channel, claims: Claims) -> None:
    stored = store.get(voucher_key(channel))
    if stored is None:
        return
    pay = decode_as(Pay, stored)
    try:
        verify(state.payer, federation().id, pay.voucher, pay.signature)
    except BadSignature:
        claims.problem(f"{channel.hex()[:12]}: a stored voucher was never signed by its payer")


async def _check_votes(found: Reopened, claims: Claims, chance: random.Random) -> None:
    """The same vote for the same order, none for another with the same number."""
    older = chance.sample(sorted(claims.voted), min(RIVALS // 4, len(claims.voted)))
    for order in [*claims.fresh[-RIVALS:], *older]:
        request, vote = claims.voted[order]
        again = await found.witness.answer(found.witness.node, request)
        if not isinstance(again, Voted) or again.signature != vote:
            claims.problem(f"order {order.hex()[:12]}: the witness does not give its vote again: {again}")
        rival = rival_of(found, request)
        answer = None if rival is None else await found.witness.answer(found.witness.node, rival)
        refused = isinstance(answer, Rejected) and answer.code in NO_SECOND_VOTE
        if answer is not None and not refused:
            claims.problem(f"order {order.hex()[:12]}: a rival with the same number got {answer}")
    claims.fresh.clear()


def rival_of(found: Reopened, request: RequestVote) -> RequestVote | None:
    """Another order with the same number, well signed by the same owner; None if there is none."""
    order = decode(request.body)
    owners = {key.node: key for key in signers().values()}
    if isinstance(order, Hold):
        return _signed_request(owners[order.payer], replace(order, expiry_ms=order.expiry_ms - 1))
    if isinstance(order, Grant):
        return _signed_request(owners[order.issuer], replace(order, amount=order.amount + 1))
    state = found.channel(WITNESS, order.channel) if isinstance(order, Close) else None
    if state is None or not isinstance(order, Close):
        return None
    lower = replace(open_voucher(order.voucher), cumulative=0, units_in=0, units_out=0)
    pay = _signed_request(owners[state.payer], lower)
    return _signed_request(owners[state.payee], Close(order.channel, pay.body, pay.signature))


def _signed_request(owner: Signer, message: Message) -> RequestVote:
    body = encode(message)
    return RequestVote(body, owner.sign(federation().id, body))


async def _check_business(found: Reopened, claims: Claims, chance: random.Random) -> None:
    """Everybody can still grant, hold, sign, take and close. What happens here is acknowledged too."""
    keys = signers()
    payer, worker = chance.choice(PAYERS), chance.choice(WORKERS)
    paying, paid = found.books[payer], found.books[worker]
    try:
        claims.certified.add(bytes.fromhex(await found.witness.grant(keys[payer].node, 100_000)))
        await paying.sync()
        async with paying.lease(keys[worker].node, *PRICES, bytes(32), NEED) as lease, paid.serving(lease.channel):
            await paid.cover(lease.channel, keys[payer].node)
            pay = await lease.sign(lease.units_in + 1, lease.units_out + 1, TRANSCRIPT)
            lease.confirm(
                await paid.take_voucher(lease.channel, pay, lease.units_in + 1, lease.units_out + 1, TRANSCRIPT)
            )
        await paid.close(lease.channel)
        claims.certified.add(lease.channel)
        claims.closed.add(lease.channel)
    except Refused as refusal:
        claims.problem(f"business does not go on between {payer} and {worker}: {refusal.code.name}: {refusal}")
