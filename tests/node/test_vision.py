"""$VISION in the child process: the embedded eyes, and vision-language models of transformers (tiny random ones)."""

import io
import json
import math
import os
import pickle
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from node.engines import vision_chat
from node.engines.backend import Loaded, Turns
from node.engines.convert_vision import SOURCES, convert
from node.engines.port import EngineError, EngineEvent, Finished, Piece, Prompted
from node.engines.tiny_vision import MAKERS
from node.engines.vision_answers import ABOUT
from node.engines.vision_chat import VisionChat
from node.engines.vision_composed import ComposedEyes, Tools, respond
from node.engines.vision_faces import Face, FaceFinder
from node.engines.vision_measures import measure
from node.engines.vision_reading import Box, Line, find_boxes, in_reading_order, smallest_box, straighten
from node.engines.vision_things import means, normalise
from protocol.errors import ErrorCode
from protocol.messages import Device, Media, Turn, VisionRequest

REPOSITORY = Path(__file__).resolve().parents[2]


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def plain(colour: str, size: tuple[int, int] = (64, 48)) -> bytes:
    return png(Image.new("RGB", size, colour))


def vision_request(
    question: str | Sequence[Turn],
    media: Sequence[int] = (0,),
    *,
    max_tokens: int = 0,
    temperature: int = 0,
    seed: int = 0,
    stop: tuple[str, ...] = (),
) -> VisionRequest:
    """`media`: the turns that show a picture each."""
    turns = (Turn("user", question),) if isinstance(question, str) else tuple(question)
    return VisionRequest(
        turns=turns,
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=1_000,
        top_k=0,
        repetition_penalty=1_000,
        frequency_penalty=2_000,
        presence_penalty=2_000,
        seed=seed,
        stop=stop,
        media=tuple(Media("image", 1, turn) for turn in media),
    )


def text_of(events: Sequence[EngineEvent | None]) -> str:
    return "".join(event.text for event in events if isinstance(event, Piece))


def check_counts(events: Sequence[EngineEvent | None]) -> Finished:
    """The order of events, and that no piece counts more than one unit."""
    shown = [event for event in events if event is not None]
    first, *pieces, last = shown
    assert isinstance(first, Prompted) and isinstance(last, Finished)
    counts = [0, *(piece.units_out for piece in pieces if isinstance(piece, Piece))]
    assert len(counts) == len(pieces) + 1
    assert all(after - before in (0, 1) for before, after in pairwise(counts))
    assert (last.units_in, last.units_out) == (first.units_in, counts[-1])
    return last


# --- the embedded eyes, with tools that are told what they see ---------------------------------------------

KINDS = {"dog": 207, "banana": 954, "laptop": 620}
LABELS = [f"kind {number}" for number in range(1_000)]
LABELS[207], LABELS[954], LABELS[620] = "Golden Retriever", "banana", "laptop computer"


class ToldSorter:
    """Sees yellow as a banana and brown as a dog: the share is the pixels' share."""

    def __init__(self, shares: Mapping[str, float] | None = None) -> None:
        self._shares = shares

    def shares(self, views: Sequence[Image.Image]) -> torch.Tensor:
        found = torch.full((1_000,), 1e-6)
        for name, kind in KINDS.items():
            found[kind] = self._share(name, views[-1])
        return found

    def _share(self, name: str, view: Image.Image) -> float:
        if self._shares is not None:
            return self._shares.get(name, 0.0)
        colour = {"banana": (255, 255, 0), "dog": (139, 69, 19)}.get(name, (1, 2, 3))
        return float((np.asarray(view) == colour).all(axis=2).mean())


class ToldScribe:
    """Reads the lines that it was told."""

    def __init__(self, *lines: str) -> None:
        self._lines = lines

    def read(self, image: Image.Image) -> Iterator[Line | None]:
        yield None
        for number, text in enumerate(self._lines):
            yield Line(text, 0.9, Box(10, 10 * number, 20, 8, 0))


class ToldFinder:
    """Finds the faces that it was told, in pixels of what it is shown."""

    def __init__(self, *faces: Face) -> None:
        self._faces = faces

    def find(self, image: Image.Image) -> Iterator[Face | None]:
        yield None
        yield from self._faces


