"""Real nodes on loopback, and a way to reach below a node's skin to be rude on the wire."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from node.libp2p_host import Libp2pNetwork
from node.network import RecordRules, Stream

PATIENCE = 30.0  # seconds until a test that hangs fails
SLOW_PATIENCE = 120.0  # if it takes over ten alone: a busy machine takes three times as long
ECHO = "/mtor/test/echo/1"
ANY = RecordRules(valid=lambda key, value: True, newest=lambda key, values: 0)

StartNode = Callable[..., Awaitable[Libp2pNetwork]]
StartProcess = Callable[[int], "tuple[subprocess.Popen[str], str]"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.net)


async def fail_late(patience: float) -> None:
    """A test that hangs fails. (A cancel scope in a fixture would not reach the test; a task that fails there does.)"""
    await trio.sleep(patience)
    raise TimeoutError(f"not done within {patience:.0f} s")


async def echo(stream: Stream) -> None:
    while data := await stream.receive():
        await stream.send(data)


@pytest.fixture
async def start_node(nursery: trio.Nursery, request: pytest.FixtureRequest) -> StartNode:
    """start_node(number, **options): a running node that echoes; without gossip and DHT unless asked for."""

    async def start(number: int, **options: Any) -> Libp2pNetwork:
        settings = {"listen": ["/ip4/127.0.0.1/tcp/0"], "gossip": False, "dht": False, **options}
        network = Libp2pNetwork(bytes([number]) * 32, ANY, **settings)
        network.serve(ECHO, echo)
        await nursery.start(network.run)
        return network

    slow = request.node.get_closest_marker("slow") is not None
    nursery.start_soon(fail_late, SLOW_PATIENCE if slow else PATIENCE)
    return start


@pytest.fixture
def start_process() -> Iterator[StartProcess]:
    """start_process(number): (process, address) of tests/net/echo_node.py; ended after the test."""
    started: list[subprocess.Popen[str]] = []

    def start(number: int) -> tuple[subprocess.Popen[str], str]:
        script = str(Path(__file__).with_name("echo_node.py"))
        process = subprocess.Popen([sys.executable, script, str(number)], stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        return process, process.stdout.readline().strip()

    yield start
    for process in started:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


@pytest.fixture
def works() -> Callable[[Libp2pNetwork, Libp2pNetwork], Awaitable[None]]:
    """works(client, server): the server answers a new stream of the client."""

    async def check(client: Libp2pNetwork, server: Libp2pNetwork) -> None:
        stream = await client.open_stream(server.node, ECHO, server.addresses())
        await stream.send(b"alive?")
        assert await stream.receive() == b"alive?"
        await stream.close()
        assert await stream.receive() == b""

    return check


class Underside:
    """A node's libp2p host, for tests that must break the protocol."""

    def __init__(self, network: Libp2pNetwork) -> None:
        self.host: Any = network._host
        self.swarm: Any = self.host.get_network()

    def connection(self, other: Libp2pNetwork) -> Any:
        """The connection to another node."""
        held = [c for i, held in self.swarm.connections.items() if i.to_bytes()[-32:] == other.node for c in held]
        return next(connection for connection in held if not connection.muxed_conn.event_shutting_down.is_set())

    def muxer(self, other: Libp2pNetwork) -> Any:
        """Its yamux."""
        return self.connection(other).muxed_conn


@pytest.fixture
def underside() -> Callable[[Libp2pNetwork], Underside]:
    return Underside
