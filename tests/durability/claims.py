"""What was acknowledged, and whether the stores still stand by it.

Rule: whatever a process said before it was killed holds in every state after it: votes are given again and to no other
order, what a quorum stored in one epoch is in every quorum's logs, a witness never contradicts what it signed while an
epoch ended, vouchers never fall, settled stays settled. And nothing stands in a store that its owner did not sign: the
audit checks all signatures of orders, votes and decisions, and here those of the vouchers are checked, and that who
signed something knows it at least as well as who holds it.
"""

from __future__ import annotations

import itertools
import random
import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import trio

from node import epoch_change
from node.bookkeeper import Bookkeeper, LedgerDamaged
from node.ledger_peers import Answer, LedgerPeers, PeerUnreachable
from node.open_channels import last_voucher
from node.quorum import refused
from node.store import Store, StoreError
from protocol.codec import body_hash, decode, decode_as, encode
from protocol.errors import BadSignature, ErrorCode, Refused
from protocol.ids import ChannelId, NodeId
from protocol.ledger.channels import open_voucher
from protocol.ledger.genesis import Federation
from protocol.ledger.orders import AccountOrder
from protocol.ledger.state import Channel, ChannelStatus, View, voucher_key
from protocol.messages import (
    Certificate,
    Checkpoint,
    Close,
    Grant,
    Hold,
    Message,
    Pay,
    Rejected,
    RequestVote,
    StoreCertificate,
    Voted,
)
from protocol.signing import Signer, verify
from tests.durability.small_world import PAYERS, WORKERS, SmallWorld
from tests.durability.wire import Json

RIVALS = 40  # votes tried against another order, at each look
NEVER = (ErrorCode.EQUIVOCATION, ErrorCode.INTERNAL)  # refusals that honest nodes never meet
NO_SECOND_VOTE = (ErrorCode.EQUIVOCATION, ErrorCode.BAD_SEQUENCE, ErrorCode.CHANNEL_CLOSED, ErrorCode.STALE_EPOCH)
PRICES, NEED, TRANSCRIPT = (1_000, 3_000), 3_000, b"t" * 32
AGREE_CHANCE = 0.25  # of the looks end an epoch and compare all nodes
AGREEMENT_ROUNDS = 3  # in which all hear of what one did while the others were asked
ATTEMPTS = 8  # at ending an epoch that witnesses have frozen


@dataclass
class Claims:
    """All that was acknowledged in one world."""

    quorum: int
    liars: int = 0  # with some there are attackers, too
    proofs: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))  # as each witness knew of them
    voted: dict[tuple[str, bytes], tuple[RequestVote, bytes]] = field(default_factory=dict)  # (witness, order)
    stored: defaultdict[tuple[bytes, int], set[str]] = field(default_factory=lambda: defaultdict(set))  # order, epoch
    certified: set[bytes] = field(default_factory=set)  # final orders, as their owners or payees were told
    signed: dict[bytes, int] = field(default_factory=dict)  # channel: µcredits
    taken: dict[bytes, int] = field(default_factory=dict)
    closed: set[bytes] = field(default_factory=set)
    epochs: Counter[str] = field(default_factory=Counter)  # the last one that a node said to be in
    words: dict[tuple[object, ...], object] = field(default_factory=dict)  # what may be signed once
    prepared: Counter[tuple[str, int]] = field(default_factory=Counter)  # (witness, epoch): its last commit's round + 1
    logs: dict[str, list[bytes]] = field(default_factory=dict)  # ids, as last seen
    refusals: Counter[str] = field(default_factory=Counter)
    heard: Counter[str] = field(default_factory=Counter)
    fresh: list[tuple[str, bytes]] = field(default_factory=list)  # votes since the last look
    problems: list[str] = field(default_factory=list)
    underpaid: list[str] = field(default_factory=list)  # taken after a close whose answer was lost

    def hear(self, said: Json) -> None:
        """Take in a line of a process."""
        self.heard[said["what"]] += 1
        _HEARERS.get(said["what"], _nothing)(self, said)

    def problem(self, text: str) -> None:
        """Something is lost, or claimed without right."""
        self.problems.append(text)

    def final(self) -> set[bytes]:
        """Orders that are final, by what the witnesses or those concerned said."""
        return self.certified | {order for (order, _), by in self.stored.items() if len(by) >= self.quorum}

    def word(self, value: object, *key: object) -> None:
        """A witness signed a statement of which there may be one."""
        if self.words.setdefault(key, value) != value:
            self.problem(f"two signed statements: {key}: {self.words[key]} and {value}")


