"""Answers for the page's tests: what comes back is chosen by a word in the prompt.

Rule: nothing here waits for a time to pass where a test needs an order of events: `hold` waits until the test lets go.
"""

from __future__ import annotations

import struct
import threading
import zlib
from collections.abc import Awaitable, Callable

import trio

from node.answers import (
    AnswerEvent,
    Bytes,
    Completed,
    Delta,
    Failed,
    Progressed,
    Question,
    Routed,
    Waiting,
    WorkerShare,
)
from protocol.errors import ErrorCode
from protocol.ids import NodeId
from protocol.messages import ImagineRequest, SpeakRequest, TranscribeRequest
from protocol.signing import Signer

Emit = Callable[[AnswerEvent], Awaitable[None]]
Script = Callable[[str, Emit], Awaitable[None]]


def worker(number: int) -> NodeId:
    """One of the nodes of the tests; 0 is the own one."""
    return Signer.from_seed(bytes([number + 1]) * 32).node


OWN, NEAR, FAR = worker(0), worker(1), worker(2)
CHAT_MODEL, EYES, PAINTER, VOICE = "smollm2-135m", "mtor-eyes", "emoji", "whisper-tiny.en"
RECEIPT = "ab" * 32

MARKDOWN = """# Soup

A **good** soup needs *time*, and `salt`.

- water
- roots
  - carrots
  - a ~~turnip~~ parsnip
1. boil
2. wait

> Patience is a spice.

| part | grams |
|------|------:|
| leek | 200 |

```python
def soup():
    return "hot"
```

More at [a page about soup](https://example.org/soup).
"""

HOSTILE = """<img src=x onerror="window.hacked=1"> <script>window.hacked=2</script>
[click](javascript:window.hacked=3) ![track](https://evil.example/pixel.png) <b>bold</b>
[data](data:text/html,<script>window.hacked=4</script>) <iframe src="https://evil.example"></iframe>
<a href="https://evil.example" onclick="window.hacked=5">x</a> <svg onload="window.hacked=6">
"""


def png(side: int, colour: tuple[int, int, int]) -> bytes:
    """A picture of one colour."""
    row = b"\0" + bytes(colour) * side

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(row * side)) + chunk(b"IEND", b"")


def share(
    node: NodeId, model: str = CHAT_MODEL, *, lane: str = "paid", units_in: int = 20, units_out: int = 40
) -> WorkerShare:
    """What a worker is paid: 0.001 credits for 1,000 units in, 0.002 for 1,000 out, or nothing."""
    amount = units_in * 1 + units_out * 2 if lane == "paid" else 0
    return WorkerShare(node, model, units_in, units_out, amount, RECEIPT if lane == "paid" else "", lane)


def completed(*shares: WorkerShare, finish: str = "stop") -> Completed:
    """The last word of a whole answer."""
    out = sum(each.units_out for each in shares)
    model = shares[0].model
    return Completed(finish, model, shares[0].units_in, out, ttft_ms=120, shares=shares, failover=len(shares) > 1)


