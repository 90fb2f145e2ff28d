"""Rounds of promises, prepares and commits: do witnesses ever decide two checkpoints for one epoch?

Two checkpoints, A and B, are both acceptable (unions of different snapshots). The coordinator of *every* round is the
adversary's: it asks whom it likes, proposes A to some and B to others, and stops in the middle. The Byzantine
witnesses prepare and commit everything, and promise what they like: no lock, or a lock that a quorum's prepare
ballots prove.

A correct witness enters a round by a promise that tells its lock (what it last committed to, if anything), takes part
in no round before that, prepares once in a round what the promises of a quorum allow, and commits to what a quorum
prepared. A promise costs the adversary nothing, so entering without one is left out; so is asking again for the
promise of a round, for the first tells of no more locks than the second.

In each state one more round is thought through, which all correct witnesses promise. It cannot decide anything else
than what is decided. And it can decide: the highest lock that a correct coordinator is told of can be proven to
everybody, all correct witnesses prepare it (or any checkpoint, if there is none), and then commit to it; nothing else
can keep them from it, for none has promised a later round.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from .explorer import distinct, replaced

A, B = 1, 2
NAMES = {A: "A", B: "B"}
NOT_ENTERED = -1
NO_LOCK = 0  # else 4 * (round + 1) + checkpoint: later locks are greater


class Round(NamedTuple):
    """What a witness did in a round. `prepared` is a set, for mutants; `committed` is a checkpoint or 0."""

    told: int = NOT_ENTERED  # the lock in its promise
    prepared: int = 0
    committed: int = 0


Witness = tuple[Round, ...]  # by round
State = tuple[Witness, ...]


@dataclass(frozen=True, slots=True)
class Rules:
    """The federation, and how its correct witnesses behave. Other than default is a mutant."""

    faults: int = 1
    rounds: int = 2
    byzantine: int | None = None  # None: as many as may be bad
    promises_needed: int | None = None  # None of these three: 2f+1
    prepares_needed: int | None = None
    commits_needed: int | None = None
    prepares_once: bool = True
    prepares_above_promise: bool = True
    commits_above_promise: bool = True
    highest_lock_binds: bool = True
    locks_are_proven: bool = True  # a promise's lock counts only with the ballots that prove it
    tells_lock: bool = True
    keeps_proof: bool = True  # a witness keeps the ballots that prove its lock
    looks_ahead: bool = True  # thinks the next round through
    rounds_end: bool = False  # no number is left after the last one, and any may be joined


class Consensus:
    """The model. See the module."""

    def __init__(self, rules: Rules) -> None:
        quorum = 2 * rules.faults + 1
        self.rules = rules
        self.byzantine = rules.faults if rules.byzantine is None else rules.byzantine
        self.correct = 3 * rules.faults + 1 - self.byzantine
        # How many correct witnesses are needed where all Byzantine ones help.
        self._promises = (rules.promises_needed or quorum) - self.byzantine
        self._prepares = (rules.prepares_needed or quorum) - self.byzantine
        self._commits = (rules.commits_needed or quorum) - self.byzantine

    def initial(self) -> State:
        """Frozen, and in no round."""
        return ((Round(),) * self.rules.rounds,) * self.correct

    def broken(self, state: State) -> str:
        """One decision for an epoch; a correct coordinator's next round decides it."""
        decided = self._decided(state)
        if len(decided) > 1:
            return "A and B are both decided"
        return self._next_round(state, decided) if self.rules.looks_ahead else ""

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        """What a witness does, asked by some coordinator."""
        for witness in distinct(state):
            for word, number, changed in self._local(state, witness):
                after = (*witness[:number], changed, *witness[number + 1 :])
                yield f"{_words(witness)} {word} in round {number}", replaced(state, witness, after)

    def _local(self, state: State, witness: Witness) -> Iterator[tuple[str, int, Round]]:
        promised = _promised(witness)
        for number, part in enumerate(witness):
            if number > promised:
                lock = _lock(witness) if self.rules.tells_lock else NO_LOCK
                yield f"promises, telling {_lock_words(lock)},", number, part._replace(told=lock)
            if number == promised or (number < promised and not self.rules.prepares_above_promise):
                for value in self._may_prepare(state, number, part):
                    yield f"prepares {NAMES[value]}", number, part._replace(prepared=part.prepared | value)
            if number == promised or (number < promised and not self.rules.commits_above_promise):
                for value in (A, B):
                    if not part.committed and self._is_prepared(state, number, value):
                        yield f"commits to {NAMES[value]}", number, part._replace(committed=value)

    def _may_prepare(self, state: State, number: int, part: Round) -> Iterator[int]:
        # A and B are alike: the first ballot of all is for A.
        begun = any(other.prepared for witness in state for other in witness)
        for value in (A, B) if begun else (A,):
            free = not part.prepared or (not self.rules.prepares_once and not part.prepared & value)
            told = [witness[number].told for witness in state if witness[number].told != NOT_ENTERED]
            if free and self._is_justified(state, told, value):
                yield value

    def _is_justified(self, state: State, told: list[int], value: int) -> bool:
        """A quorum's promises allow `value`: the highest lock that they tell of is on it, or they tell of none.

        `told` is what correct witnesses told. The adversary shows those promises that tell of the least, and lets its
        own tell of what can be proven.
        """
        if len(told) < self._promises:
            return False
        if not self.rules.highest_lock_binds or (not self.rules.locks_are_proven and self.byzantine):
            return True
        highest = sorted(told)[self._promises - 1] if self._promises > 0 else NO_LOCK
        if highest == NO_LOCK or highest % 4 == value:
            return True
        return any(self._is_prepared(state, later, value) for later in range(highest // 4, self.rules.rounds))

    def _is_prepared(self, state: State, number: int, value: int) -> bool:
        return sum(bool(witness[number].prepared & value) for witness in state) >= self._prepares

    def _decided(self, state: State) -> set[int]:
        return {
            value
            for value in (A, B)
            for number in range(self.rules.rounds)
            if sum(witness[number].committed == value for witness in state) >= self._commits
        }

    def _next_round(self, state: State, decided: set[int]) -> str:
        """What goes wrong if all correct witnesses promise one more round, which nobody was in before."""
        if self.rules.rounds_end and not decided and any(_promised(one) == self.rules.rounds - 1 for one in state):
            return "no round is left for a correct coordinator"
        locks = [_lock(witness) if self.rules.tells_lock else NO_LOCK for witness in state]
        if max(locks) != NO_LOCK and not self.rules.keeps_proof:
            return "a lock that nobody can prove: no proposal is allowed"
        for value in (A, B):
            if decided - {value} and self._is_justified(state, locks, value):
                return f"{NAMES[A + B - value]} is decided, and the next round may decide {NAMES[value]}"
        return ""


def _promised(witness: Witness) -> int:
    """The last round that a witness entered, -1 before."""
    return max((number for number, part in enumerate(witness) if part.told != NOT_ENTERED), default=-1)


def _lock(witness: Witness) -> int:
    """What a witness committed to last, and when."""
    return max(4 * (number + 1) + part.committed if part.committed else NO_LOCK for number, part in enumerate(witness))


def _lock_words(lock: int) -> str:
    return "no lock" if lock == NO_LOCK else f"a lock on {NAMES[lock % 4]} of round {lock // 4 - 1}"


def _words(witness: Witness) -> str:
    return f"(promised round {_promised(witness)}, {_lock_words(_lock(witness))})"