def _voted(claims: Claims, said: Json) -> None:
    body = bytes.fromhex(said["body"])
    request = RequestVote(body, bytes.fromhex(said["signature"]))
    key = said["by"], body_hash(body)
    claims.voted[key] = request, bytes.fromhex(said["vote"])
    claims.fresh.append(key)


def _stored(claims: Claims, said: Json) -> None:
    order = body_hash(decode_as(Certificate, bytes.fromhex(said["certificate"])).body)
    claims.stored[order, said["epoch"]].add(said["by"])
    _epoch(claims, said)


def _epoch(claims: Claims, said: Json) -> None:
    claims.epochs[said["by"]] = max(claims.epochs[said["by"]], said["epoch"])


def _joined(claims: Claims, said: Json) -> None:
    by, epoch = said["by"], said["epoch"]
    claims.word(tuple(said["it"]), "snapshot", by, epoch)
    if said["prepared"] < claims.prepared[by, epoch]:
        claims.problem(f"{by} joins round {said['round']} of epoch {epoch} and forgets what it has committed to")


def _balloted(claims: Claims, said: Json) -> None:
    data = bytes.fromhex(said["checkpoint"])
    epoch = decode_as(Checkpoint, data).epoch - 1
    claims.word(body_hash(data).hex(), "ballot", said["by"], epoch, said["round"])


def _committed(claims: Claims, said: Json) -> None:
    data = bytes.fromhex(said["checkpoint"])
    key = said["by"], decode_as(Checkpoint, data).epoch - 1
    claims.prepared[key] = max(claims.prepared[key], said["round"] + 1)


def _granted(claims: Claims, said: Json) -> None:
    claims.certified.add(bytes.fromhex(said["order"]))


def _held(claims: Claims, said: Json) -> None:
    if claims.quorum == 1:  # with several it may be one that its payer found in a log, and its payee makes it final
        claims.certified.add(bytes.fromhex(said["channel"]))


def _signed(claims: Claims, said: Json) -> None:
    _raise(claims.signed, said)


def _taken(claims: Claims, said: Json) -> None:
    claims.certified.add(_raise(claims.taken, said))


def _raise(amounts: dict[bytes, int], said: Json) -> bytes:
    voucher = open_voucher(bytes.fromhex(said["voucher"]))
    amounts[voucher.channel] = max(amounts.get(voucher.channel, 0), voucher.cumulative)
    return voucher.channel


def _closed(claims: Claims, said: Json) -> None:
    claims.closed.add(bytes.fromhex(said["channel"]))


def _refused(claims: Claims, said: Json) -> None:
    claims.refusals[said["code"]] += 1
    behind = claims.liars and said["code"] == ErrorCode.EQUIVOCATION.name
    if behind:  # witnesses that have not heard of a new epoch yet remember an order that is void; no proof comes of it
        return
    if said["code"] in {code.name for code in NEVER}:
        claims.problem(f"an honest node was refused: {said['code']}: {said['message']}")


def _not_served(claims: Claims, said: Json) -> None:
    if claims.liars:  # an attacker is told what he did
        claims.refusals[f"not served: {said['code']}"] += 1
    else:
        _refused(claims, said)


def _proofs(claims: Claims, said: Json) -> None:
    claims.proofs[said["by"]].update(said["known"])
    if said["known"] and not claims.liars:
        claims.problem(f"{said['by']} has proofs where all are honest: {said['known']}")


def _nothing(claims: Claims, said: Json) -> None:
    """A line that claims nothing."""


_HEARERS: dict[str, Callable[[Claims, Json], None]] = {
    "voted": _voted,
    "stored": _stored,
    "epoch": _epoch,
    "joined": _joined,
    "balloted": _balloted,
    "committed": _committed,
    "granted": _granted,
    "held": _held,
    "signed": _signed,
    "taken": _taken,
    "heard": _taken,
    "closed": _closed,
    "refused": _refused,
    "not served": _not_served,
    "proofs": _proofs,
}


