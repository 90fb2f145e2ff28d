"""What the first bytes of pictures and sounds say, read without decoding anything.

Rule: nothing that a file claims of itself is believed beyond the bytes that are really there.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from node.engines.port import EngineError
from node.picture_headers import PictureRefused, read_header
from protocol.errors import ErrorCode
from protocol.params import MAX_PICTURE_SIDE, MAX_SOUND_TENTHS

PICTURES = (
    (re.compile(rb"\xff\xd8\xff"), "image/jpeg"),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "image/png"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "image/webp"),
    (re.compile(rb"GIF8[79]a"), "image/gif"),
)
SOUNDS = (
    (re.compile(rb"RIFF....WAVE", re.DOTALL), "wav"),
    (re.compile(rb"fLaC"), "flac"),
    (re.compile(rb"OggS"), "ogg"),
    (re.compile(rb"ID3|\xff[\xe2\xe3\xf2\xf3\xfa\xfb]"), "mp3"),
    (re.compile(rb"....ftyp", re.DOTALL), "m4a"),
    (re.compile(rb"\x1a\x45\xdf\xa3"), "webm"),
)
PNG_END = b"\0\0\0\0IEND\xaeB\x60\x82"
CODED_BYTES_A_TENTH = 1_600  # of a compressed sound whose length nobody told: 128 kbit/s, which favours the asker
WAV_HEADER = 12
UNKNOWN_SIZE = 0x7FFFFF00  # and above: what writes a WAV before its end is known puts one of the largest numbers
MOST_CHUNKS = 64  # of a WAV file before its sound


def picture_type(data: bytes) -> str:
    """The media type of a picture, "" if it is none that servers take."""
    return next((kind for start, kind in PICTURES if start.match(data)), "")


def input_picture(data: bytes) -> str:
    """The media type of an asker's picture, held to the limits of the node's own eyes before a server decodes it.
    Raises `EngineError` (INVALID_REQUEST)."""
    try:
        return f"image/{read_header(data).format.lower()}"
    except PictureRefused as error:
        raise EngineError(ErrorCode.INVALID_REQUEST, str(error)) from None


def sound_type(data: bytes) -> str:
    """The usual ending of such a sound file's name, "" if it is none that servers take."""
    return next((kind for start, kind in SOUNDS if start.match(data)), "")


def png_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) of a whole PNG of an allowed size; None if it is none."""
    if not (data.startswith(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR") and len(data) > 45 and data.endswith(PNG_END)):
        return None
    width, height = struct.unpack(">II", data[16:24])
    return (width, height) if 0 < width <= MAX_PICTURE_SIDE and 0 < height <= MAX_PICTURE_SIDE else None


@dataclass(frozen=True, slots=True)
class Wave:
    """A WAV file's description of itself."""

    format: int  # 1: PCM
    channels: int
    rate: int  # frames a second
    bits: int
    bytes_a_second: int
    start: int  # of the sound, in bytes
    size: int  # of the sound in bytes, as it is claimed; 0 where the writer did not know yet


def read_wave(data: bytes) -> Wave | None:
    """The header of a WAV file, None if it has none that makes sense."""
    if sound_type(data) != "wav":
        return None
    at = WAV_HEADER
    about: tuple[int, int, int, int, int] | None = None
    for _ in range(MOST_CHUNKS):
        if at + 8 > len(data):
            return None
        name, size = struct.unpack_from("<4sI", data, at)
        at += 8
        if name == b"data":
            known = size if size < UNKNOWN_SIZE else 0
            return Wave(*about, at, known) if about is not None and about[4] else None
        if name == b"fmt " and size >= 16 and at + 16 <= len(data):
            kind, channels, rate, a_second, _, bits = struct.unpack_from("<HHIIHH", data, at)
            about = (kind, channels, rate, bits, a_second)
        at += size + size % 2
    return None


def sound_tenths(data: bytes) -> int:
    """Started tenths of a second of a sound: from a WAV's header and real length, otherwise guessed from its bytes."""
    wave = read_wave(data)
    if wave is None:
        tenths = -(-len(data) // CODED_BYTES_A_TENTH)
    else:
        tenths = -(-(len(data) - wave.start) * 10 // wave.bytes_a_second)
    return min(max(tenths, 1), MAX_SOUND_TENTHS)
