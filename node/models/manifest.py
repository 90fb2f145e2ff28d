"""What is written down of a stored model, and its digests.

Rule: a manifest lists every file of the model with size and digest, and is written last: a folder without one is no
model. The model's digest is sha256 over the sorted names and digests of its files.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from node.models.errors import ModelError

MANIFEST = "manifest.json"
READ_BYTES = 1 << 20

Looked = Callable[[int], None]  # told the bytes that were read since the last call


@dataclass(frozen=True, slots=True)
class FileFacts:
    """One file of a model."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class About:
    """What is known of a model beside its files. Empty: nobody said."""

    title: str
    licence: str
    source: str  # in words, with the revision or digest that pins it
    realm: str
    engine: str
    limits: str = ""
    licence_text: str = ""


@dataclass(frozen=True, slots=True)
class Manifest:
    """A model in the store. `linked`: its files lie in that folder of the operator's and are not the store's."""

    name: str
    about: About
    files: Mapping[str, FileFacts]
    context_tokens: int = 0
    linked: str = ""

    @property
    def digest(self) -> bytes:
        """sha256 over the sorted names and digests of the files."""
        lines = "".join(f"{name} {self.files[name].sha256}\n" for name in sorted(self.files))
        return hashlib.sha256(lines.encode()).digest()

    @property
    def bytes(self) -> int:
        """All files together."""
        return sum(file.bytes for file in self.files.values())


def read_manifest(folder: Path) -> Manifest:
    """Blocks. Raises `ModelError` if it is not there or not whole."""
    path = folder / MANIFEST
    try:
        return _manifest(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = error if isinstance(error, OSError | ValueError) else f"no {error} in it"
        raise ModelError(f"{path} cannot be read ({reason}); delete {folder} and pull again") from None


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Blocks. Raises `OSError`."""
    facts = {"name": manifest.name, **asdict(manifest.about), "digest": manifest.digest.hex()}
    facts |= {"context_tokens": manifest.context_tokens, "linked": manifest.linked}
    facts["files"] = {name: asdict(file) for name, file in sorted(manifest.files.items())}
    with (folder / MANIFEST).open("w", encoding="utf-8") as file:
        json.dump(facts, file, indent=1, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())


def file_facts(folder: Path, names: Iterable[str], looked: Looked | None = None) -> dict[str, FileFacts]:
    """Size and digest of each. Blocks as long as reading them all takes. Raises `OSError`."""
    return {name: FileFacts((folder / name).stat().st_size, sha256_of(folder / name, looked)) for name in names}


def model_files(folder: Path) -> Iterator[str]:
    """Every file below a folder by its relative name with slashes; what is hidden is left out, as is the manifest."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and name.name != MANIFEST and not any(part.startswith(".") for part in name.parts):
            yield name.as_posix()


def sha256_of(path: Path, looked: Looked | None = None) -> str:
    """The digest of a file as hex. Blocks. Raises `OSError`."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(READ_BYTES):
            digest.update(block)
            if looked is not None:
                looked(len(block))
    return digest.hexdigest()


def _manifest(facts: Mapping[str, Any]) -> Manifest:
    about = {key: str(facts.get(key, "")) for key in About.__dataclass_fields__}
    files = {_safe(name): FileFacts(int(file["bytes"]), str(file["sha256"])) for name, file in facts["files"].items()}
    return Manifest(
        str(facts["name"]), About(**about), files, int(facts.get("context_tokens", 0)), str(facts.get("linked", ""))
    )


def _safe(name: str) -> str:
    """A file's name that stays below its folder."""
    if name.startswith("/") or "\\" in name or ":" in name or any(part in ("", "..", ".") for part in name.split("/")):
        raise ValueError(f"{name!r} is no name of a file in a model")
    return name
