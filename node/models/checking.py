"""What may lie in a model's folder.

Rule: weights are safetensors or GGUF. A pickle runs its maker's program when it is loaded, so none is taken, whatever
its name says; nor is a model that brings code of its own. Headers are checked against the file before it is loaded.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from node.models.errors import ModelError
from node.weights import GGUF_MAGIC, WeightsError, gguf_weights, safetensors_weights

PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz", ".mar"})
WEIGHTS = frozenset({".safetensors", ".gguf"})
TEXTS = frozenset({".json", ".txt", ".model", ".jinja", ".md", ".tiktoken", ".vocab", ".merges"})
PLAIN_NAMES = ("LICENSE", "LICENCE", "NOTICE", "COPYING", "USE_POLICY")
MOST_CONFIG_BYTES = 4 << 20
INDEX = "model_index.json"
CODE_KEYS = ("auto_map", "custom_pipelines")
LIBRARIES = frozenset({"diffusers", "transformers", None})
WIDTHS = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "C64": 8, "BOOL": 1}
WIDTHS |= {"F16": 2, "BF16": 2, "I16": 2, "U16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1}


def is_pickle_name(name: str) -> bool:
    """True if a file of this name is one that torch or Python unpickles."""
    return Path(name).suffix.lower() in PICKLES


def is_allowed_name(name: str) -> bool:
    """True if a file of this name has a use in a model's folder."""
    path = Path(name)
    return path.suffix.lower() in WEIGHTS | TEXTS or path.name.upper().startswith(PLAIN_NAMES)


def check_files(folder: Path, names: Iterable[str]) -> None:
    """The names and contents of a model's files. Blocks; reads headers and configurations only. Raises `ModelError`."""
    for name in names:
        check_file(folder / name, name)


def check_file(path: Path, name: str) -> None:
    """One file. Raises `ModelError`."""
    if is_pickle_name(name):
        raise ModelError(
            f"{name} is a pickle, which can run a program when it is loaded; only safetensors and GGUF are"
        )
    suffix = Path(name).suffix.lower()
    try:
        if suffix == ".safetensors":
            check_safetensors(path)
        elif suffix == ".gguf":
            gguf_weights(path)
        else:
            _check_text(path, name)
    except (WeightsError, OSError) as error:
        raise ModelError(_what_it_is(path, name) or f"{name} cannot be used: {error}") from None


def check_safetensors(path: Path) -> None:
    """Sizes and places of the tensors fit each other and the file. Raises `WeightsError`, `OSError`."""
    safetensors_weights(path)
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header: dict[str, Any] = json.loads(file.read(size))
    held = path.stat().st_size - 8 - size
    spans = [_span(path.name, about) for name, about in header.items() if name != "__metadata__"]
    end = 0
    for begin, until in sorted(spans):
        if begin != end:
            raise WeightsError("its tensors overlap or leave holes")
        end = until
    if end != held:
        raise WeightsError(f"it should hold {end:,} bytes of tensors and holds {held:,}; it is cut off or damaged")


def check_config(folder: Path) -> None:
    """A model's configuration asks for no code that came with it. Blocks. Raises `ModelError`."""
    for path in sorted([*folder.glob("*config.json"), *folder.glob("*/*config.json")]):
        check_no_code(path.name, read_config(path))
    check_no_code(INDEX, read_config(folder / INDEX))


def check_no_code(name: str, config: dict[str, Any]) -> None:
    """One configuration by its file's name. Raises `ModelError`."""
    if any(key in config for key in CODE_KEYS):
        raise ModelError(f"{name} asks for a program that comes with the model (auto_map); that is not run")
    if name == INDEX:
        _check_parts(config)


def _check_parts(index: dict[str, Any]) -> None:
    for name, about in index.items():
        own = isinstance(about, list) and bool(about) and about[0] not in LIBRARIES
        if own and not _of_diffusers(about[0]):
            raise ModelError(
                f"model_index.json names a part, {name}, that is neither of diffusers nor of transformers; it would "
                "bring a program of its own, and that is not run"
            )


def read_config(path: Path) -> dict[str, Any]:
    """A JSON object; empty if there is no such file. Raises `ModelError` if it is no JSON object."""
    try:
        if path.stat().st_size > MOST_CONFIG_BYTES:
            raise ModelError(f"{path.name} is longer than a configuration is")
        return parse_config(path.name, path.read_bytes())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ModelError(f"{path.name} cannot be read: {error}") from None


def parse_config(name: str, data: bytes) -> dict[str, Any]:
    """A JSON object. Raises `ModelError` if it is none."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{name} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise ModelError(f"{name} holds no JSON object")
    return value


def _of_diffusers(library: Any) -> bool:
    """diffusers keeps its safety checkers under the names of its own pipelines; those are in the library itself."""
    return library in ("stable_diffusion", "flux", "deepfloyd_if", "kandinsky", "wuerstchen")


def _span(name: str, about: Any) -> tuple[int, int]:
    offsets = about.get("data_offsets")
    sound = isinstance(offsets, list) and len(offsets) == 2 and all(type(each) is int for each in offsets)
    width = WIDTHS.get(about["dtype"])
    if not sound or width is None or not 0 <= offsets[0] <= offsets[1]:
        raise WeightsError(f"{name} has a tensor without a place")
    if offsets[1] - offsets[0] != math.prod(about["shape"]) * width:
        raise WeightsError(f"{name} has a tensor of another size than its shape")
    return offsets[0], offsets[1]


def _check_text(path: Path, name: str) -> None:
    hidden = _what_it_is(path, name)
    if hidden:
        raise ModelError(hidden)


def _what_it_is(path: Path, name: str) -> str:
    """In a sentence, if the content is something that is never taken; empty otherwise."""
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError:
        return ""
    if start.startswith(b"PK\x03\x04"):
        return f"{name} is a zip archive, as torch writes pickles in; it is not taken: get the safetensors or the GGUF"
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return f"{name} is a pickle, whatever its name says; it is not taken: get the safetensors or the GGUF"
    if start.startswith(GGUF_MAGIC) and not name.lower().endswith(".gguf"):
        return f"{name} is a GGUF under another name; rename it to .gguf"
    return ""
