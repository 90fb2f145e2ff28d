"""Balances.

Rule: an order takes from its owner exactly what it gives or locks, and only if that is there. Nobody falls below 0; an
issuer may fall to minus its share of the supply cap, by grants alone.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from protocol.errors import ErrorCode, Refused
from protocol.ledger.genesis import Federation
from protocol.ledger.orders import AccountOrder, owner_of
from protocol.ledger.state import Account
from protocol.messages import Grant, Hold, Move
from protocol.params import MAX_INTEGER
from protocol.pricing import format_credits


def debit(order: AccountOrder) -> int:
    """What an order takes from its owner, µcredits."""
    return order.amount if isinstance(order, Grant | Hold | Move) else 0


def check_solvent(federation: Federation, account: Account, order: AccountOrder) -> None:
    """The account can give what the order takes. Raises `Refused` (INSUFFICIENT_FUNDS, SUPPLY_CAP)."""
    if account.balance - debit(order) >= federation.floor(owner_of(order)):
        return
    if isinstance(order, Grant):
        raise Refused(
            ErrorCode.SUPPLY_CAP, f"the grant passes the cap of {format_credits(federation.genesis.supply_cap)}"
        )
    raise Refused(
        ErrorCode.INSUFFICIENT_FUNDS,
        f"the order takes {format_credits(debit(order))}, the balance is {format_credits(account.balance)}",
    )


def credited(account: Account, amount: int, **changes: Any) -> Account:
    """The account with `amount` µcredits more (or less, if negative), and other `changes`.

    Raises `Refused` (OVERFLOW).
    """
    balance = account.balance + amount
    if not -MAX_INTEGER <= balance <= MAX_INTEGER:
        raise Refused(ErrorCode.OVERFLOW, f"a balance of {balance} µcredits")
    return replace(account, balance=balance, **changes)
