"""The operator's view of the ledger, with or without a running node.

Rule: nothing is changed, except that an import adds what is signed and new. Amounts come as µcredits and as text,
accounts as peer ids. What may be long comes in pieces, from a snapshot, read by a worker thread.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

import trio

from node.bookkeeper import Bookkeeper
from node.ledger_export import ExportError, exported, open_export
from node.ledger_import import Imported
from node.ledger_proving import proof_of
from node.ledger_reports import GROUPS
from node.operations import Emit, Json, Method, OperationFailed, Streaming, dispatch, dispatch_stream
from node.signature_pool import verify_on_all_cores
from node.store import Snapshot, StoreError
from protocol.codec import encode
from protocol.errors import Malformed
from protocol.ids import NodeId, parse_peer_id, peer_id
from protocol.ledger.proofs import prove_state
from protocol.ledger.state import View, number
from protocol.pricing import format_credits

LINES_AT_ONCE = 64

Tell = Callable[[Json], None]  # from a worker thread


class LedgerOperations:
    """`ledger.…` and `federation.show` over one bookkeeper: answers in `methods`, long work in `streams`."""

    def __init__(self, bookkeeper: Bookkeeper, node: NodeId) -> None:
        self._bookkeeper = bookkeeper
        self._node = node
        self.methods: dict[str, Method] = {
            "ledger.balance": self.ledger_balance,
            "ledger.history": self.ledger_history,
            "ledger.show": self.ledger_show,
            "ledger.why": self.ledger_why,
            "ledger.verify": self.ledger_verify,
            "ledger.audit": self.ledger_audit,
            "ledger.prove": self.ledger_prove,
            "federation.show": self.federation_show,
        }
        self.streams: dict[str, Streaming] = {
            "ledger.lines": self.ledger_lines,
            "ledger.verifying": self.ledger_verifying,
            "ledger.export": self.ledger_export,
            "ledger.import": self.ledger_import,
        }

    async def call(self, name: str, arguments: Json) -> Json:
        """One operation. Raises `OperationFailed`."""
        return await dispatch(self.methods, name, arguments)

    async def stream(self, name: str, arguments: Json, emit: Emit) -> None:
        """Long work. Raises `OperationFailed`."""
        await dispatch_stream(self.streams, name, arguments, emit)

    # --- accounts --------------------------------------------------------------------------------------

    async def ledger_balance(self, account: str = "") -> Json:
        """An account's balance; this node's own if none is named."""
        node = self._account(account)
        balance = asdict(await self._bookkeeper.balance(node))
        texts = {f"{key}_text": format_credits(value) for key, value in balance.items() if isinstance(value, int)}
        return {"account": peer_id(node)} | balance | texts

    async def ledger_why(self, account: str = "", by: str = "counterparty", limit: int = GROUPS) -> Json:
        """An account's balance as a sum."""
        if limit < 1:
            raise OperationFailed("the number of groups is at least 1")
        why = partial(self._bookkeeper.reports().why, self._account(account), by, limit)
        return await trio.to_thread.run_sync(why)

    async def ledger_lines(self, emit: Emit, account: str = "") -> None:
        """Every line of that sum."""
        node = self._account(account)

        def work(tell: Tell) -> None:
            waiting: list[Json] = []
            for line in self._bookkeeper.reports().lines(node):
                waiting.append(line)
                if len(waiting) == LINES_AT_ONCE:
                    tell({"lines": waiting})
                    waiting = []
            tell({"lines": waiting, "done": True})

        await _in_thread(emit, work)

    def _account(self, text: str) -> NodeId:
        """A peer id, or the name of one of this node's accounts. Raises `Malformed`."""
        if not text:
            return self._node
        return self._bookkeeper.wallet.named(text) or parse_peer_id(text)

    # --- entries ---------------------------------------------------------------------------------------

    async def ledger_history(self, limit: int = 20, before: str = "") -> Json:
        """The newest entries first."""
        return {"entries": await self._bookkeeper.history(limit, before)}

    async def ledger_show(self, id: str) -> Json:
        """One entry, explained."""
        return await self._bookkeeper.show(id)

    async def ledger_prove(self, subject: str = "", state: bool = False) -> Json:
        """A proof for somebody without a node: of an account at the last checkpoint, or of an order."""
        return await trio.to_thread.run_sync(self._prove, subject, state)

    def _prove(self, subject: str, state: bool) -> Json:
        federation, stored = self._bookkeeper.snapshot()
        account = self._node if not subject else self._bookkeeper.wallet.named(subject) or _peer(subject)
        if account is not None:
            proof, about = prove_state(federation, stored, account), {"account": peer_id(account)}
        else:
            identity = self._bookkeeper.reports().resolve(subject)
            proof, proven = proof_of(federation, stored, identity, state=state)
            about = {"id": proven.hex(), "asked": identity.hex()}
        return {"proof": encode(proof).hex(), "federation": federation.id.hex(), **about}

    # --- the whole ledger ------------------------------------------------------------------------------

    async def ledger_verify(self, signatures: bool = False) -> Json:
        """Check the whole local ledger."""
        return asdict(await self._bookkeeper.verify(signatures))

    async def ledger_verifying(self, emit: Emit, signatures: bool = False) -> None:
        """The same, step by step."""
        federation, stored = self._bookkeeper.snapshot()

        def work(tell: Tell) -> None:
            watched = _Watched(stored, tell)
            report = verify_on_all_cores(federation, watched, signatures=signatures)
            watched.all_read()
            tell({"step": "verified", "report": asdict(report), "done": True})

        await _in_thread(emit, work)

    async def ledger_audit(self, signatures: bool = False) -> Json:
        """What is wrong or odd in the federation, as far as this copy shows it."""
        return await self._bookkeeper.audit(signatures)

    async def ledger_export(self, emit: Emit) -> None:
        """The ledger as the bytes of one file, base64."""
        federation, stored = self._bookkeeper.snapshot()

        def work(tell: Tell) -> None:
            for piece in exported(federation, stored, lambda done, total: tell(_counted("exporting", done, total))):
                tell({"data": base64.b64encode(piece).decode()})
            tell({"step": "exported", "federation": federation.id.hex(), "done": True})

        await _in_thread(emit, work)

    async def ledger_import(self, emit: Emit, file: str) -> None:
        """Take in what is new in an exported ledger; `file` is a path on the node's machine."""
        federation, _ = self._bookkeeper.snapshot()

        async def tell(imported: Imported) -> None:
            await emit({"step": "importing", **asdict(imported)})

        try:
            whole = await trio.to_thread.run_sync(open_export, Path(file), federation.id)
            imported = await self._bookkeeper.bring_in(whole, tell)
        except ExportError as error:
            raise OperationFailed(str(error)) from None
        await emit({"step": "imported", **asdict(imported), "done": True})

    async def federation_show(self) -> Json:
        """The constitution, and this node's part in it."""
        bookkeeper = self._bookkeeper
        genesis = bookkeeper.genesis
        return {
            "id": bookkeeper.federation.hex(),
            "name": genesis.name,
            "created_ms": genesis.created_ms,
            "witnesses": [peer_id(NodeId(key)) for key in genesis.witnesses],
            "faults": genesis.faults,
            "issuers": [bytes(key).hex() for key in genesis.issuers],
            "supply_cap": genesis.supply_cap,
            "supply_cap_text": format_credits(genesis.supply_cap),
            "witness": bookkeeper.is_witness,
            "issuer": bookkeeper.is_issuer,
        }


