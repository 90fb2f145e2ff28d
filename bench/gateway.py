"""What the gateway and one libp2p hop with payment add, in one run.

Rule: the gateway alone answers from a script that takes no time, so all that is measured is its own. The hop is the
same tiny model and question in rounds that take turns: on the node that serves it, and through a node without a model
(paid, one hop). Medians, and the difference of medians.

    python bench/gateway.py [--rounds N] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import trio

from node.answers import AnswerEvent, Completed, Delta, Question
from node.commands.client import NodeClient
from node.config import GatewaySection
from node.engines.tiny import make_tiny_model
from node.gateway.http import Gateway
from node.local_federation import local_federation

TOKENS = 32
AT_ONCE = (1, 8)


def one(client: NodeClient) -> tuple[float, float]:
    """(ms to the first text, ms to the end) of one streamed answer."""
    body = {"model": "auto", "messages": [{"role": "user", "content": "hi"}], "max_tokens": TOKENS, "temperature": 0}
    began, first = time.perf_counter(), 0.0
    for chunk in client.chat(body):
        for choice in chunk["choices"]:
            if choice["delta"].get("content") and not first:
                first = time.perf_counter() - began
    return first * 1_000, (time.perf_counter() - began) * 1_000


def measure(client: NodeClient, at_once: int) -> list[tuple[float, float]]:
    """`at_once` answers at the same time."""
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(lambda _: one(client), range(at_once)))


class Script:
    """An `Answers` that takes no time: one route, the tokens, the end."""

    async def answer(self, question: Question, emit: Callable[[AnswerEvent], Awaitable[None]]) -> None:
        """See `Answers`."""
        for _ in range(TOKENS):
            await emit(Delta("word "))
        await emit(Completed("stop", "script", 8, TOKENS, 0, (), False))


class Nothing:
    """Operations and facts that nobody asks for here."""

    async def call(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Never called."""
        raise NotImplementedError

    stream = models = readiness = figures = call


async def gateway_alone(folder: Path, rounds: int) -> dict[str, float]:
    """The gateway over a script: medians in ms."""
    nothing: Any = Nothing()
    gateway = Gateway(GatewaySection(port=0), folder, Script(), nothing, nothing)
    async with trio.open_nursery() as nursery:
        await nursery.start(gateway.run)
        client = NodeClient(folder)
        samples = await trio.to_thread.run_sync(lambda: [one(client) for _ in range(rounds * 10)])
        nursery.cancel_scope.cancel()
    first, whole = (statistics.median(column) for column in zip(*samples, strict=True))
    return {"gateway_alone_answers": len(samples), "gateway_first_ms": first, "gateway_whole_ms": whole}


def run(root: Path, rounds: int) -> list[dict[str, float]]:
    """A row for each way and load: medians in ms."""
    make_tiny_model(root / "tiny")
    realms = f"realms:\n  - realm: $CHAT\n    model: {root / 'tiny'}\n    slots: 8\n    arithmetic: fp32\n"
    rows = []
    with local_federation(root / "nodes", ["worker"], realms) as nodes:
        clients = {"own": nodes[1].client, "hop": nodes[0].client}
        for client in clients.values():
            measure(client, max(AT_ONCE))  # channels are opened and caches are warm before anything counts
        for at_once in AT_ONCE:
            samples: dict[str, list[tuple[float, float]]] = {way: [] for way in clients}
            for _ in range(rounds):
                for way, client in clients.items():
                    samples[way] += measure(client, at_once)
            medians = {
                way: [statistics.median(column) for column in zip(*rows_, strict=True)]
                for way, rows_ in samples.items()
            }
            rows.append(
                {
                    "at_once": at_once,
                    "answers": len(samples["own"]),
                    "own_first_ms": medians["own"][0],
                    "own_whole_ms": medians["own"][1],
                    "hop_first_ms": medians["hop"][0],
                    "hop_whole_ms": medians["hop"][1],
                    "added_first_ms": medians["hop"][0] - medians["own"][0],
                    "added_whole_ms": medians["hop"][1] - medians["own"][1],
                }
            )
    return rows


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mtor-bench-") as folder:
        rows = [trio.run(gateway_alone, Path(folder), options.rounds), *run(Path(folder), options.rounds)]
    if options.json:
        print(json.dumps(rows))
        return 0
    print(f"{TOKENS} tokens of a tiny model; medians in ms over {options.rounds} rounds")
    for row in rows:
        print("  ".join(f"{name} {value:.1f}" for name, value in row.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
