"""What the embedded eyes say: a question in, sentences out.

Rule: every sentence states a fact that was measured or a share that a network gave, with its number; what these tools
cannot know is said to be unknown. Nothing is asked of a language model, so nothing is invented. The same picture and
question give the same words, so that another worker can go on where one stopped.

A table maps the form of a question to who answers it; the first that matches does. Questions are understood in English.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from node.engines.vision_faces import Face
from node.engines.vision_measures import Measures
from node.engines.vision_reading import Line
from node.engines.vision_things import FAMILIES, PEOPLE, Guess, guesses, likeliest, means, normalise, total

SURE, LIKELY = 0.5, 0.2  # shares from which a guess is told as one
WORTH_TELLING = 0.02  # of a further guess
PRESENT = 0.3  # of a thing asked for, in the whole picture or in a part of it
MOST_LETTERS = 12_000  # of the text that is told
MOST_ASKED = 300  # letters of a question that its form is looked for in: a search may take their square
MOST_PLACES = 12  # of faces that are told one by one

PLACES = (
    ("upper left", "top", "upper right"),
    ("left", "middle", "right"),
    ("lower left", "bottom", "lower right"),
)
ABOUT = (
    "(These are simple tools, not a visual language model: a classifier of 1,000 kinds, a reader of text, a finder of "
    "faces and measurements. They count nothing but faces and words, and recognise nobody.)"
)

Shares = Sequence[float]
Sentences = Iterator[str | None]  # None after a step of work


class Look(Protocol):
    """One picture, looked at as far as it is asked."""

    width: int  # pixels
    height: int
    labels: Sequence[str]

    def measures(self) -> Measures:
        """Colours and the like."""

    def shares(self) -> Shares:
        """The classifier's shares for the whole picture."""

    def parts(self) -> Iterator[tuple[str, Shares] | None]:
        """(place, shares) for nine overlapping parts; None after a step."""

    def lines(self) -> Iterator[Line | None]:
        """The lines of text; None after a step."""

    def faces(self) -> Iterator[Face | None]:
        """Faces seen from the front; None after a step."""


@dataclass(frozen=True, slots=True)
class Question:
    """A form of question and who answers it. The group "thing" is what it asks about."""

    form: re.Pattern[str]
    answer: Callable[[Look, str], Sentences]


def answer(looks: Sequence[Look], question: str) -> Sentences:
    """The whole answer, sentence by sentence."""
    respond, thing = understand(question)
    for index, look in enumerate(looks, 1):
        if len(looks) > 1:
            yield f"Picture {index}:" if index == 1 else f"\n\nPicture {index}:"
        yield from respond(look, thing)
    yield "\n\n" + ABOUT


def understand(question: str) -> tuple[Callable[[Look, str], Sentences], str]:
    """Who answers a question, and the thing that it asks about ("" where there is none)."""
    for known in QUESTIONS:
        found = known.form.search(question[:MOST_ASKED])
        if found:
            return known.answer, normalise(found.groupdict().get("thing") or "")
    return describe, ""


# --- who answers -------------------------------------------------------------------------------------------


def describe(look: Look, thing: str) -> Sentences:
    """Everything in short."""
    yield _what_it_shows(look.shares(), look.labels)
    yield _kind(look.measures())
    yield _size(look)
    yield _colours(look.measures())
    yield from _mention_faces(look)
    lines = yield from _read(look)
    if lines:
        yield f"It holds {_count(len(lines), 'line')} of text: " + _quoted(lines)
    else:
        yield "No text was found in it."


def _tell_text(look: Look, thing: str) -> Sentences:
    lines = yield from _read(look)
    if not lines:
        yield "No text was found in it."
        return
    surety = sum(line.confidence for line in lines) / len(lines)
    yield f"It reads ({_count(len(lines), 'line')}, {_percent(surety)} sure on average):"
    yield "\n" + "\n".join(_shortened(lines))


def _tell_class(look: Look, thing: str) -> Sentences:
    yield _what_it_shows(look.shares(), look.labels)
    yield _kind(look.measures())
    yield from _mention_faces(look)
    lines = yield from _read(look)
    if lines:
        yield f"It holds {_count(len(lines), 'line')} of text, beginning: " + _quoted(lines[:3])


def _tell_count(look: Look, thing: str) -> Sentences:
    if thing in ("line", "word", "letter", "line of text") or "text" in thing.split():
        lines = yield from _read(look)
        words = [word for line in lines for word in line.text.split()]
        letters = sum(len(word) for word in words)
        found = f"{_count(len(words), 'word')} and {_count(letters, 'letter')}"
        yield f"It holds {_count(len(lines), 'line')} of text with {found}."
        return
    if thing in PEOPLE:
        yield from _tell_faces(look, thing)
        return
    if "pixel" in thing.split():
        yield f"It has {look.width * look.height:,} pixels."
        return
    yield "How many cannot be told: what a picture shows is recognised, but things are not counted."
    yield from _tell_presence(look, thing)


