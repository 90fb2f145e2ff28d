"""µcredits: rounding, bounds, and the text that people read and write."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ErrorCode, LocalProtocolError, Refused
from protocol.params import MAX_INTEGER, MICRO
from protocol.pricing import channel_cost, cost, format_credits, parse_credits


@pytest.mark.parametrize(
    ("units", "price", "expected"),
    [(0, 5, 0), (1, 1, 1), (1, 1_000, 1), (1, 1_001, 2), (999, 1, 1), (1_000, 1, 1), (1_001, 1, 2), (64, 3_000, 192)],
)
def test_cost_is_rounded_up(units: int, price: int, expected: int) -> None:
    assert cost(units, price) == expected


def test_each_kind_of_token_is_rounded_by_itself() -> None:
    assert channel_cost(1, 1, 1, 1) == 2


@given(st.integers(0, MAX_INTEGER), st.integers(0, MAX_INTEGER))
def test_cost_is_exact_or_refused(units: int, price: int) -> None:
    exact = -(-units * price // 1_000)
    if exact <= MAX_INTEGER:
        assert cost(units, price) == exact
    else:
        with pytest.raises(Refused) as refused:
            cost(units, price)
        assert refused.value.code is ErrorCode.OVERFLOW


def test_a_sum_beyond_the_bound_is_refused() -> None:
    with pytest.raises(Refused) as refused:
        channel_cost(MAX_INTEGER, 1, 1_000, 1_000)
    assert refused.value.code is ErrorCode.OVERFLOW


@pytest.mark.parametrize("bad", [-1, MAX_INTEGER + 1])
def test_counts_outside_the_bounds_are_refused(bad: int) -> None:
    for units, price in ((bad, 0), (0, bad)):
        with pytest.raises(Refused):
            cost(units, price)


@pytest.mark.parametrize(
    ("micro", "text"),
    [
        (0, "0 cr"),
        (9_000 * MICRO, "9,000 cr"),
        (1_500_000, "1.5 cr"),
        (1, "0.000001 cr"),
        (-1, "-0.000001 cr"),
        (-1_500_000, "-1.5 cr"),
        (MAX_INTEGER, "9,007,199,254.740991 cr"),
    ],
)
def test_format(micro: int, text: str) -> None:
    assert format_credits(micro) == text


@given(st.integers(0, MAX_INTEGER))
def test_parse_is_the_inverse_of_format(micro: int) -> None:
    assert parse_credits(format_credits(micro)) == micro


@pytest.mark.parametrize(("text", "micro"), [("1.5", 1_500_000), (" 9,000 ", 9_000 * MICRO), ("2cr", 2 * MICRO)])
def test_parse(text: str, micro: int) -> None:
    assert parse_credits(text) == micro


@pytest.mark.parametrize("text", ["", "x", "-1", "1,00", "1.", ".5", "1e3", "1.0000001", "9007199255", "１", "1 2"])
def test_parse_says_what_is_wrong(text: str) -> None:
    with pytest.raises(LocalProtocolError, match=r"credit|cr "):
        parse_credits(text)
