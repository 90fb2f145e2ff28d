"""What `mtor models show` tells of one model.

Rule: everything is read from the store or the catalogue, and a stranger's text is made safe; whether it fits this
machine is worked out from its files, and said in words.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import psutil

from node.cards import rooms
from node.fit import DoesNotFit, Space, plan
from node.models.cards import printable, read_card
from node.models.catalogue import CatalogueEntry
from node.models.errors import Json, ModelError
from node.models.manifest import Manifest
from node.models.store import ModelStore
from node.needs import Wish, read_need
from node.nvml_cards import NvmlCards
from node.weights import WeightsError

CPU_SHARE = 2  # half of what is free is left to others


def show(store: ModelStore, model: str) -> Json:
    """All facts of a model that is here or in the catalogue. Blocks. Raises `ModelError`."""
    try:
        manifest, folder = store.manifest(model)
    except ModelError:
        if model not in store.catalogue:
            raise
        return _catalogued(store.catalogue[model])
    return _here(manifest, folder)


def _here(manifest: Manifest, folder: Path) -> Json:
    about = {key: printable(value) for key, value in asdict(manifest.about).items()}
    return {
        "name": manifest.name,
        **about,
        "here": str(folder),
        "bytes": manifest.bytes,
        "to_fetch": 0,
        "digest": manifest.digest.hex(),
        "context_tokens": manifest.context_tokens,
        "fits": fits(manifest.name, manifest.about.engine, folder),
        "files": [(printable(name), asdict(file)) for name, file in sorted(manifest.files.items())],
        "card": read_card(folder),
    }


def _catalogued(entry: CatalogueEntry) -> Json:
    return {
        "name": entry.name,
        "title": entry.title,
        "licence": entry.licence,
        "source": entry.source,
        "realm": entry.realm,
        "engine": entry.engine,
        "limits": entry.limits,
        "licence_text": entry.licence_text,
        "here": "no; install mtor again" if entry.builtin else f"no; get it with `mtor models pull {entry.name}`",
        "bytes": entry.disk_bytes,
        "to_fetch": entry.fetch_bytes,
        "digest": "",
        "context_tokens": 0,
        "fits": "",
        "files": [],
        "card": "",
    }


def fits(model: str, engine: str, folder: Path) -> str:
    """Where on this machine a model would go, in words, as the machine is now. Blocks."""
    try:
        need = read_need(model, engine, folder, Wish())
    except WeightsError as error:
        return printable(str(error))
    space = Space(rooms(NvmlCards(), {}), psutil.virtual_memory().available // CPU_SHARE >> 20)
    found = plan(need, space, ())
    if isinstance(found, DoesNotFit):
        nearest = f"; nearest: {'; '.join(found.nearest)}" if found.nearest else ""
        return f"no: {found.message}{nearest}"
    return f"yes: {found.said}"
