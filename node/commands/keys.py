"""`mtor keys create|list|revoke`.

Rule: the files are the truth, so these work with and without a running node; it goes by them from its next request on.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

from node.commands.client import NodeClient
from node.commands.screen import print_json, print_table, printable
from node.gateway.key_usage import KeyUsage, key_facts
from node.gateway.keys import ApiKeys, KeysError, terms
from node.paths import data_folder


def create(options: argparse.Namespace) -> int:
    """Make a key; it is shown once."""
    wanted = terms(options.scope, options.expires, options.requests, options.tokens, options.month)
    keys = ApiKeys(data_folder(options.data))
    keys.check_name(options.name)  # before an account is made for it
    print(keys.create(options.name, _account(options), wanted))
    return 0


def _account(options: argparse.Namespace) -> str:
    """The sub-account that is to pay: one that is there, or a new one with these credits; "" without a limit."""
    if not (options.account or options.credits):
        return ""
    client = NodeClient(data_folder(options.data))
    if options.account:
        rows = client.call("ledger.accounts")["accounts"]
        found = [row for row in rows if options.account in (row["name"], row["account"]) and not row["main"]]
        if not found:
            raise KeysError(f"there is no sub-account {options.account!r}; see `mtor ledger account list`")
        if options.credits:
            client.call("ledger.move", {"to": found[0]["account"], "credits": options.credits})
        return str(found[0]["account"])
    created = client.call("ledger.account.create", {"name": f"key {options.name}", "credits": options.credits})
    return str(created["account"])


def list_keys(options: argparse.Namespace) -> int:
    """The keys that exist, without themselves."""
    data = data_folder(options.data)
    usage, now = KeyUsage(data), time.time()
    keys = [key_facts(key, usage, now) for key in ApiKeys(data).all()]
    if options.json:
        print_json(keys)
        return 0
    print_table(("id", "name", "created", "may", "this month", "last used", "paid by"), [_row(key) for key in keys], 1)
    return 0


def _row(key: dict[str, Any]) -> tuple[str, ...]:
    spent = key["spent_this_month"] + (f" of {key['monthly_credits']}" if key["monthly_micro"] else "")
    payer = f"…{key['account'][-8:]}" if key["account"] else "this node"
    last_used = _day(key["last_used"]) if key["last_used"] else "never"
    return key["id"], printable(key["name"]), _day(key["created"]), _may(key), spent, last_used, payer


def _may(key: dict[str, Any]) -> str:
    """Scopes and limits, in a few words."""
    limits = [f"{key[f'{unit}_per_minute']} {unit}/min" for unit in ("requests", "tokens") if key[f"{unit}_per_minute"]]
    ends = [f"expired {_day(key['expires'])}" if key["expired"] else f"until {_day(key['expires'])}"]
    return ", ".join([" ".join(key["scopes"]), *limits, *(ends if key["expires"] else [])])


def _day(seconds: int) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(seconds))


def revoke(options: argparse.Namespace) -> int:
    """Remove a key; a running node refuses it from its next request on."""
    key = ApiKeys(data_folder(options.data)).revoke(options.id)
    print(f"revoked {key.id} ({printable(key.name)})")
    if key.account:
        print(f"its sub-account keeps what it has; take it back with: mtor ledger move self all --from {key.account}")
    return 0
