"""Pictures and sounds from end to end over fakes: inputs travel, results come whole, a lost worker's is made again."""

import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import trio

from node.answers import Bytes, Progressed, Question
from node.engines.fake import ALL_KINDS, ANSWER_TOKENS, FAKE_PREVIEW, TENTH, FakeEngine, fake_answer, fake_picture
from node.engines.port import EngineEvent, Finished, Piece, Prompted, Step
from protocol import params
from protocol.codec import encode
from protocol.errors import ErrorCode
from protocol.ids import NO_HASH, ChannelId, QueryId, RealmId
from protocol.messages import (
    Accept,
    ChatRequest,
    Error,
    ImagineRequest,
    Input,
    Media,
    Message,
    Query,
    Refuse,
    SpeakRequest,
    TranscribeRequest,
    Turn,
    VisionRequest,
)
from protocol.pricing import channel_cost
from protocol.requests import Request, picture_units
from protocol.routing import Requirements
from tests.node.federation import Answered, MemoryFederation, memory_federation
from tests.node.test_hostile_peers import dialled, last_word

SPEECH, VISION, IMAGINE = RealmId("$SPEECH"), RealmId("$VISION"), RealmId("$IMAGINE")
PICTURE = ImagineRequest("a red apple", "", 512, 512, 20, 4_000, 7, 1)
SPOKEN = SpeakRequest("Twenty-four characters..", "", 1_000)
PHOTO = secrets.token_bytes(3 * params.MAX_CHUNK_BYTES + 17)
SOUND = secrets.token_bytes(64_001)


def asked(realm: str, request: Request, *inputs: bytes) -> Question:
    return Question(QueryId(secrets.token_bytes(16)), RealmId(realm), request, Requirements(), 20_000, None, inputs)


def seen(text: str, *sizes: int) -> VisionRequest:
    media = tuple(Media("image", size, 0) for size in sizes)
    return VisionRequest((Turn("user", text),), 0, 0, 1000, 0, 1000, 2000, 2000, 0, (), media=media)


def heard(size: int) -> TranscribeRequest:
    return TranscribeRequest((Media("audio", size, 0),), "", "", 0, 0, 0)


def data_of(answered: Answered) -> bytes:
    return b"".join(event.data for event in answered.events if isinstance(event, Bytes))


async def test_a_picture_comes_whole_with_progress_and_is_paid_by_its_size() -> None:
    async with memory_federation(FakeEngine(requests=ALL_KINDS), realm=IMAGINE) as federation:
        answered = await federation.gateway.ask(asked(IMAGINE, PICTURE))
        assert data_of(answered) == fake_picture(PICTURE)
        assert {event.media_type for event in answered.events if isinstance(event, Bytes)} == {"image/png"}
        steps = [event for event in answered.events if isinstance(event, Progressed)]
        assert [step.done for step in steps] == [1, 2, 3, 4] and steps[0].preview == FAKE_PREVIEW
        share = answered.completed.shares[0]
        units = picture_units(512, 512, 20)
        assert (share.units_in, share.units_out) == (0, units)
        assert share.amount == channel_cost(0, units, 1_000, 3_000)
        await federation.settle()


async def test_a_picture_that_broke_off_is_made_again_elsewhere_and_paid_once() -> None:
    engines = [FakeEngine(requests=ALL_KINDS, crash_after=2), FakeEngine(requests=ALL_KINDS, crash_after=2)]
    async with memory_federation(*engines, realm=IMAGINE) as federation:

        async def heal_the_other() -> None:
            while not any(engine.running for engine in engines):
                await trio.sleep(0.001)
            next(engine for engine in engines if not engine.running).crash_after = None

        async with trio.open_nursery() as nursery:
            nursery.start_soon(heal_the_other)
            answered = await federation.gateway.ask(asked(IMAGINE, PICTURE))
        assert data_of(answered) == fake_picture(PICTURE)
        assert [share.amount > 0 for share in answered.completed.shares] == [False, True]


