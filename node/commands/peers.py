"""`mtor peers block|unblock|blocked`."""

from __future__ import annotations

import argparse

from node.commands.client import Json, NodeClient
from node.commands.screen import print_json, print_table, printable
from node.paths import data_folder


def block(options: argparse.Namespace) -> int:
    """Refuse a peer."""
    answer = _call(options, "peers.block", {"peer": options.peer, "reason": options.reason})
    if options.json:
        print_json(answer)
        return 0
    print(f"{answer['node']} is blocked, now and after a restart")
    if "note" in answer:
        print(f"! {answer['note']}")
    return 0


def unblock(options: argparse.Namespace) -> int:
    """Let one in again."""
    answer = _call(options, "peers.unblock", {"peer": options.peer})
    if options.json:
        print_json(answer)
    else:
        print(f"{answer['unblocked']} is no longer blocked")
    return 0


def blocked(options: argparse.Namespace) -> int:
    """Who is refused."""
    rows = _call(options, "peers.blocked", {})["blocked"]
    if options.json:
        print_json(rows)
    elif rows:
        lines = [(row["node"], row["since"] or "-", printable(row["reason"]) or "-") for row in rows]
        print_table(("node", "since", "reason"), lines, unbroken=1)
    else:
        print("nobody is blocked")
    return 0


def _call(options: argparse.Namespace, name: str, arguments: Json) -> Json:
    return NodeClient(data_folder(options.data)).call(name, arguments)
