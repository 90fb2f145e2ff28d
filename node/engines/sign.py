"""A picture whose text everybody knows: for the demo and for tests.

Rule: drawn here and now, with the font that comes with Pillow.
"""

from __future__ import annotations

import io

from PIL import Image, ImageDraw, ImageFont

MARGIN = 40
LETTER_PIXELS = 44


def sign(text: str) -> bytes:
    """A PNG of a white board that says `text`."""
    font = ImageFont.load_default(LETTER_PIXELS)
    _, _, width, height = font.getbbox(text)
    size = round(width) + 2 * MARGIN, round(height) + 2 * MARGIN
    image = Image.new("RGB", size, "white")
    ImageDraw.Draw(image).text((MARGIN, MARGIN), text, "black", font)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
