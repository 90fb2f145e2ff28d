"""$SPEECH in the child process: Whisper (a tiny one that says what it was made to), voices, and the embedded ones."""

from __future__ import annotations

import difflib
import io
import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from node.engines import speech_voice
from node.engines.convert_whisper import convert
from node.engines.port import Data, EngineError, EngineEvent, Finished, Piece, Prompted
from node.engines.speech_transformers import TransformersVoice
from node.engines.speech_voice import Voice, check_package
from node.engines.speech_whisper import WINDOW, Transcriber
from node.engines.spoken_text import plain_text, sentences
from node.engines.tiny_speech import END, make_tiny_vits, make_tiny_whisper
from node.engines.whisper_grammar import Grammar, Segment, cue, repetition
from node.gateway.captions import cues
from node.models import ModelStore
from node.models.catalogue import BUILTIN
from protocol.errors import ErrorCode
from protocol.messages import Media, SpeakRequest, TranscribeRequest

REPOSITORY = Path(__file__).resolve().parents[2]
HUM = 0.3 * np.sin(np.arange(32_000) / 10)  # two seconds


def file_of(samples: np.ndarray, rate: int = 16_000, kind: str = "WAV") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind)
    return file.getvalue()


def transcribe(
    model: Transcriber,
    data: bytes,
    language: str = "",
    prompt: str = "",
    temperature: int = 0,
    timestamps: int = 0,
    translate: int = 0,
) -> list[EngineEvent | None]:
    media = (Media("audio", len(data), 0),)
    request = TranscribeRequest(media, language, prompt, temperature, timestamps, translate)
    return list(model.answer(request, "", [data]))


def text_of(events: list[EngineEvent | None]) -> str:
    return "".join(event.text for event in events if isinstance(event, Piece))


def refusal(events: Iterator[EngineEvent | None]) -> str:
    with pytest.raises(EngineError) as caught:
        list(events)
    assert caught.value.code == ErrorCode.INVALID_REQUEST
    return caught.value.message


@pytest.fixture(scope="module")
def english(tmp_path_factory: pytest.TempPathFactory) -> Transcriber:
    folder = tmp_path_factory.mktemp("whisper")
    make_tiny_whisper(folder)
    return Transcriber(folder, "cpu", 1, {"max_seconds": "100"})


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Transcriber:
    folder = tmp_path_factory.mktemp("whisper")
    make_tiny_whisper(folder, ("de", "en", "fr"))
    return Transcriber(folder, "cpu", 1, {})


# --- speech to text --------------------------------------------------------------------------------------


def test_segments_come_one_by_one_and_commands_are_heard_between_tokens(english: Transcriber) -> None:
    events = transcribe(english, file_of(HUM))
    prompted, *middle, finished = [event for event in events if event is not None]
    assert prompted == Prompted(20)
    assert middle == [Piece("Hello.", 7), Piece(" Good day.", 17)]
    assert finished == Finished("stop", 20, 17)
    assert events.count(None) > 17  # one a token, and those of hearing


def test_timestamps_are_webvtt(english: Transcriber) -> None:
    text = text_of(transcribe(english, file_of(HUM), timestamps=1))
    assert text.startswith("WEBVTT\n\n00:00:00.000 --> 00:00:01.000\nHello.\n\n")
    assert [(each.start, each.end, each.text) for each in cues(text)] == [
        (0, 1_000, "Hello."),
        (1_000, 2_000, "Good day."),
    ]


def test_a_long_sound_is_cut_in_windows(english: Transcriber) -> None:
    text = text_of(transcribe(english, file_of(np.tile(HUM, 20)), timestamps=1))  # 40 s: 30, and 10
    assert [each.start for each in cues(text)] == [0, 1_000, 30_000, 31_000]


