"""What may be asked, kind by kind, and what it may count at most."""

from dataclasses import replace

import pytest

from protocol import params
from protocol.codec import encode
from protocol.errors import ErrorCode, Refused
from protocol.messages import NUMBERS, Cancel, Media, Message, Query
from protocol.requests import (
    KINDS,
    Delivery,
    Request,
    check_request,
    input_bytes,
    kind_of,
    media_of,
    most_units_in,
    most_units_out,
    picture_units,
    read_request,
    request_name,
    request_number,
    sound_rate,
)
from tests.protocol.conftest import chat, imagine, query, speak, transcribe, vision

QUESTION, ANSWER, RULES = ("user", "why?"), ("assistant", "because"), ("system", "be brief")
ALL: list[Request] = [chat(RULES, QUESTION), vision(), imagine(), transcribe(), speak()]


def refused(request: Request, prefix: str = "") -> str:
    """Why a request is refused."""
    with pytest.raises(Refused) as refusal:
        check_request(request, prefix)
    assert refusal.value.code is ErrorCode.INVALID_REQUEST
    return refusal.value.message


def test_the_table_knows_each_kind_by_a_name_of_its_own() -> None:
    assert [type(request) for request in ALL] == list(KINDS)
    assert len({kind.name for kind in KINDS.values()}) == len(KINDS)
    assert [request_name(request_number(request)) for request in ALL] == [kind.name for kind in KINDS.values()]
    assert [request_name(number) for number in (NUMBERS[Query], 95)] == ["33", "95"]


@pytest.mark.parametrize("request_", ALL)
def test_a_good_request_comes_out_of_its_query_and_passes(request_: Request) -> None:
    assert read_request(query(request_)) == request_
    check_request(request_)


@pytest.mark.parametrize("payload", [b"\xc1", encode(Cancel()), encode(query())])
def test_a_payload_is_a_request(payload: bytes) -> None:
    with pytest.raises(Refused, match="no request") as refusal:
        read_request(query(payload=payload))
    assert refusal.value.code is ErrorCode.INVALID_REQUEST


@pytest.mark.parametrize("ask", [chat, vision])
def test_conversations_have_known_roles_and_end_with_a_question(ask: object) -> None:
    assert callable(ask)
    assert "critic" in refused(ask(("critic", "x"), QUESTION))
    assert "answers one call" in refused(ask(("tool", "x"), QUESTION))
    assert "nothing to answer" in refused(ask(QUESTION, ANSWER))


def test_only_a_picture_speaks_for_itself() -> None:
    assert "empty" in refused(chat(("user", " \n")))
    check_request(vision(("user", "")))


@pytest.mark.parametrize(
    ("kind", "turn", "why"),
    [("audio", 1, "shows pictures"), ("image", 0, "turn of the user"), ("image", 2, "turn of the user")],
)
def test_a_picture_is_shown_by_the_user(kind: str, turn: int, why: str) -> None:
    assert why in refused(vision(RULES, QUESTION, media=(Media(kind, 1, turn),)))


def test_what_is_blank_or_of_the_wrong_kind_is_refused() -> None:
    assert "prompt is empty" in refused(imagine(prompt=" "))
    assert "text is empty" in refused(speak("\n"))
    assert "'image'" in refused(transcribe(media=(Media("image", 1, 0),)))


def test_all_media_together_are_bounded() -> None:
    half, more = Media("image", params.MAX_INPUT_BYTES // 2, 0), Media("image", params.MAX_INPUT_BYTES // 2 + 1, 0)
    check_request(vision(media=(half, half)))
    assert str(params.MAX_INPUT_BYTES) in refused(vision(media=(half, more)))


@pytest.mark.parametrize("request_", ALL)
def test_only_a_conversation_is_continued(request_: Request) -> None:
    if kind_of(request_).name in ("chat", "vision"):
        check_request(request_, "so far")
    else:
        assert "only a conversation" in refused(request_, "so far")


def test_media_of_each_kind() -> None:
    assert [len(media_of(request)) for request in ALL] == [0, 1, 0, 1, 0]
    assert [input_bytes(request) for request in ALL] == [0, 10, 0, 100, 0]


def most_in(request: Request, prefix: str = "") -> int:
    asked = query(request, prefix=prefix)
    return most_units_in(asked, request)


def test_the_most_units_of_a_question() -> None:
    talk, seen = chat(QUESTION), vision(media=(Media("image", 1, 0),) * 3)
    assert most_in(talk, "Größe") == len(encode(talk)) + 7 + 256
    assert most_in(seen) == len(encode(seen)) + 256 + 3 * params.PICTURE_TOKENS
    assert most_in(imagine()) == 0
    assert most_in(speak("Größe")) == 7
    assert [most_in(transcribe(size)) for size in (1, 49, 50, 99, 100)] == [1, 1, 2, 2, 3]
    assert most_in(transcribe(params.MAX_INPUT_BYTES)) == params.MAX_SOUND_TENTHS


def test_the_most_units_of_an_answer() -> None:
    assert [most_units_out(chat(QUESTION, max_tokens=wanted), 100) for wanted in (0, 7, 200)] == [100, 7, 100]
    assert most_units_out(vision(max_tokens=7), 100) == 7
    assert [most_units_out(imagine(), offered) for offered in (100, 5)] == [24, 5]
    assert most_units_out(imagine(width=0, height=0, steps=0), 1_000_000) == 9_600
    assert [most_units_out(request, 100) for request in (transcribe(), speak())] == [100, 100]


def test_a_pictures_units_are_rounded_up() -> None:
    assert [picture_units(*size) for size in ((256, 256, 1), (257, 256, 1), (1, 1, 1))] == [1, 2, 1]


def test_the_most_units_so_far() -> None:
    def most(request: Request, delivery: Delivery) -> int:
        return kind_of(request).most_out(request, delivery)

    for text in (chat(QUESTION), vision(), transcribe()):
        assert most(text, Delivery(text_bytes=3)) == 3 + 256 + 256
    assert most(chat(QUESTION), Delivery(text_bytes=3, calls=2)) == 3 + 256 + 256 + 2 * 64
    assert [most(imagine(), Delivery(data_bytes=count)) for count in (0, 1)] == [0, 24]
    assert most(speak(), Delivery()) == 0
    assert most(speak(), Delivery(data_bytes=4_801, media_type="audio/pcm;rate=24000")) == 2


def test_rates_of_sound() -> None:
    assert [sound_rate(f"audio/pcm;rate={rate}") for rate in ("8000", "22050", "48000")] == [8_000, 22_050, 48_000]
    for rate in ("7999", "48001", "024000", "0", "", "24000;x", "24000\n", "٢٤٠٠٠"):
        assert sound_rate(f"audio/pcm;rate={rate}") == 0
    assert sound_rate("image/png") == 0


def test_a_vision_request_is_no_chat_request_on_the_wire() -> None:
    """A subclass in the code; the table looks at the very type."""
    message: Message = read_request(query(replace(vision())))
    assert request_number(message) == 84 and kind_of(message).name == "vision"  # type: ignore[arg-type]  # a request
