"""A server process that speaks what outer workers speak, with real PNG and WAV bytes and faults to switch on.

    python tests/outer/servers.py        prints its port, serves until its standard input ends

Three chat models stand for three families of servers: `tiny-llama` (llama.cpp: counts in `timings`, continues),
`tiny-vllm` (usage in every event, continues when told), `tiny-plain` (usage at the end, never continues). Token number
n of every answer is the same word. `POST /fault {"name": …, "times": n}` spoils the next n answers, `GET /seen` tells
what was asked.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import io
import json
import math
import struct
import sys
import wave
import zlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp import web

WORDS = ("alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel", "india", "juliet")
WHOLE = 40  # tokens of an answer
OWNERS = {"tiny-llama": "llamacpp", "tiny-vllm": "vllm", "tiny-plain": "library"}
TENTH = 4_800  # bytes of a tenth of a second at 24 kHz
TOKEN_SECONDS = 0.001

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def token(index: int) -> str:
    """Token `index` of every answer."""
    return f"{WORDS[index % len(WORDS)]}{index} "


def png(width: int, height: int) -> bytes:
    """A real picture."""
    rows = b"".join(b"\0" + bytes((x * 7 + y) % 256 for x in range(width)) for y in range(height))
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    packed = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + packed


def wav(tenths: int, rate: int = 24_000, channels: int = 1) -> bytes:
    """A real sound."""
    frames = tenths * rate // 10
    tone = b"".join(struct.pack("<h", round(9_000 * math.sin(index / 9))) * channels for index in range(frames))
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(channels)
        writer.setsampwidth(2)
        writer.setframerate(rate)
        writer.writeframes(tone)
    return file.getvalue()


class Server:
    """All routes, and what was seen of them."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """As if nothing had been asked."""
        self.fault, self.times = "", 0
        self.seen: list[dict[str, Any]] = []
        self.cut = 0  # answers whose asker went away
        self.interrupted = asyncio.Event()
        self.painting = (0, 0)

    def app(self) -> web.Application:
        """The application."""
        app = web.Application(middlewares=[self.note], client_max_size=64 * 2**20)
        routes: Mapping[str, Handler] = {
            "GET /v1/models": self.models,
            "POST /v1/chat/completions": self.chat,
            "POST /v1/images/generations": self.images,
            "POST /v1/audio/speech": self.speech,
            "POST /v1/audio/transcriptions": self.transcriptions,
            "POST /v1/audio/translations": self.transcriptions,
            "GET /sdapi/v1/sd-models": self.sd_models,
            "POST /sdapi/v1/txt2img": self.txt2img,
            "GET /sdapi/v1/progress": self.progress,
            "POST /sdapi/v1/interrupt": self.interrupt,
            "GET /health": self.health,
            "POST /predict": self.predict_redirect,
            "POST /predict/": self.predict,
        }
        for route, handler in routes.items():
            method, path = route.split()
            app.router.add_route(method, path, handler)
        app.router.add_post("/fault", self.set_fault)
        app.router.add_get("/seen", self.tell)
        app.router.add_post("/reset", self.forget)
        return app

    @web.middleware
    async def note(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Keep what was asked; spoil the answer if a fault is on."""
        if request.path in ("/fault", "/seen", "/reset"):
            return await handler(request)
        entry: dict[str, Any] = {"path": request.path, "key": request.headers.get("Authorization", "")}
        assert request.transport is not None
        entry["connection"] = request.transport.get_extra_info("peername")[1]
        if request.content_type == "application/json" and request.method == "POST":
            entry["body"] = await request.json()
        self.seen.append(entry)
        spoil = FAULTS.get(self.fault)
        try:
            if spoil is not None and self.times > 0 and request.method == "POST":
                self.times -= 1
                return await spoil(request)
            return await handler(request)
        except (asyncio.CancelledError, ConnectionError):
            self.cut += 1
            raise

    # --- control -------------------------------------------------------------------------------------

    async def set_fault(self, request: web.Request) -> web.Response:
        """`POST /fault`."""
        wanted = await request.json()
        self.fault, self.times = wanted["name"], wanted.get("times", 1_000)
        return web.json_response({})

    async def tell(self, request: web.Request) -> web.Response:
        """`GET /seen`."""
        return web.json_response({"seen": self.seen, "cut": self.cut, "interrupted": self.interrupted.is_set()})

    async def forget(self, request: web.Request) -> web.Response:
        """`POST /reset`."""
        self.reset()
        return web.json_response({})

    # --- OpenAI --------------------------------------------------------------------------------------

    async def models(self, request: web.Request) -> web.Response:
        """`GET /v1/models`."""
        if self.fault == "no models":
            return web.json_response({"object": "list", "data": []})
        if self.fault in ("models 500", "models 404"):
            return web.Response(status=int(self.fault.removeprefix("models ")))
        rows = [{"id": name, "object": "model", "owned_by": owner} for name, owner in OWNERS.items()]
        rows[0]["meta"] = {"n_ctx": 4_096}  # type: ignore[assignment]
        rows[1]["max_model_len"] = 2_048  # type: ignore[assignment]
        return web.json_response({"object": "list", "data": rows})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """`POST /v1/chat/completions`."""
        body = await request.json()
        messages = body["messages"]
        last = messages[-1]
        continues = body["model"] == "tiny-llama" or (
            body["model"] == "tiny-vllm" and body.get("continue_final_message")
        )
        first = last["content"].count(" ") if last["role"] == "assistant" and continues else 0
        words = sum(len(json.dumps(message["content"]).split()) + 3 for message in messages)
        count = min(body.get("max_tokens") or WHOLE, WHOLE - first)
        finish = "stop" if first + count >= WHOLE else "length"
        if not body.get("stream"):
            text = "".join(token(first + index) for index in range(count))
            return web.json_response(
                {
                    "choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": finish}],
                    "usage": {"prompt_tokens": words, "completion_tokens": count},
                }
            )
        stream = Stream(request, body["model"], words)
        await stream.begin()
        if body.get("tools"):
            await stream.call([tool["function"]["name"] for tool in body["tools"]], self.fault)
            return stream.response
        for index in range(count):
            await stream.say(token(first + index), body.get("top_logprobs", 0) if body.get("logprobs") else None)
            await asyncio.sleep(TOKEN_SECONDS)
        await stream.end(finish)
        return stream.response

    async def images(self, request: web.Request) -> web.Response:
        """`POST /v1/images/generations`."""
        body = await request.json()
        width, _, height = body.get("size", "64x64").partition("x")
        picture = base64.b64encode(png(int(width), int(height))).decode()
        return web.json_response({"created": 1, "data": [{"b64_json": picture}]})

    async def speech(self, request: web.Request) -> web.StreamResponse:
        """`POST /v1/audio/speech`: a tenth of a second for each letter, in awkward parts."""
        body = await request.json()
        sound = wav(len(body["input"]))
        response = web.StreamResponse(headers={"Content-Type": "audio/wav"})
        await response.prepare(request)
        for start in range(0, len(sound), 1_999):
            await response.write(sound[start : start + 1_999])
        return response

    async def transcriptions(self, request: web.Request) -> web.Response:
        """`POST /v1/audio/transcriptions`: says what arrived."""
        fields: dict[str, str] = {}
        async for part in await request.multipart():
            data = await part.read(decode=False)  # type: ignore[union-attr]
            name = str(part.name)  # type: ignore[union-attr]
            fields[name] = f"{len(data)} bytes" if name == "file" else data.decode()
        self.seen[-1]["body"] = fields
        if self.fault == "no verbose" and fields["response_format"] == "verbose_json":
            return web.json_response({"error": {"message": "not here", "type": "invalid_request_error"}}, status=400)
        text = f"heard {fields['file']}"
        answer: dict[str, Any] = {"text": text}
        if fields["response_format"] == "verbose_json":
            segments = [{"start": 0, "end": 1.5, "text": " heard"}, {"start": 1.5, "end": 61.25, "text": " a --> b\n"}]
            answer |= {"duration": 61.25, "segments": segments}
        return web.json_response(answer)

    # --- Stable Diffusion WebUI ----------------------------------------------------------------------

    async def sd_models(self, request: web.Request) -> web.Response:
        """`GET /sdapi/v1/sd-models`."""
        return web.json_response([{"title": "dream.safetensors [0123456789]", "model_name": "dream"}])

    async def txt2img(self, request: web.Request) -> web.Response:
        """`POST /sdapi/v1/txt2img`: a tenth of a second a step, until interrupted."""
        body = await request.json()
        steps = body["steps"]
        for step in range(steps):
            self.painting = (step + 1, steps)
            try:
                await asyncio.wait_for(self.interrupted.wait(), 0.1)
                break
            except TimeoutError:
                continue
        self.painting = (0, 0)
        picture = base64.b64encode(png(body["width"], body["height"])).decode()
        return web.json_response({"images": [picture], "parameters": {}, "info": "{}"})

    async def progress(self, request: web.Request) -> web.Response:
        """`GET /sdapi/v1/progress`."""
        step, steps = self.painting
        small = base64.b64encode(png(16, 16)).decode() if request.query["skip_current_image"] == "false" else None
        state = {"sampling_step": step, "sampling_steps": steps}
        return web.json_response({"progress": 0.5, "state": state, "current_image": small})

    async def interrupt(self, request: web.Request) -> web.Response:
        """`POST /sdapi/v1/interrupt`."""
        self.interrupted.set()
        return web.json_response({})

    # --- RENTAHAL's workers --------------------------------------------------------------------------

    async def health(self, request: web.Request) -> web.Response:
        """`GET /health`."""
        return web.json_response({"status": "healthy"})

    async def predict_redirect(self, request: web.Request) -> web.Response:
        """FastAPI's answer for a path without its slash."""
        raise web.HTTPTemporaryRedirect(f"http://{request.host}/predict/")

    async def predict(self, request: web.Request) -> web.Response:
        """`POST /predict/`."""
        body = await request.json()
        answers: dict[str, dict[str, str]] = {
            "chat": {"response": f"You said: {body['prompt']}"},
            "vision": {"response": f"A picture of {len(body.get('image', ''))} letters"},
            "imagine": {"image": base64.b64encode(png(32, 32)).decode()},
            "speech": {"text": "hello from afar"}
            if "audio" in body
            else {"audio_base64": base64.b64encode(wav(7)).decode()},
        }
        return web.json_response(answers[body["type"]])


