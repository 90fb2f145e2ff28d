"""`mtor keys create|list|revoke`."""

from __future__ import annotations

import argparse
import time

from node.commands.client import NodeClient
from node.commands.screen import print_json, print_table, printable
from node.gateway.keys import ApiKeys, KeysError
from node.paths import data_folder


def create(options: argparse.Namespace) -> int:
    """Make a key; it is shown once."""
    print(ApiKeys(data_folder(options.data)).create(options.name, _account(options)))
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
    keys = ApiKeys(data_folder(options.data)).all()
    if options.json:
        print_json([{"id": key.id, "name": key.name, "created": key.created, "account": key.account} for key in keys])
        return 0
    when = [time.strftime("%Y-%m-%d", time.localtime(key.created)) for key in keys]
    rows = [
        (key.id, key.name, day, f"…{key.account[-8:]}" if key.account else "this node")
        for key, day in zip(keys, when, strict=True)
    ]
    print_table(("id", "name", "created", "paid by"), rows)
    return 0


def revoke(options: argparse.Namespace) -> int:
    """Remove a key; a running node refuses it from its next request on."""
    key = ApiKeys(data_folder(options.data)).revoke(options.id)
    print(f"revoked {key.id} ({printable(key.name)})")
    if key.account:
        print(f"its sub-account keeps what it has; take it back with: mtor ledger move self all --from {key.account}")
    return 0
