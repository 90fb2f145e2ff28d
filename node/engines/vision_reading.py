"""The text in a picture: PP-OCRv4 on onnxruntime, without OpenCV.

Rule: work and memory are bounded whatever the picture holds: a bounded size, a bounded number of lines, one line a
step. A line of which the network itself is not sure is not reported.

1. The detector gives each pixel a share of "text is here" (a line's core, shrunk by design).
2. Connected pixels above a threshold are a line; the smallest rectangle around them, widened again, is its box.
3. The box is straightened to 48 pixels of height and the recogniser gives a letter or none for each 8 pixels across
   (CTC: repeats and "none" are dropped).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image

MOST_SIDE = 1_024  # pixels that the detector sees; letters of 1/100 of the long side are still ten pixels high
LEAST_SIDE = 640  # smaller pictures are enlarged, at most twice
MULTIPLE = 32  # the detector halves its picture five times
CORE = 0.3  # a pixel's share from which it belongs to a line
LEAST_CORE = 0.55  # mean share of a line's pixels
UNCLIP = 1.6  # how much larger a line is than its core, as it was trained
MAX_RUNS = 60_000  # rows' stretches of text pixels: noise can have hundreds of thousands
MAX_LINES = 100
HEIGHT = 48  # of a straightened line
LEAST_WIDTH, MOST_WIDTH = 320, 3_200  # of a straightened line
LEAST_CONFIDENCE = 0.6
SHORT, LEAST_OF_SHORT = 3, 0.85  # letters; ornaments and leaves are taken for one or two
TALL = 1.5  # height by width from which a box holds upright text, read from top to bottom

Array = np.ndarray[Any, Any]
Run = tuple[int, int, int]  # row, first column, column after the last


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle that may be turned. All in pixels of the picture."""

    x: float  # of the middle
    y: float
    width: float
    height: float
    angle: float  # radians; of the width's direction, clockwise, within a quarter turn of level


@dataclass(frozen=True, slots=True)
class Line:
    """A line that was read."""

    text: str
    confidence: float  # 0 … 1, mean of its letters
    box: Box


class Reader:
    """The loaded networks."""

    def __init__(self, folder: Path, threads: int) -> None:
        """`threads` 0: as many as there are cores."""
        self._lines = _session(folder / "lines.onnx", threads)
        self._letters = _session(folder / "letters.onnx", threads)
        characters = self._letters.get_modelmeta().custom_metadata_map["character"].splitlines()
        self._alphabet = ["", *characters, " "]  # 0 is CTC's "none"

    def read(self, image: Image.Image) -> Iterator[Line | None]:
        """The lines in reading order; None after a step without one. A step takes a tenth of a second or two, the first
        up to half a second."""
        boxes = self._find(image)
        yield None
        levels: dict[int, Image.Image] = {1: image}
        for box in in_reading_order(boxes[:MAX_LINES]):
            yield self._read_line(straighten(levels, box), box)

    def _find(self, image: Image.Image) -> list[Box]:
        """Boxes, the largest first."""
        scale = min(MOST_SIDE / max(image.size), max(1.0, min(2.0, LEAST_SIDE / max(image.size))))
        width, height = (max(MULTIPLE, round(side * scale / MULTIPLE) * MULTIPLE) for side in image.size)
        seen = _to_array(image.resize((width, height), Image.Resampling.BILINEAR))
        share: Array = self._lines.run(None, {"x": seen})[0][0, 0]  # (height, width)
        boxes = [_scaled(box, image.width / width, image.height / height) for box in find_boxes(share)]
        return sorted(boxes, key=lambda box: -box.width * box.height)

    def _read_line(self, line: Image.Image, box: Box) -> Line | None:
        pixels = np.zeros((1, 3, HEIGHT, max(LEAST_WIDTH, line.width)), np.float32)
        pixels[..., : line.width] = _to_array(line)
        shares: Array = self._letters.run(None, {"x": pixels})[0][0]  # (steps, letters)
        best, belief = shares.argmax(1), shares.max(1)
        kept = (best != 0) & (best != np.concatenate(([-1], best[:-1])))
        text = "".join(self._alphabet[index] for index in best[kept]).strip()
        confidence = float(belief[kept].mean()) if kept.any() else 0.0
        needed = LEAST_CONFIDENCE if len(text) >= SHORT else LEAST_OF_SHORT
        return Line(text, confidence, box) if text and confidence >= needed else None