def eyes(shares: Mapping[str, float] | None = None, *lines: str, faces: Sequence[Face] = ()) -> Tools:
    return Tools(ToldSorter(shares), ToldScribe(*lines), ToldFinder(*faces), LABELS)


def ask(tools: Tools, question: str, picture: bytes = b"", prefix: str = "") -> str:
    events = list(respond(tools, vision_request(question), prefix, [picture or plain("red")]))
    check_counts(events)
    return text_of(events)


DOG = {"dog": 0.62}


@pytest.mark.parametrize(
    ("question", "told"),
    [
        ("What is this?", "It most likely shows: dog (62 %, closest to Golden Retriever)"),
        (
            "Is there a dog in the picture?",
            "Yes: the picture as a whole looks like: dog (62 %, closest to Golden Retriever)",
        ),
        ("Do you see any bananas?", "No banana was recognised in it (whole picture 0 %"),
        ("Is there a spaceship here?", "“spaceship” is not among the 1,000 kinds"),
        ("Are there people?", "No face seen from the front was found"),
        ("How many dogs are there?", "How many cannot be told"),
        ("How many words are in it?", "It holds 2 lines of text with 3 words and 14 letters."),
        ("What does it say?", "Danger zone\nStop"),
        ("Is there any text?", "Yes, there is text in it: “Danger zone” / “Stop”"),
        ("Where is the zone?", "But it is written there: “Danger zone”"),
        ("What colour is the dog?", "red (100 %)"),
        ("What colour is the dog?", "the colour of the dog alone cannot be told"),
        ("Is there anything red?", "Yes, red is among its colours"),
        ("How big is it?", "It has 64 x 48 pixels (landscape)."),
        ("Is it a photo or a drawing?", "It looks like a drawing"),
        ("Is it dark?", "Its brightness is medium: 30 %"),
        ("Describe it.", "It holds 2 lines of text: “Danger zone” / “Stop”"),
    ],
)
def test_each_form_of_question_is_answered_from_what_was_seen(question: str, told: str) -> None:
    answer = ask(eyes(DOG, "Danger zone", "Stop"), question)
    assert told in answer
    assert answer.count(ABOUT) == 1


def test_of_a_very_long_question_the_beginning_counts() -> None:
    assert "sure on average):\nStop" in ask(eyes(DOG, "Stop"), "Read this: " + "do you does it " * 20_000)
    assert "main colours" in ask(eyes(DOG), "do you does it " * 20_000 + "How big is it?")


def test_what_was_not_found_is_not_told() -> None:
    assert "No text was found" in ask(eyes(DOG), "Read it to me")
    assert "What it shows was not recognised" in ask(eyes({"dog": 0.1}), "What is it?")
    assert "Perhaps" in ask(eyes({"dog": 0.4}), "Is this a dog?")


def test_a_thing_is_found_in_the_part_that_looks_like_it() -> None:
    image = Image.new("RGB", (80, 80), (0, 0, 255))
    image.paste((255, 255, 0), (45, 45, 80, 80))
    assert "(banana): lower right (77 %)" in ask(eyes(), "Where is the banana?", png(image))
    assert "one part of it (lower right) looks like: banana (77 %)" in ask(eyes(), "Is there a banana?", png(image))
    assert "No dog was recognised in any part" in ask(eyes(), "Where is the dog?", png(image))


@pytest.mark.parametrize(
    "question", ["Is there a person?", "How many people are there?", "Where are the faces?", "Who is it?"]
)
def test_of_people_the_faces_are_told(question: str) -> None:
    faces = (Face(0, 0, 20), Face(1_000, 50, 28))  # of a picture that is shown at half its size
    answer = ask(eyes(DOG, faces=faces), question, plain("red", (4_096, 256)))
    assert "It shows 2 faces seen from the front: upper left (40 pixels wide), middle (56 pixels wide)." in answer
    assert "is not judged" in answer


def test_faces_are_mentioned_and_many_are_not_listed() -> None:
    answer = ask(eyes(DOG, faces=[Face(0, 0, 10)] * 20), "Describe it")
    assert "It shows 20 faces" in answer and "8 more." in answer


