"""Queries through a gateway while its workers are killed and halted at random.

Rule: every query ends honestly. Either the answer is whole, and then it is to the letter what an undisturbed run gives,
or it ends in an error. Afterwards the ledger is true on all nodes, and each worker earned what was signed for it.

    python tests/net/chaos.py --queries 200 --seed 1
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from node.commands.client import NodeClient, NodeRefused, NoNode
from node.engines.tiny import make_tiny_model
from node.local_federation import NodeProcess, local_federation, wait_offers

WORKERS = ("worker-1", "worker-2", "worker-3")
PROMPTS = tuple(f"question number {number}" for number in range(8))
MAX_TOKENS = 440
AT_ONCE = 8
HALT_SECONDS = (1.0, 6.0)
CALM_SECONDS = (0.1, 1.0)  # between two blows
DELIVERY_SECONDS = 60.0


@dataclass
class Tally:
    """What happened."""

    whole: int = 0
    failovers: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    dishonest: list[str] = field(default_factory=list)
    kills: int = 0
    halts: int = 0
    paid: Counter[str] = field(default_factory=Counter)  # µcredits by worker, as the gateway told its clients

    def as_json(self) -> dict[str, Any]:
        """A summary."""
        return {
            "whole": self.whole,
            "failovers": self.failovers,
            "errors": dict(self.errors),
            "dishonest": self.dishonest,
            "kills": self.kills,
            "halts": self.halts,
        }


class Blows:
    """Kills and halts one worker at a time, at seeded random moments; the others go on."""

    def __init__(self, workers: list[NodeProcess], seed: int, tally: Tally) -> None:
        self._workers = workers
        self._chance = random.Random(seed)
        self._tally = tally
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Blows:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(self._chance.uniform(*CALM_SECONDS)):
            worker = self._chance.choice(self._workers)
            if self._chance.random() < 0.5:
                self._kill(worker)
            else:
                self._halt(worker)

    def _kill(self, worker: NodeProcess) -> None:
        self._tally.kills += 1
        worker.kill()
        self._over.wait(self._chance.uniform(*CALM_SECONDS))
        worker.start()
        worker.wait_ready()

    def _halt(self, worker: NodeProcess) -> None:
        self._tally.halts += 1
        worker.freeze()
        self._over.wait(self._chance.uniform(*HALT_SECONDS))
        worker.thaw()


def run(root: Path, queries: int, seed: int, witnesses: int = 1) -> dict[str, Any]:
    """A federation, `queries` queries under blows, and the books afterwards. With 4 witnesses the workers are three of
    them, and are struck as such. Raises `AssertionError`."""
    make_tiny_model(root / "tiny")
    realms = f"realms:\n  - realm: $CHAT\n    model: {root / 'tiny'}\n    arithmetic: fp32\n    queue: 8\n"
    tally = Tally()
    began = time.monotonic()
    with local_federation(root / "nodes", WORKERS, realms, witnesses) as nodes:
        gateway, workers = nodes[0], nodes[1 : 1 + len(WORKERS)]
        expected = {prompt: _answer(gateway.client, prompt)[0] for prompt in PROMPTS}
        chance = random.Random(seed + 1)
        prompts = [chance.choice(PROMPTS) for _ in range(queries)]
        with Blows(workers, seed, tally), ThreadPoolExecutor(AT_ONCE) as pool:
            for outcome in pool.map(lambda prompt: _ask(gateway.client, prompt, expected[prompt]), prompts):
                _count(tally, *outcome)
        books = _books(nodes)
    return (
        {"queries": queries, "seed": seed, "witnesses": witnesses, "seconds": round(time.monotonic() - began, 1)}
        | tally.as_json()
        | books
    )


def _answer(client: NodeClient, prompt: str) -> tuple[str, str, dict[str, Any]]:
    """(text, finish reason, facts) of a streamed answer. Raises `NodeRefused`."""
    body = {
        "model": "auto",
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": MAX_TOKENS,
        "temperature": 0,
        "repetition_penalty": 1.0,
        "mtor": {"deadline_ms": 60_000},
    }
    text, finish, facts = "", "", {}
    for chunk in client.chat(body):
        facts = chunk["mtor"] if "shares" in chunk.get("mtor", {}) else facts
        for choice in chunk["choices"]:
            text += choice["delta"].get("content") or ""
            finish = choice["finish_reason"] or finish
    return text, finish, facts


def _ask(client: NodeClient, prompt: str, expected: str) -> tuple[str, dict[str, Any]]:
    """("whole", facts), ("error", what), or ("dishonest", what)."""
    try:
        text, finish, facts = _answer(client, prompt)
    except NodeRefused as error:
        return "error", {"message": str(error)}
    except (NoNode, OSError, ValueError) as error:
        return "dishonest", {"message": f"the gateway broke: {error!r}"}
    if not finish or text != expected:
        return "dishonest", {"message": f"{prompt}: {finish!r}, {len(text)} of {len(expected)} characters"}
    return "whole", facts


def _count(tally: Tally, ending: str, facts: dict[str, Any]) -> None:
    if ending == "whole":
        tally.whole += 1
        tally.failovers += bool(facts["failover"])
    elif ending == "error":
        tally.errors[facts["message"][:60]] += 1
    else:
        tally.dishonest.append(facts["message"])


def _books(nodes: list[NodeProcess]) -> dict[str, Any]:
    """Deliver, settle and verify; the sums of what was earned and spent."""
    gateway, workers = nodes[0], nodes[1:]
    for worker in workers:
        worker.wait_ready()
    wait_offers(gateway, workers)
    until = time.monotonic() + DELIVERY_SECONDS
    while gateway.client.call("ledger.settle")["undelivered"] and time.monotonic() < until:
        time.sleep(0.5)
    for node in (*workers, gateway, *workers):
        node.client.call("ledger.settle")
    reports = [node.client.call("ledger.verify", {"signatures": True}) for node in nodes]
    balances = [node.client.call("ledger.balance") for node in nodes]
    return {
        "verified": all(report["verified"] for report in reports),
        "sums_micro": [report["sum_micro"] for report in reports],
        "certificates": reports[0]["certificates"],
        "spent": balances[0]["spent"],
        "earned": sum(balance["earned"] for balance in balances[1:]),
        "unsettled": balances[0]["owed"],
    }


def main() -> int:
    """Run once and print the summary; 1 if anything was not as it must be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--witnesses", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mtor-chaos-") as folder:
        result = run(Path(folder), options.queries, options.seed, options.witnesses)
    print(json.dumps(result, indent=1))
    sound = result["verified"] and not any(result["sums_micro"]) and result["earned"] == result["spent"]
    return 0 if sound and not result["dishonest"] else 1


if __name__ == "__main__":
    sys.exit(main())
