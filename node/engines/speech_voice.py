"""Text to speech without a hub: the voice of the package hibari-tts, a sentence at a time.

Rule: every file of the package, code and weights, is compared with its pinned digest before any of it is imported, and
only the voice that comes inside is used, so nothing is ever fetched. Text is cleaned first: what cannot be spoken is
refused with a sentence, not skipped in silence. The first sentence is out before the second one is made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from node.engines import sound
from node.engines.backend import Loaded, process_memory_mib
from node.engines.port import EngineError, EngineEvent, Finished, Prompted
from node.engines.spoken_text import check_speakable, plain_text, sentences
from protocol.errors import ErrorCode
from protocol.messages import Device, SpeakRequest

SLOWEST, FASTEST = 500, 2_000  # thousandths: what the voice can
SEED = 1  # of its breath: the same text is the same sound
PACKAGE = "hibari"

# What OpenAI's clients ask for when nobody chose: each of them means the voice that is here.
OPENAI_VOICES = ("alloy", "ash", "ballad", "coral", "echo", "fable", "nova", "onyx", "sage", "shimmer", "verse")


class Voice:
    """The `Answerer` of one embedded voice."""

    def __init__(self, folder: Path, device: str, threads: int, options: Mapping[str, str]) -> None:
        """`folder` holds a config.json that names the package's voice and the digests of its files. It runs on the CPU
        whatever `device` says. Raises `EngineError` if the package is another than the pinned one."""
        config: Any = json.loads((folder / "config.json").read_text("utf-8"))
        self._name: str = config["voice"]
        check_package(config["files"])
        import hibari  # only now: it is the code that was looked at

        self._voice: Any = hibari.Hibari(voice=self._name, threads=max(1, threads))
        self._voice("Ready.", seed=SEED)  # the first query should not pay for what is set up late
        about = Device("cpu", f"{max(1, threads)} threads", 0, 0)
        self.facts = Loaded(0, about, process_memory_mib(), (SpeakRequest,))

    def answer(self, request: SpeakRequest, prefix: str, inputs: Sequence[bytes]) -> Iterator[EngineEvent | None]:
        """See `Answerer`. `prefix` is empty: a sound that broke off is made again."""
        if request.voice not in ("", "default", self._name, *OPENAI_VOICES):
            raise sound.invalid(f"there is no voice {request.voice!r} here; there is {self._name}")
        if not SLOWEST <= request.speed <= FASTEST:
            raise sound.invalid(f"this voice speaks at {SLOWEST / 1_000} to {FASTEST / 1_000} times its speed")
        text = plain_text(request.text)
        check_speakable(text, ("LATIN",), "Latin letters (English)")
        speaking = sound.Speaking(int(self._voice.sample_rate))
        units_in = len(request.text.encode())
        yield Prompted(units_in)
        for sentence in sentences(text):
            yield from speaking.say(self._voice(sentence, speed=request.speed / 1_000, seed=SEED))
            yield None
        if not speaking.units_out:
            raise sound.invalid("there is nothing in this text that can be spoken")
        yield Finished("stop", units_in, speaking.units_out)


def check_package(digests: Mapping[str, str]) -> None:
    """Raises `EngineError` if the package is not there, or a file is not the one that was looked at when this was
    written. Imports nothing of it."""
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise EngineError(ErrorCode.ENGINE_FAILED, "the package hibari-tts is missing; install the node again")
    folder = Path(next(iter(spec.submodule_search_locations)))
    for name, expected in digests.items():
        path = folder / name
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != expected:
            message = f"{name} of the package hibari-tts is not the one that is pinned; install the node again"
            raise EngineError(ErrorCode.ENGINE_FAILED, message)
