"""What `--watch` draws: the node, the realms, the peers.

Rule: it fits 80 columns and one screen; what does not fit is counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from node.commands.client import Json
from node.commands.nodes import OFFER_HEADINGS, PEER_HEADINGS, SERVING_HEADINGS, offer_row, peer_row, serving_row
from node.commands.owner import guard_words
from node.commands.screen import printable, rich_table

if TYPE_CHECKING:
    from rich.console import RenderableType

MOST_ROWS = 12
MOST_PROBLEMS = 5
RUNNING_HEADINGS = ("query", "side", "realm", "model", "with", "state", "s")


def draw_status(facts: Json) -> RenderableType:
    """What `mtor status` says, and the queries that run."""
    from rich.console import Group
    from rich.text import Text

    federation, balance = facts["federation"], facts["balance"]
    lines = (
        f"{facts['name'] or 'node'} …{facts['node'][-8:]}, version {facts['version']}, up {_time(facts)}",
        f"{printable(federation['name'])}, epoch {federation['epoch']}, connected peers: {facts['peers']}",
        f"balance {balance['balance_text']}, held {balance['held_text']}, to come {balance['pending_text']}",
        f"game guard: {guard_words(facts['guard'])}",
    )
    parts: list[RenderableType] = [Text(line, no_wrap=True, overflow="ellipsis") for line in lines]
    serving = [serving_row(each, paused=facts["guard"]["paused"]) for each in facts["serving"]]
    parts += _table(SERVING_HEADINGS, serving, "this node serves no model")
    parts += _table(RUNNING_HEADINGS, [_running_row(query) for query in facts["running"]], "no query runs")
    problems = [Text(f"! {printable(problem)}", style="red") for problem in facts["problems"]]
    return Group(*parts, *([Text()] if problems else []), *problems[:MOST_PROBLEMS])


def draw_realms(facts: Json) -> RenderableType:
    """What `mtor realms` says."""
    return _group(
        OFFER_HEADINGS,
        [offer_row(realm["realm"], offer) for realm in facts["realms"] for offer in realm["offers"]],
        "nothing is on offer",
    )


def draw_peers(facts: Json) -> RenderableType:
    """What `mtor peers` says."""
    return _group(PEER_HEADINGS, [peer_row(peer) for peer in facts["peers"]], "no other node is known")


DRAWN = {"status": draw_status, "realms": draw_realms, "peers": draw_peers}


def _group(headings: Sequence[str], rows: Sequence[Sequence[str]], otherwise: str) -> RenderableType:
    from rich.console import Group

    return Group(*_table(headings, rows, otherwise)[1:])


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]], otherwise: str) -> list[RenderableType]:
    """An empty line and a table, with as many rows as a screen takes."""
    from rich.text import Text

    if not rows:
        return [Text(), Text(otherwise, style="dim")]
    more = [Text(f"and {len(rows) - MOST_ROWS} more", style="dim")] if len(rows) > MOST_ROWS else []
    return [Text(), rich_table(headings, rows[:MOST_ROWS]), *more]


def _running_row(query: Json) -> tuple[str, ...]:
    names = (query["query"][:8], query["side"], printable(query["realm"]), printable(query["model"]) or "any")
    return *names, query["peer"] or "-", query["state"], f"{query['seconds']:.1f}"


def _time(facts: Json) -> str:
    minutes, seconds = divmod(facts["uptime_seconds"], 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