class NearPeers(LedgerPeers):
    """Ledgers in this process."""

    def __init__(self, own: NodeId, books: Mapping[NodeId, Bookkeeper]) -> None:
        self._own = own
        self._books = books

    async def ask(self, node: NodeId, request: Message, expected: type[Answer]) -> Answer | Rejected:
        """See `LedgerPeers`."""
        if node not in self._books:
            raise PeerUnreachable("it is not here")
        answer = await self._books[node].answer(self._own, request)
        assert isinstance(answer, expected | Rejected)
        return answer

    def connected(self) -> list[NodeId]:
        """See `LedgerPeers`."""
        return [node for node in self._books if node != self._own]


@dataclass
class Reopened:
    """Bookkeepers of all stores, running in this process."""

    world: SmallWorld
    books: dict[str, Bookkeeper]
    stores: dict[str, Store]

    @property
    def witnesses(self) -> list[Bookkeeper]:
        """The honest ones, in the order of genesis."""
        return [self.books[name] for name in self.world.honest]

    def view(self, name: str) -> View:
        """A replica."""
        return View(self.stores[name])

    def log(self, name: str) -> list[bytes]:
        """The ids in a replica's log, those of void orders too."""
        view = self.view(name)
        return [view.id_at(position) or b"" for position in range(view.log_length)]

    def channel(self, name: str, channel: bytes) -> Channel | None:
        """A channel as a replica has it."""
        return self.view(name).channel(channel)

    def witnesses_with(self, order: bytes) -> list[str]:
        """Who has an order in its log."""
        return [name for name in self.world.honest if self.view(name).record(order) is not None]

    async def end_epoch(self) -> None:
        """All agree, one proposes. Raises `Refused`."""
        for attempt in range(ATTEMPTS):
            for book in self.witnesses:  # again each time: one may have agreed to an end that it had not heard of
                await book.epochs.accept()
            try:
                await self.witnesses[attempt % len(self.witnesses)].epochs.end()
                return
            except Refused:
                if attempt == ATTEMPTS - 1:
                    raise
                await trio.sleep(epoch_change.ROUND_SECONDS * 2**attempt)

    async def hand_in(self) -> None:
        """Bring the witnesses what only others have. Raises `Refused`.

        A Byzantine witness gives replicas a certificate that it kept from the rest. An account order is void with its
        epoch, but a Close is applied again (chapter 09), and is good for as long as its channel is open."""
        for name, store in self.stores.items():
            view = View(store)
            records = map(view.logged, range(view.epoch_start, view.log_length))
            for record, book in itertools.product(filter(None, records), self.witnesses):
                answer = await book.answer(self.world.signers[name].node, StoreCertificate(record))
                if isinstance(answer, Rejected):
                    raise refused(answer)


@asynccontextmanager
async def reopened(world: SmallWorld, names: Sequence[str] = ()) -> AsyncIterator[Reopened]:
    """Ledgers opened as a node opens them; by default all. Raises `StoreError` or `LedgerDamaged`."""
    near: dict[NodeId, Bookkeeper] = {}
    books: dict[str, Bookkeeper] = {}
    stores: dict[str, Store] = {}
    async with trio.open_nursery() as nursery:
        for name in names or world.names:
            node = world.signers[name].node
            book = world.bookkeeper(name, NearPeers(node, near), as_intended=True)
            books[name], stores[name] = book, book._store
            await nursery.start(book.run)
            near[node] = book
        yield Reopened(world, books, stores)
        nursery.cancel_scope.cancel()


async def look(world: SmallWorld, claims: Claims, chance: random.Random, last: bool = False) -> None:
    """Open all stores, check every claim, and see that business goes on; now and then, and at the `last` look, that
    all agree. Problems are noted in `claims`."""
    try:
        with tempfile.TemporaryDirectory() as folder:  # a rival is a proof against its owner, who must go on
            copy = replace(world, folder=Path(folder))
            for name in world.honest:
                if world.home(name).exists():
                    shutil.copytree(world.home(name), copy.home(name))
            async with reopened(copy, world.honest) as found:
                await _check_votes(found, claims, chance)
        async with reopened(world) as found:
            await _check_audits(found, claims)
            _check_logs(found, claims)
            _check_orders(found, claims)
            await _heal(found, claims)
            _check_vouchers(found, claims, world.now_ms())
            await _check_business(found, claims, chance)
            if last or chance.random() < AGREE_CHANCE:
                await _check_agreement(found, claims)
            if last and claims.liars:
                await _check_paid(found, claims)
            claims.logs = {name: found.log(name) for name in world.names}
    except* (StoreError, LedgerDamaged) as errors:
        for error in errors.exceptions:
            claims.problem(f"a store does not open: {type(error).__name__}: {error}")


