"""What the operator can ask of a node: one name, one set of arguments, one JSON-able answer.

Rule: `OPERATIONS` is the whole list. The gateway's admin routes and the command line carry these names and know
nothing else about them. Each runs on the trio side.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Protocol

from pydantic import ValidationError, validate_call

from protocol.errors import ProtocolError

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
    "ledger.settle": "{}: deliver vouchers, close idle channels that owe this node, fetch the newest certificates",
    "federation.show": "{}: genesis, id, witnesses, issuers, whether this node is one of them",
    "federation.grant": "{to, credits}: issue credits (issuers only)",
    "stop": "{}: end the node as if by Ctrl-C",
}

STREAMED: dict[str, str] = {
    "models.pull": "{model}: fetch, verify and convert; progress objects {step, done_bytes, total_bytes}",
}


Method = Callable[..., Awaitable[Json]]


async def dispatch(methods: Mapping[str, Method], name: str, arguments: Json) -> Json:
    """Run one operation, its arguments checked by its own annotations. Raises `OperationFailed`."""
    method = methods.get(name)
    if method is None:
        raise OperationFailed(f"there is no operation {name!r}; there are {', '.join(methods)}")
    try:
        return await validate_call(method)(**arguments)
    except (ValidationError, TypeError) as error:
        raise OperationFailed(f"{name} takes {OPERATIONS[name].split(':')[0]}: {_first_line(error)}") from None
    except ProtocolError as error:
        raise OperationFailed(str(error)) from None


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
    return str(error).splitlines()[0]
