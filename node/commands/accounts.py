"""`mtor ledger account list|create|consent|attach`, `move`, `recovery-key`, `recover`, `rotate-key`."""

from __future__ import annotations

import argparse
import json
import secrets
from pathlib import Path

from node.commands.asking_node import call
from node.commands.client import Json, NodeClient
from node.commands.screen import print_json, print_table, printable
from node.paths import data_folder
from node.private_files import write_private
from protocol.ids import peer_id
from protocol.signing import SEED_BYTES, Signer


class RecoveryFileError(Exception):
    """The recovery file cannot be used; the message names the fix."""


def list_accounts(options: argparse.Namespace) -> int:
    """The accounts that this node signs for."""
    rows = call(options, "ledger.accounts")["accounts"]
    if options.json:
        print_json(rows)
        return 0
    print_table(
        ("name", "account", "free", "held", "owner", "recovery key"), [(_name(row), *_columns(row)) for row in rows]
    )
    return 0


def _name(row: Json) -> str:
    return "(this node)" if row["main"] else printable(row["name"])


def _columns(row: Json) -> tuple[str, ...]:
    owner = f"…{row['owner'][-8:]}" if row["owner"] else "-"
    return row["account"], row["balance_text"], row["held_text"], owner, "named" if row["recovery"] else "none"


def create(options: argparse.Namespace) -> int:
    """A sub-account whose key is kept by this node."""
    row = _change(options, "ledger.account.create", {"name": options.name, "credits": options.credits})
    if not options.json:
        print(f"account {printable(row['name'])} ({row['account']}) has {row['balance_text']} to spend")
        print(f"more: mtor ledger move {printable(row['name'])} CREDITS; an API key for it: ", end="")
        print(f"mtor keys create NAME --account {printable(row['name'])}")
    return 0


def consent(options: argparse.Namespace) -> int:
    """Let another node's account become a sub-account of this one."""
    facts = _change(options, "ledger.account.consent", {"account": options.account})
    if not options.json:
        print("on that node, before it has spent anything, run:")
        print(f"  mtor ledger account attach {facts['owner']} {facts['consent']}")
    return 0


def attach(options: argparse.Namespace) -> int:
    """Become a sub-account, for ever."""
    facts = _change(options, "ledger.account.attach", {"owner": options.owner, "consent": options.consent})
    if not options.json:
        print(f"this node's account {facts['account']} belongs to {facts['owner']} (order {facts['id'][:12]})")
        print(f"its owner gives it credits with: mtor ledger move {facts['account']} CREDITS")
    return 0


def move(options: argparse.Namespace) -> int:
    """Credits between accounts of one owner."""
    arguments = {"to": options.to, "credits": options.credits, "source": options.source}
    facts = _change(options, "ledger.move", arguments)
    if not options.json:
        print(f"{facts['amount_text']} moved to {facts['to']} (order {facts['id'][:12]})")
    return 0


def recovery_key(options: argparse.Namespace) -> int:
    """Make a recovery key, write its secret to a file, and name it in the ledger."""
    path: Path = options.file
    client = NodeClient(data_folder(options.data))
    account = _signed_for(client, options.account)
    if path.exists():  # an earlier try, of which nobody knows how it ended
        known, secret = _read_recovery(path)
        if known != account:
            raise RecoveryFileError(f"{path} is another account's recovery file; choose another name")
    else:
        secret = secrets.token_hex(SEED_BYTES)
        write_private(path, json.dumps({"account": account, "recovery_secret": secret}, indent=1) + "\n")
    key = peer_id(Signer.from_seed(bytes.fromhex(secret)).node)
    facts = client.call("ledger.recovery", {"key": key, "account": account})
    if options.json:
        print_json(facts)
        return 0
    print(f"{path} recovers account {facts['account']}, should its key be lost or stolen")
    print("keep it off this machine; whoever has it can take the account over, with: mtor ledger recover FILE")
    return 0


def recover(options: argparse.Namespace) -> int:
    """Take over an account by its recovery file, and move its credits here."""
    account, seed = _read_recovery(options.file)
    facts = _change(options, "ledger.recover", {"account": account, "seed": seed, "name": options.name})
    if not options.json:
        print(f"account {account} is this node's now; {facts['amount_text']} moved to this node's own account")
        if facts["held"]:
            print(f"{facts['held_text']} are in open channels; what comes back: mtor ledger move self all --from NAME")
    return 0


def rotate_key(options: argparse.Namespace) -> int:
    """Sign with a new key."""
    facts = _change(options, "ledger.rotate", {"account": options.account})
    if not options.json:
        print(f"account {facts['account']} signs with a new key from now on (order {facts['id'][:12]})")
        print("it is kept in accounts.json in the data folder: keep a copy of that file")
    return 0


def _signed_for(client: NodeClient, named: str) -> str:
    """The peer id of one of this node's accounts: by name, or the main one. Raises `RecoveryFileError`."""
    rows = client.call("ledger.accounts")["accounts"]
    found = [row for row in rows if (named in (row["name"], row["account"]) if named else row["main"])]
    if not found:
        raise RecoveryFileError(f"this node has no account {named!r}; see `mtor ledger account list`")
    return str(found[0]["account"])


def _read_recovery(path: Path) -> tuple[str, str]:
    try:
        content = json.loads(path.read_text())
        return content["account"], content["recovery_secret"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecoveryFileError(
            f"{path} is no recovery file ({type(error).__name__}); one is written by `mtor ledger recovery-key FILE`"
        ) from None


def _change(options: argparse.Namespace, name: str, arguments: Json) -> Json:
    """Something that takes a running node; printed already if JSON was asked for."""
    facts = NodeClient(data_folder(options.data)).call(name, arguments)
    if options.json:
        print_json(facts)
    return facts
