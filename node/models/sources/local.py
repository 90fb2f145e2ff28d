"""Models that the operator has: a folder with safetensors, or a GGUF.

Rule: linked, the files stay the operator's: they are checked and written down, never changed and never deleted. Copied,
only what has a place in a model is taken. A GGUF is converted either way, because loading it takes half a minute.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import trio

from node.models.cards import licence_in
from node.models.checking import check_config, check_files, is_allowed_name, is_pickle_name
from node.models.errors import ModelError, Progress, step
from node.models.kinds import kind_of
from node.models.manifest import About, model_files
from node.models.place import Fetched, Place
from node.models.sources.url import UNKNOWN_LICENCE, check_folder, converted_gguf


@dataclass(frozen=True, slots=True)
class LocalSource:
    """A path of the operator's, absolute."""

    path: Path
    name: str

    async def fetch(self, place: Place, progress: Progress) -> Fetched:
        """See `Source`."""
        folder = place.work / "model"
        if self.path.is_dir():
            await progress(step("copy"))
            await trio.to_thread.run_sync(_copy, self.path, folder, place)
        else:
            await converted_gguf(self.path, folder, place, progress)
        return Fetched(folder, about_local(self.path, folder))


def about_local(path: Path, folder: Path) -> About:
    """What a folder says of itself. Blocks. Raises `ModelError`."""
    kind = kind_of(folder)
    return About(path.name, licence_in(folder) or UNKNOWN_LICENCE, str(path), kind.realm, kind.engine)


def loadable_files(folder: Path) -> list[str]:
    """The files of an operator's folder, checked. Blocks. Raises `ModelError`."""
    if folder.suffix == ".gguf":
        raise ModelError(f"{folder} is converted before it is loaded; take it in with `mtor models add {folder}`")
    if not folder.is_dir():
        raise ModelError(f"{folder} is no folder; a path names a folder with config.json and *.safetensors")
    names = list(model_files(folder))
    pickles = [name for name in names if is_pickle_name(name)]
    if not any(name.endswith(".safetensors") for name in names):
        raise ModelError(f"{folder} is no model folder: it needs config.json, a tokenizer and *.safetensors")
    if not (folder / "config.json").is_file() and not (folder / "model_index.json").is_file():
        raise ModelError(f"{folder} is no model folder: it needs config.json, a tokenizer and *.safetensors")
    if pickles:
        fix = f"delete it, or take the rest with `mtor models add {folder} --copy`"
        raise ModelError(f"{folder} holds the pickle {pickles[0]}, which can run a program when it is loaded; {fix}")
    check_config(folder)
    check_files(folder, names)
    return names


def _copy(source: Path, folder: Path, place: Place) -> None:
    names = list(_taken(source))
    place.need(sum((source / name).stat().st_size for name in names))
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, folder / name)
    if folder.suffix == ".gguf":
        raise ModelError(f"{folder} is converted before it is loaded; take it in with `mtor models add {folder}`")
    if not folder.is_dir():
        raise ModelError(f"{source} holds nothing of a model: it needs config.json, a tokenizer and *.safetensors")
    check_folder(folder)


def _taken(source: Path) -> Iterator[str]:
    return (name for name in model_files(source) if is_allowed_name(name))
