"""What a model will take of a card's memory, worked out from its folder before anything is loaded.

Rule: weights are counted exactly, from the headers. The cache for conversations follows from the configuration. What
remains (the passing values of a forward pass, CUDA's own context) is estimated, on the high side, and stands in one
place each with its reason.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from node.cards import Card
from node.weights import Weights, WeightsError, folder_weights

MIB = 1 << 20
CUDA_CONTEXT = (
    500 * MIB
)  # CUDA's context and its libraries' code and workspaces: 300-600 on cards of the last ten years
PREFILL_TOKENS = 256  # of a prompt at a time, as node.engines.torch_chat does
SPARE_PERCENT = 10  # of cache and passing values: what an allocator loses between blocks
PREFIX_CACHE = 256 * MIB  # of beginnings of conversations, as node.engines.torch_chat keeps them
LONGEST_UNSAID = 8_192  # the context that is kept free where neither the operator nor the model sets one
CPU_ENGINES = frozenset({"vision-composed", "voice"})  # small, and not worth a card
UNKNOWN_CAPABILITY = 75  # a card that does not say: two-byte numbers all the same
NUMBER_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "packed": 2, "packed-fp32": 4}
PICTURE_SIDE = 512  # pixels, where a pipeline does not say
WHISPER_SECONDS_FRAMES = 1_500  # positions of the encoder: half a minute of sound


@dataclass(frozen=True, slots=True)
class Cache:
    """What a conversation's tokens leave behind in the layers. Bytes are for one token, in two-byte numbers."""

    whole: int = 0  # layers that see every token
    sliding: int = 0  # layers that see the last `window` tokens
    window: int = 0
    fixed: int = 0  # bytes a conversation, whatever its length

    def bytes_for(self, context: int, number_bytes: int) -> int:
        """Bytes of one conversation of `context` tokens."""
        tokens = self.whole * context + self.sliding * min(context, self.window or context)
        return (tokens + self.fixed) * number_bytes // 2


