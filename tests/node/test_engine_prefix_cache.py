"""What is kept of conversations: found by the very tokens, bounded, the longest unused goes first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from node.engines.prefix_cache import PART_TOKENS, PrefixCache

PART_BYTES = 100


def cache(parts: int) -> PrefixCache:
    return PrefixCache(parts * PART_BYTES, PART_BYTES)


def ids(*parts: int) -> list[int]:
    """Tokens in which part n is n, n, n …"""
    return [part for part in parts for _ in range(PART_TOKENS)]


def keep(kept: PrefixCache, tokens: list[int]) -> list[tuple[int, int]]:
    """Keep the tokens themselves; gives what had to be copied."""
    copied = []

    def save(start: int, end: int) -> list[int]:
        copied.append((start, end))
        return tokens[start:end]

    kept.keep(tokens, save)
    return copied


def found(kept: PrefixCache, tokens: list[int]) -> list[int]:
    return [token for part in kept.find(tokens) for token in part]


def test_the_common_beginning_is_found_in_whole_parts() -> None:
    kept = cache(100)
    keep(kept, [*ids(1, 2, 3), 9])
    assert found(kept, ids(1, 2, 4)) == ids(1, 2)
    assert found(kept, ids(1, 2, 3, 5)) == ids(1, 2, 3)
    assert found(kept, ids(1, 2)[:-1]) == ids(1)
    assert found(kept, []) == []


def test_the_same_part_after_another_beginning_is_another() -> None:
    kept = cache(100)
    keep(kept, ids(1, 2))
    assert found(kept, ids(3, 2)) == []
    assert found(kept, ids(2)) == []


def test_what_is_there_is_not_copied_again() -> None:
    kept = cache(100)
    assert len(keep(kept, ids(1, 2))) == 2
    assert keep(kept, ids(1, 2, 3)) == [(2 * PART_TOKENS, 3 * PART_TOKENS)]
    assert len(kept) == 3


def test_what_was_used_longest_ago_goes_first_and_a_beginning_after_its_ends() -> None:
    kept = cache(4)
    keep(kept, ids(1, 2))
    keep(kept, ids(1, 3))
    found(kept, ids(1, 2))
    keep(kept, ids(5, 6))  # 3 goes, and nothing else has to
    assert len(kept) == 4
    assert found(kept, ids(1, 3)) == ids(1)
    keep(kept, ids(7))
    assert len(found(kept, ids(5, 6))) + len(found(kept, ids(1, 2))) + len(found(kept, ids(7))) == 4 * PART_TOKENS


def test_a_size_of_nothing_keeps_nothing() -> None:
    for kept in (cache(0), PrefixCache(10**9, 0), PrefixCache(PART_BYTES - 1, PART_BYTES)):
        assert keep(kept, ids(1, 2)) == []
        assert found(kept, ids(1, 2)) == [] and len(kept) == 0


def test_a_conversation_longer_than_the_cache_is_kept_from_its_beginning() -> None:
    kept = cache(3)
    keep(kept, ids(1, 2, 3, 4, 5))
    assert found(kept, ids(1, 2, 3, 4, 5)) == ids(1, 2, 3)


TOKENS = st.lists(st.integers(0, 2), max_size=6).map(lambda parts: ids(*parts))


@given(st.lists(TOKENS, max_size=12), st.integers(0, 8))
def test_whatever_is_found_is_the_tokens_own(conversations: list[list[int]], most: int) -> None:
    kept = cache(most)
    for tokens in conversations:
        known = found(kept, tokens)
        assert tokens[: len(known)] == known
        keep(kept, tokens)
        assert len(kept) <= most
        assert len(found(kept, tokens)) == min(len(tokens), most * PART_TOKENS)
