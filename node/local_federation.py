"""Real node processes on this machine: what the demo, the chaos test and the benches run.

Rule: these are ordinary `mtor up` processes with data folders of their own, reached as any client reaches them. What
was started here is ended here, by its process, whatever happens in between.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from node.commands.client import NodeClient
from node.federation import create_federation, install_genesis
from node.identity import load_or_create_identity

IDLE = "realms: []\n"
START_SECONDS = 120.0
POLL_SECONDS = 0.1

SETTINGS = """\
node:
  name: {name}
  listen: [/ip4/127.0.0.1/tcp/0]
gateway:
  port: 0
"""


class NodeFailed(Exception):
    """A node did not start or did not do what was waited for; the message holds the end of its output."""


@dataclass
class NodeProcess:
    """One `mtor up` with its data folder. `node` is its peer id once it was ready."""

    name: str
    folder: Path
    bootstrap: str = ""
    process: subprocess.Popen[bytes] | None = None
    node: str = ""

    def start(self) -> None:
        """Start it; its output goes to a file in its folder."""
        command = [sys.executable, "-m", "cli", "up", "--data", str(self.folder)]
        command += ["--config", str(self.folder / "realms.yml")]
        command += ["--bootstrap", self.bootstrap] if self.bootstrap else []
        with (self.folder / "output.txt").open("ab") as output:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)

    @property
    def client(self) -> NodeClient:
        """Its local API."""
        return NodeClient(self.folder)

    def wait_ready(self) -> None:
        """Return when it answers `status`. Raises `NodeFailed`."""
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            if self.process is None or self.process.poll() is not None:
                raise NodeFailed(f"{self.name} ended at its start:\n{self.tail()}")
            if self._answers():
                return
            time.sleep(POLL_SECONDS)
        raise NodeFailed(f"{self.name} did not get ready; its output:\n{self.tail()}")

    def _answers(self) -> bool:
        assert self.process is not None
        try:
            if self.client.pid != self.process.pid:
                return False  # the address of an earlier life
            self.node = self.client.call("status")["node"]
        except (OSError, RuntimeError, ValueError):
            return False
        return True

    def kill(self) -> None:
        """SIGKILL: no farewell, no flush."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def freeze(self) -> None:
        """SIGSTOP: connected and silent."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it as Ctrl-C would, and make sure."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.kill()

    def tail(self) -> str:
        """The end of what it printed."""
        return (self.folder / "output.txt").read_text(errors="replace")[-2_000:]


@contextmanager
def local_federation(
    root: Path, workers: Sequence[str], realms: str | Mapping[str, str], witnesses: int = 1
) -> Iterator[list[NodeProcess]]:
    """A running federation: a gateway node without a model, which is issuer and the first witness, and `workers`, which
    serve `realms` (YAML, perhaps one a worker) and are the next witnesses if there are to be several; nodes that do
    nothing else make up the number. Gateway, workers, witnesses, in this order. Raises `NodeFailed` or
    `FederationError`."""
    gateway = _prepare(root, "gateway", IDLE)
    served = {name: realms if isinstance(realms, str) else realms[name] for name in workers}
    serving = [_prepare(root, name, served[name]) for name in workers]
    idle = [_prepare(root, f"witness-{number}", IDLE) for number in range(2 + len(workers), witnesses + 1)]
    others = [*serving, *idle]
    ids = [load_or_create_identity(node.folder).node for node in others]
    genesis = create_federation(gateway.folder, "local", ids[: witnesses - 1])
    for node in others:
        install_genesis(node.folder, genesis)
    try:
        gateway.start()
        gateway.wait_ready()
        for node in others:
            node.bootstrap = gateway.client.call("status")["addresses"][0]
            node.start()
        for node in others:
            node.wait_ready()
        wait_offers(gateway, serving)
        wait_credits(gateway)
        yield [gateway, *others]
    finally:
        for node in [gateway, *others]:
            node.stop()


def wait_credits(gateway: NodeProcess) -> None:
    """Return when the federation's creator has its first credits: a quorum of witnesses has agreed for the first time.

    Raises `NodeFailed`.
    """
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        if gateway.client.call("ledger.balance")["balance"]:
            return
        time.sleep(POLL_SECONDS)
    raise NodeFailed(f"the witnesses did not agree on a first grant; the gateway's output:\n{gateway.tail()}")


def wait_offers(gateway: NodeProcess, workers: Sequence[NodeProcess]) -> None:
    """Return when the gateway has heard that all `workers` serve. Raises `NodeFailed`."""
    wanted = {worker.node for worker in workers}
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        peers = gateway.client.call("peers")["peers"]
        if wanted <= {peer["node"] for peer in peers if any(model["slots"] for model in peer["models"])}:
            return
        time.sleep(POLL_SECONDS)
    raise NodeFailed("the gateway did not hear of all workers; see the output.txt of each node")


def wait_models(gateway: NodeProcess, models: Sequence[str]) -> None:
    """Return when the gateway has heard that somebody serves each of `models`. Raises `NodeFailed`."""
    until = time.monotonic() + START_SECONDS
    missing = set(models)
    while time.monotonic() < until:
        peers = gateway.client.call("peers")["peers"]
        missing = set(models) - {model["model"] for peer in peers for model in peer["models"] if model["slots"]}
        if not missing:
            return
        time.sleep(POLL_SECONDS)
    raise NodeFailed(f"nobody serves {', '.join(sorted(missing))}; see the output.txt of each node")


def _prepare(root: Path, name: str, realms: str) -> NodeProcess:
    folder = root / name
    folder.mkdir(parents=True, mode=0o700)
    (folder / "realms.yml").write_text(SETTINGS.format(name=name) + realms)
    return NodeProcess(name, folder)
