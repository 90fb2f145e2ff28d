"""What is checked: the design, what happens without one of its rules, and which rules are spare.

Rule: every check says beforehand what it must come to. A mutant that is not found is as bad as a design that breaks.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any

from . import channels, consensus, funding, orders
from .channels import Channels
from .consensus import Consensus
from .explorer import Model, Result, explore
from .funding import THERE_AND_BACK, TWO_CREDITS, Funding
from .orders import UNAWARE, Orders

LIMIT = 3_000_000  # states


@dataclass(frozen=True, slots=True)
class Check:
    """One walk. `breaks` is how its report must begin; empty if everything must hold. `long`: over some seconds."""

    name: str
    model: Model[Any]
    breaks: str = ""
    long: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check came to."""

    check: Check
    result: Result[Hashable]

    @property
    def expected(self) -> bool:
        """True if it came to what it must."""
        broken, must = self.result.broken, self.check.breaks
        return broken.startswith(must) if must else not broken


def judge(check: Check) -> Verdict:
    """Walk through the model. Raises `BoundTooSmall`."""
    return Verdict(check, explore(check.model, LIMIT))


def suite() -> Iterator[Check]:
    """All checks: first what must hold, part by part, each with its mutants."""
    yield from _orders()
    yield from _funding()
    yield from _channels()
    yield from _consensus()


def _orders() -> Iterator[Check]:
    def check(name: str, breaks: str = "", **rules: Any) -> Check:
        return Check(f"orders: {name}", Orders(orders.Rules(**rules)), breaks)

    two, lost = "two certificates", "A is final, and not in the merge"
    yield check("n = 4, f = 1")
    yield check("n = 7, f = 2", faults=2)
    yield check("mutant: certificates of 2f votes", two, quorum=2)
    yield check("mutant: f+1 Byzantine witnesses", two, byzantine=2, must_end=False)
    yield check("mutant: a witness votes for both", two, votes_once=False)
    yield check("mutant: final as soon as certified", lost, final_when_certified=True)
    yield check("mutant: a frozen witness stores and acknowledges", lost, stores_frozen=True)
    yield check("f Byzantine, one set back and abstaining, n = 4: safe", set_backs=1, must_end=False)
    yield check("f Byzantine, all others set back and abstaining, n = 4: safe", set_backs=3, must_end=False)
    yield check("f Byzantine, three set back and abstaining, n = 7: safe", faults=2, set_backs=3, must_end=False)
    yield check("... but the epoch may not end, n = 4", "no quorum is left", set_backs=1)
    yield check("f-1 Byzantine, one set back and abstaining, n = 4: safe, and ends", byzantine=0, set_backs=1)
    yield check("f-1 Byzantine, one set back and abstaining, n = 7: safe, and ends", faults=2, byzantine=1, set_backs=1)
    unaware: dict[str, Any] = {"set_backs": 1, "after_set_back": UNAWARE}
    yield check("f-1 Byzantine, one set back that does not know, n = 4", byzantine=0, **unaware)
    yield Check(
        "orders: f-1 Byzantine, one set back that does not know, n = 7",
        Orders(orders.Rules(faults=2, byzantine=1, set_backs=1, after_set_back=UNAWARE)),
        long=True,
    )
    yield check("mutant: f Byzantine, one set back goes on", two, **unaware)
    yield check(
        "mutant: ... goes on until it meets a vote it does not know", two, notices=True, must_end=False, **unaware
    )


def _funding() -> Iterator[Check]:
    for scenario in (TWO_CREDITS, THERE_AND_BACK):
        yield from _funding_of(scenario)