async def _check_audits(found: Reopened, claims: Claims) -> None:
    for name, book in found.books.items():
        report = await book.verify(signatures=True)
        if not report.verified or report.sum_micro:
            claims.problem(f"{name}: verify: {report.problems[:3]}, sum {report.sum_micro}")


def _check_logs(found: Reopened, claims: Claims) -> None:
    logs = {name: found.log(name) for name in found.books}
    for name, log in logs.items():
        before = claims.logs.get(name, [])
        if log[: len(before)] != before:
            claims.problem(f"{name}'s log of {len(log)} does not continue the one of {len(before)} seen before")
        if found.world.federation.single and log != logs[found.world.witnesses[0]][: len(log)]:
            claims.problem(f"{name}'s log of {len(log)} is no beginning of the witness's")
    for name in found.world.honest:
        if found.view(name).epoch < claims.epochs[name]:
            claims.problem(
                f"{name} said that it was in epoch {claims.epochs[name]}, and is in {found.view(name).epoch}"
            )
        if found.view(name).abstaining:
            claims.problem(f"{name} thinks that it was set back")


def _check_orders(found: Reopened, claims: Claims) -> None:
    least = claims.quorum - claims.liars  # honest witnesses that have what a quorum stored
    for order in claims.final():
        having = found.witnesses_with(order)
        if len(having) < least:
            claims.problem(f"certificate {order.hex()[:12]} is lost: it was final, and {len(having)} witnesses have it")
    for (order, epoch), by in claims.stored.items():
        for name in by - set(found.witnesses_with(order)):
            if found.view(name).epoch == epoch:
                claims.problem(f"certificate {order.hex()[:12]} is lost: {name} stored it in this epoch")
    if found.world.federation.single:  # there a vote is a certificate
        for _, order in claims.voted:
            if not found.witnesses_with(order):
                claims.problem(f"order voted for {order.hex()[:12]} is lost")
    for channel in claims.closed:
        states = [found.channel(name, channel) for name in found.world.honest]
        if sum(state is not None and state.status is ChannelStatus.CLOSED for state in states) < least:
            claims.problem(f"the close of {channel.hex()[:12]} is lost")


async def _heal(found: Reopened, claims: Claims) -> None:
    """What was begun is brought to its end, and everybody learns of everything."""
    try:
        if any(book.epochs.status().frozen for book in found.witnesses):
            await found.end_epoch()
        for book in found.books.values():
            await book.sync()
        await found.hand_in()
    except Refused as refusal:
        claims.problem(f"the federation does not come to rest: {refusal.code.name}: {refusal}")


async def _check_agreement(found: Reopened, claims: Claims) -> None:
    """After the end of an epoch all have one state. What one does while it syncs, those before it hear of in the next
    round; who disagrees does so in every round."""
    try:
        await found.end_epoch()
        for _ in range(AGREEMENT_ROUNDS):
            for book in found.books.values():
                await book.sync()
            states = {name: (found.view(name).epoch, *_state(store)) for name, store in found.stores.items()}
            if len(set(states.values())) == 1:
                break
    except Refused as refusal:
        claims.problem(f"the epoch does not end: {refusal.code.name}: {refusal}")
        return
    if len(set(states.values())) > 1:
        claims.problem(f"the nodes do not agree: {[(name, state[0]) for name, state in states.items()]}")
    claims.heard["agreed"] += 1


async def _check_paid(found: Reopened, claims: Claims) -> None:
    """Every voucher that an honest worker took is settled, whoever signed it."""
    for name in WORKERS:
        await found.books[name].close_idle(0)
    for name in found.world.honest:
        await found.books[name].sync()
        for channel, amount in claims.taken.items():
            state = found.channel(name, channel)
            if state is None or state.status is not ChannelStatus.CLOSED or state.paid < amount:
                claims.problem(f"a worker took {amount} on {channel.hex()[:12]} and is not paid: {state}")


def _state(store: Store) -> tuple[tuple[bytes, bytes], ...]:
    """Accounts and open channels."""
    view = View(store)
    accounts = tuple(store.iterate(b"a"))
    channels = ((key, view.channel(key[1:])) for key, _ in store.iterate(b"o"))
    return accounts + tuple((key, channel.encode()) for key, channel in channels if channel is not None)


