"""Frames on a byte stream: any cut gives the same frames, no length is believed above the limit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import Malformed
from protocol.framing import FrameReader, frame

PAYLOADS = st.lists(st.binary(max_size=300), max_size=6)


def read_all(reader: FrameReader) -> list[bytes]:
    frames = []
    while (payload := reader.next_frame()) is not None:
        frames.append(payload)
    return frames


@given(PAYLOADS, st.data())
def test_any_cut_gives_the_same_frames(payloads: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(map(frame, payloads))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    reader, frames = FrameReader(), []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        reader.receive_data(stream[start:end])
        frames += read_all(reader)
    assert frames == payloads
    assert reader.buffered == 0


@given(PAYLOADS)
def test_byte_by_byte(payloads: list[bytes]) -> None:
    reader, frames = FrameReader(), []
    for byte in b"".join(map(frame, payloads)):
        reader.receive_data(bytes([byte]))
        frames += read_all(reader)
    assert frames == payloads


@pytest.mark.parametrize(
    ("length", "header"),
    [(0, "00"), (1, "01"), (127, "7f"), (128, "8001"), (300, "ac02"), (16_383, "ff7f"), (16_384, "808001")],
)
def test_the_length_is_a_minimal_varint(length: int, header: str) -> None:
    assert frame(bytes(length)) == bytes.fromhex(header) + bytes(length)


def test_what_is_left_over_is_counted() -> None:
    reader = FrameReader()
    reader.receive_data(frame(b"whole") + frame(b"cut")[:2])
    assert reader.next_frame() == b"whole"
    assert reader.next_frame() is None
    assert reader.buffered == 2


def test_a_frame_at_the_limit_is_read_and_one_above_it_is_not() -> None:
    reader = FrameReader(limit=200)
    reader.receive_data(frame(bytes(200)))
    assert reader.next_frame() == bytes(200)
    reader.receive_data(frame(bytes(201)))
    with pytest.raises(Malformed, match="limit is 200"):
        reader.next_frame()


def test_a_length_above_the_limit_is_refused_before_its_payload_comes() -> None:
    reader = FrameReader(limit=200)
    reader.receive_data(b"\xc9\x01")
    with pytest.raises(Malformed):
        reader.next_frame()


@pytest.mark.parametrize("header", ["8000", "818000", "80808000"])
def test_a_length_has_one_spelling(header: str) -> None:
    reader = FrameReader()
    reader.receive_data(bytes.fromhex(header))
    with pytest.raises(Malformed, match="more bytes than it needs"):
        reader.next_frame()


@pytest.mark.parametrize("header", ["80808080", "ffffffff", "8080808001"])
def test_a_length_has_at_most_four_bytes(header: str) -> None:
    reader = FrameReader()
    reader.receive_data(bytes.fromhex(header))
    with pytest.raises(Malformed, match="more than four bytes"):
        reader.next_frame()


@given(st.binary(max_size=64))
def test_any_bytes_are_frames_or_malformed_and_frames_spell_them_again(data: bytes) -> None:
    reader = FrameReader(limit=16)
    reader.receive_data(data)
    try:
        frames = read_all(reader)
    except Malformed:
        return
    spelled = b"".join(map(frame, frames))
    assert data.startswith(spelled)
    assert reader.buffered == len(data) - len(spelled)
