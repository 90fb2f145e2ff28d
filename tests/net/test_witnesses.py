"""Four witnesses as processes of their own: one is killed and nothing changes; two, and the user is told why."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.commands.client import NodeRefused
from node.engines.tiny import make_tiny_model
from node.local_federation import NodeProcess, local_federation
from tests.net.chaos import run

pytestmark = pytest.mark.net

PATIENCE_SECONDS = 60.0


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[list[NodeProcess]]:
    make_tiny_model(tmp_path / "tiny")
    realms = f"realms:\n  - realm: $CHAT\n    model: {tmp_path / 'tiny'}\n    arithmetic: fp32\n"
    with local_federation(tmp_path / "nodes", ["worker"], realms, witnesses=4) as running:
        yield running


def ask(gateway: NodeProcess, max_tokens: int = 5) -> int:
    """One whole answer; what it cost, µcr."""
    body = {
        "model": "auto",
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": max_tokens,
        "stream": True,
    }
    facts = [chunk["mtor"] for chunk in gateway.client.chat(body) if "cost_micro" in (chunk.get("mtor") or {})]
    return int(facts[-1]["cost_micro"])


def until(node: NodeProcess, name: str, key: str, value: object) -> None:
    """Wait until an operation's answer says so."""
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end:
        if node.client.call(name)[key] == value:
            return
        time.sleep(0.2)
    raise AssertionError(f"{node.name}: {name} says {node.client.call(name)}")


def test_one_dead_witness_changes_nothing_two_stop_new_channels_and_a_lost_ledger_comes_back(
    nodes: list[NodeProcess],
) -> None:
    gateway, worker, third, fourth = nodes
    spent = ask(gateway)
    fourth.kill()
    gateway.client.call("ledger.account.create", {"name": "laptop", "credits": "1"})  # three are enough
    third.kill()
    spent += ask(gateway)  # the open channel goes on
    with pytest.raises(NodeRefused, match=r"2 of the federation's 4 witnesses .* 3 are needed"):
        gateway.client.call("ledger.move", {"to": "laptop", "credits": "1"})
    third.start()
    shutil.rmtree(fourth.folder / "ledgers")  # it loses its ledger, and must not vote again before the epoch has ended
    fourth.start()
    for node in (third, fourth):
        node.wait_ready()
    gateway.client.call("ledger.move", {"to": "laptop", "credits": "1"})
    assert fourth.client.call("ledger.epoch.status")["abstaining"]

    for node in (worker, third):
        node.client.call("ledger.epoch.accept")
    assert gateway.client.call("ledger.epoch.propose")["epoch"] == 1
    until(fourth, "ledger.epoch.status", "epoch", 1)
    assert not fourth.client.call("ledger.epoch.status")["abstaining"]
    for node in (worker, *nodes):
        node.client.call("ledger.settle")
    assert worker.client.call("ledger.balance")["earned"] == spent > 0
    for node in nodes:
        report = node.client.call("ledger.verify", {"signatures": True})
        assert report["verified"] and report["sum_micro"] == 0, report


def test_queries_go_on_while_witnesses_that_serve_them_are_killed_and_halted(tmp_path: Path) -> None:
    result = run(tmp_path, queries=16, seed=7, witnesses=4)
    assert result["dishonest"] == [] and result["whole"] >= 8 and result["kills"] + result["halts"] > 0
    assert result["verified"] and set(result["sums_micro"]) == {0}
    assert result["earned"] == result["spent"] > 0 and result["unsettled"] == 0