def _tell_place(look: Look, thing: str) -> Sentences:
    if thing in PEOPLE:
        yield from _tell_faces(look, thing)
        return
    kinds = means(thing, look.labels)
    if not kinds:
        yield _unknown(thing)
        yield from _tell_words_of(look, thing)
        yield _what_it_shows(look.shares(), look.labels)
        return
    parts = yield from _parts(look)
    place, shares = max(parts, key=lambda part: total(kinds, part[1]))
    share = total(kinds, shares)
    if share < PRESENT:
        yield f"No {thing} was recognised in any part of it (at most {_percent(share)})."
        yield _what_it_shows(look.shares(), look.labels)
        return
    yield f"The part that looks most like it ({thing}): {place} ({_percent(share)})."
    others = [f"{name} {_percent(total(kinds, each))}" for name, each in parts if name != place]
    yield f"Nine overlapping parts were compared; the others: {', '.join(others)}."


def _tell_presence(look: Look, thing: str) -> Sentences:
    if thing in ("text", "writing", "word", "letter", "line of text"):
        lines = yield from _read(look)
        yield f"Yes, there is text in it: {_quoted(lines)}" if lines else "No text was found in it."
        return
    colour = next((name for name, share in look.measures().colours if name.split()[-1] == thing), None)
    if colour is not None:
        yield f"Yes, {colour} is among its colours."
        yield _colours(look.measures())
        return
    if thing in PEOPLE:
        yield from _tell_faces(look, thing)
        return
    kinds = means(thing, look.labels)
    if not kinds:
        yield _unknown(thing)
        yield from _tell_words_of(look, thing)
        yield _what_it_shows(look.shares(), look.labels)
        return
    yield from _tell_known(look, thing, kinds)


def _tell_known(look: Look, thing: str, kinds: frozenset[int]) -> Sentences:
    whole = total(kinds, look.shares())
    if whole >= PRESENT:
        closest = look.labels[likeliest(kinds, look.shares())]
        word = "Yes" if whole >= SURE else "Perhaps"
        yield f"{word}: the picture as a whole looks like: {thing} ({_percent(whole)}{_but(thing, closest)})."
        return
    parts = yield from _parts(look)
    place, shares = max(parts, key=lambda part: total(kinds, part[1]))
    share = total(kinds, shares)
    if share >= SURE:
        closest = look.labels[likeliest(kinds, shares)]
        yield f"Probably: one part of it ({place}) looks like: {thing} ({_percent(share)}{_but(thing, closest)})."
    else:
        yield (
            f"No {thing} was recognised in it (whole picture {_percent(whole)}, likeliest part {_percent(share)}); "
            "a small one may be missed."
        )
    yield _what_it_shows(look.shares(), look.labels)


def _tell_faces(look: Look, thing: str) -> Sentences:
    faces = yield from _faces(look)
    if not faces:
        yield "No face seen from the front was found; people seen otherwise, or small ones, would be missed."
        return
    yield f"It shows {_count(len(faces), 'face')} seen from the front: {_at(look, faces)}."
    yield "People seen otherwise are not counted; who they are, and of what age and sex, is not judged."


def _mention_faces(look: Look) -> Sentences:
    faces = yield from _faces(look)
    if faces:
        yield f"It shows {_count(len(faces), 'face')} seen from the front: {_at(look, faces)}."


def _tell_colours(look: Look, thing: str) -> Sentences:
    yield _colours(look.measures())
    if thing and thing not in ("picture", "image", "photo", "it", "this", "that", "main color", "main colour"):
        yield f"These are the whole picture's; the colour of the {thing} alone cannot be told."


def _tell_size(look: Look, thing: str) -> Sentences:
    yield _size(look)


def _tell_light(look: Look, thing: str) -> Sentences:
    measures = look.measures()
    yield f"Its brightness is {measures.light}: {_percent(measures.brightness)} on average (black is 0 %, white 100 %)."


def _tell_kind(look: Look, thing: str) -> Sentences:
    yield _kind(look.measures())
    yield _what_it_shows(look.shares(), look.labels)


def _tell_words_of(look: Look, thing: str) -> Sentences:
    """A word that no kind carries may still be written there."""
    lines = yield from _read(look)
    found = [line for line in lines if thing and thing in line.text.lower()]
    if found:
        yield f"But it is written there: {_quoted(found[:3])}"


# --- sentences ---------------------------------------------------------------------------------------------


def _what_it_shows(shares: Shares, labels: Sequence[str]) -> str:
    first, *others = guesses(shares, labels, 4)
    rest = ", ".join(_named(each) for each in others if each.share >= WORTH_TELLING)
    if first.share >= SURE:
        told = f"It most likely shows: {_named(first)}"
    elif first.share >= LIKELY:
        told = f"It may show: {_named(first)}"
    else:
        told = f"What it shows was not recognised; the best of weak guesses is {_named(first)}"
    return f"{told}; then {rest}." if rest else f"{told}."