async def test_pictures_travel_beside_the_question() -> None:
    async with memory_federation(FakeEngine(requests=ALL_KINDS), realm=VISION) as federation:
        question = asked(VISION, seen("what is it?", len(PHOTO), 5), PHOTO, b"small")
        answered = await federation.gateway.ask(question)
        assert answered.text == fake_answer(ANSWER_TOKENS)
        assert answered.completed.units_in == 4 + 2  # words, and the pictures that the engine was handed
        await federation.settle()


async def test_pictures_that_unfold_to_too_much_are_refused_by_the_worker() -> None:
    """An asker need not have this repository's gateway."""
    sizes = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (6_000).to_bytes(4, "big") * 2
    pictures = [sizes + bytes(20)] * 3
    async with memory_federation(FakeEngine(requests=ALL_KINDS), realm=VISION) as federation:
        question = asked(VISION, seen("What is it?", *map(len, pictures)), *pictures)
        answered = await federation.gateway.ask(question)
        assert answered.failed.code is ErrorCode.INVALID_REQUEST and "together" in answered.failed.message


async def test_a_sound_is_transcribed_by_its_length() -> None:
    async with memory_federation(FakeEngine(requests=ALL_KINDS), realm=SPEECH) as federation:
        answered = await federation.gateway.ask(asked(SPEECH, heard(len(SOUND)), SOUND))
        assert answered.text == fake_answer(ANSWER_TOKENS) and answered.completed.units_in == 21


async def test_speech_streams_under_the_window_and_goes_on_where_a_lost_voice_broke_off() -> None:
    engines = [FakeEngine(requests=ALL_KINDS, crash_after=9), FakeEngine(requests=ALL_KINDS, crash_after=9)]
    async with memory_federation(*engines, realm=SPEECH, window=4) as federation:

        async def heal_the_other() -> None:
            while not any(engine.running for engine in engines):
                await trio.sleep(0.001)
            next(engine for engine in engines if not engine.running).crash_after = None

        async with trio.open_nursery() as nursery:
            nursery.start_soon(heal_the_other)
            answered = await federation.gateway.ask(asked(SPEECH, SPOKEN))
        assert data_of(answered) == TENTH * len(SPOKEN.text)
        assert answered.completed.failover and len(answered.completed.shares) == 2
        await federation.settle()


async def test_a_request_goes_to_who_takes_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.router.DISCOVERY_SECONDS", 0.1)
    engines = [FakeEngine("ears", requests=(TranscribeRequest,)), FakeEngine("voice", requests=(SpeakRequest,))]
    async with memory_federation(*engines, realm=SPEECH) as federation:
        for request, inputs, name in ((SPOKEN, (), "voice"), (heard(3), (b"abc",), "ears")):
            assert (await federation.gateway.ask(asked(SPEECH, request, *inputs))).completed.model == name
        failed = (await federation.gateway.ask(asked(SPEECH, PICTURE))).failed
        assert failed.code is ErrorCode.NO_PEER and "imagine requests not met" in failed.message
        assert "voice takes speak" in failed.message


async def test_a_picture_larger_than_the_worker_makes_is_refused_with_the_numbers() -> None:
    async with memory_federation(FakeEngine(requests=ALL_KINDS), realm=IMAGINE, max_tokens=10) as federation:
        failed = (await federation.gateway.ask(asked(IMAGINE, PICTURE))).failed
        assert failed.code is ErrorCode.INVALID_REQUEST
        assert "512 x 512 pixels in 20 steps are 80 units, this worker makes at most 10" in failed.message


# --- hostile requesters ----------------------------------------------------------------------------------


def _query(realm: str, request: Message) -> Query:
    return Query(QueryId(b"q" * 16), RealmId(realm), "", 5_000, ChannelId(NO_HASH), encode(request), "", 0, ())


async def _last_word(federation: MemoryFederation, *sent: Message) -> Message | None:
    """What a worker says at last to a stranger who sends these; None if it drops the stream."""
    async with dialled(federation) as messages:
        for message in sent:
            await messages.send(message)
        return await last_word(messages)