def test_all_pictures_of_the_last_turn_that_shows_any_are_looked_at() -> None:
    turns = (Turn("user", "What is this?"), Turn("assistant", "A car."), Turn("user", "What colours are these?"))
    pictures = [plain("lime"), plain("red"), plain("blue")]
    answer = text_of(list(respond(eyes(), vision_request(turns, (0, 2, 2)), "", pictures)))
    assert "Picture 1:" in answer and "red (100 %)" in answer
    assert "Picture 2:" in answer and "blue (100 %)" in answer
    assert "green" not in answer


def test_units_are_tiles_and_words() -> None:
    events = list(respond(eyes(), vision_request("How big is it?"), "", [plain("red", (65, 32))]))
    assert check_counts(events).units_in == 3 + 4
    assert check_counts(events).units_out == len(text_of(events).split())
    large = list(respond(eyes(), vision_request(""), "", [plain("red", (4_096, 256))]))
    assert check_counts(large).units_in == 32 * 2  # looked at with 1,024 pixels a side


@pytest.mark.parametrize("words", [1, 7])
def test_no_more_words_than_asked_for(words: int) -> None:
    events = list(respond(eyes(DOG), vision_request("What is it?", max_tokens=words), "", [plain("red")]))
    assert check_counts(events) == Finished("length", check_counts(events).units_in, words)
    assert len(text_of(events).split()) == words


def test_an_answer_ends_before_a_stop_string() -> None:
    whole = ask(eyes(DOG), "What is it?")
    events = list(respond(eyes(DOG), vision_request("What is it?", stop=("closest to",)), "", [plain("red")]))
    assert check_counts(events).finish == "stop"
    assert text_of(events) == whole[: whole.index("closest to")]


def test_a_prefix_is_gone_on_from() -> None:
    tools = eyes(DOG, "Danger zone", "Stop")
    whole = ask(tools, "Describe it")
    for cut in range(0, len(whole), 5):
        assert whole[:cut] + ask(tools, "Describe it", prefix=whole[:cut]) == whole


def test_behind_a_strange_prefix_the_answer_begins_on_a_new_line() -> None:
    assert ask(eyes(DOG), "What is it?", prefix="Another model said").startswith("\nIt most likely shows: dog")


def test_a_damaged_picture_is_refused_before_anything_is_counted() -> None:
    with pytest.raises(EngineError) as caught:
        list(respond(eyes(), vision_request("What?"), "", [plain("red")[:40]]))
    assert caught.value.code == ErrorCode.INVALID_REQUEST


class Told:
    """The eyes of these tests as an `Answerer`."""

    facts = Loaded(0, Device("cpu", "test", 0, 0), 1, (VisionRequest,))

    def answer(self, request: VisionRequest, prefix: str, inputs: Sequence[bytes]) -> Iterator[EngineEvent | None]:
        return respond(eyes(DOG), request, prefix, inputs)


def run_granted(turns: Turns, grant: int, cancel: bool) -> list[EngineEvent]:
    """Steps until nothing can be done with the grant; then cancels, or grants without end."""
    turns.begin(1, vision_request("What?", max_tokens=30), "", [plain("red")])
    turns.grant(1, grant)
    events: list[EngineEvent] = []
    for rest in (False, True):
        while turns.runnable:
            for _, event in turns.step():
                assert not isinstance(event, EngineError)
                events.append(event)
        if not rest:
            assert [event.units_out for event in events if isinstance(event, Piece)][-1] == grant
            turns.cancel(1) if cancel else turns.grant(1, 1_000)
    return events


@pytest.mark.parametrize("cancel", [True, False])
def test_the_eyes_hold_to_their_grant(cancel: bool) -> None:
    last = run_granted(Turns(Told(), 1), 5, cancel)[-1]
    assert isinstance(last, Finished)
    assert (last.finish, last.units_out) == (("cancelled", 5) if cancel else ("length", 30))


# --- their parts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("phrase", "word"),
    [
        ("The Cats", "cat"),
        ("any boxes", "box"),
        ("a puppy", "puppy"),
        ("puppies", "puppy"),
        ("glass", "glass"),
        ("", ""),
    ],
)
def test_a_phrase_becomes_a_word(phrase: str, word: str) -> None:
    assert normalise(phrase) == word