def _session(file: Path, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors alone
    options.add_session_config_entry(
        "session.intra_op.allow_spinning", "0"
    )  # threads that wait take no core from torch
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def _to_array(image: Image.Image) -> Array:
    """(1, 3, height, width), blue first, -1 … 1."""
    pixels = np.asarray(image, np.float32)[:, :, ::-1] / 127.5 - 1.0
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


# --- from shares to boxes ----------------------------------------------------------------------------------


def find_boxes(share: Array) -> list[Box]:
    """Boxes of the lines. `share`: (height, width), 0 … 1."""
    boxes = [_line_box(runs, share) for runs in _components(share > CORE)]
    return [box for box in boxes if box is not None]


def _components(mask: Array) -> list[list[Run]]:
    """Runs that touch, sides or corners, together. Follows rows from the top; one parent pointer a run."""
    edges = np.diff(np.pad(mask.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    rows, starts = np.nonzero(edges == 1)
    ends = np.nonzero(edges == -1)[1]
    runs: list[Run] = list(zip(rows.tolist(), starts.tolist(), ends.tolist(), strict=True))[:MAX_RUNS]
    parents = list(range(len(runs)))
    above = 0  # the first run of the row above that may still touch
    for index, (row, start, end) in enumerate(runs):
        while above < index and (runs[above][0] < row - 1 or (runs[above][0] == row - 1 and runs[above][2] < start)):
            above += 1
        other = above
        while other < index and runs[other][0] == row - 1 and runs[other][1] <= end:
            parents[_root(parents, index)] = _root(parents, other)
            other += 1
    together: dict[int, list[Run]] = {}
    for index, run in enumerate(runs):
        together.setdefault(_root(parents, index), []).append(run)
    return list(together.values())


def _root(parents: list[int], index: int) -> int:
    while parents[index] != index:
        parents[index] = parents[parents[index]]
        index = parents[index]
    return index


def _line_box(runs: list[Run], share: Array) -> Box | None:
    """The box of a line, or None for a speck."""
    pixels = np.concatenate([share[row, start:end] for row, start, end in runs])
    if pixels.mean() < LEAST_CORE:
        return None
    corners = [(x, y) for row, start, end in runs for x in (start, end) for y in (row, row + 1)]
    box = smallest_box(corners)
    if min(box.width, box.height) < 3:
        return None
    wider = UNCLIP * box.width * box.height / (box.width + box.height)  # twice the distance that it grows on each side
    return Box(box.x, box.y, box.width + wider, box.height + wider, box.angle)


def smallest_box(points: list[tuple[int, int]]) -> Box:
    """The rectangle of the least area around some points: one of its sides lies on a side of their hull."""
    hull = np.array(_hull(points), float)
    sides = np.roll(hull, -1, axis=0) - hull
    angles = np.unique(np.round(np.mod(np.arctan2(sides[:, 1], sides[:, 0]), math.pi / 2), 4))
    return min((_box_at(hull, angle) for angle in angles.tolist()), key=lambda box: box.width * box.height)


def _box_at(hull: Array, angle: float) -> Box:
    """The box whose first side has this angle, 0 … a quarter turn; told by the side that is closer to level."""
    if angle > math.pi / 4:
        angle -= math.pi / 2
    along = np.array((math.cos(angle), math.sin(angle)))
    across = np.array((-along[1], along[0]))
    a, b = hull @ along, hull @ across
    x, y = along * (a.min() + a.max()) / 2 + across * (b.min() + b.max()) / 2
    return Box(float(x), float(y), float(np.ptp(a)), float(np.ptp(b)), angle)


def _hull(points: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The convex hull, by Andrew's two chains."""
    ordered = sorted(set(points))
    return _chain(ordered)[:-1] + _chain(ordered[::-1])[:-1]


def _chain(points: list[tuple[int, int]]) -> list[tuple[int, int]]:
    chain: list[tuple[int, int]] = []
    for x, y in points:
        while len(chain) >= 2:
            (ax, ay), (bx, by) = chain[-2:]
            if (bx - ax) * (y - ay) - (by - ay) * (x - ax) > 0:
                break
            chain.pop()
        chain.append((x, y))
    return chain


def _scaled(box: Box, across: float, down: float) -> Box:
    """The two factors are the same but for rounding to a multiple, so that the angle stays."""
    mean = (across + down) / 2
    return Box(box.x * across, box.y * down, box.width * mean, box.height * mean, box.angle)


def in_reading_order(boxes: list[Box]) -> list[Box]:
    """Rows from the top, each from the left. A box belongs to a row if its middle is within half a height of the row's
    first box's."""
    rows: list[list[Box]] = []
    for box in sorted(boxes, key=lambda box: box.y):
        if rows and box.y - rows[-1][0].y < min(box.height, rows[-1][0].height) / 2:
            rows[-1].append(box)
        else:
            rows.append([box])
    return [box for row in rows for box in sorted(row, key=lambda box: box.x)]


def straighten(levels: dict[int, Image.Image], box: Box) -> Image.Image:
    """The line, level and `HEIGHT` pixels high. `levels` keeps the picture at whole fractions of its size, because the
    transformation samples: large letters are reduced first."""
    tall = box.height >= TALL * box.width
    thickness, length = (box.width, box.height) if tall else (box.height, box.width)
    level = max(1, int(thickness / (1.5 * HEIGHT)))
    if level not in levels:
        levels[level] = levels[1].reduce(level)
    width = max(1, min(MOST_WIDTH, round(HEIGHT * length / thickness)))
    size = (HEIGHT, width) if tall else (width, HEIGHT)
    corners = [value / level for corner in _corners(box) for value in corner]
    line = levels[level].transform(size, Image.Transform.QUAD, corners, Image.Resampling.BICUBIC)
    return line.transpose(Image.Transpose.ROTATE_90) if tall else line


def _corners(box: Box) -> list[tuple[float, float]]:
    """Upper left, lower left, lower right, upper right."""
    cos, sin = math.cos(box.angle), math.sin(box.angle)
    signs = ((-1, -1), (-1, 1), (1, 1), (1, -1))
    halves = [(across * box.width / 2, down * box.height / 2) for across, down in signs]
    return [(box.x + a * cos - d * sin, box.y + a * sin + d * cos) for a, d in halves]
