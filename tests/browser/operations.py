"""The owner's side of a node for the page's tests: every operation, over a state that they change.

Rule: an operation that changes something changes what the others tell afterwards. A test may put another answer, or a
failure, in place of any of them (`replies`).
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from node.operations import Json, OperationFailed
from protocol.ids import peer_id
from tests.browser.answers import CHAT_MODEL, EYES, FAR, NEAR, OWN, PAINTER, RECEIPT, VOICE

Emit = Callable[[Json], Awaitable[None]]

CREDIT = 1_000_000
GIB = 1024
DAY_MS = 86_400_000
HOSTILE_NAME = '<img src=x onerror="window.hacked=7">'
MB = 1_000_000


def offer(node: str, model: str, realm: str = "$CHAT", /, **more: Any) -> Json:
    """An offer as the node's snapshot tells it."""
    return {
        "node": node,
        "own": node == peer_id(OWN),
        "realm": realm,
        "model": model,
        "device": "cuda",
        "device_name": "NVIDIA GeForce RTX 4070",
        "vram_mib": 12 * GIB,
        "context_tokens": 8192,
        "slots": 2,
        "busy": 0,
        "queued": 0,
        "price_in": 1_000,
        "price_out": 2_000,
        "free": False,
        "features": (),
    } | more


def usual_offers() -> list[Json]:
    """The own node's, a neighbour's and one of a node that names itself badly."""
    own, near, far = (peer_id(node) for node in (OWN, NEAR, FAR))
    cpu: Json = {"device": "cpu", "device_name": "CPU", "vram_mib": 0}
    return [
        offer(own, CHAT_MODEL, **cpu, price_in=0, price_out=0, free=True),
        offer(own, VOICE, "$SPEECH", **cpu, price_in=0, price_out=0, free=True, features=("speak", "transcribe")),
        offer(near, CHAT_MODEL, busy=2, queued=3),
        offer(near, "qwen3-8b", context_tokens=32_768, price_in=20_000, price_out=60_000),
        offer(near, PAINTER, "$IMAGINE"),
        offer(far, EYES, "$VISION", device_name=HOSTILE_NAME),
        offer(far, HOSTILE_NAME, price_in=5_000_000, price_out=9_000_000, slots=1),
    ]


def catalogue_row(name: str, title: str, realm: str, megabytes: int, *, installed: bool, builtin: bool = False) -> Json:
    """A line of `models.list`."""
    return {
        "name": name,
        "title": title,
        "realm": realm,
        "engine": "torch-chat",
        "licence": "Apache-2.0",
        "source": "comes with mtor" if builtin else "PyPI",
        "limits": "It is small, and invents facts.",
        "installed": installed,
        "builtin": builtin,
        "linked": False,
        "bytes": megabytes * MB,
        "fetch_bytes": 0 if installed else megabytes * MB,
    }


class NodeState:
    """What a node of the tests is like now. Tests change it freely; the page learns of it."""

    def __init__(self) -> None:
        self.name = "kitchen"
        self.offers = usual_offers()
        self.peers: list[Json] = [
            {"node": peer_id(NEAR), "connected": True},
            {"node": peer_id(FAR), "connected": True},
        ]
        self.paused = ""  # why; "" while it works
        self.loading: list[str] = []
        self.models = [
            catalogue_row(CHAT_MODEL, "SmolLM2-135M-Instruct: small and quick", "$CHAT", 98, installed=True),
            catalogue_row(VOICE, "Whisper tiny, English: speech to text", "$SPEECH", 75, installed=True),
            catalogue_row(EYES, "Eyes: a classifier and a reader", "$VISION", 34, installed=False),
            catalogue_row(PAINTER, "Emoji-like pictures", "$IMAGINE", 12, installed=True, builtin=True),
        ]
        self.blocked: list[Json] = []
        self.stopped = False

    def bare(self) -> None:
        """Make it a newcomer's: no model, no peer, no offer."""
        self.offers, self.peers = [], []
        for row in self.models:
            if not row["builtin"] and row["installed"]:
                row.update(installed=False, fetch_bytes=row["bytes"])

    @property
    def ready(self) -> tuple[bool, str]:
        """As `GatewayFacts.readiness` has it."""
        if any(each["slots"] for each in self.offers):
            return True, ""
        if self.loading:
            return False, "the models of this node are being loaded"
        if not self.peers:
            return False, "no peer is connected and this node serves no model; see `mtor doctor`"
        return False, "no connected peer offers a model yet"


