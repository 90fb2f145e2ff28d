"""Counts and prices to µcredits.

Rule: integers only, rounded up once for each kind of token, and a result outside 0 … 2^53-1 is refused, never
clipped. The same two counts and two prices give the same amount on every machine.
"""

from __future__ import annotations

import re

from protocol.errors import ErrorCode, LocalProtocolError, Refused
from protocol.ids import Credits
from protocol.params import MAX_INTEGER, MICRO, PRICE_UNITS

_CREDITS = re.compile(r"(?P<whole>\d{1,3}(?:,\d{3})+|\d+)(?:\.(?P<fraction>\d+))?(?:\s*cr)?", re.ASCII)
_FRACTION_DIGITS = 6  # a µcredit is the sixth decimal


def checked_amount(amount: int) -> Credits:
    """`amount` (µcredits) if it lies in 0 … 2^53-1. Raises `Refused` (OVERFLOW)."""
    if not 0 <= amount <= MAX_INTEGER:
        raise Refused(ErrorCode.OVERFLOW, f"{amount} µcredits lies outside 0 … {MAX_INTEGER}")
    return Credits(amount)


def cost(units: int, price: int) -> Credits:
    """µcredits for `units` tokens at `price` µcredits for 1,000, rounded up. Raises `Refused` (OVERFLOW)."""
    checked_amount(units)
    checked_amount(price)
    return checked_amount(-(-units * price // PRICE_UNITS))


def channel_cost(units_in: int, units_out: int, price_in: int, price_out: int) -> Credits:
    """µcredits for a channel's prompt and output tokens: each kind rounded up, then added.

    Raises `Refused` (OVERFLOW).
    """
    return checked_amount(cost(units_in, price_in) + cost(units_out, price_out))


def format_credits(micro: int) -> str:
    """`micro` µcredits as people read them: `9,000 cr`, `-0.000001 cr`, at most six decimals."""
    whole, rest = divmod(abs(micro), MICRO)
    fraction = f".{rest:0{_FRACTION_DIGITS}d}".rstrip("0") if rest else ""
    sign = "-" if micro < 0 else ""
    return f"{sign}{whole:,}{fraction} cr"


def parse_credits(text: str) -> Credits:
    """The µcredits in `1.5`, `9,000` or `9,000 cr`. Raises `LocalProtocolError` with what is wrong."""
    match = _CREDITS.fullmatch(text.strip())
    if match is None:
        raise LocalProtocolError(f"{text!r} is not an amount of credits; write one like 1.5 or 9,000")
    fraction = match["fraction"] or ""
    if len(fraction) > _FRACTION_DIGITS:
        raise LocalProtocolError(f"{text!r} has more than {_FRACTION_DIGITS} decimals; a credit has no smaller parts")
    micro = int(match["whole"].replace(",", "")) * MICRO + int(fraction.ljust(_FRACTION_DIGITS, "0"))
    if micro > MAX_INTEGER:
        raise LocalProtocolError(f"{text!r} is more than the {format_credits(MAX_INTEGER)} that an account can hold")
    return Credits(micro)
