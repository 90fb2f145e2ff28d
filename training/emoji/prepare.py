"""Build the training set of the emoji model: pictures, words, styles.

Rule: the same package files give the same set, byte for byte: no clock, no unseeded draw, sorted walks.

It reads five unpacked npm packages below one folder (names and versions in README.md beside this file) and writes
`pictures.npy` (N x 64 x 64 x 3, uint8, on white) and `captions.json` (N entries, see `Caption`).

    python training/emoji/prepare.py PACKAGES SET
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from node.engines.emoji_network import words_of

SIZE = 64
Pixels = NDArray[np.uint8]  # 64 x 64 x 3

# Style -> folder of its pictures in the packages, and their ending.
STYLES = {
    "flat": ("emoji-datasource-google/img/google/64", ".png"),
    "cartoon": ("emoji-datasource-twitter/img/twitter/64", ".png"),
    "3d": ("fluent-emoji-3d/assets", ".webp"),
}

PEOPLE, COMPONENTS, FLAGS = 1, 2, 9  # groups of emojibase
UNWANTED_GROUPS = (COMPONENTS, FLAGS)

# Colour -> (hue in degrees, factor on saturation, factor on value).
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0, 1.0, 1.0),
    "orange": (28, 1.1, 1.05),
    "yellow": (50, 1.05, 1.12),
    "green": (120, 0.95, 0.85),
    "blue": (218, 1.0, 1.0),
    "purple": (275, 0.9, 0.9),
    "pink": (330, 0.6, 1.15),
    "brown": (24, 0.85, 0.6),
    "gray": (0, 0.0, 0.85),
    "black": (0, 0.0, 0.3),
}
COLOUR_WORDS = frozenset(COLOURS) | {"white", "grey"}

# A pixel has a colour of its own when it is this saturated and this bright, of 1.
SATURATED, BRIGHT = 0.35, 0.25
# An emoji is recoloured when its main hue (± HUE_WIDTH degrees) covers this share of it.
RECOLOURABLE_SHARE = 0.45
HUE_WIDTH = 35.0


@dataclass(frozen=True)
class Caption:
    """One picture's words. `colour` is the colour word of the whole, "" when there is none."""

    style: str
    label: list[str]
    tags: list[list[str]]
    group: int
    colour: str
    recoloured: bool


def plain(hexcode: str) -> str:
    """A hex code as all packages spell it: lower case, without the variation selector."""
    return re.sub("-fe0f", "", hexcode.lower())


def picture(path: Path) -> Pixels:
    """The file on white, 64 x 64."""
    image = Image.open(path).convert("RGBA").resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    white = Image.new("RGBA", (SIZE, SIZE), (255, 255, 255, 255))
    return np.array(Image.alpha_composite(white, image).convert("RGB"))


def distance(hue: NDArray[np.float32], other: float) -> NDArray[np.float32]:
    """Degrees between hues, 0 to 180."""
    turned: NDArray[np.float32] = np.abs((hue - other + 180.0) % 360.0 - 180.0)
    return turned


