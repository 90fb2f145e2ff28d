"""What speech is sent as: samples as they are, in a WAV, or packed.

Rule: sound goes out as it is made, whatever its format; packing is done in a thread, so that it holds up nobody else's
stream. OpenAI's clients expect MP3 where nothing is said.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from node.engines.sound_files import PACKINGS, Packing, SoundFile

DEFAULT_FORMAT = "mp3"
FORMATS = (*PACKINGS, "wav", "pcm")
SOUND_KINDS = (*(packing.media_type for packing in PACKINGS.values()), "audio/wav", "audio/pcm")
UNKNOWN_LENGTH = 0xFFFFFFFF


class Sound(Protocol):
    """Samples to the bytes of a format."""

    media_type: str

    async def add(self, samples: bytes) -> bytes:
        """The next bytes; b"" if there are none yet."""

    async def end(self) -> bytes:
        """The last bytes."""


def sound_as(format: str, rate: int) -> Sound:
    """The sound of a worker with `rate` samples a second, in one of `FORMATS`."""
    if format == "pcm":
        return _Plain(f"audio/pcm;rate={rate}", b"")
    if format == "wav":
        return _Plain("audio/wav", wav_header(rate))
    return _Packed(PACKINGS[format], rate)


class _Plain:
    """The samples themselves, behind a header."""

    def __init__(self, media_type: str, header: bytes) -> None:
        self.media_type = media_type
        self._header = header

    async def add(self, samples: bytes) -> bytes:
        header, self._header = self._header, b""
        return header + samples

    async def end(self) -> bytes:
        return b""


class _Packed:
    """A packed file."""

    def __init__(self, packing: Packing, rate: int) -> None:
        self.media_type = packing.media_type
        self._file = SoundFile(packing, rate)

    async def add(self, samples: bytes) -> bytes:
        return await asyncio.to_thread(self._file.add, samples)

    async def end(self) -> bytes:
        return await asyncio.to_thread(self._file.end)


def wav_header(rate: int, data_bytes: int | None = None) -> bytes:
    """Of one channel, 16 bits. Without `data_bytes` the length is given as unknown, as streaming players expect."""
    riff = UNKNOWN_LENGTH if data_bytes is None else data_bytes + 36
    size = UNKNOWN_LENGTH if data_bytes is None else data_bytes
    return b"".join(
        (
            b"RIFF" + riff.to_bytes(4, "little") + b"WAVEfmt ",
            (16).to_bytes(4, "little") + (1).to_bytes(2, "little") + (1).to_bytes(2, "little"),
            rate.to_bytes(4, "little") + (2 * rate).to_bytes(4, "little"),
            (2).to_bytes(2, "little") + (16).to_bytes(2, "little"),
            b"data" + size.to_bytes(4, "little"),
        )
    )
