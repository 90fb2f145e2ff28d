"""Models of a hub that speaks the protocol of Hugging Face's.

Rule: the licence is shown and agreed to before anything large is fetched; a revision is a commit from then on. Only
safetensors (or one GGUF), configurations, tokenizers and texts are fetched, never a pickle or a program; every file is
checked against the digest that the hub states for it at that commit.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import trio

from node.models.cards import card_text, printable
from node.models.checking import INDEX, check_no_code, is_allowed_name, parse_config
from node.models.errors import ModelError, Progress, step
from node.models.kinds import kind_of
from node.models.manifest import READ_BYTES, About, sha256_of
from node.models.place import Fetched, Place, delete, folder_bytes
from node.models.reference import HubReference
from node.models.sources.download import speed
from node.models.sources.url import UNKNOWN_LICENCE, check_folder, converted_gguf
from node.nurseries import one_error

MOST_FILES = 2_000
LOOK_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file of a repository, as the hub states it."""

    name: str
    bytes: int
    sha256: str  # of large files; empty for others
    blob: str  # git's digest of the others


@dataclass(frozen=True, slots=True)
class HubOffer:
    """What a pull would fetch, for the operator to agree to."""

    reference: HubReference
    commit: str
    licence: str
    licence_text: str
    gated: bool
    readme: str
    files: tuple[HubFile, ...]  # what is taken

    @property
    def bytes(self) -> int:
        """All that is fetched."""
        return sum(file.bytes for file in self.files)

    @property
    def card(self) -> str:
        """The first lines of the model's card, safe to show."""
        return card_text(self.readme)

    @property
    def source(self) -> str:
        """Where it comes from, in words."""
        file = f":{self.reference.file}" if self.reference.file else ""
        return f"hf:{self.reference.repo}@{self.commit}{file}"


async def look(reference: HubReference) -> HubOffer:
    """Ask the hub what it has. Raises `ModelError`."""
    with trio.move_on_after(LOOK_SECONDS):
        found = await _child("look", reference.repo, reference.revision)
        return _offer(reference, found)
    raise ModelError(f"the hub did not answer within {LOOK_SECONDS:.0f} seconds; pull again later")


@dataclass(frozen=True, slots=True)
class HubSource:
    """A repository that the operator has agreed to."""

    offer: HubOffer
    name: str

    async def fetch(self, place: Place, progress: Progress) -> Fetched:
        """See `Source`."""
        offer = self.offer
        key = hashlib.sha256(offer.source.encode()).hexdigest()
        async with place.turn(key, progress):
            kept = place.partial(key)
            kept.mkdir(exist_ok=True)
            place.need(offer.bytes - min(offer.bytes, folder_bytes(kept)))
            await self._fetch(kept, progress)
            await progress(step("verify", offer.bytes, offer.bytes))
            await trio.to_thread.run_sync(check_digests, offer.files, kept)
            try:
                folder = await self._made(kept, place, progress)
            except ModelError:  # it is what the hub has, and of no use: it is not fetched again
                delete(kept)
                raise
            delete(kept)
        kind = kind_of(folder)
        return Fetched(
            folder,
            About(
                printable(offer.reference.repo),
                offer.licence or UNKNOWN_LICENCE,
                offer.source,
                kind.realm,
                kind.engine,
                licence_text=offer.licence_text,
            ),
        )

    async def _fetch(self, kept: Path, progress: Progress) -> None:
        offer = self.offer
        with one_error():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_report_size, kept, offer.bytes, progress)
                names = [file.name for file in offer.files]
                await _child("fetch", offer.reference.repo, offer.commit, str(kept), lines=names)
                nursery.cancel_scope.cancel()

    async def _made(self, kept: Path, place: Place, progress: Progress) -> Path:
        """The model's folder out of what was fetched."""
        folder = place.work / "model"
        if self.offer.reference.file:
            await converted_gguf(kept / self.offer.reference.file, folder, place, progress)
            if (kept / "README.md").is_file():
                (kept / "README.md").replace(folder / "README.md")
            return folder
        for file in self.offer.files:
            (folder / file.name).parent.mkdir(parents=True, exist_ok=True)
            (kept / file.name).replace(folder / file.name)
        await trio.to_thread.run_sync(check_folder, folder)
        return folder


