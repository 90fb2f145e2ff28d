"""Messages over a byte stream.

Rule: one message a frame, one frame's limit of memory; writes of concurrent tasks do not mix. What is not a
message of the registry is `Malformed`, and the end of the stream is told apart from every message.
"""

from __future__ import annotations

import trio

from node.network import Stream, StreamReset
from node.nurseries import shielded
from protocol.codec import decode, encode
from protocol.errors import Malformed
from protocol.framing import FrameReader, frame
from protocol.ids import NodeId
from protocol.messages import Message
from protocol.params import MAX_FRAME_BYTES

SEND_SECONDS = 8.0  # for one frame to leave; a peer that reads nothing for longer is lost


class MessageStream:
    """Sends and receives messages on one stream. Any task may send; one task receives."""

    def __init__(self, stream: Stream, limit: int = MAX_FRAME_BYTES) -> None:
        self._stream = stream
        self._frames = FrameReader(limit)
        self._limit = limit
        self._sending = trio.Lock()

    @property
    def peer(self) -> NodeId:
        """Who is at the other end."""
        return self._stream.peer

    async def send(self, message: Message) -> None:
        """Send one message. Raises `StreamReset`, or `LocalProtocolError` for a field out of bounds."""
        data = frame(encode(message))
        async with self._sending:
            # A frame goes out whole or the stream is lost: half a frame would make the next one garbage.
            with shielded(SEND_SECONDS) as sending:
                await self._stream.send(data)
        if sending.cancelled_caught:
            await self._stream.reset()
            raise StreamReset(f"the peer took nothing for {SEND_SECONDS:.0f} s")

    async def receive(self) -> Message | None:
        """The next message, None at the end of the stream. Raises `StreamReset` or `Malformed`."""
        while (payload := self._frames.next_frame()) is None:
            data = await self._stream.receive()
            if not data:
                if self._frames.buffered:
                    raise Malformed("the stream ended within a frame")
                return None
            self._frames.receive_data(data)
        return decode(payload, self._limit)

    async def close(self) -> None:
        """Nothing more will be sent."""
        await self._stream.close()

    async def reset(self) -> None:
        """Drop the stream."""
        await self._stream.reset()
