"""What the operator can ask of a node: one name, one set of arguments, one JSON-able answer.

Rule: `OPERATIONS` is the whole list, with `STREAMED` and what the gateway itself answers. The gateway's admin routes
and the command line carry these names and know nothing else about them. The node's run on the trio side.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from pydantic import ValidationError, validate_call

from protocol.errors import ProtocolError

Json = dict[str, Any]


Emit = Callable[[Json], Awaitable[None]]


class OperationFailed(Exception):
    """The operator asked for something that cannot be done; the message names the fix."""


class Operations(Protocol):
    """A running node's side of `mtor`. `call` raises `OperationFailed`."""

    async def call(self, name: str, arguments: Json) -> Json:
        """One answer."""

    async def stream(self, name: str, arguments: Json, emit: Emit) -> None:
        """Long work: `emit` gets progress objects, the last with `"done": true`. Only for names in `STREAMED`."""


OPERATIONS: dict[str, str] = {
    "status": "{}: node, version, federation, balance, realms with slots and queue, peers, uptime",
    "peers.block": "{peer, reason?}: refuse a peer from now on: no connection, stream, gossip or offer of it",
    "peers.unblock": "{peer}: refuse it no longer",
    "peers.blocked": "{}: who is blocked, why and since when",
    "peers": "{}: known nodes: petname, connected, realms, models, price, own experience with them",
    "realms": "{}: realms on offer here and elsewhere",
    "serving.stop": "{model, realm?, keep?}: serve it no longer; what runs may end; keep=true: also after a restart",
    "workers.list": "{}: models of servers beside the node: ready, queue, answered, failed, last error",
    "config.show": "{}: every setting with value, default, description, kind, and whether it changes without a restart",
    "config.set": "{key, value}: check a setting, write it to realms.yml, and put it in force where that is possible",
    "models.list": "{}: models that can be pulled or are here, with size and licence; unfinished downloads",
    "models.show": "{model}: licence, limits, source, files with digests, card, and whether it fits this machine",
    "models.look": "{model}: hf:OWNER/NAME…: licence, card, commit and size, to agree to before a pull",
    "models.rm": "{model}: remove from the store",
    "ledger.balance": "{account?}: balance, held, earned, spent, in µcredits and as text",
    "ledger.history": "{limit?, before?}: newest first, each with id, kind, amount, counterparty, time",
    "ledger.show": "{id}: one order, channel or receipt (a unique prefix of at least 6 hex digits is enough)",
    "ledger.why": "{account?, by?, limit?}: a balance as a sum, by counterparty or day, and whether it adds up",
    "ledger.verify": "{signatures?}: every link, sum and, if asked, signature",
    "ledger.audit": "{signatures?}: invariants, supply, witnesses, and what looks odd in the whole federation",
    "ledger.prove": "{subject?, state?}: a proof file of an account at the last checkpoint, or of an order",
    "ledger.settle": "{}: deliver vouchers, close idle channels that owe this node, fetch the newest certificates",
    "ledger.accounts": "{}: the accounts that this node signs for, with balance, owner and recovery key",
    "ledger.account.create": "{name, credits?}: a sub-account whose key is kept here, with credits moved to it",
    "ledger.account.consent": "{account}: this owner's consent that another node's account becomes its sub-account",
    "ledger.account.attach": "{owner, consent}: make this node's account a sub-account of another's",
    "ledger.move": "{to, credits, source?}: credits from one account of an owner to another; all moves everything",
    "ledger.recovery": "{key, account?}: name the key that may replace an account's key",
    "ledger.recover": "{account, seed, name?}: take over an account by the secret of its recovery key",
    "ledger.rotate": "{account}: sign for a sub-account with a new key from now on",
    "ledger.epoch.status": "{}: the epoch in force, when it ends, and where each witness stands",
    "ledger.epoch.propose": "{after_restore?}: end the epoch now (witnesses only)",
    "ledger.epoch.accept": "{}: agree that the epoch may end before its time (witnesses only)",
    "federation.show": "{}: genesis, id, witnesses, issuers, whether this node is one of them",
    "federation.grant": "{to, credits}: issue credits (issuers only)",
    "pause": "{seconds?}: step aside for the owner, for a time or until resume; answered when the cards are free",
    "resume": "{anyway?}: end a pause by hand; anyway also overrules what asks for the machine now",
    "hardware": "{}: cards, who is on them, which models are loaded and what fits, and what the game guard sees",
    "stop": "{}: end the node as if by Ctrl-C",
}

GATEWAY_OPERATIONS: dict[str, str] = {  # what the HTTP side itself answers, on its own loop
    "keys.list": "{}: the API keys, without themselves, with what each may do, has spent this month, and last did",
    "keys.create": "{name, scopes?, expires_days?, requests_per_minute?, tokens_per_minute?, monthly_credits?, "
    "account?}: a new key, shown once. Scopes are all, models, or realms; account is a sub-account that pays",
    "keys.revoke": "{id}: remove a key",
    "limits.show": "{}: what keys, callers without one and addresses may ask",
    "page.link": "{}: a link that opens the page as the operator's: one use, ten minutes",
}

STREAMED: dict[str, str] = {
    "models.pull": "{model, name?, sha256?, agreed?}: fetch, verify and convert; progress objects {step, done_bytes, "
    "total_bytes}. An address needs sha256; a hub's model the commit whose licence was agreed to",
    "serving.start": "{model, realm?, slots?, device?, price_in?, price_out?, keep?}: load a model and serve it; steps "
    "looking, waiting, loading, ready; keep=true writes it into realms.yml",
    "models.verify": "{model?}: read all files and compare digests; `checked` comes last",
    "ledger.lines": "{account?}: every line of a balance's sum, some in each object's `lines`",
    "ledger.verifying": "{signatures?}: like ledger.verify, with progress; `report` comes last",
    "ledger.export": "{}: the ledger as a file, in pieces (`data`, base64)",
    "logs.tail": "{lines?, follow?, level?, query?}: the last lines of the log, then, to follow, each new one",
    "ledger.import": "{file}: take in an exported ledger that lies on the node's machine",
}


Method = Callable[..., Awaitable[Json]]
Streaming = Callable[..., Awaitable[None]]  # (emit, arguments by name)


async def dispatch(methods: Mapping[str, Method], name: str, arguments: Json) -> Json:
    """Run one operation, its arguments checked by its own annotations. Raises `OperationFailed`."""
    method = methods.get(name)
    if method is None:
        raise OperationFailed(f"there is no operation {name!r}; there are {', '.join(methods)}")
    try:
        return await validate_call(method)(**arguments)
    except (ValidationError, TypeError) as error:
        wanted = (OPERATIONS | GATEWAY_OPERATIONS)[name].split(":")[0]
        raise OperationFailed(f"{name} takes {wanted}: {_first_line(error)}") from None
    except ProtocolError as error:
        raise OperationFailed(str(error)) from None


async def dispatch_stream(streams: Mapping[str, Streaming], name: str, arguments: Json, emit: Emit) -> None:
    """Run one streamed operation, its arguments checked by its own annotations. Raises `OperationFailed`."""
    stream = streams.get(name)
    if stream is None:
        raise OperationFailed(f"{name!r} is no streamed operation; there are {', '.join(streams)}")
    try:
        await validate_call(stream)(emit, **arguments)
    except (ValidationError, TypeError) as error:
        raise OperationFailed(f"{name} takes {STREAMED[name].split(':')[0]}: {_first_line(error)}") from None
    except ProtocolError as error:
        raise OperationFailed(str(error)) from None


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
    return str(error).splitlines()[0]
