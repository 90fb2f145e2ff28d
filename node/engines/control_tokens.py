"""Which tokens of a tokenizer are control tokens, and how a text is encoded so that none of them comes out.

Rule: every added token is a control token, flagged special or not: models mark turns, tools and thoughts with either
kind. Two kinds are not. Runs of spaces and line ends are text. The token for unknown characters, where that is its only
job, says nothing to a model but that a character is unknown.

A text is encoded by a copy of the tokenizer to which these names are unknown, so that no character is added and none
lost. What comes out is looked at all the same: a name that still became a token is cut into pieces, down to characters;
a character that has no other token is left out. A text that a library encodes (`broken_up`) gets a mark in each name.
"""

from __future__ import annotations

import itertools
import json
import secrets
from collections.abc import Collection, Iterator
from typing import Any

ROUNDS = 3  # a mark may complete another name, in a strange vocabulary


class ControlTokens:
    """A tokenizer's control tokens. `ids` never come from a text; `names` are what somebody could write for them."""

    def __init__(self, tokenizer: Any, stop_tokens: Collection[int] = ()) -> None:
        """`stop_tokens` end an answer by the model's word; a few models name one that was never added."""
        self._tokenizer = tokenizer
        added = {token: about.content for token, about in tokenizer.added_tokens_decoder.items()}
        named = {token: name for token, name in added.items() if not _is_space(name)}
        self._added = frozenset(named) - _unknown(tokenizer, stop_tokens)
        self.ids = self._added | {token for token in stop_tokens if token not in added and not self._is_space(token)}
        self.names = sorted(set(named.values()), key=lambda name: (-len(name), name))
        spaces = {name: token for token, name in added.items() if token not in named and name}
        self._plain = _PlainBackend.of(tokenizer, {token: named[token] for token in self._added}, spaces)

    def within(self, ids: Collection[int]) -> list[int]:
        """The control tokens among `ids`, in their order."""
        return [token for token in ids if token in self.ids]

    def written(self, text: str) -> list[int]:
        """How often each name stands in a text."""
        return [text.count(name) for name in self.names]

    def encode_text(self, text: str) -> list[int]:
        """A text's tokens, none of them a control token."""
        ids = self._encode(text)
        if not self.within(ids):
            return ids
        return [token for piece in pieces(text, self.names) for token in self._encode_in_parts(piece)]

    def would_come_out(self, text: str) -> bool:
        """Whether the tokenizer itself, which knows the names, makes a control token of something in the text."""
        return bool(self.within(self._tokenizer(text, add_special_tokens=False)["input_ids"]))

    def _encode_in_parts(self, text: str) -> list[int]:
        ids = self._encode(text)
        if not self.within(ids):
            return ids
        if len(text) < 2:  # a stop token that was never added is an ordinary word too: this one is
            return [token for token in ids if token not in self._added]
        half = len(text) // 2
        return self._encode_in_parts(text[:half]) + self._encode_in_parts(text[half:])

    def _encode(self, text: str) -> list[int]:
        if self._plain is not None:
            return self._plain.encode(text)
        return list(self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])

    def _is_space(self, token: int) -> bool:
        return _is_space(self._tokenizer.decode([token]))


class _PlainBackend:
    """A copy of a tokenizer of the library `tokenizers` to which control tokens' names are text like any other."""

    def __init__(self, backend: Any, named: dict[int, str], spaces: dict[str, int]) -> None:
        from tokenizers import AddedToken, Tokenizer

        facts = json.loads(backend.to_str())
        settings = {token["content"]: token for token in facts["added_tokens"]}
        facts |= {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
        _forget(facts["model"], frozenset(named.values()))
        self._backend = Tokenizer.from_str(json.dumps(facts))
        self._real = dict[int, int]()
        for name, token in spaces.items():
            chosen = {key: value for key, value in settings[name].items() if key not in ("id", "content", "special")}
            taken = self._backend.id_to_token(self._backend.get_vocab_size())
            if self._backend.token_to_id(name) is None and taken is not None:
                continue  # its number here would be another token's: the run is encoded space by space
            self._backend.add_tokens([AddedToken(name, special=False, **chosen)])
            known = self._backend.token_to_id(name)
            if known is not None:
                self._real[known] = token  # the copy counts added tokens anew

    @classmethod
    def of(cls, tokenizer: Any, named: dict[int, str], spaces: dict[str, int]) -> _PlainBackend | None:
        """None where the tokenizer is written in Python: such a one splits added tokens of both kinds when asked."""
        backend = getattr(tokenizer, "backend_tokenizer", None)
        return None if backend is None or not hasattr(backend, "to_str") else cls(backend, named, spaces)

    def encode(self, text: str) -> list[int]:
        return [self._real.get(token, token) for token in self._backend.encode(text, add_special_tokens=False).ids]


def broken_up(text: str, names: Collection[str], mark: str) -> str:
    """The text with `mark` after the first character of every name, wherever names overlap too."""
    for _ in range(ROUNDS):
        cut = pieces(text, names)
        if len(cut) == 1:
            break
        text = mark.join(cut)
    return text


def pieces(text: str, names: Collection[str]) -> list[str]:
    """The text cut after the first character of every name in it. A name of one character cannot be cut."""
    places = {place + 1 for name in names if len(name) > 1 for place in _places(text, name)}
    return [text[start:end] for start, end in itertools.pairwise([0, *sorted(places), len(text)])]


def _places(text: str, name: str) -> Iterator[int]:
    place = text.find(name)
    while place >= 0:
        yield place
        place = text.find(name, place + 1)


def _is_space(name: str) -> bool:
    """SentencePiece writes a space as a low line of its own; an empty name matches nothing."""
    return not name.replace("\u2581", " ").strip()


def _unknown(tokenizer: Any, stop_tokens: Collection[int]) -> frozenset[int]:
    """The token for unknown characters; empty if it has another job, as GPT-2's has, which ends a text too."""
    jobs = ("bos", "eos", "pad", "sep", "cls", "mask")
    others = {getattr(tokenizer, f"{job}_token_id", None) for job in jobs} | set(stop_tokens)
    unknown = getattr(tokenizer, "unk_token_id", None)
    return frozenset() if unknown is None or unknown in others else frozenset({unknown})


def _forget(model: dict[str, Any], names: frozenset[str]) -> None:
    """Give the names in a vocabulary other ones that nobody can guess: some models find a whole word in it at once.
    The numbers stay as they are."""
    vocabulary = model["vocab"]
    if isinstance(vocabulary, list):
        model["vocab"] = [[_nobodys() if name in names else name, score] for name, score in vocabulary]
        return
    model["vocab"] = {_nobodys() if name in names else name: token for name, token in vocabulary.items()}
    if model.get("merges"):
        model["merges"] = [merge for merge in model["merges"] if names.isdisjoint(_words(merge))]


def _words(merge: str | list[str]) -> tuple[str, str, str]:
    """The two words that a merge joins, and what they become."""
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left, right, left + right


def _nobodys() -> str:
    return secrets.token_hex(16)
