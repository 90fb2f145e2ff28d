"""$IMAGINE by any text-to-image pipeline of diffusers in a local folder: Stable Diffusion, SDXL, Flux and their kin.

Rule: only safetensors and only classes of diffusers and transformers are loaded, no code from the folder; safety
checkers stay as the pipeline has them. The pipeline runs in a thread that waits at every step until the answer's reader
has taken the last one, so a reader that stops reading stops the work, and one that goes away ends it at the next step.

A pipeline keeps the state of the picture that it paints, so one picture at a time is painted.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import math
import queue
import threading
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from node.engines.uncompiled import torch  # isort: split

from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from transformers.utils import logging as transformers_logging

from node.engines import pictures
from node.engines.backend import Loaded, process_memory_mib
from node.engines.control_tokens import ControlTokens, broken_up
from node.engines.devices import choose_device, describe_device, memory_mib
from node.engines.pictures import Limits, Picture
from node.engines.port import EngineError, EngineEvent, Finished, Prompted, Step
from protocol.errors import ErrorCode
from protocol.messages import ImagineRequest

LIBRARIES = ("diffusers", "transformers")
DEFAULT_SIDE, DEFAULT_STEPS = 512, 30
MOST_UNITS = 2_000  # 1,024 x 1,024 pixels in 125 steps
PREVIEW_LATENTS = 16  # a side: decoding a preview costs little beside a step
WAIT_SECONDS = 0.1  # between two looks at commands while a step is computed


@dataclass(frozen=True, slots=True)
class _Progress:
    """A step was done; the thread waits until this is taken."""

    done: int
    total: int
    preview: bytes


@dataclass(frozen=True, slots=True)
class _Painted:
    image: Image.Image


class _Stopped(Exception):
    """Nobody waits for this picture any more."""


class DiffusersPainter:
    """The `Answerer` of a pipeline. Options: `steps`, `guidance` (thousandths), `width`, `height`, `most_units`,
    `precision` (fp16, bf16, fp32; fp16 on a card and fp32 elsewhere unless said)."""

    def __init__(self, folder: Path, device: str, threads: int, options: Mapping[str, str]) -> None:
        """Raises `ValueError` for a folder or option that it cannot take, and what diffusers raises."""
        if threads:
            torch.set_num_threads(threads)
        check_folder(folder)
        _silence()
        self._threads = threads
        self._device = choose_device(device)
        self._name = folder.name
        load: Any = DiffusionPipeline.from_pretrained
        pipeline = load(str(folder), use_safetensors=True, local_files_only=True, dtype=self._precision(options))
        pipeline.set_progress_bar_config(disable=True)
        self._pipeline = pipeline.to(self._device)
        tokenizers = [part for part in pipeline.components.values() if hasattr(part, "added_tokens_decoder")]
        self._control = [ControlTokens(tokenizer) for tokenizer in tokenizers]
        self._takes = frozenset(inspect.signature(pipeline.__call__).parameters)
        missing = {"prompt", "num_inference_steps", "callback_on_step_end"} - self._takes
        if missing:
            raise ValueError(f"{type(pipeline).__name__} takes no {' and no '.join(sorted(missing))}: not for $IMAGINE")
        self._limits = _limits(pipeline, options)
        self._guidance = pictures.option(options, "guidance", _own_guidance(pipeline))
        self._busy = threading.Lock()
        self.facts = Loaded(
            0,
            describe_device(self._device, threads),
            memory_mib(self._device, process_memory_mib()),
            (ImagineRequest,),
        )

    def answer(
        self, request: ImagineRequest, prefix: str, inputs: Sequence[bytes]
    ) -> Generator[EngineEvent | None, None, None]:
        """See `Answerer`."""
        picture = pictures.plan(request, self._limits, self._name)
        picture = replace(picture, guidance=picture.guidance or self._guidance)
        arguments = self._arguments(picture)
        yield Prompted(0)
        while not self._busy.acquire(timeout=WAIT_SECONDS):
            yield None
        try:
            image = yield from self._painted(arguments, bool(request.previews))
        finally:
            self._busy.release()
        yield from pictures.parts(pictures.to_png(image, picture), picture.units)
        yield Finished("stop", 0, picture.units)

    def _arguments(self, picture: Picture) -> dict[str, Any]:
        """What the pipeline is called with. Raises `EngineError` for a wish that it has no way to take."""
        if picture.negative_prompt and "negative_prompt" not in self._takes:
            raise pictures.invalid("this model takes no negative prompt: leave it out")
        wanted = {
            "prompt": self._as_text(picture.prompt),
            "negative_prompt": self._as_text(picture.negative_prompt) or None,
            "width": picture.width,
            "height": picture.height,
            "num_inference_steps": picture.steps,
            "guidance_scale": picture.guidance / 1_000,
            # Drawn on the CPU, so that every device paints from the same noise.
            "generator": torch.Generator().manual_seed(picture.seed),
        }
        return {name: value for name, value in wanted.items() if value is not None and name in self._takes}

    def _as_text(self, prompt: str) -> str:
        """The prompt with the names of the tokenizers' control tokens broken up: they are text here. Raises
        `EngineError` if one would still come out."""
        prompt = broken_up(prompt, {name for control in self._control for name in control.names}, " ")
        if any(control.would_come_out(prompt) for control in self._control):
            raise pictures.invalid("the prompt holds a control token's name: leave it out or write it differently")
        return prompt

    def _painted(self, arguments: dict[str, Any], previews: bool) -> Generator[EngineEvent | None, None, Image.Image]:
        """Run the pipeline in a thread, step by step with the reader of this generator."""
        steps: queue.Queue[_Progress | _Painted | Exception] = queue.Queue(maxsize=1)
        turn, stopped = threading.Semaphore(0), threading.Event()
        thread = threading.Thread(target=self._paint, args=(arguments, previews, steps, turn, stopped), daemon=True)
        thread.start()
        try:
            while True:
                with contextlib.suppress(queue.Empty):
                    item = steps.get(timeout=WAIT_SECONDS)
                    if isinstance(item, _Painted):
                        return item.image
                    if isinstance(item, Exception):
                        raise item
                    yield Step(item.done, item.total, item.preview)
                    turn.release()
                    continue
                yield None
        finally:
            stopped.set()
            turn.release()
            thread.join()

    def _paint(
        self,
        arguments: dict[str, Any],
        previews: bool,
        steps: queue.Queue[_Progress | _Painted | Exception],
        turn: threading.Semaphore,
        stopped: threading.Event,
    ) -> None:
        """The thread. It puts one last item: the picture or an exception; none when it was stopped."""

        def step_ended(pipeline: Any, index: int, time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            done, total = (
                index + 1,
                max(index + 1, int(getattr(pipeline, "num_timesteps", arguments["num_inference_steps"]))),
            )
            shown = previews and pictures.due(done, total)
            steps.put(_Progress(done, total, self._preview(tensors.get("latents")) if shown else b""))
            turn.acquire()
            if stopped.is_set():
                raise _Stopped
            return {}

        if self._threads:
            torch.set_num_threads(self._threads)  # each thread has its own number
        try:
            result = self._pipeline(**arguments, callback_on_step_end=step_ended)
            steps.put(_Painted(_only(result)))
        except _Stopped:
            pass
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()  # the card is as it was before
            size = f"{arguments['width']} x {arguments['height']}"
            steps.put(EngineError(ErrorCode.ENGINE_FAILED, f"the card has no memory for {size} pixels: ask for fewer"))
        except Exception as error:
            steps.put(error)

    @torch.inference_mode()
    def _preview(self, latents: Any) -> bytes:
        """A small picture of the latents, by the pipeline's own decoder; nothing where that has no plain way."""
        vae = getattr(self._pipeline, "vae", None)
        half_overflows = getattr(getattr(vae, "config", None), "force_upcast", False) and self._device.type == "cuda"
        if vae is None or half_overflows or not isinstance(latents, torch.Tensor) or latents.ndim != 4:
            return b""
        factor = max(1, math.ceil(max(latents.shape[2:]) / PREVIEW_LATENTS))
        small = torch.nn.functional.avg_pool2d(latents[:1].float(), factor)
        # Averaging noise makes it smaller; the picture under it stays.
        shift = getattr(vae.config, "shift_factor", None) or 0.0
        decoded = vae.decode((small / vae.config.scaling_factor + shift).to(vae.dtype), return_dict=False)[0]
        pixels = ((decoded[0].float().permute(1, 2, 0) + 1) * 127.5).nan_to_num().clamp(0, 255).byte()
        return pictures.preview(Image.fromarray(pixels.cpu().numpy()))

    def _precision(self, options: Mapping[str, str]) -> torch.dtype:
        named = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
        wanted = options.get("precision", "fp16" if self._device.type == "cuda" else "fp32")
        if wanted not in named:
            raise ValueError(f"the option precision is one of {', '.join(named)}, not {wanted!r}")
        return named[wanted]