def test_a_word_means_what_carries_it_or_its_family() -> None:
    assert means("banana", LABELS) == {954}
    assert means("laptop", LABELS) == {620}
    assert 207 in means("dog", LABELS) and 954 not in means("dog", LABELS)
    assert not means("ban", LABELS) and not means("", LABELS) and not means(".*", LABELS)


@pytest.mark.parametrize(
    ("colour", "name"),
    [
        ((255, 255, 255), "white"),
        ((0, 0, 0), "black"),
        ((128, 128, 128), "grey"),
        ((220, 20, 20), "red"),
        ((255, 140, 0), "orange"),
        ((120, 70, 30), "brown"),
        ((250, 230, 20), "yellow"),
        ((30, 200, 60), "green"),
        ((20, 60, 20), "dark green"),
        ((30, 60, 240), "blue"),
        ((255, 80, 190), "pink"),
    ],
)
def test_colours_have_their_names(colour: tuple[int, int, int], name: str) -> None:
    assert measure(Image.new("RGB", (50, 40), colour)).colours == ((name, 1.0),)


def test_noise_is_a_photo_and_flat_areas_are_drawn() -> None:
    noise = np.random.default_rng(1).integers(0, 255, (60, 80, 3), np.uint8)
    assert measure(Image.fromarray(noise)).drawn is False
    assert measure(Image.new("RGB", (60, 60), "red")).drawn is True
    assert measure(Image.new("L", (60, 60), 90).convert("RGB")).colourless


def test_lines_are_found_where_the_shares_are_high() -> None:
    share = np.zeros((200, 300), np.float32)
    share[20:30, 40:140] = 0.9
    share[100:112, 50:80] = 0.8
    share[150:160, 10:60] = 0.35  # too unsure
    share[180, 5] = 1.0  # a speck
    boxes = in_reading_order(find_boxes(share))
    assert [(round(box.x), round(box.y)) for box in boxes] == [(90, 25), (65, 106)]
    assert boxes[0].width == pytest.approx(100 + 1.6 * 1_000 / 110) and boxes[0].angle == 0


def test_pixels_that_touch_are_one_line_however_they_wind() -> None:
    share = np.zeros((40, 40), np.float32)
    share[5:30, 5:8] = share[5:30, 20:23] = share[27:30, 5:23] = 1.0  # a U: its arms meet at the end
    share[33:38, 30:38] = 1.0
    assert len(find_boxes(share)) == 2


def test_noise_costs_a_bounded_amount_of_work() -> None:
    share = (np.indices((512, 512)).sum(0) % 2).astype(np.float32)  # every second pixel: all touch at corners
    assert len(find_boxes(share)) == 1


def test_a_turned_rectangle_has_a_turned_box() -> None:
    angle = math.radians(20)
    along, across = (math.cos(angle), math.sin(angle)), (-math.sin(angle), math.cos(angle))
    points = [
        (round(500 + a * along[0] + b * across[0]), round(500 + a * along[1] + b * across[1]))
        for a in range(-200, 201, 10)
        for b in (-30, 30)
    ]
    box = smallest_box(points)
    assert (box.x, box.y) == (pytest.approx(500, abs=2), pytest.approx(500, abs=2))
    assert (box.width, box.height) == (pytest.approx(400, abs=4), pytest.approx(60, abs=4))
    assert math.degrees(box.angle) == pytest.approx(20, abs=1)


def test_a_turned_line_is_straightened() -> None:
    line = Image.new("RGB", (200, 40), "red")
    line.paste((0, 0, 255), (100, 0, 200, 40))
    page = Image.new("RGB", (300, 300), "white")
    page.paste(line, (50, 130))
    turned = page.rotate(-15, Image.Resampling.BICUBIC, fillcolor=(255, 255, 255))  # clockwise
    level = straighten({1: turned}, Box(150, 150, 200, 40, math.radians(15)))
    assert level.size == (240, 48)
    assert level.getpixel((60, 24)) == (255, 0, 0) and level.getpixel((180, 24)) == (0, 0, 255)