class PromptedAnswers:
    """The `Answers` port of the tests. `asked` keeps the questions; `let_go` ends what `hold` waits for."""

    def __init__(self) -> None:
        self.asked: list[Question] = []
        self.cancelled = 0
        self.let_go = threading.Event()
        self.long_tokens = 10_000
        self._scripts: dict[str, Script] = {
            "queue please": self._queued,
            "fail please": self._fails,
            "busy please": self._busy,
            "break please": self._breaks,
            "hostile please": self._hostile,
            "markdown please": self._markdown,
            "long please": self._long,
            "slow please": self._slow,
            "hold please": self._hold,
            "failover please": self._failover,
            "wait please": self._waits,
            "free please": self._free,
        }

    async def answer(self, question: Question, emit: Emit) -> None:
        """See `Answers`."""
        self.asked.append(question)
        try:
            await self._answer(question, emit)
        except trio.Cancelled:
            self.cancelled += 1
            raise

    async def _answer(self, question: Question, emit: Emit) -> None:
        request = question.request
        if isinstance(request, ImagineRequest):
            await self._picture(request.prompt, emit)
        elif isinstance(request, SpeakRequest):
            await self._speech(request.text, emit)
        elif isinstance(request, TranscribeRequest):
            await emit(Routed(OWN, VOICE, 1, 0, 0))
            await emit(Delta("The quick brown fox."))
            await emit(completed(share(OWN, VOICE, lane="own")))
        else:
            prompt = next((turn.text for turn in reversed(request.turns) if turn.role == "user"), "")
            seen = f" It shows {len(question.inputs)} picture(s)." if question.inputs else ""
            script = next((script for words, script in self._scripts.items() if words in prompt), None)
            if script is not None:
                await script(prompt, emit)
            else:
                await _say(emit, f"You said: {prompt}.{seen}")

    # --- chat ------------------------------------------------------------------------------------------

    async def _held(self) -> None:
        while not self.let_go.is_set():
            await trio.sleep(0.01)
        self.let_go.clear()

    async def _queued(self, prompt: str, emit: Emit) -> None:
        for position, wait_ms in ((3, 12_000), (2, 8_000), (1, 4_000)):
            await emit(Routed(NEAR, CHAT_MODEL, 1, position, wait_ms))
            await self._held()
        await emit(Routed(NEAR, CHAT_MODEL, 1, 0, 0))
        await _say(emit, "It is my turn now.", routed=False)

    async def _fails(self, prompt: str, emit: Emit) -> None:
        await emit(Failed(ErrorCode.NO_PEER, "no connected peer offers $CHAT; see `mtor doctor`"))

    async def _busy(self, prompt: str, emit: Emit) -> None:
        await emit(Failed(ErrorCode.OVERLOADED, "all 2 workers are busy; try again in 5 s", retry_after_ms=5_000))

    async def _breaks(self, prompt: str, emit: Emit) -> None:
        await emit(Routed(NEAR, CHAT_MODEL, 1, 0, 0))
        await emit(Delta("It begins well, "))
        await emit(Failed(ErrorCode.ENGINE_FAILED, "the worker's model crashed; ask again"))

    async def _hostile(self, prompt: str, emit: Emit) -> None:
        await _say(emit, HOSTILE)

    async def _markdown(self, prompt: str, emit: Emit) -> None:
        await _say(emit, MARKDOWN)

    async def _long(self, prompt: str, emit: Emit) -> None:
        await emit(Routed(NEAR, CHAT_MODEL, 1, 0, 0))
        for number in range(self.long_tokens):
            await emit(Delta("word " if number % 60 else f"\n\nParagraph {number // 60}: "))
        await emit(completed(share(NEAR, units_out=self.long_tokens)))

    async def _slow(self, prompt: str, emit: Emit) -> None:
        """A word every so often, until it is stopped."""
        await emit(Routed(NEAR, CHAT_MODEL, 1, 0, 0))
        for number in range(1_000):
            await emit(Delta(f"word{number} "))
            await trio.sleep(0.05)
        await emit(completed(share(NEAR)))

    async def _hold(self, prompt: str, emit: Emit) -> None:
        """A beginning; the rest when the test lets go."""
        await emit(Routed(NEAR, CHAT_MODEL, 1, 0, 0))
        await emit(Delta("The beginning, "))
        await self._held()
        await emit(Delta("and the end."))
        await emit(completed(share(NEAR)))

    async def _failover(self, prompt: str, emit: Emit) -> None:
        await emit(Routed(NEAR, CHAT_MODEL, 1, 0, 0))
        await emit(Delta("One half, "))
        await emit(Routed(FAR, CHAT_MODEL, 2, 0, 0))
        await emit(Delta("and the other."))
        await emit(completed(share(NEAR), share(FAR)))

    async def _waits(self, prompt: str, emit: Emit) -> None:
        await emit(Routed(NEAR, CHAT_MODEL, 1, 0, 0))
        await emit(Waiting("the worker plays a game now", 30_000))
        await self._held()
        await emit(Routed(FAR, CHAT_MODEL, 2, 0, 0))
        await _say(emit, "Here I am.", routed=False)

    async def _free(self, prompt: str, emit: Emit) -> None:
        await emit(Routed(OWN, CHAT_MODEL, 1, 0, 0))
        await emit(Delta("Free of charge."))
        await emit(completed(share(OWN, lane="own")))

    # --- the other realms ------------------------------------------------------------------------------

    async def _picture(self, prompt: str, emit: Emit) -> None:
        if "fail please" in prompt:
            return await self._fails(prompt, emit)
        await emit(Routed(NEAR, PAINTER, 1, 0, 0))
        for done in range(1, 5):
            await emit(Progressed(done, 4, png(16, (60 * done, 80, 120))))
            if "hold please" in prompt:
                await self._held()
        await emit(Bytes("image/png", png(64, (220, 40, 60))))
        return await emit(completed(share(NEAR, PAINTER)))

    async def _speech(self, text: str, emit: Emit) -> None:
        if "fail please" in text:
            return await self._fails(text, emit)
        await emit(Routed(OWN, VOICE, 1, 0, 0))
        for _ in range(4):
            await emit(Bytes("audio/pcm;rate=16000", b"\0\0" * 800))
        return await emit(completed(share(OWN, VOICE, lane="own")))


async def _say(emit: Emit, text: str, *, routed: bool = True) -> None:
    """A whole answer, in pieces of a few characters as models give them."""
    if routed:
        await emit(Routed(NEAR, CHAT_MODEL, 1, 0, 0))
    for start in range(0, len(text), 7):
        await emit(Delta(text[start : start + 7]))
    await emit(completed(share(NEAR)))
