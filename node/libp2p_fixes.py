"""Guarded work-arounds for py-libp2p 0.8.1's defects, and nothing else.

Rule: `apply()` replaces methods of that one version by private name and refuses any other. Each fix says its defect,
its symptom and its cure, and has one regression test in tests/net/test_libp2p_fixes.py. When a new version cures a
defect, its fix and its test are deleted together.
"""

from __future__ import annotations

import logging
import random
import struct
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable
from importlib.metadata import version
from typing import Any, Final

import trio
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.io.trio import TrioTCPStream
from libp2p.network.auto_connector import AutoConnector
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.network.swarm import Swarm
from libp2p.protocol_muxer.exceptions import MultiselectCommunicatorError
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.stream_muxer.exceptions import MuxedStreamEOF, MuxedStreamError, MuxedStreamReset
from libp2p.stream_muxer.yamux import yamux

log = logging.getLogger("mtor.libp2p")

SUPPORTED_VERSION: Final = "0.8.1"
MIB: Final = 1_024 * 1_024

MAX_UPGRADING: Final = 256  # connections that have not proven who they are, all addresses together
MAX_UPGRADING_PER_ADDRESS: Final = 32  # of one IP address; a home behind one router stays far below
OUTBOUND_SHARE: Final = 5  # one connection in five is kept for our own dials
MAX_INBOUND_STREAMS: Final = 512  # open at once on one connection
MAX_OUTBOUND_STREAMS: Final = 4_096  # the same for streams we open
MAX_UNREAD_BYTES: Final = 32 * MIB  # of one connection; honest peers stop at their windows, far below
UNREAD_CHECK_BYTES: Final = 1 * MIB  # how often the sum is worked out
MAX_FRAME_PAYLOAD: Final = yamux.MAX_MESSAGE_SIZE - yamux.HEADER_SIZE
BATCH_BYTES: Final = 32 * 1_024  # of frames that leave together; more waits for the next batch
READ_AHEAD_BYTES: Final = 64 * 1_024  # taken from a socket at once
FRAME_WRITE_TIMEOUT: Final = 10.0  # seconds for one frame; then the connection is lost
SLOW_READER_TIMEOUT: Final = 30.0  # seconds that a writer waits for its reader
WINDOW_POLL: Final = 0.01  # seconds
PING_INTERVAL: Final = 3.0  # seconds
PING_TIMEOUT: Final = 6.0  # seconds; a node that loads a model on 2 cores may be mute for 2 or 3
CLOSE_TIMEOUT: Final = 5.0  # seconds
LAZY_PEERS: Final = 12  # at least, outside of the mesh, that are told at each heartbeat which messages are here
LAZY_SHARE: Final = 0.25  # of those outside of the mesh, if that is more


class UnsupportedLibp2p(Exception):
    """The installed libp2p is not the one these fixes were written for."""


def apply() -> None:
    """Put all fixes in place; again is harmless. Raises `UnsupportedLibp2p`."""
    installed = version("libp2p")
    if installed != SUPPORTED_VERSION:
        raise UnsupportedLibp2p(
            f"libp2p {installed} is installed, this node needs exactly {SUPPORTED_VERSION}; "
            f"run: pip install libp2p=={SUPPORTED_VERSION}"
        )
    # It warns of whatever a stranger sends, with tracebacks: a way to fill a disk. What matters is logged as "mtor.…".
    logging.getLogger("libp2p").setLevel(logging.CRITICAL)
    _replace(Swarm, "_handle_inbound_connection", _handle_inbound_connection)
    _replace(SwarmConn, "_handle_muxed_stream", _handle_muxed_stream)
    _replace(SwarmConn, "start", _start_connection)
    _replace(MultiselectCommunicator, "read", _read_token)
    _replace(yamux.Yamux, "__init__", _new_muxer)
    _replace(yamux.Yamux, "open_stream", _open_stream)
    _replace(yamux.Yamux, "start", _start_muxer)
    _replace(yamux.Yamux, "_read_data_body", _read_data_body)
    _replace(yamux.Yamux, "_write_frame", _write_frame)
    _replace(yamux.Yamux, "_measure_rtt_loop", _keep_alive)
    _replace(yamux.YamuxStream, "read", _read_stream)
    _replace(yamux.YamuxStream, "_auto_tune_and_send_window_update", _update_window)
    _replace(TrioTCPStream, "read", _read_socket)
    _replace(yamux.YamuxStream, "write", _write_stream)
    _replace(AutoConnector, "maybe_connect", _dial_nobody)
    _replace(GossipSub, "gossip_heartbeat", _tell_of_messages)
    _replace(GossipSub, "_get_peers_to_send", _peers_to_send)