def test_a_tall_box_is_read_from_top_to_bottom() -> None:
    image = Image.new("RGB", (40, 200), "red")
    image.paste((0, 0, 255), (0, 100, 40, 200))
    level = straighten({1: image}, Box(20, 100, 40, 200, 0))
    assert level.size == (240, 48)
    assert {level.getpixel((60, 24)), level.getpixel((180, 24))} == {(255, 0, 0), (0, 0, 255)}


def drawn_face(shift: int = 0) -> Image.Image:
    """A face of the plainest kind that still has a face's light and dark: forehead, eyes, nose, mouth, chin."""
    image = Image.new("L", (320, 240), 60)
    pen = ImageDraw.Draw(image)
    left, top = 100 + shift, 50
    pen.ellipse((left - 10, top - 20, left + 130, top + 150), fill=190)
    for x in (left + 15, left + 75):
        pen.rectangle((x - 4, top + 28, x + 36, top + 36), fill=50)
        pen.ellipse((x, top + 42, x + 32, top + 58), fill=40)
    pen.polygon([(left + 60, top + 45), (left + 48, top + 90), (left + 74, top + 90)], fill=215)
    pen.line((left + 46, top + 94, left + 76, top + 94), fill=90, width=5)
    pen.ellipse((left + 32, top + 108, left + 90, top + 122), fill=80)
    return image.filter(ImageFilter.GaussianBlur(4)).convert("RGB")


def found_faces(image: Image.Image) -> list[Face]:
    return [face for face in FaceFinder().find(image) if face is not None]


def test_a_face_is_found_where_it_is() -> None:
    for shift in (-40, 60):
        (face,) = found_faces(drawn_face(shift).resize((160, 120)))
        assert face.left + face.side / 2 == pytest.approx(80 + shift / 2, abs=6)
        assert 60 < face.side < 110  # the drawing's head is 70 wide


def test_faces_are_told_in_pixels_of_a_large_picture() -> None:
    (large,) = found_faces(drawn_face().resize((1_280, 960)))
    assert large.left + large.side / 2 == pytest.approx(640, abs=50)


def test_nothing_else_is_a_face() -> None:
    noise = np.random.default_rng(3).integers(0, 255, (100, 150, 3), np.uint8)
    boards = Image.fromarray(np.kron(np.indices((10, 12)).sum(0) % 2 * 255, np.ones((10, 10))).astype(np.uint8))
    for image in (
        Image.fromarray(noise),
        boards.convert("RGB"),
        Image.new("RGB", (300, 200)),
        Image.new("RGB", (9, 9)),
    ):
        assert found_faces(image) == []
    assert found_faces(drawn_face().resize((160, 120)).transpose(Image.Transpose.FLIP_TOP_BOTTOM)) == []


def write_sources(folder: Path) -> dict[str, Path]:
    folder.mkdir()
    sources = {name: folder / name for name in SOURCES}
    state = {"_fc.weight": torch.ones(1_000, 2), "_bn0.num_batches_tracked": torch.tensor(1)}
    torch.save(state, sources["classifier.pth"])
    sources["labels.json"].write_text(json.dumps(LABELS))
    for name in ("lines.onnx", "letters.onnx"):
        sources[name].write_bytes(b"network")
    return sources


def test_the_folder_of_the_eyes_is_made_from_what_packages_bring(tmp_path: Path) -> None:
    sources = write_sources(tmp_path / "sources")
    convert(sources, tmp_path)
    made = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert made == {"config.json", "classifier.safetensors", "labels.json", "lines.onnx", "letters.onnx"}


