"""Keys and values of many answers in rows that end at the same column, whatever the model's layers look like.

Rule: the tokens of a row lie side by side and its newest one lies in the last column used, so that all rows of a step
write one column and a distance between two tokens of a row is that of their columns. What takes no part in a step is
taken out, so that this stays so. Rows of very different lengths lie in different tables: a long answer does not make
the short ones beside it pay for its length. A row's columns before its first token are zeros: what a mask hides is
multiplied by 0, which has to be finite.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

SPARE_COLUMNS = 128  # of a table that is made anew: so many tokens pass before the next one
SHORTEST_CLASS = 1_024  # tokens of an answer; each class of lengths is `CLASS_FACTOR` times the one before
CLASS_FACTOR = 4

Layers = list[tuple[torch.Tensor, torch.Tensor]]  # keys and values, each (rows, heads, tokens, head)


@dataclass(eq=False)
class Memory:
    """What one answer remembers, either for itself or as a row of a table."""

    length: int = 0  # tokens that are there
    own: Layers = field(default_factory=list)  # (1, heads, length, head) each; empty while it is a row
    table: Table | None = None
    row: int = -1


class Table:
    """Rows whose newest token lies in column `end` - 1."""

    def __init__(self) -> None:
        self.rows: list[Memory] = []
        self.end = 0
        self._layers: Layers = []  # (more or as many rows, heads, more or as many columns, head) each

    # --- who is here ---------------------------------------------------------------------------------

    def hold(self, memories: Sequence[Memory]) -> None:
        """Let these be the rows, in any order, with a free column behind them. If it raises, no memory has changed."""
        staying = set(memories)
        for memory in [row for row in self.rows if row not in staying]:
            self.take_out(memory)
        joining = [memory for memory in memories if memory.table is not self]
        for memory in joining:
            if memory.table is not None:
                memory.table.take_out(memory)
        self._make_room(joining)
        for memory in joining:
            self._put_in(memory)

    def take_out(self, memory: Memory) -> None:
        """Let it have its keys and values for itself."""
        memory.own = self.copied(memory, 0, memory.length)
        self.remove(memory)

    def remove(self, memory: Memory) -> None:
        """Forget a row; the last one takes its place."""
        last = self.rows[-1]
        if last is not memory:
            for part in self._tensors():
                part[memory.row, :, : self.end] = part[last.row, :, : self.end]
            last.row, self.rows[memory.row] = memory.row, last
        self.rows.pop()
        memory.table, memory.row = None, -1
        if not self.rows:
            self._layers, self.end = [], 0

    def copied(self, memory: Memory, start: int, end: int) -> Layers:
        """A copy of a row's tokens from `start` to `end`."""
        first = self.end - memory.length
        return [
            (_part(keys, memory.row, first + start, first + end), _part(values, memory.row, first + start, first + end))
            for keys, values in self._layers
        ]

    # --- a step --------------------------------------------------------------------------------------

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(row.length for row in self.rows)

    def seen(self) -> Layers:
        """Views of the columns that a step sees, (rows, heads, longest + 1, head) each; the last is the new token's."""
        rows, columns = slice(len(self.rows)), slice(self.end - self.longest, self.end + 1)
        return [(keys[rows, :, columns], values[rows, :, columns]) for keys, values in self._layers]

    def advance(self) -> None:
        """The new tokens have been written."""
        self.end += 1
        for row in self.rows:
            row.length += 1

    # --- storage -------------------------------------------------------------------------------------

    def _make_room(self, joining: Sequence[Memory]) -> None:
        """For those who join and for a column more; storage that is far too large is given back."""
        rows = len(self.rows) + len(joining)
        longest = max(memory.length for memory in [*self.rows, *joining])
        here = self._layers[0][0].shape if self._layers else (0, 0, 0, 0)
        if rows <= here[0] <= 4 * rows and longest <= self.end < here[2] <= 2 * longest + 4 * SPARE_COLUMNS:
            return
        pattern = self._layers or joining[0].own
        places = 1 << (rows - 1).bit_length()
        made = [
            (_zeros(keys, places, longest + SPARE_COLUMNS), _zeros(values, places, longest + SPARE_COLUMNS))
            for keys, values in pattern
        ]
        for old, new in zip(self._layers, made, strict=False):
            for source, target in zip(old, new, strict=True):
                self._move(source, target, longest)
        self._layers, self.end = made, longest

    def _move(self, source: torch.Tensor, target: torch.Tensor, end: int) -> None:
        """The rows' tokens, which end at column `end` from now on."""
        common = min(self.end, end)
        count = len(self.rows)
        target[:count, :, end - common : end] = source[:count, :, self.end - common : self.end]

    def _put_in(self, memory: Memory) -> None:
        row, first = len(self.rows), self.end - memory.length
        for (keys, values), (own_keys, own_values) in zip(self._layers, memory.own, strict=True):
            for part, own in ((keys, own_keys), (values, own_values)):
                part[row, :, :first] = 0
                part[row, :, first : self.end] = own[0]
        self.rows.append(memory)
        memory.table, memory.row, memory.own = self, row, []

    def _tensors(self) -> list[torch.Tensor]:
        return [part for layer in self._layers for part in layer]

    @property
    def bytes_held(self) -> int:
        """Bytes of storage."""
        return sum(part.nbytes for part in self._tensors())


class Tables:
    """The rows that took part in the last steps, by class of length."""

    def __init__(self) -> None:
        self._tables: dict[int, Table] = {}

    def arranged(self, memories: Sequence[Memory]) -> list[Table]:
        """Tables that hold these and nothing else."""
        classes: dict[int, list[Memory]] = {}
        for memory in memories:
            classes.setdefault(_class(memory.length), []).append(memory)
        return [self._holding(number, members) for number, members in classes.items()]

    def _holding(self, number: int, members: Sequence[Memory]) -> Table:
        table = self._tables.setdefault(number, Table())
        table.hold(members)
        return table

    @property
    def rows(self) -> int:
        """How many memories lie in a table."""
        return sum(len(table.rows) for table in self._tables.values())

    @property
    def bytes_held(self) -> int:
        """Bytes of all storage."""
        return sum(table.bytes_held for table in self._tables.values())


def _class(length: int) -> int:
    """The longest length of its class."""
    longest = SHORTEST_CLASS
    while longest < length:
        longest *= CLASS_FACTOR
    return longest


def _part(tensor: torch.Tensor, row: int, start: int, end: int) -> torch.Tensor:
    return tensor[row : row + 1, :, start:end].clone(memory_format=torch.contiguous_format)


def _zeros(pattern: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    return pattern.new_zeros(rows, pattern.shape[1], columns, pattern.shape[3])
