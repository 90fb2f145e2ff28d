"""Orders that need other orders: is every merge closed and solvent?

A *closed* set holds an account's orders without gaps; it is *solvent* if no account in it has given more than it had.
Witnesses vote for an order, and store its certificate, only if their own set stays closed and solvent with it. The
claims: what a correct witness holds is always closed and solvent by itself, so a coordinator can demand it of every
snapshot; and every union of 2f+1 snapshots is, even if f of them were made up of any certified orders.

Nobody equivocates here (`orders` has that): the adversary has the order of events, and the Byzantine votes and
snapshots. Some credits are certified from the beginning: their accounts are somebody else's concern.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import combinations
from typing import NamedTuple

from .explorer import distinct, replaced


@dataclass(frozen=True, slots=True)
class Order:
    """One order of a scenario. `certified`: everybody votes for it, whatever happens."""

    name: str
    account: str
    sequence: int
    to: str
    amount: int = 1
    certified: bool = False


@dataclass(frozen=True)
class Scenario:
    """Orders that may be given, and what accounts have before. Accounts not named here have nothing."""

    name: str
    orders: tuple[Order, ...]
    balances: Mapping[str, int] = field(default_factory=dict)
    unlimited: frozenset[str] = frozenset()  # accounts without a floor: issuers


TWO_CREDITS = Scenario(
    "two credits, two debits",
    (
        Order("credit 1", "issuer 1", 0, "payer", certified=True),
        Order("credit 2", "issuer 2", 0, "payer", certified=True),
        Order("debit 1", "payer", 0, "worker"),
        Order("debit 2", "payer", 1, "worker"),
    ),
    unlimited=frozenset({"issuer 1", "issuer 2"}),
)
THERE_AND_BACK = Scenario(
    "credits that come back",
    (
        Order("payer's first", "payer", 0, "worker"),
        Order("worker's", "worker", 0, "payer"),
        Order("payer's second", "payer", 1, "worker"),
    ),
    balances={"payer": 1},
)


class Witness(NamedTuple):
    """A correct witness. Sets of orders are bit masks."""

    voted: int = 0
    held: int = 0
    frozen: bool = False


State = tuple[Witness, ...]


@dataclass(frozen=True, slots=True)
class Rules:
    """The federation, and how its correct witnesses behave. Other than default is a mutant."""

    faults: int = 1
    votes_if_solvent: bool = True
    stores_if_solvent: bool = True
    stores_if_closed: bool = True
    own_sets_matter: bool = True  # the claim about single snapshots; without it only unions are looked at


class Funding:
    """The model. See the module."""

    def __init__(self, scenario: Scenario, rules: Rules) -> None:
        self.scenario = scenario
        self.rules = rules
        self.correct = self.quorum = 2 * rules.faults + 1
        self._all = range(len(scenario.orders))
        self._given = sum(1 << index for index in self._all if scenario.orders[index].certified)
        self._is_closed = cache(self._closed)
        self._is_solvent = cache(self._solvent)
        self._made_up = cache(self._unions_of_lies)

    def initial(self) -> State:
        """Nobody holds anything."""
        return (Witness(),) * self.correct

    def broken(self, state: State) -> str:
        """Own sets and all merges are closed and solvent (I2)."""
        if self.rules.own_sets_matter:
            for witness in distinct(state):
                if not self._good(witness.held):
                    return f"a correct witness holds {self._words(witness.held)}: {self._problem(witness.held)}"
        for union in self._unions(state):
            if not self._good(union):
                return f"a merge holds {self._words(union)}: {self._problem(union)}"
        return ""

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        """What a witness does."""
        certified = self._certified(state)
        for witness in distinct(state):
            if not witness.frozen:
                for word, changed in self._local(witness, certified):
                    yield f"({self._words(witness.held)} held) {word}", replaced(state, witness, changed)

    def _local(self, witness: Witness, certified: int) -> Iterator[tuple[str, Witness]]:
        for index in self._all:
            bit, name = 1 << index, self.scenario.orders[index].name
            after = witness.held | bit
            if not (witness.voted | witness.held | self._given) & bit and self._may_vote(after):
                yield f"votes for {name}", witness._replace(voted=witness.voted | bit)
            if certified & bit and after != witness.held and self._may_store(after):
                yield f"stores {name}", witness._replace(held=after)
        yield "freezes", witness._replace(frozen=True)

    def _may_vote(self, after: int) -> bool:
        return self._is_closed(after) and (self._is_solvent(after) or not self.rules.votes_if_solvent)

    def _may_store(self, after: int) -> bool:
        closed = self._is_closed(after) or not self.rules.stores_if_closed
        return closed and (self._is_solvent(after) or not self.rules.stores_if_solvent)

    def _certified(self, state: State) -> int:
        found = self._given
        for index in self._all:
            if sum(witness.voted >> index & 1 for witness in state) + self.rules.faults >= self.quorum:
                found |= 1 << index
        return found

    def _unions(self, state: State) -> set[int]:
        """Unions of 2f+1 snapshots. With as many lies as may be: a lie can be any set that a correct one could hold."""
        snapshots = [witness.held for witness in state if witness.frozen]
        needed = self.quorum - self.rules.faults
        if len(snapshots) < needed:
            return set()
        found = set()
        lies = self._made_up(self._certified(state))
        for chosen in set(combinations(snapshots, needed)):
            union = 0
            for snapshot in chosen:
                union |= snapshot
            found |= {union | lie for lie in lies}
        return found

    def _unions_of_lies(self, certified: int) -> frozenset[int]:
        """What f made-up snapshots add: each one is closed and solvent by itself, or it is not used."""
        unchecked = not self.rules.own_sets_matter
        single = {lie for lie in range(certified + 1) if not lie & ~certified and (unchecked or self._good(lie))}
        found = {0}
        for _ in range(self.rules.faults):
            found = {union | lie for union in found for lie in single}
        return frozenset(found)

    def _good(self, chosen: int) -> bool:
        return self._is_closed(chosen) and self._is_solvent(chosen)

    def _closed(self, chosen: int) -> bool:
        held = {
            (self.scenario.orders[i].account, self.scenario.orders[i].sequence) for i in self._all if chosen >> i & 1
        }
        return all(sequence == 0 or (account, sequence - 1) in held for account, sequence in held)

    def _solvent(self, chosen: int) -> bool:
        balances = dict(self.scenario.balances)
        for order in (self.scenario.orders[index] for index in self._all if chosen >> index & 1):
            balances[order.account] = balances.get(order.account, 0) - order.amount
            balances[order.to] = balances.get(order.to, 0) + order.amount
        return all(amount >= 0 or account in self.scenario.unlimited for account, amount in balances.items())

    def _words(self, chosen: int) -> str:
        return " + ".join(order.name for i, order in enumerate(self.scenario.orders) if chosen >> i & 1) or "nothing"

    def _problem(self, chosen: int) -> str:
        return "overdrawn" if self._is_closed(chosen) else "an order before it is missing"