class Stream:
    """A chat answer as events, in the manner of its model."""

    def __init__(self, request: web.Request, model: str, prompt: int) -> None:
        self.request, self.model, self.prompt, self.said = request, model, prompt, 0
        self.response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})

    async def begin(self) -> None:
        """The headers, and the event with the role."""
        await self.response.prepare(self.request)
        await self.event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": None}}]})

    async def call(self, names: list[str], fault: str) -> None:
        """A call of each tool, in pieces as vLLM and llama.cpp send them, and something behind them."""
        for index, name in enumerate(names):
            called = "no_tool" if fault == "strange call" else name
            begun: dict[str, Any] = {
                "id": f"x{index}",
                "type": "function",
                "function": {"name": called, "arguments": ""},
            }
            pieces = [begun, *({"function": {"arguments": part}} for part in ('{"number"', f": {index}}}"))]
            for piece in pieces:
                self.said += 1
                delta = {"tool_calls": [{"index": index} | piece]}
                await self.event({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
        await self.say(" behind")
        await self.end("tool_calls")

    async def say(self, text: str, likeliest: int | None = None) -> None:
        """One token, with its likelihood where that is asked for."""
        self.said += 1
        event: dict[str, Any] = {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}
        if likeliest is not None:
            one = {"token": text, "logprob": -0.5, "bytes": list(text.encode())}
            top = [{"token": "\ufffd", "logprob": -9999.0, "bytes": [0xC3]}, {"token": "y", "logprob": "no"}]
            event["choices"][0]["logprobs"] = {"content": [one | {"top_logprobs": ([one, *top])[:likeliest]}]}
        if self.model == "tiny-llama":
            event["timings"] = {"prompt_n": self.prompt - 1, "cache_n": 1, "predicted_n": self.said}
        if self.model == "tiny-vllm":
            event["usage"] = self.usage()
        await self.event(event)

    async def end(self, finish: str) -> None:
        """The reason, the usage, the end."""
        await self.event({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
        await self.event({"choices": [], "usage": self.usage()})
        await self.raw(b"data: [DONE]\n\n")

    def usage(self) -> dict[str, int]:
        """Counts so far."""
        return {"prompt_tokens": self.prompt, "completion_tokens": self.said}

    async def event(self, value: Any) -> None:
        """One event."""
        await self.raw(f"data: {json.dumps(value)}\n\n".encode())

    async def raw(self, data: bytes) -> None:
        """Bytes as they are."""
        await self.response.write(data)


# --- faults ---------------------------------------------------------------------------------------------


async def hang(request: web.Request) -> web.StreamResponse:
    """No answer at all."""
    await asyncio.sleep(3_600)
    raise AssertionError


def status(number: int, message: str = "") -> Handler:
    """An error."""

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.json_response({"error": {"message": message, "type": "some_error"}}, status=number)

    return answer


def body(data: bytes, content_type: str, **headers: str) -> Handler:
    """These bytes."""

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(body=data, headers={"Content-Type": content_type, **headers})

    return answer


def stream_of(*parts: bytes, end: bool = True) -> Handler:
    """A stream of these bytes, `end` or not."""

    async def answer(request: web.Request) -> web.StreamResponse:
        stream = Stream(request, "tiny-plain", 5)
        await stream.begin()
        for part in parts:
            await stream.raw(part)
            await asyncio.sleep(0.01)
        if not end:
            assert request.transport is not None
            request.transport.close()
        return stream.response

    return answer


def for_ever(part: bytes, content_type: str) -> Handler:
    """These bytes again and again: a gigabyte and more."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": content_type})
        await response.prepare(request)
        while True:
            await response.write(part)

    return answer


async def endless_tokens(request: web.Request) -> web.StreamResponse:
    """A model that never stops, whatever was asked."""
    stream = Stream(request, "tiny-plain", 5)
    await stream.begin()
    while True:
        await stream.say("more ")


async def dies(request: web.Request) -> web.StreamResponse:
    """Nine words of an answer, then nothing more."""
    asked = await request.json()
    stream = Stream(request, asked["model"], 5)
    await stream.begin()
    for index in range(9):
        await stream.say(token(index))
    await asyncio.sleep(0.1)
    assert request.transport is not None
    request.transport.close()
    return stream.response


async def lying_usage(request: web.Request) -> web.StreamResponse:
    """Three words and a bill of a million tokens with each."""
    stream = Stream(request, "tiny-vllm", 5)
    await stream.begin()
    for word in ("one ", "two ", "three"):
        stream.said += 1_000_000
        await stream.say(word)
    await stream.end("stop")
    return stream.response


async def drip(request: web.Request) -> web.StreamResponse:
    """A good answer, a byte at a time."""
    stream = Stream(request, "tiny-plain", 5)
    await stream.response.prepare(request)
    text = 'data: {"choices":[{"delta":{"content":"grüße "}}]}\r\n\r\n: a comment\r\n\r\n'
    text += 'data: {"choices":[{"delta":{"content":"日本"},"finish_reason":"stop"}]}\r\n\r\ndata: [DONE]\r\n\r\n'
    for byte in text.encode():
        await stream.raw(bytes([byte]))
        await asyncio.sleep(0)
    return stream.response


async def goodbye(request: web.Request) -> web.StreamResponse:
    """A whole answer on a connection that ends with it, which nobody was told."""
    stream = Stream(request, "tiny-plain", 5)
    await stream.begin()
    await stream.say("bye")
    await stream.end("stop")
    assert request.transport is not None
    request.transport.close()
    return stream.response


async def thinker(request: web.Request) -> web.StreamResponse:
    """A reasoning model."""
    stream = Stream(request, "tiny-plain", 5)
    await stream.begin()
    for delta in ({"reasoning_content": "hm "}, {"reasoning_content": "so"}, {"content": "42"}):
        await stream.event({"choices": [{"delta": delta}]})
    await stream.end("stop")
    return stream.response


def redirect(number: int, location: str) -> Handler:
    """Somewhere else."""

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(status=number, headers={"Location": location})

    return answer


def content(text: str) -> bytes:
    """An event with this JSON text as its content."""
    return b'data: {"choices":[{"delta":{"content":' + text.encode("utf-8", "surrogateescape") + b"}}]}\n\n"


def pictures(data: bytes) -> bytes:
    """An answer with this as its picture, in both shapes."""
    text = base64.b64encode(data).decode()
    return json.dumps({"data": [{"b64_json": text}], "images": [text]}).encode()


GIANT = png(1, 1)[:16] + struct.pack(">II", 90_000, 9) + png(1, 1)[24:]
DONE = b"data: [DONE]\n\n"
FAULTS: dict[str, Handler] = {
    "hang": hang,
    "500": status(500, "secret prompt"),
    "400": status(400, "no such thing"),
    "401": status(401),
    "404": status(404),
    "429": status(429),
    "context": status(400, "This model's maximum context length is 4096 tokens"),
    "html": body(b"<html>hello</html>", "text/html"),
    "no json": body(b"{", "application/json"),
    "deep json": body(b"[" * 100_000, "application/json"),
    "garbage event": stream_of(b"data: {oops\n\n"),
    "odd events": stream_of(
        b'data: []\n\ndata: 7\n\ndata: {"choices":{}}\n\ndata: {"choices":[3]}\n\n',
        b'data: {"choices":[{"delta":{"content":["x"]}}],"usage":{"completion_tokens":"9"}}\n\n',
        b'data: {"choices":[{"delta":{"content":"fine"},"finish_reason":"stop"}],"usage":[]}\n\n',
        DONE,
    ),
    "error event": stream_of(content('"half"'), b'data: {"error":{"message":"out of memory"}}\n\n'),
    "closes": stream_of(content('"half"'), end=False),
    "ends early": stream_of(content('"half"')),
    "strange text": stream_of(content('"a\\u0000\\u001b[31m\\ud800b\udcff<|im_end|>"'), DONE),
    "big piece": stream_of(content('"' + "x" * 100_000 + '"'), DONE),
    "dies": dies,
    "endless tokens": endless_tokens,
    "endless line": for_ever(b"data: " + b"x" * 65_536, "text/event-stream"),
    "endless comments": for_ever(b": still here\n\n" * 4_096, "text/event-stream"),
    "huge json": for_ever(b" " * 1_048_576, "application/json"),
    "bomb": body(gzip.compress(bytes(20_000_000), 1), "application/json", **{"Content-Encoding": "gzip"}),
    "cut gzip": body(gzip.compress(b"{}" * 5_000)[:-9], "application/json", **{"Content-Encoding": "gzip"}),
    "gzip": body(
        gzip.compress(json.dumps({"choices": [{"message": {"content": "packed"}}]}).encode()),
        "application/json",
        **{"Content-Encoding": "gzip"},
    ),
    "brotli": body(b"?", "application/json", **{"Content-Encoding": "br"}),
    "lying usage": lying_usage,
    "drip": drip,
    "goodbye": goodbye,
    "thinker": thinker,
    "redirect out": redirect(307, "http://10.9.8.7/v1/chat/completions"),
    "redirect 302": redirect(302, "/v1/chat/completions"),
    "redirect loop": redirect(308, "/v1/chat/completions"),
    "redirect file": redirect(307, "file:///etc/passwd"),
    "stereo": body(wav(3, channels=2), "audio/wav"),
    "mp3": body(b"ID3" + bytes(5_000), "audio/mpeg"),
    "pcm": body(bytes(3 * TENTH), "audio/pcm"),
    "no picture": body(pictures(b"hello"), "application/json"),
    "giant picture": body(pictures(GIANT), "application/json"),
}


async def main() -> None:
    """Serve until standard input ends."""
    runner = web.AppRunner(Server().app(), handler_cancellation=True, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, shutdown_timeout=0.1)
    await site.start()
    assert site._server is not None
    print(site._server.sockets[0].getsockname()[1], flush=True)  # type: ignore[attr-defined]
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(main())