def _check_vouchers(found: Reopened, claims: Claims, now_ms: int) -> None:
    names = {key.node: name for name, key in found.world.signers.items()}
    first = found.world.witnesses[0]
    channels = {data[1:]: Channel.decode(value) for data, value in found.stores[first].iterate(b"c")}
    for channel, state in channels.items():
        id_ = ChannelId(channel)
        if state.payer not in names or state.payee not in names:
            continue  # an attacker's
        signed = last_voucher(found.stores[names[state.payer]], id_).cumulative
        taken = last_voucher(found.stores[names[state.payee]], id_).cumulative
        short = channel.hex()[:12]
        for holder in (state.payer, state.payee):
            _check_signature(found, names[holder], id_, state, claims)
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
    for channel in claims.taken.keys() - channels.keys():
        claims.problem(f"{channel.hex()[:12]}: a voucher was taken, its hold is lost")


def _check_signature(found: Reopened, holder: str, channel: ChannelId, state: Channel, claims: Claims) -> None:
    stored = found.stores[holder].get(voucher_key(channel))
    if stored is None:
        return
    pay = decode_as(Pay, stored)
    try:
        verify(state.payer, found.world.federation.id, pay.voucher, pay.signature)
    except BadSignature:
        claims.problem(f"{channel.hex()[:12]}: a stored voucher was never signed by its payer")


async def _check_votes(found: Reopened, claims: Claims, chance: random.Random) -> None:
    """The same vote for the same order, none for another with the same number."""
    older = chance.sample(sorted(claims.voted), min(RIVALS // 4, len(claims.voted)))
    newer = chance.sample(claims.fresh, min(RIVALS, len(claims.fresh)))
    for key in {*newer, *older}:
        await _check_vote(found, claims, *key)
    claims.fresh.clear()


async def _check_vote(found: Reopened, claims: Claims, by: str, order: bytes) -> None:
    request, vote = claims.voted[by, order]
    witness, what = found.books[by], f"order {order.hex()[:12]}: {by}"
    again = await witness.answer(witness.node, request)
    if not isinstance(again, Voted) and not _over(found, by, request):
        claims.problem(f"{what} does not give its vote again: {again}")
    if isinstance(again, Voted) and again.signature != vote:
        claims.problem(f"{what} gives another vote: {again}")
    rival = rival_of(found, by, request)
    answer = None if rival is None else await witness.answer(witness.node, rival)
    refused = isinstance(answer, Rejected) and (answer.code in NO_SECOND_VOTE or _over(found, by, request))
    if answer is not None and not refused:
        claims.problem(f"{what}: a rival with the same number got {answer}")


def _over(found: Reopened, by: str, request: RequestVote) -> bool:
    """True if an order's epoch is over, so that it may be void."""
    order = decode(request.body)
    return isinstance(order, AccountOrder) and order.epoch < found.view(by).epoch


def rival_of(found: Reopened, by: str, request: RequestVote) -> RequestVote | None:
    """Another order with the same number, well signed by the same owner; None if there is none, or the owner is an
    attacker."""
    order = decode(request.body)
    owners = {key.node: key for key in found.world.signers.values()}
    sign = partial(_signed_request, found.world.federation)
    if isinstance(order, Hold) and order.payer in owners:
        return sign(owners[order.payer], replace(order, expiry_ms=order.expiry_ms - 1))
    if isinstance(order, Grant):
        return sign(owners[order.issuer], replace(order, amount=order.amount + 1))
    state = found.channel(by, order.channel) if isinstance(order, Close) else None
    if state is None or not isinstance(order, Close) or not {state.payer, state.payee} <= owners.keys():
        return None
    lower = replace(open_voucher(order.voucher), cumulative=0, units_in=0, units_out=0)
    pay = sign(owners[state.payer], lower)
    return sign(owners[state.payee], Close(order.channel, pay.body, pay.signature))


def _signed_request(federation: Federation, owner: Signer, message: Message) -> RequestVote:
    body = encode(message)
    return RequestVote(body, owner.sign(federation.id, body))


async def _check_business(found: Reopened, claims: Claims, chance: random.Random) -> None:
    """Everybody can still grant, hold, sign, take and close. What happens here is acknowledged too."""
    keys = found.world.signers
    payer, worker = chance.choice(PAYERS), chance.choice(WORKERS)
    paying, paid = found.books[payer], found.books[worker]
    try:
        claims.certified.add(bytes.fromhex(await found.witnesses[0].grant(keys[payer].node, 100_000)))
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
