"""$VISION without a language model: the embedded eyes that every node can have.

Rule: pictures are opened by `images.open_picture` alone, all of them before anything is counted; then facts are worked
out only as the answer needs them, one bounded step at a time, and sent word by word. A unit of the question is a tile
of 32 x 32 pixels or a word, a unit of the answer is a word. An answer is the same words each time, so that a prefix is
gone on from by leaving out what was said.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image

from node.engines import vision_answers
from node.engines.backend import Loaded, process_memory_mib
from node.engines.images import Picture, open_picture
from node.engines.port import EngineEvent, Finished, Piece, Prompted, check_roles
from node.engines.text import StopFilter
from node.engines.vision_answers import PLACES, Shares
from node.engines.vision_classifier import Classifier, middle
from node.engines.vision_faces import Face, FaceFinder
from node.engines.vision_measures import Measures, measure
from node.engines.vision_reading import MOST_SIDE, Line, Reader
from protocol.messages import Device, VisionRequest

OPENED_SIDE = 2 * MOST_SIDE  # lines are found at MOST_SIDE pixels and read at twice that
TILE = 32  # pixels
WORD = re.compile(r"\s*\S+")


class Sorter(Protocol):
    """What the answers need of a `Classifier`."""

    def shares(self, views: Sequence[Image.Image]) -> torch.Tensor:
        """(kinds,), mean over the views."""


class Scribe(Protocol):
    """What the answers need of a `Reader`."""

    def read(self, image: Image.Image) -> Iterator[Line | None]:
        """Lines, and None after a step without one."""


class Spotter(Protocol):
    """What the answers need of a `FaceFinder`."""

    def find(self, image: Image.Image) -> Iterator[Face | None]:
        """Faces, and None after a step without one."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What looks at a picture."""

    classifier: Sorter
    reader: Scribe
    finder: Spotter
    labels: Sequence[str]  # the classifier's kinds


class ComposedEyes:
    """The `Answerer` of the embedded eyes. Always on the processor: a card would not make it faster."""

    def __init__(self, folder: Path, device: str, threads: int, options: Mapping[str, str]) -> None:
        """Load what `convert_vision.convert` wrote. `threads` 0: as many as there are cores. Raises `OSError`,
        `ValueError`, what the libraries raise."""
        torch.set_num_threads(1)  # the classifier is small: threads that wait for each other cost more than they gain
        labels: list[str] = json.loads((folder / "labels.json").read_text("utf-8"))
        classifier, reader = Classifier(folder / "classifier.safetensors"), Reader(folder, threads)
        self._tools = Tools(classifier, reader, FaceFinder(), labels)
        self._warm_up()
        name = f"{threads or os.cpu_count()} threads"
        self.facts = Loaded(0, Device("cpu", name, 0, 0), process_memory_mib(), (VisionRequest,))

    def answer(self, request: VisionRequest, prefix: str, inputs: Sequence[bytes]) -> Iterator[EngineEvent | None]:
        """See `Answerer`."""
        return respond(self._tools, request, prefix, inputs)

    def _warm_up(self) -> None:
        """The first query should not pay for what the libraries set up; and a damaged model should not load."""
        nothing = Image.new("RGB", (TILE, TILE))
        if len(self._tools.classifier.shares((nothing,))) != len(self._tools.labels):
            raise ValueError("the labels are not as many as the classifier's kinds")
        list(self._tools.reader.read(nothing))


def respond(tools: Tools, request: VisionRequest, prefix: str, inputs: Sequence[bytes]) -> Iterator[EngineEvent | None]:
    """An answer's events. See `Answerer.answer`."""
    check_roles(request)
    looks: list[Look] = []
    for data in shown(request, inputs):
        looks.append(Look(open_picture(data, OPENED_SIDE), tools))
        yield None
    question = request.turns[-1].text
    units_in = sum(look.tiles for look in looks) + len(question.split())
    yield Prompted(units_in)
    words = continued(vision_answers.answer(looks, question), prefix)
    yield from told(words, request, units_in)


