"""Until the gateway has its own: /ws and /mtor/unlock, as docs/websocket.md will have them. Goes away with it."""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
from typing import Any

from aiohttp import WSMsgType, web

import node.gateway.admin as admin
from node.answers import Bytes, Completed, Delta, Progressed, Routed, Waiting
from node.gateway.audio import read_speech_request, read_transcript_request
from node.gateway.failures import ApiError
from node.gateway.guards import bearer
from node.gateway.http import Gateway
from node.gateway.images import read_images_request
from node.gateway.openai import facts, read_chat_request, usage
from protocol.ids import peer_id

LATER = [
    "keys.list",
    "keys.create",
    "keys.revoke",
    "limits.show",
    "page.link",
    "serving.stop",
    "config.show",
    "config.set",
    "peers.block",
    "peers.unblock",
    "peers.blocked",
    "workers.list",
    "ledger.settle",
]


class InterimGateway(Gateway):
    """The gateway with what its colleagues make at this moment."""

    snapshot: Any = None

    def _app(self) -> web.Application:
        for name in LATER:
            admin.OPERATIONS.setdefault(name, "")
        for name in ("serving.start", "logs.tail"):
            admin.STREAMED.setdefault(name, "")
        self.codes: set[str] = set()
        self.sessions: set[str] = set()
        self.queries: dict[str, _Running] = {}
        checked = self._guards.check

        def check(request: web.Request) -> None:
            if request.path == "/mtor/unlock" or bearer(request) in self.sessions:
                return
            checked(request)

        self._guards.check = check  # type: ignore[method-assign]
        app = super()._app()
        app.router.add_get("/ws", self._socket)
        app.router.add_post("/mtor/unlock", self._unlock)
        return app

    async def _unlock(self, request: web.Request) -> web.Response:
        code = (await request.json()).get("code")
        if code not in self.codes:
            raise ApiError(401, "this code is not known or was used; type mtor open again", code="bad_code")
        self.codes.discard(code)
        token = secrets.token_urlsafe(16)
        self.sessions.add(token)
        return web.json_response({"token": token})

    async def _socket(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(max_msg_size=64 * 1024 * 1024)
        await socket.prepare(request)
        tasks: list[asyncio.Task[None]] = []
        followed: dict[str, _Running] = {}
        try:
            async for message in socket:
                if message.type is not WSMsgType.TEXT:
                    break
                frame = json.loads(message.data)
                kind = frame["type"]
                if kind == "ask":
                    running = _Running()
                    self.queries[running.query] = followed[frame["id"]] = running
                    running.task = asyncio.create_task(self._work(request, frame, running))
                    tasks.append(asyncio.create_task(_follow(socket, frame["id"], running, 0)))
                elif kind == "resume":
                    running = self.queries.get(frame["query"])
                    if running is None:
                        error = {"message": "this query is over", "code": "unknown_query", "type": "x", "status": 404}
                        await socket.send_json({"type": "error", "id": frame["id"], "error": error})
                        continue
                    followed[frame["id"]] = running
                    tasks.append(asyncio.create_task(_follow(socket, frame["id"], running, frame["after"])))
                elif kind == "cancel" and frame["id"] in followed:
                    followed[frame["id"]].task.cancel()
                elif kind == "watch":
                    tasks.append(asyncio.create_task(self._watch(socket)))
                elif kind == "ping":
                    await socket.send_json({"type": "pong"})
        finally:
            for task in tasks:
                task.cancel()
        return socket

    async def _watch(self, socket: web.WebSocketResponse) -> None:
        last = None
        while True:
            event = {"type": "node", **self.snapshot(len([q for q in self.queries.values() if not q.over]))}
            if event != last:
                await socket.send_json(event)
            last = event
            await asyncio.sleep(0.1)

    async def _work(self, request: web.Request, frame: dict[str, Any], running: _Running) -> None:
        try:
            question = _question(frame["route"], frame["body"])
            running.say(type="accepted", query=running.query)
            asker = self._routes[1]._asker  # type: ignore[union-attr]
            async with asker.ask(request, question) as asking:
                async for item in asking.events():
                    running.say(**_frame(item))
        except ApiError as error:
            body = error.body()["error"] | {"status": error.status, "retry_ms": error.retry_ms}
            running.say(type="failed", error=body)
        except asyncio.CancelledError:
            running.say(type="cancelled")


class _Running:
    """One query's events, kept."""

    def __init__(self) -> None:
        self.query = secrets.token_hex(16)
        self.events: list[dict[str, Any]] = []
        self.more = asyncio.Event()
        self.over = False
        self.task: asyncio.Task[None]

    def say(self, **event: Any) -> None:
        self.events.append(event | {"seq": len(self.events) + 1})
        self.over = event["type"] in ("completed", "failed", "cancelled")
        self.more.set()
        self.more = asyncio.Event()


async def _follow(socket: web.WebSocketResponse, name: str, running: _Running, after: int) -> None:
    while True:
        more = running.more
        for event in running.events[after:]:
            await socket.send_json(event | {"id": name})
            after = event["seq"]
        if running.over:
            return
        await more.wait()


def _question(route: str, body: dict[str, Any]) -> Any:
    text = json.dumps(body).encode()
    if route == "chat":
        return read_chat_request(text).question
    if route == "images":
        return read_images_request(json.dumps(body | {"stream": True}).encode()).questions[0]
    if route == "speech":
        return read_speech_request(text).question
    sound = base64.b64decode(body.pop("file"))
    fields = {key: value if isinstance(value, str) else json.dumps(value) for key, value in body.items()}
    return read_transcript_request(fields, sound, translate=False).question


def _frame(item: Any) -> dict[str, Any]:
    if isinstance(item, Routed):
        place = {"queue_position": item.queue_position, "wait_ms": item.wait_ms}
        return {"type": "routed", "worker": peer_id(item.worker), "model": item.model, "attempt": item.attempt, **place}
    if isinstance(item, Waiting):
        return {"type": "waiting", "reason": item.reason, "retry_ms": item.retry_ms}
    if isinstance(item, Delta):
        return {"type": "delta", "text": item.text}
    if isinstance(item, Progressed):
        preview = base64.b64encode(item.preview).decode()
        return {
            "type": "progress",
            "done": item.done,
            "total": item.total,
            "preview": preview,
            "media_type": "image/png",
        }
    if isinstance(item, Bytes):
        return {"type": "bytes", "media_type": item.media_type, "data": base64.b64encode(item.data).decode()}
    assert isinstance(item, Completed)
    return {
        "type": "completed",
        "finish": item.finish,
        "model": item.model,
        "usage": usage(item),
        "mtor": facts(item),
    }


def new_code(gateway: InterimGateway) -> str:
    """A code that unlocks once."""
    code = secrets.token_urlsafe(8)
    gateway.codes.add(code)
    return code