@dataclass(frozen=True, slots=True)
class Need:
    """What one model wants. `context` 0: it has no such thing."""

    model: str
    weights: Weights
    wished: str  # arithmetic: a key of NUMBER_BYTES, or "auto"
    slots: int
    context: int
    cache: Cache = Cache()
    passing: int = 0  # bytes of one forward pass, in two-byte numbers
    kept: int = 0  # bytes that are kept between answers, whatever the numbers
    device: str = "auto"  # what the operator asked for: auto, cpu, cuda
    context_fixed: bool = False  # the operator set the context: it is not shortened
    one_at_a_time: bool = False  # answers take turns: only one has passing values and a cache
    capability: int = 0  # of the card that it is counted for, in tenths; 0 for the CPU

    @property
    def arithmetic(self) -> str:
        """What the engine will choose. On a CPU "auto" is measured at loading, so the larger one is counted."""
        if self.wished != "auto":
            return self.wished
        if self.capability:
            return "bf16" if self.capability >= 80 else "fp16"
        return "fp32"

    @property
    def number_bytes(self) -> int:
        """Bytes of a number."""
        return NUMBER_BYTES[self.arithmetic]

    def on(self, card: Card | None) -> Need:
        """The same, counted for a card, or for the CPU."""
        return replace(self, capability=(card.compute_capability or UNKNOWN_CAPABILITY) if card else 0)

    def working_bytes(self) -> int:
        """Memory beside the weights: caches of all slots and the passing values."""
        together = 1 if self.one_at_a_time else self.slots
        values = self.cache.bytes_for(self.context, self.number_bytes) * together
        values += self.passing * self.number_bytes // 2
        return values * (100 + SPARE_PERCENT) // 100 + self.kept

    @property
    def mib(self) -> int:
        """All of it in MiB, rounded up; on a card with CUDA's own part."""
        total = self.weights.bytes_in(self.number_bytes) + self.working_bytes()
        return -(-(total + (CUDA_CONTEXT if self.capability else 0)) // MIB)

    def explain(self) -> str:
        """The sum in words."""
        parts = [f"{self.weights.bytes_in(self.number_bytes) // MIB} MiB of weights in {self.arithmetic}"]
        if self.context:
            parts.append(f"{self.working_bytes() // MIB} MiB for {self.slots} conversations of {self.context} tokens")
        elif self.working_bytes():
            parts.append(f"{self.working_bytes() // MIB} MiB to work in")
        if self.capability:
            parts.append(f"{CUDA_CONTEXT // MIB} MiB for CUDA")
        return f"{self.mib} MiB: " + ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Wish:
    """How the operator wants a model to be served."""

    slots: int = 1
    context: int = 0  # tokens; 0 leaves it to the model and the card
    device: str = "auto"
    arithmetic: str = "auto"


def read_need(model: str, engine: str, folder: Path, wish: Wish) -> Need:
    """What `model` in `folder` will take. Blocks on the disk. Raises `WeightsError` if the folder cannot be read."""
    config = _json(folder / "config.json")
    device = "cpu" if engine in CPU_ENGINES else wish.device
    plain = Need(model, Weights(0), wish.arithmetic, wish.slots, 0, device=device)
    reader = _READERS.get(engine, _plain)
    try:
        return reader(plain, folder, config, wish)
    except (OSError, ValueError, TypeError, ArithmeticError, AttributeError) as error:
        raise WeightsError(f"{model}: what it needs cannot be told from its files: {error}") from None


# --- by kind of engine -----------------------------------------------------------------------------------


def _text(need: Need, folder: Path, config: Mapping[str, Any], wish: Wish) -> Need:
    """A causal language model; one that sees pictures holds one inside."""
    inner = config.get("text_config")
    language = inner if isinstance(inner, Mapping) else config
    return replace(
        need,
        weights=folder_weights(folder),
        context=min(wish.context or _longest(language), _longest(language)),
        context_fixed=bool(wish.context),
        cache=_conversation_cache(language),
        passing=_passing(language) + _picture_passing(config.get("vision_config")),
        kept=PREFIX_CACHE if inner is None else 0,
    )


def _whisper(need: Need, folder: Path, config: Mapping[str, Any], wish: Wish) -> Need:
    """Speech to text: a short decoder cache and the encoder's half minute, once a sound."""
    width, layers = _whole(config, "d_model", 512), _whole(config, "decoder_layers", 6)
    positions = _whole(config, "max_target_positions", 448) + _whole(
        config, "max_source_positions", WHISPER_SECONDS_FRAMES
    )
    passing = WHISPER_SECONDS_FRAMES * (8 * width + 3 * _whole(config, "encoder_ffn_dim", 4 * width)) * 2
    cache = Cache(fixed=positions * layers * 2 * width * 2)
    return replace(need, weights=folder_weights(folder), cache=cache, passing=passing, one_at_a_time=True)


def _pipeline(need: Need, folder: Path, config: Mapping[str, Any], wish: Wish) -> Need:
    """A diffusers folder: the parts that its index names, each in a folder of its own."""
    index = _json(folder / "model_index.json")
    parts = [folder / name for name, about in index.items() if isinstance(about, list) and (folder / name).is_dir()]
    weights = sum((folder_weights(part) for part in parts), Weights(0))
    painter = _json(folder / "unet" / "config.json") or _json(folder / "transformer" / "config.json")
    vae = _json(folder / "vae" / "config.json")
    channels = vae.get("block_out_channels")
    scale = 2 ** (len(channels) - 1) if isinstance(channels, list) and channels else 8
    sample = painter.get("sample_size")
    side = sample * scale if isinstance(sample, int) and sample > 0 else PICTURE_SIDE
    narrowest = channels[0] if isinstance(channels, list) and channels else 128
    # The widest point is the end of the picture's decoder: some full-size maps of its narrowest block at a time.
    passing = 6 * side * side * int(narrowest) * 2
    return replace(need, weights=weights, passing=passing, one_at_a_time=True)


def _plain(need: Need, folder: Path, config: Mapping[str, Any], wish: Wish) -> Need:
    """A small network of which no more is known: weights, and as much again to work in."""
    weights = folder_weights(folder)
    return replace(need, weights=weights, passing=weights.bytes_in(2), one_at_a_time=True)


_READERS: Mapping[str, Callable[[Need, Path, Mapping[str, Any], Wish], Need]] = {
    "torch-chat": _text,
    "torch-vision": _text,
    "whisper": _whisper,
    "diffusers": _pipeline,
}


# --- from a configuration ---------------------------------------------------------------------------------


def _conversation_cache(config: Mapping[str, Any]) -> Cache:
    """Keys and values of one token in every layer. Where every few layers only see a window, those count apart."""
    heads = _whole(config, "num_attention_heads", 1)
    width = _whole(config, "head_dim", 0) or _whole(config, "hidden_size", 0) // heads
    layer = 2 * (_whole(config, "num_key_value_heads", 0) or heads) * width * 2  # bytes
    layers = _whole(config, "num_hidden_layers", 0)
    window = _whole(config, "sliding_window", 0) if config.get("use_sliding_window", True) else 0
    sliding = _sliding_layers(config, layers) if window else 0
    return Cache(whole=layer * (layers - sliding), sliding=layer * sliding, window=window)


def _sliding_layers(config: Mapping[str, Any], layers: int) -> int:
    kinds = config.get("layer_types")
    if isinstance(kinds, list):
        return sum(kind == "sliding_attention" for kind in kinds[:layers])
    every = _whole(config, "sliding_window_pattern", 0)
    return layers - layers // every if every > 1 else layers


def _passing(config: Mapping[str, Any]) -> int:
    """The widest moment of a prompt's part: some copies of its rows, a layer's inner rows, and the words' scores
    (four-byte numbers)."""
    hidden = _whole(config, "hidden_size", 0)
    inner = _whole(config, "intermediate_size", 4 * hidden)
    return PREFILL_TOKENS * (8 * hidden + 3 * inner) * 2 + PREFILL_TOKENS * _whole(config, "vocab_size", 0) * 4


def _picture_passing(config: Any) -> int:
    """The tower that looks at pictures, once more in rows of its patches."""
    if not isinstance(config, Mapping):
        return 0
    side = _whole(config, "image_size", 512) // max(1, _whole(config, "patch_size", 16))
    hidden = _whole(config, "hidden_size", 768)
    return side * side * (8 * hidden + 3 * _whole(config, "intermediate_size", 4 * hidden)) * 2


def _longest(config: Mapping[str, Any]) -> int:
    return _whole(config, "max_position_embeddings", 0) or _whole(config, "n_positions", 0) or LONGEST_UNSAID


def _whole(config: Mapping[str, Any], key: str, default: int) -> int:
    value = config.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 1 << 32 else default


def _json(path: Path) -> Mapping[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, Mapping) else {}
