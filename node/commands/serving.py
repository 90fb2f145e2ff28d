"""`mtor serve`, `unserve`, `workers`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from node.commands.client import Json, NodeClient, NodeRefused
from node.commands.screen import print_json, print_table, printable, progress_shown
from node.paths import data_folder

WISHES = ("slots", "device", "price_in", "price_out")


def serve(options: argparse.Namespace) -> int:
    """Load a model on the running node, and serve it."""
    given = {name: getattr(options, name) for name in WISHES if getattr(options, name) is not None}
    arguments = _subject(options) | given
    answer: Json = {}
    with progress_shown() as shown:
        for answer in NodeClient(data_folder(options.data)).stream("serving.start", arguments):
            shown(answer)
    if not answer.get("done"):
        raise NodeRefused(502, "the answer broke off; `mtor status` says what became of it")
    if options.json:
        print_json({name: answer[name] for name in ("model", "realm", "kept", "note") if name in answer})
        return 0
    until = "after a restart, too" if answer["kept"] else "until the node ends"
    print(f"{answer['model']} is served in {answer['realm']}, {until}")
    _tell_note(answer)
    return 0


def unserve(options: argparse.Namespace) -> int:
    """Stop serving it."""
    answer = NodeClient(data_folder(options.data)).call("serving.stop", _subject(options))
    if options.json:
        print_json(answer)
        return 0
    print(f"{answer['stopped']} is no longer served ({', '.join(answer['realms'])})")
    _tell_note(answer)
    return 0


def workers(options: argparse.Namespace) -> int:
    """Servers beside the node."""
    rows = NodeClient(data_folder(options.data)).call("workers.list")["workers"]
    if options.json:
        print_json(rows)
    elif rows:
        headings = ("realm", "model", "engine", "url", "busy", "queued", "answered", "failed", "last error")
        print_table(headings, [_worker_row(row) for row in rows])
    else:
        print("no server beside this node is used; docs/workers.md says how")
    return 0


def _worker_row(row: Json) -> tuple[str, ...]:
    busy = f"{row['busy']}/{row['slots']}" if row["ready"] else "down"
    counts = (str(row[name]) for name in ("queued", "answered", "failed"))
    return row["realm"], row["model"], row["engine"], row["url"], busy, *counts, printable(row["last_error"]) or "-"


def _subject(options: argparse.Namespace) -> Json:
    """Which model. A path starts where the command was typed, not where the node was."""
    model: str = options.model
    path = Path(model).expanduser()
    model = str(path.absolute()) if os.sep in model else model
    return {"model": model, "realm": options.realm, "keep": not options.once}


def _tell_note(answer: Json) -> None:
    if "note" in answer:
        print(f"! {answer['note']}")
