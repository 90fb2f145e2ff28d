"""A causal language model in torch: load it, turn conversations into tokens and tokens into text.

Rule: a control token comes from the chat template alone; whatever a text holds stays text.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a model is a folder on this disk; nothing is fetched here

import torch
from jinja2 import TemplateError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from node.engines.control_tokens import ControlTokens
from node.engines.devices import choose_device, describe_device
from node.engines.network_choice import choose_network
from node.engines.networks import Network, fastest_arithmetic, fastest_unpacked, fewest_threads
from node.engines.packed_network import PackedNetwork
from node.engines.port import EngineError, check_roles
from node.engines.threads import ThreadChoice
from protocol.errors import ErrorCode
from protocol.messages import ChatRequest, Device

DTYPES = {
    "packed": torch.bfloat16,
    "packed-fp32": torch.bfloat16,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
}
SMALL_BYTES = 8 * 2**20  # of weights: they stay in the processor's cache, so fewer bits would save nothing
MANY_ANSWERS = 8  # for which the threads of several answers at once are measured at the start


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation as tokens. `ids` ends with the tokens of what was answered before (`answered` of them)."""

    ids: list[int]
    answered: int


class ChatModel:
    """A loaded model and its tokenizer."""

    def __init__(self, folder: Path, device: str, threads: int, arithmetic: str = "auto") -> None:
        """`arithmetic` is "packed", "packed-fp32", "bf16" or "fp32" on a CPU; "auto" measures which is fast."""
        disable_progress_bar()
        if threads:
            torch.set_num_threads(threads)
        self.device = choose_device(device)
        arithmetic = _choose_arithmetic(self.device, folder) if arithmetic == "auto" else arithmetic
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=DTYPES[arithmetic], trust_remote_code=False, use_safetensors=True
        )
        model = model.eval().to(self.device)
        self.context_tokens = int(getattr(model.config, "max_position_embeddings", 2_048))
        self.vocabulary = int(model.config.vocab_size)
        self.stop_tokens = _stop_tokens(model, self.tokenizer)
        self.network: Network = choose_network(model, arithmetic)
        self._control = ControlTokens(self.tokenizer, self.stop_tokens)
        self._threads = torch.get_num_threads()
        self._set_up()

    def _set_up(self) -> None:
        """What torch does once should not be paid by the first query; and what is fast here is measured."""
        memory = self.network.new_memory()
        self.network.read([0, 0], memory)
        self.network.write([0], [memory])
        self.network.free(memory)
        self._choice = ThreadChoice(self._threads)
        if self.device.type != "cpu":
            return
        if isinstance(self.network, PackedNetwork):
            self.network.measure()
        for answers in (1, MANY_ANSWERS):
            self._choice.begin_with(answers, fewest_threads(self.network, self._threads, answers))

    def describe_device(self) -> Device:
        """What it runs on."""
        return describe_device(self.device, self._threads)

    def read(self, ids: Sequence[int], memory: Any) -> torch.Tensor:
        """Logits after the last of `ids`: (vocabulary,). A prompt is bound by arithmetic and takes all threads."""
        self._take_threads(self._threads)
        return self.network.read(ids, memory)

    def write(self, tokens: Sequence[int], memories: Sequence[Any]) -> torch.Tensor:
        """Logits after one more token of each answer: (answers, vocabulary)."""
        if self.device.type != "cpu":
            return self.network.write(tokens, memories)
        self._take_threads(self._choice.threads(len(tokens)))
        began = time.perf_counter()
        logits = self.network.write(tokens, memories)
        self._choice.note(len(tokens), time.perf_counter() - began)
        return logits

    def _take_threads(self, count: int) -> None:
        if self.device.type == "cpu" and torch.get_num_threads() != count:
            torch.set_num_threads(count)

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
        same = self._control.written(text) == self._control.written(template)
        if not same or self._control.within(before) != self._control.within(wanted):  # somebody wrote a name
            before = self._encode_apart(turns, template)
        if not prefix:
            return before, 0
        whole = self._encode(text + prefix)
        if whole[: len(before)] != before or self._control.within(whole[len(before) :]):
            whole = before + self._control.encode_text(prefix)  # the seam is where the first worker began
        return whole, len(whole) - len(before)

    def _encode_apart(self, turns: list[dict[str, str]], template: str) -> list[int]:
        """The template's parts may hold control tokens, texts may not."""
        rest, ids = template, list[int]()
        for turn, marked in zip(turns, _marked(turns), strict=True):
            part, marker, after = rest.partition(marked["content"])
            if marker:  # a template may leave a turn out
                ids, rest = ids + self._encode(part) + self._control.encode_text(turn["content"]), after
        return ids + self._encode(rest)

    def _render(self, turns: list[dict[str, str]]) -> str:
        try:
            text: str = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        except TemplateError as error:  # many templates refuse some orders of roles
            raise EngineError(ErrorCode.INVALID_REQUEST, f"the model's chat template says: {error}") from None
        return text

    def _encode(self, text: str) -> list[int]:
        encoded = self.tokenizer(text, add_special_tokens=False)
        return list(encoded["input_ids"])


def _marked(turns: list[dict[str, str]]) -> list[dict[str, str]]:
    """The turns with a mark of private-use characters in place of each text."""
    return [turn | {"content": f"\ue000{index}\ue001"} for index, turn in enumerate(turns)]


def _choose_arithmetic(device: torch.device, folder: Path) -> str:
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    if sum(file.stat().st_size for file in folder.glob("*.safetensors")) <= SMALL_BYTES:
        return "fp32"
    config: Any = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    return fastest_arithmetic() if PackedNetwork.suits(config) else fastest_unpacked()


def _stop_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Every token that ends an answer, by the model's and the tokenizer's word."""
    named = (model.generation_config.eos_token_id, model.config.eos_token_id, tokenizer.eos_token_id)
    flat = [token for entry in named for token in (entry if isinstance(entry, list) else [entry])]
    return frozenset(token for token in flat if isinstance(token, int))
