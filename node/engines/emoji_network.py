"""The emoji model's networks: words and noise to a latent picture, latent to 64 x 64 pixels.

Rule: this file is the model's one description: training and engine both build it from a `Shape`. The weights file holds
each matrix as int8 rows with a scale a row, read back to float32 before anything is computed.

A latent is a picture's coordinates along the 384 principal components of the training pictures at 32 x 32, scaled by
the root of their deviation, so that coarse features weigh more than fine ones, yet not as much as in pixels. `Flow`
moves Gaussian noise to such a latent along straight lines (flow matching, Lipman et al., 2023:
https://arxiv.org/abs/2210.02747), told by a bag of words, a style and the time. `Decoder` draws it at 64 x 64.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

SIDE = 64  # pixels of a picture
COARSE_SIDE = 32  # pixels of the principal components
TIMES = 32  # frequencies that tell the time
STOP_WORDS = frozenset({"a", "an", "the", "of", "and", "or", "with", "in", "on", "for", "to", "s", "emoji", "symbol"})
SCALE = ".scale"  # ends the name of the scales of an int8 matrix


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of the networks. `words` and `styles` count the known ones; index 0 of each means none."""

    words: int
    styles: int
    latent: int = 384
    word_width: int = 192
    style_width: int = 16
    width: int = 576
    condition: int = 256
    layers: int = 4


def words_of(text: str) -> list[str]:
    """The words of a prompt or label that mean something to the model, lower case, in order."""
    plain = text.lower().replace("’", "").replace("'", "")
    return [word for word in re.findall(r"[a-z0-9]+", plain) if word not in STOP_WORDS and len(word) < 20]


def _silence(layer: nn.Linear | nn.Conv2d) -> None:
    """Start from an output of 0."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


class Layer(nn.Module):
    """One residual layer; the condition scales and shifts what it sees."""

    def __init__(self, width: int, condition: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulate = nn.Linear(condition, 2 * width)
        self.widen = nn.Linear(width, 2 * width)
        self.narrow = nn.Linear(2 * width, width)

    def forward(self, hidden: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.modulate(condition).chunk(2, dim=1)
        seen = self.norm(hidden) * (1 + scale) + shift
        out: Tensor = hidden + self.narrow(functional.silu(self.widen(seen)))
        return out


class Flow(nn.Module):
    """Velocity of a latent at a time between noise (0) and picture (1)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.words = nn.EmbeddingBag(shape.words + 1, shape.word_width, mode="sum", padding_idx=0)
        self.styles = nn.Embedding(shape.styles + 1, shape.style_width)
        told = shape.word_width + shape.style_width + 2 * TIMES
        self.condition = nn.Sequential(
            nn.Linear(told, 2 * shape.condition), nn.SiLU(), nn.Linear(2 * shape.condition, shape.condition), nn.SiLU()
        )
        self.enter = nn.Linear(shape.latent, shape.width)
        self.layers = nn.ModuleList(Layer(shape.width, shape.condition) for _ in range(shape.layers))
        self.leave = nn.Linear(shape.width, shape.latent)
        _silence(self.leave)

    def forward(self, latent: Tensor, time: Tensor, words: Tensor, styles: Tensor) -> Tensor:
        """latent (B, latent), time (B,) of 0 to 1, words (B, W) of indices or 0, styles (B,) -> (B, latent)."""
        angles = time[:, None] * torch.exp(torch.linspace(0.0, 6.0, TIMES, device=time.device))[None]
        spoken = self.words(words) / (words > 0).sum(dim=1, keepdim=True).clamp(min=1).sqrt()
        condition = self.condition(torch.cat((spoken, self.styles(styles), angles.sin(), angles.cos()), dim=1))
        hidden = self.enter(latent)
        for layer in self.layers:
            hidden = layer(hidden, condition)
        out: Tensor = self.leave(hidden)
        return out


class Decoder(nn.Module):
    """A latent as pixels: its components give a picture at 32 x 32, convolutions draw it at twice the size."""

    basis: Tensor  # (latent, 3 * 32 * 32): what one unit of each coordinate adds to the picture
    mean: Tensor  # (3 * 32 * 32,)

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.register_buffer("basis", torch.zeros(shape.latent, 3 * COARSE_SIDE**2))
        self.register_buffer("mean", torch.zeros(3 * COARSE_SIDE**2))
        self.enter = nn.Conv2d(3, 48, 3, padding=1)
        self.halve = nn.Conv2d(48, 96, 4, stride=2, padding=1)
        self.around = nn.Conv2d(96, 96, 3, padding=1)
        self.back = nn.Conv2d(96, 48, 3, padding=1)
        self.refine = nn.ModuleList(nn.Conv2d(48, 48, 3, padding=1) for _ in range(2))
        self.draw = nn.Conv2d(48, 12, 3, padding=1)
        self.norms = nn.ModuleList(nn.GroupNorm(8, channels) for channels in (48, 96, 96, 48, 48))
        _silence(self.draw)

    def coarse(self, latent: Tensor) -> Tensor:
        """(B, latent) -> (B, 3, 32, 32), values about -1 to 1."""
        return (latent @ self.basis + self.mean).view(-1, 3, COARSE_SIDE, COARSE_SIDE)

    def forward(self, latent: Tensor) -> Tensor:
        """(B, latent) -> (B, 3, 64, 64), values about -1 to 1."""
        coarse = self.coarse(latent)
        near = functional.silu(self.enter(coarse))  # (B, 48, 32, 32)
        far = functional.silu(self.norms[1](self.halve(self.norms[0](near))))  # (B, 96, 16, 16)
        far = far + functional.silu(self.norms[2](self.around(far)))
        x = near + self.back(functional.interpolate(far, scale_factor=2.0))
        for norm, refine in zip(self.norms[3:], self.refine, strict=True):
            x = x + functional.silu(refine(norm(x)))
        large = functional.interpolate(coarse, scale_factor=2.0, mode="bilinear")
        return large + functional.pixel_shuffle(self.draw(x), 2)


class EmojiNetwork(nn.Module):
    """What the weights file holds."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.flow = Flow(shape)
        self.decoder = Decoder(shape)


def pack(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights for the file: matrices as int8 with one float32 scale a row, vectors as float32."""
    packed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if tensor.ndim < 2:
            packed[name] = tensor.float().contiguous()
            continue
        rows = tensor.float().flatten(1)
        scales = (rows.abs().amax(dim=1) / 127.0).clamp(min=1e-12)
        packed[name] = (rows / scales[:, None]).round().to(torch.int8).view(tensor.shape).contiguous()
        packed[name + SCALE] = scales
    return packed


def unpack(packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The float32 weights that `pack` stored."""
    state: dict[str, Tensor] = {}
    for name, tensor in packed.items():
        if name.endswith(SCALE):
            continue
        scales = packed.get(name + SCALE)
        state[name] = tensor.float() if scales is None else tensor.float() * scales.view(-1, *[1] * (tensor.ndim - 1))
    return state