def chosen_files(files: Sequence[HubFile], file: str) -> tuple[HubFile, ...]:
    """What of a repository is fetched. `file` is a GGUF, or empty; a pipeline takes its parts' folders too. Raises
    `ModelError` with what there is instead."""
    allowed = [each for each in files if is_allowed_name(each.name) and _is_inside(each.name)]
    texts = [each for each in allowed if "/" not in each.name and PurePosixPath(each.name).suffix == ".md"]
    ggufs = [each for each in allowed if each.name.lower().endswith(".gguf")]
    if file:
        if not any(each.name == file for each in ggufs):
            raise ModelError(f"there is no {file} there; there are: {_listed(ggufs) or 'no GGUF files'}")
        return tuple(each for each in [*ggufs, *texts] if each.name == file or each in texts)
    pipeline = any(each.name == INDEX for each in allowed)
    deep = [each for each in allowed if each not in ggufs and each.name.count("/") == (1 if pipeline else 0)]
    root = [each for each in allowed if "/" not in each.name and not each.name.endswith((".safetensors", ".gguf"))]
    taken = _one_variant({each.name: each for each in [*deep, *root]})
    if not any(each.name.endswith(".safetensors") for each in taken):
        raise ModelError(_nothing_to_load(files, ggufs))
    if len(taken) > MOST_FILES:
        raise ModelError(f"the repository has more than {MOST_FILES} files")
    return taken


def _one_variant(files: Mapping[str, HubFile]) -> tuple[HubFile, ...]:
    """x.fp16.safetensors is left out beside x.safetensors, and consolidated ones beside those in parts."""
    weights = [name for name in files if name.endswith(".safetensors")]
    plain = [name for name in weights if not _is_variant(name, files) and "consolidated" not in name]
    left_out = set(weights) - set(plain) if plain else set()
    return tuple(file for name, file in files.items() if name not in left_out)


def _is_variant(name: str, files: Mapping[str, HubFile]) -> bool:
    folder, _, last = name.rpartition("/")
    pieces = last.split(".")
    if len(pieces) < 3:
        return False
    plain = ".".join([*pieces[:-2], pieces[-1]])
    return (f"{folder}/{plain}" if folder else plain) in files


def _nothing_to_load(files: Sequence[HubFile], ggufs: Sequence[HubFile]) -> str:
    if ggufs:
        return f"the repository holds GGUF files: choose one, as in hf:OWNER/NAME:FILE.gguf, of {_listed(ggufs)}"
    pickled = any(file.name.endswith((".bin", ".pt", ".pth", ".ckpt")) for file in files)
    why = "only pickles, which can run a program when they are loaded" if pickled else "no weights"
    return f"the repository holds {why}; only safetensors and GGUF are taken"


def _listed(files: Sequence[HubFile]) -> str:
    return ", ".join(f"{printable(file.name)} ({file.bytes / 1e6:,.0f} MB)" for file in files[:30])


def _is_inside(name: str) -> bool:
    parts = name.split("/")
    return "\\" not in name and ":" not in name and all(part and not part.startswith(".") for part in parts)


def _offer(reference: HubReference, found: Mapping[str, Any]) -> HubOffer:
    files = [HubFile(each["name"], each["bytes"], each["sha256"], each["blob"]) for each in found["files"]]
    texts: Mapping[str, str] = found["texts"]
    for name, text in texts.items():
        if name.endswith(".json"):
            check_no_code(name.rpartition("/")[2], parse_config(name, text.encode()))
    return HubOffer(
        reference,
        str(found["commit"]),
        printable(found["licence"]),
        printable(found["licence_text"]),
        bool(found["gated"]),
        texts.get("README.md", ""),
        chosen_files(files, reference.file),
    )


async def _child(command: str, *arguments: str, lines: Sequence[str] = ()) -> dict[str, Any]:
    """One command of `node.hub_child`. Cancelling it ends the process. Raises `ModelError`."""
    run = [sys.executable, "-m", "node.hub_child", command, *arguments]
    result = await trio.run_process(
        run, stdin="\n".join(lines).encode(), capture_stdout=True, capture_stderr=True, check=False
    )
    try:
        found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        last = (result.stderr or b"").decode(errors="replace").strip().splitlines()[-1:]
        raise ModelError(f"the hub's library ended: {last[0] if last else 'no reason given'}") from None
    if "error" in found:
        raise ModelError(printable(str(found["error"])))
    return found


async def _report_size(kept: Path, total: int, progress: Progress) -> None:
    """Bytes so far, as the files show them."""
    begun, before = time.monotonic(), folder_bytes(kept)
    while True:
        here = min(folder_bytes(kept), total)
        await progress(step("fetch", here, total, **speed(begun, before, here, total, time.monotonic())))
        await trio.sleep(0.5)


def check_digests(files: Sequence[HubFile], kept: Path) -> None:
    """Every file is what the hub says it is; one that is not is deleted, to be fetched again. Blocks. Raises
    `ModelError`."""
    for file in files:
        path = kept / file.name
        right = sha256_of(path) == file.sha256 if file.sha256 else _blob_digest(path) == file.blob
        if not right:
            path.unlink()
            raise ModelError(f"{printable(file.name)} is not what the hub says it is; it was deleted: pull again")


def _blob_digest(path: Path) -> str:
    """What git calls a file: SHA-1 over its length and content."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()