def test_silence_is_not_looked_at(english: Transcriber) -> None:
    assert text_of(transcribe(english, file_of(np.zeros(WINDOW // 10)))) == ""
    late = np.concatenate([np.zeros(WINDOW), HUM])
    assert [each.start for each in cues(text_of(transcribe(english, file_of(late), timestamps=1)))] == [30_000, 31_000]


def test_an_english_model_names_the_languages_it_lacks(english: Transcriber) -> None:
    assert text_of(transcribe(english, file_of(HUM), language="en")) == "Hello. Good day."
    for wish in ({"language": "de"}, {"translate": 1}):
        with pytest.raises(EngineError, match="English only"):
            transcribe(english, file_of(HUM), **wish)


def test_a_model_of_many_languages_hears_which_one_it_is(many: Transcriber) -> None:
    assert many._language(many._encoded(HUM.astype(np.float32))) == "de"  # its first: it is made so
    assert text_of(transcribe(many, file_of(HUM))) == "Hello. Good day."
    assert text_of(transcribe(many, file_of(HUM), language="fr", translate=1)) == "Hello. Good day."
    with pytest.raises(EngineError, match="it knows de, en, fr"):
        transcribe(many, file_of(HUM), language="tlh")


def test_a_prompt_is_text_even_where_it_has_a_control_tokens_name(english: Transcriber) -> None:
    tokens = english._tokens("<|endoftext|> Anna")
    assert max(tokens) < english._grammar.end
    assert english._grammar.text(tokens) == " <|endoftext|> Anna"
    assert len(english._tokens("x" * 9_999)) == 47
    assert transcribe(english, file_of(HUM), prompt="<|endoftext|>" * 500)[-1] is not None


def test_a_temperature_gives_the_same_text_for_the_same_sound(english: Transcriber) -> None:
    twice = [text_of(transcribe(english, file_of(HUM), temperature=1_000)) for _ in range(2)]
    assert twice == ["Hello. Good day."] * 2


def test_what_repeats_without_an_end_is_given_up(tmp_path: Path) -> None:
    make_tiny_whisper(tmp_path, script=("<|0.00|>", " la" * 120, END))
    assert text_of(transcribe(Transcriber(tmp_path, "cpu", 1, {}), file_of(HUM))) == ""


def test_what_repeats_and_ends_was_said(tmp_path: Path) -> None:
    make_tiny_whisper(tmp_path, script=("<|0.00|>", " la" * 13, "<|2.00|>", END))
    assert text_of(transcribe(Transcriber(tmp_path, "cpu", 1, {}), file_of(HUM))) == ("la " * 13).strip()


def test_a_sound_that_cannot_be_heard_is_refused(english: Transcriber) -> None:
    with pytest.raises(EngineError, match="no sound that is known"):
        transcribe(english, b"GIF89a")
    with pytest.raises(EngineError, match="longer than 100 s"):
        transcribe(english, file_of(np.zeros(101 * 16_000)))


def test_a_sparse_sound_counts_no_more_than_its_bytes_may(english: Transcriber) -> None:
    data = file_of(np.zeros(60 * 16_000), kind="FLAC")
    assert transcribe(english, data)[-1] == Finished("stop", len(data) // 50 + 1, 0)


def test_closing_ends_the_work(english: Transcriber) -> None:
    data = file_of(HUM)
    events = english.answer(TranscribeRequest((Media("audio", len(data), 0),), "", "", 0, 0, 0), "", [data])
    next(events)
    events.close()  # type: ignore[attr-defined]
    assert list(events) == []


def test_only_whisper_with_its_control_tokens_is_loaded(tmp_path: Path) -> None:
    make_tiny_whisper(tmp_path)
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
    tokenizer["added_tokens"] = [each for each in tokenizer["added_tokens"] if each["content"] != "<|notimestamps|>"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match="no notimestamps"):
        Transcriber(tmp_path, "cpu", 1, {})


# --- the grammar of its tokens ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grammar(english: Transcriber) -> Grammar:
    return english._grammar


def allowed(grammar: Grammar, said: list[int], likely: int) -> int:
    """What is chosen where the model would choose `likely`."""
    logits = torch.zeros(grammar.first_time + 1_501)
    logits[likely] = 100.0
    return int(grammar.allowed(logits, said).argmax())


def test_times_come_in_pairs_and_never_run_back(grammar: Grammar) -> None:
    time = grammar.first_time
    word = 40
    assert time <= allowed(grammar, [], word) <= time + 50  # a window begins with a time, and soon
    assert allowed(grammar, [time], time + 5) < time  # then a word
    assert allowed(grammar, [time, word, time + 5], word) in (grammar.end, time + 5)  # a pair is closed first
    assert allowed(grammar, [time, word, time + 5, time + 5], time + 9) < time
    assert allowed(grammar, [time, word, time + 5, time + 5, word], time + 3) != time + 3  # back in time
    assert allowed(grammar, [time, word], grammar.start) != grammar.start  # control tokens are never said


def test_words_cut_by_the_windows_end_are_heard_again(grammar: Grammar) -> None:
    time, word = grammar.first_time, 40
    segment = Segment(10.0, 11.0, grammar.text([word]), 1)
    cut = [time, word, time + 50, time + 50, word]
    assert grammar.segments(cut, 10.0, 30.0) == ([segment], 1.0)
    assert grammar.segments(cut[:4], 10.0, 30.0) == ([segment], 1.0)
    assert grammar.segments(cut[:3], 10.0, 30.0) == ([segment], 30.0)  # it says that nothing follows
    assert grammar.segments([time, word], 10.0, 30.0)[0][0].end == 40.0
    assert grammar.segments([], 10.0, 30.0) == ([], 30.0)
    assert grammar.segments([time, word, time + 1_500], 0.0, 2.0)[0][0].end == 2.0  # no time beyond the sound


def test_a_cue_has_no_arrow_and_no_blank_line() -> None:
    text = "WEBVTT\n\n" + cue(Segment(3_599.9995, 3_661.5, " a --> b\n\nc ", 3))
    assert [(each.start, each.end, each.text) for each in cues(text)] == [(3_600_000, 3_661_500, "a -> b c")]
    assert repetition("") == 0.0 and repetition("the same " * 20) > 2.4 > repetition("Something else is said here.")


# --- converting ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"\1\0\0\0\5", b"\6\0\0\0" + struct.pack("<H", 3) + b"ab\0" + bytes(8)])
def test_what_is_no_model_is_not_converted(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(data)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "out").mkdir()
    sources = {name: tmp_path / name for name in ("model.bin", "config.json", "tokenizer.json")}
    with pytest.raises(ValueError, match=r"model\.bin"):
        convert(sources, tmp_path / "out")
    with pytest.raises(ValueError, match=r"missing config\.json"):
        convert({"model.bin": tmp_path / "model.bin"}, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


# --- text to speech: what is read ------------------------------------------------------------------------


def test_sentences_end_where_a_reader_would_stop() -> None:
    text = "Dr. Smith paid $3.50, i.e. too much. “Really?” J. K. Rowling said so!\nNew line"
    assert list(sentences(text)) == [
        "Dr. Smith paid $3.50, i.e. too much.",
        "“Really?”",
        "J. K. Rowling said so!",
        "New line",
    ]
    assert list(sentences("... — !\n\n")) == []


@pytest.mark.parametrize("text", ["a" * 4_096, "9" * 4_096, "1," * 2_048, "word " * 819, "-a" * 2_048, "½" * 1_000])
def test_no_text_is_one_long_piece_of_work(text: str) -> None:
    pieces = list(sentences(plain_text(text)))
    assert max(len(piece) for piece in pieces) <= 300
    assert max(sum(each.isdigit() for each in piece) for piece in pieces) <= 50
    kept = "".join("".join(pieces).split())
    assert kept == "".join(plain_text(text).split())  # nothing is lost


def test_what_has_no_sound_is_not_read() -> None:
    assert plain_text("a\x00b\u202ec\u200bd\te\nf [g](/h/)") == "a bcd e\nf  g (/h/)"
    for text, words in (("\x00\x07 —", "nothing"), ("x" * 4_097, "at most 4096"), ("\ufdfa" * 1_000, "too long")):
        with pytest.raises(EngineError, match=words):
            plain_text(text)


# --- text to speech: the embedded voice ------------------------------------------------------------------


@pytest.fixture(scope="module")
def voice() -> Voice:
    return Voice(BUILTIN / "hibari", "auto", 1, {})


def speak(model: Voice | TransformersVoice, text: str, voice: str = "", speed: int = 1_000) -> list[EngineEvent | None]:
    return list(model.answer(SpeakRequest(text, voice, speed), "", ()))


def sound_of(events: list[EngineEvent | None]) -> np.ndarray:
    return np.frombuffer(b"".join(event.data for event in events if isinstance(event, Data)), "<i2")


def test_each_sentence_goes_out_before_the_next_is_made(voice: Voice) -> None:
    events = voice.answer(SpeakRequest("Hello there. How are you today?", "", 1_000), "", ())
    assert next(events) == Prompted(31)
    first = next(events)
    assert isinstance(first, Data) and first.media_type == "audio/pcm;rate=24000"
    rest = list(events)
    assert [type(event) for event in rest if event is None or isinstance(event, Finished)] == [
        type(None),
        type(None),
        Finished,
    ]
    samples = sound_of([first, *rest])
    assert np.abs(samples).max() > 3_000
    assert rest[-1] == Finished("stop", 31, -(-len(samples) * 10 // 24_000))
    assert rest[-2] is None and max(len(event.data) for event in rest if isinstance(event, Data)) <= 65_536


def test_the_same_text_is_the_same_sound_and_speed_changes_its_length(voice: Voice) -> None:
    normal = sound_of(speak(voice, "One two three."))
    assert np.array_equal(normal, sound_of(speak(voice, "One two three.", "alloy")))
    assert len(sound_of(speak(voice, "One two three.", "heart", 2_000))) < 0.7 * len(normal)


def test_what_the_voice_cannot_do_is_said(voice: Voice) -> None:
    def refused(text: str = "Hello.", name: str = "", speed: int = 1_000) -> str:
        return refusal(voice.answer(SpeakRequest(text, name, speed), "", ()))

    assert "there is heart" in refused(name="anna")
    assert "0.5 to 2.0" in refused(speed=4_000)
    assert "cannot read Привет" in refused("Привет, world")
    assert "nothing in this text" in refused("😀 — …")


def test_another_package_than_the_pinned_one_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = json.loads((BUILTIN / "hibari" / "config.json").read_text())["files"]
    check_package(pinned)
    with pytest.raises(EngineError, match=r"tts\.py of the package"):
        check_package(pinned | {"tts.py": "0" * 64})
    with pytest.raises(EngineError, match=r"more\.py"):
        check_package({"more.py": "0" * 64})
    monkeypatch.setattr(speech_voice, "PACKAGE", "no_such_package_anywhere")
    with pytest.raises(EngineError, match="missing"):
        check_package(pinned)


# --- text to speech: models of transformers --------------------------------------------------------------


@pytest.fixture(scope="module")
def humming(tmp_path_factory: pytest.TempPathFactory) -> TransformersVoice:
    folder = tmp_path_factory.mktemp("vits")
    make_tiny_vits(folder, speakers=3)
    return TransformersVoice(folder, "cpu", 1, {})


def test_a_vits_model_speaks_sentence_by_sentence(humming: TransformersVoice) -> None:
    events = speak(humming, "hello there. how are you?")
    assert events.count(None) == 2 and isinstance(events[1], Data)
    assert events[1].media_type == "audio/pcm;rate=16000"
    samples = sound_of(events)
    assert events[-1] == Finished("stop", 25, -(-len(samples) * 10 // 16_000))
    assert np.array_equal(samples, sound_of(speak(humming, "hello there. how are you?", "0")))
    assert not np.array_equal(samples, sound_of(speak(humming, "hello there. how are you?", "2")))
    assert len(sound_of(speak(humming, "hello there. how are you?", "", 2_000))) < len(samples)


def test_what_a_vits_model_cannot_do_is_said(humming: TransformersVoice, tmp_path: Path) -> None:
    def refused(text: str, name: str = "", speed: int = 1_000) -> str:
        return refusal(humming.answer(SpeakRequest(text, name, speed), "", ()))

    assert "there are 0, 1, 2" in refused("hello", "anna")
    assert "no sounds for при" in refused("hello при")
    make_tiny_whisper(tmp_path)
    with pytest.raises(ValueError, match="not with whisper"):
        TransformersVoice(tmp_path, "cpu", 1, {})


# --- the real thing --------------------------------------------------------------------------------------


@pytest.mark.model
def test_what_the_voice_says_is_what_whisper_hears(voice: Voice) -> None:
    """Embedded voice to embedded ears, as an MP3."""
    text = "Hello from the federation. These gaming computers are now answering your questions."
    samples = sound_of(speak(voice, text)) / 32_768
    store = ModelStore(Path(os.environ.get("MTOR_MODELS", REPOSITORY / ".models")))
    ears = Transcriber(store.find("whisper-tiny.en").path, "cpu", 1, {})
    heard = text_of(transcribe(ears, file_of(samples, 24_000, "MP3")))
    assert difflib.SequenceMatcher(None, heard.lower(), text.lower()).ratio() > 0.95, heard
    noise = np.random.default_rng(0).normal(0, 0.01, 48_000)
    assert text_of(transcribe(ears, file_of(noise))) == ""
