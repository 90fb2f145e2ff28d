"""Real node processes find each other: by gossip alone, by the DHT alone; and say so when they cannot."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.commands.client import NodeClient
from node.engines.tiny import make_tiny_model
from node.local_federation import SETTINGS, NodeProcess, local_federation, wait_offers

pytestmark = pytest.mark.net
WAIT_SECONDS = 60.0


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_tiny_model(folder)
    return folder


@pytest.fixture(scope="module")
def federation(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[NodeProcess]]:
    """A gateway and a worker, for the tests that ask for `nodes`."""
    with local_federation(tmp_path_factory.mktemp("shared"), ["worker"], realms(tiny)) as running:
        yield running


@pytest.fixture
def nodes(federation: list[NodeProcess]) -> list[NodeProcess]:
    """Both running, whatever the test before ended, and the worker's engine loaded."""
    for node in federation:
        if node.process is None or node.process.poll() is not None:
            node.start()
            node.wait_ready()
    wait_offers(federation[0], federation[1:])
    return federation


def realms(tiny: Path) -> str:
    return f"realms:\n  - realm: $CHAT\n    model: {tiny}\n    arithmetic: fp32\n"


def answer(client: NodeClient, max_tokens: int = 8) -> str:
    body = {
        "model": "auto",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": max_tokens,
        "temperature": 0,
    }
    return "".join(c["delta"].get("content") or "" for chunk in client.chat(body) for c in chunk["choices"])


@pytest.mark.parametrize("only", ["gossip", "dht"])
def test_a_fresh_node_finds_a_worker_with_either_alone(
    tiny: Path, tmp_path: Path, only: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MTOR_NODE__GOSSIP", str(only == "gossip").lower())
    monkeypatch.setenv("MTOR_NODE__DHT", str(only == "dht").lower())
    with local_federation(tmp_path, ["worker"], realms(tiny)) as nodes:
        gateway, worker = nodes
        assert len(answer(gateway.client)) == 8
        fresh = NodeProcess("fresh", tmp_path / "fresh", bootstrap=gateway.client.call("status")["addresses"][0])
        fresh.folder.mkdir(mode=0o700)
        (fresh.folder / "realms.yml").write_text(SETTINGS.format(name="fresh") + "realms: []\n")
        try:
            fresh.start()
            fresh.wait_ready()
            until = time.monotonic() + WAIT_SECONDS
            while worker.node not in {peer["node"] for peer in fresh.client.call("peers")["peers"] if peer["models"]}:
                assert time.monotonic() < until, fresh.tail()
                time.sleep(0.2)
            assert len(answer(fresh.client)) == 8  # another federation's member: in the free lane
        finally:
            fresh.stop()


def test_a_second_node_on_one_folder_and_a_port_in_use_are_named(nodes: list[NodeProcess], tmp_path: Path) -> None:
    gateway = nodes[0]
    assert "runs on" in _refusal("--data", str(gateway.folder))
    port = gateway.client.url.rsplit(":", 1)[1]
    other = tmp_path / "other"
    said = _refusal("--data", str(other), "--port", port, "--listen", "/ip4/127.0.0.1/tcp/0")
    assert f"port {port} is in use" in said and "--port" in said


def test_a_node_whose_bootstrap_peers_are_down_says_so_and_keeps_trying(nodes: list[NodeProcess]) -> None:
    gateway, worker = nodes
    address = gateway.client.call("status")["addresses"][0]
    port = address.split("/")[4]
    listening = gateway.folder / "realms.yml"
    listening.write_text(listening.read_text().replace("/tcp/0", f"/tcp/{port}"))
    gateway.kill()
    until = time.monotonic() + WAIT_SECONDS
    while not any("bootstrap" in problem for problem in worker.client.call("status")["problems"]):
        assert time.monotonic() < until, worker.tail()
        time.sleep(0.2)
    gateway.start()
    gateway.wait_ready()
    while worker.client.call("status")["problems"]:
        assert time.monotonic() < until + WAIT_SECONDS, worker.tail()
        time.sleep(0.2)


def test_a_killed_node_leaves_no_engine_and_a_stopped_one_ends_in_order(nodes: list[NodeProcess]) -> None:
    gateway, worker = nodes
    assert worker.process is not None and gateway.process is not None
    engines = _children(worker.process.pid)
    assert engines
    worker.kill()
    until = time.monotonic() + WAIT_SECONDS
    while any(_runs(pid) for pid in engines):
        assert time.monotonic() < until
        time.sleep(0.1)
    gateway.process.send_signal(signal.SIGTERM)
    assert gateway.process.wait(15) == 0


def _refusal(*flags: str) -> str:
    """What `mtor up` says on standard error when it does not start."""
    command = [sys.executable, "-m", "cli", "up", *flags]
    result = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_SECONDS, check=False)
    assert result.returncode == 1
    return result.stderr


def _children(pid: int) -> list[int]:
    lists = Path(f"/proc/{pid}/task").glob("*/children")  # of each thread: any of them may have started one
    return [int(child) for children in lists for child in children.read_text().split()]


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:1]
