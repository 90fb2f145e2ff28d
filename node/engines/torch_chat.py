"""A causal language model in torch: load, count, step.

Rule: knows nothing of pipes or peers. A `Sequence` is one answer; `step` does a bounded piece of work (a part of the
prompt, or one token), so that whoever drives it can look at commands in between. Never more tokens than granted.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a model is a folder on this disk; nothing is fetched here

import torch
from jinja2 import TemplateError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from node.engines.networks import Network, PackedNetwork, PlainNetwork, decode_threads, fastest_arithmetic
from node.engines.port import EngineError, EngineEvent, Finished, Piece, Prompted, check_roles
from node.engines.sampling import Sampler, SamplingParameters
from node.engines.text import Detokenizer, StopFilter
from protocol.errors import ErrorCode
from protocol.messages import ChatRequest, Device

DTYPES = {"packed": torch.bfloat16, "bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
PREFILL_TOKENS = 256  # of a prompt at a time: short enough that a cancel is heard, long enough to be efficient


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation as tokens. `ids` ends with the tokens of what was answered before (`answered` of them)."""

    ids: list[int]
    answered: int


class ChatModel:
    """A loaded model and its tokenizer."""

    def __init__(self, folder: Path, device: str, threads: int, arithmetic: str = "auto") -> None:
        """`arithmetic` is "packed", "bf16" or "fp32" on a CPU; "auto" measures which is fast."""
        disable_progress_bar()  # type: ignore[no-untyped-call]
        if threads:
            torch.set_num_threads(threads)
        self.device = _choose_device(device)
        arithmetic = _choose_arithmetic(self.device, folder) if arithmetic == "auto" else arithmetic
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=DTYPES[arithmetic], trust_remote_code=False, use_safetensors=True
        )
        model = model.eval().to(self.device)
        self.context_tokens = int(getattr(model.config, "max_position_embeddings", 2_048))
        self.vocabulary = int(model.config.vocab_size)
        self.stop_tokens = _stop_tokens(model, self.tokenizer)
        self.network: Network = PackedNetwork(model) if arithmetic == "packed" else PlainNetwork(model)
        added = self.tokenizer.added_tokens_decoder.items()
        self._control = frozenset(token for token, about in added if about.special) | self.stop_tokens
        self.network.forward([0], self.network.new_cache())  # the first query should not pay for what torch sets up
        self._threads = torch.get_num_threads()
        self._decode_threads = decode_threads(self.network, self._threads) if self.device.type == "cpu" else 1

    def describe_device(self) -> Device:
        """What it runs on."""
        if self.device.type != "cuda":
            return Device("cpu", f"{self._threads} threads", 0, 0)
        properties = torch.cuda.get_device_properties(self.device)
        capability = properties.major * 10 + properties.minor
        return Device("cuda", properties.name, properties.total_memory // 2**20, capability)

    def forward(self, ids: list[int], cache: Any) -> torch.Tensor:
        """Logits after the last of `ids`: (vocabulary,). A prompt is bound by arithmetic and takes all threads."""
        if self.device.type == "cpu":
            torch.set_num_threads(self._threads if len(ids) > 1 else self._decode_threads)
        return self.network.forward(ids, cache)

    def card_memory_mib(self) -> int:
        """Memory of the card that the weights take; 0 on a CPU."""
        return torch.cuda.memory_allocated(self.device) // 2**20 if self.device.type == "cuda" else 0

    def prompt(self, request: ChatRequest, prefix: str) -> Prompt:
        """The tokens of a conversation and of what was answered before. Raises `EngineError`."""
        check_roles(request)
        turns = [{"role": turn.role, "content": turn.text} for turn in request.turns]
        ids, answered = self._encode_conversation(turns, prefix)
        if len(ids) >= self.context_tokens:
            raise EngineError(
                ErrorCode.CONTEXT_OVERFLOW,
                f"the conversation has {len(ids)} tokens, the model's context holds {self.context_tokens}; "
                "shorten it or ask a model with a longer context",
            )
        return Prompt(ids, answered)

    def decode(self, ids: Any) -> str:
        """Text of tokens, control tokens left out."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def _encode_conversation(self, turns: list[dict[str, str]], prefix: str) -> tuple[list[int], int]:
        """(tokens, how many of them are the prefix's). Control tokens come from the template alone."""
        text, template = self._render(turns), self._render(_marked(turns))
        before, wanted = self._encode(text), self._encode(template)
        if self._controls(before) != self._controls(wanted):  # somebody wrote a control token's name
            before = self._encode_apart(turns, template)
        if not prefix:
            return before, 0
        whole = self._encode(text + prefix)
        if whole[: len(before)] != before or self._controls(whole) != self._controls(before):
            whole = before + self._encode(prefix, plain=True)  # the seam is where the first worker began
        return whole, len(whole) - len(before)

    def _controls(self, ids: list[int]) -> list[int]:
        return [token for token in ids if token in self._control]

    def _encode_apart(self, turns: list[dict[str, str]], template: str) -> list[int]:
        """The template's parts may hold control tokens, texts may not."""
        rest, ids = template, list[int]()
        for turn, marked in zip(turns, _marked(turns), strict=True):
            part, marker, after = rest.partition(marked["content"])
            if marker:  # a template may leave a turn out
                ids, rest = ids + self._encode(part) + self._encode(turn["content"], plain=True), after
        return ids + self._encode(rest)

    def _render(self, turns: list[dict[str, str]]) -> str:
        try:
            text: str = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        except TemplateError as error:  # many templates refuse some orders of roles
            raise EngineError(ErrorCode.INVALID_REQUEST, f"the model's chat template says: {error}") from None
        return text

    def _encode(self, text: str, *, plain: bool = False) -> list[int]:
        encoded = self.tokenizer(text, add_special_tokens=False, split_special_tokens=plain)
        return list(encoded["input_ids"])


def _marked(turns: list[dict[str, str]]) -> list[dict[str, str]]:
    """The turns with a mark of private-use characters in place of each text."""
    return [turn | {"content": f"\ue000{index}\ue001"} for index, turn in enumerate(turns)]


class Sequence:
    """One answer in the making."""

    def __init__(self, model: ChatModel, request: ChatRequest, prefix: str) -> None:
        self._model = model
        prompt = model.prompt(request, prefix)
        first_answered = len(prompt.ids) - prompt.answered
        self._prompt = prompt.ids
        self._limit = min(request.max_tokens or model.context_tokens, model.context_tokens - len(prompt.ids))
        self._cache: Any = model.network.new_cache()
        self._sampler = Sampler(
            SamplingParameters.of(request),
            model.vocabulary,
            prompt.ids[:first_answered],
            prompt.ids[first_answered:],
        )
        self._detokenizer = Detokenizer(model.decode, prompt.ids)
        self._stops = StopFilter(request.stop)
        self._prefilled = 0
        self._logits: torch.Tensor | None = None
        self._granted = 0
        self._produced = 0
        self._reported = 0
        self._cancelled = False
        self.finished = False

    def begin(self) -> Prompted:
        """The first event."""
        return Prompted(len(self._prompt))

    def grant(self, total: int) -> None:
        """Allow `total` output tokens in all."""
        self._granted = max(self._granted, total)

    def cancel(self) -> None:
        """End at the next step."""
        self._cancelled = True

    @property
    def runnable(self) -> bool:
        """True if `step` has something to do now."""
        prefilling = self._logits is None
        return not self.finished and (self._cancelled or prefilling or self._produced < self._granted)

    def step(self) -> Iterator[EngineEvent]:
        """One bounded piece of work."""
        if self._cancelled:
            yield from self._finish("cancelled")
        elif self._logits is None:
            self._prefill()
        else:
            yield from self._token(self._logits)

    def _prefill(self) -> None:
        part = self._prompt[self._prefilled : self._prefilled + PREFILL_TOKENS]
        logits = self._forward(part)
        self._prefilled += len(part)
        if self._prefilled == len(self._prompt):
            self._logits = logits

    def _token(self, logits: torch.Tensor) -> Iterator[EngineEvent]:
        token = self._sampler.choose(logits)
        if token in self._model.stop_tokens:
            yield from self._finish("stop")
            return
        self._produced += 1
        text = self._stops.push(self._detokenizer.push(token))
        if text or self._produced == self._granted:  # out of grant: the count must be known, text or not
            self._reported = self._produced
            yield Piece(text, self._produced)
        if self._stops.stopped:
            yield from self._finish("stop")
        elif self._produced >= self._limit:
            yield from self._finish("length")
        else:
            self._logits = self._forward([token])

    def _finish(self, finish: str) -> Iterator[EngineEvent]:
        self.finished = True
        self._cache = None
        rest = self._stops.push(self._detokenizer.flush()) + self._stops.flush()
        if rest or self._produced > self._reported:
            yield Piece(rest, self._produced)
        yield Finished(finish, len(self._prompt), self._produced)

    def _forward(self, ids: list[int]) -> torch.Tensor:
        return self._model.forward(ids, self._cache)


def _choose_device(wanted: str) -> torch.device:
    if wanted == "cuda" and not torch.cuda.is_available():
        raise EngineError(
            ErrorCode.ENGINE_FAILED, "device cuda is asked for, but torch sees no card; try `mtor doctor`"
        )
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def _choose_arithmetic(device: torch.device, folder: Path) -> str:
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    fastest = fastest_arithmetic()
    config: Any = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    return "bf16" if fastest == "packed" and not PackedNetwork.suits(config) else fastest


def _stop_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Every token that ends an answer, by the model's and the tokenizer's word."""
    named = (model.generation_config.eos_token_id, model.config.eos_token_id, tokenizer.eos_token_id)
    flat = [token for entry in named for token in (entry if isinstance(entry, list) else [entry])]
    return frozenset(token for token in flat if isinstance(token, int))
