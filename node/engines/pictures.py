"""What both painters share: limits of a request, and PNG files that say how they were made.

Rule: a request is held to every limit before any work begins, and each refusal names the limit. A picture carries its
parameters in its own metadata, so that it can be painted again; nothing of a prompt is ever written to a log.

The text chunk "parameters" is written in the way of Stable Diffusion WebUI (prompt, "Negative prompt: …", then
"Steps: …, Seed: …"), which many tools read; the chunk "mtor" holds the same as JSON, exactly.
"""

from __future__ import annotations

import io
import json
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from node.engines.port import Data, EngineError
from protocol import params
from protocol.errors import ErrorCode
from protocol.messages import ImagineRequest
from protocol.requests import picture_units

MEDIA_TYPE = "image/png"
MOST_SEED = 2**31 - 1  # of a seed that we draw: every tool that reads the metadata can hold it
PREVIEW_SIDE = 128  # pixels: 128 x 128 x 3 bytes fit in one chunk even where nothing can be compressed


@dataclass(frozen=True, slots=True)
class Limits:
    """What a painter takes. `most_units` bounds width times height times steps (see `picture_units`)."""

    width: int  # the default, pixels
    height: int
    steps: int  # the default
    most_units: int
    least_side: int = 64
    most_side: int = params.MAX_PICTURE_SIDE
    most_steps: int = params.MAX_PICTURE_STEPS
    multiple: int = 1  # both sides are a multiple of this many pixels


@dataclass(frozen=True, slots=True)
class Picture:
    """What will be painted: a request with every choice made."""

    prompt: str
    negative_prompt: str
    width: int  # pixels
    height: int
    steps: int
    guidance: int  # thousandths; 0: the model's own
    seed: int
    model: str

    @property
    def units(self) -> int:
        """What it costs."""
        return picture_units(self.width, self.height, self.steps)


def invalid(reason: str) -> EngineError:
    """A refusal that is the asker's to mend."""
    return EngineError(ErrorCode.INVALID_REQUEST, reason)


def plan(request: ImagineRequest, limits: Limits, model: str) -> Picture:
    """Fill in the defaults and check everything. Raises `EngineError` (INVALID_REQUEST)."""
    picture = Picture(
        prompt=without_controls(request.prompt),
        negative_prompt=without_controls(request.negative_prompt),
        width=request.width or limits.width,
        height=request.height or limits.height,
        steps=request.steps or limits.steps,
        guidance=request.guidance,
        seed=request.seed or 1 + secrets.randbelow(MOST_SEED),
        model=model,
    )
    _check_prompts(picture)
    _check_sides(picture, limits)
    if not 1 <= picture.steps <= limits.most_steps:
        raise invalid(f"this model takes 1 to {limits.most_steps} steps, not {picture.steps}")
    if picture.units > limits.most_units:
        raise invalid(
            f"{picture.width} x {picture.height} pixels in {picture.steps} steps are {picture.units} units of "
            f"{params.PICTURE_UNIT} pixel-steps; at most {limits.most_units} are painted here: ask for fewer"
        )
    return picture


def _check_prompts(picture: Picture) -> None:
    if not picture.prompt.strip():
        raise invalid("the prompt is empty: say what to paint")
    for name, text in (("prompt", picture.prompt), ("negative prompt", picture.negative_prompt)):
        size = len(text.encode())
        if size > params.MAX_PROMPT_BYTES:
            raise invalid(f"the {name} has {size} bytes; at most {params.MAX_PROMPT_BYTES} are read")


def _check_sides(picture: Picture, limits: Limits) -> None:
    for name, side in (("width", picture.width), ("height", picture.height)):
        if not limits.least_side <= side <= limits.most_side:
            raise invalid(f"the {name} is {limits.least_side} to {limits.most_side} pixels here, not {side}")
        below = side - side % limits.multiple
        if below != side:
            near = [
                str(each) for each in (below, below + limits.multiple) if limits.least_side <= each <= limits.most_side
            ]
            raise invalid(f"the {name} must be a multiple of {limits.multiple} pixels: {' or '.join(near)}, not {side}")


def without_controls(text: str) -> str:
    """Control characters, line ends among them, become spaces: a prompt is one line of text."""
    return "".join(" " if ord(char) < 32 or 127 <= ord(char) < 160 else char for char in text)


def to_png(image: Image.Image, picture: Picture, more: Mapping[str, Any] | None = None) -> bytes:
    """A PNG file that says how it was made. `more` is added to the "mtor" chunk."""
    info = PngInfo()
    info.add_text("parameters", parameters(picture))
    info.add_text("mtor", json.dumps({**asdict(picture), **(more or {})}))
    file = io.BytesIO()
    image.save(file, "PNG", pnginfo=info)
    return file.getvalue()


def parameters(picture: Picture) -> str:
    """The text that Stable Diffusion WebUI and its like read back."""
    facts = {
        "Steps": picture.steps,
        "CFG scale": f"{picture.guidance / 1000:g}" if picture.guidance else None,
        "Seed": picture.seed,
        "Size": f"{picture.width}x{picture.height}",
        "Model": picture.model.replace(",", " "),
    }
    last = ", ".join(f"{name}: {value}" for name, value in facts.items() if value is not None)
    negative = [f"Negative prompt: {picture.negative_prompt}"] if picture.negative_prompt else []
    return "\n".join((picture.prompt, *negative, last))


def preview(image: Image.Image) -> bytes:
    """A PNG of at most `PREVIEW_SIDE` pixels a side, which fits in one event."""
    small = image.copy()
    small.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    file = io.BytesIO()
    small.save(file, "PNG")
    return file.getvalue()


def parts(png: bytes, units: int) -> Iterator[Data]:
    """The file as events. Its units come with the last, so that nothing is owed for half a picture."""
    size = params.MAX_CHUNK_BYTES
    for at in range(0, len(png), size):
        yield Data(MEDIA_TYPE, png[at : at + size], units if at + size >= len(png) else 0)


def due(done: int, total: int) -> bool:
    """Whether this step is one of the about eight that show a preview. The last is not: the picture follows."""
    return done < total and done % max(1, total // 8) == 0


def option(options: Mapping[str, str], name: str, default: int) -> int:
    """A whole number among a backend's options. Raises `ValueError` with the fix."""
    text = options.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdecimal()) or not int(text):
        raise ValueError(f"the option {name} is a whole number above 0, not {text!r}")
    return int(text)
