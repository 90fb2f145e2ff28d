"""Witnesses as processes of their own, and owners that settle channels with them as fast as they answer.

Rule: a witness is a real bookkeeper on a real LevelDB that answers what a node asks when it pays and is paid, request
by request. The owners' orders are signed beforehand, so that the witness is what is measured. The way between them is
a local socket with the frames of the protocol; what libp2p adds is measured by ledger_over_libp2p.py.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil
import trio
from ledger_orders import CREATED_MS, Order, Parties, certificate, channels, grants, parties

from node.bookkeeper import Bookkeeper, Settings
from node.ledger_peers import Answer, LedgerPeers, PeerUnreachable
from node.store import LevelStore
from protocol.codec import decode, decode_as, encode
from protocol.framing import FrameReader, frame
from protocol.ids import ChannelId, NodeId
from protocol.messages import (
    Certificates,
    FetchCertificates,
    FetchRecords,
    Message,
    Records,
    Rejected,
    RequestVote,
    StoreCertificate,
    Stored,
    Voted,
    WitnessSignature,
)

LANES = 32  # orders under way at a time: as many owners
WORKERS = 8
GRANT = 10**12  # µcredits for each payer
READ_BYTES = 65_536
START_SECONDS = 60.0
NEVER_MS = 10**15  # a witness of the benchmark settles nothing by itself


def socket_path(folder: Path, index: int) -> Path:
    """Where a witness listens."""
    return folder / f"{index}.sock"


def store_folder(folder: Path, index: int) -> Path:
    """Where a witness's ledger lies."""
    return folder / f"witness-{index}"


# --- a witness, in its own process -----------------------------------------------------------------------


class Sockets(LedgerPeers):
    """The other witnesses."""

    def __init__(self, folder: Path, who: Parties) -> None:
        self._paths = {witness.node: socket_path(folder, index) for index, witness in enumerate(who.witnesses)}

    async def ask(self, node: NodeId, request: Message, expected: type[Answer]) -> Answer | Rejected:
        """See `LedgerPeers`."""
        try:
            async with await trio.open_unix_socket(str(self._paths[node])) as stream:
                answer = decode(await Line(stream).ask(frame(encode(request))))
        except (OSError, trio.BrokenResourceError) as error:
            raise PeerUnreachable(str(error)) from None
        if not isinstance(answer, expected | Rejected):
            raise PeerUnreachable(f"answered {type(answer).__name__}")
        return answer

    def connected(self) -> Sequence[NodeId]:
        """See `LedgerPeers`."""
        return ()


def witness_process(folder: Path, index: int, witnesses: int) -> None:
    """Serve until killed."""
    trio.run(serve, folder, index, parties(witnesses, LANES, WORKERS))