def to_hsv(pixels: Pixels) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Hue in degrees, saturation and value of 1."""
    hsv = np.array(Image.fromarray(pixels).convert("HSV")).astype(np.float32)
    return hsv[..., 0] * (360.0 / 255.0), hsv[..., 1] / 255.0, hsv[..., 2] / 255.0


def main_hue(pixels: Pixels) -> float | None:
    """The hue that covers most of the picture, None when no hue covers enough of it."""
    hue, saturation, value = to_hsv(pixels)
    drawn = pixels.min(axis=2) < 245
    coloured = drawn & (saturation > SATURATED) & (value > BRIGHT)
    if coloured.sum() < 100:
        return None
    shares = [(float((coloured & (distance(hue, centre) < HUE_WIDTH)).sum()), centre) for centre in range(0, 360, 10)]
    covered, centre = max(shares)
    return float(centre) if covered / drawn.sum() > RECOLOURABLE_SHARE else None


def nearest_colour(hue: float) -> str:
    """The colour word of a bright hue."""
    plain_colours = ("red", "orange", "yellow", "green", "blue", "purple", "pink")
    return min(plain_colours, key=lambda name: abs((hue - COLOURS[name][0] + 180.0) % 360.0 - 180.0))


def recolour(pixels: Pixels, hue: float, colour: str) -> Pixels:
    """The picture with its main hue turned to `colour`; other hues, outlines and white stay."""
    hues, saturation, value = to_hsv(pixels)
    target, more_saturation, more_value = COLOURS[colour]
    # 1 inside the main hue, falling to 0 over 15 degrees, so that no edge is torn.
    inside = np.clip((HUE_WIDTH + 15.0 - distance(hues, hue)) / 15.0, 0.0, 1.0) * np.clip(saturation / 0.15, 0.0, 1.0)
    turned = (target + np.clip((hues - hue + 180.0) % 360.0 - 180.0, -12.0, 12.0)) % 360.0
    new = np.stack(
        (
            turned * (255.0 / 360.0),
            np.clip(saturation * more_saturation, 0.0, 1.0) * 255.0,
            # A pale pixel (an edge to white) keeps its brightness.
            np.clip(value * (1.0 + (more_value - 1.0) * np.clip(saturation / 0.5, 0.0, 1.0)), 0.0, 1.0) * 255.0,
        ),
        axis=2,
    )
    changed = np.array(Image.fromarray(new.astype(np.uint8), "HSV").convert("RGB")).astype(np.float32)
    mix = inside[..., None]
    mixed: Pixels = (changed * mix + pixels.astype(np.float32) * (1.0 - mix)).round().astype(np.uint8)
    return mixed


def entries(packages: Path) -> Iterator[tuple[str, int, list[str], list[list[str]]]]:
    """(hex code, group, label, tags) of every emoji that is drawn."""
    extra = json.loads((packages / "emojilib/dist/emoji-en-US.json").read_text())
    for entry in json.loads((packages / "emojibase-data/en/data.json").read_text()):
        group = entry.get("group")
        if group is None or group in UNWANTED_GROUPS:
            continue
        label = words_of(entry["label"])
        phrases = [*entry.get("tags", []), *extra.get(entry["emoji"], [])]
        tags = {tuple(words_of(phrase)) for phrase in phrases}
        yield plain(entry["hexcode"]), group, label, [list(tag) for tag in sorted(tags) if tag and list(tag) != label]


def variants(pixels: Pixels, caption: Caption) -> Iterator[tuple[Pixels, Caption]]:
    """The picture itself, and where one hue rules it, the picture in every other colour."""
    hue = None if caption.group == PEOPLE else main_hue(pixels)
    own = next((word for word in caption.label if word in COLOUR_WORDS), "")
    own = own or ("" if hue is None else nearest_colour(hue))
    yield pixels, Caption(**{**asdict(caption), "colour": own})
    if hue is None:
        return
    label = [word for word in caption.label if word not in COLOUR_WORDS]
    tags = [tag for tag in caption.tags if not COLOUR_WORDS & set(tag)]
    for colour in COLOURS:
        if colour != own:
            yield recolour(pixels, hue, colour), Caption(caption.style, label, tags, caption.group, colour, True)


def build(packages: Path) -> tuple[NDArray[np.uint8], list[Caption]]:
    """All pictures (N x 64 x 64 x 3) and their captions."""
    files = {
        style: {plain(path.stem): path for path in sorted((packages / folder).glob(f"*{ending}"))}
        for style, (folder, ending) in STYLES.items()
    }
    pictures, captions = [], []
    for code, group, label, tags in entries(packages):
        for style, paths in files.items():
            if code not in paths:
                continue
            for pixels, caption in variants(picture(paths[code]), Caption(style, label, tags, group, "", False)):
                pictures.append(pixels)
                captions.append(caption)
    return np.stack(pictures), captions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    pictures, captions = build(arguments.packages)
    np.save(arguments.out / "pictures.npy", pictures)
    (arguments.out / "captions.json").write_text(json.dumps([asdict(caption) for caption in captions]))
    drawn = sum(not caption.recoloured for caption in captions)
    print(f"{drawn} pictures as drawn, {len(captions) - drawn} recoloured")


if __name__ == "__main__":
    main()
