"""One hash for many things, and short proofs that one of them is among them.

Rule: RFC 6962's tree over a list: sha256(0x00 || leaf), sha256(0x01 || left || right), split at the largest power of
two below the length; the empty list's root is sha256 of nothing. What a leaf is, and in which order, its user says.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

EMPTY_ROOT = hashlib.sha256().digest()


def leaf_hash(leaf: bytes) -> bytes:
    """The hash of one leaf."""
    return hashlib.sha256(b"\0" + leaf).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()


def root(leaves: Sequence[bytes]) -> bytes:
    """The root of a list of leaves."""
    level = [leaf_hash(leaf) for leaf in leaves]
    while len(level) > 1:
        level = _above(level)
    return level[0] if level else EMPTY_ROOT


def _above(level: Sequence[bytes]) -> list[bytes]:
    """The next level: pairs become nodes, a last one without a partner stays as it is."""
    paired = [_node(level[index], level[index + 1]) for index in range(0, len(level) - 1, 2)]
    return paired + list(level[len(paired) * 2 :])


@dataclass(frozen=True, slots=True)
class Path:
    """Where a leaf stands (`index` of `count`), and the neighbours from the leaf up to the root."""

    index: int
    count: int
    neighbours: tuple[bytes, ...]


def path(leaves: Sequence[bytes], index: int) -> Path:
    """The proof for the leaf at `index`."""
    level, place, neighbours = [leaf_hash(leaf) for leaf in leaves], index, []
    while len(level) > 1:
        partner = place ^ 1
        if partner < len(level):
            neighbours.append(level[partner])
        level, place = _above(level), place // 2
    return Path(index, len(leaves), tuple(neighbours))


def climb(leaf: bytes, proof: Path) -> bytes | None:
    """The root that a proof leads to; None if it has not the shape that its index and count demand."""
    if not 0 <= proof.index < proof.count:
        return None
    reached, place, last, left = leaf_hash(leaf), proof.index, proof.count - 1, list(reversed(proof.neighbours))
    while last > 0:
        if place ^ 1 <= last:
            if not left:
                return None
            neighbour = left.pop()
            reached = _node(neighbour, reached) if place % 2 else _node(reached, neighbour)
        place, last = place // 2, last // 2
    return None if left else reached