def _peer(text: str) -> NodeId | None:
    """The account that `text` names, None if it is no peer id."""
    try:
        return parse_peer_id(text)
    except Malformed:
        return None


class _Watched:
    """A snapshot that tells how far into the log a check has come."""

    EVERY = 1_024  # places between two words

    def __init__(self, stored: Snapshot, tell: Tell) -> None:
        self._stored = stored
        self._tell = tell
        self._first = View(stored).log_first
        self._total = View(stored).log_length - self._first
        self._next = self._first

    def get(self, key: bytes, /) -> bytes | None:
        """See `Snapshot`."""
        if key[:1] == b"n" and number(key[1:]) >= self._next:
            self._next = number(key[1:]) + self.EVERY
            self._tell(_counted("verifying", number(key[1:]) - self._first, self._total))
        return self._stored.get(key)

    def all_read(self) -> None:
        """The check has ended."""
        self._tell(_counted("verifying", self._total, self._total))

    def iterate(self, prefix: bytes = b"", start: bytes = b"", reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """See `Snapshot`."""
        return self._stored.iterate(prefix, start, reverse)


def _counted(step: str, done: int, total: int) -> Json:
    return {"step": step, "done_count": done, "total_count": total}


async def _in_thread(emit: Emit, work: Callable[[Tell], None]) -> None:
    """Work that reads the disk, beside the node. Raises `OperationFailed`."""
    try:
        await trio.to_thread.run_sync(work, lambda progress: trio.from_thread.run(emit, progress))
    except StoreError as error:
        raise OperationFailed(str(error)) from None
