"""The end of an epoch: what 2f+1 witnesses had, united, becomes the state from which the next one begins.

Rule: the state after a checkpoint follows from the state at the epoch's beginning and the set of orders in the union,
in whatever order they once were applied. Holds that expired long ago return to their payers. Orders of the epoch
that are not in it are void. A union of sets that are closed (each order's predecessors are in it) and solvent (no
account below its floor) is closed and solvent, so each source is checked by itself.
"""

from __future__ import annotations

from collections.abc import Iterable as Iterable_
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from protocol import params
from protocol.codec import body_hash, decode, decode_as, encode, is_a
from protocol.errors import ErrorCode, Malformed, Refused
from protocol.ids import NO_HASH, ChannelId, NodeId
from protocol.ledger import merkle
from protocol.ledger.certificates import apply, check_votes, effect, open_certificate, refunded, trusting
from protocol.ledger.genesis import Federation
from protocol.ledger.orders import AccountOrder, CheckedOrder, MissingPredecessor, as_refusal, check_order, owner_of
from protocol.ledger.state import (
    EPOCH,
    EPOCH_START,
    EPOCH_TIME,
    FIRST_EPOCH,
    LOG_FIRST,
    LOG_LENGTH,
    SILENT,
    STATE_KINDS,
    Account,
    Base,
    Channel,
    ChannelStatus,
    Draft,
    Iterable,
    Nothing,
    Puts,
    Verify,
    View,
    account_key,
    base_key,
    certificate_key,
    channel_key,
    checkpoint_key,
    log_key,
    number,
    open_channels,
    open_key,
    order_key,
    read_number,
    u64,
)
from protocol.messages import (
    AccountState,
    Certificate,
    ChannelState,
    Checkpoint,
    Close,
    Decision,
    KeySince,
    Message,
    Refund,
    Snapshot,
)

_LEDGER_KINDS = (b"a", b"b", b"c", b"k", b"n", b"o", b"r", b"s")  # everything that orders made


@dataclass(frozen=True, slots=True)
class Union:
    """Orders by id, with their certificates: what a checkpoint is about."""

    certificates: Mapping[bytes, bytes]

    @property
    def ids(self) -> list[bytes]:
        """Ascending."""
        return sorted(self.certificates)

    @property
    def root(self) -> bytes:
        """Of the ids."""
        return merkle.root(self.ids)


def is_decision(record: bytes) -> bool:
    """True if a record of the log is a decision and no certificate."""
    return is_a(Decision, record)


def record_id(record: bytes) -> bytes:
    """The id under which a record stands in a log. Raises `Refused` (MALFORMED)."""
    if is_decision(record):
        with as_refusal():
            return body_hash(decode_as(Decision, record, params.MAX_RECORD_BYTES).body)
    return body_hash(open_certificate(record).body)


def epoch_orders(stored: Iterable) -> Union:
    """The orders of the epoch in force that lie in a log."""
    return orders_between(stored, View(stored).epoch_start, View(stored).log_length)


def orders_between(stored: Iterable, start: int, end: int) -> Union:
    """The orders at these places of a log, without void ones and decisions."""
    view = View(stored)
    entries = (view.entry(position) for position in range(start, end))
    return Union({entry[0]: entry[1] for entry in entries if entry is not None and not is_decision(entry[1])})


def previous_checkpoint(federation: Federation, view: View) -> bytes:
    """The id of the checkpoint that opened the epoch in force; the federation's id in the first."""
    return view.checkpoint(view.epoch) or federation.id


def snapshot(federation: Federation, stored: Iterable) -> Snapshot:
    """What a witness with this log signs when it freezes."""
    view, union = View(stored), epoch_orders(stored)
    return Snapshot(view.epoch, previous_checkpoint(federation, view), len(union.certificates), union.root)


# --- the state that a union makes ---------------------------------------------------------------------


def merged(federation: Federation, base: Iterable, union: Union, epoch: int, check: Verify = trusting) -> Draft:
    """`base`, the state at the beginning of `epoch`, with a union applied. Its signatures were checked before, or are
    with `check`.

    Raises `Refused` if the set is not closed or leaves an account below its floor.
    """
    draft, unsure = Draft(base), set[bytes]()
    for identity, sure, puts in _in_causal_order(federation, draft, union, epoch, check):
        draft.update(puts)
        unsure |= set() if sure else {identity}
    _check_floors(federation, draft)
    late = {identity: data for identity, data in union.certificates.items() if identity in unsure}
    check_signatures(federation, View(draft, check), Union(late))
    return draft


