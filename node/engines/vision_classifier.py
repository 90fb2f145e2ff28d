"""What a picture shows as a whole: EfficientNet-Lite0 in plain torch, 1,000 kinds of ImageNet.

Rule: the network is written out here, layer by layer, from the model's own weights; nothing is loaded but tensors and
a list of names. A score is a softmax share: the classifier's own belief among the kinds that it knows, nothing more.

Layers: a stem, 16 inverted residual blocks (widen by 1x1, filter each channel, narrow by 1x1), a head, a mean over the
picture, one linear layer. Activations are ReLU6. Padding is TensorFlow's "same", which is uneven where the stride is 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as functional
from PIL import Image
from safetensors.torch import load_file

SIDE = 224  # pixels of the square that the network sees
SCALE, CENTRE = 128.0, 127.0  # of a channel's 0 … 255
EPSILON = 1e-3  # of the batch norms, as it was trained
CROP = 0.875  # of the short side, as it was trained

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Stage:
    """Blocks of one kind, one after the other."""

    blocks: int
    kernel: int
    stride: int  # of the first block
    widen: int


STAGES = (
    Stage(1, 3, 1, 1),
    Stage(2, 3, 2, 6),
    Stage(2, 5, 2, 6),
    Stage(3, 3, 2, 6),
    Stage(3, 5, 1, 6),
    Stage(4, 5, 2, 6),
    Stage(1, 3, 1, 6),
)


class Classifier:
    """The loaded network."""

    def __init__(self, file: Path) -> None:
        self._weights: Weights = {name: tensor.float() for name, tensor in load_file(file).items()}

    def shares(self, views: Sequence[Image.Image]) -> torch.Tensor:
        """(kinds,): the softmax over 1,000 kinds, mean over the views. Takes about 40 ms a view on two cores."""
        with torch.inference_mode():
            return self._forward(torch.stack([_to_tensor(view) for view in views])).softmax(-1).mean(0)

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, 3, 224, 224) -> (n, 1000)."""
        w = self._weights
        x = functional.relu6(_norm(functional.conv2d(_pad(x, 3, 2), w["_conv_stem.weight"], stride=2), w, "_bn0"))
        index = 0
        for stage in STAGES:
            for position in range(stage.blocks):
                stride = stage.stride if position == 0 else 1
                x = _block(x, w, f"_blocks.{index}.", stage.kernel, stride, stage.widen)
                index += 1
        x = functional.relu6(_norm(functional.conv2d(x, w["_conv_head.weight"]), w, "_bn1"))
        return functional.linear(x.mean((2, 3)), w["_fc.weight"], w["_fc.bias"])


def _block(x: torch.Tensor, w: Weights, name: str, kernel: int, stride: int, widen: int) -> torch.Tensor:
    y = x
    if widen != 1:
        y = functional.relu6(_norm(functional.conv2d(y, w[name + "_expand_conv.weight"]), w, name + "_bn0"))
    filters = w[name + "_depthwise_conv.weight"]
    y = functional.conv2d(_pad(y, kernel, stride), filters, stride=stride, groups=len(filters))
    y = functional.relu6(_norm(y, w, name + "_bn1"))
    y = _norm(functional.conv2d(y, w[name + "_project_conv.weight"]), w, name + "_bn2")
    return x + y if stride == 1 and x.shape == y.shape else y


def _norm(x: torch.Tensor, w: Weights, name: str) -> torch.Tensor:
    return functional.batch_norm(
        x, w[name + ".running_mean"], w[name + ".running_var"], w[name + ".weight"], w[name + ".bias"], eps=EPSILON
    )


def _pad(x: torch.Tensor, kernel: int, stride: int) -> torch.Tensor:
    """TensorFlow's "same": what is missing goes half before, the odd one behind."""
    missing = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in x.shape[-2:]]
    down, across = missing
    return functional.pad(x, (across // 2, across - across // 2, down // 2, down - down // 2))


def _to_tensor(view: Image.Image) -> torch.Tensor:
    pixels = view.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return (torch.from_numpy(np.array(pixels)).float().permute(2, 0, 1) - CENTRE) / SCALE


def middle(image: Image.Image) -> Image.Image:
    """The square in the middle, as the network was trained to see pictures."""
    side = min(image.size) * CROP
    left, top = (image.width - side) / 2, (image.height - side) / 2
    return image.crop((int(left), int(top), int(left + side) or 1, int(top + side) or 1))
