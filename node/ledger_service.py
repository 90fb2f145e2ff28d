"""The ledger on the network: serving it, and asking the witness.

Rule: one request, one answer, each within limits. A peer that sends what is no request loses that stream and nothing
else. A witness on this node is called directly, never through the network.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from node.bookkeeper import Bookkeeper, Settings
from node.federation import HOME_GRANT, home_federation, ledger_folder, load_issuer
from node.federation import create_federation as create_federation
from node.federation import install_genesis as install_genesis
from node.federation import load_genesis as load_genesis
from node.message_stream import MessageStream
from node.network import Network, NetworkError, Stream, StreamReset
from node.store import LevelStore
from node.witness_port import WitnessPort, WitnessUnreachable
from protocol import params
from protocol.errors import ErrorCode, Malformed, Refused
from protocol.ids import ChannelId, NodeId, short
from protocol.messages import (
    Certificates,
    FetchCertificates,
    FetchGenesis,
    GenesisAnswer,
    Message,
    Pay,
    Rejected,
    RequestVote,
    Settled,
    StoreCertificate,
    Stored,
    Voted,
)
from protocol.signing import Signer

if TYPE_CHECKING:
    from trio_typing import TaskStatus

log = logging.getLogger("mtor.ledger")

ANSWER_SECONDS = 10.0  # dialling, the request, the witness's disk, the answer
REQUEST_SECONDS = 30.0  # a stream without a request for this long is closed
DELIVERY_SECONDS = 2.0  # between two tries to bring a worker a voucher that it may have missed
SYNC_SECONDS = 30.0  # between two looks at the witness's log
REQUESTS_A_STREAM = 1_024
STREAMS_A_PEER = 4
MAX_REQUEST_BYTES = params.MAX_RECORD_BYTES + 128  # the largest request is one record and its signature

Answer = TypeVar("Answer", bound=Message)
Addresses = Callable[[NodeId], Sequence[str]]


class RemoteWitness(WitnessPort):
    """The federation's witnesses over the network: a stream for each question."""

    def __init__(self, network: Network, witnesses: Sequence[NodeId], addresses: Addresses) -> None:
        """`addresses` gives what is known of a node's multiaddresses at the moment; empty if it is connected."""
        self._network = network
        self._witnesses = tuple(witnesses)
        self._addresses = addresses

    async def vote(self, index: int, request: RequestVote) -> Voted | Rejected:
        """See `WitnessPort`."""
        return await self._ask(index, request, Voted)

    async def store(self, index: int, request: StoreCertificate) -> Stored | Rejected:
        """See `WitnessPort`."""
        return await self._ask(index, request, Stored)

    async def fetch(self, index: int, request: FetchCertificates) -> Certificates | Rejected:
        """See `WitnessPort`."""
        return await self._ask(index, request, Certificates)

    async def _ask(self, index: int, request: Message, expected: type[Answer]) -> Answer | Rejected:
        witness = self._witnesses[index]
        answer: Message | None = None
        try:
            with trio.move_on_after(ANSWER_SECONDS):
                answer = await ask(self._network, witness, self._addresses(witness), request)
        except (NetworkError, Malformed) as error:
            raise WitnessUnreachable(f"{short(witness)}: {error}") from None
        if isinstance(answer, expected | Rejected):
            return answer
        why = f"no answer within {ANSWER_SECONDS:.0f} s" if answer is None else f"answered {type(answer).__name__}"
        raise WitnessUnreachable(f"{short(witness)}: {why}")


async def ask(network: Network, peer: NodeId, addresses: Sequence[str], request: Message) -> Message:
    """One question to a peer's ledger service. Raises `NetworkError` or `Malformed`; the caller sets the time-out."""
    stream = MessageStream(await network.open_stream(peer, params.LEDGER_PROTOCOL, addresses))
    try:
        await stream.send(request)
        answer = await stream.receive()
        if answer is None:
            raise StreamReset("the stream ended without an answer")
    except BaseException:
        with trio.CancelScope(shield=True):
            await stream.reset()
        raise
    await stream.close()
    return answer


