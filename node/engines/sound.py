"""Sound of strangers in, sound of ours out.

Rule: what a file says of itself is checked before anything is decoded, and decoding stops at the limit whatever it
said: a header that claims a gigabyte costs the bytes that are there. A sound is decoded and resampled block by block,
so memory holds what is allowed at 16 kHz and no more, whatever rate it has. Inside, all is one channel of float32.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator

import numpy as np
import soundfile

from node.engines.port import Data, EngineError
from protocol import params
from protocol.errors import ErrorCode

RATE = 16_000  # what speech models hear
MOST_SECONDS = 600.0
MOST_CHANNELS = 8
LOWEST_RATE, HIGHEST_RATE = 4_000, 192_000
BLOCK_FRAMES = 1 << 16  # decoded at once
BLOCK_SAMPLES = 1 << 13  # resampled at once
ZEROS = 16  # of the resampling filter's window on each side, in periods of the lower rate
ROLL_OFF = 0.97  # of the lower Nyquist frequency
MOST_PHASES = 1_024  # of the filter: rates with more of them in common take the nearest
UNKNOWN_FRAMES = 1 << 62  # and more: the file does not say

FORMATS = {"WAV": ("WAV", "WAVEX"), "OGG": ("OGG",), "FLAC": ("FLAC",), "MP3": ("MP3",)}
PCM_CODINGS = ("PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW")
PACKED_CODINGS = ("VORBIS", "OPUS", "MPEG_LAYER_I", "MPEG_LAYER_II", "MPEG_LAYER_III")
CODINGS = frozenset(PCM_CODINGS + PACKED_CODINGS)  # the decoder knows more, old and rarely tried; they stay out

Samples = np.ndarray[tuple[int], np.dtype[np.float32]]


def hear(data: bytes, most_seconds: float = MOST_SECONDS) -> Samples:
    """The sound of a WAV, OGG, FLAC or MP3 file, (samples,) at 16 kHz. Raises `EngineError` (INVALID_REQUEST)."""
    return np.concatenate(list(listen(data, most_seconds)))


def listen(data: bytes, most_seconds: float = MOST_SECONDS) -> Iterator[Samples]:
    """As `hear`, in parts of some seconds. Every part is bounded work."""
    kind = _kind(data)
    heard = 0
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            _check(file, kind, most_seconds)
            resampler = Resampler(file.samplerate, RATE)
            for block in _mono(file, most_seconds):
                heard += len(block)
                yield resampler.feed(block)
            yield resampler.rest()
    except (soundfile.LibsndfileError, RuntimeError, ValueError, TypeError, OverflowError) as error:
        raise invalid(f"this {kind} file cannot be read ({type(error).__name__}); send a whole one") from None
    if not heard:
        raise invalid("the sound is empty")


def _kind(data: bytes) -> str:
    """What it is by its first bytes."""
    if len(data) > params.MAX_INPUT_BYTES:
        raise invalid(f"the sound has {len(data)} bytes; at most {params.MAX_INPUT_BYTES} are taken")
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
        return "WAV"
    for magic, kind in {b"OggS": "OGG", b"fLaC": "FLAC", b"ID3": "MP3"}.items():
        if data.startswith(magic):
            return kind
    if len(data) > 2 and data[0] == 0xFF and data[1] & 0xE0 == 0xE0 and data[1] & 0x06:  # a frame of layer I to III
        return "MP3"
    for place, magic, kind in ((4, b"ftyp", "an M4A or MP4"), (0, b"\x1a\x45\xdf\xa3", "a WebM")):
        if data[place:].startswith(magic):
            raise invalid(f"this is {kind}, which is not read here; send WAV, OGG, FLAC or MP3")
    raise invalid("this is no sound that is known here; send WAV, OGG, FLAC or MP3")


def _check(file: soundfile.SoundFile, kind: str, most_seconds: float) -> None:
    """What the header says. Raises `EngineError`."""
    if file.format not in FORMATS[kind] or file.subtype not in CODINGS:
        raise invalid(f"{file.format} with {file.subtype} is not taken; send WAV (PCM, float), OGG, FLAC or MP3")
    if file.channels > MOST_CHANNELS:
        raise invalid(f"{file.channels} channels; at most {MOST_CHANNELS} are taken")
    if not LOWEST_RATE <= file.samplerate <= HIGHEST_RATE:
        raise invalid(f"{file.samplerate} samples a second; {LOWEST_RATE} to {HIGHEST_RATE} are taken")
    if most_seconds * file.samplerate < file.frames < UNKNOWN_FRAMES:
        raise _too_long(most_seconds)


def _mono(file: soundfile.SoundFile, most_seconds: float) -> Iterator[Samples]:
    """All channels as one. What is no number is silence, what is too loud is as loud as can be."""
    read = 0
    while len(block := file.read(BLOCK_FRAMES, dtype="float32", always_2d=True)):
        read += len(block)
        if read > most_seconds * file.samplerate:
            raise _too_long(most_seconds)
        yield np.nan_to_num(block, posinf=1.0, neginf=-1.0).clip(-1.0, 1.0).mean(axis=1)


def _too_long(most_seconds: float) -> EngineError:
    return invalid(f"the sound is longer than {most_seconds:g} s; send it in parts")


class Resampler:
    """A sound at another rate, with frequencies above the lower Nyquist removed (a windowed sinc, polyphase)."""

    def __init__(self, rate: int, wanted: int) -> None:
        divisor = math.gcd(rate, wanted)
        self._down, self._up = rate // divisor, wanted // divisor
        cutoff = min(1.0, self._up / self._down) * ROLL_OFF  # of the input's Nyquist frequency
        self._reach = math.ceil(ZEROS / cutoff)  # input samples on each side
        self._phases = min(self._up, MOST_PHASES)
        self._filters = _filters(self._phases, self._reach, cutoff)
        self._waiting: Samples = np.zeros(self._reach, np.float32)  # the last ones, still needed
        self._first = -self._reach  # which input sample `_waiting` begins with
        self._fed = self._made = 0

    def feed(self, samples: Samples) -> Samples:
        """What can be said once these are known. (samples,) -> (samples,)."""
        if self._down == self._up:
            return samples
        self._fed += len(samples)
        self._waiting = np.concatenate([self._waiting, samples])
        known = self._fed - self._reach - 1  # input positions before this one have all their neighbours
        return self._upto(max(self._made, known * self._up // self._down))

    def rest(self) -> Samples:
        """The end. A sound of n samples becomes one of ceil(n * wanted / rate)."""
        if self._down == self._up:
            return np.zeros(0, np.float32)
        self._waiting = np.concatenate([self._waiting, np.zeros(self._reach + 2, np.float32)])
        return self._upto(-(-self._fed * self._up // self._down))

    def _upto(self, end: int) -> Samples:
        parts = [np.zeros(0, np.float32)]
        while self._made < end:
            step = min(BLOCK_SAMPLES, end - self._made)
            parts.append(self._part(np.arange(self._made, self._made + step)))
            self._made += step
        self._forget()
        return np.concatenate(parts)

    def _part(self, numbers: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Samples:
        """The output samples of these numbers."""
        whole, fraction = np.divmod(numbers * self._down, self._up)
        phase = (fraction * self._phases + self._up // 2) // self._up  # the nearest; may be the next sample's first
        windows = np.lib.stride_tricks.sliding_window_view(self._waiting, self._filters.shape[1])
        result: Samples = np.einsum("nk,nk->n", windows[whole - self._reach - self._first], self._filters[phase])
        return result

    def _forget(self) -> None:
        needed = self._made * self._down // self._up - self._reach
        self._waiting = self._waiting[max(0, needed - self._first) :]
        self._first = max(self._first, needed)


def _filters(phases: int, reach: int, cutoff: float) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """One windowed sinc a phase, (phases + 1, 2 * reach + 2), over the input samples around a position."""
    place = np.arange(-reach, reach + 2)[None] - np.arange(phases + 1)[:, None] / phases
    time = np.clip(place * cutoff, -ZEROS, ZEROS)
    result: np.ndarray[tuple[int, int], np.dtype[np.float32]] = (
        np.sinc(time) * np.cos(time * math.pi / ZEROS / 2) ** 2 * cutoff
    ).astype(np.float32)
    return result


# --- out -------------------------------------------------------------------------------------------------


def pcm(samples: Samples) -> bytes:
    """16 bits, little endian."""
    return (np.nan_to_num(samples).clip(-1.0, 1.0) * 32_767.0).astype("<i2").tobytes()


class Speaking:
    """A spoken answer in the making: its parts, and what they count."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._samples = 0

    @property
    def units_out(self) -> int:
        """Started tenths of a second so far."""
        return tenths(self._samples, self._rate)

    def say(self, samples: Samples) -> Iterator[Data]:
        """(samples,) as the answer's next parts."""
        data = pcm(samples)
        for start in range(0, len(data), params.MAX_CHUNK_BYTES):
            part = data[start : start + params.MAX_CHUNK_BYTES]
            self._samples += len(part) // 2
            yield Data(f"audio/pcm;rate={self._rate}", part, self.units_out)


def tenths(samples: int, rate: int) -> int:
    """Started tenths of a second."""
    return -(-samples * 10 // rate)


def invalid(message: str) -> EngineError:
    """What is wrong with a request."""
    return EngineError(ErrorCode.INVALID_REQUEST, message)
