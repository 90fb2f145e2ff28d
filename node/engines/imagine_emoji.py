"""$IMAGINE by the built-in emoji model: small pictures in three styles, in well under a second on any CPU.

Rule: on one machine the same prompt, seed, steps, guidance and size give the same file, byte for byte. What the model
was told is in the picture's metadata: the words that it knew, those read as another word, those it knows nothing of.

The model paints 64 x 64 pixels; larger sizes are that picture resampled, and the metadata says so.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from string import ascii_lowercase

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from node.engines import pictures
from node.engines.backend import Loaded, process_memory_mib
from node.engines.devices import choose_device, describe_device, memory_mib
from node.engines.emoji_network import SIDE, EmojiNetwork, Shape, unpack, words_of
from node.engines.pictures import Limits, Picture
from node.engines.port import EngineEvent, Finished, Prompted, Step
from protocol.messages import ImagineRequest

FORMAT = "mtor-emoji-1"
SIDES = (64, 128, 256, 512)  # pixels
DEFAULT_SIDE, DEFAULT_STEPS, MOST_STEPS = 256, 24, 100
DEFAULT_GUIDANCE = 3_500  # thousandths
MOST_UNITS = 512 * 512 * MOST_STEPS // 65_536  # nothing that the model takes is too much for it
PLURALS = (("s", ""), ("es", ""), ("ies", "y"), ("ves", "f"))
LEAST_HALF, LEAST_SLIP = 3, 6  # letters: shorter words are too near to others to be guessed at
MOST_WORDS = 12  # as in training

# What people write around what they want to see.
LEAD = re.compile(
    r"^\W*(please\s+)?((draw|paint|make|create|generate|show|give)\s+)?(me\s+)?((a|an|the)\s+)?"
    r"((picture|image|photo|drawing|painting|icon|illustration)\s+of\s+)?",
    re.IGNORECASE,
)
STYLE_WORDS = frozenset({"flat", "cartoon", "3d"})


@dataclass(frozen=True, slots=True)
class Reading:
    """How a prompt was understood."""

    indices: tuple[int, ...]  # of the vocabulary, from 1
    style: str  # "" where the prompt names none
    known: tuple[str, ...]
    guessed: tuple[tuple[str, str], ...]  # (as written, as read)
    unknown: tuple[str, ...]


class Vocabulary:
    """The words that the model was trained on."""

    def __init__(self, words: Sequence[str]) -> None:
        self._index = {word: index for index, word in enumerate(words, start=1)}

    def read(self, prompt: str) -> Reading:
        """Understand a prompt as far as it goes."""
        text = _named(prompt.replace("3-D", "3d").replace("3-d", "3d"))
        written = list(dict.fromkeys(words_of(LEAD.sub("", text))))
        styles = [word for word in written if word in STYLE_WORDS]
        read = {word: self.near(word) for word in written if word not in STYLE_WORDS}
        found = list(dict.fromkeys(near for nears in read.values() for near in nears))[:MOST_WORDS]
        return Reading(
            indices=tuple(self._index[word] for word in found),
            style=styles[0] if styles else "",
            known=tuple(word for word, nears in read.items() if nears == (word,)),
            guessed=tuple((word, " ".join(nears)) for word, nears in read.items() if nears and nears != (word,)),
            unknown=tuple(word for word, nears in read.items() if not nears),
        )

    def near(self, word: str) -> tuple[str, ...]:
        """The word itself, its singular, the two words it is made of, or the word it is a slip of; () if none is."""
        for candidates in (_singulars(word), _halves(word), _slips(word)):
            for candidate in candidates:
                if all(part in self._index for part in candidate):
                    return candidate
        return ()


def _singulars(word: str) -> Iterator[tuple[str, ...]]:
    yield (word,)
    for ending, instead in PLURALS:
        if word.endswith(ending):
            yield (word.removesuffix(ending) + instead,)


def _halves(word: str) -> Iterator[tuple[str, ...]]:
    """Light + house. The later the cut, the more telling the first half."""
    for cut in range(len(word) - LEAST_HALF, LEAST_HALF - 1, -1):
        yield (word[:cut], word[cut:])


def _slips(word: str) -> Iterator[tuple[str, ...]]:
    """A letter too many, two changed about, or one missing, after the first. One wrong letter often is another word."""
    if len(word) < LEAST_SLIP:
        return
    cuts = range(1, len(word) + 1)
    yield from ((word[:cut] + word[cut + 1 :],) for cut in cuts[:-1])
    yield from ((word[:cut] + word[cut + 1] + word[cut] + word[cut + 2 :],) for cut in cuts[:-2])
    yield from ((word[:cut] + letter + word[cut:],) for cut in cuts for letter in ascii_lowercase)


def _named(text: str) -> str:
    """Each pictograph as its Unicode name: a prompt may be an emoji."""
    return "".join(f" {unicodedata.name(char, '')} " if unicodedata.category(char) == "So" else char for char in text)


class EmojiPainter:
    """The `Answerer` of the emoji model. Options: `style` (flat, cartoon, 3d), `steps`, `size`."""

    def __init__(self, folder: Path, device: str, threads: int, options: Mapping[str, str]) -> None:
        if threads:
            torch.set_num_threads(threads)
        config = json.loads((folder / "config.json").read_text())
        if config["format"] != FORMAT:
            raise ValueError(f"{folder.name} is of the format {config['format']}; this node reads {FORMAT}")
        self._name: str = config["name"]
        self._styles: list[str] = config["styles"]
        self._style = options.get("style", config["style"])
        if self._style not in self._styles:
            raise ValueError(f"the option style is one of {', '.join(self._styles)}, not {self._style!r}")
        self._vocabulary = Vocabulary(config["words"])
        self._shape = Shape(**config["shape"])
        self._network = EmojiNetwork(self._shape)
        self._network.load_state_dict(unpack(load_file(folder / "model.safetensors")))
        self._device = choose_device(device)
        self._network.to(self._device).eval()
        side = pictures.option(options, "size", DEFAULT_SIDE)
        steps = pictures.option(options, "steps", DEFAULT_STEPS)
        self._limits = Limits(side, side, steps, MOST_UNITS, SIDES[0], SIDES[-1], MOST_STEPS)
        self.facts = Loaded(
            0,
            describe_device(self._device, threads),
            memory_mib(self._device, process_memory_mib()),
            (ImagineRequest,),
        )

    def answer(self, request: ImagineRequest, prefix: str, inputs: Sequence[bytes]) -> Iterator[EngineEvent | None]:
        """See `Answerer`. Each step of the painting is one step of work, about 2 ms on a CPU."""
        picture = pictures.plan(request, self._limits, self._name)
        picture = replace(picture, guidance=picture.guidance or DEFAULT_GUIDANCE)
        if picture.width != picture.height or picture.width not in SIDES:
            raise pictures.invalid(f"this model paints squares of {', '.join(map(str, SIDES))} pixels a side")
        reading = self._vocabulary.read(picture.prompt)
        if not reading.indices:
            raise pictures.invalid(
                "this small model knows some thousand English words of things, and none of the prompt's is one: "
                "name an animal, a fruit, a vehicle or a mood, or choose a larger model"
            )
        against = self._vocabulary.read(picture.negative_prompt)
        words = torch.tensor([_padded(reading), _padded(against)], device=self._device)
        styles = torch.full((2,), 1 + self._styles.index(reading.style or self._style), device=self._device)
        yield Prompted(0)
        latent = self._noise(picture.seed)
        for done in range(1, picture.steps + 1):
            latent = self._step(latent, picture, done - 1, words, styles)
            shown = request.previews and pictures.due(done, picture.steps)
            if shown or done == picture.steps:
                yield Step(done, picture.steps, pictures.preview(self._draw(latent)) if shown else b"")
            else:
                yield None
        png = pictures.to_png(self._at_size(latent, picture), picture, self._told(picture, reading))
        yield from pictures.parts(png, picture.units)
        yield Finished("stop", 0, picture.units)

    def _noise(self, seed: int) -> Tensor:
        """(1, latent); drawn on the CPU, so that a card paints from the same noise."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn((1, self._shape.latent), generator=generator).to(self._device)

    @torch.inference_mode()
    def _step(self, latent: Tensor, picture: Picture, step: int, words: Tensor, styles: Tensor) -> Tensor:
        """One Euler step from time step/steps. `words` (2, MOST_WORDS) holds the prompt and what to keep away from: the
        negative prompt, or no words."""
        time = torch.full((2,), step / picture.steps, device=self._device)
        wanted, unwanted = self._network.flow(torch.cat((latent, latent)), time, words, styles).chunk(2)
        guided: Tensor = unwanted + picture.guidance / 1_000 * (wanted - unwanted)
        return latent + guided / picture.steps

    @torch.inference_mode()
    def _draw(self, latent: Tensor) -> Image.Image:
        """The latent as a picture of 64 x 64 pixels."""
        pixels = self._network.decoder(latent)[0].permute(1, 2, 0)  # (64, 64, 3), about -1 to 1
        return Image.fromarray(((pixels + 1) * 127.5).round().clamp(0, 255).byte().cpu().numpy())

    def _at_size(self, latent: Tensor, picture: Picture) -> Image.Image:
        drawn = self._draw(latent)
        if picture.width == SIDE:
            return drawn
        return drawn.resize((picture.width, picture.height), Image.Resampling.LANCZOS)

    def _told(self, picture: Picture, reading: Reading) -> dict[str, object]:
        """What the metadata adds: what was understood, and that a large picture is a small one resampled."""
        return {
            "painted_at": f"{SIDE}x{SIDE}",
            "resampled": "" if picture.width == SIDE else "lanczos",
            "style": reading.style or self._style,
            "known": list(reading.known),
            "guessed": dict(reading.guessed),
            "unknown": list(reading.unknown),
        }


def _padded(reading: Reading) -> list[int]:
    """Always as many words, 0 for none."""
    return [*reading.indices, *[0] * (MOST_WORDS - len(reading.indices))]