async def test_the_wrong_kind_of_request_is_refused_by_name() -> None:
    async with memory_federation(FakeEngine(requests=(SpeakRequest,)), realm=SPEECH, free_tokens=1_000) as federation:
        last = await _last_word(federation, _query(SPEECH, PICTURE))
        assert isinstance(last, Refuse) and last.code == ErrorCode.NO_SUCH_MODEL and "takes speak" in last.reason
        last = await _last_word(federation, _query(SPEECH, Accept(0, 0)))
        assert isinstance(last, Refuse) and last.code == ErrorCode.INVALID_REQUEST


async def test_pictures_that_never_come_hold_no_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.worker.INPUT_SECONDS", 0.2)
    monkeypatch.setattr("node.worker.HEARTBEAT_SECONDS", 0.1)
    engine = FakeEngine(requests=ALL_KINDS)
    async with memory_federation(engine, realm=VISION, free_tokens=1_000, slots=1) as federation:
        service = next(iter(federation.workers[0].services))
        async with dialled(federation) as slow:
            await slow.send(_query(VISION, seen("?", 10)))
            await slow.send(Input(0, b"12345"))
            assert isinstance(await slow.receive(), Accept)
            assert service.scheduler.busy == 0
            answered = await federation.gateway.ask(asked(VISION, seen("what?", 3), b"abc"))  # passes the slow one
            assert answered.text == fake_answer(ANSWER_TOKENS)
            with trio.fail_after(5):
                while not isinstance(last := await slow.receive(), Error):
                    assert last is not None
            assert last.code == ErrorCode.INVALID_REQUEST and "did not come" in last.reason
        with trio.fail_after(5):
            while service.scheduler.queued or federation.workers[0].worker._held:
                await trio.sleep(0.01)


async def test_more_than_was_declared_ends_the_query_alone() -> None:
    async with memory_federation(FakeEngine(requests=ALL_KINDS), realm=VISION, free_tokens=1_000) as federation:
        last = await _last_word(federation, _query(VISION, seen("?", 4)), Input(0, b"12345"))
        assert last is None
        answered = await federation.gateway.ask(asked(VISION, seen("what?", 3), b"abc"))
        assert answered.text == fake_answer(ANSWER_TOKENS)


async def test_memory_for_inputs_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.worker.HELD_BYTES_PER_PEER", 100)
    async with memory_federation(FakeEngine(requests=ALL_KINDS), realm=VISION, free_tokens=1_000) as federation:
        last = await _last_word(federation, _query(VISION, seen("?", 101)), Input(0, bytes(101)))
        assert isinstance(last, Refuse) and last.code == ErrorCode.OVERLOADED and last.retry_after_ms


async def test_a_chat_engine_is_asked_no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.router.DISCOVERY_SECONDS", 0.1)
    async with memory_federation(FakeEngine(requests=(ChatRequest,)), realm=VISION) as federation:
        failed = (await federation.gateway.ask(asked(VISION, seen("what?", 3), b"abc"))).failed
        assert failed.code is ErrorCode.NO_PEER


# --- custom realms and stand-ins -------------------------------------------------------------------------

POETRY, CHAT = RealmId("$POETRY"), RealmId("$CHAT")


async def test_a_realm_of_ones_own_is_asked_like_any_other() -> None:
    async with memory_federation(FakeEngine("bard"), realm=POETRY) as federation:
        chat = ChatRequest((Turn("user", "a poem"),), 3, 0, 1000, 0, 1000, 2000, 2000, 0, ())
        answered = await federation.gateway.ask(asked(POETRY, chat))
        assert answered.text == fake_answer(3) and answered.completed.model == "bard"


