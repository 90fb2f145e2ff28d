"""The models of `spec/model`: the design holds within the short bounds, and every mutant is found.

`make model-check` walks through the long ones too.
"""

import pytest

from spec.model.explorer import BoundTooSmall, explore
from spec.model.orders import Orders, Rules
from spec.model.suite import Check, judge, suite

SHORT = [check for check in suite() if not check.long]


@pytest.mark.parametrize("check", SHORT, ids=lambda check: check.name)
def test_short_checks_come_to_what_they_must(check: Check) -> None:
    verdict = judge(check)
    assert verdict.expected, (verdict.result.broken, *verdict.result.trace)


def test_every_mutant_says_how_it_must_break() -> None:
    mutants = [check for check in suite() if "mutant" in check.name]
    assert len(mutants) > 20
    assert all(check.breaks and not check.long for check in mutants)


def test_every_part_has_a_check_of_the_design_for_each_number_of_witnesses() -> None:
    designs = [check.name for check in suite() if not check.breaks]
    for part in ("orders", "funding", "channels", "consensus"):
        for size in ("n = 4", "n = 7"):
            assert any(name.startswith(part) and size in name for name in designs)


def test_a_trace_is_a_way_through_the_model() -> None:
    model = Orders(Rules(quorum=2))
    result = explore(model, 1_000)
    state = model.initial()
    for words in result.trace:
        state = dict(model.steps(state))[words]
    assert model.broken(state) == result.broken == "two certificates for one number"


def test_a_bound_that_is_too_small_is_no_result() -> None:
    with pytest.raises(BoundTooSmall):
        explore(Orders(Rules()), 100)
