"""The ledger on the network: serving it, and asking the witness.

Rule: one request, one answer, each within limits. A peer that sends what is no request loses that stream and nothing
else. A witness on this node is called directly, never through the network.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import trio

from node.bookkeeper import Bookkeeper, Settings, bookkeeper_of
from node.federation import HOME_GRANT, home_federation, ledger_folder
from node.federation import create_federation as create_federation
from node.federation import install_genesis as install_genesis
from node.federation import load_genesis as load_genesis
from node.ledger_peers import LedgerPeers, PeerUnreachable
from node.message_stream import MessageStream
from node.network import Network, NetworkError, Stream, StreamReset
from node.store import LevelStore
from protocol import params
from protocol.codec import decode_as
from protocol.errors import Malformed, Refused
from protocol.ids import ChannelId, NodeId, peer_id, short
from protocol.messages import Evidence, Message, Pay, Rejected, Settled
from protocol.signing import Signer

if TYPE_CHECKING:
    from trio_typing import TaskStatus

log = logging.getLogger("mtor.ledger")

ANSWER_SECONDS = 10.0  # dialling, the request, the witness's disk, the answer
REQUEST_SECONDS = 30.0  # a stream without a request for this long is closed
KEPT_SECONDS = 10.0  # by who asks, before that
STREAMS_KEPT = 4  # to one node, while nothing is asked
DELIVERY_SECONDS = 2.0  # between two tries to bring a worker a voucher that it may have missed
SYNC_SECONDS = 30.0  # between two looks at the witnesses' logs
STARTING_SECONDS = 3.0  # to find the first peers
RETRY_SECONDS = 5.0  # the same while they cannot be read
REQUESTS_A_STREAM = 1_024
STREAMS_A_PEER = 16  # a witness asks for many owners' orders at a time

Answer = TypeVar("Answer", bound=Message)
Addresses = Callable[[NodeId], Sequence[str]]


class NetworkPeers(LedgerPeers):
    """Other nodes' ledgers over the network. A stream has one question at a time, and is kept a while for the next:
    to open one costs several times as much as to ask."""

    def __init__(self, network: Network, addresses: Addresses) -> None:
        """`addresses` gives what is known of a node's multiaddresses at the moment; empty if it is connected."""
        self._network = network
        self._addresses = addresses
        self._idle: dict[NodeId, list[tuple[float, MessageStream]]] = {}  # since when

    def connected(self) -> Sequence[NodeId]:
        """See `LedgerPeers`."""
        return [peer.node for peer in self._network.peers()]

    async def ask(self, node: NodeId, request: Message, expected: type[Answer]) -> Answer | Rejected:
        """See `LedgerPeers`."""
        await self._close_stale()
        try:
            with trio.move_on_after(ANSWER_SECONDS):
                return await self._on_idle_stream(node, request, expected) or await self._on_new_stream(
                    node, request, expected
                )
        except (NetworkError, Malformed) as error:
            raise PeerUnreachable(str(error).removeprefix(f"{peer_id(node)} ")) from None
        raise PeerUnreachable(f"no answer within {ANSWER_SECONDS:.0f} s")

    async def _on_idle_stream(self, node: NodeId, request: Message, expected: type[Answer]) -> Answer | Rejected | None:
        """None if there is no stream, or its other end is gone: asking again changes nothing."""
        idle = self._idle.get(node)
        if not idle:
            return None
        _, stream = idle.pop()
        try:
            return await self._exchange(node, stream, request, expected)
        except StreamReset:
            return None

    async def _on_new_stream(self, node: NodeId, request: Message, expected: type[Answer]) -> Answer | Rejected:
        stream = MessageStream(await self._network.open_stream(node, params.LEDGER_PROTOCOL, self._addresses(node)))
        return await self._exchange(node, stream, request, expected)

    async def _exchange(
        self, node: NodeId, stream: MessageStream, request: Message, expected: type[Answer]
    ) -> Answer | Rejected:
        answer = await _exchange(stream, request)
        if not isinstance(answer, expected | Rejected):
            await stream.reset()
            raise PeerUnreachable(f"answered {type(answer).__name__}")
        idle = self._idle.setdefault(node, [])
        if len(idle) < STREAMS_KEPT:
            idle.append((trio.current_time(), stream))
        else:
            await stream.close()
        return answer

    async def _close_stale(self) -> None:
        """Give streams back that nobody asked on for a while."""
        oldest = trio.current_time() - KEPT_SECONDS
        for node, idle in list(self._idle.items()):
            self._idle[node] = [kept for kept in idle if kept[0] >= oldest]
            for since, stream in idle:
                if since < oldest:
                    await stream.close()


async def ask(network: Network, peer: NodeId, addresses: Sequence[str], request: Message) -> Message:
    """One question to a peer's ledger service. Raises `NetworkError` or `Malformed`; the caller sets the time-out."""
    stream = MessageStream(await network.open_stream(peer, params.LEDGER_PROTOCOL, addresses))
    answer = await _exchange(stream, request)
    await stream.close()
    return answer


async def _exchange(stream: MessageStream, request: Message) -> Message:
    """One question and its answer. The stream is of no more use if this raises."""
    try:
        await stream.send(request)
        answer = await stream.receive()
        if answer is None:
            raise StreamReset("the stream ended without an answer")
    except BaseException:
        with trio.CancelScope(shield=True):
            await stream.reset()
        raise
    return answer


