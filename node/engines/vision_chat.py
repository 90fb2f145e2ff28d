"""A vision-language model of transformers in the child process: pictures and a conversation in, text out.

Rule: the model is a folder on this disk, loaded from safetensors without any code of its own. Pictures come through
`images.open_picture` alone. Control and picture tokens come from the template and the processor alone: their names in
what somebody wrote get a space of no width inside, so that they stay letters. A step is one token, or a bounded part of
the prompt; the part up to the last picture is one step, because a model attends to a picture as a whole.

Positions: a few models (Qwen2-VL and its kin) keep the offset between tokens and positions on a module. It belongs to
one answer, so it is taken out and put back around each step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from node.engines.uncompiled import torch  # isort: split

from jinja2 import TemplateError
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, ProcessorMixin
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.utils.logging import disable_progress_bar

from node.engines.backend import Loaded, process_memory_mib
from node.engines.control_tokens import ControlTokens, broken_up
from node.engines.devices import choose_device, describe_device, memory_mib
from node.engines.images import open_picture
from node.engines.networks import fastest_unpacked
from node.engines.port import EngineError, EngineEvent, Finished, Piece, Prompted, check_roles
from node.engines.sampling import Sampler, SamplingParameters
from node.engines.text import Detokenizer, StopFilter
from protocol.errors import ErrorCode
from protocol.messages import VisionRequest

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
PREFILL_TOKENS = 256  # of the prompt behind the last picture, at a time
LONGEST_SIDE = 1_536  # pixels that a model's own processor gets to see; the option "longest" changes it
NO_WIDTH = "\u200b"
BY_TOKEN = ("attention_mask", "token_type_ids", "mm_token_type_ids")  # inputs with one number a token


class VisionChat:
    """The `Answerer` of a vision-language model."""

    def __init__(self, folder: Path, device: str, threads: int, options: Mapping[str, str]) -> None:
        """Options: "arithmetic" ("bf16", "fp16" or "fp32"; measured otherwise), "longest" (pixels) and "context"
        (tokens). Raises `EngineError`, `ValueError`, what transformers raises."""
        disable_progress_bar()
        if threads:
            torch.set_num_threads(threads)
        self._device = choose_device(device)
        self._longest = int(options.get("longest", LONGEST_SIDE))
        dtype = DTYPES[options.get("arithmetic") or _arithmetic(self._device)]
        self._processor = _load_processor(folder)
        self._processor.chat_template = self._processor.chat_template or self._processor.tokenizer.chat_template
        if not self._processor.chat_template:
            raise EngineError(ErrorCode.ENGINE_FAILED, "the model has no chat template: choose one tuned for chat")
        model: Any = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=dtype, trust_remote_code=False, use_safetensors=True, local_files_only=True
        )
        self._model: Any = model.eval().to(self._device)
        self._tokenizer: Any = self._processor.tokenizer
        self._stops = _stop_tokens(self._model, self._tokenizer)
        places = _places(self._processor, self._tokenizer)
        self._control = ControlTokens(self._tokenizer, self._stops | frozenset(places.values()))
        self._names = frozenset(self._control.names) | places.keys()
        self._image_tokens = _image_tokens(self._processor, self._model.config)
        longest = int(getattr(self._model.config.get_text_config(), "max_position_embeddings", 2_048))
        self._context = min(longest, int(options.get("context", longest)))
        self._offsets = [module for module in self._model.modules() if hasattr(module, "rope_deltas")]
        self.facts = Loaded(
            self._context,
            describe_device(self._device, threads),
            memory_mib(self._device, process_memory_mib()),
            (VisionRequest,),
        )

    def answer(self, request: VisionRequest, prefix: str, inputs: Sequence[bytes]) -> Iterator[EngineEvent | None]:
        """See `Answerer`."""
        check_roles(request)
        pictures: list[Image.Image] = []
        for data in inputs:
            pictures.append(open_picture(data, self._longest).image)
            yield None
        prompt = self._prompt(request, pictures)
        asked: list[int] = prompt["input_ids"][0].tolist()
        answered: list[int] = self._control.encode_text(prefix)
        ids = asked + answered
        if len(ids) >= self._context:
            raise EngineError(
                ErrorCode.CONTEXT_OVERFLOW,
                f"the conversation and its pictures have {len(ids)} tokens, the model's context holds {self._context}; "
                "shorten it, send fewer pictures or ask a model with a longer context",
            )
        yield Prompted(len(ids))
        run = _Run(self._model, self._offsets, self._device)
        logits = None
        for part in self._parts(prompt, ids):
            logits = run.forward(**part)
            yield None
        assert logits is not None  # a prompt has a token
        yield from self._tell(run, logits, request, asked, answered)

    def _tell(
        self, run: _Run, logits: torch.Tensor, request: VisionRequest, asked: list[int], answered: list[int]
    ) -> Iterator[EngineEvent]:
        known = [token for token in asked if token < len(logits)]  # a picture's token may lie behind the vocabulary
        sampler = Sampler(SamplingParameters.of(request), len(logits), known, answered)
        detokenizer = Detokenizer(self._decode, asked + answered)
        stops = StopFilter(request.stop)
        units_in = len(asked) + len(answered)
        limit = min(request.max_tokens or self._context, self._context - units_in)
        produced, finish = 0, "stop"
        while (token := sampler.choose(logits)) not in self._stops:
            produced += 1
            yield Piece(stops.push(detokenizer.push(token)), produced)
            if stops.stopped:
                break
            if produced >= limit:
                finish = "length"
                break
            logits = run.forward(input_ids=torch.tensor([[token]], device=self._device))
        rest = stops.push(detokenizer.flush()) + stops.flush()
        yield Piece(rest, produced)
        yield Finished(finish, units_in, produced)

    def _prompt(self, request: VisionRequest, pictures: Sequence[Image.Image]) -> Any:
        """The processor's inputs for the model, on its device. Raises `EngineError` (INVALID_REQUEST)."""
        messages = [
            {"role": turn.role, "content": _content(self._plain(turn.text), index, request, pictures)}
            for index, turn in enumerate(request.turns)
        ]
        try:
            self._check_seams(messages)
            prompt = self._processor.apply_chat_template(
                messages, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
            )
        except (MemoryError, EngineError):
            raise
        except TemplateError as error:  # many templates refuse some orders of roles
            raise EngineError(ErrorCode.INVALID_REQUEST, f"the model's chat template says: {error}") from None
        except Exception as error:  # nothing has touched the card yet: the pictures or their number do not suit it
            raise EngineError(
                ErrorCode.INVALID_REQUEST,
                f"the model's processor does not take this conversation with its pictures ({type(error).__name__}): "
                "try one picture, less narrow",
            ) from None
        return prompt.to(self._device, dtype=self._model.dtype)

    def _plain(self, text: str) -> str:
        """A text in which no name of a control token is one. A processor looks for a picture's place by its name, so
        that it would take a name that somebody wrote for one. Raises `EngineError` (INVALID_REQUEST)."""
        text = broken_up(text, self._names, NO_WIDTH)
        if self._control.would_come_out(text):
            raise _forged()
        return text

    def _check_seams(self, messages: Sequence[Mapping[str, Any]]) -> None:
        """A text's end and what the template has behind it must make no name together, nor take one from the template.
        Raises `EngineError` (INVALID_REQUEST)."""
        written, meant = (self._template_controls(each) for each in (messages, _marked(messages)))
        if written != meant:
            raise _forged()

    def _template_controls(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        text = self._processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return self._control.within(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _parts(self, prompt: Any, ids: list[int]) -> Iterator[dict[str, Any]]:
        """The model's inputs, part by part: all that is needed up to the last picture, then tokens alone. Without an
        attention mask, because nothing is padded."""
        end = self._end_of_pictures(ids)
        head = {name: value for name, value in prompt.items() if name not in BY_TOKEN}
        head["input_ids"] = torch.tensor([ids[:end]], device=self._device)
        for name in BY_TOKEN[1:]:
            if name in prompt:
                more = max(0, end - prompt[name].shape[1])  # tokens of the prefix, which are text
                head[name] = torch.nn.functional.pad(prompt[name], (0, more))[:, :end]
        yield head
        for at in range(end, len(ids), PREFILL_TOKENS):
            yield {"input_ids": torch.tensor([ids[at : at + PREFILL_TOKENS]], device=self._device)}

    def _end_of_pictures(self, ids: list[int]) -> int:
        """The number of tokens up to the last picture; all where pictures cannot be told."""
        places = [index for index, token in enumerate(ids) if token in self._image_tokens]
        return places[-1] + 1 if places else len(ids)

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


class _Run:
    """One answer's cache and position offsets."""

    def __init__(self, model: Any, offsets: list[Any], device: torch.device) -> None:
        self._model = model
        self._offsets = offsets
        self._kept: list[Any] = [None] * len(offsets)
        self._cache: Any = None

    def forward(self, **inputs: Any) -> torch.Tensor:
        """Logits after the last token: (vocabulary,)."""
        for module, kept in zip(self._offsets, self._kept, strict=True):
            module.rope_deltas = kept
        with torch.inference_mode():
            output = self._model(**inputs, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        self._kept = [module.rope_deltas for module in self._offsets]
        self._cache = output.past_key_values
        logits: torch.Tensor = output.logits[0, -1]
        return logits


def _load_processor(folder: Path) -> Any:
    """A model's processor. Raises `EngineError` if a package is missing."""
    options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True, "backend": "pil"}
    config: Any = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    known: Any = PROCESSOR_MAPPING.get(type(config), None)
    try:
        if known is not None and "video_processor" in known.get_attributes():
            return _pictures_alone(known).from_pretrained(folder, **options)
        return AutoProcessor.from_pretrained(folder, **options)
    except ImportError as error:
        raise EngineError(ErrorCode.ENGINE_FAILED, f"the model's processor lacks a package: {error}") from None


def _pictures_alone(known: Any) -> Any:
    """A processor's class without its part for films, which would want torchvision."""

    class PicturesAlone(known):  # type: ignore[misc]
        video_processor = None

        @classmethod
        def from_args_and_dict(cls, args: Sequence[Any], *rest: Any, **options: Any) -> Any:
            """Where its maker asks for the part, there is none."""
            place = known.get_attributes().index("video_processor")
            return super().from_args_and_dict([*args[:place], None, *args[place:]], *rest, **options)

        @classmethod
        def get_attributes(cls) -> list[str]:
            return ["image_processor", "tokenizer"]

        def apply_chat_template(self, *arguments: Any, **options: Any) -> Any:
            """The general one: SmolVLM's asks its part for films for options."""
            return ProcessorMixin.apply_chat_template(self, *arguments, **options)

    return PicturesAlone


def _content(
    text: str, index: int, request: VisionRequest, pictures: Sequence[Image.Image]
) -> list[dict[str, str | Image.Image]]:
    """A turn for a template: its pictures, then its text."""
    shown = [picture for media, picture in zip(request.media, pictures, strict=True) if media.turn == index]
    content: list[dict[str, str | Image.Image]] = [{"type": "image", "image": picture} for picture in shown]
    return [*content, {"type": "text", "text": text}] if text else content


def _marked(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The conversation with a private-use character in place of each text."""
    mark = {"type": "text", "text": "\ue000"}
    return [
        {**message, "content": [mark if part["type"] == "text" else part for part in message["content"]]}
        for message in messages
    ]


def _forged() -> EngineError:
    return EngineError(
        ErrorCode.INVALID_REQUEST, "the text holds a control token's name: leave it out or write it differently"
    )


def _arithmetic(device: torch.device) -> str:
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    return fastest_unpacked()


def _places(processor: Any, tokenizer: Any) -> dict[str, int]:
    """Names of places for media, of those that are tokens."""
    named = [
        getattr(processor, f"{each}_token", None) for each in ("image", "video", "audio", "boi", "eoi", "fake_image")
    ]
    tokens = {name: tokenizer.convert_tokens_to_ids(name) for name in named if isinstance(name, str)}
    return {name: token for name, token in tokens.items() if token not in (None, tokenizer.unk_token_id)}


def _image_tokens(processor: Any, config: Any) -> frozenset[int]:
    """The tokens that stand for a picture, by everybody's word: some call the one before the picture so."""
    named = [getattr(each, "image_token_id", None) for each in (processor, processor.tokenizer, config)]
    return frozenset(token for token in named if isinstance(token, int))


def _stop_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Every token that ends an answer, by the model's and the tokenizer's word."""
    text = model.config.get_text_config()
    named = (model.generation_config.eos_token_id, getattr(text, "eos_token_id", None), tokenizer.eos_token_id)
    flat = [token for entry in named for token in (entry if isinstance(entry, list) else [entry])]
    return frozenset(token for token in flat if isinstance(token, int))