def _silence() -> None:
    """The libraries draw progress bars, and warn of a prompt that is too long by quoting it."""
    library: Any
    for library in (diffusers_logging, transformers_logging):
        library.disable_progress_bar()
        library.set_verbosity_error()


def check_folder(folder: Path) -> None:
    """Refuse what would run code from the folder or read another format. Raises `ValueError` with the fix."""
    index = folder / "model_index.json"
    if not index.is_file():
        raise ValueError(f"{folder.name} holds no model_index.json: it is no pipeline of diffusers")
    parts = json.loads(index.read_text())
    kind = parts.get("_class_name")
    if not isinstance(kind, str):
        raise ValueError(f"the pipeline of {folder.name} is code of its own ({kind}); only those of diffusers are run")
    if any(folder.rglob("*.py")):
        raise ValueError(f"{folder.name} holds Python files; code that comes with a model is not run: remove them")
    for name, part in parts.items():
        if name.startswith("_") or not isinstance(part, list) or part[0] is None:
            continue
        if part[0] not in LIBRARIES and not _is_pipeline_module(part[0]):
            raise ValueError(f"{folder.name} wants its {name} from {part[0]}; only {' and '.join(LIBRARIES)} are used")


def _is_pipeline_module(name: object) -> bool:
    """diffusers names the home of a pipeline's own parts, such as "stable_diffusion" for the safety checker."""
    from diffusers import pipelines

    return isinstance(name, str) and name.isidentifier() and inspect.ismodule(getattr(pipelines, name, None))


