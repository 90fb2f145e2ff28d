"""Text from tokens: whole code points, no part of a stop string, nothing lost."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from node.engines.text import Detokenizer, StopFilter


def decode(ids: Sequence[int]) -> str:
    """A byte-level vocabulary: token n is byte n, 256 is a control token without text."""
    return bytes(token for token in ids if token < 256).decode(errors="replace")


def pieces(text: bytes, context: bytes = b"") -> list[str]:
    detokenizer = Detokenizer(decode, list(context))
    return [*(detokenizer.push(token) for token in text), detokenizer.flush()]


def test_an_emoji_of_four_tokens_comes_whole() -> None:
    assert pieces("a🦊b".encode()) == ["a", "", "", "", "🦊", "b", ""]


def test_a_cut_code_point_at_the_end_is_left_to_whoever_continues() -> None:
    assert pieces("né".encode()[:2]) == ["n", "", ""]


def test_the_prompt_is_not_handed_out() -> None:
    assert "".join(pieces(b"new", context=b"what was asked")) == "new"


def test_control_tokens_have_no_text() -> None:
    detokenizer = Detokenizer(decode, [])
    assert [detokenizer.push(token) for token in (65, 256, 66)] == ["A", "", "B"]


@given(st.binary(max_size=40), st.text(max_size=8))
def test_the_pieces_are_the_decoded_whole(answer: bytes, context: str) -> None:
    whole = answer.decode(errors="replace")
    assert "".join(pieces(answer, context.encode())).rstrip("\ufffd") == whole.rstrip("\ufffd")


@given(st.text(max_size=20))
def test_no_piece_of_good_text_holds_half_a_code_point(text: str) -> None:
    assert "\ufffd" not in "".join(pieces(text.replace("\ufffd", "").encode()))


def through(stops: Sequence[str], parts: Sequence[str]) -> tuple[str, bool]:
    stop_filter = StopFilter(stops)
    out = "".join(stop_filter.push(part) for part in parts) + stop_filter.flush()
    return out, stop_filter.stopped


def test_a_stop_string_over_three_pieces_is_cut_whole() -> None:
    assert through(["STOP"], ["go S", "TO", "P now"]) == ("go ", True)


def test_what_only_looked_like_a_stop_string_is_delivered() -> None:
    assert through(["STOP"], ["go ST", "AY"]) == ("go STAY", False)
    assert through(["STOP"], ["the end: STO"]) == ("the end: STO", False)


def test_nothing_that_may_become_a_stop_string_leaves_early() -> None:
    stop_filter = StopFilter(["\n\nUser:"])
    assert stop_filter.push("Yes.\n\nUs") == "Yes."
    assert stop_filter.push("er") == ""
    assert stop_filter.push(":") == "" and stop_filter.stopped


def test_the_earliest_of_several_wins_and_nothing_follows() -> None:
    stop_filter = StopFilter(["late", "ear"])
    assert stop_filter.push("an early late word") == "an "
    assert stop_filter.push("more") == ""


LETTERS = st.text(alphabet="ab", max_size=12)


@given(st.lists(LETTERS, max_size=6), st.lists(st.text(alphabet="ab", min_size=1, max_size=4), max_size=3))
def test_the_cut_is_where_a_search_of_the_whole_text_finds_it(parts: list[str], stops: list[str]) -> None:
    """Pieces find the stop string that is complete first; of those complete in one piece, the one that begins first."""
    whole = "".join(parts)
    out, stopped = through(stops, parts)
    assert stopped == any(stop in whole for stop in stops)
    assert whole.startswith(out)
    assert not any(stop in out for stop in stops)
    if not stopped:
        assert out == whole
    if len(stops) == 1 and stopped:
        assert out == whole[: whole.index(stops[0])]
