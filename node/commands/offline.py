"""What can be asked of a data folder while no node runs on it.

Rule: the same names and answers as a running node gives, from the same code over the stored ledger. LevelDB admits
one process, so this is used only when no node has the folder.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import trio

from node.commands.client import Json, NoNode
from node.models import ModelStore
from node.operations import OperationFailed
from node.paths import exclusive, models_folder

LEDGER_READS = ("ledger.balance", "ledger.history", "ledger.show", "ledger.verify", "federation.show")


def call_offline(data: Path, name: str, arguments: Json) -> Json:
    """One operation without a node. Raises `NoNode` for those that need one."""
    if name == "models.list":
        return {"models": [asdict(row) for row in ModelStore(models_folder(data)).list()]}
    if name == "models.rm":
        ModelStore(models_folder(data)).remove(arguments["model"])
        return {"removed": arguments["model"]}
    if name not in LEDGER_READS:
        raise NoNode(f"no node is running on {data}; start one with `mtor up`")
    with exclusive(data):
        return read_ledger(data, name, arguments)


def read_ledger(data: Path, name: str, arguments: Json) -> Json:
    """One of `LEDGER_READS`, by a process that has the folder. Raises `OperationFailed`."""
    return trio.run(_read_ledger, data, name, arguments)


async def _read_ledger(data: Path, name: str, arguments: Json) -> Json:
    from node.bookkeeper import Bookkeeper
    from node.federation import ledger_folder, load_genesis, load_issuer
    from node.identity import load_or_create_identity
    from node.ledger_operations import LedgerOperations
    from node.store import LevelStore

    federation = load_genesis(data)
    if federation is None:
        raise OperationFailed("this node has no ledger yet; start it once with `mtor up`")
    identity = load_or_create_identity(data)
    store = LevelStore(ledger_folder(data, federation))
    try:
        issuer = load_issuer(data, federation)
        bookkeeper = Bookkeeper(store, identity.signer, federation, issuer, lambda: 0, _Nobody())
        return await LedgerOperations(bookkeeper, identity.node).call(name, arguments)
    finally:
        store.close()


class _Nobody:
    """The witnesses of a node that does not run."""

    async def vote(self, index: int, request: Any) -> Any:
        """Never asked: reading needs no witness."""
        raise NoNode("no node is running")

    store = fetch = vote