async def serve(folder: Path, index: int, who: Parties) -> None:
    """One witness."""
    began = time.monotonic()
    book = Bookkeeper(
        LevelStore(store_folder(folder, index)),
        who.witnesses[index],
        who.federation,
        None,
        lambda: CREATED_MS + int((time.monotonic() - began) * 1_000),
        Sockets(folder, who),
        Settings(close_after_ms=NEVER_MS),
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(book.run)
        listening = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
        await listening.bind(str(socket_path(folder, index)))
        listening.listen(2 * LANES)

        async def handle(stream: trio.SocketStream) -> None:
            frames = FrameReader()
            with suppress(trio.BrokenResourceError):  # who asked did not wait
                async with stream:
                    while data := await stream.receive_some(READ_BYTES):
                        frames.receive_data(data)
                        while (payload := frames.next_frame()) is not None:
                            answer = await book.answer(who.payers[0].node, decode(payload))
                            await stream.send_all(frame(encode(answer)))

        await trio.serve_listeners(handle, [trio.SocketListener(listening)])


@contextmanager
def running(folder: Path, witnesses: int) -> Iterator[list[BaseProcess]]:
    """So many witnesses, started and stopped."""
    spawn = multiprocessing.get_context("spawn")
    processes = [
        spawn.Process(target=witness_process, args=(folder, index, witnesses), daemon=True)
        for index in range(witnesses)
    ]
    for process in processes:
        process.start()
    try:
        _wait_for(folder, processes)
        yield list(processes)
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _wait_for(folder: Path, processes: Sequence[BaseProcess]) -> None:
    until = time.monotonic() + START_SECONDS
    while not all(socket_path(folder, index).exists() for index in range(len(processes))):
        if time.monotonic() > until or not all(process.is_alive() for process in processes):
            raise SystemExit("a witness did not start")
        time.sleep(0.05)


# --- the owners --------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Line:
    """One request and one answer at a time, and how many bytes went each way."""

    stream: trio.SocketStream
    frames: FrameReader = field(default_factory=FrameReader)
    requests: int = 0
    sent: int = 0
    received: int = 0

    async def ask(self, request: bytes) -> bytes:
        """The answer to a framed request."""
        self.requests += 1
        self.sent += len(request)
        await self.stream.send_all(request)
        while (payload := self.frames.next_frame()) is None:
            data = await self.stream.receive_some(READ_BYTES)
            if not data:
                raise trio.BrokenResourceError("the witness is gone")
            self.received += len(data)
            self.frames.receive_data(data)
        return payload


@dataclass(slots=True)
class Owner:
    """A payer and its workers: what their nodes ask when they open and settle a channel."""

    who: Parties
    lines: list[Line]
    position: int = 0  # of the last certificate in the first witness's log

    async def settle(self, orders: Sequence[tuple[Order, Order]]) -> None:
        """Open and close channels, one after the other."""
        for hold, close in orders:
            await self.certify(hold)
            await self._learn(hold)
            if len(self.lines) > 1:  # the worker fetches the hold, and makes it final itself
                records = await self._ask(FetchRecords((ChannelId(hold.id),)), Records)
                await self._store(records[0].records[0])
            else:
                await self._learn(hold)
            await self.certify(close)
            await self._learn(close)

    async def certify(self, order: Order) -> None:
        """Votes, certificate, stored."""
        votes = await self._ask(RequestVote(order.body, order.signature), Voted)
        quorum = votes[: self.who.federation.quorum]
        listed = [WitnessSignature(vote.witness, vote.signature) for vote in quorum]
        await self._store(certificate(order, listed))

    async def _store(self, data: bytes) -> None:
        self.position = (await self._ask(StoreCertificate(data), Stored))[0].position

    async def _learn(self, order: Order) -> None:
        """With one witness an owner reads its order back from the log."""
        if len(self.lines) == 1:
            found = await self._ask(FetchCertificates(self.position, 1), Certificates)
            assert order.body in found[0].certificates[0]

    async def _ask(self, request: Message, expected: type[Answer]) -> list[Answer]:
        """What all witnesses answer."""
        asked, answers = frame(encode(request)), dict[int, Answer]()

        async def one(index: int) -> None:
            answers[index] = decode_as(expected, await self.lines[index].ask(asked))

        if len(self.lines) == 1:
            await one(0)
        else:
            async with trio.open_nursery() as nursery:
                for index in range(len(self.lines)):
                    nursery.start_soon(one, index)
        return [answers[index] for index in range(len(self.lines))]


@dataclass(frozen=True, slots=True)
class Settled:
    """One run. Bytes are of all witnesses together, with the frames."""

    witnesses: int
    queries_a_channel: int
    channels: int
    seconds: float
    witness_cpu_seconds: float  # of the busiest witness
    requests: int
    bytes_sent: int
    bytes_received: int
    disk_bytes: int  # of one witness

    @property
    def queries(self) -> int:
        """Settled queries."""
        return self.channels * self.queries_a_channel


async def _settle_all(folder: Path, who: Parties, prepared: Sequence[Sequence[tuple[Order, Order]]]) -> list[Line]:
    lines: list[Line] = []
    async with trio.open_nursery() as nursery:
        for orders in prepared:
            streams = [await trio.open_unix_socket(str(socket_path(folder, i))) for i in range(len(who.witnesses))]
            owner = Owner(who, [Line(stream) for stream in streams])
            lines += owner.lines
            nursery.start_soon(owner.settle, orders)
    for line in lines:
        await line.stream.aclose()
    return lines


async def _grant_all(folder: Path, who: Parties) -> None:
    streams = [await trio.open_unix_socket(str(socket_path(folder, i))) for i in range(len(who.witnesses))]
    owner = Owner(who, [Line(stream) for stream in streams])
    for order in grants(who, GRANT):
        await owner.certify(order)
    for stream in streams:
        await stream.aclose()


def settled(folder: Path, witnesses: int, queries: int, count: int) -> Settled:
    """Settle `count` channels of so many queries with so many witnesses. Blocks; `folder` is empty."""
    who = parties(witnesses, LANES, WORKERS)
    prepared = [list(channels(who, payer, count // LANES, queries)) for payer in range(LANES)]
    with running(folder, witnesses) as processes:
        trio.run(_grant_all, folder, who)
        watched = [psutil.Process(process.pid) for process in processes]
        before = [cpu_seconds(process) for process in watched]
        began = time.perf_counter()
        lines = trio.run(_settle_all, folder, who, prepared)
        seconds = time.perf_counter() - began
        used = [cpu_seconds(process) - cpu for process, cpu in zip(watched, before, strict=True)]
    return Settled(
        witnesses,
        queries,
        count // LANES * LANES,
        seconds,
        max(used),
        sum(line.requests for line in lines),
        sum(line.sent for line in lines),
        sum(line.received for line in lines),
        folder_bytes(store_folder(folder, 0)),
    )


def cpu_seconds(process: psutil.Process) -> float:
    """Processor time that a process has used."""
    times = process.cpu_times()
    return float(times.user + times.system)


def folder_bytes(folder: Path) -> int:
    """What lies in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