async def test_a_backup_realm_stands_in_and_is_paid_at_its_own_price(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.router.DISCOVERY_SECONDS", 0.1)
    async with memory_federation(FakeEngine("plain"), realm=CHAT, price_out=9_000) as federation:
        chat = ChatRequest((Turn("user", "a poem"),), 3, 0, 1000, 0, 1000, 2000, 2000, 0, ())
        failed = (await federation.gateway.ask(asked(POETRY, chat))).failed
        assert failed.code is ErrorCode.NO_PEER and "$POETRY" in failed.message
        federation.gateway.router.backups = {POETRY: (CHAT,)}
        answered = await federation.gateway.ask(asked(POETRY, chat))
        assert answered.text == fake_answer(3)
        share = answered.completed.shares[0]
        assert share.amount == channel_cost(share.units_in, share.units_out, 1_000, 9_000)
        await federation.settle()


async def test_a_realm_that_is_full_is_backed_up_too() -> None:
    engines = [FakeEngine("bard"), FakeEngine("plain")]
    async with memory_federation(*engines, realm=POETRY) as federation:
        for worker, realm in zip(federation.workers, (POETRY, CHAT), strict=True):
            service = next(iter(worker.services))
            worker.services._services = [replace(service, section=service.section.model_copy(update={"realm": realm}))]
        engines[0].crash_after = 0
        federation.gateway.router.backups = {POETRY: (CHAT,)}
        with trio.fail_after(20):
            while {model.realm for known in federation.gateway.directory.offers() for model in known.offer.models} != {
                POETRY,
                CHAT,
            }:
                await federation.gateway.directory.wait_changed()
        chat = ChatRequest((Turn("user", "a poem"),), 3, 0, 1000, 0, 1000, 2000, 2000, 0, ())
        answered = await federation.gateway.ask(asked(POETRY, chat))
        assert answered.text == fake_answer(3) and answered.completed.shares[-1].model == "plain"


class Liar(FakeEngine):
    """An engine that counts what cannot be."""

    @asynccontextmanager
    async def generate(self, request: Request, prefix: str, inputs: Sequence[bytes] = ()) -> AsyncIterator[Any]:
        async with super().generate(request, prefix, inputs) as generation:

            async def events() -> AsyncGenerator[EngineEvent, None]:
                yield Prompted(1)
                yield Piece("a", 100_000)
                yield Finished("stop", 1, 100_000)

            generation.events = events  # type: ignore[method-assign]
            yield generation


async def test_an_engine_that_counts_too_much_is_told_apart_from_a_lost_worker() -> None:
    async with memory_federation(Liar(), FakeEngine(), realm=CHAT) as federation:
        chat = ChatRequest((Turn("user", "a poem"),), 3, 0, 1000, 0, 1000, 2000, 2000, 0, ())
        for _ in range(4):
            answered = await federation.gateway.ask(asked(CHAT, chat))
            assert answered.text == fake_answer(3) and answered.completed.units_out == 3
        await federation.settle()


async def test_speech_ends_where_the_offer_does() -> None:
    async with memory_federation(FakeEngine(requests=ALL_KINDS), realm=SPEECH, max_tokens=10) as federation:
        answered = await federation.gateway.ask(asked(SPEECH, SPOKEN))
        assert data_of(answered) == TENTH * 10
        assert (answered.completed.finish, answered.completed.units_out) == ("length", 10)
        await federation.settle()


async def test_a_picture_of_the_models_own_size_is_whole_or_nothing() -> None:
    async with memory_federation(FakeEngine(requests=ALL_KINDS), realm=IMAGINE, max_tokens=10) as federation:
        own_size = replace(PICTURE, width=0, steps=150)
        failed = (await federation.gateway.ask(asked(IMAGINE, own_size))).failed
        assert failed.code is ErrorCode.INVALID_REQUEST and "has 75 units" in failed.message
        assert failed.shares[0].amount == 0


class Careless(FakeEngine):
    """A painter whose previews are no pictures, and that makes none in the end."""

    @asynccontextmanager
    async def generate(self, request: Request, prefix: str, inputs: Sequence[bytes] = ()) -> AsyncIterator[Any]:
        async with super().generate(request, prefix, inputs) as generation:

            async def events() -> AsyncGenerator[EngineEvent, None]:
                yield Prompted(0)
                yield Step(1, 2, b"<script>")
                yield Finished("stop", 0, 0)

            generation.events = events  # type: ignore[method-assign]
            yield generation


async def test_no_picture_is_no_answer_and_a_preview_is_a_picture() -> None:
    async with memory_federation(Careless(requests=ALL_KINDS), realm=IMAGINE) as federation:
        answered = await federation.gateway.ask(asked(IMAGINE, PICTURE))
        assert answered.failed.code is ErrorCode.ENGINE_FAILED and "no picture" in answered.failed.message
        assert [event.preview for event in answered.events if isinstance(event, Progressed)] == [b""]
