"""Sound of ours out, packed: a file that is sent while it grows.

Rule: what is sent is sent. A file's writer would go back at the end and write the length into the head; who streams
cannot, so what it writes over is left as it was: "length not known", as players of streams expect. FLAC alone is sent
when it is whole: the most common library for such files cannot read one that does not tell its length.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import soundfile

from node.engines.sound import Resampler, Samples, pcm

FULL_SCALE = 32_768.0
SAMPLE_BYTES = 2


@dataclass(frozen=True, slots=True)
class Packing:
    """How a format is written. `rates` are those that it knows; () is any."""

    media_type: str
    format: str
    coding: str
    rates: tuple[int, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    streamed: bool = True


PACKINGS = {
    "mp3": Packing(
        "audio/mpeg",
        "MP3",
        "MPEG_LAYER_III",
        (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000),
        # 64 kbit/s at speech's rates. With a varying one, players guess a wrong length where the head tells none.
        {"bitrate_mode": "CONSTANT", "compression_level": 0.6},
    ),
    "opus": Packing("audio/ogg", "OGG", "OPUS", (8_000, 12_000, 16_000, 24_000, 48_000)),
    "flac": Packing("audio/flac", "FLAC", "PCM_16", streamed=False),
}


class SoundFile:
    """One channel of 16-bit samples on its way into a packed file. One caller at a time."""

    def __init__(self, packing: Packing, rate: int) -> None:
        """`rate` is that of the samples, 8,000 … 48,000."""
        written = next((each for each in packing.rates if each >= rate), rate)
        self._resampler = Resampler(rate, written)
        self._out = _Growing() if packing.streamed else _Whole()
        self._file = soundfile.SoundFile(
            self._out, "w", written, 1, format=packing.format, subtype=packing.coding, **packing.options
        )
        self._odd = b""

    def add(self, samples: bytes) -> bytes:
        """The next samples, little endian; the next bytes of the file, often none."""
        data = self._odd + samples
        whole = len(data) // SAMPLE_BYTES * SAMPLE_BYTES
        self._odd = data[whole:]
        self._write(self._resampler.feed(np.frombuffer(data[:whole], "<i2").astype(np.float32) / FULL_SCALE))
        return self._out.new()

    def end(self) -> bytes:
        """The last bytes."""
        self._write(self._resampler.rest())
        self._file.close()
        return self._out.rest()

    def _write(self, samples: Samples) -> None:
        if len(samples):
            self._file.buffer_write(pcm(samples), dtype="int16")


class _Whole(io.BytesIO):
    """A file that is sent at its end."""

    def new(self) -> bytes:
        return b""

    def rest(self) -> bytes:
        return self.getvalue()


class _Growing(_Whole):
    """A file of which only what is new at the end is kept, until it is taken."""

    def __init__(self) -> None:
        super().__init__()
        self._position = self._length = 0

    def write(self, data: Any) -> int:
        if self._position == self._length:
            super().write(data)
            self._length += len(data)
        self._position += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._length}[whence]
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def new(self) -> bytes:
        found = self.getvalue()
        super().seek(0)
        super().truncate()
        return found
