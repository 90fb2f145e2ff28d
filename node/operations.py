"""What the operator can ask of a node: one name, one set of arguments, one JSON-able answer.

Rule: `OPERATIONS` is the whole list. The gateway's admin routes and the command line carry these names and know
nothing else about them. Each runs on the trio side.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Protocol

Json = dict[str, Any]


class OperationFailed(Exception):
    """The operator asked for something that cannot be done; the message names the fix."""


class Operations(Protocol):
    """A running node's side of `mtor`. `call` raises `OperationFailed`."""

    async def call(self, name: str, arguments: Json) -> Json:
        """One answer."""

    def stream(self, name: str, arguments: Json) -> AsyncIterator[Json]:
        """Long work: progress objects, the last with `"done": true`. Only for names in `STREAMED`."""


OPERATIONS: dict[str, str] = {
    "status": "{}: node, version, federation, balance, realms with slots and queue, peers, uptime",
    "peers": "{}: known nodes: petname, connected, realms, models, price, own experience with them",
    "realms": "{}: realms on offer here and elsewhere",
    "models.list": "{}: models that can be pulled or are in the store, with size and licence",
    "models.rm": "{model}: remove from the store",
    "ledger.balance": "{account?}: balance, held, earned, spent, in µcredits and as text",
    "ledger.history": "{limit?, before?}: newest first, each with id, kind, amount, counterparty, time",
    "ledger.show": "{id}: one order, channel or receipt (a unique prefix of at least 6 hex digits is enough)",
    "ledger.verify": "{signatures?}: every link, sum and, if asked, signature",
    "ledger.settle": "{}: close all idle channels that owe this node, and fetch the federation's newest certificates",
    "federation.show": "{}: genesis, id, witnesses, issuers, whether this node is one of them",
    "federation.grant": "{to, credits}: issue credits (issuers only)",
    "stop": "{}: end the node as if by Ctrl-C",
}

STREAMED: dict[str, str] = {
    "models.pull": "{model}: fetch, verify and convert; progress objects {step, done_bytes, total_bytes}",
}