def _funding_of(scenario: funding.Scenario) -> Iterator[Check]:
    def check(name: str, breaks: str = "", long: bool = False, **rules: Any) -> Check:
        return Check(f"funding, {scenario.name}: {name}", Funding(scenario, funding.Rules(**rules)), breaks, long)

    own = "a correct witness holds"
    neither: dict[str, Any] = {"stores_if_solvent": False, "votes_if_solvent": False}
    yield check("n = 4, f = 1")
    yield check("n = 7, f = 2", long=True, faults=2)
    yield check("mutant: stores what is not covered", own, stores_if_solvent=False)
    yield check("mutant: stores what lacks an order before it", own, stores_if_closed=False)
    yield check("mutant: votes for and stores what is not covered", "a merge holds", own_sets_matter=False, **neither)
    spare: dict[str, Any] = {"stores_if_solvent": False, "stores_if_closed": False, "own_sets_matter": False}
    yield check("spare: stores anything; merges are whole all the same, n = 4", **spare)
    yield check("spare: stores anything; merges are whole all the same, n = 7", long=True, faults=2, **spare)


def _channels() -> Iterator[Check]:
    def check(name: str, breaks: str = "", long: bool = False, **rules: Any) -> Check:
        return Check(f"channels: {name}", Channels(channels.Rules(**rules)), breaks, long)

    two = "two certificates"
    yield check("n = 4, f = 1, two changes of epochs")
    yield check("n = 4, f = 1, three changes", changes=3)
    yield check("n = 7, f = 2, one change", faults=2, changes=1)
    yield check("n = 7, f = 2, two changes", long=True, faults=2)
    yield check("mutant: a vote for a Close lapses with its epoch", two, votes_lapse=True)
    yield check("mutant: acknowledgements of two epochs count together", "Close A is final", epochs_mixed=True)
    yield check("spare: ... if void Closes are always applied again", epochs_mixed=True, applies_again=(True,))
    yield check("mutant: a void Close is applied again to a refunded channel", "a channel that", looks_before=False)
    yield check("mutant: a checkpoint refunds before it unites", "Close A is final in epoch 0", refunds_held=True)
    yield check("f Byzantine, one set back, n = 4: safe", set_backs=1)
    yield check("f Byzantine, two set back, n = 4: safe", long=True, set_backs=2)
    yield check("f Byzantine, one set back, n = 7, one change: safe", long=True, faults=2, changes=1, set_backs=1)
    yield check("mutant: set back, it votes for Closes again after the epoch", two, set_backs=1, silent_for_ever=False)
    later: dict[str, Any] = {"set_backs": 1, "silent_long": False}
    yield check("mutant: set back to an earlier epoch, it is silent in that one only", "Close A is final", **later)


def _consensus() -> Iterator[Check]:
    def check(name: str, breaks: str = "", long: bool = False, **rules: Any) -> Check:
        return Check(f"consensus: {name}", Consensus(consensus.Rules(**rules)), breaks, long)

    def unsafe(name: str, **rules: Any) -> Check:
        return check(f"mutant: {name}", "A and B are both decided", looks_ahead=False, **rules)

    yield check("n = 4, f = 1, two rounds and the next")
    yield check("n = 4, f = 1, three rounds and the next", long=True, rounds=3)
    yield check("n = 7, f = 2, two rounds and the next", long=True, faults=2)
    yield unsafe("f+1 Byzantine witnesses", byzantine=2)
    yield unsafe("a witness prepares twice in a round", prepares_once=False)
    yield unsafe("commits in a round below its promise", commits_above_promise=False)
    yield unsafe("the highest lock does not bind", highest_lock_binds=False)
    yield unsafe("a lock needs no proof", locks_are_proven=False)
    yield unsafe("a promise does not tell the lock", tells_lock=False)
    yield unsafe("2f promises are enough", promises_needed=2)
    yield unsafe("2f ballots prepare", prepares_needed=2)
    yield unsafe("2f commits decide", commits_needed=2)
    yield check("mutant: a witness does not keep its lock's proof", "a lock that nobody", keeps_proof=False)
    yield check("mutant: rounds end, and any may be joined", "no round is left", rounds_end=True)
    yield check("spare: prepares in a round below its promise", prepares_above_promise=False)
