"""What a folder with a model is for, read from its configuration.

Rule: the configuration decides, never the name; what is unknown is a language model, and its loader has the last word.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from node.models.checking import read_config

CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_target_positions")
VOICES = frozenset({"vits", "speecht5", "bark"})


@dataclass(frozen=True, slots=True)
class Kind:
    """Which realm and engine a model is made for."""

    realm: str
    engine: str


CHAT = Kind("$CHAT", "torch-chat")
VISION = Kind("$VISION", "torch-vision")
PAINTER = Kind("$IMAGINE", "diffusers")
WHISPER = Kind("$SPEECH", "whisper")
VOICE = Kind("$SPEECH", "torch-voice")
EYES = Kind("$VISION", "vision-composed")

_SIGNS: tuple[tuple[Callable[[Mapping[str, Any]], bool], Kind], ...] = (
    (lambda config: "_diffusers_version" in config and "_class_name" in config, PAINTER),
    (lambda config: config.get("model_type") == "whisper", WHISPER),
    (lambda config: config.get("model_type") in VOICES, VOICE),
    (lambda config: config.get("model_type") == "mtor-eyes", EYES),
    (lambda config: "vision_config" in config, VISION),
)


def kind_of(folder: Path) -> Kind:
    """Blocks on two small files. Raises `ModelError` if they cannot be read."""
    config = read_config(folder / "model_index.json") or read_config(folder / "config.json")
    return next((kind for holds, kind in _SIGNS if holds(config)), CHAT)


def context_of(folder: Path) -> int:
    """Tokens, as the configuration says; 0 where there is no such thing. Raises `ModelError`."""
    config = read_config(folder / "config.json")
    inner = config.get("text_config")
    for part in (config, inner if isinstance(inner, dict) else {}):
        for key in CONTEXT_KEYS:
            if isinstance(part.get(key), int):
                return int(part[key])
    return 0
