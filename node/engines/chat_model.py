"""A causal language model in torch: load it, turn conversations into tokens and tokens into text.

Rule: a control token comes from the chat template alone; whatever a text holds stays text.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from node.engines.uncompiled import torch  # isort: split

from jinja2 import TemplateError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from node.engines.control_tokens import ControlTokens, broken_up
from node.engines.devices import choose_device, describe_device
from node.engines.guide import Guide, Vocabulary
from node.engines.network_choice import choose_network
from node.engines.networks import Network, fastest_arithmetic, fastest_unpacked, fewest_threads
from node.engines.packed_network import PackedNetwork
from node.engines.port import EngineError, check_roles
from node.engines.threads import ThreadChoice
from node.engines.tool_calls import MARKS, ToolStyle, calls_grammar, style_of, text_grammar
from protocol.errors import ErrorCode
from protocol.messages import Call, ChatRequest, Device, Tool
from protocol.wishes import ModelFeature, wishes_of

DTYPES = {
    "packed": torch.bfloat16,
    "packed-fp32": torch.bfloat16,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
}
SMALL_BYTES = 8 * 2**20  # of weights: they stay in the processor's cache, so fewer bits would save nothing
JOINER = "\u200b"  # put into the name of a control token that somebody wrote into a tool: it is no name then
TRIED_TOOL = Tool("lamp_7f3a", "", "")
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
        self.words = _vocabulary(self.tokenizer, self.vocabulary, self.stop_tokens)
        self.tool_style = self._find_tool_style()
        self.tool_marks = _marks(self.tokenizer)
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

    @property
    def features(self) -> tuple[int, ...]:
        """What it can do beyond text."""
        forced = self.words is not None and self.tool_style is not None and not self.tool_style.named
        able = (
            (ModelFeature.TOOLS, self.tool_style is not None),
            (ModelFeature.TOOL_CHOICE, forced),
            (ModelFeature.JSON, self.words is not None),
            (ModelFeature.LOGPROBS, self.words is not None),
        )
        return tuple(int(feature) for feature, has in able if has)

    def guide(self, request: ChatRequest) -> Guide | None:
        """What holds an answer from its first token on. Raises `EngineError`."""
        wishes = wishes_of(request)
        if wishes.must_call:
            return self.call_guide(request, opened=False)
        return self.words.guide(text_grammar(wishes.schema)) if self.words and wishes.schema else None

    def call_guide(self, request: ChatRequest, *, opened: bool) -> Guide | None:
        """What holds calls; None where nothing does. Raises `EngineError`."""
        wishes, style = wishes_of(request), self.tool_style
        if self.words is None or style is None:
            return None
        mark = next((f"<[{token}]>" for token, name in self.tool_marks.items() if name == style.opener), "")
        schemas = {tool.name: tool.parameters for tool in wishes.tools}
        grammar = calls_grammar(style, schemas, one=bool(wishes.one_call), opened=opened, mark=mark)
        return self.words.guide(grammar) if grammar else None

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
        wishes = wishes_of(request)
        turns = self._turns(request)
        ids, answered = self._encode_conversation(turns, prefix, [self._tool(tool) for tool in wishes.tools])
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

    def _turns(self, request: ChatRequest) -> list[dict[str, Any]]:
        """The conversation as templates take it. A call's id says which one it is, in nine letters and digits, as
        Mistral's want it."""
        turns: list[dict[str, Any]] = [{"role": turn.role, "content": turn.text} for turn in request.turns]
        for number, call in enumerate(wishes_of(request).calls):
            name = f"call{number:05}"
            shown = {"id": name, "type": "function", "function": self._called(call)}
            turns[call.turn].setdefault("tool_calls", []).append(shown)
            if call.answer:
                turns[call.answer] |= {"tool_call_id": name, "name": call.name}
        return turns

    def _called(self, call: Call) -> dict[str, Any]:
        return {"name": call.name, "arguments": self._harmless(call.arguments)}

    def _tool(self, tool: Tool) -> dict[str, Any]:
        description = broken_up(tool.description, self._control.names, JOINER)
        parameters = self._harmless(tool.parameters) if tool.parameters else {"type": "object", "properties": {}}
        return {
            "type": "function",
            "function": {"name": tool.name, "description": description, "parameters": parameters},
        }

    def _harmless(self, text: str) -> Any:
        """A JSON text's value, without names of control tokens: templates write it where no text is told apart."""
        return json.loads(broken_up(text, self._control.names, JOINER))

    def _find_tool_style(self) -> ToolStyle | None:
        """How the model writes calls, if its template shows it tools, calls and results."""
        tools = [self._tool(TRIED_TOOL)]
        call = {"id": "call00000", "type": "function", "function": {"name": TRIED_TOOL.name, "arguments": {"a": 1}}}
        turns: list[dict[str, Any]] = [
            {"role": "user", "content": "light"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "lit", "tool_call_id": "call00000", "name": TRIED_TOOL.name},
        ]
        try:
            template: Any = self.tokenizer.get_chat_template(None, tools=tools)
            style = style_of(template)
            shown = self._render(turns[:1], tools)
            told = self._render(turns, tools)
        except Exception:  # a template is a program: whatever goes wrong in it, it shows no tools
            return None
        return style if TRIED_TOOL.name in shown and "lit" in told and told.count(TRIED_TOOL.name) > 1 else None

    def _encode_conversation(
        self, turns: list[dict[str, Any]], prefix: str, tools: list[dict[str, Any]]
    ) -> tuple[list[int], int]:
        """(tokens, how many of them are the prefix's). Control tokens come from the template alone."""
        text, template = self._render(turns, tools), self._render(_marked(turns), tools)
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

    def _encode_apart(self, turns: list[dict[str, Any]], template: str) -> list[int]:
        """The template's parts may hold control tokens, texts may not."""
        rest, ids = template, list[int]()
        for turn, marked in zip(turns, _marked(turns), strict=True):
            part, marker, after = rest.partition(marked["content"])
            if marker:  # a template may leave a turn out
                ids, rest = ids + self._encode(part) + self._control.encode_text(turn["content"]), after
        return ids + self._encode(rest)

    def _render(self, turns: list[dict[str, Any]], tools: list[dict[str, Any]]) -> str:
        shown = {"tools": tools} if tools else {}
        try:
            text: str = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **shown)
        except TemplateError as error:  # many templates refuse some orders of roles
            raise EngineError(ErrorCode.INVALID_REQUEST, f"the model's chat template says: {error}") from None
        return text

    def _encode(self, text: str) -> list[int]:
        encoded = self.tokenizer(text, add_special_tokens=False)
        return list(encoded["input_ids"])


def _vocabulary(tokenizer: Any, size: int, ends: frozenset[int]) -> Vocabulary | None:
    """None for a tokenizer that the grammars cannot be used with."""
    try:
        return Vocabulary(tokenizer, size, ends)
    except ValueError as error:
        print(f"no JSON by a schema with this tokenizer: {error}", file=sys.stderr, flush=True)
        return None


def _marks(tokenizer: Any) -> dict[int, str]:
    """Control tokens around calls, which decoding leaves out."""
    about = tokenizer.added_tokens_decoder.items()
    return {token: added.content for token, added in about if added.special and added.content in MARKS}


def _marked(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
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
