"""`mtor ledger epoch status|propose|accept`."""

from __future__ import annotations

import argparse

from node.commands.asking_node import call
from node.commands.client import Json, NodeClient
from node.commands.screen import print_facts, print_json, print_table, printable
from node.ledger_words import when
from node.paths import data_folder


def status(options: argparse.Namespace) -> int:
    """The epoch in force, and where the witnesses stand."""
    facts = call(options, "ledger.epoch.status")
    if options.json:
        print_json(facts)
        return 0
    print_facts(
        {
            "epoch": facts["epoch"],
            "began": when(facts["began_ms"]),
            "ends": when(facts["due_ms"]) + (" (due)" if facts["due"] else ""),
            "kept from epoch": facts["first_epoch"],
            "this node": _part(facts),
            "agreement": f"{facts['quorum']} of {len(facts['witnesses'])} witnesses",
        }
    )
    print()
    print_table(("witness", "epoch", "state"), [_row(row) for row in facts["witnesses"]])
    return 0


def _row(row: Json) -> tuple[str, ...]:
    name = row["witness"] + (" (this node)" if row["own"] else "")
    return name, "-" if row["epoch"] is None else str(row["epoch"]), printable(row["problem"] or row["standing"])


def _part(facts: Json) -> str:
    if not facts["witness"]:
        return "a member"
    if facts["abstaining"]:
        return "a witness that was set back: it signs nothing until the epoch ends"
    if facts["frozen"]:
        return f"a witness; the epoch is being ended, round {facts['round']}"
    return "a witness" + ("; it has accepted that the epoch ends now" if facts["agreed"] else "")


def propose(options: argparse.Namespace) -> int:
    """End the epoch now."""
    client = NodeClient(data_folder(options.data))
    facts = client.call("ledger.epoch.propose", {"after_restore": options.after_restore})
    if options.json:
        print_json(facts)
        return 0
    if options.after_restore:
        print(f"{facts['restored']} records taken back from members")
    print(f"epoch {facts['epoch']} has begun")
    return 0


def accept(options: argparse.Namespace) -> int:
    """Agree to end the epoch before its time."""
    facts = NodeClient(data_folder(options.data)).call("ledger.epoch.accept")
    if options.json:
        print_json(facts)
    else:
        print(f"this witness agrees that epoch {facts['epoch']} ends, once another one proposes it")
    return 0