def _in_causal_order(
    federation: Federation, draft: Draft, union: Union, epoch: int, check: Verify
) -> Iterable_[tuple[bytes, bool, Puts]]:
    """The ids and effects of a set, and whether their signatures are good by what came before them. First in the order
    given, for a log is in causal order; what waits, by chains and their numbers, then settlements."""
    left = list(union.certificates)
    while left:
        waiting = []
        for identity in left:
            try:
                checked, sure = _checked(federation, draft, open_certificate(union.certificates[identity]), check)
                if isinstance(checked.order, AccountOrder) and checked.order.epoch != epoch:
                    raise Refused(ErrorCode.STALE_EPOCH, "the union holds an order of another epoch")
                yield identity, sure, effect(View(draft), checked)
            except MissingPredecessor:  # a move may also need an attachment or rotation that sorts behind it
                waiting.append(identity)
        if len(waiting) == len(left):
            raise Refused(ErrorCode.BAD_SEQUENCE, f"{len(left)} orders of the union lack what they build on")
        left = sorted(waiting, key=lambda identity: (_place(union.certificates[identity]), identity))


def _checked(
    federation: Federation, draft: Draft, certificate: Certificate, check: Verify
) -> tuple[CheckedOrder, bool]:
    """An order, and whether it is signed as far as can be told yet: a key may be known by what comes later only."""
    try:
        view = View(draft, check)
        checked = check_order(federation, view, certificate.body, certificate.signature)
        if check is not trusting:
            check_votes(federation, view, checked, certificate.votes)
        return checked, True
    except Refused:
        return check_order(federation, View(draft, trusting), certificate.body, certificate.signature), False


def _place(data: bytes) -> tuple[int, bytes, int]:
    order = decode(open_certificate(data).body)
    if isinstance(order, AccountOrder):
        return (0, owner_of(order), order.sequence)
    assert isinstance(order, Close | Refund)
    return (1, order.channel, 0)


def _check_floors(federation: Federation, draft: Draft) -> None:
    for key, value in draft.puts.items():
        if key[:1] == b"a" and value is not None and Account.decode(value).balance < federation.floor(NodeId(key[1:])):
            raise Refused(
                ErrorCode.INSUFFICIENT_FUNDS, f"the union leaves account {key[1:].hex()[:16]}… below its floor"
            )


def check_signatures(federation: Federation, view: View, union: Union) -> None:
    """Every order and vote of a union is signed; `view` knows the accounts' keys after it. Raises `Refused`."""
    for data in union.certificates.values():
        certificate = open_certificate(data)
        checked = check_order(federation, view, certificate.body, certificate.signature)
        check_votes(federation, view, checked, certificate.votes)


def state_from(found: Iterable_[bytes]) -> Puts:
    """Accounts and open channels from the leaves of a state. Raises `Refused` (MALFORMED)."""
    puts: Puts = {}
    for leaf in found:
        with as_refusal():
            message = decode(leaf, params.MAX_RECORD_BYTES)
            if isinstance(message, AccountState):
                puts[account_key(message.account)] = _account(message).encode()
            elif isinstance(message, ChannelState):
                puts[channel_key(message.channel)] = _channel(message).encode()
                puts[open_key(message.channel)] = b""
            else:
                raise Malformed(f"a {type(message).__name__} is no leaf of a state")
    return puts


def _account(leaf: AccountState) -> Account:
    rotations, recoveries = (
        tuple((since.sequence, since.key) for since in keys) for keys in (leaf.keys, leaf.recoveries)
    )
    fixed = (leaf.balance, leaf.next_sequence, leaf.head, leaf.owner)
    return Account(*fixed, sub_accounts=leaf.sub_accounts, rotations=rotations, recoveries=recoveries)


def _channel(leaf: ChannelState) -> Channel:
    held = (leaf.payer, leaf.payee, leaf.amount, leaf.price_in, leaf.price_out, leaf.expiry_ms)
    return Channel(*held, settled_by=NO_HASH, status=ChannelStatus.OPEN, paid=0)


def begin_from(stored: Iterable, data: bytes, found: Sequence[bytes], position: int) -> Puts:
    """What makes a ledger begin anew with a verified decision and the leaves of its state. `position`: where the
    decision stands in the log. What was known before goes. Raises `Refused` if the leaves are not that state."""
    decision = decode_as(Decision, data, params.MAX_RECORD_BYTES)
    checkpoint = decode_as(Checkpoint, decision.body)
    if merkle.root(found) != checkpoint.state:
        raise Refused(ErrorCode.BAD_QUORUM, "the state is not the one that its checkpoint names")
    draft = Draft(Nothing())
    draft.update({key: None for kind in _LEDGER_KINDS for key, _ in stored.iterate(kind)})
    draft.update(state_from(found))
    draft.update({LOG_LENGTH: u64(position), LOG_FIRST: u64(position), FIRST_EPOCH: u64(checkpoint.epoch)})
    _begin_epoch(draft, checkpoint, body_hash(decision.body), data)
    _stay_silent(draft, View(stored))
    _copy_state(draft, Nothing(), checkpoint.epoch, checkpoint.epoch)
    return draft.puts