class LedgerService:
    """Answers peers from the bookkeeper, and keeps the local replica fresh."""

    def __init__(self, bookkeeper: Bookkeeper, network: Network) -> None:
        self._bookkeeper = bookkeeper
        self._network = network
        self._streams: Counter[NodeId] = Counter()
        self._began = 0.0
        self._told = False
        self._behind = ""  # why the last look at the witnesses failed

    async def run(self, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve and sync until cancelled. The bookkeeper must be running."""
        if self._bookkeeper.genesis.faults == 0:
            await endow(self._bookkeeper, self._network.node)
        self._network.serve(params.LEDGER_PROTOCOL, self.serve)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_endowing)
            nursery.start_soon(self._keep_delivering)
            await nursery.start(self._hear_evidence)
            nursery.start_soon(self._keep_telling)
            task_status.started()
            self._began = trio.current_time()
            while True:
                await self._sync()
                await trio.sleep(RETRY_SECONDS if self._behind else SYNC_SECONDS)

    async def _keep_endowing(self) -> None:
        """The creator's first credits, as soon as a quorum of witnesses can be reached."""
        while needs_endowment(self._bookkeeper):
            try:
                await self._bookkeeper.sync()
                await endow(self._bookkeeper, self._network.node)
            except Refused as refusal:
                log.info("no first grant yet: %s", refusal)
                await trio.sleep(DELIVERY_SECONDS)

    async def _keep_delivering(self) -> None:
        while True:
            await trio.sleep(DELIVERY_SECONDS)
            await self.deliver_vouchers()

    async def _hear_evidence(self, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep proofs that others gossip. Each was checked before it was forwarded."""
        evidence = self._bookkeeper.evidence
        async with self._network.subscribe(params.EVIDENCE_TOPIC, evidence.judge) as accepted:
            task_status.started()
            async for data in accepted:
                await evidence.take_all(decode_as(Evidence, data))

    async def _keep_telling(self) -> None:
        """Gossip the proofs that this node found."""
        while True:
            await trio.sleep(DELIVERY_SECONDS)
            for message in self._bookkeeper.evidence.to_tell():
                try:
                    await self._network.publish(params.EVIDENCE_TOPIC, message)
                except NetworkError as error:
                    log.info("a proof was not gossiped: %s", error)

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

    async def _sync(self) -> None:
        """Fetch what is new; say once when that stops to work."""
        try:
            await self._bookkeeper.sync()
            self._behind, self._told = "", False
        except Refused as refusal:
            self._behind = refusal.message
            starting = trio.current_time() - self._began < STARTING_SECONDS  # nobody is connected yet
            if not (self._told or starting):
                log.warning("the ledger is not up to date: %s", refusal.message)
                self._told = True

    def problems(self) -> list[str]:
        """What is wrong with the ledger now, each with the fix."""
        known = [f"the ledger is not up to date: {self._behind}"] if self._behind else []
        status = self._bookkeeper.epochs.status()
        if status.abstaining:
            fix = "begin anew with `mtor ledger epoch propose --after-restore`"
            if self._bookkeeper.genesis.faults:
                fix = "end it with `mtor ledger epoch propose` on another witness"
            known.append(f"this witness's ledger was set back: it signs nothing until the epoch ends; {fix}")
        elif status.witness and status.due and not status.frozen and self._bookkeeper.genesis.faults:
            known.append(f"epoch {status.epoch} is due: end it with `mtor ledger epoch propose` on one witness")
        return known

    async def serve(self, stream: Stream) -> None:
        """Answer one peer's requests on one stream."""
        if self._streams[stream.peer] >= STREAMS_A_PEER:
            await stream.reset()
            return
        self._streams[stream.peer] += 1
        messages = MessageStream(stream, params.MAX_REQUEST_BYTES)
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
            await messages.send(await self._bookkeeper.answer(messages.peer, request))


def needs_endowment(bookkeeper: Bookkeeper) -> bool:
    """True on the creator's node before anything has happened in its federation, as far as is known here."""
    return bookkeeper.is_issuer and bookkeeper.is_witness and bookkeeper.empty


async def endow(bookkeeper: Bookkeeper, node: NodeId) -> None:
    """Give the creator of a federation its first credits. Does nothing in a ledger that has begun. Raises `Refused`."""
    if needs_endowment(bookkeeper):
        genesis = bookkeeper.genesis
        first = min(HOME_GRANT, genesis.supply_cap // len(genesis.issuers))
        await bookkeeper.grant(node, first, only_first=True)


def open_bookkeeper(
    data_folder: Path, name: str, signer: Signer, network: Network, addresses: Addresses, settings: Settings
) -> Bookkeeper:
    """The bookkeeper of this node's federation; a home federation named `name` at the first start.

    Raises `FederationError` or `StoreError`, each with its fix. `Bookkeeper.run` closes the store.
    """
    federation = home_federation(data_folder, name)
    store = LevelStore(ledger_folder(data_folder, federation))
    return bookkeeper_of(data_folder, federation, signer, store, NetworkPeers(network, addresses), settings)
