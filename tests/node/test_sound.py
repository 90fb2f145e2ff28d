"""Sounds of strangers: what is taken, what is refused before it is decoded, and what hostile files cost."""

from __future__ import annotations

import io
import struct
import tracemalloc

import numpy as np
import pytest
import soundfile

from node.engines import sound
from node.engines.port import EngineError
from protocol import params
from protocol.errors import ErrorCode


def tone(rate: int, seconds: float = 1.0, pitch: float = 440.0) -> sound.Samples:
    samples: sound.Samples = 0.5 * np.sin(2 * np.pi * pitch * np.arange(int(rate * seconds)) / rate).astype(np.float32)
    return samples


def packed(samples: np.ndarray, rate: int = 16_000, kind: str = "WAV", coding: str = "PCM_16") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=coding)
    return file.getvalue()


def wav(rate: int = 16_000, channels: int = 1, claimed: int | None = None, data: bytes = b"\0" * 3_200) -> bytes:
    """A WAV file whose header says what it likes."""
    size = len(data) if claimed is None else claimed
    step = 2 * channels
    head = struct.pack("<4sI4s4sI", b"RIFF", min(size + 36, 2**32 - 1), b"WAVE", b"fmt ", 16)
    byte_rate = min(rate * step, 2**32 - 1)
    return head + struct.pack("<HHIIHH4sI", 1, channels, rate, byte_rate, step, 16, b"data", size) + data


def refused(data: bytes, **limits: float) -> str:
    """What the asker is told."""
    with pytest.raises(EngineError) as caught:
        sound.hear(data, **limits)
    assert caught.value.code == ErrorCode.INVALID_REQUEST
    return caught.value.message


@pytest.mark.parametrize(
    ("kind", "coding", "rate"),
    [
        *(("WAV", coding, 44_100) for coding in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW")),
        ("OGG", "VORBIS", 44_100),
        ("OGG", "OPUS", 48_000),
        ("FLAC", "PCM_16", 22_050),
        ("MP3", "MPEG_LAYER_III", 44_100),
    ],
)
def test_every_kind_that_is_taken_is_heard(kind: str, coding: str, rate: int) -> None:
    heard = sound.hear(packed(tone(rate), rate, kind, coding))
    assert len(heard) == pytest.approx(sound.RATE, abs=sound.RATE / 20)
    spectrum = np.abs(np.fft.rfft(heard[2_000:14_000]))
    assert spectrum.argmax() * sound.RATE / 12_000 == pytest.approx(440, abs=2)
    assert np.abs(heard[4_000:12_000]).max() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("rate", [4_000, 8_000, 11_025, 44_100, 44_101, 48_000, 191_999])
def test_resampling_keeps_what_is_heard_and_removes_what_would_fold_back(rate: int) -> None:
    assert np.abs(resampled(tone(rate), rate) - tone(16_000))[300:-300].max() < 1e-4
    if rate > 20_000:
        assert np.abs(resampled(tone(rate, pitch=9_500.0), rate))[300:-300].max() < 1e-4


def resampled(samples: sound.Samples, rate: int) -> sound.Samples:
    """In blocks of an odd size: the seams must not be heard."""
    resampler = sound.Resampler(rate, sound.RATE)
    return np.concatenate(
        [*(resampler.feed(samples[at : at + 997]) for at in range(0, len(samples), 997)), resampler.rest()]
    )


def test_channels_become_one() -> None:
    both = np.stack([tone(16_000), -tone(16_000)], axis=1)
    assert np.abs(sound.hear(packed(both))).max() < 1e-3
    assert len(sound.hear(packed(np.zeros((800, sound.MOST_CHANNELS))))) == 800


def test_what_is_no_number_is_silence_and_what_is_too_loud_is_as_loud_as_can_be() -> None:
    wild = np.array([np.nan, np.inf, -np.inf, 1e30, 0.25] * 100, np.float32)
    heard = sound.hear(packed(wild, coding="FLOAT"))
    assert heard[:5].tolist() == [0.0, 1.0, -1.0, 1.0, 0.25]


def test_a_header_that_claims_a_gigabyte_costs_the_bytes_that_are_there() -> None:
    tracemalloc.start()
    heard = sound.hear(wav(claimed=10**9))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(heard) == 1_600
    assert peak < 8 * 2**20


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (wav(rate=1), "1 samples a second"),
        (wav(rate=10_000_000), "10000000 samples a second"),
        (wav(channels=255, data=bytes(510 * 20)), "255 channels"),
        (wav(data=b""), "empty"),
        (packed(np.zeros(0)), "empty"),
        (packed(np.zeros(9), kind="FLAC"), ""),
        (b"", "no sound that is known"),
        (b"<svg onload='x'/>", "no sound that is known"),
        (b"FORM\0\0\0\0AIFF", "no sound that is known"),
        (b"RIFF\xff\xff\xff\xffWAVE", "WAV file cannot be read"),
        (b"OggS" + bytes(200), "OGG file cannot be read"),
        (b"fLaC" + bytes(200), "FLAC file cannot be read"),
        (b"ID3\x04\0\0\x2f\x2f\x2f\x2f" + bytes(200), "MP3 file cannot be read"),  # a tag of 100 MB, it says
        (b"\xff\xfb\x90\0" + bytes(2), "MP3 file cannot be read"),
        (packed(tone(16_000), coding="IMA_ADPCM"), "IMA_ADPCM is not taken"),
        (b"ID3\x04\0\0\0\0\0\0" + packed(tone(16_000), kind="AIFF"), ""),
    ],
)
def test_what_cannot_be_heard_is_refused_in_a_sentence(data: bytes, words: str) -> None:
    if words:
        assert words in refused(data)
        return
    try:  # may be read or not, but what comes is sound or a sentence
        assert sound.hear(data).dtype == np.float32
    except EngineError as error:
        assert error.code == ErrorCode.INVALID_REQUEST


