"""`mtor models list|show|pull|add|verify|rm`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from node.commands.asking_node import call
from node.commands.client import Json
from node.commands.screen import Show, print_facts, print_json, print_table, progress_shown
from node.models import CATALOGUE, Checked, ModelError, ModelStore, PullWish
from node.paths import data_folder, models_folder

if TYPE_CHECKING:
    from node.models.sources.hub import HubOffer

COLUMNS = ("model", "realm", "engine", "here", "MB", "to fetch", "licence")


def list_models(options: argparse.Namespace) -> int:
    """What is here and what can be pulled."""
    answer = call(options, "models.list")
    if options.json:
        print_json(answer["models"])
        return 0
    print_table(COLUMNS, [_row(row) for row in answer["models"]], unbroken=1)
    if answer["partial_bytes"]:
        print(f"unfinished downloads take {_mb(answer['partial_bytes'])} MB; the next pull goes on with them")
    return 0


def _row(row: Json) -> tuple[str, ...]:
    here = "builtin" if row["builtin"] else "linked" if row["linked"] else "yes"
    on_disk = _mb(row["bytes"])
    fetch = f"{_mb(row['fetch_bytes'])} MB" if row["fetch_bytes"] else ""
    facts = (row["name"], row["realm"], row["engine"], here if row["installed"] else "no", on_disk, fetch)
    return (*facts, row["licence"])


def _mb(size: int) -> str:
    return f"{size / 10**6:.0f}" if size >= 10**7 else f"{size / 10**6:.1f}"


def show(options: argparse.Namespace) -> int:
    """Everything that is known of one model."""
    facts = call(options, "models.show", {"model": options.model})
    if options.json:
        print_json(facts)
        return 0
    files = facts.pop("files")
    card = facts.pop("card")
    print_facts({name.replace("_", " "): value for name, value in facts.items() if value not in ("", 0, [])})
    if files:
        print_table(("file", "bytes", "sha256"), [(name, f"{file['bytes']:,}", file["sha256"]) for name, file in files])
    if card:
        print(f"\n{card}")
    return 0


def pull(options: argparse.Namespace) -> int:
    """Fetch a model into the store, where a running node finds it."""
    import trio

    store = _store(options)
    wish = PullWish(options.name, options.sha256)
    entry = CATALOGUE.get(options.model)
    if entry is not None and not entry.builtin:
        print(f"{entry.title}\n{entry.limits}\nlicence {entry.licence} ({entry.licence_text}); from {entry.source}")
    elif options.model.startswith("hf:"):
        wish = PullWish(options.name, agreed=_agreed(trio.run(store.look, options.model), options.yes))
    with progress_shown() as shown:
        name = trio.run(_pull, store, options.model, wish, shown)
    print(f"{name} is in {store.root}; serve it with `mtor serve {name}`, or `mtor up --model {name}`")
    return 0


def _agreed(offer: HubOffer, yes: bool) -> str:
    """The commit, once the operator has seen card and licence and agreed. Raises `ModelError`."""
    licence = f"{offer.licence or 'not stated'} {offer.licence_text}".rstrip()
    print_facts({"source": offer.source, "licence": licence, "to fetch": f"{_mb(offer.bytes)} MB"})
    print(f"\n{offer.card}\n" if offer.card else "\nit has no card\n")
    if yes:
        return offer.commit
    if not sys.stdin.isatty():
        raise ModelError("nobody is here to agree to the licence; read it above and pull again with --yes")
    if input("Agree to its licence and fetch it? [y/N] ").strip().lower() not in ("y", "yes"):
        raise ModelError("nothing was fetched")
    return offer.commit


async def _pull(store: ModelStore, model: str, wish: PullWish, shown: Show) -> str:
    async def progress(step: Json) -> None:
        shown(step)

    return await store.pull(model, progress, wish)


def add(options: argparse.Namespace) -> int:
    """Register a folder or a GGUF that is on this machine."""
    import trio

    store = _store(options)
    with progress_shown() as shown:
        name = trio.run(_add, store, options, shown)
    manifest, folder = store.manifest(name)
    print(f"{name} is a model for {manifest.about.realm} ({manifest.about.engine}), its files are in {folder}")
    return 0


async def _add(store: ModelStore, options: argparse.Namespace, shown: Show) -> str:
    async def progress(step: Json) -> None:
        shown(step)

    path: Path = options.path
    return await store.add(path, progress, options.name, options.copy)


def verify(options: argparse.Namespace) -> int:
    """Read every byte of one model, or of all, and compare digests."""
    store = _store(options)
    names = [options.model] if options.model else list(store.names())
    with progress_shown() as shown:
        checked = [_verified(store, name, shown) for name in names]
    if options.json:
        print_json([{"name": each.name, "files": each.files, "wrong": list(each.wrong)} for each in checked])
    for each in checked:
        if not options.json:
            print(f"{each.name}: " + ("; ".join(each.wrong) or f"{each.files} files are as they were stored"))
    return int(any(each.wrong for each in checked))


def _verified(store: ModelStore, name: str, shown: Show) -> Checked:
    total = store.manifest(name)[0].bytes
    done = 0

    def looked(size: int) -> None:
        nonlocal done
        done += size
        shown({"step": "verify", "message": name, "done_bytes": done, "total_bytes": total})

    return store.check(name, looked)


def remove(options: argparse.Namespace) -> int:
    """Delete a model."""
    call(options, "models.rm", {"model": options.model})
    print(f"{options.model} is removed")
    return 0


def _store(options: argparse.Namespace) -> ModelStore:
    return ModelStore(models_folder(data_folder(options.data)))
