"""What Whisper's tokens mean: words, times, languages, tasks; which may follow which; how words and times are segments.

Rule: times come in pairs and never run back; a window begins with a time; control tokens are never an answer. As in
Whisper's own decoding (https://github.com/openai/whisper, MIT), written anew. Pure: no model, no sound.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

FRAME_SECONDS = 0.02  # one step of a time token
LATEST_START = 50  # steps: a window's first word begins within a second
NEVER = float("-inf")


@dataclass(frozen=True, slots=True)
class Segment:
    """Something that was said. Times in seconds from the sound's beginning."""

    start: float
    end: float
    text: str
    tokens: int


class Grammar:
    """Control tokens of a tokenizer by what they mean, and the rules of their order."""

    def __init__(self, tokenizer: Any, *, multilingual: bool, suppressed: Sequence[int], first: Sequence[int]) -> None:
        """`suppressed` tokens are never said, `first` ones not as a window's first word. Raises `ValueError` if this is
        no Whisper tokenizer."""
        needed = {name: tokenizer.token_to_id(f"<|{name}|>") for name in ("endoftext", "startoftranscript")}
        needed |= {name: tokenizer.token_to_id(f"<|{name}|>") for name in ("startofprev", "notimestamps")}
        tasks = {name: tokenizer.token_to_id(f"<|{name}|>") for name in ("transcribe", "translate")}
        absent = [name for name, token in (needed | (tasks if multilingual else {})).items() if token is None]
        if absent:
            raise ValueError(f"the tokenizer is none of Whisper: it has no {', '.join(absent)}")
        self.end: int = needed["endoftext"]
        self.start: int = needed["startoftranscript"]
        self.previous: int = needed["startofprev"]
        self.first_time: int = needed["notimestamps"] + 1
        self.tasks: dict[str, int] = tasks
        silence = tokenizer.token_to_id("<|nospeech|>")
        self.silence: int | None = tokenizer.token_to_id("<|nocaptions|>") if silence is None else silence
        self.languages: dict[str, int] = _languages(tokenizer, self.start) if multilingual else {}
        self._tokenizer = tokenizer
        self._suppressed, self._first = list(suppressed), list(first)

    def text(self, tokens: Sequence[int]) -> str:
        """The words among `tokens`."""
        text: str = self._tokenizer.decode([token for token in tokens if token < self.end])
        return text

    def opening(self, before: Sequence[int], language: str, *, translate: bool) -> list[int]:
        """What a window's tokens follow: what was said before, language and task."""
        opening = [self.previous, *before, self.start] if before else [self.start]
        if self.languages:
            opening += [self.languages[language], self.tasks["translate" if translate else "transcribe"]]
        return opening

    def allowed(self, logits: torch.Tensor, said: Sequence[int]) -> torch.Tensor:
        """(vocabulary,) -> (vocabulary,): minus infinity for what may not follow `said`."""
        logits = logits.clone()
        logits[self._suppressed] = NEVER
        logits[self.end + 1 : self.first_time] = NEVER
        if not said:
            logits[self._first] = NEVER
            logits[: self.first_time] = NEVER
            logits[self.first_time + LATEST_START + 1 :] = NEVER
            return logits
        timed = said[-1] >= self.first_time
        if timed and (len(said) < 2 or said[-2] >= self.first_time):
            logits[self.first_time :] = NEVER  # a pair is closed: words, or the end
        elif timed:
            logits[: self.end] = NEVER  # one time: its other half, or the end
        times = [token for token in said if token >= self.first_time]
        if times:
            logits[self.first_time : times[-1] + (0 if timed else 1)] = NEVER
        return self._timed(logits)

    def _timed(self, logits: torch.Tensor) -> torch.Tensor:
        """If a time of any kind is likelier than the likeliest word, it is a time."""
        if logits[self.first_time :].logsumexp(-1) > logits[: self.first_time].max():
            logits[: self.first_time] = NEVER
        return logits

    def segments(self, tokens: Sequence[int], offset: float, seconds: float) -> tuple[list[Segment], float]:
        """What was said in a window of `seconds` that begins at `offset`, and how much of it is done with: words
        without an end are cut by the window's end and heard again in the next one, unless they fill this one."""
        found: list[Segment] = []
        words: list[int] = []
        start = last = 0.0
        for token in tokens:
            if token < self.end:
                words.append(token)
                continue
            last = min((token - self.first_time) * FRAME_SECONDS, seconds)
            if words:
                found.append(Segment(offset + start, offset + last, self.text(words), len(words)))
                words = []
            start = last
        paired = len(tokens) > 1 and min(tokens[-2:]) >= self.first_time
        if found and last > 0 and (words or paired):
            return found, last
        if words:
            found.append(Segment(offset + start, offset + seconds, self.text(words), len(words)))
        return found, seconds


def _languages(tokenizer: Any, start: int) -> dict[str, int]:
    """Codes of two or three letters by their token."""
    found = {}
    for token, number in tokenizer.get_vocab(with_added_tokens=True).items():
        code = token[2:-2]
        if number > start and token == f"<|{code}|>" and 2 <= len(code) <= 3 and code.isalpha():
            found[code] = number
    return found


def repetition(text: str) -> float:
    """Bytes of a text a byte of its compressed form: above 2.4 it says the same again and again."""
    data = text.encode()
    return len(data) / len(zlib.compress(data)) if data else 0.0


def cue(segment: Segment) -> str:
    """A WebVTT cue. An arrow or a blank line in a text would end it."""
    text = " ".join(segment.text.replace("-->", "->").split())
    return f"{_stamp(segment.start)} --> {_stamp(segment.end)}\n{text}\n\n"


def _stamp(seconds: float) -> str:
    minutes, milliseconds = divmod(round(seconds * 1_000), 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{milliseconds / 1_000:06.3f}"