def refund_expired(draft: Draft, time_ms: int) -> tuple[ChannelId, ...]:
    """Return the holds that expired at least REFUND_DELAY before `time_ms`. Which they were."""
    view, found = View(draft), []
    for identity, channel in list(open_channels(draft)):
        if channel.expiry_ms + params.REFUND_DELAY <= time_ms:
            puts, accounts = refunded(view, identity, channel, NO_HASH)
            draft.update(puts)
            draft.update({account_key(account): state.encode() for account, state in accounts.items()})
            found.append(identity)
    return tuple(found)


def leaves(state: Iterable) -> list[bytes]:
    """The state as encoded leaves: accounts, then open channels, each ascending."""
    accounts = [_account_leaf(key[1:], Account.decode(value)) for key, value in state.iterate(b"a")]
    channels = [_channel_leaf(identity, channel) for identity, channel in open_channels(state)]
    return [encode(leaf) for leaf in (*accounts, *channels)]


def state_root(state: Iterable) -> bytes:
    """The Merkle root of the state's leaves."""
    return merkle.root(leaves(state))


def _account_leaf(account: bytes, state: Account) -> Message:
    keys, recoveries = (tuple(KeySince(*since) for since in known) for known in (state.rotations, state.recoveries))
    return AccountState(
        NodeId(account),
        state.balance,
        state.next_sequence,
        state.head,
        state.owner,
        state.sub_accounts,
        keys,
        recoveries,
    )


