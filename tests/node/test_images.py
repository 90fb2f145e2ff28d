"""Pictures from strangers: opened upright, opaque and RGB, or refused with a sentence; never a traceback or a hang."""

import io
import random
import struct
import zlib
from collections.abc import Callable

import pytest
from PIL import Image, features

from node.engines import images
from node.engines.images import open_picture, read_header
from node.engines.port import EngineError
from protocol import params
from protocol.errors import ErrorCode

RED, BLUE = (200, 30, 40), (20, 40, 220)


def encode(image: Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def halves(width: int = 64, height: int = 48) -> Image.Image:
    """Red above, blue below."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(BLUE, (0, height // 2, width, height))
    return image


def refusal(data: bytes) -> str:
    with pytest.raises(EngineError) as caught:
        open_picture(data, 1_024)
    assert caught.value.code == ErrorCode.INVALID_REQUEST
    return caught.value.message


def near(image: Image.Image, at: tuple[int, int], colour: tuple[int, int, int], tolerance: int = 12) -> bool:
    pixel = image.getpixel(at)
    assert isinstance(pixel, tuple)
    return all(abs(a - b) <= tolerance for a, b in zip(pixel, colour, strict=True))


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png_header(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF"])
def test_each_format_is_opened(format: str) -> None:
    picture = open_picture(encode(halves(), format), 1_024)
    assert (picture.format, picture.width, picture.height, picture.image.size) == (format, 64, 48, (64, 48))
    assert picture.image.mode == "RGB"
    assert near(picture.image, (5, 5), RED) and near(picture.image, (60, 44), BLUE)


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", "SVG"),
        (b"\xef\xbb\xbf <?xml version='1.0'?><svg/>", "SVG"),
        (b"II*\0" + bytes(100), "TIFF"),
        (b"BM" + bytes(100), "BMP"),
        (b"\0\0\0\x20ftypheic" + bytes(100), "HEIC"),
        (b"%PDF-1.7", "PDF"),
        (b"PK\x03\x04" + bytes(100), "no picture"),
        (b"", "no picture"),
        (b"\x89PNG", "no picture"),
    ],
)
def test_other_formats_are_refused_by_name(data: bytes, word: str) -> None:
    message = refusal(data)
    assert word in message and "JPEG, PNG, WebP or GIF" in message


def _webp_canvas(width: int, height: int) -> bytes:
    body = (
        b"VP8X"
        + struct.pack("<I", 10)
        + bytes(4)
        + (width - 1).to_bytes(3, "little")
        + (height - 1).to_bytes(3, "little")
    )
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def _jpeg_of(width: int, height: int) -> bytes:
    data = bytearray(encode(Image.new("RGB", (16, 16)), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        png_header(50_000, 50_000) + png_chunk(b"IDAT", zlib.compress(bytes(1_000))) + png_chunk(b"IEND", b""),
        png_header(2**31 - 1, 1),
        b"GIF89a" + struct.pack("<HHBBB", 65_535, 65_535, 0, 0, 0) + b";",
        _webp_canvas(2**24, 2**24),
        _jpeg_of(65_000, 65_000),
        _jpeg_of(8_000, 8_000),  # sides are allowed, their product is not
        png_header(16_385, 100),
    ],
)
def test_too_many_pixels_are_refused_by_the_header_alone(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_decode", None)  # would be an error of another kind
    assert "pixels" in refusal(data)


def test_too_many_bytes_are_refused() -> None:
    assert str(params.MAX_INPUT_BYTES) in refusal(bytes(params.MAX_INPUT_BYTES + 1))


@pytest.mark.parametrize(("width", "height"), [(0, 10), (10, 0)])
def test_no_pixels_and_ribbons_are_refused(width: int, height: int) -> None:
    assert "no pixels" in refusal(png_header(width, height))
    assert "narrow" in refusal(png_header(10_000, 49))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF"])
def test_a_file_that_is_cut_off_is_refused(format: str) -> None:
    noise = random.Random(1)
    image = Image.frombytes("RGB", (96, 96), bytes(noise.randrange(256) for _ in range(96 * 96 * 3)))
    data = encode(image, format)
    for share in (0.002, 0.01, 0.1, 0.5, 0.9):
        assert refusal(data[: int(len(data) * share)])


def test_the_size_that_the_decoder_finds_counts_too() -> None:
    """A GIF's frame may be larger than the canvas that its header tells."""
    data = bytearray(encode(Image.new("P", (8, 8)), "GIF"))
    at = data.index(b"\x2c")
    data[at + 5 : at + 9] = struct.pack("<HH", 8_000, 8_000)
    assert "8000 x 8000" in refusal(bytes(data))


def test_bytes_behind_a_picture_do_nothing() -> None:
    picture = open_picture(encode(halves(), "JPEG") + b"PK\x03\x04<script>alert(1)</script>" * 50, 1_024)
    assert picture.image.size == (64, 48)


def test_a_script_that_begins_like_a_gif_is_refused() -> None:
    assert refusal(b"GIF89a/*" + bytes(8) + b"*/=1;alert(document.cookie);//")


def test_of_ten_thousand_frames_the_first_is_looked_at() -> None:
    palette = bytes((*RED, *BLUE))
    first = b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    other = b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x4c\x01\x00"
    data = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + palette + first + other * 10_000 + b";"
    assert open_picture(data, 1_024).image.getpixel((0, 0)) == RED


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_of_a_moving_picture_the_first_frame_is_shown(format: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, BLUE)]
    data = encode(
        frames[0], format, save_all=True, append_images=frames[1:], **({"lossless": True} if format == "WEBP" else {})
    )
    assert near(open_picture(data, 1_024).image, (8, 8), RED)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_a_rotated_photo_is_turned_upright(orientation: int, format: str) -> None:
    upright = halves(64, 32)
    upright.paste((0, 255, 0), (0, 0, 16, 16))  # a corner, so that no two orientations look the same
    undo = {6: 8, 8: 6}.get(orientation, orientation)
    stored = upright if orientation == 1 else upright.transpose(images.UPRIGHT[undo])
    exif = Image.Exif()
    exif[images.ORIENTATION] = orientation
    picture = open_picture(encode(stored, format, exif=exif, quality=95), 1_024)
    assert (picture.width, picture.height, picture.image.size) == (64, 32, (64, 32))
    assert near(picture.image, (5, 5), (0, 255, 0), 40) and near(picture.image, (55, 28), BLUE, 40)


