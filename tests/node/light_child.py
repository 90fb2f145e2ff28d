"""A child process as every engine's, around a model that counts: no model's library, so it starts soon.

python -m tests.node.light_child ENGINE FOLDER DEVICE THREADS SLOTS OPTIONS
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from node.engines import backend, child
from node.engines.port import EngineEvent, Finished, Piece, Prompted
from protocol.messages import ChatRequest, Device

if TYPE_CHECKING:
    from node.engines.process import ProcessEngine

FACTS = backend.Loaded(512, Device("cpu", "one that counts", 0, 0), 1, (ChatRequest,))


class Counting:
    """An `Answerer` that says 1 2 3 and so on, as far as it is asked to."""

    def __init__(self, folder: Path, device: str, threads: int, options: Mapping[str, str]) -> None:
        if not folder.is_dir():
            raise FileNotFoundError(folder)
        self.facts = FACTS

    def answer(self, request: ChatRequest, prefix: str, inputs: Sequence[bytes]) -> Iterator[EngineEvent | None]:
        """See `Answerer`."""
        prompt = len(request.turns) + len(prefix)
        yield Prompted(prompt)
        for number in range(1, request.max_tokens + 1):
            yield Piece(f"{number} ", number)
        yield Finished("length", prompt, request.max_tokens)


def light_engine(folder: Path = Path(), hang_seconds: float = 60.0) -> ProcessEngine:
    """An engine over this child."""
    from node.engines.process import ModelFolder, ProcessEngine, Seat

    class LightEngine(ProcessEngine):
        def _command(self, seat: Seat) -> list[str]:
            python, module, _, *rest = super()._command(seat)
            return [python, module, "tests.node.light_child", *rest]

    model = ModelFolder(folder.name or "light", folder, bytes(32), "counting")
    return LightEngine(model, device="cpu", threads=1, hang_seconds=hang_seconds)


if __name__ == "__main__":
    backend.BACKENDS = {"counting": "tests.node.light_child:Counting"}
    child.main(*sys.argv[1:])