def _channel_leaf(identity: ChannelId, channel: Channel) -> Message:
    return ChannelState(
        identity,
        channel.payer,
        channel.payee,
        channel.amount,
        channel.price_in,
        channel.price_out,
        channel.expiry_ms,
    )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a checkpoint says of a union, and the state after it."""

    count: int
    orders: bytes
    state: bytes
    refunded: tuple[ChannelId, ...]
    draft: Draft


def outcome(federation: Federation, stored: Iterable, union: Union, time_ms: int) -> Outcome:
    """Unite, refund, hash. Raises `Refused` if the union makes no state."""
    return _outcome(federation, stored, union, epoch_orders(stored), time_ms)


def _outcome(federation: Federation, stored: Iterable, union: Union, own: Union, time_ms: int) -> Outcome:
    """The same; `own` are the orders of the epoch that lie in the log."""
    epoch = View(stored).epoch
    known = union.certificates.keys() == own.certificates.keys()
    draft = Draft(stored) if known else merged(federation, Base(stored, epoch), union, epoch)
    refunds = refund_expired(draft, time_ms)
    return Outcome(len(union.certificates), union.root, state_root(draft), refunds, draft)


# --- adopting a decision ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Adoption:
    """What going over to the next epoch writes, and what became of single orders and holds."""

    puts: Puts
    void: Union  # orders of the epoch that are not in the union; settlements of channels still open are applied again
    missing: Union  # orders of the union that were not here
    refunded: tuple[ChannelId, ...]


def adopt(
    federation: Federation, stored: Iterable, data: bytes, union: Union, keep_from: int | None = None
) -> Adoption:
    """What it takes to go over to the next epoch. `data` is an encoded decision, `union` its orders, all verified.

    Copies of the state at the beginnings of epochs from `keep_from` on are kept (by default the new one's).
    Raises `Refused` if union and checkpoint do not agree; nothing is changed then.
    """
    view = View(stored)
    decision = decode_as(Decision, data, params.MAX_RECORD_BYTES)
    checkpoint = decode_as(Checkpoint, decision.body)
    _check_next(federation, view, checkpoint)
    logged = epoch_orders(stored)
    result = _outcome(federation, stored, union, logged, checkpoint.time_ms)
    if (result.count, result.orders, result.state) != (checkpoint.count, checkpoint.orders, checkpoint.state):
        raise Refused(ErrorCode.BAD_QUORUM, "the checkpoint does not follow from its orders")
    own = logged.certificates
    void = Union({identity: order for identity, order in own.items() if identity not in union.certificates})
    missing = Union({identity: order for identity, order in union.certificates.items() if identity not in own})
    draft = Draft(stored)
    _withdraw(draft, void)
    draft.update(result.draft.puts)
    _append_missing(draft, missing)
    _begin_epoch(draft, checkpoint, body_hash(decision.body), data)
    _stay_silent(draft, view)
    _copy_state(draft, stored, checkpoint.epoch, checkpoint.epoch if keep_from is None else keep_from)
    _settle_again(federation, draft, void)
    return Adoption(draft.puts, void, missing, result.refunded)


def _check_next(federation: Federation, view: View, checkpoint: Checkpoint) -> None:
    if checkpoint.epoch > view.epoch + 1:
        raise MissingPredecessor(ErrorCode.STALE_EPOCH, f"checkpoint {checkpoint.epoch}, epoch {view.epoch} is here")
    if checkpoint.epoch <= view.epoch or checkpoint.previous != previous_checkpoint(federation, view):
        raise Refused(ErrorCode.STALE_EPOCH, "the checkpoint does not follow the one in force")


def _withdraw(draft: Draft, void: Union) -> None:
    """Take the effects of void orders back: what they touched is as it was when the epoch began."""
    base, touched = Base(draft, View(draft).epoch), set[bytes]()
    for identity, data in void.certificates.items():
        order = decode(open_certificate(data).body)
        touched.update(_state_keys(View(draft), identity, order))  # a settlement's channel may be void itself
        draft.update({certificate_key(identity): None})
        if isinstance(order, AccountOrder):
            draft.update({order_key(owner_of(order), order.sequence): None})
    draft.update({key: base.get(key) for key in touched})


def _state_keys(view: View, identity: bytes, order: Message) -> list[bytes]:
    """The accounts and channels that an order touches."""
    if isinstance(order, Close | Refund):
        channel = view.channel(order.channel)
        accounts = [channel.payer, channel.payee] if channel is not None else []
        return [channel_key(order.channel), open_key(order.channel), *map(account_key, accounts)]
    assert isinstance(order, AccountOrder)
    others = (getattr(order, name, None) for name in ("to", "owner"))
    keys = [account_key(account) for account in (owner_of(order), *others) if account is not None]
    return [*keys, channel_key(identity), open_key(identity)]


def _append_missing(draft: Draft, missing: Union) -> None:
    position = View(draft).log_length
    for _, identity in sorted((_place(data), identity) for identity, data in missing.certificates.items()):
        data = missing.certificates[identity]
        draft.update({certificate_key(identity): u64(position) + data, log_key(position): identity})
        position += 1
    draft.update({LOG_LENGTH: u64(position)})


def _settle_again(federation: Federation, draft: Draft, void: Union) -> None:
    """A settlement has its vote for ever: what came too late for this epoch counts in the next."""
    for data in void.certificates.values():
        if isinstance(decode(open_certificate(data).body), Close):
            try:
                draft.update(apply(federation, View(draft, trusting), data).puts)
            except Refused:  # its channel is void too, or was refunded
                continue


def _begin_epoch(draft: Draft, checkpoint: Checkpoint, identity: bytes, data: bytes) -> None:
    position = View(draft).log_length
    draft.update(
        {
            certificate_key(identity): u64(position) + data,
            log_key(position): identity,
            LOG_LENGTH: u64(position + 1),
            EPOCH: u64(checkpoint.epoch),
            EPOCH_START: u64(position + 1),
            EPOCH_TIME: u64(checkpoint.time_ms),
            checkpoint_key(checkpoint.epoch): identity,
        }
    )


def _stay_silent(draft: Draft, before: View) -> None:
    """A witness that was set back never learns which settlements it has voted for: it votes for none of the channels
    that were open then, not even after the epoch."""
    if before.abstaining:
        draft.update({SILENT: u64(View(draft).epoch_start)})


def _copy_state(draft: Draft, stored: Iterable, epoch: int, keep_from: int) -> None:
    """Keep the state from which the new epoch begins; drop copies that nobody replays from any more."""
    view = View(draft)
    for old in {number(key[1:9]) for key, _ in stored.iterate(b"s")}:
        if old < keep_from and old != view.first_epoch:
            draft.update({key: None for key, _ in stored.iterate(base_key(old, b""))})
    copies: Puts = {}
    for kind in STATE_KINDS:
        for key, value in draft.iterate(kind):
            channel = view.channel(key[1:]) if kind == b"c" else None
            if channel is None or channel.open:
                copies[base_key(epoch, key)] = value
    draft.update(copies)


def epoch_range(view: View, epoch: int) -> tuple[int, int] | None:
    """Where a closed epoch's orders lie in this log; None if it is not closed, or was pruned."""
    opened, closed = view.checkpoint(epoch), view.checkpoint(epoch + 1)
    end = view.position(closed) if closed is not None else None
    begin = 0 if epoch == 0 else view.position(opened or b"")
    return None if begin is None or end is None else (begin + (epoch > 0), end)


def last_checkpoint_ms(federation: Federation, view: View) -> int:
    """When the epoch in force began."""
    return read_number(view.reader, EPOCH_TIME) or federation.genesis.created_ms
