"""A byte stream as frames: unsigned varint length, then that many bytes.

Rule: feed it whatever arrived, in pieces of any size; it gives whole frames and never holds more than one
frame's limit ahead of what was taken.
"""

from __future__ import annotations

from protocol.errors import Malformed
from protocol.params import MAX_FRAME_BYTES

_MAX_VARINT_BYTES = 4  # 2^28 is far above any limit


def frame(payload: bytes) -> bytes:
    """`payload` with its length in front."""
    length = len(payload)
    header = bytearray()
    while length > 0x7F:
        header.append(length & 0x7F | 0x80)
        length >>= 7
    header.append(length)
    return bytes(header) + payload


class FrameReader:
    """Turns received bytes into frames. Not a task, not a stream: just the buffer and its rule."""

    def __init__(self, limit: int = MAX_FRAME_BYTES) -> None:
        self._limit = limit
        self._buffer = bytearray()

    @property
    def buffered(self) -> int:
        """Bytes received and not yet taken; more than 0 at the end of a stream means a cut frame."""
        return len(self._buffer)

    def receive_data(self, data: bytes) -> None:
        """Add what arrived."""
        self._buffer += data

    def next_frame(self) -> bytes | None:
        """The next whole frame, or None if more data is needed. Raises `Malformed`."""
        header = self._header()
        if header is None:
            return None
        length, start = header
        if length > self._limit:
            raise Malformed(f"a frame of {length} bytes, the limit is {self._limit}")
        if len(self._buffer) < start + length:
            return None
        payload = bytes(self._buffer[start : start + length])
        del self._buffer[: start + length]
        return payload

    def _header(self) -> tuple[int, int] | None:
        """(length, header size), or None if the header is not whole yet."""
        length = 0
        for index, byte in enumerate(self._buffer[:_MAX_VARINT_BYTES]):
            length |= (byte & 0x7F) << (7 * index)
            if not byte & 0x80:
                if byte == 0 and index > 0:
                    raise Malformed("a frame length in more bytes than it needs")
                return length, index + 1
        if len(self._buffer) >= _MAX_VARINT_BYTES:
            raise Malformed("a frame length of more than four bytes")
        return None