def _kind(measures: Measures) -> str:
    share = f"{_percent(measures.flat)} of neighbouring pixels are equal"
    if measures.drawn is None:
        return f"Whether it is a photo or drawn cannot be told ({share})."
    if measures.drawn:
        return f"It looks like a drawing, a screenshot or a very smooth picture ({share})."
    return f"It looks like a photo ({share})."


def _size(look: Look) -> str:
    shape = "square" if look.width == look.height else "landscape" if look.width > look.height else "portrait"
    return f"It has {look.width} x {look.height} pixels ({shape})."


def _colours(measures: Measures) -> str:
    named = ", ".join(f"{name} ({_percent(share)})" for name, share in measures.colours) or "too many to name one"
    end = " It has no colours but greys." if measures.colourless else ""
    return f"Its main colours: {named}; its brightness is {measures.light} ({_percent(measures.brightness)}).{end}"


def _unknown(thing: str) -> str:
    families = ", ".join(family.name for family in FAMILIES[2:12])
    return f"“{thing or 'that'}” is not among the 1,000 kinds that are known here (such as {families})."


def _at(look: Look, faces: Sequence[Face]) -> str:
    """Where faces are, in words and in pixels."""
    told = [f"{_place(look, face)} ({face.side:.0f} pixels wide)" for face in faces[:MOST_PLACES]]
    more = len(faces) - len(told)
    return ", ".join([*told, f"{more} more"] if more else told)


def _place(look: Look, face: Face) -> str:
    """Which ninth of the picture its middle lies in."""
    column = min(2, int(3 * (face.left + face.side / 2) / look.width))
    row = min(2, int(3 * (face.top + face.side / 2) / look.height))
    return PLACES[max(0, row)][max(0, column)]


def _named(guess: Guess) -> str:
    return f"{guess.name} ({_percent(guess.share)}{f', closest to {guess.closest}' if guess.closest else ''})"


def _but(thing: str, closest: str) -> str:
    return "" if thing == closest.lower() else f", closest to {closest}"


def _quoted(lines: Sequence[Line]) -> str:
    return " / ".join(f"“{text}”" for text in _shortened(lines))


def _shortened(lines: Sequence[Line]) -> list[str]:
    told: list[str] = []
    room = MOST_LETTERS
    for line in lines:
        if len(line.text) > room:
            return [*told, "…"]
        told.append(line.text)
        room -= len(line.text)
    return told


def _percent(share: float) -> str:
    return f"{share:.0%}".replace("%", " %")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _read(look: Look) -> Generator[None, None, list[Line]]:
    """Yields steps, returns the lines."""
    lines: list[Line] = []
    for line in look.lines():
        if line is not None:
            lines.append(line)
        yield None
    return lines


def _faces(look: Look) -> Generator[None, None, list[Face]]:
    """Yields steps, returns the faces."""
    faces: list[Face] = []
    for face in look.faces():
        if face is not None:
            faces.append(face)
        yield None
    return faces


def _parts(look: Look) -> Generator[None, None, list[tuple[str, Shares]]]:
    """Yields steps, returns the parts."""
    parts: list[tuple[str, Shares]] = []
    for part in look.parts():
        if part is not None:
            parts.append(part)
        yield None
    return parts


# --- forms -------------------------------------------------------------------------------------------------

END = r"(?=[?.!,;]|\s+(?:in|on|at|here|there|visible|can|do|are|is|does|has|have)\b|$)"
THING = rf"(?!(?:in|on|at|here|there)\b)(?:the |a |an |any |some |my )?(?P<thing>[\w' -]+?){END}"


def _form(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE)


QUESTIONS = (
    Question(_form(rf"\b(?:how many|number of|count)\s+{THING}"), _tell_count),
    Question(_form(r"\b(read|say|says|written|transcribe|ocr|what text)\b"), _tell_text),
    Question(_form(r"\bwho\b"), _tell_faces),
    Question(_form(rf"\bwhere(?:'s| is| are)\s+{THING}"), _tell_place),
    Question(_form(rf"\bcolou?rs?\b(?:.*?\b(?:of|is|are|has|have)\s+{THING})?"), _tell_colours),
    Question(
        _form(r"\b(how (big|large|wide|tall|high)|size|resolution|dimensions|orientation|portrait|landscape)\b"),
        _tell_size,
    ),
    Question(
        _form(r"\b(how (bright|dark)|brightness|(is|are) (it|this|that) (too |very )?(bright|dark))\b"), _tell_light
    ),
    Question(
        _form(r"\b(is|are) (it|this|that|these)\b.*\b(photo|photograph|drawing|screenshot|painting)s?\b"), _tell_kind
    ),
    Question(
        _form(
            rf"\b(?:(?:is|are) there|(?:do|can) (?:you|we|i) see|(?:does|do) .*?(?:show|contain|have|hold)|"
            rf"(?:is|are) (?:this|it|that|these))\s+{THING}"
        ),
        _tell_presence,
    ),
    Question(_form(r"\b(what (is|are)|what's|which|identify|classify)\b"), _tell_class),
)