class PanelOperations:
    """The `Operations` port of the tests."""

    def __init__(self, state: NodeState) -> None:
        self.state = state
        self.called: list[tuple[str, Json]] = []
        self.replies: dict[str, Json | Exception] = {}
        self.pace_seconds = 0.02  # between steps of long work
        self._settings: Json = {"gateway.max_concurrent": 64, "hardware.reserve_mib": 512, "logs.level": "info"}

    async def call(self, name: str, arguments: Json) -> Json:
        """See `Operations`."""
        self.called.append((name, arguments))
        reply = self.replies.get(name)
        if isinstance(reply, Exception):
            raise reply
        if reply is not None:
            return reply
        method = getattr(self, "_" + name.replace(".", "_"), None)
        if method is None:
            raise OperationFailed(f"the tests have no {name}")
        answer: Json = method(**arguments)
        return answer

    async def stream(self, name: str, arguments: Json, emit: Emit) -> None:
        """See `Operations`."""
        self.called.append((name, arguments))
        reply = self.replies.get(name)
        if isinstance(reply, Exception):
            raise reply
        await getattr(self, "_" + name.replace(".", "_"))(emit, **arguments)

    # --- the node --------------------------------------------------------------------------------------

    def _status(self) -> Json:
        state = self.state
        own = [each for each in state.offers if each["own"]]
        return {
            "node": peer_id(OWN),
            "name": state.name,
            "version": "0.1.0",
            "python": "3.12.1",
            "uptime_seconds": 4_000,
            "addresses": [f"/ip4/192.168.1.20/tcp/4001/p2p/{peer_id(OWN)}"],
            "federation": {"id": "f" * 64, "name": "home", "epoch": 2, "witnesses": 1},
            "balance": self._ledger_balance(),
            "peers": len(state.peers),
            "bootstrap": {"known": 1, "connected": 1},
            "serving": [_serving(each) for each in own],
            "guard": self._guard(),
            "problems": [],
        }

    def _guard(self) -> Json:
        paused = bool(self.state.paused)
        return {
            "paused": paused,
            "why": self.state.paused,
            "seconds": 12 if paused else 0,
            "until_ms": 0,
            "resumes_in_seconds": 0,
            "overruled": [],
            "senses": [{"name": "full screen", "says": "free", "why": "no program fills the screen"}],
        }

    def _peers(self) -> Json:
        rows = []
        for each in self.state.peers:
            models = [row | {"experience": _experience()} for row in self.state.offers if row["node"] == each["node"]]
            rows.append(
                {
                    "node": each["node"],
                    "connected": each["connected"],
                    "connected_seconds": 3_000,
                    "addresses": [f"/ip4/203.0.113.5/tcp/4001/p2p/{each['node']}"],
                    "same_federation": True,
                    "models": models,
                }
            )
        return {"peers": rows}

    def _realms(self) -> Json:
        realms: dict[str, list[Json]] = {}
        for row in self.state.offers:
            realms.setdefault(row["realm"], []).append(row | {"experience": _experience()})
        return {"realms": [{"realm": realm, "offers": offers} for realm, offers in sorted(realms.items())]}

    def _pause(self, seconds: int | None = None) -> Json:
        self.state.paused = "paused by hand" + (f" for {seconds} s" if seconds else "")
        return self._guard()

    def _resume(self, anyway: bool = False) -> Json:
        self.state.paused = ""
        return self._guard()

    def _hardware(self) -> Json:
        card = {"name": "NVIDIA GeForce RTX 4070", "kind": "cuda", "total_mib": 12 * GIB, "free_mib": 10 * GIB}
        model = {
            "model": CHAT_MODEL,
            "loaded": True,
            "where": card["name"],
            "planned_mib": 600,
            "context": 8192,
            "pinned": False,
            "busy": 0,
            "queued": 0,
            "idle_seconds": 5,
            "problem": "",
            "fits": {"fits": True, "where": card["name"], "mib": 600, "context": 8192, "said": "fits", "nearest": []},
        }
        processes = [{"pid": 4242, "name": "game.exe", "mib": 300, "own": False}]
        return {
            "about": "NVML 12.535",
            "cards": [card | {"used_mib": 2 * GIB, "temperature": 51, "processes": processes}],
            "cpu_mib": 16 * GIB,
            "models": [model],
            "guard": self._guard(),
        }

    def _stop(self) -> Json:
        self.state.stopped = True
        return {"stopping": True}

    # --- models and serving ----------------------------------------------------------------------------

    def _models_list(self) -> Json:
        return {"models": self.state.models, "store_bytes": 173 * MB, "free_bytes": 200_000 * MB, "unfinished": []}

    def _models_show(self, model: str) -> Json:
        row = self._row(model)
        fits = {"fits": True, "where": "CPU", "mib": 600, "context": 8192, "said": "fits on the CPU", "nearest": []}
        return row | {"fits": fits, "files": [], "card": "", "to_fetch": row["fetch_bytes"]}

    def _models_look(self, model: str) -> Json:
        return {
            "source": model,
            "commit": "c" * 40,
            "licence": "apache-2.0",
            "licence_text": "https://www.apache.org/licenses/LICENSE-2.0",
            "gated": False,
            "card": "# A model\n\nIt is small.",
            "bytes": 900 * MB,
            "files": ["model.safetensors", "config.json"],
        }

    def _models_rm(self, model: str) -> Json:
        if any(each["own"] and each["model"] == model for each in self.state.offers):
            raise OperationFailed(f"{model} is being served; stop it first")
        row = self._row(model)
        row.update(installed=False, fetch_bytes=row["bytes"])
        return {"removed": model}

    async def _models_pull(self, emit: Emit, model: str, name: str = "", sha256: str = "", agreed: str = "") -> None:
        if model.startswith("hf:"):
            stored = name or model.rpartition("/")[2].lower()
            self.state.models.append(catalogue_row(stored, stored, "$CHAT", 900, installed=True))
        row = self._row(name or model.removeprefix("hf:").rpartition("/")[2].lower())
        for done in range(0, 101, 10):
            await emit({"step": "fetch", "done_bytes": done * MB, "total_bytes": 100 * MB})
            await trio.sleep(self.pace_seconds)
        await emit({"step": "convert", "done_bytes": 0, "total_bytes": 0})
        row.update(installed=True, fetch_bytes=0)
        await emit({"step": "done", "model": row["name"], "done": True})

    async def _serving_start(self, emit: Emit, model: str, realm: str = "", slots: int = 0, **more: Any) -> None:
        row = self._row(model)
        if not row["installed"]:
            raise OperationFailed(f"{model} is not here; pull it first: mtor models pull {model}")
        self.state.loading.append(model)
        for step in ("verify", "load"):
            await emit({"step": step, "message": f"{step} {model}"})
            await trio.sleep(self.pace_seconds)
        self.state.loading.remove(model)
        own = offer(peer_id(OWN), model, realm or row["realm"], device="cpu", device_name="CPU", vram_mib=0, free=True)
        self.state.offers.insert(0, own | {"price_in": 0, "price_out": 0, "slots": slots or 2})
        await emit({"step": "ready", "model": model, "done": True})

    def _serving_stop(self, model: str, realm: str = "", keep: bool = True) -> Json:
        self.state.offers = [row for row in self.state.offers if not (row["own"] and row["model"] == model)]
        return {"stopped": model}

    def _row(self, model: str) -> Json:
        found = next((row for row in self.state.models if row["name"] == model), None)
        if found is None:
            raise OperationFailed(f"there is no model {model!r}")
        return found

    def _workers_list(self) -> Json:
        server = {"realm": "$CHAT", "model": "llama3:8b", "engine": "ollama", "url": "http://127.0.0.1:11434"}
        counts = {"ready": True, "slots": 2, "busy": 1, "queued": 0, "answered": 12, "failed": 1}
        return {"workers": [server | counts | {"last_error": "it took longer than 60 s"}]}

    # --- settings, peers -----------------------------------------------------------------

    def _config_show(self) -> Json:
        told = {
            "gateway.max_concurrent": (64, "queries answered at a time", "int", True),
            "hardware.reserve_mib": (512, "graphics memory left to others, in MiB", "int", False),
            "logs.level": ("info", "how much the log tells", "text", True),
        }
        rows = [
            {"key": key, "value": self._settings[key], "default": default, "description": text, "kind": kind}
            | {"live": live}
            for key, (default, text, kind, live) in told.items()
        ]
        return {"path": "realms.yml", "settings": rows}

    def _config_set(self, key: str, value: Any) -> Json:
        if key not in self._settings:
            raise OperationFailed(f"there is no setting {key!r}")
        if isinstance(self._settings[key], int) and not isinstance(value, int):
            raise OperationFailed(f"{key}: {value!r} is not a whole number")
        self._settings[key] = value
        return {"key": key, "value": value, "restart": key.startswith("hardware.")}

    def _peers_block(self, peer: str, reason: str = "") -> Json:
        self.state.blocked.append({"node": peer, "reason": reason, "since": int(time.time())})
        self.state.peers = [each for each in self.state.peers if each["node"] != peer]
        self.state.offers = [each for each in self.state.offers if each["node"] != peer]
        return {"blocked": peer}

    def _peers_unblock(self, peer: str) -> Json:
        self.state.blocked = [each for each in self.state.blocked if each["node"] != peer]
        return {"unblocked": peer}

    def _peers_blocked(self) -> Json:
        return {"blocked": self.state.blocked}

    async def _logs_tail(
        self, emit: Emit, lines: int = 200, follow: bool = False, level: str = "", query: str = ""
    ) -> None:
        for number in range(5):
            line = {"time": time.time() - 60 + number, "level": "info", "logger": "mtor.router"}
            await emit(line | {"message": f"line {number} <b>bold</b>", "query": "0" * 32})
        while follow:
            await trio.sleep(self.pace_seconds)
        await emit({"done": True})

    # --- the ledger ------------------------------------------------------------------------------------

    def _ledger_balance(self, account: str = "") -> Json:
        amounts = {"balance": 41 * CREDIT, "held": 2 * CREDIT, "pending": CREDIT // 10, "earned": 52 * CREDIT}
        amounts |= {"spent": 9 * CREDIT}
        texts = {f"{key}_text": f"{value / CREDIT:.6f}" for key, value in amounts.items()}
        return {"account": peer_id(OWN)} | amounts | texts

    def _ledger_history(self, limit: int = 20, before: str = "") -> Json:
        first = int(before) - 1 if before else 30
        rows = [_entry(number) for number in range(first, max(0, first - limit), -1)]
        return {"entries": rows}

    def _ledger_show(self, id: str) -> Json:
        return {
            "kind": "receipt",
            "id": id,
            "sentence": "You asked …worker for 20 + 40 tokens of smollm2-135m and paid 0.0001 credits.",
            "time_ms": 1_760_000_000_000,
            "role": "requester",
            "counterparty": peer_id(NEAR),
            "quote_by": peer_id(NEAR),
            "query": "9" * 32,
            "realm": "$CHAT",
            "model": CHAT_MODEL,
            "amount": -100,
            "units_in": 20,
            "units_out": 40,
            "price_in": 1_000,
            "price_out": 2_000,
            "quote": "c" * 64,
            "channel": "d" * 64,
            "transcript": "e" * 64,
            "digest": "f" * 64,
            "outcome": "completed",
            "adds_up": True,
            "voucher": {"cumulative": 900, "before": 800, "units_in": 90, "units_out": 405, "signed": True},
            "channel_status": "open",
        }

    def _ledger_why(self, account: str = "", by: str = "counterparty", limit: int = 20) -> Json:
        parts = [("granted", 50, 1), ("earned", 2, 14), ("spent", -9, 41), ("held", -2, 2)]
        first = peer_id(NEAR) if by == "counterparty" else "2026-11-30"
        group = {by: first, "amount": -7 * CREDIT, "earned": 2 * CREDIT, "spent": -9 * CREDIT, "lines": 55}
        return {
            "account": peer_id(OWN),
            "own": True,
            "issuer": False,
            "federation": "f" * 64,
            "federation_name": "home",
            "epoch": 2,
            "certificates": 80,
            "balance": 41 * CREDIT,
            "opening": {"epoch": 0, "balance": 0, "held": 0},
            "parts": [{"part": name, "amount": value * CREDIT, "lines": lines} for name, value, lines in parts],
            "sum": 41 * CREDIT,
            "adds_up": True,
            "missing": [],
            "owed": CREDIT // 10,
            "pending": CREDIT // 10,
            "by": by,
            "groups": [group | {"queries": 60, "last_ms": 1_760_000_000_000}],
            "groups_left_out": 0,
        }

    def _ledger_accounts(self) -> Json:
        return {
            "accounts": [{"account": peer_id(OWN), "name": "", "balance": 41 * CREDIT, "owner": "", "recovery": ""}]
        }

    def _ledger_verify(self, signatures: bool = False) -> Json:
        return {"orders": 80, "vouchers": 55, "problems": [], "signatures": signatures}

    def _ledger_settle(self) -> Json:
        return {"settled": 1, "delivered": 2}

    def _ledger_epoch_status(self) -> Json:
        return {"epoch": 2, "ends_ms": 1_760_000_000_000 + DAY_MS, "witnesses": []}

    def _federation_show(self) -> Json:
        witness = {"node": peer_id(NEAR), "own": False}
        return {"id": "f" * 64, "name": "home", "witnesses": [witness], "issuers": [peer_id(NEAR)]}


def _serving(row: Json) -> Json:
    return {
        "realm": row["realm"],
        "model": row["model"],
        "requests": ["chat"],
        "ready": True,
        "unloaded": False,
        "device": row["device"],
        "device_name": row["device_name"],
        "slots": row["slots"],
        "busy": row["busy"],
        "queued": row["queued"],
        "tokens_per_second": 31.5,
        "memory_mib": 610,
        "restarts": 0,
    }


def _experience() -> Json:
    return {"answers": 12, "failures": 1, "ttft_ms": 240, "tokens_per_second": 28_000}


def _entry(number: int) -> Json:
    asked = number % 3 != 0
    return {
        "position": str(number),
        "id": f"{number:064x}" if number % 5 else RECEIPT,
        "kind": "query" if asked else "earned",
        "role": "requester" if asked else "worker",
        "amount": -100 * number if asked else 90 * number,
        "counterparty": peer_id(NEAR),
        "time_ms": 1_760_000_000_000 - number * 3_600_000,
        "realm": "$CHAT",
        "model": CHAT_MODEL,
        "units_in": 20,
        "units_out": 40,
        "query": "9" * 32,
        "outcome": "completed",
        "sentence": f"Query {number} of smollm2-135m",
    }
