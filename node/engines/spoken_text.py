"""What is read aloud: plain text, in sentences, in a script that the voice knows.

Rule: control characters and formatting marks are no text; nothing is skipped in silence that a listener would miss: a
text with letters of another script is refused, with those letters named. Work is linear in the text's length.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

from node.engines.sound import invalid

MOST_CHARACTERS = 4_096  # of one text, as OpenAI's API has it
LONGEST_SENTENCE = 300  # letters that are spoken in one go
SPOKEN_OUT = 6  # letters that a digit or a sign is worth: it is read as a word
LONGEST_WORD = 40
LONGEST_NUMBER = 30  # digits; a longer row is read in pieces of three
ENDS = frozenset(".!?…。！？")
CLOSING = frozenset("\"'”’)]»")
TITLES = frozenset(
    ("mr", "mrs", "ms", "dr", "prof", "st", "gen", "gov", "sen", "capt", "lt", "col", "sgt", "no", "vs", "e.g", "i.e")
)
LONG_NUMBER = re.compile(rf"\d{{{LONGEST_NUMBER},}}", re.ASCII)
MARKUP = re.compile(r"[\[\]]")  # the pronunciation marks of some voices: a stranger's text is text


def plain_text(text: str) -> str:
    """`text` with what has no sound removed. Raises `EngineError` (INVALID_REQUEST)."""
    if len(text) > MOST_CHARACTERS:
        raise invalid(f"the text has {len(text)} characters; at most {MOST_CHARACTERS} are spoken; send it in parts")
    spaced = "".join(" " if unicodedata.category(each) in ("Cc", "Zs") and each != "\n" else each for each in text)
    plain = unicodedata.normalize(
        "NFKC", "".join(each for each in spaced if unicodedata.category(each)[0] != "C" or each == "\n")
    )
    if len(plain) > MOST_CHARACTERS:  # some signs stand for whole phrases
        raise invalid(f"the text is too long to be spoken; at most {MOST_CHARACTERS} letters are; send it in parts")
    plain = LONG_NUMBER.sub(lambda found: " ".join(_threes(found[0])), MARKUP.sub(" ", plain))
    if not any(each.isalnum() for each in plain):
        raise invalid("there is nothing in this text that can be spoken")
    return plain


def check_speakable(text: str, scripts: tuple[str, ...], known: str) -> None:
    """Raises `EngineError` for letters whose Unicode names begin with none of `scripts`; `known` says what is read."""
    foreign = [each for each in text if each.isalpha() and not unicodedata.name(each, "").startswith(scripts)]
    if foreign:
        raise invalid(f"this voice reads {known}; it cannot read {''.join(dict.fromkeys(foreign))[:10]}")


def sentences(text: str) -> Iterator[str]:
    """Sentences of `text`, each with a word or a number in it and some seconds long at most."""
    for paragraph in text.split("\n"):
        line: list[str] = []
        for word in _words(paragraph):
            if line and sum(map(_length, line)) + _length(word) > LONGEST_SENTENCE:
                yield from _spoken(line)
                line = []
            line.append(word)
            if _ends(word):
                yield from _spoken(line)
                line = []
        yield from _spoken(line)


def _length(word: str) -> int:
    return 1 + sum(1 if each.isalpha() else SPOKEN_OUT for each in word)


def _spoken(words: list[str]) -> Iterator[str]:
    sentence = " ".join(words)
    if any(each.isalnum() for each in sentence):
        yield sentence


def _words(paragraph: str) -> Iterator[str]:
    """Words; an endless one in pieces."""
    for word in paragraph.split():
        for start in range(0, len(word), LONGEST_WORD):
            yield word[start : start + LONGEST_WORD]


def _ends(word: str) -> bool:
    """True if a sentence ends with this word: not with a title's full stop, nor an initial's."""
    bare = word.rstrip("".join(CLOSING))
    if not bare or bare[-1] not in ENDS:
        return False
    stem = bare[:-1].lstrip("(\"'“‘[")
    return bare[-1] != "." or not (stem.lower() in TITLES or (len(stem) == 1 and stem.isupper()))


def _threes(digits: str) -> Iterator[str]:
    for start in range(0, len(digits), 3):
        yield digits[start : start + 3]