_ORIGINAL: Final[dict[tuple[type, str], Any]] = {}  # what `apply` replaced; written once


def _replace(owner: type, name: str, fix: Callable[..., Any]) -> None:
    if (owner, name) not in _ORIGINAL:
        _ORIGINAL[owner, name] = getattr(owner, name)
        setattr(owner, name, fix)


def _original(owner: type, name: str) -> Any:
    return _ORIGINAL[owner, name]


# --- inbound connections ------------------------------------------------------------------------------


async def _handle_inbound_connection(self: Any, raw: Any, listening_on: Any) -> None:
    """Defect: an inbound slot is held until the swarm ends, also by connections that never say a word.
    Symptom: deaf after 250 inbound connections; 300 silent TCP connections keep newcomers out.
    Cure: a slot only while a connection upgrades, limited per address; then `max_connections` rules, less a
    share for our own dials.
    """
    address = _remote_host(raw)
    upgrading = _upgrading(self)
    full = upgrading.total() >= MAX_UPGRADING or upgrading[address] >= MAX_UPGRADING_PER_ADDRESS
    if full or _inbound_count(self) >= _inbound_limit(self):
        log.debug("refused a connection from %s: too many", address)
        await _quietly(raw.close)
        return
    upgrading[address] += 1
    try:
        muxed = await self.upgrade_inbound_raw_conn(RawConnection(raw, False), listening_on)
    except Exception as error:
        log.debug("a connection from %s was not upgraded: %r", address, error)
        await _quietly(raw.close)
        return
    finally:
        upgrading[address] -= 1
        if not upgrading[address]:
            del upgrading[address]
    await muxed.event_closed.wait()  # the listener closes the socket when this returns


def _upgrading(swarm: Any) -> Counter[str]:
    if not hasattr(swarm, "mtor_upgrading"):
        swarm.mtor_upgrading = Counter()
    upgrading: Counter[str] = swarm.mtor_upgrading
    return upgrading


def _remote_host(raw: Any) -> str:
    remote = raw.get_remote_address()
    return str(remote[0]) if remote else "unknown"


def _inbound_count(swarm: Any) -> int:
    return sum(connection.direction.name == "INBOUND" for connection in swarm.get_connections())


