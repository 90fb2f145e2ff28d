"""The exchange, stepped one message at a time."""

import pytest

from protocol import params
from protocol.codec import encode
from protocol.errors import ErrorCode, IllegalMove, LocalProtocolError, Refused
from protocol.exchange import (
    MOVES,
    Conversation,
    Delivered,
    Role,
    State,
    check_query,
    is_paid,
    split_inputs,
    transcript_hash,
)
from protocol.ids import ChannelId, QueryId
from protocol.messages import (
    Accept,
    Begin,
    Cancel,
    Chunk,
    Done,
    Error,
    Input,
    Media,
    Message,
    Output,
    Pay,
    Progress,
    Refuse,
    Settled,
)
from protocol.requests import most_units_in, read_request
from tests.protocol.conftest import chat, imagine, query, speak, transcribe, vision


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
    most = most_units_in(query(), read_request(query()))
    with pytest.raises(IllegalMove, match="units for a question"):
        requester.received(Begin(most + 1, "m", 64))


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


# --- pictures and sounds -----------------------------------------------------------------------------

PCM = "audio/pcm;rate=8000"
TENTH = bytes(1_600)


def asked(request: Message, *moves: tuple[Role, object], units_in: int = 0) -> Conversation:
    """The requester's side after the query, its moves, and Begin."""
    return both((R, query(request)), (W, Accept(0, 0)), *moves, (W, Begin(units_in, "m", 64)))[0]


def parts_refused(requester: Conversation, *parts: Message) -> str:
    """Why the last of these is refused."""
    *good, bad = parts
    for part in good:
        requester.received(part)
    before = requester.delivered
    with pytest.raises(IllegalMove) as refused:
        requester.received(bad)
    assert requester.delivered == before  # what was legal stands
    return str(refused.value)


def test_inputs_may_come_before_the_reply_and_the_answer_waits_for_all_of_them() -> None:
    first, second = Input(0, bytes(6)), Input(1, bytes(4))
    _, worker = both((R, query(vision())), (R, first), (W, Accept(0, 0)), (R, second))
    assert worker.inputs_whole
    requester = both((R, query(vision())), (R, first), (W, Accept(0, 0)))[0]
    assert not requester.inputs_whole
    with pytest.raises(IllegalMove, match="once the question is whole"):
        requester.received(Begin(1, "m", 64))


@pytest.mark.parametrize("part", [Input(0, b"a"), Input(2, b"a"), Input(1, bytes(5))])
def test_inputs_come_in_order_and_no_more_than_were_declared(part: Input) -> None:
    worker = both((R, query(vision())), (R, Input(0, bytes(6))))[1]
    with pytest.raises(IllegalMove, match="bytes after 6 of 10"):
        worker.received(part)


def test_inputs_that_crossed_the_last_word_are_taken() -> None:
    _, worker = both((R, query(vision())), (W, Accept(0, 0)), (W, Error(15, "", 0)), (R, Input(0, bytes(10))))
    assert worker.state is State.SETTLING


def test_the_inputs_are_cut_as_they_were_declared() -> None:
    media = (Media("image", 2, 0), Media("image", 3, 0))
    assert split_inputs(vision(media=media), b"abcde") == (b"ab", b"cde")
    assert split_inputs(chat(("user", "hi")), b"") == ()


def test_a_payload_that_is_no_request_is_the_workers_to_refuse() -> None:
    worker = both((R, query(payload=encode(Cancel()))))[1]
    assert worker.request is None and worker.inputs_whole
    with pytest.raises(IllegalMove):
        worker.received(Input(0, b"a"))
    accepted = both((R, query(payload=encode(Cancel()))), (W, Accept(0, 0)))[0]
    with pytest.raises(IllegalMove):
        accepted.received(Begin(0, "m", 64))


def test_a_picture_is_counted_with_its_last_part() -> None:
    requester = asked(imagine())
    requester.received(Progress(1, 24, b""))
    requester.received(Output(0, 0, "image/png", b"begin"))
    assert requester.delivered.units_out == 0
    requester.received(Output(1, 24, "image/png", b"end"))
    requester.received(Chunk(2, 24, ""))
    requester.received(Done("stop", 0, 24, requester.delivered.digest))
    assert requester.state is State.SETTLING


def test_a_picture_is_not_counted_before_it_is_there_nor_goes_on_after() -> None:
    assert "at most 0" in parts_refused(asked(imagine()), Chunk(0, 24, ""))
    assert "at most 24" in parts_refused(asked(imagine()), Output(0, 25, "image/png", b"a"))
    whole = Output(0, 24, "image/png", b"a")
    assert "counted as whole" in parts_refused(asked(imagine()), whole, Output(1, 24, "image/png", b"b"))


def test_sound_is_counted_by_its_bytes() -> None:
    requester = asked(speak(), units_in=5)
    requester.received(Output(0, 1, PCM, TENTH))
    requester.received(Output(1, 2, PCM, b"a"))
    assert "at most 2" in parts_refused(requester, Chunk(2, 3, ""))
    assert "at most 1" in parts_refused(asked(speak()), Output(0, 2, "audio/pcm;rate=48000", TENTH))


@pytest.mark.parametrize(
    ("request_", "part"),
    [
        (chat(("user", "hi")), Output(0, 0, "image/png", b"a")),
        (imagine(), Chunk(0, 0, "a")),
        (imagine(), Output(0, 0, "text/html", b"a")),
        (imagine(), Output(0, 0, PCM, b"a")),
        (speak(), Output(0, 0, "image/png", b"a")),
        (speak(), Chunk(0, 0, "a")),
    ],
)
def test_an_answer_is_what_was_asked_for(request_: Message, part: Message) -> None:
    assert "in the answer to a" in parts_refused(asked(request_), part)


def test_an_answer_has_one_media_type() -> None:
    first = Output(0, 1, PCM, TENTH)
    assert "48000" in parts_refused(asked(speak()), first, Output(1, 1, "audio/pcm;rate=48000", TENTH))


def test_an_answers_data_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(params, "MAX_OUTPUT_BYTES", 2 * len(TENTH))
    first, second = Output(0, 1, PCM, TENTH), Output(1, 2, PCM, TENTH)
    assert "bytes of data" in parts_refused(asked(speak()), first, second, Output(2, 2, PCM, b"a"))


def test_a_transcript_is_text() -> None:
    requester = asked(transcribe(100), (R, Input(0, bytes(100))), units_in=3)
    requester.received(Chunk(0, 2, "WEBVTT"))
    assert requester.delivered.units_out == 2
