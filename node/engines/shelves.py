"""Keys and values of many answers, so that one call a layer serves all of them.

Rule: an answer's row lies on a shelf whose capacity is the power of two that holds it, and moves up when it is full, so
that a long answer does not make the short ones beside it pay. The rows that take part in a step lie side by side at a
shelf's beginning. Storage begins as zeros and holds finite numbers only: what a mask hides is multiplied by 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

FIRST_CAPACITY = 256  # tokens of a shelf's row
KEPT_BYTES = (
    128 * 2**20
)  # of an empty shelf, for who comes next: a page that the system gives anew costs more than a step


@dataclass(eq=False)
class Row:
    """Where one answer's keys and values lie."""

    length: int = 0  # tokens that are there
    shelf: Shelf | None = None
    index: int = -1


@dataclass(frozen=True, slots=True)
class Shape:
    """What is stored for a token."""

    layers: int
    pairs: int  # heads of keys and values
    head: int  # numbers of a head
    dtype: torch.dtype
    device: torch.device

    @property
    def token_bytes(self) -> int:
        """Bytes for each token."""
        return 2 * self.layers * self.pairs * self.head * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Saved:
    """Keys and values of some tokens, apart from any row."""

    keys: torch.Tensor  # (layers, pairs, head, tokens)
    values: torch.Tensor  # (layers, pairs, tokens, head)


@dataclass(eq=False)
class Shelf:
    """Rows of one capacity. Keys stand as (head, token), the way in which a product with one query reads them."""

    shape: Shape
    capacity: int
    keys: torch.Tensor  # (layers, rows, pairs, head, capacity)
    values: torch.Tensor  # (layers, rows, pairs, capacity, head)
    rows: list[Row] = field(default_factory=list)

    def add(self, row: Row) -> None:
        """Give `row` a place at the end."""
        if len(self.rows) == self.keys.shape[1]:
            self._resize(max(1, 2 * len(self.rows)))
        row.shelf, row.index = self, len(self.rows)
        self.rows.append(row)

    def remove(self, row: Row) -> None:
        """The last row takes its place."""
        last = self.rows[-1]
        if last is not row:
            self.swap(row, last)
        self.rows.pop()
        row.shelf, row.index = None, -1
        if not self.rows and self.keys.nbytes + self.values.nbytes > KEPT_BYTES:
            self._resize(0)

    def swap(self, one: Row, other: Row) -> None:
        """Let two rows change places."""
        kept = self.save(one, 0, one.length)
        self._copy(other.index, one.index, other.length)
        self.put(other.index, 0, kept)
        one.index, other.index = other.index, one.index
        self.rows[one.index], self.rows[other.index] = one, other

    def save(self, row: Row, start: int, end: int) -> Saved:
        """A copy of the tokens from `start` to `end`."""
        keys = self.keys[:, row.index, :, :, start:end]
        return Saved(_copied(keys), _copied(self.values[:, row.index, :, start:end]))

    def put(self, index: int, start: int, saved: Saved) -> None:
        """Write tokens to a row, from `start` on."""
        end = start + saved.keys.shape[3]
        self.keys[:, index, :, :, start:end] = saved.keys
        self.values[:, index, :, start:end] = saved.values

    def _copy(self, source: int, target: int, length: int) -> None:
        self.keys[:, target, :, :, :length] = self.keys[:, source, :, :, :length]
        self.values[:, target, :, :length] = self.values[:, source, :, :length]

    def _resize(self, rows: int) -> None:
        keys, values = _storage(self.shape, rows, self.capacity)
        kept = min(rows, self.keys.shape[1])
        keys[:, :kept], values[:, :kept] = self.keys[:, :kept], self.values[:, :kept]
        self.keys, self.values = keys, values


def _copied(part: torch.Tensor) -> torch.Tensor:
    return part.clone(memory_format=torch.contiguous_format)


@torch.inference_mode(False)  # what is made in inference mode can only be written to there
def _storage(shape: Shape, rows: int, capacity: int) -> tuple[torch.Tensor, torch.Tensor]:
    size = (shape.layers, rows, shape.pairs)
    keys = torch.zeros(*size, shape.head, capacity, dtype=shape.dtype, device=shape.device)
    values = torch.zeros(*size, capacity, shape.head, dtype=shape.dtype, device=shape.device)
    return keys, values


class Shelves:
    """All rows of one model."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self._shelves: dict[int, Shelf] = {}  # by capacity

    def reserve(self, row: Row, tokens: int) -> Shelf:
        """The row's shelf, which has room for `tokens` more."""
        here = row.shelf
        if here is not None and here.capacity >= row.length + tokens:
            return here
        capacity = here.capacity if here is not None else FIRST_CAPACITY
        while capacity < row.length + tokens:
            capacity *= 2
        there = self._shelf(capacity)
        if here is None:
            there.add(row)
        else:
            kept = here.save(row, 0, row.length)
            here.remove(row)
            there.add(row)
            there.put(row.index, 0, kept)
        return there

    def free(self, row: Row) -> None:
        """Forget a row; again changes nothing."""
        if row.shelf is not None:
            row.shelf.remove(row)
        row.length = 0

    def arranged(self, rows: Sequence[Row]) -> list[tuple[Shelf, list[Row]]]:
        """The rows by shelf, each with room for one token more and side by side from its shelf's beginning."""
        for row in rows:
            self.reserve(row, 1)
        taking_part = set(rows)
        return [
            (shelf, _to_the_front(shelf, taking_part))
            for shelf in self._shelves.values()
            if not taking_part.isdisjoint(shelf.rows)
        ]

    @property
    def rows(self) -> int:
        """How many have a place."""
        return sum(len(shelf.rows) for shelf in self._shelves.values())

    @property
    def bytes_held(self) -> int:
        """Bytes of all storage, used or kept."""
        return sum(shelf.keys.nbytes + shelf.values.nbytes for shelf in self._shelves.values())

    def _shelf(self, capacity: int) -> Shelf:
        if capacity not in self._shelves:
            keys, values = _storage(self.shape, 0, capacity)
            self._shelves[capacity] = Shelf(self.shape, capacity, keys, values)
        return self._shelves[capacity]


def _to_the_front(shelf: Shelf, taking_part: set[Row]) -> list[Row]:
    wanted = sum(row in taking_part for row in shelf.rows)
    idle = [row for row in shelf.rows[:wanted] if row not in taking_part]
    behind = [row for row in shelf.rows[wanted:] if row in taking_part]
    for one, other in zip(idle, behind, strict=True):
        shelf.swap(one, other)
    return shelf.rows[:wanted]
