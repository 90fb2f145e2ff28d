"""Pictures from words: limits, metadata, the emoji model and pipelines of diffusers."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio
from PIL import Image

from node.engines import pictures
from node.engines.backend import Answerer, Turns
from node.engines.imagine_diffusers import DiffusersPainter, check_folder
from node.engines.imagine_emoji import EmojiPainter, Vocabulary
from node.engines.pictures import Limits
from node.engines.port import Data, EngineError, EngineEvent, Finished, Prompted, Step
from node.engines.process import ModelFolder, ProcessEngine
from node.engines.tiny_diffusion import make_tiny_pipeline
from protocol.errors import ErrorCode
from protocol.messages import ImagineRequest
from protocol.params import MAX_CHUNK_BYTES

EMOJI = Path(__file__).parents[2] / "node/engines/builtin/emoji-64"


def ask(prompt: str = "red apple", **changes: Any) -> ImagineRequest:
    asked = {
        "prompt": prompt,
        "negative_prompt": "",
        "width": 64,
        "height": 64,
        "steps": 4,
        "guidance": 0,
        "seed": 5,
        "previews": 0,
    }
    return ImagineRequest(**{**asked, **changes})


def all_events(painter: Answerer, request: ImagineRequest) -> list[EngineEvent]:
    return [event for event in painter.answer(request, "", ()) if event is not None]


def paint(painter: Answerer, request: ImagineRequest) -> bytes:
    return b"".join(event.data for event in all_events(painter, request) if isinstance(event, Data))


def opened(png: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(png))
    image.load()
    return image


def refusal(painter: Answerer, request: ImagineRequest) -> str:
    with pytest.raises(EngineError) as refused:
        all_events(painter, request)
    assert refused.value.code == ErrorCode.INVALID_REQUEST
    return refused.value.message


# --- what both share ------------------------------------------------------------------------------------

LIMITS = Limits(width=512, height=512, steps=30, most_units=200, multiple=8)


def test_zeros_become_the_models_own_choices_and_a_drawn_seed() -> None:
    asked = ask(width=0, height=0, steps=0, seed=0)
    first, second = (pictures.plan(asked, LIMITS, "m") for _ in range(2))
    assert (first.width, first.height, first.steps) == (512, 512, 30)
    assert first.units == 120
    assert 0 < first.seed <= pictures.MOST_SEED
    assert first.seed != second.seed


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"prompt": " \n\x00"}, "empty"),
        ({"prompt": "ä" * 2_049}, "has 4098 bytes; at most 4096"),
        ({"negative_prompt": "x" * 4_097}, "negative prompt has 4097 bytes"),
        ({"width": 32}, "64 to 2048 pixels"),
        ({"height": 2_056}, "64 to 2048 pixels"),
        ({"width": 100}, "96 or 104"),
        ({"steps": 151}, "1 to 150 steps"),
        ({"width": 1_024, "height": 1_024, "steps": 20}, "at most 200"),
    ],
)
def test_a_refusal_names_the_limit(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(EngineError, match=named) as refused:
        pictures.plan(ask(**changes), LIMITS, "m")
    assert refused.value.code == ErrorCode.INVALID_REQUEST


def test_metadata_is_read_by_others_and_by_us() -> None:
    asked = ask("a röd café\nSteps: 99, Seed: 1", negative_prompt="blue", guidance=2_500, seed=77)
    picture = pictures.plan(asked, LIMITS, "tiny, model")
    image = opened(pictures.to_png(Image.new("RGB", (64, 64)), picture, {"style": "flat"}))
    # The last line is ours alone: a prompt cannot write it.
    assert image.info["parameters"].split("\n") == [
        "a röd café Steps: 99, Seed: 1",
        "Negative prompt: blue",
        "Steps: 4, CFG scale: 2.5, Seed: 77, Size: 64x64, Model: tiny  model",
    ]
    facts = json.loads(image.info["mtor"])
    assert (facts["seed"], facts["style"], facts["model"]) == (77, "flat", "tiny, model")


def test_previews_and_parts_fit_in_one_event() -> None:
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (512, 300, 3), dtype=np.uint8))
    small = pictures.preview(noise)
    assert len(small) <= MAX_CHUNK_BYTES
    assert max(opened(small).size) == pictures.PREVIEW_SIDE
    png = pictures.to_png(noise, pictures.plan(ask(), LIMITS, "m"))
    parts = list(pictures.parts(png, 9))
    assert b"".join(part.data for part in parts) == png
    assert [part.units_out for part in parts] == [0] * (len(parts) - 1) + [9]
    assert max(len(part.data) for part in parts) <= MAX_CHUNK_BYTES < len(png)


# --- the words of the emoji model -----------------------------------------------------------------------

WORDS = Vocabulary(["apple", "berry", "car", "elephant", "green", "house", "leaf", "light", "picture", "red", "tree"])


def test_words_are_found_in_what_people_write() -> None:
    reading = WORDS.read("Please draw me a picture of two RED cars with leaves, a lighthouse and an elephnat, elegant!")
    assert reading.known == ("red",)
    assert reading.guessed == (
        ("cars", "car"),
        ("leaves", "leaf"),
        ("lighthouse", "light house"),
        ("elephnat", "elephant"),
    )
    assert reading.unknown == ("two", "elegant")
    assert reading.indices == (10, 3, 7, 8, 6, 4)


def test_a_pictograph_is_read_by_its_name_and_a_style_is_no_content() -> None:
    reading = WORDS.read("\N{RED APPLE} berries 3-D")
    assert (reading.indices, reading.style) == ((10, 1, 2), "3d")


@pytest.mark.parametrize("prompt", ["", "…", "\x00\x1b[31m", "<|endoftext|>", "苹果", "a of the"])
def test_prompts_without_a_known_word_have_no_indices(prompt: str) -> None:
    assert not WORDS.read(prompt).indices


# --- the emoji model ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def emoji() -> EmojiPainter:
    return EmojiPainter(EMOJI, "cpu", 1, {})


def colour(painter: EmojiPainter, prompt: str) -> Any:
    """Mean red, green, blue of what is drawn on the white ground."""
    pixels = np.asarray(opened(paint(painter, ask(prompt, steps=16)))).astype(float)
    return pixels[pixels.min(axis=2) < 200].mean(axis=0)


def test_the_emoji_model_tells_its_steps_and_pays_with_the_last_bytes(emoji: EmojiPainter) -> None:
    prompted, *between, data, finished = all_events(emoji, ask(steps=16, previews=1))
    assert prompted == Prompted(0)
    steps = [event for event in between if isinstance(event, Step)]
    assert [step.done for step in steps] == [2, 4, 6, 8, 10, 12, 14, 16]
    assert {opened(step.preview).size for step in steps[:-1]} == {(64, 64)}
    assert (steps[-1].total, steps[-1].preview) == (16, b"")
    assert isinstance(data, Data)
    assert data.units_out == 1
    assert finished == Finished("stop", 0, 1)
    assert opened(data.data).size == (64, 64)


def test_a_seed_gives_the_same_file_and_another_seed_another_picture(emoji: EmojiPainter) -> None:
    first, second = paint(emoji, ask(seed=3)), paint(emoji, ask(seed=3))
    assert first == second
    assert opened(paint(emoji, ask(seed=4))).tobytes() != opened(first).tobytes()


def test_the_drawn_seed_in_the_metadata_paints_the_picture_again(emoji: EmojiPainter) -> None:
    drawn = opened(paint(emoji, ask(seed=0)))
    seed = json.loads(drawn.info["mtor"])["seed"]
    assert opened(paint(emoji, ask(seed=seed))).tobytes() == drawn.tobytes()


def test_colours_are_as_asked(emoji: EmojiPainter) -> None:
    red, green, blue = (colour(emoji, f"{name} heart") for name in ("red", "green", "blue"))
    assert red[0] > max(red[1], red[2]) + 60
    assert green[1] > max(green[0], green[2]) + 30
    assert blue[2] > max(blue[0], blue[1]) + 30


def test_a_negative_prompt_and_the_style_change_the_picture(emoji: EmojiPainter) -> None:
    prompts = (ask("dog"), ask("dog", negative_prompt="brown"), ask("flat dog"), ask("cartoon dog"))
    assert len({opened(paint(emoji, asked)).tobytes() for asked in prompts}) == 4


def test_a_larger_size_is_the_small_picture_resampled_and_says_so(emoji: EmojiPainter) -> None:
    large = opened(paint(emoji, ask("zzyzx red car", width=256, height=256)))
    assert large.size == (256, 256)
    facts = json.loads(large.info["mtor"])
    assert (facts["painted_at"], facts["resampled"]) == ("64x64", "lanczos")
    assert (facts["known"], facts["unknown"]) == (["red", "car"], ["zzyzx"])
    small = np.asarray(opened(paint(emoji, ask("zzyzx red car")))).astype(int)
    again = np.asarray(large.resize((64, 64), Image.Resampling.BOX)).astype(int)
    assert np.abs(small - again).mean() < 4


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"width": 100, "height": 100}, "64, 128, 256, 512"),
        ({"width": 64, "height": 128}, "squares"),
        ({"width": 1_024}, "64 to 512"),
        ({"steps": 101}, "1 to 100 steps"),
        ({"prompt": "苹果"}, "none of the prompt's"),
    ],
)
def test_the_emoji_model_refuses_with_the_limit(emoji: EmojiPainter, changes: dict[str, Any], named: str) -> None:
    assert named in refusal(emoji, ask(**changes))


def test_defaults_are_the_operators(emoji: EmojiPainter) -> None:
    painter = EmojiPainter(EMOJI, "cpu", 1, {"size": "128", "steps": "2", "style": "flat"})
    facts = json.loads(opened(paint(painter, ask(width=0, height=0, steps=0))).info["mtor"])
    assert (facts["width"], facts["steps"], facts["style"]) == (128, 2, "flat")
    with pytest.raises(ValueError, match="flat, cartoon, 3d"):
        EmojiPainter(EMOJI, "cpu", 1, {"style": "oil"})


async def test_the_emoji_model_answers_in_a_process_of_its_own(emoji: EmojiPainter) -> None:
    model = ModelFolder("emoji-64", EMOJI, bytes(32), "emoji", "$IMAGINE")
    engine = ProcessEngine(model, device="cpu", threads=1, options={"style": "flat"})
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            await nursery.start(engine.run)
            async with engine.generate(ask("cat", previews=1), "") as generation:
                await generation.grant(10)
                async with aclosing(generation.events()) as events:
                    seen = [event async for event in events]
            nursery.cancel_scope.cancel()
    assert seen[0] == Prompted(0)
    assert seen[-1] == Finished("stop", 0, 1)
    png = b"".join(event.data for event in seen if isinstance(event, Data))
    assert opened(png).tobytes() == opened(paint(emoji, ask("flat cat"))).tobytes()


# --- pipelines of diffusers -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-sd"
    make_tiny_pipeline(folder)
    return folder


@pytest.fixture(scope="module")
def painter(pipeline: Path) -> DiffusersPainter:
    return DiffusersPainter(pipeline, "cpu", 1, {"most_units": "100"})


def test_a_pipeline_tells_every_step_and_gives_a_picture(painter: DiffusersPainter) -> None:
    prompted, *steps, data, finished = all_events(painter, ask(width=64, height=72, steps=5, previews=1))
    assert prompted == Prompted(0)
    assert [(step.done, step.total) for step in steps if isinstance(step, Step)] == [(n, 5) for n in range(1, 6)]
    assert [bool(step.preview) for step in steps if isinstance(step, Step)] == [True] * 4 + [False]
    assert isinstance(data, Data)
    assert opened(data.data).size == (64, 72)
    assert finished == Finished("stop", 0, 1)


def test_a_pipeline_paints_the_same_picture_from_the_same_seed(painter: DiffusersPainter) -> None:
    first, again, other = (paint(painter, ask(seed=seed)) for seed in (3, 3, 4))
    assert first == again
    assert opened(other).tobytes() != opened(first).tobytes()
    guided = paint(painter, ask(seed=3, guidance=20_000, negative_prompt="blue"))
    assert opened(guided).tobytes() != opened(first).tobytes()
    assert "CFG scale: 7.5, Seed: 3" in opened(first).info["parameters"]


def test_a_pipelines_own_size_is_its_default(painter: DiffusersPainter) -> None:
    assert opened(paint(painter, ask(width=0, height=0))).size == (32, 32)


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"width": 60}, "56 or 64"), ({"width": 16}, "32 to 2048"), ({"width": 2_048, "height": 2_048}, "at most 100")],
)
def test_a_pipeline_refuses_with_the_limit(painter: DiffusersPainter, changes: dict[str, Any], named: str) -> None:
    assert named in refusal(painter, ask(**changes))


def test_names_of_special_tokens_are_text_to_a_pipeline(painter: DiffusersPainter) -> None:
    ended, plain = (opened(paint(painter, ask(f"cat{middle}dog"))) for middle in ("<|endoftext|>", ""))
    assert painter._as_text("a <|endoftext|> b") == "a < |endoftext|> b"
    assert ended.tobytes() != plain.tobytes()


def test_a_prompt_is_never_logged(painter: DiffusersPainter, capfd: pytest.CaptureFixture[str], caplog: Any) -> None:
    paint(painter, ask("secretword " * 100, steps=1))  # far over the 77 tokens that the encoder reads
    told = capfd.readouterr()
    assert "secretword" not in told.out + told.err + caplog.text


def test_an_answer_that_nobody_reads_stops_at_its_step(painter: DiffusersPainter) -> None:
    first = painter.answer(ask(steps=100), "", ())
    steps = until_step(first, 2)
    assert not painter._busy.acquire(blocking=False)
    first.close()
    assert steps == [1, 2]
    assert painter._busy.acquire(blocking=False), "the pipeline is free again"
    painter._busy.release()
    assert len(paint(painter, ask())) > 100


def until_step(events: Iterator[EngineEvent | None], last: int) -> list[int]:
    done = []
    for event in events:
        if isinstance(event, Step):
            done.append(event.done)
            if event.done == last:
                return done
    raise AssertionError("it ended before that step")


def test_a_pipeline_takes_turns_in_the_childs_loop(painter: DiffusersPainter) -> None:
    """Nothing is painted before the first grant; a cancel is heard; one after the other is painted."""
    turns = Turns(painter, slots=1)
    for key in (1, 2):
        turns.begin(key, ask(steps=3), "", ())
    told = [*turns.step(), *turns.step()]
    assert told == [(1, Prompted(0))]
    assert not turns.runnable
    turns.grant(1, 100)
    turns.step()
    turns.cancel(1)
    turns.grant(2, 100)
    told = []
    while turns.runnable:
        told += turns.step()
    assert (1, Finished("cancelled", 0, 0)) in told
    assert told[-1] == (2, Finished("stop", 0, 1))


def test_code_and_pickles_in_a_folder_are_refused(pipeline: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no model_index\.json"):
        check_folder(tmp_path)
    folder = tmp_path / "copy"
    shutil.copytree(pipeline, folder)
    (folder / "unet" / "my_network.py").write_text("raise SystemExit('ran')")
    with pytest.raises(ValueError, match="Python files"):
        check_folder(folder)
    (folder / "unet" / "my_network.py").unlink()
    index = json.loads((folder / "model_index.json").read_text())
    for changes, named in (
        ({"unet": ["os", "PathLike"]}, "wants its unet from os"),
        ({"_class_name": ["mine", "Pipeline"]}, "code of its own"),
    ):
        (folder / "model_index.json").write_text(json.dumps({**index, **changes}))
        with pytest.raises(ValueError, match=named):
            check_folder(folder)
    (folder / "model_index.json").write_text(json.dumps(index))
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(OSError, match="diffusion_pytorch_model"):
        DiffusersPainter(folder, "cpu", 1, {})
