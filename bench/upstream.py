"""An OpenAI-compatible server that answers at once, for measuring what stands in front of it.

Rule: the same words for everybody, streamed or whole, with no time of their own. Ends when its standard input ends.

    python bench/upstream.py --port 9400
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys

from aiohttp import web

MODEL = "mock"
WORDS = tuple(f"word{number} " for number in range(16))


def _chunk(delta: dict[str, str], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    frame = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": MODEL, "choices": [choice]}
    return b"data: " + json.dumps(frame).encode() + b"\n\n"


USAGE = {"prompt_tokens": 8, "completion_tokens": len(WORDS), "total_tokens": 8 + len(WORDS)}
LAST = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": MODEL, "choices": []}
STREAM = [
    _chunk({"role": "assistant", "content": ""}),
    *(_chunk({"content": word}) for word in WORDS),
    _chunk({}, "stop"),
    b"data: " + json.dumps(LAST | {"usage": USAGE}).encode() + b"\n\n",
    b"data: [DONE]\n\n",
]


async def chat(request: web.Request) -> web.StreamResponse:
    """`/v1/chat/completions`."""
    asked = await request.json()
    if not asked.get("stream"):
        message = {"role": "assistant", "content": "".join(WORDS)}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        whole = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": MODEL, "choices": choices}
        return web.json_response(whole | {"usage": USAGE})
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for event in STREAM:
        await response.write(event)
    await response.write_eof()
    return response


async def models(request: web.Request) -> web.Response:
    """`/v1/models`."""
    return web.json_response({"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "mock"}]})


async def serve(port: int) -> None:
    """Until standard input ends."""
    app = web.Application()
    app.router.add_post("/v1/chat/completions", chat)
    app.router.add_get("/v1/models", models)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await asyncio.to_thread(sys.stdin.read)
    await runner.cleanup()


def main() -> int:
    """Serve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=9400)
    asyncio.run(serve(parser.parse_args().port))
    return 0


if __name__ == "__main__":
    sys.exit(main())
