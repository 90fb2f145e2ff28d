"""Opening a picture that a stranger sent.

Rule: nothing is decoded before the first bytes and the header have been held to every limit, and only the decoder that
the first bytes name is ever asked. What comes out is upright, opaque and RGB, or an `EngineError` (INVALID_REQUEST)
whose sentence says what to send instead.

Taken: JPEG, PNG, WebP and GIF; of a moving picture the first frame. Not taken: SVG (it can fetch and run things), TIFF,
BMP, HEIC, AVIF and the rest (decoders that few need and that have a history). A colour profile is not applied: a photo
in Display P3 looks a little paler than it was meant. Sizes are read from the bytes (`node/picture_headers.py`), because
a decoder may reserve memory for a whole canvas by only opening a file.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

from PIL import Image

from node import picture_headers
from node.engines.port import EngineError
from node.picture_headers import Header, PictureRefused, check_size
from protocol.errors import ErrorCode

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


@dataclass(frozen=True, slots=True)
class Picture:
    """An opened picture."""

    image: Image.Image  # RGB, 8 bits a channel, upright; scaled down to what was asked for
    width: int  # pixels, upright, as it was sent
    height: int
    format: str  # "JPEG", "PNG", "WEBP" or "GIF"


def refused(reason: str) -> EngineError:
    """A picture that is the asker's to mend."""
    return EngineError(ErrorCode.INVALID_REQUEST, reason)


def read_header(data: bytes) -> Header:
    """Format and size, held to every limit; nothing is decoded. Raises `EngineError` (INVALID_REQUEST)."""
    try:
        return picture_headers.read_header(data)
    except PictureRefused as error:
        raise refused(str(error)) from None


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
    except PictureRefused as error:
        raise refused(str(error)) from None
    except (EngineError, MemoryError):
        raise
    except Exception as error:  # decoders raise nearly anything at damaged files; their words may quote the file
        raise refused(
            f"the {header.format} file is cut off or damaged ({type(error).__name__}): send it again, or save it anew"
        ) from None


def _check_scans(data: bytes, header: Header) -> None:
    """A few bytes a scan can keep a decoder busy for minutes. Counts those of thumbnails too, which are few."""
    scans = data.count(b"\xff\xda")
    if scans > MAX_SCANS or scans * header.width * header.height > MAX_SCANNED_PIXELS:
        raise refused(f"the JPEG has {scans} scans, more than a picture of its size needs: save it anew")


def _decode(data: bytes, header: Header, longest: int) -> Picture:
    with Image.open(io.BytesIO(data), formats=(header.format,)) as image:
        check_size(*image.size)  # the decoder's opinion counts as well: a GIF's frame may be larger than its canvas
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
