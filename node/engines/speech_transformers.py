"""Text to speech by a model of transformers in a local folder: VITS (and MMS), SpeechT5, Bark.

Rule: only safetensors and transformers' own classes are loaded, nothing is fetched and no code of the folder runs. A
text is spoken sentence by sentence, and the first one is out before the second one is made. A text that a model's
tokenizer has no letters for is refused, not spoken with gaps.

A sentence is one step of work: a cancel is heard between sentences. Voices: VITS numbers its speakers; SpeechT5 needs a
speaker's vector, `voices/NAME.safetensors` (one tensor `speaker`, 512 numbers) in the folder, and its vocoder in
`vocoder/`; Bark's voices are presets that its folder must hold as safetensors, so without them it speaks by chance.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from node.engines.uncompiled import torch  # isort: split

import numpy as np
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BarkModel,
    SpeechT5ForTextToSpeech,
    SpeechT5HifiGan,
    VitsModel,
)
from transformers.utils.logging import disable_progress_bar

from node.engines import sound
from node.engines.backend import Loaded, process_memory_mib
from node.engines.devices import choose_device, describe_device, memory_mib
from node.engines.port import EngineEvent, Finished, Prompted
from node.engines.spoken_text import plain_text, sentences
from protocol.messages import SpeakRequest

SEED = 1  # the same text is the same sound
LOCAL: Mapping[str, Any] = {"local_files_only": True, "trust_remote_code": False}


class Speaker(Protocol):
    """A loaded model of one kind."""

    rate: int  # samples a second
    voices: Sequence[str]  # by name, the default one first; none where there is no choice

    @property
    def speeds(self) -> tuple[int, int]:
        """Thousandths, slowest and fastest."""

    def speak(self, sentence: str, voice: str, speed: int) -> sound.Samples:
        """(samples,) of one sentence."""


class TransformersVoice:
    """The `Answerer` of a text-to-speech model."""

    def __init__(self, folder: Path, device: str, threads: int, options: Mapping[str, str]) -> None:
        """Raises `ValueError` for a kind of model that is not known here, `OSError` and what transformers raises."""
        disable_progress_bar()
        if threads:
            torch.set_num_threads(threads)
        chosen = choose_device(device)
        kind = AutoConfig.from_pretrained(folder, **LOCAL).model_type
        if kind not in KINDS:
            raise ValueError(f"this engine speaks with {', '.join(KINDS)}, not with {kind}")
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, **LOCAL)
        if getattr(self._tokenizer, "phonemize", False) and find_spec("phonemizer") is None:
            raise ValueError("this model reads phonemes; it needs the package phonemizer and espeak-ng")
        self._letters = _letters(self._tokenizer)
        self._speaker = KINDS[kind](folder, chosen, self._tokenizer)
        memory = memory_mib(chosen, process_memory_mib())
        self.facts = Loaded(0, describe_device(chosen, threads), memory, (SpeakRequest,))

    def answer(self, request: SpeakRequest, prefix: str, inputs: Sequence[bytes]) -> Iterator[EngineEvent | None]:
        """See `Answerer`. `prefix` is empty: a sound that broke off is made again."""
        voice = self._voice(request.voice)
        self._check_speed(request.speed)
        text = plain_text(request.text)
        self._check_letters(text)
        speaking = sound.Speaking(self._speaker.rate)
        units_in = len(request.text.encode())
        yield Prompted(units_in)
        for sentence in sentences(text):
            torch.manual_seed(SEED)
            yield from speaking.say(self._speaker.speak(sentence, voice, request.speed))
            yield None
        if not speaking.units_out:
            raise sound.invalid("there is nothing in this text that this model can speak")
        yield Finished("stop", units_in, speaking.units_out)

    def _voice(self, wanted: str) -> str:
        voices = self._speaker.voices
        if wanted and wanted != "default" and wanted not in voices:
            there = f"there are {', '.join(voices)}" if voices else "this model has one voice; leave the voice out"
            raise sound.invalid(f"there is no voice {wanted!r} here; {there}")
        return wanted if wanted in voices else next(iter(voices), "")

    def _check_speed(self, speed: int) -> None:
        slowest, fastest = self._speaker.speeds
        if not slowest <= speed <= fastest:
            only = (
                f"{slowest / 1_000} to {fastest / 1_000} times its speed" if slowest < fastest else "its own speed only"
            )
            raise sound.invalid(f"this model speaks at {only}")

    def _check_letters(self, text: str) -> None:
        """Where the model's tokens are letters, it has to have all of a text's."""
        missing = [each for each in text.lower() if each.isalpha() and self._letters and each not in self._letters]
        missing = [each for each in missing if unicodedata.normalize("NFD", each)[0] not in self._letters]
        if missing:
            raise sound.invalid(f"this model has no sounds for {''.join(dict.fromkeys(missing))[:10]}")


def _letters(tokenizer: Any) -> frozenset[str]:
    """The letters of a tokenizer whose tokens are letters; empty for one whose tokens are parts of words. One that
    writes a text in Latin letters or phonemes first says nothing of the text's own letters."""
    if getattr(tokenizer, "phonemize", False) or getattr(tokenizer, "is_uroman", False):
        return frozenset()
    tokens = [token for token in tokenizer.get_vocab() if token not in tokenizer.all_special_tokens]
    if not tokens or max(map(len, (token.strip("▁") for token in tokens))) > 1:
        return frozenset()
    return frozenset(token.lower() for token in tokens)