@pytest.mark.parametrize(
    "garbage", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 60]
)
def test_damaged_metadata_is_left_aside(garbage: bytes) -> None:
    assert open_picture(encode(halves(), "JPEG", exif=garbage), 1_024).image.size == (64, 48)


def test_an_orientation_that_is_none_is_left_aside() -> None:
    exif = Image.Exif()
    exif[images.ORIENTATION] = 77
    assert near(open_picture(encode(halves(), "JPEG", exif=exif), 1_024).image, (5, 5), RED)


KINDS: dict[str, Callable[[], bytes]] = {
    "CMYK JPEG": lambda: encode(halves().convert("CMYK"), "JPEG"),
    "grey JPEG": lambda: encode(halves().convert("L"), "JPEG"),
    "16-bit PNG": lambda: encode(Image.new("I;16", (64, 48), 40_000), "PNG"),
    "1-bit PNG": lambda: encode(Image.new("1", (64, 48), 1), "PNG"),
    "palette PNG": lambda: encode(halves().quantize(4), "PNG"),
    "grey and alpha": lambda: encode(Image.new("LA", (64, 48), (10, 0)), "PNG"),
}


@pytest.mark.parametrize(
    ("kind", "colour"),
    [
        ("CMYK JPEG", RED),
        ("grey JPEG", (82, 82, 82)),
        ("16-bit PNG", (155, 155, 155)),
        ("1-bit PNG", (255, 255, 255)),
        ("palette PNG", RED),
        ("grey and alpha", (255, 255, 255)),
    ],
)
def test_every_kind_of_pixel_becomes_rgb(kind: str, colour: tuple[int, int, int]) -> None:
    image = open_picture(KINDS[kind](), 1_024).image
    assert image.mode == "RGB" and near(image, (5, 5), colour)


def test_what_is_transparent_is_white() -> None:
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, *RED])
    assert open_picture(encode(palette, "PNG", transparency=1), 1_024).image.getpixel((4, 4)) == (255, 255, 255)
    assert open_picture(encode(palette, "GIF", transparency=1), 1_024).image.getpixel((4, 4)) == (255, 255, 255)
    half = Image.new("RGBA", (8, 8), (0, 0, 0, 128))
    assert near(open_picture(encode(half, "PNG"), 1_024).image, (4, 4), (127, 127, 127), 2)


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_a_large_picture_is_scaled_down_to_what_is_asked_for(format: str) -> None:
    picture = open_picture(encode(halves(1_000, 600), format), 100)
    assert (picture.width, picture.height, picture.image.size) == (1_000, 600, (100, 60))
    assert near(picture.image, (50, 5), RED) and near(picture.image, (50, 55), BLUE)


def test_many_scans_are_refused() -> None:
    data = encode(halves(), "JPEG", progressive=True)
    assert open_picture(data, 1_024).format == "JPEG"
    at = data.rindex(b"\xff\xda")
    assert "scans" in refusal(data[:at] + data[at:-2] * 200 + b"\xff\xd9")


def test_a_bomb_in_a_png_text_is_harmless() -> None:
    bomb = b"comment\0\0" + zlib.compress(bytes(100_000_000))
    image = encode(halves(), "PNG")
    at = 8 + 25  # behind the header
    data = image[:at] + png_chunk(b"zTXt", bomb) + image[at:]
    assert len(data) < 200_000
    assert "PNG" in refusal(data)


def test_more_data_than_pixels_is_not_kept() -> None:
    body = zlib.compress(bytes(50_000_000))
    data = png_header(8, 8) + png_chunk(b"IDAT", body) + png_chunk(b"IEND", b"")
    assert open_picture(data, 1_024).image.size == (8, 8)


def test_a_header_can_be_read_without_decoding() -> None:
    header = read_header(encode(halves(300, 200), "WEBP", lossless=True))
    assert (header.format, header.width, header.height) == ("WEBP", 300, 200)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF"])
def test_damage_is_a_refusal_or_a_picture(format: str) -> None:
    """Some bytes changed at random, many times: nothing but the two ever comes out."""
    chance = random.Random(format)
    whole = encode(halves(40, 30), format)
    opened = 0
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(chance.choice((1, 3, 20))):
            data[chance.randrange(len(data))] = chance.randrange(256)
        try:
            opened += open_picture(bytes(data), 64).image.mode == "RGB"
        except EngineError as error:
            assert error.code == ErrorCode.INVALID_REQUEST
    assert opened or format == "PNG"  # its checksums tell nearly all


def test_the_decoders_are_there() -> None:
    assert all(features.check(name) for name in ("jpg", "zlib", "webp"))
