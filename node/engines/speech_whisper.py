"""Speech to text: Whisper models of transformers, window by window, token by token.

Rule: what is silent gives no text; what was not understood is tried again with more chance, as Whisper's authors do,
and is given up rather than repeated. The loop is our own, so that a cancel is heard between tokens. Only safetensors
and transformers' own classes are loaded; what a prompt says is text, also where it has a control token's name.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from node.engines.uncompiled import torch  # isort: split

import numpy as np
from tokenizers import Tokenizer
from transformers import AutoModelForSpeechSeq2Seq, WhisperFeatureExtractor
from transformers.utils.logging import disable_progress_bar

from node.engines import sound
from node.engines.backend import Loaded, process_memory_mib
from node.engines.devices import choose_device, describe_device, memory_mib
from node.engines.port import EngineEvent, Finished, Piece, Prompted
from node.engines.whisper_grammar import Grammar, Segment, cue, repetition
from protocol.messages import TranscribeRequest
from protocol.requests import kind_of

WINDOW = 30 * sound.RATE  # samples; what the model hears at once
SHORTEST = sound.RATE // 10  # samples; a shorter rest says nothing
LEAST_STEP = sound.RATE  # samples a window moves on at least
QUIET = 5e-4  # amplitude (-66 dB): a window without more is silence
MULTILINGUAL = 51_865  # tokens of a vocabulary, and more: all languages
TEMPERATURES = (0.0, 0.4, 0.8)  # of attempts; half of what Whisper's authors try, for slow machines
REPEATING = 2.4  # see `repetition`
DOUBTFUL = -1.0  # mean log probability of a token
SILENT = ((0.6, -1.0), (0.85, -0.5))  # nobody speaks: a probability of that above, a mean log probability below
SEED = 17  # of attempts with chance: the same sound gives the same text


@dataclass(frozen=True, slots=True)
class _Attempt:
    """What was heard in a window."""

    tokens: list[int]
    mean: float  # log probability of a token
    silence: float  # probability that nobody speaks
    ended: bool  # it came to an end by itself

    @property
    def empty(self) -> bool:
        return any(self.silence > silence and self.mean < mean for silence, mean in SILENT)


class Transcriber:
    """The `Answerer` of a Whisper model."""

    def __init__(self, folder: Path, device: str, threads: int, options: Mapping[str, str]) -> None:
        """`options`: max_seconds of a sound. Raises `ValueError`, `OSError` and what transformers raises."""
        disable_progress_bar()
        if threads:
            torch.set_num_threads(threads)
        self._device = choose_device(device)
        dtype = torch.float16 if self._device.type == "cuda" else torch.float32
        loaded: Any = AutoModelForSpeechSeq2Seq.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, trust_remote_code=False, local_files_only=True
        )
        if loaded.config.model_type != "whisper":
            raise ValueError(f"this engine runs Whisper models, not {loaded.config.model_type}")
        self._model = loaded.eval().to(self._device)
        extractor: Any = WhisperFeatureExtractor
        self._features: Any = extractor(feature_size=int(loaded.config.num_mel_bins))
        self._tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.encode_special_tokens = True  # a control token's name in a prompt is text
        self._positions = int(loaded.config.max_target_positions)  # tokens that the decoder holds
        self._grammar = _grammar(loaded, self._tokenizer)
        self._most_seconds = float(options.get("max_seconds", sound.MOST_SECONDS))
        memory = memory_mib(self._device, process_memory_mib())
        self.facts = Loaded(0, describe_device(self._device, threads), memory, (TranscribeRequest,))

    def answer(self, request: TranscribeRequest, prefix: str, inputs: Sequence[bytes]) -> Iterator[EngineEvent | None]:
        """See `Answerer`. `prefix` is empty: a transcript that broke off is made again."""
        self._check(request)
        parts: list[sound.Samples] = []
        for part in sound.listen(inputs[0], self._most_seconds):
            parts.append(part)
            yield None
        samples = np.concatenate(parts)
        units_in = min(sound.tenths(len(samples), sound.RATE), kind_of(request).most_in(request, 0))
        yield Prompted(units_in)
        units_out = 0
        if request.timestamps:
            yield Piece("WEBVTT\n\n", 0)
        for segment in self._segments(request, samples):
            if segment is None:
                yield None
                continue
            units_out, first = units_out + segment.tokens, units_out == 0
            text = segment.text.lstrip() if first else segment.text
            yield Piece(cue(segment) if request.timestamps else text, units_out)
        yield Finished("stop", units_in, units_out)

    def _check(self, request: TranscribeRequest) -> None:
        """Raises `EngineError` for what this model does not know."""
        known = self._grammar.languages
        if not known and (request.language not in ("", "en") or request.translate):
            raise sound.invalid("this model knows English only; leave the language out, or take a multilingual model")
        if known and request.language and request.language not in known:
            codes = ", ".join(sorted(known))
            raise sound.invalid(f"the language {request.language!r} is not known to this model; it knows {codes}")

    def _segments(self, request: TranscribeRequest, samples: sound.Samples) -> Iterator[Segment | None]:
        """What is said, in order; None after a step without a segment."""
        at, language = 0, request.language
        before = self._tokens(request.prompt)
        while len(samples) - at >= SHORTEST or at == 0:
            window = samples[at : at + WINDOW]
            if np.abs(window).max() < QUIET:
                at += len(window)
                yield None
                continue
            encoded = self._encoded(window)
            yield None
            language = language or self._language(encoded)
            opening = self._grammar.opening(before, language, translate=bool(request.translate))
            tokens = yield from self._understood(encoded, opening, request.temperature / 1_000)
            seconds = len(window) / sound.RATE
            found, done = self._grammar.segments(tokens, at / sound.RATE, seconds)
            yield from (segment for segment in found if segment.text.strip())
            at += min(len(window), max(round(done * sound.RATE), LEAST_STEP))

    def _tokens(self, prompt: str) -> list[int]:
        if not prompt.strip():
            return []
        return list(self._tokenizer.encode(" " + prompt.strip(), add_special_tokens=False).ids)[
            -(self._positions // 2) + 1 :
        ]

    # --- one window ----------------------------------------------------------------------------------

    def _understood(self, encoded: Any, opening: Sequence[int], lowest: float) -> Generator[None, None, list[int]]:
        """Tokens of the first good attempt of some with more and more chance; of the best one that came to an end, if
        none was good; none for silence."""
        attempts: list[_Attempt] = []
        for temperature in (lowest, *(each for each in TEMPERATURES if each > lowest)):
            attempt = yield from self._attempt(encoded, opening, temperature)
            if attempt.empty:
                return []
            if attempt.mean >= DOUBTFUL and repetition(self._grammar.text(attempt.tokens)) <= REPEATING:
                return attempt.tokens
            attempts.append(attempt)
        ended = [attempt for attempt in attempts if attempt.ended]
        return max(ended, key=lambda attempt: attempt.mean).tokens if ended else []

    def _attempt(self, encoded: Any, opening: Sequence[int], temperature: float) -> Generator[None, None, _Attempt]:
        generator = torch.Generator().manual_seed(SEED)
        logits, cache = self._logits(opening, encoded, None)  # (tokens, vocabulary)
        silence = self._silence(logits[list(opening).index(self._grammar.start)])
        tokens: list[int] = []
        total, ended = 0.0, False
        most = min(self._positions // 2, self._positions - len(opening))
        while not ended and len(tokens) < most:
            scores = torch.log_softmax(self._grammar.allowed(logits[-1], tokens), -1)
            token = _drawn(scores, temperature, generator)
            total += float(scores[token])
            ended = token == self._grammar.end
            if not ended:
                tokens.append(token)
                yield None
                logits, cache = self._logits([token], encoded, cache)
        return _Attempt(tokens, total / (len(tokens) + 1), silence, ended)

    def _silence(self, logits: torch.Tensor) -> float:
        """Whether somebody speaks is asked where the transcript starts."""
        if self._grammar.silence is None:
            return 0.0
        return float(torch.softmax(logits, -1)[self._grammar.silence])

    def _language(self, encoded: Any) -> str:
        """The likeliest one; "" where there is only one."""
        if not self._grammar.languages:
            return ""
        logits, _ = self._logits([self._grammar.start], encoded, None)
        return max(self._grammar.languages, key=lambda code: float(logits[-1, self._grammar.languages[code]]))

    @torch.inference_mode()
    def _encoded(self, window: sound.Samples) -> Any:
        """(1, frames, width) of one window."""
        features = self._features(window, sampling_rate=sound.RATE, return_tensors="pt").input_features
        return self._model.model.encoder(features.to(self._device, self._model.dtype)).last_hidden_state

    @torch.inference_mode()
    def _logits(self, tokens: Sequence[int], encoded: Any, cache: Any) -> tuple[torch.Tensor, Any]:
        """((tokens, vocabulary) after each of `tokens`, the cache that holds them)."""
        out = self._model(
            encoder_outputs=(encoded,),
            decoder_input_ids=torch.tensor([list(tokens)], device=self._device),
            past_key_values=cache,
            use_cache=True,
        )
        return out.logits[0].float().cpu(), out.past_key_values


def _grammar(model: Any, tokenizer: Any) -> Grammar:
    """As the model's folder says; a vocabulary's size tells what it leaves out."""
    settings = model.generation_config
    multilingual = getattr(settings, "is_multilingual", None)
    if multilingual is None:
        multilingual = int(model.config.vocab_size) >= MULTILINGUAL
    suppressed = _listed(settings.suppress_tokens, model.config.vocab_size)
    first = _listed(settings.begin_suppress_tokens, model.config.vocab_size)
    return Grammar(tokenizer, multilingual=bool(multilingual), suppressed=suppressed, first=first)


def _listed(tokens: Sequence[int] | None, vocabulary: int) -> list[int]:
    return [token for token in tokens or () if 0 <= token < vocabulary]


def _drawn(scores: torch.Tensor, temperature: float, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(scores.argmax())
    return int(torch.multinomial((scores / temperature).softmax(-1), 1, generator=generator))
