"""Faces that are seen from the front: where they are, never whose.

Rule: a face is told only where several windows of nearly the same place and size agree on it. Work is bounded by the
picture's scaled size; a step is one size of window.

A window of 24 x 24 pixels passes a cascade of stages, each a sum over a few features. A feature is a square of 3 x 3
blocks: which of the eight outer ones are at least as bright as the middle one makes a number of 8 bits, and a table
says what that number is worth. Most windows fail the first stages, so that the later ones see few. The picture is made
smaller step by step, so that the same window finds larger faces. The numbers are OpenCV's (`builtin/faces`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CASCADE = Path(__file__).resolve().parent / "builtin" / "faces" / "cascade.json"
MOST_SIDE = 560  # pixels of the picture that is searched; a face of 1/20 of the long side is still found
SHRINK = 1.12  # from one size to the next
VOTES = 6  # windows that agree on a face
NEAR = 0.2  # of a window's side: corners that are no farther apart are the same face
MOST_WINDOWS = 2_000  # that passed, of one picture: far more than any faces give
RING = ((0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0))  # row, column of blocks, highest bit first

Array = np.ndarray[Any, Any]
Window = tuple[float, float, float]  # left, top, side


@dataclass(frozen=True, slots=True)
class Face:
    """A square around a face, in pixels of the picture."""

    left: float
    top: float
    side: float


@dataclass(frozen=True, slots=True)
class Feature:
    """3 x 3 blocks of `width` x `height` pixels from (x, y), and the worth of each of 256 patterns."""

    x: int
    y: int
    width: int
    height: int
    worth: Array


@dataclass(frozen=True, slots=True)
class Stage:
    """Features whose sum must reach the threshold."""

    threshold: float
    features: tuple[Feature, ...]


class FaceFinder:
    """The loaded cascade."""

    def __init__(self, file: Path = CASCADE) -> None:
        raw: Any = json.loads(file.read_text("utf-8"))
        self._side = int(raw["side"])
        self._stages = [
            Stage(stage["threshold"], tuple(_feature(raw["blocks"], *weak) for weak in stage["weak"]))
            for stage in raw["stages"]
        ]

    def find(self, image: Image.Image) -> Iterator[Face | None]:
        """The faces, the largest first; None after a step. A step takes some hundredths of a second."""
        grey = image.convert("L")
        grey.thumbnail((MOST_SIDE, MOST_SIDE), Image.Resampling.BILINEAR)
        scale = image.width / grey.width
        windows: list[Window] = []
        size = 1.0
        while min(grey.size) >= size * self._side and len(windows) < MOST_WINDOWS:
            small = grey.resize((round(grey.width / size), round(grey.height / size)), Image.Resampling.BILINEAR)
            windows += [(x * size, y * size, self._side * size) for x, y in self._search(small, 1 if size > 2 else 2)]
            size *= SHRINK
            yield None
        for left, top, side in sorted(_agreed(windows[:MOST_WINDOWS]), key=lambda window: -window[2]):
            yield Face(left * scale, top * scale, side * scale)

    def _search(self, grey: Image.Image, stride: int) -> list[tuple[int, int]]:
        """The corners of the windows that pass."""
        sums = np.pad(np.asarray(grey, np.int32).cumsum(0, np.int32).cumsum(1, np.int32), ((1, 0), (1, 0)))
        rows = np.arange(0, grey.height - self._side + 1, stride)
        columns = np.arange(0, grey.width - self._side + 1, stride)
        width = sums.shape[1]
        corners = (rows[:, None] * width + columns[None, :]).ravel()
        flat = sums.ravel()
        for stage in self._stages:
            total = sum(feature.worth[_patterns(flat, width, corners, feature)] for feature in stage.features)
            corners = corners[total >= stage.threshold]
        return [(corner % width, corner // width) for corner in corners.tolist()]


def _feature(blocks: Sequence[Sequence[int]], block: int, low: str, inside: float, outside: float) -> Feature:
    """`low` has a bit for each pattern in words of 32, the lowest bit first: those are worth `inside`."""
    words = [int(low[at : at + 8], 16) for at in range(0, 64, 8)]
    worth = np.array([inside if words[code >> 5] >> (code & 31) & 1 else outside for code in range(256)])
    x, y, width, height = blocks[block]
    return Feature(x, y, width, height, worth)


def _patterns(flat: Array, width: int, corners: Array, feature: Feature) -> Array:
    """The pattern of a feature in each window. `flat`: sums of all pixels above and to the left, row by row."""
    start = corners + feature.y * width + feature.x
    grid = [[flat[start + (j * feature.height * width + i * feature.width)] for i in range(4)] for j in range(4)]
    blocks = [[below[i + 1] - above[i + 1] - below[i] + above[i] for i in range(3)] for above, below in pairwise(grid)]
    patterns = np.zeros(len(corners), np.int64)
    for row, column in RING:
        patterns = patterns * 2 + (blocks[row][column] >= blocks[1][1])
    return patterns


def _agreed(windows: Sequence[Window]) -> list[Window]:
    """The mean of each group of at least `VOTES` windows. A window joins the first group whose first it is near to."""
    groups: list[list[Window]] = []
    for window in windows:
        group = next((group for group in groups if _near(group[len(group) // 2], window)), None)
        if group is None:
            groups.append([window])
        else:
            group.append(window)
    means = [tuple(np.mean(group, axis=0).tolist()) for group in groups if len(group) >= VOTES]
    return [mean for mean in means if not any(_holds(other, mean) for other in means if other is not mean)]


def _near(a: Window, b: Window) -> bool:
    """All four corners are close."""
    room = NEAR * min(a[2], b[2])
    ends = ((a[0], b[0]), (a[1], b[1]), (a[0] + a[2], b[0] + b[2]), (a[1] + a[2], b[1] + b[2]))
    return all(abs(one - other) <= room for one, other in ends)


def _holds(outer: Window, inner: Window) -> bool:
    """The middle of a smaller window lies in a larger one: parts of a face can look like faces."""
    x, y = inner[0] + inner[2] / 2 - outer[0], inner[1] + inner[2] / 2 - outer[1]
    return inner[2] < outer[2] and 0 <= x <= outer[2] and 0 <= y <= outer[2]
