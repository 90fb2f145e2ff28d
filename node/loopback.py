"""A pair of streams inside this process: the own node as one more worker.

Rule: it behaves as a network's stream does (bounded, half-close, reset seen by the other side), so that there is one
path for queries and not two.
"""

from __future__ import annotations

import trio

from node.network import StreamReset
from protocol.ids import NodeId

BUFFERED_WRITES = 16  # then a writer waits for its reader


class LoopbackStream:
    """One end of a pair."""

    def __init__(
        self, peer: NodeId, send: trio.MemorySendChannel[bytes], receive: trio.MemoryReceiveChannel[bytes]
    ) -> None:
        self._peer = peer
        self._send = send
        self._receive = receive

    @property
    def peer(self) -> NodeId:
        """The node at the other end, which is this node."""
        return self._peer

    async def send(self, data: bytes) -> None:
        """Write all of `data`. Raises `StreamReset`."""
        try:
            await self._send.send(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise StreamReset("the loopback stream was reset") from None

    async def receive(self) -> bytes:
        """Some bytes, b"" at the end. Raises `StreamReset`."""
        try:
            return await self._receive.receive()
        except trio.EndOfChannel:
            return b""
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise StreamReset("the loopback stream was reset") from None

    async def close(self) -> None:
        """Nothing more will be sent."""
        self._send.close()

    async def reset(self) -> None:
        """Drop both halves."""
        self._send.close()
        self._receive.close()


def loopback_pair(node: NodeId) -> tuple[LoopbackStream, LoopbackStream]:
    """Two ends of one stream between a node and itself."""
    to_worker, at_worker = trio.open_memory_channel[bytes](BUFFERED_WRITES)
    to_asker, at_asker = trio.open_memory_channel[bytes](BUFFERED_WRITES)
    return LoopbackStream(node, to_worker, at_asker), LoopbackStream(node, to_asker, at_worker)
