"""How often the model draws what it is told, measured against the set that it was trained on.

Rule: the prompts are drawn by a fixed seed, and each is painted once. A picture counts as right when the training
picture that is nearest to it (in the model's own 384 numbers, among those of its style) has the words of the prompt.

    python training/emoji/measure.py SET node/engines/builtin/emoji-64
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional
from train import STYLES, Pictures, load

from node.engines.emoji_network import COARSE_SIDE
from node.engines.imagine_emoji import EmojiPainter
from node.engines.port import Data
from protocol.messages import ImagineRequest

SEED, LATENT, PROMPTS = 1, 384, 200
Caption = dict[str, Any]


def latent(png: bytes, pictures: Pictures) -> torch.Tensor:
    """A painted picture as (latent,)."""
    pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(png)))).permute(2, 0, 1)[None].float() / 127.5 - 1.0
    coarse = functional.avg_pool2d(pixels, pixels.shape[-1] // COARSE_SIDE).flatten()
    # The basis' rows are orthogonal, each as long as its scale.
    return (pictures.basis @ (coarse - pictures.mean)) / pictures.basis.square().sum(dim=1)


def words(caption: Caption) -> set[str]:
    """Everything that a training picture is called."""
    return {caption["colour"], *caption["label"], *(word for tag in caption["tags"] for word in tag)}


def share(
    painter: EmojiPainter,
    pictures: Pictures,
    prompts: list[tuple[str, str]],
    right: Callable[[set[str], Caption], bool],
) -> float:
    """The share of (style, prompt) whose nearest training picture is `right`."""
    hits = 0
    for style, prompt in prompts:
        request = ImagineRequest(f"{style} {prompt}", "", 64, 64, 0, 0, SEED, 0)
        events = painter.answer(request, "", ())
        painted = latent(b"".join(event.data for event in events if isinstance(event, Data)), pictures)
        own = torch.tensor([caption["style"] == style for caption in pictures.captions])
        distances = (pictures.latents - painted).square().sum(dim=1).masked_fill(~own, torch.inf)
        hits += right(set(prompt.split()), pictures.captions[int(distances.argmin())])
    return hits / len(prompts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", type=Path)
    parser.add_argument("model", type=Path)
    arguments = parser.parse_args()
    pictures = load(arguments.set, LATENT)
    painter = EmojiPainter(arguments.model, "cpu", 1, {})
    random = Random(SEED)
    drawn = [caption for caption in pictures.captions if not caption["recoloured"] and caption["label"]]
    coloured = [caption for caption in pictures.captions if caption["recoloured"] and caption["label"]]
    named = [(each["style"], " ".join(each["label"])) for each in random.sample(drawn, PROMPTS)]
    one_word = [word for caption in drawn for tag in caption["tags"] for word in tag if len(tag) == 1]
    tagged = [(random.choice(STYLES), word) for word in random.sample(sorted(set(one_word)), PROMPTS)]
    hued = [(each["style"], " ".join((each["colour"], *each["label"]))) for each in random.sample(coloured, PROMPTS)]

    def same_name(told: set[str], caption: Caption) -> bool:
        return told == set(caption["label"])

    def has_word(told: set[str], caption: Caption) -> bool:
        return told <= words(caption)

    print(f"full names: {share(painter, pictures, named, same_name):.2f}")
    print(f"one keyword: {share(painter, pictures, tagged, has_word):.2f}")
    print(f"colour and name: {share(painter, pictures, hued, has_word):.2f}")


if __name__ == "__main__":
    main()
