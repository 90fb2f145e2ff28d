"""Models by an address: a GGUF, or an archive of a folder with safetensors.

Rule: the operator gives the digest; without it nothing is fetched, with it the way it comes matters little.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import trio

from node.models.cards import licence_in
from node.models.checking import check_config, check_file, check_files
from node.models.conversion import GGUF_CONVERTER, convert
from node.models.errors import ModelError, Progress, step
from node.models.kinds import kind_of
from node.models.manifest import About, model_files
from node.models.place import Fetched, Place, delete
from node.models.reference import UrlReference
from node.models.sources.archive import unpack
from node.models.sources.download import PAUSES, Wanted, download

UNKNOWN_LICENCE = "unknown"


@dataclass(frozen=True, slots=True)
class UrlSource:
    """One file that lies somewhere."""

    reference: UrlReference
    name: str
    pauses: Sequence[float] = PAUSES

    async def fetch(self, place: Place, progress: Progress) -> Fetched:
        """See `Source`."""
        sha256 = self.reference.sha256
        async with place.turn(sha256, progress):
            kept = place.partial(sha256)
            await download(Wanted(self.reference.url, sha256, kept), progress, self.pauses)
            try:
                fetched = await self._unpacked(kept, place, progress)
            except ModelError:  # it is what was asked for, and of no use: it is not fetched again
                delete(kept)
                raise
            delete(kept)
            return fetched

    async def _unpacked(self, kept: Path, place: Place, progress: Progress) -> Fetched:
        folder = place.work / "model"
        if self.reference.file.lower().endswith(".gguf"):
            await converted_gguf(kept, folder, place, progress)
        else:
            await progress(step("unpack"))
            await trio.to_thread.run_sync(unpack, kept, self.reference.file, folder)
            await trio.to_thread.run_sync(check_folder, folder)
        kind = kind_of(folder)
        licence = licence_in(folder) or UNKNOWN_LICENCE
        source = f"{self.reference.url.partition('?')[0]} sha256:{self.reference.sha256}"
        return Fetched(folder, About(self.name, licence, source, kind.realm, kind.engine))


async def converted_gguf(gguf: Path, folder: Path, place: Place, progress: Progress) -> None:
    """A GGUF as safetensors, checked first. Raises `ModelError`."""
    await trio.to_thread.run_sync(check_file, gguf, "weights.gguf")
    place.need((await trio.Path(gguf).stat()).st_size)
    await progress(step("convert"))
    await convert(GGUF_CONVERTER, {"weights.gguf": gguf}, folder)


def check_folder(folder: Path) -> None:
    """A folder that a loader takes: safetensors, a configuration that asks for no program. Blocks. Raises
    `ModelError`."""
    names = list(model_files(folder))
    check_config(folder)
    check_files(folder, names)
    if not any(name.endswith(".safetensors") for name in names):
        raise ModelError(f"{folder.name} holds no safetensors")
    if not (folder / "config.json").is_file() and not (folder / "model_index.json").is_file():
        raise ModelError("there is no config.json or model_index.json beside the safetensors")
