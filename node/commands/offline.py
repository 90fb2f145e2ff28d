"""What can be asked of a data folder while no node runs on it.

Rule: the same names and answers as a running node gives, from the same code over the stored ledger. LevelDB admits
one process, so this is used only when no node has the folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from node.commands.client import Json, NoNode
from node.model_operations import MODEL_METHODS, ModelOperations
from node.models import ModelStore
from node.nurseries import one_error
from node.operations import OperationFailed, dispatch
from node.paths import exclusive, models_folder
from protocol.ids import NodeId

if TYPE_CHECKING:
    from node.bookkeeper import Bookkeeper
    from node.ledger_operations import LedgerOperations

LEDGER_READS = (
    "ledger.balance",
    "ledger.history",
    "ledger.show",
    "ledger.why",
    "ledger.verify",
    "ledger.audit",
    "ledger.prove",
    "federation.show",
)
LEDGER_STREAMS = ("ledger.lines", "ledger.verifying", "ledger.export", "ledger.import")


def call_offline(data: Path, name: str, arguments: Json) -> Json:
    """One operation without a node. Raises `NoNode` for those that need one."""
    if name in MODEL_METHODS:
        operations = ModelOperations(ModelStore(models_folder(data)), lambda _: False)
        return trio.run(dispatch, operations.methods, name, arguments)
    if name not in LEDGER_READS:
        raise NoNode(f"no node is running on {data}; start one with `mtor up`")
    with exclusive(data):
        return read_ledger(data, name, arguments)


def stream_offline(data: Path, name: str, arguments: Json, take: Callable[[Json], None]) -> None:
    """A streamed operation without a node; `take` gets each progress object. Raises `NoNode` if it needs one."""
    if name not in LEDGER_STREAMS:
        raise NoNode(f"no node is running on {data}; start one with `mtor up`")
    with exclusive(data):
        trio.run(_stream_ledger, data, name, arguments, take)


def read_ledger(data: Path, name: str, arguments: Json) -> Json:
    """One of `LEDGER_READS`, by a process that has the folder. Raises `OperationFailed`."""
    return trio.run(_read_ledger, data, name, arguments)


async def _read_ledger(data: Path, name: str, arguments: Json) -> Json:
    with _bookkeeper(data) as (_, operations):
        return await operations.call(name, arguments)


async def _stream_ledger(data: Path, name: str, arguments: Json, take: Callable[[Json], None]) -> None:
    with _bookkeeper(data) as (bookkeeper, operations):
        if name == "ledger.import":
            with one_error():
                async with bookkeeper.opened():
                    await _take_all(operations, name, arguments, take)
        else:
            await _take_all(operations, name, arguments, take)


async def _take_all(operations: LedgerOperations, name: str, arguments: Json, take: Callable[[Json], None]) -> None:
    async def emit(progress: Json) -> None:
        take(progress)

    await operations.stream(name, arguments, emit)


@contextmanager
def _bookkeeper(data: Path) -> Iterator[tuple[Bookkeeper, LedgerOperations]]:
    """The stored ledger, and what can be asked of it."""
    from node.bookkeeper import bookkeeper_of
    from node.federation import ledger_folder, load_genesis
    from node.identity import load_or_create_identity
    from node.ledger_operations import LedgerOperations
    from node.store import LevelStore

    federation = load_genesis(data)
    if federation is None:
        raise OperationFailed("this node has no ledger yet; start it once with `mtor up`")
    identity = load_or_create_identity(data)
    store = LevelStore(ledger_folder(data, federation))
    try:
        bookkeeper = bookkeeper_of(data, federation, identity.signer, store, Nobody())
        yield bookkeeper, LedgerOperations(bookkeeper, identity.node)
    finally:
        store.close()


class Nobody:
    """The peers of a node that does not run."""

    async def ask(self, node: NodeId, request: Any, expected: type[Any]) -> Any:
        """Never asked: reading needs nobody."""
        raise NoNode("no node is running")

    def connected(self) -> list[NodeId]:
        """Nobody."""
        return []
