"""What happens when a peer's process is halted or killed."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Awaitable, Callable

import pytest
import trio

from node.libp2p_host import Libp2pNetwork
from node.network import NetworkError, StreamReset
from protocol.ids import parse_peer_id

StartNode = Callable[..., Awaitable[Libp2pNetwork]]
StartProcess = Callable[[int], "tuple[subprocess.Popen[str], str]"]
Works = Callable[[Libp2pNetwork, Libp2pNetwork], Awaitable[None]]

ECHO = "/mtor/test/echo/1"
FLOOD = "/mtor/test/flood/1"

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has neither SIGSTOP nor SIGKILL")


async def test_a_peer_killed_in_mid_stream_is_an_error_and_no_end(
    start_node: StartNode, start_process: StartProcess, works: Works
) -> None:
    node, witness = await start_node(1), await start_node(2)
    process, address = start_process(50)
    peer = await node.connect(address)
    flood = await node.open_stream(peer, FLOOD)
    idle = await node.open_stream(peer, ECHO)
    assert await flood.receive()
    process.send_signal(signal.SIGKILL)
    with pytest.raises(StreamReset):
        while True:
            assert await flood.receive() != b""
    with pytest.raises(StreamReset):
        await idle.receive()
    while node.peers():
        await trio.sleep(0.05)
    with pytest.raises(NetworkError):
        await node.open_stream(peer, ECHO, [address])
    await works(witness, node)


async def test_a_halted_peer_is_gone_soon_and_back_when_it_goes_on(
    start_node: StartNode, start_process: StartProcess, works: Works
) -> None:
    node, witness = await start_node(1), await start_node(2)
    process, address = start_process(51)
    peer = await node.connect(address)
    stream = await node.open_stream(peer, ECHO)
    process.send_signal(signal.SIGSTOP)
    await works(witness, node)
    with pytest.raises(StreamReset):
        await stream.receive()
    assert peer not in [status.node for status in node.peers()]
    with pytest.raises(NetworkError):
        await node.open_stream(peer, ECHO, [address])
    process.send_signal(signal.SIGCONT)
    while True:
        try:
            again = await node.open_stream(peer, ECHO, [address])
            break
        except NetworkError:
            await trio.sleep(0.1)
    await again.send(b"back")
    assert await again.receive() == b"back"


async def test_a_peer_that_starts_again_with_the_same_key_is_dialled_anew(
    start_node: StartNode, start_process: StartProcess
) -> None:
    node = await start_node(1)
    process, address = start_process(52)
    peer = await node.connect(address)
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, new_address = start_process(52)
    assert parse_peer_id(new_address.rpartition("/p2p/")[2]) == peer
    stream = await node.open_stream(peer, ECHO, [new_address])
    await stream.send(b"born again")
    assert await stream.receive() == b"born again"
