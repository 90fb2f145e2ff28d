"""What a picture says of itself in its first bytes: format and size, read without decoding anything.

Rule: pure, and its work is bounded however the bytes are made, because it also runs where many clients wait. Sizes are
read here and not by a decoder, because a decoder may reserve memory for a whole canvas by only opening a file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from protocol import params

MAX_PIXELS = 40_000_000  # a camera's largest photos; 120 MB as RGB
MAX_QUERY_PIXELS = 100_000_000  # of one query's pictures together: eight photos of a phone
MAX_SIDE = 16_384  # pixels: a screenshot of a long page, not a ribbon
MAX_RATIO = 200  # long side by short side: beyond it nothing is left after scaling
MAX_MARKERS = 20_000  # of a JPEG before its size: a segment of a profile or a thumbnail has up to 64 KiB

FORMATS = (
    (re.compile(rb"\xff\xd8\xff"), "JPEG"),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "PNG"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "WEBP"),
    (re.compile(rb"GIF8[79]a"), "GIF"),
)
REFUSED = (
    (re.compile(rb"(\xef\xbb\xbf)?\s*<(\?xml|svg|!DOCTYPE|!--)", re.IGNORECASE), "an SVG or another text file"),
    (re.compile(rb"II\*\0|MM\0\*"), "a TIFF file"),
    (re.compile(rb"BM"), "a BMP file"),
    (re.compile(rb"....ftyp", re.DOTALL), "a HEIC, AVIF or video file"),
    (re.compile(rb"\0\0[\1\2]\0"), "an icon file"),
    (re.compile(rb"%PDF"), "a PDF file"),
)  # only so that the refusal can name it


class PictureRefused(ValueError):
    """A picture that is the asker's to mend; the sentence says what to send instead."""


@dataclass(frozen=True, slots=True)
class Header:
    """What the first bytes say."""

    format: str
    width: int  # pixels, as stored
    height: int


def read_header(data: bytes) -> Header:
    """Format and size, held to every limit. Raises `PictureRefused`."""
    if len(data) > params.MAX_INPUT_BYTES:
        raise PictureRefused(
            f"the picture has {len(data)} bytes; at most {params.MAX_INPUT_BYTES} are taken: send a smaller one"
        )
    name = picture_format(data)
    if not name:
        found = next((name for pattern, name in REFUSED if pattern.match(data)), "no picture that is known here")
        raise PictureRefused(f"the file is {found}: send a JPEG, PNG, WebP or GIF")
    try:
        width, height = SIZES[name](data)
    except (IndexError, ValueError):
        raise PictureRefused(f"the {name} file ends within its header: send the whole file") from None
    check_size(width, height)
    return Header(name, width, height)


def picture_format(data: bytes) -> str:
    """One of `SIZES`; "" if it is none of them."""
    return next((name for pattern, name in FORMATS if pattern.match(data)), "")


def check_size(width: int, height: int) -> None:
    """Raises `PictureRefused`."""
    if not width or not height:
        raise PictureRefused("the picture has no pixels")
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise PictureRefused(
            f"the picture has {width} x {height} pixels; at most {MAX_PIXELS // 1_000_000} million and {MAX_SIDE} a "
            "side are taken: send a smaller one"
        )
    if max(width, height) > MAX_RATIO * min(width, height):
        raise PictureRefused(
            f"the picture has {width} x {height} pixels, too narrow to be looked at: send a part of it"
        )


def check_pictures(pictures: Iterable[bytes]) -> None:
    """Hold the pictures of one query to the limits, each and together. Formats that are not known here are left to the
    model that is asked. Raises `PictureRefused`."""
    headers = [read_header(data) for data in pictures if picture_format(data)]
    pixels = sum(header.width * header.height for header in headers)
    if pixels > MAX_QUERY_PIXELS:
        raise PictureRefused(
            f"the pictures have {pixels:,} pixels together; at most {MAX_QUERY_PIXELS // 1_000_000} million are taken: "
            "send fewer or smaller ones"
        )


# --- sizes, format by format -------------------------------------------------------------------------------


def _big(data: bytes, at: int, length: int) -> int:
    return int.from_bytes(_exact(data, at, length), "big")


def _little(data: bytes, at: int, length: int) -> int:
    return int.from_bytes(_exact(data, at, length), "little")


def _exact(data: bytes, at: int, length: int) -> bytes:
    if at + length > len(data):
        raise IndexError(at)
    return data[at : at + length]


def _png_size(data: bytes) -> tuple[int, int]:
    return _big(data, 16, 4), _big(data, 20, 4)


def _gif_size(data: bytes) -> tuple[int, int]:
    return _little(data, 6, 2), _little(data, 8, 2)


def _webp_size(data: bytes) -> tuple[int, int]:
    chunk = _exact(data, 12, 4)
    if chunk == b"VP8X":
        return 1 + _little(data, 24, 3), 1 + _little(data, 27, 3)
    if chunk == b"VP8L":
        bits = _little(data, 21, 4)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return _little(data, 26, 2) & 0x3FFF, _little(data, 28, 2) & 0x3FFF


FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0 … SOF15


def _jpeg_size(data: bytes) -> tuple[int, int]:
    at = 2
    for _ in range(MAX_MARKERS):
        at = data.index(b"\xff", at)  # what stands before a marker is tolerated by every decoder
        marker = _big(data, at + 1, 1)
        if marker in FRAME_MARKERS:
            return _big(data, at + 7, 2), _big(data, at + 5, 2)
        if marker == 0xFF or marker == 0x01 or 0xD0 <= marker <= 0xD8:  # filling, or a marker without a length
            at += 1 if marker == 0xFF else 2
        else:
            at += 2 + max(2, _big(data, at + 2, 2))
    raise PictureRefused(f"the JPEG has more than {MAX_MARKERS} parts before its size: save it anew")


SIZES: dict[str, Callable[[bytes], tuple[int, int]]] = {
    "JPEG": _jpeg_size,
    "PNG": _png_size,
    "GIF": _gif_size,
    "WEBP": _webp_size,
}
