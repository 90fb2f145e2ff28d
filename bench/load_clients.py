"""Clients that stream, in an open loop: each begins when its time has come, however slow the answers before it are.

Rule: latencies count from when a client should have begun, so that a server that stalls cannot hide it by holding the
clients back. An answer is whole only if its text is exactly what was expected, its finish reason came and `[DONE]`
ended it; refusals (429, 503) are counted apart from failures. Works against any OpenAI-compatible address.

    python bench/load_clients.py --url http://127.0.0.1:9000/v1 --clients 1000 --over 20
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

PATIENCE_SECONDS = 900.0  # for one answer
REFUSALS = (429, 503)


@dataclass
class Seen:
    """What one client saw. Times are seconds since it should have begun."""

    status: int = 0
    first: float = 0.0
    whole: float = 0.0
    pieces: int = 0
    problem: str = ""
    text: list[str] = field(default_factory=list)
    done: bool = False
    finish: str = ""


@dataclass(frozen=True)
class Load:
    """What to send: `clients` requests to `url`, spread evenly over `over` seconds; each gets `expected` back."""

    url: str
    clients: int
    over: float
    model: str = "auto"
    max_tokens: int = 40
    key: str = ""
    expected: str | None = None  # None: any text that is not empty
    more: dict[str, Any] = field(default_factory=dict)  # beside what every such server takes


async def run(load: Load, progress: Callable[[int], None] = lambda running: None) -> list[Seen]:
    """Send it all and wait for the last answer."""
    running = 0

    async def client(due: float) -> Seen:
        nonlocal running
        await asyncio.sleep(due - time.perf_counter())
        running += 1
        progress(running)
        seen = await stream(load, due)
        running -= 1
        return seen

    begin = time.perf_counter() + 0.5
    step = load.over / load.clients
    return await asyncio.gather(*(client(begin + number * step) for number in range(load.clients)))


async def stream(load: Load, due: float | None = None) -> Seen:
    """One answer. `due`: when it should have begun; None: now."""
    request, host, port = _request(load)
    seen = Seen()
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await _ask(host, port, request, time.perf_counter() if due is None else due, seen)
    except (OSError, TimeoutError, asyncio.IncompleteReadError, ValueError) as error:
        seen.problem = f"{type(error).__name__}: {error}"
    _judge(seen, load.expected)
    return seen


def _request(load: Load) -> tuple[bytes, str, int]:
    parts = urlsplit(load.url)
    body = json.dumps(
        {
            "model": load.model,
            "messages": [{"role": "user", "content": "tell me a story"}],
            "max_tokens": load.max_tokens,
            "stream": True,
        }
        | load.more
    ).encode()
    host, port = parts.hostname or "127.0.0.1", parts.port or 80
    head = (
        f"POST {parts.path.rstrip('/')}/chat/completions HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    )
    head += f"Authorization: Bearer {load.key}\r\n" if load.key else ""
    return head.encode() + b"\r\n" + body, host, port


async def _ask(host: str, port: int, request: bytes, due: float, seen: Seen) -> None:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(request)
        seen.status = int((await reader.readline()).split()[1])
        while (await reader.readline()).strip():
            pass  # the headers
        if seen.status != 200:
            seen.problem = (await reader.read(500)).decode(errors="replace")
            return
        while line := await reader.readline():  # events are lines; a chunk's length is none that begins with "data: "
            if line.startswith(b"data: "):
                _take(line[6:].strip(), seen, time.perf_counter() - due)
        seen.whole = time.perf_counter() - due
    finally:
        writer.close()


def _take(data: bytes, seen: Seen, at: float) -> None:
    if data == b"[DONE]":
        seen.done = True
        return
    event = json.loads(data)
    if "error" in event:
        seen.problem = str(event["error"])
        return
    for choice in event["choices"]:
        if piece := choice["delta"].get("content"):
            seen.first = seen.first or at
            seen.pieces += 1
            seen.text.append(piece)
        seen.finish = choice.get("finish_reason") or seen.finish


def _judge(seen: Seen, expected: str | None) -> None:
    if seen.problem or seen.status != 200:
        return
    text = "".join(seen.text)
    if not (seen.done and seen.finish):
        seen.problem = f"the stream ended without its end, after {len(text)} characters"
    elif text != expected if expected is not None else not text:
        seen.problem = f"the text is not what was expected: {text[:80]!r}"


def summary(seen: Sequence[Seen]) -> dict[str, float | int]:
    """Counts, and milliseconds at percentiles of the whole answers."""
    whole = [each for each in seen if not each.problem and each.status == 200]
    refused = sum(each.status in REFUSALS for each in seen)
    row: dict[str, float | int] = {
        "clients": len(seen),
        "whole": len(whole),
        "refused": refused,
        "failed": len(seen) - len(whole) - refused,
    }
    for name, values in (("first", [each.first for each in whole]), ("whole", [each.whole for each in whole])):
        for percent in (50, 90, 99, 100):
            row[f"{name}_p{percent}_ms"] = round(percentile(values, percent) * 1_000, 1)
    return row


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that so many per cent are not above; 0 of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else 0.0


def problems(seen: Sequence[Seen]) -> Counter[str]:
    """What went wrong, and how often."""
    return Counter(f"{each.status} {each.problem[:160]}" for each in seen if each.problem or each.status != 200)


def most_at_once(seen: Sequence[Seen], load: Load) -> int:
    """The largest number of clients that were streaming at the same time."""
    step = load.over / load.clients
    marks = [(number * step, 1) for number in range(len(seen))]
    marks += [(number * step + (each.whole or each.first), -1) for number, each in enumerate(seen)]
    most = now = 0
    for _, change in sorted(marks):
        now += change
        most = max(most, now)
    return most


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:9000/v1")
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--over", type=float, default=10.0, help="seconds over which they begin")
    parser.add_argument("--model", default="auto")
    parser.add_argument("--max-tokens", type=int, default=40)
    parser.add_argument("--key", default="", help="API key")
    options = parser.parse_args()
    load = Load(options.url, options.clients, options.over, options.model, options.max_tokens, options.key)
    seen = asyncio.run(run(load))
    print(json.dumps(summary(seen) | {"at_once": most_at_once(seen, load)}))
    for problem, count in problems(seen).most_common(5):
        print(f"{count} x {problem}", file=sys.stderr)
    print(f"pieces a whole answer: {statistics.median(each.pieces for each in seen):.0f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