class _Vits:
    """VITS and MMS: text to waveform in one pass."""

    speeds = (250, 4_000)

    def __init__(self, folder: Path, device: torch.device, tokenizer: Any) -> None:
        loaded: Any = VitsModel.from_pretrained(folder, use_safetensors=True, local_files_only=True)
        self._model, self._tokenizer, self._device = loaded.eval().to(device), tokenizer, device
        self.rate = int(loaded.config.sampling_rate)
        speakers = int(loaded.config.num_speakers)
        self.voices: Sequence[str] = [str(number) for number in range(speakers)] if speakers > 1 else []

    @torch.inference_mode()
    def speak(self, sentence: str, voice: str, speed: int) -> sound.Samples:
        tokens = self._tokenizer(sentence, return_tensors="pt").input_ids
        if tokens.shape[-1] < 2:
            return np.zeros(0, np.float32)
        self._model.speaking_rate = speed / 1_000
        speaker = int(voice) if voice else None
        return _samples(self._model(input_ids=tokens.to(self._device), speaker_id=speaker).waveform[0])


class _SpeechT5:
    """SpeechT5: text to spectrogram, and a vocoder beside it."""

    speeds = (1_000, 1_000)

    def __init__(self, folder: Path, device: torch.device, tokenizer: Any) -> None:
        if not (folder / "vocoder").is_dir():
            raise ValueError("SpeechT5 needs its vocoder (SpeechT5HifiGan) in the folder vocoder/ beside its weights")
        loaded: Any = SpeechT5ForTextToSpeech.from_pretrained(folder, use_safetensors=True, local_files_only=True)
        vocoder: Any = SpeechT5HifiGan.from_pretrained(folder / "vocoder", use_safetensors=True, local_files_only=True)
        self._model, self._vocoder = loaded.eval().to(device), vocoder.eval().to(device)
        self._tokenizer, self._device = tokenizer, device
        self._speakers = {path.stem: load_file(path)["speaker"].reshape(1, -1) for path in _voice_files(folder)}
        if not self._speakers:
            raise ValueError("SpeechT5 needs a speaker: voices/NAME.safetensors with one tensor, speaker")
        self.rate = int(vocoder.config.sampling_rate)
        self.voices: Sequence[str] = list(self._speakers)

    @torch.inference_mode()
    def speak(self, sentence: str, voice: str, speed: int) -> sound.Samples:
        tokens = self._tokenizer(sentence, return_tensors="pt").input_ids.to(self._device)
        speaker = self._speakers[voice].to(self._device)
        return _samples(self._model.generate_speech(tokens, speaker, vocoder=self._vocoder))


class _Bark:
    """Bark: three language models in a row; slow without a card."""

    speeds = (1_000, 1_000)
    voices: Sequence[str] = ()

    def __init__(self, folder: Path, device: torch.device, tokenizer: Any) -> None:
        loaded: Any = BarkModel.from_pretrained(folder, use_safetensors=True, local_files_only=True)
        self._model, self._tokenizer, self._device = loaded.eval().to(device), tokenizer, device
        self.rate = int(loaded.config.codec_config.sampling_rate)

    @torch.inference_mode()
    def speak(self, sentence: str, voice: str, speed: int) -> sound.Samples:
        settings = {"padding": "max_length", "max_length": 256, "truncation": True, "add_special_tokens": False}
        tokens = self._tokenizer(sentence, return_tensors="pt", return_token_type_ids=False, **settings)
        return _samples(self._model.generate(**tokens.to(self._device))[0])


KINDS: Mapping[str, Callable[[Path, torch.device, Any], Speaker]] = {
    "vits": _Vits,
    "speecht5": _SpeechT5,
    "bark": _Bark,
}


def _voice_files(folder: Path) -> list[Path]:
    return sorted((folder / "voices").glob("*.safetensors"))


def _samples(waveform: Any) -> sound.Samples:
    """(samples,) in the model's own precision, to float32 in memory."""
    samples: sound.Samples = waveform.float().cpu().numpy().reshape(-1)
    return samples
