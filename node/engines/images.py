"""Opening a picture that a stranger sent.

Rule: nothing is decoded before the first bytes and the header have been held to every limit, and only the decoder that
the first bytes name is ever asked. What comes out is upright, opaque and RGB, or an `EngineError` (INVALID_REQUEST)
whose sentence says what to send instead.

Taken: JPEG, PNG, WebP and GIF; of a moving picture the first frame. Not taken: SVG (it can fetch and run things), TIFF,
BMP, HEIC, AVIF and the rest (decoders that few need and that have a history). A colour profile is not applied: a photo
in Display P3 looks a little paler than it was meant. Sizes are read here from the bytes, because a decoder may reserve
memory for a whole canvas by only opening a file.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from node.engines.port import EngineError
from protocol import params
from protocol.errors import ErrorCode

MAX_PIXELS = 40_000_000  # a camera's largest photos; 120 MB as RGB
MAX_SIDE = 16_384  # pixels: a screenshot of a long page, not a ribbon
MAX_RATIO = 200  # long side by short side: beyond it nothing is left after scaling
MAX_SCANS = 100  # of a JPEG; progressive ones have about ten
MAX_SCANNED_PIXELS = 1_000_000_000  # pixels times scans: each scan goes over the whole picture, however short it is

ORIENTATION = 0x0112  # EXIF tag
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
LYING = frozenset({5, 6, 7, 8})  # stored on its side

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


@dataclass(frozen=True, slots=True)
class Picture:
    """An opened picture."""

    image: Image.Image  # RGB, 8 bits a channel, upright; scaled down to what was asked for
    width: int  # pixels, upright, as it was sent
    height: int
    format: str  # "JPEG", "PNG", "WEBP" or "GIF"


@dataclass(frozen=True, slots=True)
class Header:
    """What the first bytes say."""

    format: str
    width: int  # pixels, as stored
    height: int


def refused(reason: str) -> EngineError:
    """A picture that is the asker's to mend."""
    return EngineError(ErrorCode.INVALID_REQUEST, reason)


def read_header(data: bytes) -> Header:
    """Format and size, held to every limit; nothing is decoded. Raises `EngineError` (INVALID_REQUEST)."""
    if len(data) > params.MAX_INPUT_BYTES:
        raise refused(
            f"the picture has {len(data)} bytes; at most {params.MAX_INPUT_BYTES} are taken: send a smaller one"
        )
    name = _format(data)
    try:
        width, height = SIZES[name](data)
    except (IndexError, ValueError):
        raise refused(f"the {name} file ends within its header: send the whole file") from None
    _check_size(width, height)
    return Header(name, width, height)


def open_picture(data: bytes, longest: int) -> Picture:
    """Decode a picture and scale it down so that no side has more than `longest` pixels. Blocks for up to some seconds
    at the largest sizes. Raises `EngineError` (INVALID_REQUEST)."""
    header = read_header(data)
    if header.format == "JPEG":
        _check_scans(data, header)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged metadata, which is not used
            return _decode(data, header, longest)
    except (EngineError, MemoryError):
        raise
    except Exception as error:  # decoders raise nearly anything at damaged files; their words may quote the file
        raise refused(
            f"the {header.format} file is cut off or damaged ({type(error).__name__}): send it again, or save it anew"
        ) from None


def _format(data: bytes) -> str:
    for pattern, name in FORMATS:
        if pattern.match(data):
            return name
    found = next((name for pattern, name in REFUSED if pattern.match(data)), "no picture that is known here")
    raise refused(f"the file is {found}: send a JPEG, PNG, WebP or GIF")


def _check_size(width: int, height: int) -> None:
    if not width or not height:
        raise refused("the picture has no pixels")
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise refused(
            f"the picture has {width} x {height} pixels; at most {MAX_PIXELS // 1_000_000} million and {MAX_SIDE} a "
            "side are taken: send a smaller one"
        )
    if max(width, height) > MAX_RATIO * min(width, height):
        raise refused(f"the picture has {width} x {height} pixels, too narrow to be looked at: send a part of it")


def _check_scans(data: bytes, header: Header) -> None:
    """A few bytes a scan can keep a decoder busy for minutes. Counts those of thumbnails too, which are few."""
    scans = data.count(b"\xff\xda")
    if scans > MAX_SCANS or scans * header.width * header.height > MAX_SCANNED_PIXELS:
        raise refused(f"the JPEG has {scans} scans, more than a picture of its size needs: save it anew")


def _decode(data: bytes, header: Header, longest: int) -> Picture:
    with Image.open(io.BytesIO(data), formats=(header.format,)) as image:
        _check_size(*image.size)  # the decoder's opinion counts as well: a GIF's frame may be larger than its canvas
        stored = image.size
        if header.format == "JPEG":
            image.draft(None, (longest, longest))  # decodes at a half, a quarter or an eighth where that is enough
        image.load()
        orientation = _orientation(image)
        scale = min(1.0, longest / max(stored))
        fitted = _fit(_opaque(image), (max(1, round(stored[0] * scale)), max(1, round(stored[1] * scale))))
    if orientation in UPRIGHT:
        fitted = fitted.transpose(UPRIGHT[orientation])
    width, height = stored[::-1] if orientation in LYING else stored
    return Picture(fitted, width, height, header.format)


def _fit(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)


def _opaque(image: Image.Image) -> Image.Image:
    """RGB, on white where it is transparent."""
    if image.mode.startswith("I") or image.mode == "F":  # sixteen bits of grey; `convert` would cut them off at 255
        return image.convert("I").point(lambda value: value / 257).convert("L").convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    shown = image.convert("RGBA")
    ground = Image.new("RGB", shown.size, "white")
    ground.paste(shown, mask=shown.getchannel("A"))
    return ground


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged metadata is no reason to refuse a picture
        return 1
    return value if isinstance(value, int) else 1


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
    while True:
        while _big(data, at, 1) != 0xFF:  # tolerated by every decoder
            at += 1
        marker = _big(data, at + 1, 1)
        if marker in FRAME_MARKERS:
            return _big(data, at + 7, 2), _big(data, at + 5, 2)
        if marker == 0xFF or marker == 0x01 or 0xD0 <= marker <= 0xD8:  # filling, or a marker without a length
            at += 1 if marker == 0xFF else 2
        else:
            at += 2 + max(2, _big(data, at + 2, 2))


SIZES: dict[str, Callable[[bytes], tuple[int, int]]] = {
    "JPEG": _jpeg_size,
    "PNG": _png_size,
    "GIF": _gif_size,
    "WEBP": _webp_size,
}