class LedgerService:
    """Answers peers from the bookkeeper, and keeps the local replica fresh."""

    def __init__(self, bookkeeper: Bookkeeper, network: Network) -> None:
        self._bookkeeper = bookkeeper
        self._network = network
        self._streams: Counter[NodeId] = Counter()

    async def run(self, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve and sync until cancelled. The bookkeeper must be running."""
        await endow(self._bookkeeper, self._network.node)
        self._network.serve(params.LEDGER_PROTOCOL, self.serve)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_delivering)
            task_status.started()
            reached = True
            while True:
                reached = await self._sync(reached)
                await trio.sleep(SYNC_SECONDS)

    async def _keep_delivering(self) -> None:
        while True:
            await trio.sleep(DELIVERY_SECONDS)
            await self.deliver_vouchers()

    async def deliver_vouchers(self) -> int:
        """Bring connected workers the last vouchers that they may have missed. How many are still undelivered."""
        connected = {peer.node for peer in self._network.peers()}
        for worker, channel, pay in self._bookkeeper.unheard_vouchers():
            if worker in connected:
                await self._deliver(worker, channel, pay)
        return len(self._bookkeeper.unheard_vouchers())

    async def _deliver(self, worker: NodeId, channel: ChannelId, pay: Pay) -> None:
        try:
            with trio.move_on_after(ANSWER_SECONDS):
                answer = await ask(self._network, worker, (), pay)
                if isinstance(answer, Settled):
                    self._bookkeeper.voucher_heard(channel, answer.cumulative)
        except (NetworkError, Malformed) as error:
            log.debug("voucher for %s not delivered: %s", short(worker), error)

    async def _sync(self, reached_before: bool) -> bool:
        """Fetch what is new; say once when that stops to work. True if it worked."""
        try:
            await self._bookkeeper.sync()
        except Refused as refusal:
            if reached_before:
                log.warning("the ledger is not up to date: %s", refusal)
            return False
        return True

    async def serve(self, stream: Stream) -> None:
        """Answer one peer's requests on one stream."""
        if self._streams[stream.peer] >= STREAMS_A_PEER:
            await stream.reset()
            return
        self._streams[stream.peer] += 1
        messages = MessageStream(stream, MAX_REQUEST_BYTES)
        try:
            await self._answer_all(messages)
            await messages.close()
        except (StreamReset, Malformed) as error:
            log.debug("ledger stream ended: %s", error)
            await messages.reset()
        finally:
            self._streams[stream.peer] -= 1
            if not self._streams[stream.peer]:
                del self._streams[stream.peer]

    async def _answer_all(self, messages: MessageStream) -> None:
        for _ in range(REQUESTS_A_STREAM):
            request: Message | None = None
            with trio.move_on_after(REQUEST_SECONDS):
                request = await messages.receive()
            if request is None:
                return
            await messages.send(await self._answer(messages.peer, request))

    async def _answer(self, peer: NodeId, request: Message) -> Message:
        answer = _ANSWERS.get(type(request))
        if answer is None:
            return Rejected(int(ErrorCode.MALFORMED), f"a {type(request).__name__} is no request to a ledger")
        return await answer(self._bookkeeper, peer, request)


async def _vote(bookkeeper: Bookkeeper, peer: NodeId, request: RequestVote) -> Message:
    return await bookkeeper.vote(request)


async def _store(bookkeeper: Bookkeeper, peer: NodeId, request: StoreCertificate) -> Message:
    return await bookkeeper.store(request)


async def _fetch(bookkeeper: Bookkeeper, peer: NodeId, request: FetchCertificates) -> Message:
    return bookkeeper.fetch(request)


async def _genesis(bookkeeper: Bookkeeper, peer: NodeId, request: FetchGenesis) -> Message:
    return GenesisAnswer(bookkeeper.genesis_body)


async def _voucher(bookkeeper: Bookkeeper, peer: NodeId, pay: Pay) -> Message:
    try:
        return Settled(await bookkeeper.hear_voucher(pay, peer))
    except Refused as refusal:
        return Rejected(int(refusal.code), refusal.message[: params.MAX_REASON_BYTES // 4])


_ANSWERS: dict[type[Message], Callable[[Bookkeeper, NodeId, Any], Awaitable[Message]]] = {
    RequestVote: _vote,
    StoreCertificate: _store,
    FetchCertificates: _fetch,
    FetchGenesis: _genesis,
    Pay: _voucher,
}


async def endow(bookkeeper: Bookkeeper, node: NodeId) -> None:
    """Give the creator of a federation its first credits. Does nothing in a ledger that has begun."""
    if bookkeeper.is_issuer and bookkeeper.is_witness and bookkeeper.empty:
        genesis = bookkeeper.genesis
        await bookkeeper.grant(node, min(HOME_GRANT, genesis.supply_cap // len(genesis.issuers)))


def open_bookkeeper(
    data_folder: Path, name: str, signer: Signer, network: Network, addresses: Addresses, settings: Settings
) -> Bookkeeper:
    """The bookkeeper of this node's federation; a home federation named `name` at the first start.

    Raises `FederationError` or `StoreError`, each with its fix. `Bookkeeper.run` closes the store.
    """
    federation = home_federation(data_folder, name)
    return Bookkeeper(
        LevelStore(ledger_folder(data_folder, federation)),
        signer,
        federation,
        load_issuer(data_folder, federation),
        lambda: time.time_ns() // 1_000_000,
        RemoteWitness(network, federation.genesis.witnesses, addresses),
        settings,
    )
