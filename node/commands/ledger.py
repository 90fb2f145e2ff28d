"""`mtor ledger balance|history|show|verify|settle`."""

from __future__ import annotations

import argparse
import time

from node.commands.asking_node import call
from node.commands.screen import print_facts, print_json, print_table
from protocol.pricing import format_credits


def balance(options: argparse.Namespace) -> int:
    """What an account has."""
    facts = call(options, "ledger.balance", {"account": options.account})
    if options.json:
        print_json(facts)
        return 0
    print_facts(
        {
            "account": facts["account"],
            "balance": facts["balance_text"],
            "held in channels": facts["held_text"],
            "earned": facts["earned_text"],
            "spent": facts["spent_text"],
            "promised, not settled": facts["pending_text"],
        }
    )
    return 0


def history(options: argparse.Namespace) -> int:
    """What moved."""
    entries = call(options, "ledger.history", {"limit": options.limit, "before": options.before})["entries"]
    if options.json:
        print_json(entries)
        return 0
    if not entries:
        print("nothing has moved yet")
        return 0
    print_table(
        ("when", "what", "amount", "with", "id"),
        [
            (
                time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(entry["time_ms"] / 1_000)),
                entry["kind"],
                format_credits(entry["amount"]),
                f"…{entry['counterparty'][-8:]}",
                entry["id"][:12],
            )
            for entry in entries
        ],
    )
    return 0


def show(options: argparse.Namespace) -> int:
    """Explain one entry."""
    entry = call(options, "ledger.show", {"id": options.id})
    if options.json:
        print_json(entry)
    else:
        print(entry.pop("sentence"))
        print_facts(entry)
    return 0


def verify(options: argparse.Namespace) -> int:
    """Check the ledger; 1 if it is not true."""
    report = call(options, "ledger.verify", {"signatures": options.signatures})
    if options.json:
        print_json(report)
    else:
        what = "links, sums and signatures" if options.signatures else "links and sums"
        print(
            f"{'verified' if report['verified'] else 'NOT TRUE'}: {report['certificates']} certificates ({what}), "
            f"{report['accounts']} accounts, {report['channels']} channels, sum {report['sum_micro']} µcr"
        )
        for problem in report["problems"]:
            print(f"! {problem}")
    return 0 if report["verified"] else 1


def settle(options: argparse.Namespace) -> int:
    """Close channels now."""
    facts = call(options, "ledger.settle")
    if options.json:
        print_json(facts)
    else:
        print(f"{facts['closed']} channels settled")
    return 0