class Look:
    """One picture and what was found out of it so far. See `vision_answers.Look`."""

    def __init__(self, picture: Picture, tools: Tools) -> None:
        self.width, self.height = picture.width, picture.height
        self.labels = tools.labels
        self._image = picture.image
        self._classifier = tools.classifier
        self._reader = tools.reader
        self._finder = tools.finder
        self._measures: Measures | None = None
        self._shares: Shares | None = None
        self._parts: list[tuple[str, Shares]] | None = None
        self._lines: list[Line] | None = None
        self._faces: list[Face] | None = None

    @property
    def tiles(self) -> int:
        """Units: started tiles of the picture as the text detector sees it, never more than the picture has."""
        scale = min(1.0, MOST_SIDE / max(self.width, self.height))
        across, down = (-(-max(1, round(side * scale)) // TILE) for side in (self.width, self.height))
        return across * down

    def measures(self) -> Measures:
        """See `vision_answers.Look`."""
        if self._measures is None:
            self._measures = measure(self._image)
        return self._measures

    def shares(self) -> Shares:
        """See `vision_answers.Look`. The middle and the whole, which is squeezed into a square, count alike."""
        if self._shares is None:
            self._shares = self._classifier.shares((middle(self._image), self._image)).tolist()
        return self._shares

    def parts(self) -> Iterator[tuple[str, Shares] | None]:
        """See `vision_answers.Look`."""
        if self._parts is None:
            self._parts = []
            for place, part in _parts(self._image):
                self._parts.append((place, self._classifier.shares((part,)).tolist()))
                yield None
        yield from self._parts

    def lines(self) -> Iterator[Line | None]:
        """See `vision_answers.Look`."""
        if self._lines is None:
            found: list[Line] = []
            for line in self._reader.read(self._image):
                if line is not None:
                    found.append(line)
                yield None
            self._lines = found
        yield from self._lines

    def faces(self) -> Iterator[Face | None]:
        """See `vision_answers.Look`. In pixels of the picture as it was sent."""
        if self._faces is None:
            scale = self.width / self._image.width
            found: list[Face] = []
            for face in self._finder.find(self._image):
                if face is not None:
                    found.append(Face(face.left * scale, face.top * scale, face.side * scale))
                yield None
            self._faces = found
        yield from self._faces


def shown(request: VisionRequest, inputs: Sequence[bytes]) -> list[bytes]:
    """The pictures that the question is about: those of the last turn that shows any."""
    last = max(media.turn for media in request.media)
    return [data for media, data in zip(request.media, inputs, strict=True) if media.turn == last]


def continued(sentences: Iterator[str | None], prefix: str) -> Iterator[str | None]:
    """The words after `prefix`, each with the space before it. Where the prefix was no beginning of this answer (it was
    another model's), the answer goes on with the sentence that differs, on a new line."""
    begun = False
    for sentence in sentences:
        if sentence is None:
            yield None
            continue
        text = sentence if not begun or sentence.startswith("\n") else " " + sentence
        begun = True
        if prefix.startswith(text):
            prefix = prefix[len(text) :]
            continue
        rest = text[len(prefix) :] if text.startswith(prefix) else "\n" + text.lstrip()
        prefix = ""
        yield from WORD.findall(rest)


def told(words: Iterator[str | None], request: VisionRequest, units_in: int) -> Iterator[EngineEvent | None]:
    """The words as events: as many as were asked for, none of a stop string."""
    stops = StopFilter(request.stop)
    produced = 0
    for word in words:
        if word is None:
            yield None
            continue
        if request.max_tokens and produced == request.max_tokens:
            yield Piece(stops.flush(), produced)
            yield Finished("length", units_in, produced)
            return
        produced += 1
        yield Piece(stops.push(word), produced)
        if stops.stopped:
            break
    yield Piece(stops.flush(), produced)
    yield Finished("stop", units_in, produced)


def _parts(image: Image.Image) -> Iterator[tuple[str, Image.Image]]:
    """Nine parts of half the width and height, which overlap by half."""
    across, down = max(1, image.width // 2), max(1, image.height // 2)
    for row, names in enumerate(PLACES):
        for column, place in enumerate(names):
            left, top = (image.width - across) * column // 2, (image.height - down) * row // 2
            yield place, image.crop((left, top, left + across, top + down))