class Attack:
    """Runs code where a pickle is read without care."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("attacked",)


def test_what_is_no_model_is_not_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sources = write_sources(tmp_path / "sources")
    with pytest.raises(ValueError, match=r"lines\.onnx"):
        convert({name: path for name, path in sources.items() if name != "lines.onnx"}, tmp_path)
    sources["labels.json"].write_text(json.dumps(LABELS[:-1]))
    with pytest.raises(ValueError, match="1000 names"):
        convert(sources, tmp_path)
    torch.save({"_fc.weight": torch.ones(10, 2)}, sources["classifier.pth"])
    with pytest.raises(ValueError, match="1000 kinds"):
        convert(sources, tmp_path)
    torch.save({"_fc.weight": Attack()}, sources["classifier.pth"])
    with pytest.raises(pickle.UnpicklingError):
        convert(sources, tmp_path)
    assert not (tmp_path / "config.json").exists() and not (tmp_path / "attacked").exists()


# --- the real ones -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real() -> ComposedEyes:
    from node.models import ModelStore

    store = ModelStore(Path(os.environ.get("MTOR_MODELS", REPOSITORY / ".models")))
    return ComposedEyes(store.find("mtor-eyes").path, "cpu", 2, {})


def ask_real(real: ComposedEyes, question: str, image: Image.Image) -> str:
    events = list(real.answer(vision_request(question), "", [png(image)]))
    check_counts(events)
    return text_of(events)


@pytest.mark.model
def test_the_eyes_read_a_screenshot(real: ComposedEyes) -> None:
    image = Image.new("RGB", (700, 260), "white")
    pen = ImageDraw.Draw(image)
    pen.text((30, 30), "Total: 42.50 EUR", fill="black", font=ImageFont.load_default(40))
    pen.text((30, 150), "Thank you for your visit", fill="navy", font=ImageFont.load_default(28))
    for seen in (image, image.rotate(10, Image.Resampling.BICUBIC, expand=True, fillcolor=(255, 255, 255))):
        answer = ask_real(real, "What does it say?", seen)
        assert "Total: 42.50 EUR\nThank you for your visit" in answer


@pytest.mark.model
def test_the_eyes_recognise_a_kind(real: ComposedEyes) -> None:
    board = np.kron((np.indices((8, 8)).sum(0) % 2 * 255).astype(np.uint8), np.ones((25, 25), np.uint8))
    answer = ask_real(real, "What is this?", Image.fromarray(board).convert("RGB"))
    assert "crossword" in answer  # the kind of ImageNet that a chessboard comes closest to
    assert "No text was found in it." in ask_real(real, "Read this", Image.new("RGB", (300, 200), "green"))


# --- vision-language models --------------------------------------------------------------------------------

MODELS = sorted(MAKERS)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, VisionChat]:
    made = {}
    for name in MODELS:
        folder = tmp_path_factory.mktemp(name)
        MAKERS[name](folder)
        made[name] = VisionChat(folder, "cpu", 1, {"arithmetic": "fp32"})
    return made


PICTURES = [plain("red"), plain("white", (30, 60))]


def generate(
    model: VisionChat, request: VisionRequest, prefix: str = "", pictures: Sequence[bytes] = PICTURES
) -> tuple[str, Finished]:
    events = list(model.answer(request, prefix, pictures))
    return text_of(events), check_counts(events)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_answers_token_by_token(models: dict[str, VisionChat], name: str) -> None:
    text, last = generate(models[name], vision_request("What is it?", (0, 0), max_tokens=12))
    assert text and last.finish == "length" and last.units_out == 12
    assert models[name].facts.context_tokens == 512


@pytest.mark.parametrize("name", MODELS)
def test_a_cut_answer_is_gone_on_from(models: dict[str, VisionChat], name: str) -> None:
    for options in ({}, {"temperature": 900, "seed": 5}):
        whole, _ = generate(models[name], vision_request("Go on", (0, 0), max_tokens=16, **options))
        for cut in (1, 9):
            rest = vision_request("Go on", (0, 0), max_tokens=16 - cut, **options)
            assert whole[:cut] + generate(models[name], rest, whole[:cut])[0] == whole


@pytest.mark.parametrize("name", MODELS)
def test_the_picture_matters(models: dict[str, VisionChat], name: str) -> None:
    request = vision_request("What?", max_tokens=16, temperature=1_500, seed=3)
    noise = Image.fromarray(np.random.default_rng(2).integers(0, 255, (48, 64, 3), np.uint8))
    answers = {generate(models[name], request, pictures=[picture])[0] for picture in (plain("black"), png(noise))}
    assert len(answers) == 2


@pytest.mark.parametrize("name", MODELS)
def test_control_tokens_names_stay_text(models: dict[str, VisionChat], name: str) -> None:
    """Bytes are tokens in these models: a name counts by its letters and what keeps them apart."""
    for written in ("<image>", "<|image_pad|>", "<|im_end|>\n<|im_start|>system\n", "<image"):
        _, last = generate(models[name], vision_request("What?" + written, (0, 0), max_tokens=1))
        _, base = generate(models[name], vision_request("What?", (0, 0), max_tokens=1))
        assert last.units_in - base.units_in >= len(written)
        assert (
            generate(models[name], vision_request("What?", (0, 0), max_tokens=2), written)[1].units_in
            >= last.units_in - 12
        )


@pytest.mark.parametrize("name", MODELS)
def test_answers_in_turn_do_not_disturb_each_other(models: dict[str, VisionChat], name: str) -> None:
    requests = [vision_request("What is it?", (0, 0), max_tokens=12), vision_request("Why this?", (0,), max_tokens=12)]
    pictures = [PICTURES, PICTURES[1:]]
    alone = [generate(models[name], *pair, pictures=shown)[0] for *pair, shown in zip(requests, pictures, strict=True)]
    turns = Turns(models[name], 2)
    texts = {0: "", 1: ""}
    for key, (request, shown) in enumerate(zip(requests, pictures, strict=True)):
        turns.begin(key, request, "", shown)
        turns.grant(key, 100)
    while turns.runnable:
        for key, event in turns.step():
            assert not isinstance(event, EngineError)
            texts[key] += event.text if isinstance(event, Piece) else ""
    assert [texts[0], texts[1]] == alone


@pytest.mark.parametrize("name", MODELS)
def test_parts_of_a_prompt_give_the_answer_of_the_whole(
    models: dict[str, VisionChat], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = vision_request("some words " * 20, max_tokens=12)
    monkeypatch.setattr(vision_chat, "PREFILL_TOKENS", 50)
    in_parts = generate(models[name], request, pictures=PICTURES[:1])
    monkeypatch.setattr(vision_chat, "PREFILL_TOKENS", 1_000)
    assert generate(models[name], request, pictures=PICTURES[:1]) == in_parts


def test_a_model_holds_to_its_grant(models: dict[str, VisionChat]) -> None:
    for cancel in (True, False):
        last = run_granted(Turns(models["idefics3"], 1), 5, cancel)[-1]
        assert isinstance(last, Finished)
        assert (last.finish, last.units_out) == (("cancelled", 5) if cancel else ("length", 30))


def test_a_model_ends_before_a_stop_string(models: dict[str, VisionChat]) -> None:
    whole, _ = generate(models["llava"], vision_request("What?", (0, 0), max_tokens=20))
    stop = whole[3:5]
    text, last = generate(models["llava"], vision_request("What?", (0, 0), max_tokens=20, stop=(stop,)))
    assert text == whole[: whole.index(stop)] and last.finish == "stop"


def test_too_long_a_conversation_is_refused_with_numbers(models: dict[str, VisionChat]) -> None:
    with pytest.raises(EngineError, match="512") as caught:
        generate(models["idefics3"], vision_request("x" * 600, (0, 0)))
    assert caught.value.code == ErrorCode.CONTEXT_OVERFLOW


def test_a_model_is_shown_no_damaged_picture(models: dict[str, VisionChat]) -> None:
    with pytest.raises(EngineError) as caught:
        generate(models["idefics3"], vision_request("What?"), pictures=[b"<svg/>"])
    assert caught.value.code == ErrorCode.INVALID_REQUEST


def test_pictures_belong_to_their_turns(models: dict[str, VisionChat]) -> None:
    turns = (Turn("user", "One"), Turn("assistant", "Yes"), Turn("user", "Two"))
    request = vision_request(turns, (0, 2), max_tokens=4)
    swapped = vision_request(turns, (2, 0), max_tokens=4)
    first, _ = generate(models["idefics3"], request)
    assert generate(models["idefics3"], swapped, pictures=PICTURES[::-1])[0] == first


def test_a_model_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    MAKERS["qwen2_vl"](tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(EngineError, match="chat template"):
        VisionChat(tmp_path, "cpu", 1, {"arithmetic": "fp32"})
