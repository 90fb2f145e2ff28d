"""Forgetting what a checkpoint has summed up.

Rule: only orders of epochs that have ended are forgotten, and only from the front, so what is left can still be
verified from the first checkpoint that is kept. Channels that were open then, votes in force and checkpoints stay.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from protocol.codec import decode
from protocol.ledger.certificates import open_certificate
from protocol.ledger.checkpoints import is_decision
from protocol.ledger.orders import AccountOrder, owner_of
from protocol.ledger.state import (
    FIRST_EPOCH,
    LOG_FIRST,
    Base,
    Iterable,
    Puts,
    View,
    base_key,
    certificate_key,
    channel_key,
    lock_key,
    log_key,
    number,
    order_key,
    u64,
)

PART = 1_000  # places of the log in one batch


def prunable(stored: Iterable, epoch: int) -> bool:
    """True if everything before `epoch` can go: it has begun, and the state at its beginning is kept."""
    view = View(stored)
    begun = epoch > 0 and view.first_epoch <= epoch <= view.epoch
    return begun and next(iter(stored.iterate(base_key(epoch, b"a"))), None) is not None


def prune(stored: Iterable, epoch: int) -> Iterator[Puts]:
    """Batches that forget the orders before `epoch`, to be written one after the other. The first moves the beginning:
    after an interruption what is left before it counts for nothing, and goes when this is called again."""
    view = View(stored)
    decision = view.position(view.checkpoint(epoch) or b"")
    assert decision is not None  # prunable
    first = min((number(key[1:]) for key, _ in islice(stored.iterate(b"n"), 1)), default=0)
    kept = Base(stored, epoch)
    yield {FIRST_EPOCH: u64(epoch), LOG_FIRST: u64(decision + 1), **_ended(stored, kept)}
    for begin in range(first, decision + 1, PART):
        puts: Puts = {}
        for position in range(begin, min(begin + PART, decision + 1)):
            puts.update(_forgotten(view, kept, position))
        yield puts


def _ended(stored: Iterable, kept: Base) -> Puts:
    """Channels that were open where the ledger began so far, their holds pruned before, and have ended by now."""
    puts: Puts = {}
    view = View(stored)
    for key, _ in Base(stored, view.first_epoch).iterate(b"c"):
        puts.update(_channel_gone(view, kept, key[1:]))
    return puts


def _channel_gone(view: View, kept: Base, identity: bytes) -> Puts:
    """A channel goes when the kept part begins after its end: what happens in that part can still be made anew."""
    channel = view.channel(identity)
    if channel is None or channel.open or kept.get(channel_key(identity)) is not None:
        return {}
    return {channel_key(identity): None, lock_key(identity, 0): None}


def _forgotten(view: View, kept: Base, position: int) -> Puts:
    identity, record = view.id_at(position), view.logged(position)
    puts: Puts = {log_key(position): None}
    if identity is None or record is None or is_decision(record):
        return puts
    puts[certificate_key(identity)] = None
    order = decode(open_certificate(record).body)
    if isinstance(order, AccountOrder):
        puts |= {order_key(owner_of(order), order.sequence): None, lock_key(owner_of(order), order.sequence): None}
    return puts | _channel_gone(view, kept, identity)
