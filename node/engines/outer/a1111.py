"""Stable Diffusion WebUI and its forks: pictures by `/sdapi/v1/txt2img`, progress beside it.

Rule: the WebUI paints one picture at a time and its interrupt stops whichever that is. So this node sends one at a
time, and interrupts only while one of its own is on the way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import trio

from node.engines.outer.engine import Facts, OuterGeneration, clean
from node.engines.outer.files import picture_type
from node.engines.outer.http import BrokenOff, OuterError, OuterHttp
from node.engines.outer.json_shapes import count_at, list_at, text_at
from node.engines.outer.openai_media import LONG_READ_SECONDS, USUAL_STEPS, decoded, hand_over_picture
from node.nurseries import shielded
from protocol.messages import ImagineRequest
from protocol.params import MAX_CHUNK_BYTES, MAX_PICTURE_STEPS
from protocol.requests import Request

PROGRESS_SECONDS = 1.0  # between looks
LOOK_SECONDS = 5.0  # for one
MOST_SEED = 2**32 - 1
USUAL_SIDE = 512  # pixels, for a request that leaves it open
USUAL_GUIDANCE = 7.0
MODELS_TOLD = 8


@dataclass(slots=True)
class _Seen:
    """What was told of the progress."""

    done: int = 0
    total: int = 0


class WebUiServer:
    """A `Server`. `options`: `steps`, `side` (pixels), `guidance`, `sampler`."""

    def __init__(self, http: OuterHttp, model: str, options: Mapping[str, str]) -> None:
        self._http = http
        self._model = model
        self._options = options
        self._title = model
        self._painting = trio.Lock()

    async def aclose(self) -> None:
        """See `Server`."""
        await self._http.aclose()

    async def check(self) -> Facts:
        """See `Server`: the model must be among its checkpoints."""
        rows = await self._http.fetch("GET", "/sdapi/v1/sd-models", attempts=1)
        row = next(
            (row for row in list_at(rows) if self._model in (text_at(row, "title"), text_at(row, "model_name"))), None
        )
        if row is None:
            names = (
                ", ".join(clean(text_at(row, "model_name"))[:80] for row in list_at(rows)[:MODELS_TOLD]) or "nothing"
            )
            raise OuterError("the worker's server lost its model", f"it has no model {self._model}; it has {names}")
        self._title = text_at(row, "title") or self._model
        return Facts()

    async def answer(self, request: Request, prefix: str, inputs: Sequence[bytes], out: OuterGeneration) -> str:
        """See `Server`."""
        assert isinstance(request, ImagineRequest)
        async with self._painting:
            answer = await self._paint(request, out)
        await hand_over_picture(text_at(answer, "images", 0), request, self._steps(request), out)
        return "stop"

    async def _paint(self, request: ImagineRequest, out: OuterGeneration) -> Any:
        """One picture, watched; interrupted if nobody waits for it any more."""
        path = "/sdapi/v1/txt2img"
        body = self._body(request)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, request, out)
            try:
                answer = await self._http.fetch("POST", path, body=body, read_seconds=LONG_READ_SECONDS)
            except (trio.Cancelled, BrokenOff):
                await self._interrupt()
                raise
            nursery.cancel_scope.cancel()
        return answer

    def _body(self, request: ImagineRequest) -> dict[str, Any]:
        side = int(self._options.get("side", USUAL_SIDE))
        body: dict[str, Any] = {
            "prompt": request.prompt,
            "negative_prompt": request.negative_prompt,
            "width": request.width or side,
            "height": request.height or side,
            "steps": self._steps(request),
            "cfg_scale": request.guidance / 1_000 or float(self._options.get("guidance", USUAL_GUIDANCE)),
            "seed": request.seed % (MOST_SEED + 1) if request.seed else -1,
            "n_iter": 1,
            "batch_size": 1,
            "save_images": False,  # strangers' pictures are not kept
            "override_settings": {"sd_model_checkpoint": self._title, "samples_format": "png"},
        }
        sampler = self._options.get("sampler")
        return body | ({"sampler_name": sampler} if sampler else {})

    def _steps(self, request: ImagineRequest) -> int:
        return request.steps or min(int(self._options.get("steps", USUAL_STEPS)), MAX_PICTURE_STEPS)

    async def _watch(self, request: ImagineRequest, out: OuterGeneration) -> None:
        """Steps and previews, until cancelled. A look that fails costs nothing."""
        seen = _Seen()
        skip = "false" if request.previews else "true"
        while True:
            await trio.sleep(PROGRESS_SECONDS)
            try:
                path = f"/sdapi/v1/progress?skip_current_image={skip}"
                progress = await self._http.fetch("GET", path, attempts=1, read_seconds=LOOK_SECONDS)
                await self._tell(progress, seen, out)
            except OuterError:
                continue

    async def _tell(self, progress: Any, seen: _Seen, out: OuterGeneration) -> None:
        total = min(count_at(progress, "state", "sampling_steps"), MAX_PICTURE_STEPS)
        done = min(count_at(progress, "state", "sampling_step"), total)
        if not total or (done, total) == (seen.done, seen.total):
            return
        seen.done, seen.total = done, total
        if not out.begun:
            await out.prompted(0)
        await out.step(done, total, _preview(progress))

    async def _interrupt(self) -> None:
        with shielded(LOOK_SECONDS):
            try:
                await self._http.fetch("POST", "/sdapi/v1/interrupt", body={}, attempts=1, read_seconds=LOOK_SECONDS)
            except OuterError:
                return  # it is gone, or finishes its picture for nobody


def _preview(progress: Any) -> bytes:
    """The picture so far, if it fits into one message."""
    text = text_at(progress, "current_image")
    if not 0 < len(text) <= MAX_CHUNK_BYTES * 4 // 3 + 64:
        return b""
    picture = decoded(text)
    fits = len(picture) <= MAX_CHUNK_BYTES and picture_type(picture) in ("image/png", "image/jpeg")
    return picture if fits else b""
