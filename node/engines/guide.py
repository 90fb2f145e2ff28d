"""Which tokens an answer may go on with where it is held to a grammar: JSON by a schema, a call of a tool.

Rule: the library llguidance decides what is allowed; this file sees to it that an answer also ends. A model may write
on for ever within a grammar that allows it, so a guide knows a short way out, and takes it when no more than that is
left. Knows tokens and nothing of the model.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import llguidance
import numpy as np
import torch

from node.engines.port import EngineError
from protocol.errors import ErrorCode
from protocol.params import MAX_TOKEN_BYTES

LONGEST_WAY = 1_024  # tokens of a way out that is looked for
LOOKS = 32  # tokens between two looks at how long the way out is
NEAR = 64  # tokens; and twice the way out: from here on every token is followed by a look
OUTSIDE = b'}],:0123456789"-tfn[{'  # bytes that lead out of JSON, the fastest first
INSIDE = b'"0123456789abcdefghijklmnopqrstuvwxyz '  # of a string


class Vocabulary:
    """A tokenizer's tokens as bytes."""

    def __init__(self, tokenizer: Any, size: int, ends: Collection[int]) -> None:
        """`ends` are the tokens that end an answer. Raises `ValueError` for a tokenizer that is not known enough."""
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None or not ends:
            raise ValueError("no tokenizer of the library tokenizers, or nothing that ends an answer")
        self.size = size
        self.ends = frozenset(ends)
        self.library = llguidance.LLTokenizer(
            backend.to_str(), n_vocab=max(size, len(tokenizer)), eos_token=sorted(ends)
        )
        count = self.library.vocab_size
        self._bytes = [
            b"" if self.library.is_special_token(token) else self.library.decode_bytes([token])
            for token in range(count)
        ]
        first = np.array([text[0] if text else 255 for text in self._bytes])
        length = np.array([len(text) for text in self._bytes])
        self._outside, self._inside = (_ranks(known)[first] * 4_096 + length for known in (OUTSIDE, INSIDE))

    def bytes_of(self, token: int) -> bytes:
        """A token's UTF-8, perhaps cut within a character; nothing for a control token."""
        return self._bytes[token][:MAX_TOKEN_BYTES] if token < len(self._bytes) else b""

    def way_out(self, allowed: np.ndarray[Any, Any], *, quoted: bool) -> int:
        """Of the allowed tokens the one that leads out of JSON the fastest."""
        tokens = np.flatnonzero(allowed)
        ends = [token for token in self.ends if allowed[token]]
        return ends[0] if ends else int(tokens[np.argmin((self._inside if quoted else self._outside)[tokens])])

    def guide(self, grammar: str) -> Guide:
        """Raises `EngineError` (INVALID_REQUEST) for a grammar that cannot be used."""
        matcher = llguidance.LLMatcher(self.library, llguidance.LLMatcher.grammar_from_lark(grammar), log_level=0)
        if matcher.is_error():
            why = matcher.get_error().splitlines()[0].rpartition("JSON schema: ")[2][:200]
            raise EngineError(ErrorCode.INVALID_REQUEST, f"the JSON schema cannot be used: {why}")
        return Guide(self, matcher)


class Guide:
    """One answer's way through a grammar."""

    def __init__(self, vocabulary: Vocabulary, matcher: llguidance.LLMatcher) -> None:
        self._vocabulary = vocabulary
        self._matcher = matcher
        self._quotes = _Quotes()
        self._way: list[int] | None = []  # out, when it was looked for the last time
        self._way_is_from_here = False
        self._since = LOOKS  # tokens, since then
        self._forced: list[int] | None = None  # the way out, once it is taken

    def allowed(self) -> torch.Tensor:
        """(vocabulary,) True for the tokens that may be next. Raises `EngineError`."""
        mask = _mask(self._matcher)
        if self._forced is not None:
            mask[:] = False
            mask[self._next_forced()] = True
        return torch.from_numpy(mask[: self._vocabulary.size])

    def take(self, token: int, left: int) -> int:
        """Go on by the token that was chosen, where at most `left` may still be written; or by the next on the way out,
        if that would be too long after it: which it is. Raises `EngineError`."""
        token = self._settled(token, left)
        if not self._matcher.consume_token(token):
            raise EngineError(ErrorCode.ENGINE_FAILED, "the answer left its grammar")
        self._quotes.read(self._vocabulary.bytes_of(token))
        if self._forced:
            self._forced.pop(0)
        return token

    def follow(self, tokens: list[int]) -> bool:
        """Take what was written before; False if the grammar does not admit it, and the guide is of no use then."""
        if self._matcher.try_consume_tokens(tokens) != len(tokens):
            return False
        for token in tokens:
            self._quotes.read(self._vocabulary.bytes_of(token))
        return True

    def follow_text(self, text: str) -> bool:
        """The same, of text."""
        return self.follow(self._vocabulary.library.tokenize_str(text))

    def _settled(self, token: int, left: int) -> int:
        """The way out is looked for now and then, and with each token when the end is near."""
        self._since += 1
        if self._forced is not None or token in self._vocabulary.ends:
            return token
        if self._since < LOOKS and left > 2 * len(self._way or ()) + NEAR:
            self._way_is_from_here = False
            return token
        before = self._way if self._way_is_from_here else self._way_out([])
        after = self._way_out([token])
        fits_before = before is not None and len(before) < left  # with the token that ends the answer
        if fits_before and (after is None or len(after) + 1 >= left):
            self._forced = before
            return self._next_forced()
        self._way, self._way_is_from_here, self._since = after, True, 0
        return token

    def _next_forced(self) -> int:
        return self._forced[0] if self._forced else min(self._vocabulary.ends)

    def _way_out(self, first: list[int]) -> list[int] | None:
        """The tokens from behind `first` to where the answer may end; None if there are too many."""
        matcher, quotes, way = self._matcher.deep_copy(), self._quotes.copied(), list[int]()
        matcher.try_consume_tokens(first)
        for token in first:
            quotes.read(self._vocabulary.bytes_of(token))
        while len(way) < LONGEST_WAY:
            token = self._vocabulary.way_out(_mask(matcher), quoted=quotes.inside)
            if token in self._vocabulary.ends:
                return way
            way.append(token)
            matcher.consume_token(token)
            quotes.read(self._vocabulary.bytes_of(token))
        return None


class _Quotes:
    """Within a string of JSON, or not."""

    def __init__(self) -> None:
        self.inside = False
        self._escaped = False

    def copied(self) -> _Quotes:
        other = _Quotes()
        other.inside, other._escaped = self.inside, self._escaped
        return other

    def read(self, text: bytes) -> None:
        for byte in text:
            if self._escaped:
                self._escaped = False
            elif byte == 0x5C and self.inside:
                self._escaped = True
            elif byte == 0x22:
                self.inside = not self.inside


def _mask(matcher: llguidance.LLMatcher) -> np.ndarray[Any, Any]:
    """(vocabulary,) of booleans. Raises `EngineError`."""
    mask = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8), bitorder="little").astype(bool)
    if matcher.is_error() or not mask.any():
        raise EngineError(ErrorCode.ENGINE_FAILED, "the grammar came to no end")
    return mask


def _ranks(known: bytes) -> np.ndarray[Any, Any]:
    ranks = np.full(256, len(known))
    ranks[list(known)] = np.arange(len(known))
    return ranks
