"""The exchange, stepped one message at a time."""

import pytest

from protocol.codec import encode
from protocol.errors import ErrorCode, IllegalMove, LocalProtocolError, Refused
from protocol.exchange import (
    MOVES,
    Conversation,
    Delivered,
    Role,
    State,
    check_chat,
    check_query,
    is_paid,
    prompt_token_limit,
    transcript_hash,
)
from protocol.ids import CHAT, NO_HASH, ChannelId, QueryId
from protocol.messages import (
    Accept,
    Begin,
    Cancel,
    ChatRequest,
    Chunk,
    Done,
    Error,
    Pay,
    Query,
    Refuse,
    Settled,
    Turn,
)


def chat(*turns: tuple[str, str]) -> ChatRequest:
    return ChatRequest(tuple(Turn(*turn) for turn in turns), 0, 0, 1000, 0, 1000, 2000, 2000, 0, ())


def query(**changes: object) -> Query:
    fields: dict[str, object] = {
        "query_id": QueryId(b"q" * 16),
        "realm": CHAT,
        "model": "",
        "time_left_ms": 1000,
        "channel": ChannelId(NO_HASH),
        "payload": encode(chat(("user", "hello"))),
        "prefix": "",
        "prefix_tokens": 0,
        "features": (),
    }
    return Query(**{**fields, **changes})  # type: ignore[arg-type]


def both(*moves: tuple[Role, object]) -> tuple[Conversation, Conversation]:
    """Play moves on both sides' conversations."""
    requester, worker = Conversation(Role.REQUESTER), Conversation(Role.WORKER)
    for role, message in moves:
        mover, other = (requester, worker) if role is Role.REQUESTER else (worker, requester)
        mover.sent(message)  # type: ignore[arg-type]
        other.received(message)  # type: ignore[arg-type]
    assert requester.state is worker.state
    return requester, worker


R, W = Role.REQUESTER, Role.WORKER
RUNNING = ((R, query()), (W, Accept(0, 0)), (W, Begin(5, "m", 64)))


def test_a_whole_answer_ends() -> None:
    text = "hello wörld"
    first, second = text[:5], text[5:]
    worker = both(*RUNNING, (W, Chunk(0, 2, first)), (W, Chunk(1, 3, second)))[1]
    digest = worker.delivered.digest
    moves = [
        *RUNNING,
        (W, Chunk(0, 2, first)),
        (R, Pay(b"v", bytes(64))),
        (W, Chunk(1, 3, second)),
        (W, Done("stop", 5, 3, digest)),
        (R, Pay(b"v", bytes(64))),
        (W, Settled(7)),
    ]
    requester, _ = both(*moves)
    assert requester.state is State.ENDED
    assert requester.delivered == Delivered(5, 3, digest)


@pytest.mark.parametrize("chunks", [[Chunk(1, 1, "a")], [Chunk(0, 2, "a"), Chunk(1, 1, "b")], [Chunk(0, 9_999, "a")]])
def test_chunks_out_of_order_or_with_false_counts_are_refused(chunks: list[Chunk]) -> None:
    requester = both(*RUNNING)[0]
    with pytest.raises(IllegalMove):
        for chunk in chunks:
            requester.received(chunk)


@pytest.mark.parametrize("done", [Done("stop", 5, 2, bytes(32)), Done("stop", 4, 1, bytes(32))])
def test_a_done_that_differs_from_the_chunks_is_refused(done: Done) -> None:
    requester = both(*RUNNING, (W, Chunk(0, 1, "a")))[0]
    with pytest.raises(IllegalMove, match="Done names other"):
        requester.received(done)


def test_an_inflated_prompt_count_is_refused() -> None:
    requester = both(*RUNNING[:2])[0]
    with pytest.raises(IllegalMove, match="prompt tokens"):
        requester.received(Begin(prompt_token_limit(query()) + 1, "m", 64))


def test_an_answer_begins_once_and_a_chunk_needs_a_beginning() -> None:
    requester = both((R, query()), (R, Cancel()))[0]
    with pytest.raises(IllegalMove):
        requester.received(Chunk(0, 0, ""))
    requester.received(Begin(1, "m", 64))
    with pytest.raises(IllegalMove, match="begins once"):
        requester.received(Begin(1, "m", 64))


def test_crossed_messages_are_legal() -> None:
    requester = both(*RUNNING)[0]
    requester.sent(Cancel())
    requester.received(Chunk(0, 1, "x"))  # was on its way when the cancel left
    digest = requester.delivered.digest
    requester.received(Done("cancelled", 5, 1, digest))
    requester.sent(Pay(b"v", bytes(64)))
    requester.received(Settled(1))
    assert requester.state is State.ENDED


def test_our_own_illegal_move_is_our_error() -> None:
    with pytest.raises(LocalProtocolError):
        Conversation(Role.WORKER).sent(Accept(0, 0))


@pytest.mark.parametrize("message", [Accept(0, 0), Begin(1, "", 1), Settled(0), Error(1, "", 0), Refuse(1, "", 0)])
def test_nothing_is_legal_after_the_end(message: object) -> None:
    requester = both((R, query()), (W, Refuse(6, "full", 10)))[0]
    assert requester.state is State.ENDED
    with pytest.raises(IllegalMove):
        requester.received(message)  # type: ignore[arg-type]


def test_every_state_but_the_last_can_be_left() -> None:
    assert {state for state, _, _ in MOVES} == set(State) - {State.ENDED}


def test_the_transcript_depends_on_everything() -> None:
    point = Delivered(1, 2, bytes(32))
    base = transcript_hash(bytes(32), QueryId(b"a" * 16), point)
    others = {
        transcript_hash(b"\1" * 32, QueryId(b"a" * 16), point),
        transcript_hash(bytes(32), QueryId(b"b" * 16), point),
        transcript_hash(bytes(32), QueryId(b"a" * 16), Delivered(2, 1, bytes(32))),
        transcript_hash(bytes(32), QueryId(b"a" * 16), Delivered(1, 2, b"\1" * 32)),
    }
    assert len({base, *others}) == 5


def test_query_rules() -> None:
    check_query(query(features=(1,)))  # odd: may be ignored
    with pytest.raises(Refused) as refused:
        check_query(query(features=(2,)))
    assert refused.value.code is ErrorCode.UNSUPPORTED_FEATURE
    with pytest.raises(Refused) as refused:
        check_query(query(prefix_tokens=1))
    assert refused.value.code is ErrorCode.INVALID_REQUEST
    assert not is_paid(query()) and is_paid(query(channel=ChannelId(b"\1" * 32)))


@pytest.mark.parametrize("turns", [[("tool", "x")], [("user", "x"), ("assistant", "y")], [("user", "  ")]])
def test_chat_rules(turns: list[tuple[str, str]]) -> None:
    with pytest.raises(Refused) as refused:
        check_chat(chat(*turns))
    assert refused.value.code is ErrorCode.INVALID_REQUEST


def test_a_good_chat_passes() -> None:
    check_chat(chat(("system", "be brief"), ("user", "hi")))
