"""The operator's reading side of the ledger, with or without a running node.

Rule: read-only. Amounts come as µcredits and as text, accounts as peer ids.
"""

from __future__ import annotations

from dataclasses import asdict

from node.bookkeeper import Bookkeeper
from node.operations import Json, Method, dispatch
from protocol.ids import NodeId, parse_peer_id, peer_id
from protocol.pricing import format_credits


class LedgerOperations:
    """`ledger.balance|history|show|verify` and `federation.show` over one bookkeeper."""

    def __init__(self, bookkeeper: Bookkeeper, node: NodeId) -> None:
        self._bookkeeper = bookkeeper
        self._node = node
        self.methods: dict[str, Method] = {
            "ledger.balance": self.ledger_balance,
            "ledger.history": self.ledger_history,
            "ledger.show": self.ledger_show,
            "ledger.verify": self.ledger_verify,
            "federation.show": self.federation_show,
        }

    async def call(self, name: str, arguments: Json) -> Json:
        """One operation. Raises `OperationFailed`."""
        return await dispatch(self.methods, name, arguments)

    async def ledger_balance(self, account: str = "") -> Json:
        """An account's balance; this node's own if none is named."""
        node = parse_peer_id(account) if account else self._node
        balance = asdict(await self._bookkeeper.balance(node))
        texts = {f"{key}_text": format_credits(value) for key, value in balance.items() if isinstance(value, int)}
        return {"account": peer_id(node)} | balance | texts

    async def ledger_history(self, limit: int = 20, before: str = "") -> Json:
        """The newest entries first."""
        return {"entries": await self._bookkeeper.history(limit, before)}

    async def ledger_show(self, id: str) -> Json:
        """One entry, explained."""
        return await self._bookkeeper.show(id)

    async def ledger_verify(self, signatures: bool = False) -> Json:
        """Check the whole local ledger."""
        return asdict(await self._bookkeeper.verify(signatures))

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