@pytest.mark.parametrize(
    ("kind", "coding"), [("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None), ("FLAC", None), ("WAV", None)]
)
def test_a_file_cut_anywhere_gives_its_beginning_or_a_sentence(kind: str, coding: str | None) -> None:
    file = io.BytesIO()
    soundfile.write(file, tone(16_000), 16_000, format=kind, subtype=coding)
    whole = file.getvalue()
    for part in (5, 20, 40, len(whole) // 3, len(whole) // 2, len(whole) - 7):
        try:
            assert len(sound.hear(whole[:part])) <= 1.1 * sound.RATE
        except EngineError as error:
            assert error.code == ErrorCode.INVALID_REQUEST


def test_bytes_changed_at_random_never_raise_anything_else() -> None:
    chance = np.random.default_rng(5)
    for kind in ("WAV", "OGG", "FLAC", "MP3"):
        file = io.BytesIO()
        soundfile.write(file, tone(16_000, 0.2), 16_000, format=kind)
        for _ in range(60):
            data = bytearray(file.getvalue())
            for at in chance.integers(4 if kind != "WAV" else 12, len(data), 6):
                data[at] = chance.integers(256)
            try:
                assert len(sound.hear(bytes(data), 10.0)) <= 10 * sound.RATE
            except EngineError as error:
                assert error.code == ErrorCode.INVALID_REQUEST


@pytest.mark.parametrize("kind", ["FLAC", "OGG"])
def test_an_hour_of_silence_in_few_bytes_is_refused_by_its_header(kind: str) -> None:
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", 4_000 if kind == "FLAC" else 8_000, 1, format=kind) as writer:
        for _ in range(60):
            writer.write(np.zeros(60 * writer.samplerate, np.float32))
    assert len(file.getvalue()) < params.MAX_INPUT_BYTES
    tracemalloc.start()
    assert "longer than 600 s" in refused(file.getvalue())
    assert tracemalloc.get_traced_memory()[1] < 2 * 2**20
    tracemalloc.stop()


def test_decoding_stops_at_the_limit_whatever_the_header_said() -> None:
    data = bytearray(packed(np.zeros(48_000 * 60), 48_000, "FLAC"))
    total = int.from_bytes(data[18:26], "big")  # 28 bits of rate, channels and width, 36 of the number of samples
    data[18:26] = (total >> 36 << 36).to_bytes(8, "big")  # 0: not known
    assert "longer than 20 s" in refused(bytes(data), most_seconds=20.0)


def test_a_sound_of_too_many_bytes_is_refused_unread() -> None:
    assert "at most" in refused(b"RIFF0000WAVE" + bytes(params.MAX_INPUT_BYTES))


def test_what_is_spoken_goes_out_in_parts_that_count_started_tenths() -> None:
    speaking = sound.Speaking(24_000)
    parts = [*speaking.say(np.full(40_000, 2.0, np.float32)), *speaking.say(np.full(10, np.nan, np.float32))]
    assert [len(part.data) for part in parts] == [65_536, 80_000 - 65_536, 20]
    assert [part.units_out for part in parts] == [14, 17, 17]
    assert {part.media_type for part in parts} == {"audio/pcm;rate=24000"}
    assert parts[0].data[:2] == struct.pack("<h", 32_767) and parts[2].data == bytes(20)