def _limits(pipeline: Any, options: Mapping[str, str]) -> Limits:
    """Sizes that suit the pipeline: what it was trained for, in multiples of what its networks halve."""
    scale = int(getattr(pipeline, "vae_scale_factor", 8))
    transformer = getattr(pipeline, "transformer", None)
    network_config = getattr(transformer or getattr(pipeline, "unet", None), "config", None)
    sample = getattr(pipeline, "default_sample_size", None) or getattr(network_config, "sample_size", None)
    side = sample * scale if isinstance(sample, int) else DEFAULT_SIDE
    # A transformer takes 2 x 2 latents at a time.
    multiple = math.lcm(8, scale) if transformer is None else math.lcm(16, 2 * scale)
    return Limits(
        width=pictures.option(options, "width", side),
        height=pictures.option(options, "height", side),
        steps=pictures.option(options, "steps", DEFAULT_STEPS),
        most_units=pictures.option(options, "most_units", MOST_UNITS),
        least_side=min(64, side),
        multiple=multiple,
    )


def _own_guidance(pipeline: Any) -> int:
    """What the pipeline is guided by unless told otherwise, in thousandths."""
    own = inspect.signature(pipeline.__call__).parameters.get("guidance_scale")
    return round(own.default * 1_000) if own is not None and isinstance(own.default, int | float) else 0


def _only(result: Any) -> Image.Image:
    """The picture of a pipeline's result. Raises `EngineError` where its safety checker withheld it."""
    if any(getattr(result, "nsfw_content_detected", None) or ()):
        raise EngineError(ErrorCode.INVALID_REQUEST, "the model's safety checker withheld this picture: ask otherwise")
    image: Image.Image = result.images[0]
    return image.convert("RGB")
