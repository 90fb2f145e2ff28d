"""Which keys act for an account, and which accounts are one owner's.

Rule: what is known of an account's keys and owner only ever grows, so that certificates may arrive in any order and all
replicas agree. An account keeps its id for life; `Rotate` changes the key that signs for it. A sub-account belongs to
its owner from its first order on, for ever.
"""

from __future__ import annotations

from collections.abc import Iterable

from protocol.errors import BadSignature
from protocol.ids import NO_HASH, FederationId, NodeId
from protocol.ledger.state import View


def keys_of(view: View, account: bytes) -> tuple[NodeId, ...]:
    """Every key that ever signed for the account: its id, and those that it rotated to."""
    return (NodeId(account), *(key for _, key in view.account(account).rotations))


def family_keys(view: View, account: bytes) -> frozenset[NodeId]:
    """The keys of the account and of its owner."""
    owner = view.account(account).owner
    return frozenset(keys_of(view, account) + (keys_of(view, owner) if owner != NO_HASH else ()))


def related(view: View, first: bytes, second: bytes) -> bool:
    """True if the two accounts have a key in common: one owner has both."""
    return not family_keys(view, first).isdisjoint(family_keys(view, second))


def may_use(view: View, peer: NodeId, account: bytes) -> bool:
    """True if `peer` may ask at the cost of `account`: it has the key in force of the account or of its owner."""
    standing = view.account(account)
    named = (account,) if standing.owner == NO_HASH else (account, standing.owner)
    return any(current_key(view, name) == peer for name in named)


def current_key(view: View, account: bytes) -> NodeId:
    """The key that signs the account's next order."""
    standing = view.account(account)
    return standing.key_at(account, standing.next_sequence)


def verify_any(view: View, keys: Iterable[NodeId], federation: FederationId, body: bytes, signature: bytes) -> None:
    """One of `keys` signed. Raises `BadSignature`."""
    failure = BadSignature("no key may sign this")
    for key in keys:
        try:
            view.verify(key, federation, body, signature)
            return
        except BadSignature as error:
            failure = error
    raise failure
