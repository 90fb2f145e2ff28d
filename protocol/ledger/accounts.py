"""Balances.

Rule: an order takes from its owner exactly what it gives or locks. Nobody falls below 0; an issuer may fall to
minus its share of the supply cap, by grants alone.
"""

from __future__ import annotations

from dataclasses import replace

from protocol.errors import ErrorCode, Refused
from protocol.ledger.genesis import Federation
from protocol.ledger.state import Account
from protocol.messages import Grant, Hold
from protocol.params import MAX_INTEGER
from protocol.pricing import format_credits


def after_debit(federation: Federation, account: Account, order: Grant | Hold) -> Account:
    """The account after it gave or locked the amount. Raises `Refused` (INSUFFICIENT_FUNDS, SUPPLY_CAP)."""
    balance = account.balance - order.amount
    if isinstance(order, Grant) and balance < federation.floor(order.issuer):
        raise Refused(
            ErrorCode.SUPPLY_CAP, f"the grant passes the cap of {format_credits(federation.genesis.supply_cap)}"
        )
    if isinstance(order, Hold) and balance < 0:
        raise Refused(
            ErrorCode.INSUFFICIENT_FUNDS,
            f"the hold locks {format_credits(order.amount)}, the balance is {format_credits(account.balance)}",
        )
    return replace(account, balance=balance)


def credited(account: Account, amount: int) -> Account:
    """The account with `amount` µcredits more (or less, if negative). Raises `Refused` (OVERFLOW)."""
    balance = account.balance + amount
    if not -MAX_INTEGER <= balance <= MAX_INTEGER:
        raise Refused(ErrorCode.OVERFLOW, f"a balance of {balance} µcredits")
    return replace(account, balance=balance)