def _inbound_limit(swarm: Any) -> int:
    most: int = swarm.connection_config.max_connections
    return max(1, most - most // OUTBOUND_SHARE)


async def _start_connection(self: Any) -> None:
    """Defect: an error in a connection's accept loop ends the swarm's task manager.
    Symptom: one peer's connection takes the whole host with it.
    Cure: the error ends that connection.
    """
    try:
        await _original(SwarmConn, "start")(self)
    except Exception as error:
        log.warning("a connection failed and is closed: %r", error)
        await _quietly(self.close)


async def _start_muxer(self: Any) -> None:
    """The same defect, symptom and cure, one layer below: yamux's own tasks."""
    try:
        await _original(yamux.Yamux, "start")(self)
    except Exception as error:
        log.warning("a connection's multiplexer failed and is closed: %r", error)
        await _quietly(self.close)


async def _dial_nobody(self: Any) -> None:
    """Defect: the swarm dials peers of its store by itself, up to half of `max_connections`, whatever the watermarks.
    Symptom: connections that nobody asked for, also to peers that were just dropped.
    Cure: it dials nobody; whom to dial is the router's and the bootstrap keeper's business.
    """


# --- inbound streams ----------------------------------------------------------------------------------


async def _handle_muxed_stream(self: Any, muxed: Any) -> None:
    """Defect: any exception of a stream's negotiation or handler escapes into the host's nursery; streams are not
    counted; a stream whose handler is done stays in the tables until its peer is done too.
    Symptom: malformed multistream tokens, garbage on the pubsub stream or a bug in a handler kill the node, or leave a
    connection that no longer accepts streams; 20,000 idle streams.
    Cure: the exception resets that stream alone; streams over the cap are reset; a handler's end ends its stream.
    """
    if getattr(self, "mtor_streams", 0) >= MAX_INBOUND_STREAMS:
        await _quietly(muxed.reset)
        return
    self.mtor_streams = getattr(self, "mtor_streams", 0) + 1
    try:
        await _original(SwarmConn, "_handle_muxed_stream")(self, muxed)
        await _quietly(lambda: _abandon(muxed))
    except Exception as error:
        log.debug("a stream from %s failed and is reset: %r", self.muxed_conn.peer_id, error)
        await _quietly(muxed.reset)
    finally:
        self.mtor_streams -= 1


async def _abandon(muxed: Any) -> None:
    """Close a stream for good: what its peer may still send is dropped on arrival."""
    if not muxed.send_closed:
        await muxed.close()
    if muxed.closed:
        return
    muxed.recv_closed = muxed.closed = True
    if buffer := muxed.conn.stream_buffers.get(muxed.stream_id):
        buffer.clear()
    await muxed.conn._finalize_stream(muxed, fully_closed=True)


async def _read_token(self: Any) -> str:
    """Defect: a multistream token that is not UTF-8 raises `UnicodeDecodeError`, which no caller expects.
    Symptom: a peer's malformed answer kills the task that asked, whoever that is.
    Cure: the error that callers do expect.
    """
    try:
        token: str = await _original(MultiselectCommunicator, "read")(self)
    except ValueError as error:
        raise MultiselectCommunicatorError("a malformed multistream token") from error
    return token


# --- yamux: limits ------------------------------------------------------------------------------------


def _new_muxer(self: Any, *arguments: Any, **named: Any) -> None:
    """Defect: 256 outbound streams a connection, then `open_stream` waits for ever.
    Symptom: the 257th query to a peer hangs without an error.
    Cure: a higher limit, and (in `_open_stream`) an error when it is reached.
    """
    _original(yamux.Yamux, "__init__")(self, *arguments, **named)
    self.stream_backlog_limit = MAX_OUTBOUND_STREAMS
    self.stream_backlog_semaphore = trio.Semaphore(MAX_OUTBOUND_STREAMS)


async def _open_stream(self: Any) -> Any:
    """See `_new_muxer`."""
    if self.stream_backlog_semaphore.value == 0:
        raise MuxedStreamError(f"{MAX_OUTBOUND_STREAMS} streams are open on this connection")
    return await _original(yamux.Yamux, "open_stream")(self)


class _TooMuchUnread(trio.TooSlowError):
    """A peer ignores windows. This type of error is the one that makes yamux close the connection."""


async def _read_data_body(self: Any, length: int) -> bytes:
    """Defect: receive windows are announced and not enforced.
    Symptom: a hostile peer fills our memory with bytes that nobody reads.
    Cure: the connection is closed when all its unread bytes pass a limit.
    """
    self.mtor_arrived = getattr(self, "mtor_arrived", 0) + length
    if self.mtor_arrived >= UNREAD_CHECK_BYTES:
        self.mtor_arrived = 0
        if sum(len(buffer) for buffer in self.stream_buffers.values()) > MAX_UNREAD_BYTES:
            log.warning("%s sends more than is read; the connection is closed", self.peer_id)
            raise _TooMuchUnread
    body: bytes = await _original(yamux.Yamux, "_read_data_body")(self, length)
    return body


# --- yamux: writing and reading -----------------------------------------------------------------------


async def _write_frame(self: Any, data: bytes) -> None:
    """Defect: a write that is cancelled leaves half a frame on the wire, or a nonce used and nothing sent. And each
    frame is encrypted and given to the system by itself.
    Symptom: one cancelled query breaks the connection and every stream on it. With many streams a node's time goes
    into system calls for a few bytes each.
    Cure: a frame is written whole once begun; cancellation takes effect before it. Frames that wait for their turn
    leave together. A peer that takes none within `FRAME_WRITE_TIMEOUT` has lost the connection.
    """
    frames = _waiting_frames(self)
    frame = _Frame(data)
    frames.append(frame)
    try:
        async with self._write_lock:
            if not frame.taken:
                await _write_batch(self, frames, frame)
    finally:
        if not frame.taken:
            frames.remove(frame)
    if frame.error is not None:
        raise frame.error
    await trio.lowlevel.cancel_shielded_checkpoint()


class _Frame:
    """Bytes that wait to be written; `taken` once they are on their way."""

    __slots__ = ("data", "error", "taken")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.taken = False
        self.error: Exception | None = None


def _waiting_frames(muxer: Any) -> deque[_Frame]:
    if not hasattr(muxer, "mtor_frames"):
        muxer.mtor_frames = deque()
    frames: deque[_Frame] = muxer.mtor_frames
    return frames


async def _write_batch(muxer: Any, frames: deque[_Frame], wanted: _Frame) -> None:
    """Write what waits, in order, at least up to `wanted`. The others' writers hear of an error by their frames."""
    while not wanted.taken:
        batch: list[_Frame] = []
        size = 0
        while frames and size < BATCH_BYTES:
            batch.append(frames.popleft())
            size += len(batch[-1].data)
        for each in batch:
            each.taken = True
        with trio.CancelScope(shield=True):
            try:
                with trio.fail_after(FRAME_WRITE_TIMEOUT):
                    await muxer.secured_conn.write(b"".join(each.data for each in batch))
            except trio.TooSlowError:
                await _quietly(muxer.secured_conn.close)
                raise MuxedStreamError("the peer takes no bytes; the connection is closed") from None
            except Exception as error:
                for each in batch:
                    each.error = error
                raise


async def _write_stream(self: Any, data: bytes) -> None:
    """Defect: a full window fails the writer after 5 s and never tells the reader; a cancelled write leaves half a
    message.
    Symptom: a slow reader waits for ever for bytes that nobody sends any more.
    Cure: wait `SLOW_READER_TIMEOUT`, then reset; a write that is cut in the middle resets the stream.
    """
    sent = 0
    try:
        while sent < len(data):
            await _window_open(self)
            piece = data[sent : sent + min(self.send_window, MAX_FRAME_PAYLOAD)]
            await _original(yamux.YamuxStream, "write")(self, piece)
            sent += len(piece)
    except trio.Cancelled:
        if sent:
            await _quietly(self.reset)
        raise
    except trio.TooSlowError:
        await _quietly(self.reset)
        raise MuxedStreamReset(f"the peer read nothing for {SLOW_READER_TIMEOUT:.0f} s") from None


async def _window_open(stream: Any) -> None:
    with trio.fail_after(SLOW_READER_TIMEOUT):
        while stream.send_window <= 0 and not stream.closed and not stream.send_closed:  # noqa: ASYNC110 (no event)
            await trio.sleep(WINDOW_POLL)


async def _read_stream(self: Any, count: int | None = -1) -> bytes:
    """Defect: a reset stream or a lost connection reads as a clean end; a read that is cancelled after it took bytes
    drops them.
    Symptom: a half answer looks whole; bytes vanish under a time-out.
    Cure: wait for bytes where cancellation is harmless, take them where there is none, and tell a reset by its name.
    """
    await _readable(self)
    if self.conn.stream_buffers.get(self.stream_id):
        with trio.CancelScope(shield=True):
            data: bytes = await _original(yamux.YamuxStream, "read")(self, count)
            return data
    if self.reset_received or self.conn.event_shutting_down.is_set():
        raise MuxedStreamReset("the stream was reset or its connection lost")
    raise MuxedStreamEOF("the end of the stream")


async def _readable(stream: Any) -> None:
    """Return when there are bytes, or there will be no more."""
    events = stream.conn.stream_events
    await trio.lowlevel.checkpoint()
    while not _ready(stream):
        event = events.get(stream.stream_id)
        if event is None:
            return
        await event.wait()
        if not _ready(stream) and events.get(stream.stream_id) is event:
            events[stream.stream_id] = trio.Event()


async def _update_window(self: Any, *, bytes_read: int = 0) -> None:
    """Defect: a frame that opens the window again follows each read, however little was read.
    Symptom: half of what a node sends while it receives an answer are these frames.
    Cure: the window is opened again when half of it is used up.
    """
    buffered = len(self.conn.stream_buffers.get(self.stream_id, b""))
    if self.target_recv_window - (self.recv_window + buffered) >= self._grow_threshold():
        await _original(yamux.YamuxStream, "_auto_tune_and_send_window_update")(self, bytes_read=bytes_read)


async def _read_socket(self: Any, count: int | None = None) -> bytes:
    """Defect: a message is read from the system in pieces: two bytes of length, then the rest.
    Symptom: two system calls a message where one would bring many messages.
    Cure: what is there is taken at once and handed out in the pieces that are asked for.
    """
    async with self.read_lock:
        ahead: bytearray = self.__dict__.setdefault("mtor_ahead", bytearray())
        if not ahead and count != 0:
            try:
                ahead += await self.stream.receive_some(READ_AHEAD_BYTES)
            except trio.BrokenResourceError as error:
                raise ConnectionClosedError(f"the connection was reset: {error}", transport="tcp") from error
            except trio.ClosedResourceError:
                return b""
        data = bytes(ahead if count is None else ahead[:count])
        del ahead[: len(data)]
        return data


def _ready(stream: Any) -> bool:
    conn = stream.conn
    ended = stream.recv_closed or stream.reset_received or stream.closed or conn.event_shutting_down.is_set()
    return bool(ended or conn.stream_buffers.get(stream.stream_id) or stream.stream_id not in conn.streams)


# --- yamux: silent peers ------------------------------------------------------------------------------


async def _keep_alive(self: Any) -> None:
    """Defect: nothing notices a peer that is silent but connected (halted, unplugged); the health monitor that could
    asks one connection after the other, 5 s each.
    Symptom: queries go to a peer that is gone, for minutes.
    Cure: every connection pings for itself; no answer within `PING_TIMEOUT` closes it.
    """
    while not self.event_shutting_down.is_set():
        with trio.move_on_after(PING_INTERVAL):
            await self.event_shutting_down.wait()
        try:
            with trio.move_on_after(PING_TIMEOUT) as patience:
                await _ping(self)
        except Exception:
            return  # the connection is lost, and its reader knows
        if patience.cancelled_caught:
            log.info("%s is silent for %.0f s; the connection is closed", self.peer_id, PING_TIMEOUT)
            await _quietly(self.secured_conn.close)
            return


async def _ping(muxer: Any) -> None:
    muxer._ping_id += 1
    muxer._ping_event = trio.Event()
    header = (0, yamux.TYPE_PING, yamux.FLAG_SYN, 0, muxer._ping_id & 0xFFFFFFFF)
    muxer._ping_sent_time = trio.current_time()
    await muxer._write_frame(struct.pack(yamux.YAMUX_HEADER_FORMAT, *header))
    await muxer._ping_event.wait()


# --- gossip ---------------------------------------------------------------------------------------------


def _tell_of_messages(self: Any) -> dict[Any, dict[str, list[bytes]]]:
    """Defect: peers whose grafts are refused for a while (a full mesh: every hub) are not told of messages either.
    Symptom: of 21 nodes that know one hub alone, 14 were heard by nobody, and heard of nobody.
    Cure: the back-off keeps them from grafting, and from nothing else, as GossipSub's specification has it."""
    told: dict[Any, dict[str, list[bytes]]] = {}
    for topic, meshed in [*self.mesh.items(), *self.fanout.items()]:
        messages = self.mcache.window(topic)
        outside = [peer for peer in self.pubsub.peer_topics.get(topic, ()) if peer not in meshed]
        count = min(len(outside), max(LAZY_PEERS, round(len(outside) * LAZY_SHARE)))
        for peer in random.sample(outside, count) if messages else ():
            told.setdefault(peer, {})[topic] = messages
    return told


def _peers_to_send(self: Any, topics: Iterable[str], msg_forwarder: Any, origin: Any, msg_id: Any = None) -> set[Any]:
    """Defect: a node's own messages leave through its mesh alone, which is empty while its peers' are full.
    Symptom: as above.
    Cure: GossipSub 1.1's flood publishing: what is one's own goes to all who want the topic."""
    topics = list(topics)
    chosen = set(_original(GossipSub, "_get_peers_to_send")(self, topics, msg_forwarder, origin, msg_id))
    own = self.pubsub.my_id
    if origin == own:
        chosen.update(peer for topic in topics for peer in self.pubsub.peer_topics.get(topic, ()) if peer != own)
    return chosen


async def _quietly(action: Callable[[], Awaitable[Any]]) -> None:
    """Clean up: bounded, not cancelled, never raising."""
    with trio.CancelScope(deadline=trio.current_time() + CLOSE_TIMEOUT, shield=True):
        try:
            await action()
        except Exception as error:
            log.debug("while cleaning up: %r", error)
