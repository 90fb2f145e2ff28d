"""What a model's weights take, read from the first bytes of its files.

Rule: headers only, never the tensors; and a header is a stranger's: its size is bounded, its numbers are checked
against each other before anything is done with them.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

MOST_HEADER_BYTES = 100 << 20  # the limit of safetensors itself
MOST_TENSORS = 100_000
MOST_TEXT_BYTES = 16 << 20
MOST_DIMENSIONS = 8
MOST_NUMBERS = 1 << 45  # in one tensor: what is more is no model

FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}  # bytes in the file
OTHERS = {"I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1}

GGUF_MAGIC = b"GGUF"
GGUF_SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes by type
GGUF_STRING, GGUF_ARRAY = 8, 9


class WeightsError(ValueError):
    """A file is not what its name says."""


@dataclass(frozen=True, slots=True)
class Weights:
    """Numbers of a model: `floats` become the arithmetic's, `other_bytes` stay as they are."""

    floats: int
    other_bytes: int = 0

    def bytes_in(self, number_bytes: int) -> int:
        """Bytes of memory when each float takes `number_bytes`."""
        return self.floats * number_bytes + self.other_bytes

    def __add__(self, other: Weights) -> Weights:
        return Weights(self.floats + other.floats, self.other_bytes + other.other_bytes)


def folder_weights(folder: Path) -> Weights:
    """All that a loader takes from a folder: its safetensors, or its GGUF. Raises `WeightsError`, `OSError`."""
    tensors = _one_variant(sorted(folder.glob("*.safetensors")))
    files = tensors or sorted(folder.glob("*.gguf"))[:1]
    total = Weights(0)
    for file in files:
        total += safetensors_weights(file) if file.suffix == ".safetensors" else gguf_weights(file)
    return total


def safetensors_weights(path: Path) -> Weights:
    """Raises `WeightsError`, `OSError`."""
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", _exactly(file, 8))
        if size > min(MOST_HEADER_BYTES, path.stat().st_size):
            raise WeightsError(f"{path.name} claims a header of {size} bytes")
        try:
            header = json.loads(_exactly(file, size))
        except (ValueError, RecursionError):
            raise WeightsError(f"{path.name} has no header that can be read") from None
    if not isinstance(header, dict) or len(header) > MOST_TENSORS:
        raise WeightsError(f"{path.name} has no header that can be read")
    total = Weights(0)
    for name, about in header.items():
        if name != "__metadata__":
            total += _tensor(path.name, about)
    return total


def gguf_weights(path: Path) -> Weights:
    """The numbers in a GGUF, which loading unpacks to the arithmetic's. Raises `WeightsError`, `OSError`."""
    with path.open("rb") as file:
        if _exactly(file, 4) != GGUF_MAGIC:
            raise WeightsError(f"{path.name} is no GGUF")
        version, tensors, entries = struct.unpack("<IQQ", _exactly(file, 20))
        if version not in (2, 3) or tensors > MOST_TENSORS or entries > MOST_TENSORS:
            raise WeightsError(f"{path.name}: version {version} with {tensors} tensors cannot be read")
        for _ in range(entries):
            _skip_text(file)
            _skip_value(file, _number(file, "<I"))
        return Weights(sum(_gguf_tensors(file, tensors)))


def _one_variant(files: Sequence[Path]) -> list[Path]:
    """Hub folders hold `x.safetensors` beside `x.fp16.safetensors`, and files in parts: what a loader takes."""
    names = {file.name for file in files}
    plain = [file for file in files if not (file.name.count(".") > 1 and _without_variant(file.name) in names)]
    return [file for file in plain if not file.name.startswith("consolidated")] or plain


def _without_variant(name: str) -> str:
    first, _, last = name.rsplit(".", 2)
    return f"{first}.{last}"


def _tensor(name: str, about: Any) -> Weights:
    kind = about.get("dtype") if isinstance(about, dict) else None
    shape = about.get("shape") if isinstance(about, dict) else None
    sound = isinstance(shape, list) and all(isinstance(size, int) and size >= 0 for size in shape)
    if kind not in FLOATS | OTHERS or not sound or len(shape or ()) > MOST_DIMENSIONS:
        raise WeightsError(f"{name} has a tensor that cannot be read")
    numbers = _count(name, shape or [])
    return Weights(numbers) if kind in FLOATS else Weights(0, numbers * OTHERS[str(kind)])


def _count(name: str, shape: Sequence[int]) -> int:
    numbers = math.prod(shape)
    if numbers > MOST_NUMBERS:
        raise WeightsError(f"{name} has a tensor of {numbers} numbers")
    return numbers


def _gguf_tensors(file: BinaryIO, count: int) -> Iterator[int]:
    for _ in range(count):
        _skip_text(file)
        dimensions = _number(file, "<I")
        if dimensions > MOST_DIMENSIONS:
            raise WeightsError(f"a tensor of {dimensions} dimensions")
        shape = [_number(file, "<Q") for _ in range(dimensions)]
        _exactly(file, 12)  # its type and its place
        yield _count("the GGUF", shape)


def _skip_text(file: BinaryIO) -> None:
    _skip(file, _number(file, "<Q"))


def _skip(file: BinaryIO, size: int) -> None:
    if size > MOST_TEXT_BYTES:
        raise WeightsError(f"an entry of {size} bytes in the header")
    _exactly(file, size)


def _skip_value(file: BinaryIO, kind: int, depth: int = 0) -> None:
    if kind in GGUF_SCALARS:
        _exactly(file, GGUF_SCALARS[kind])
    elif kind == GGUF_STRING:
        _skip_text(file)
    elif kind == GGUF_ARRAY and depth < 2:
        inner, count = _number(file, "<I"), _number(file, "<Q")
        if inner in GGUF_SCALARS:
            _skip(file, count * GGUF_SCALARS[inner])
            return
        if count > MOST_TEXT_BYTES:
            raise WeightsError(f"a list of {count} entries in the header")
        for _ in range(count):
            _skip_value(file, inner, depth + 1)
    else:
        raise WeightsError(f"a value of kind {kind} in the header")


def _number(file: BinaryIO, form: str) -> int:
    (number,) = struct.unpack(form, _exactly(file, struct.calcsize(form)))
    return int(number)


def _exactly(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise WeightsError("the file ends in its header")
    return data
