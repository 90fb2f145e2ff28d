"""What can be measured in a picture without any model: colours, brightness, sharp edges.

Rule: a measure, and a word for it with the threshold written beside it. Shares are of the picture's area.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

SAMPLE = 96  # pixels a side of what colours are counted on
LEAST_SHARE = 0.07  # of a colour that is worth a word
MOST_COLOURS = 4
DARK = 0.38  # value below which a colour is called dark
DRAWN, PHOTOGRAPHED = 0.8, 0.45  # shares of equal neighbours: drawings and screens are above, photos have noise

# Hue in degrees up to which a saturated colour has this name.
HUES = ((15, "red"), (42, "orange"), (68, "yellow"), (165, "green"), (200, "turquoise"), (258, "blue"), (292, "purple"))
PINK, RED = (345, "pink"), "red"

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Measures:
    """Of one picture."""

    colours: tuple[tuple[str, float], ...]  # (name, share), the largest first
    brightness: float  # 0 black … 1 white, mean
    colourless: bool
    flat: float  # share of neighbouring pixels that are exactly equal

    @property
    def light(self) -> str:
        """A word for the brightness."""
        return next(
            word for limit, word in ((0.25, "dark"), (0.65, "medium"), (2.0, "bright")) if self.brightness < limit
        )

    @property
    def drawn(self) -> bool | None:
        """True: a drawing or a screen; False: a photo; None: cannot be told."""
        if DRAWN > self.flat > PHOTOGRAPHED:
            return None
        return self.flat >= DRAWN


def measure(image: Image.Image) -> Measures:
    """Measure an RGB picture. Takes some milliseconds."""
    small = np.asarray(image.resize((SAMPLE, SAMPLE), Image.Resampling.BOX).convert("HSV"), np.float32)
    names = _names(small.reshape(-1, 3))
    found, counts = np.unique(names, return_counts=True)
    order = np.argsort(-counts)
    shares = [(str(found[at]), float(counts[at]) / len(names)) for at in order]
    saturation, value = small[..., 1] / 255, small[..., 2] / 255
    luminance = np.asarray(image.convert("L").resize((SAMPLE, SAMPLE), Image.Resampling.BOX), np.float32) / 255
    return Measures(
        colours=tuple((name, share) for name, share in shares if share >= LEAST_SHARE)[:MOST_COLOURS],
        brightness=float(luminance.mean()),
        colourless=bool((saturation * value).max() < 0.08),
        flat=_flat(image),
    )


def _names(pixels: Array) -> Array:
    """(n, 3) of hue, saturation and value, 0 … 255, to n names."""
    hue, saturation, value = pixels[:, 0] * 360 / 255, pixels[:, 1] / 255, pixels[:, 2] / 255
    grey = (saturation < 0.14) | (saturation * value < 0.09)
    brown = (hue >= 10) & (hue < 48) & (value < 0.62)
    named = np.select(
        [
            value < 0.16,
            grey & (value > 0.92),
            grey & (value > 0.7),
            grey & (value < 0.35),
            grey,
            brown,
            *[hue < limit for limit, _ in HUES],
            hue < PINK[0],
        ],
        ["black", "white", "light grey", "dark grey", "grey", "brown", *[name for _, name in HUES], PINK[1]],
        RED,
    )
    deep = ~(grey | brown) & (value >= 0.16) & (value < DARK)
    return np.where(deep, np.char.add("dark ", named), named)


def _flat(image: Image.Image) -> float:
    """Looked at pixel by pixel, because scaling smooths noise away."""
    pixels = np.asarray(image, np.int16)
    if pixels.shape[1] < 2:
        return 1.0
    same = (np.diff(pixels, axis=1) == 0).all(axis=2)
    return float(same.mean())
