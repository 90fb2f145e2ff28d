"""LevelDB's log file, read by itself: its batches, and where they end.

Rule: the format is LevelDB's (doc/log_format.md), and a manifest's as well: blocks of 32 KiB; records of a checksum, a
length, a kind and data; a batch is one whole record, or a first, any middle and a last one. Nothing here writes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

_BLOCK_BYTES = 32 * 1024
_HEADER = struct.Struct("<IHB")  # masked CRC-32C of kind and data, length of the data, kind
_WHOLE, _FIRST, _MIDDLE, _LAST = range(1, 5)
_BEGINNINGS, _ENDS = (_WHOLE, _FIRST), (_WHOLE, _LAST)
_MASK_DELTA = 0xA282EAD8
_POLYNOMIAL = 0x82F63B78


class _Record(NamedTuple):
    checksum: int
    kind: int
    place: int
    end: int


def is_whole(log: bytes, size: int) -> bool:
    """Records fill the first `size` bytes exactly. Their checksums are not looked at."""
    place = 0
    while place < size:
        record = _record(log, place)
        if record is None:
            return False
        place = record.end
    return place == size


def batches(log: bytes, start: int = 0) -> Iterator[tuple[int, bytes]]:
    """Where each whole batch ends and what is in it, of those that follow each other without a fault from `start`, a
    batch's end."""
    place, inside, parts = start, False, list[bytes]()
    while (record := _record(log, place)) is not None and _is_true(log, record):
        if inside == (record.kind in _BEGINNINGS):
            break
        parts.append(log[record.place + _HEADER.size : record.end])
        place, inside = record.end, record.kind not in _ENDS
        if not inside:
            yield place, b"".join(parts)
            parts.clear()


def batches_end(log: bytes, start: int) -> int:
    """Where the last of these batches ends."""
    return max((end for end, _ in batches(log, start)), default=start)


def another_begins(log: bytes, place: int) -> bool:
    """After the batch at `place`, which has a fault, a faultless record begins another."""
    records = (_record(log, later) for later in _places(log, place))
    return any(record is not None and record.kind in _BEGINNINGS and _is_true(log, record) for record in records)


def _places(log: bytes, place: int) -> Iterator[int]:
    """Where records may begin after the one at `place`: as the lengths say, and at every block."""
    while place < len(log):
        record = _record(log, place)
        place = record.end if record is not None else (place // _BLOCK_BYTES + 1) * _BLOCK_BYTES
        yield place


def _record(log: bytes, place: int) -> _Record | None:
    """The record at `place`; None if no record can be there."""
    room = _BLOCK_BYTES - place % _BLOCK_BYTES
    if room < _HEADER.size:  # what is left of a block is not used
        place, room = place + room, _BLOCK_BYTES
    if place + _HEADER.size > len(log):
        return None
    checksum, length, kind = _HEADER.unpack_from(log, place)
    end = place + _HEADER.size + length
    if not _WHOLE <= kind <= _LAST or length > room - _HEADER.size or end > len(log):
        return None
    return _Record(checksum, kind, place, end)


def masked_checksum(data: bytes) -> int:
    """What a record's header says of its kind and data."""
    checksum = _crc32c(data)
    return ((checksum >> 15 | checksum << 17) + _MASK_DELTA) & 0xFFFFFFFF


def _is_true(log: bytes, record: _Record) -> bool:
    return record.checksum == masked_checksum(log[record.place + _HEADER.size - 1 : record.end])


def _crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli), 10 MB/s."""
    checksum = 0xFFFFFFFF
    for byte in data:
        checksum = _TABLE[(checksum ^ byte) & 0xFF] ^ checksum >> 8
    return checksum ^ 0xFFFFFFFF


def _table_entry(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (_POLYNOMIAL if byte & 1 else 0)
    return byte


_TABLE = [_table_entry(byte) for byte in range(256)]
