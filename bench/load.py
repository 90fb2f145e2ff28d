"""A thousand clients that stream at once through one gateway and one hop, with payment.

Rule: the gateway is an ordinary `mtor up` without a model; the workers are nodes of their own behind libp2p whose
engine gives numbered words at a fixed pace (see load_workers.py), so that a first word that comes late is the node's
doing and a lost one shows. The clients begin in an open loop (load_clients.py). What the gateway's process takes is
read every second.

    python bench/load.py [--clients 1000] [--over 100] [--pace 0.25] [--rounds 1] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from load_clients import Load, most_at_once, problems, run, summary
from load_workers import MODEL

from node.engines.fake import ANSWER_TOKENS, fake_answer
from node.federation import genesis_path
from node.local_federation import NodeProcess, local_federation, wait_models
from node.worker import MAX_STREAMS_PER_PEER

READY_SECONDS = 60.0
DEADLINE_MS = 900_000  # of a query: its pace is slow on purpose


class Watch(threading.Thread):
    """Reads what processes take, each second, until `stop`."""

    def __init__(self, processes: dict[str, int]) -> None:
        super().__init__(daemon=True)
        self._processes = {name: psutil.Process(pid) for name, pid in processes.items()}
        self._began = {name: sum(process.cpu_times()[:2]) for name, process in self._processes.items()}
        self._ended = threading.Event()
        self.memory: dict[str, list[float]] = {name: [] for name in processes}
        self.cpu: dict[str, float] = {}

    def run(self) -> None:
        """Read until told to stop."""
        while not self._ended.wait(1.0):
            for name, process in self._processes.items():
                self.memory[name].append(process.memory_info().rss / 2**20)

    def stop(self) -> None:
        """End, and add up the processor time."""
        self._ended.set()
        self.join()
        for name, process in self._processes.items():
            self.cpu[name] = sum(process.cpu_times()[:2]) - self._began[name]


@contextmanager
def workers(root: Path, gateway: NodeProcess, count: int, pace: float) -> Iterator[int]:
    """A process with the workers; its id."""
    command = [sys.executable, str(Path(__file__).with_name("load_workers.py")), str(root / "workers")]
    command += ["--genesis", str(genesis_path(gateway.folder))]
    command += ["--bootstrap", gateway.client.call("status")["addresses"][0]]
    command += ["--workers", str(count), "--pace", str(pace)]
    with (root / "workers.txt").open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=output)
    try:
        wait_models(gateway, [MODEL])
        _wait_all(gateway, count)
        yield process.pid
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_all(gateway: NodeProcess, count: int) -> None:
    until = time.monotonic() + READY_SECONDS
    while time.monotonic() < until:
        if sum(bool(peer["models"]) for peer in gateway.client.call("peers")["peers"]) >= count:
            return
        time.sleep(0.2)
    raise RuntimeError("the gateway did not hear of all workers")


def measure(root: Path, options: argparse.Namespace) -> list[dict[str, float | int]]:
    """A row for each round."""
    count = -(-options.clients // (MAX_STREAMS_PER_PEER * 3 // 4))  # not all are equally full
    rows = []
    with local_federation(root / "nodes", [], "") as nodes:
        gateway = nodes[0]
        gateway.client.call("config.set", {"key": "gateway.max_concurrent", "value": options.clients + 100})
        with workers(root, gateway, count, options.pace) as farm:
            for number in range(options.rounds):
                wishes = {"mtor": {"deadline_ms": DEADLINE_MS}}
                expected = fake_answer(ANSWER_TOKENS)
                load = Load(f"{gateway.client.url}/v1", options.clients, options.over, expected=expected, more=wishes)
                assert gateway.process is not None
                watch = Watch({"gateway": gateway.process.pid, "workers": farm, "clients": psutil.Process().pid})
                watch.start()
                began = time.perf_counter()
                seen = asyncio.run(run(load))
                seconds = time.perf_counter() - began
                watch.stop()
                row = {"round": number + 1} | summary(seen) | {"at_once": most_at_once(seen, load)}
                words = max(1, sum(each.pieces for each in seen))
                row |= {f"{name}_ms_a_word": round(cpu * 1_000 / words, 2) for name, cpu in watch.cpu.items()}
                row |= {f"{name}_cores": round(cpu / seconds, 2) for name, cpu in watch.cpu.items()}
                held = watch.memory["gateway"]
                row |= {"gateway_mib_first": round(held[0]), "gateway_mib_most": round(max(held))}
                row |= {"gateway_mib_last": round(held[-1])}
                rows.append(row)
                for problem, times in problems(seen).most_common(5):
                    print(f"{times} x {problem}", file=sys.stderr)
    return rows


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=1_000)
    parser.add_argument("--over", type=float, default=100.0, help="seconds over which they begin")
    parser.add_argument("--pace", type=float, default=0.25, help="words a second of each answer; an answer has 40")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mtor-load-") as folder:
        rows = measure(Path(folder), options)
    if options.json:
        print(json.dumps(rows))
        return 0
    for row in rows:
        print("  ".join(f"{name} {value}" for name, value in row.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
