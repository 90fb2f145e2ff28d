"""The owner's operations for the tests of the map, the credits and the owner's desk: what a real node tells, whole.

Rule: every answer has the fields that `node/operator.py` and its kin give; what changes something changes what the
others tell. Names that strangers chose are as bad as they can be.
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trio

from node.operations import Json, OperationFailed
from protocol.ids import NodeId, peer_id
from protocol.pricing import cost, format_credits, parse_credits
from protocol.signing import Signer
from tests.browser.answers import CHAT_MODEL, EYES, FAR, NEAR, OWN, PAINTER, VOICE
from tests.browser.operations import CREDIT, GIB, MB, Emit, NodeState, PanelOperations, offer
from tests.browser.world import BrowserWorld

HOSTILE = '\u202eevil\u202c <img src=x onerror="window.hacked=9"> \x1b[31m' + "Z\u0351\u0352\u0353" * 20 + "w" * 300
DAY_MS = 86_400_000
SUB_ACCOUNT = Signer.from_seed(b"\x55" * 32).node
SETTING_MORE: dict[str, Json] = {
    "log.level": {"choices": ["debug", "info", "warning", "error"]},
    "hardware.reserve_mib": {"after_restart": 1_024, "set_by": "MTOR_HARDWARE__RESERVE_MIB"},
}
CARD = "NVIDIA GeForce RTX 4070"


def stranger(number: int) -> NodeId:
    """One of many peers."""
    return Signer.from_seed(hashlib.sha256(b"peer %d" % number).digest()).node


def crowd(state: NodeState, count: int) -> None:
    """Make `count` peers known: some that serve one realm or two, some that serve nothing."""
    realms = ["$CHAT", "$CHAT", "$CHAT", "$VISION", "$IMAGINE", "$SPEECH", "$TRANSLATE", ""]
    for number in range(count):
        node = peer_id(stranger(number))
        state.peers.append({"node": node, "connected": number % 5 != 4})
        realm = realms[number % len(realms)]
        busy = {"busy": number % 5 if number % 5 < 4 else 0, "queued": 3 if number % 11 == 0 else 0, "slots": 4}
        if realm:
            state.offers.append(offer(node, f"model-{number % 7}", realm, **busy, price_out=1_000 * (number % 9)))
        if number % 6 == 3:
            state.offers.append(offer(node, "painter", "$IMAGINE", slots=1))


class OwnerOperations(PanelOperations):
    """See the module."""

    def __init__(self, state: NodeState) -> None:
        super().__init__(state)
        self.problems: list[str] = []
        self.guard_sees: dict[str, tuple[str, str]] = {
            "by hand": ("quiet", ""),
            "card": ("quiet", "nobody else is on a card"),
            "full screen": ("unknown", "no desktop is seen"),
            "battery": ("quiet", "plugged in"),
        }
        self.entries = [_entry(number) for number in range(130)]
        self.logged: list[Json] = [_logged(number) for number in range(40)]
        self.accounts = [
            _account(OWN, "", 41 * CREDIT + 234_567, main=True),
            _account(SUB_ACCOUNT, "phone", 3 * CREDIT),
        ]
        self.workers = [_worker(CHAT_MODEL, ready=True), _worker(HOSTILE, ready=False)]
        self.missing: list[str] = []
        self.report_problems: list[str] = []
        self._settings: dict[str, tuple[Any, Any, str, str, bool]] = {
            "gateway.max_concurrent": (256, 256, "Requests answered at once.", "int", True),
            "gateway.host": ("127.0.0.1", "127.0.0.1", "Anything but loopback needs API keys.", "text", False),
            "gateway.allowed_hosts": ([], [], "Host headers to answer besides loopback's.", "list", False),
            "gateway.limit_loopback": (False, False, "Limits also hold for this machine's programs.", "bool", True),
            "free.tokens_per_day": (20_000, 20_000, "Tokens a day for each peer without cover.", "int", True),
            "guard.enabled": (True, True, "false leaves `mtor pause` alone.", "bool", False),
            "guard.pause": (["18:00-23:00 mon-fri"], [], "Hours of the owner.", "list", False),
            "hardware.reserve_mib": (512, 512, "Of each card, left to the screen and to others.", "int", False),
            "backup": ({}, {}, "Realms that stand in for another.", "map", False),
            "log.level": ("info", "info", "How much the log tells.", "text", True),
        }

    # --- the node ------------------------------------------------------------------------------------

    def _status(self) -> Json:
        told = super()._status()
        serving = [_serving(row) for row in self.state.offers if row["own"]]
        bootstrap = {"known": 1, "reachable": 1, "last_error": "", "next_try_seconds": 0.0}
        return told | {"bootstrap": bootstrap, "problems": self.problems, "guard": self._guard(), "serving": serving}

    def _guard(self) -> Json:
        senses = [{"name": name, "says": says, "why": why} for name, (says, why) in self.guard_sees.items()]
        whys = [why for says, why in self.guard_sees.values() if says == "pause"]
        self.state.paused = whys[0] if whys else ""
        return {
            "paused": bool(whys),
            "why": self.state.paused,
            "seconds": 75,
            "until_ms": None,
            "resumes_in_seconds": None,
            "overruled": [],
            "senses": senses,
        }

    def _pause(self, seconds: int | None = None) -> Json:
        self.guard_sees["by hand"] = ("pause", f"paused by hand for {seconds} s" if seconds else "paused by hand")
        return self._guard()

    def _resume(self, anyway: bool = False) -> Json:
        for name, (says, why) in list(self.guard_sees.items()):
            if says == "pause" and (anyway or name == "by hand"):
                self.guard_sees[name] = ("quiet", why)
        return self._guard()

    def _peers(self) -> Json:
        rows = super()._peers()["peers"]
        for row in rows:
            for model in row["models"]:
                model["experience"] = _experience(14, 2) if model["model"] == CHAT_MODEL else _experience(0, 0)
        return {"peers": rows}

    def _hardware(self) -> Json:
        game = {"pid": 4242, "name": "game.exe", "mib": 3_000, "use": "graphics", "whose": "another"}
        ours = {"pid": 99, "name": "python", "mib": 1_200, "use": "compute", "whose": "this node"}
        desktop = {"pid": 7, "name": "Xorg", "mib": None, "use": "graphics", "whose": "desktop"}
        card = {"index": 0, "uuid": "GPU-1", "name": CARD, "kind": "cuda", "declared": False, "vram_mib": 12 * GIB}
        card |= {"free_mib": 7 * GIB, "compute_capability": 89, "driver": "550.54", "utilisation": 37}
        second = card | {"index": 1, "name": HOSTILE, "declared": True, "processes": None, "utilisation": None}
        fits = {"fits": True, "where": CARD, "mib": 600, "context": 8192, "said": "600 MiB on the card", "nearest": []}
        loaded = [_loaded(f"{row['realm']} {row['model']}", fits) for row in self.state.offers if row["own"]]
        too_large = {"fits": False, "where": "", "mib": 40_000, "context": 0, "said": "it needs 40,000 MiB of 7,168"}
        loaded.append(_loaded("$CHAT llama-70b", too_large | {"nearest": ["a smaller quantisation"]}, loaded=False))
        cards = [card | {"processes": [ours, game, desktop]}, second]
        return {"about": "NVML 12.550", "cards": cards, "cpu_mib": 16 * GIB, "models": loaded, "guard": self._guard()}

    # --- models ----------------------------------------------------------------------------------------

    def _models_list(self) -> Json:
        return {"models": self.state.models, "partial_bytes": 12 * MB, "free_bytes": 200_000 * MB}

    def _models_show(self, model: str) -> Json:
        row = self._row(model)
        said = "no: it needs 40,000 MiB" if model == PAINTER else "yes: 600 MiB on the CPU"
        return row | {"fits": said if row["installed"] else "", "files": [], "card": "", "to_fetch": row["fetch_bytes"]}

    def _workers_list(self) -> Json:
        return {"workers": self.workers}

    # --- settings ----------------------------------------------------------------------------------------

    def _config_show(self) -> Json:
        rows = [
            {"key": key, "value": value, "default": default, "description": text, "kind": kind, "live": live}
            for key, (value, default, text, kind, live) in self._settings.items()
        ]
        for row in rows:
            row |= SETTING_MORE.get(row["key"], {})
        realms = {"key": "realms", "value": [{"model": CHAT_MODEL}], "default": [], "description": "", "kind": "list"}
        said = "`mtor serve` and `mtor unserve` change what is served (serving.start, serving.stop)"
        rows.append(realms | {"live": True, "changed_by": said})
        return {"path": "/home/me/.config/mtor/realms.yml", "settings": rows}

    def _config_set(self, key: str, value: Any) -> Json:
        _, default, text, kind, live = self._settings[key]
        if kind == "int" and (not isinstance(value, int) or value < 1):
            raise OperationFailed(f"{key}: {value!r} is not a whole number from 1 on")
        self._settings[key] = (value, default, text, kind, live)
        return {"key": key, "value": value, "restart": not live}

    def _peers_block(self, peer: str, reason: str = "") -> Json:
        if not peer.startswith("12D3"):
            raise OperationFailed(f"{peer!r} is no peer id; it begins with 12D3KooW")
        return super()._peers_block(peer, reason)

    async def _logs_tail(
        self, emit: Emit, lines: int = 200, follow: bool = False, level: str = "", query: str = ""
    ) -> None:
        order = ["debug", "info", "warning", "error"]
        sent = max(0, len(self.logged) - lines)
        while True:
            for line in self.logged[sent:]:
                fits = order.index(line["level"]) >= order.index(level or "debug") and query in line.get("query", "")
                if fits:
                    await emit(line)
            sent = len(self.logged)
            if not follow:
                break
            await trio.sleep(self.pace_seconds)
        await emit({"done": True})

    # --- the ledger ----------------------------------------------------------------------------------------

    def _ledger_balance(self, account: str = "") -> Json:
        amounts = {"balance": 41_234_567, "held": 2 * CREDIT, "earned": 52 * CREDIT, "spent": 9 * CREDIT}
        amounts |= {"pending": 100_000, "owed": 1}
        texts = {f"{key}_text": format_credits(value) for key, value in amounts.items()}
        return {"account": account or peer_id(OWN)} | amounts | texts

    def _ledger_history(self, limit: int = 20, before: str = "") -> Json:
        end = int(before) if before else len(self.entries)
        rows = [row | {"position": str(place)} for place, row in enumerate(self.entries)]
        return {"entries": rows[max(0, end - limit) : end][::-1]}

    def _ledger_why(self, account: str = "", by: str = "counterparty", limit: int = 20) -> Json:
        told = super()._ledger_why(account, by, limit)
        empty = {"granted": 0, "lines": 3, "queries": 4, "last_ms": 1_760_000_000_000}
        names = (
            [f"2026-11-{day:02}" for day in range(29, 9, -1)]
            if by == "day"
            else [peer_id(stranger(n)) for n in range(9)]
        )
        groups = [
            empty
            | {by: name, "amount": 900_000 - 250_001 * place, "earned": 1_000_000, "spent": -100_000 - 250_001 * place}
            for place, name in enumerate(names)
        ]
        return told | {"groups": groups[:limit], "missing": self.missing, "adds_up": not self.missing}

    def _ledger_show(self, id: str) -> Json:
        entry = next((row for row in self.entries if row["id"].startswith(id)), None)
        if entry is None:
            raise OperationFailed(f"nothing in this ledger begins with {id}; see `mtor ledger history`")
        if entry["kind"] == "grant":
            parties: Json = {"from": peer_id(NEAR), "to": peer_id(OWN), "amount": entry["amount"], "order": None}
            return {
                "kind": "grant",
                "id": entry["id"],
                "sentence": entry["sentence"],
                "time_ms": entry["time_ms"],
            } | parties
        kept = {name: value for name, value in entry.items() if name not in ("kind", "sentence")}
        voucher: Json = {"cumulative": 900, "before": 800, "units_in": 90, "units_out": 405, "signed": True}
        voucher |= {"body": "00", "signature": "11"}
        proof = {"adds_up": True, "voucher": voucher, "channel_status": "open", "quote_by": peer_id(NEAR)}
        return {"kind": "receipt", "sentence": entry["sentence"], **kept, **proof}

    def _ledger_accounts(self) -> Json:
        return {"accounts": self.accounts}

    def _ledger_account_create(self, name: str, credits: str = "0") -> Json:
        if not name.strip():
            raise OperationFailed("an account's name says whose it is")
        made = _account(stranger(len(self.accounts)), name, parse_credits(credits))
        self.accounts[0]["balance"] -= made["balance"]
        self.accounts.append(made)
        return made

    def _ledger_move(self, to: str, credits: str, source: str = "") -> Json:
        payer, payee = (next(row for row in self.accounts if row["account"] == each) for each in (source, to))
        amount = payer["balance"] if credits == "all" else parse_credits(credits)
        if amount > payer["balance"]:
            raise OperationFailed(f"{format_credits(amount)} are more than the account has")
        payer["balance"] -= amount
        payee["balance"] += amount
        return {"from": source, "to": to, "amount": amount, "amount_text": format_credits(amount), "id": "aa" * 32}

    def _ledger_settle(self) -> Json:
        return {"closed": 1, "undelivered": 2}

    def _ledger_epoch_status(self) -> Json:
        witness = {"witness": peer_id(NEAR), "own": False, "epoch": 2, "standing": "votes", "problem": ""}
        silent = {
            "witness": peer_id(FAR),
            "own": False,
            "epoch": None,
            "standing": "",
            "problem": "no answer within 5 s",
        }
        now = round(time.time() * 1_000)
        times = {"epoch": 2, "began_ms": now - DAY_MS, "due_ms": now + 6 * DAY_MS, "due": False}
        part = {"witness": False, "frozen": False, "round": 0, "prepared": 0, "agreed": False, "abstaining": False}
        return times | part | {"first_epoch": 0, "quorum": 1, "witnesses": [witness, silent]}

    def _federation_show(self) -> Json:
        told = {
            "id": "f" * 64,
            "name": "home",
            "created_ms": 1_750_000_000_000,
            "witnesses": [peer_id(NEAR)],
            "faults": 0,
        }
        cap = 9_007_199_254_740_991
        caps = {"supply_cap": cap, "supply_cap_text": format_credits(cap)}
        return told | caps | {"issuers": ["11" * 32], "witness": False, "issuer": False}

    async def _ledger_verifying(self, emit: Emit, signatures: bool = False) -> None:
        for done in range(0, 101, 20):
            await emit({"step": "verifying", "done_count": done, "total_count": 100})
            await trio.sleep(self.pace_seconds)
        report = {
            "verified": not self.report_problems,
            "certificates": 100,
            "accounts": 4,
            "channels": 12,
            "sum_micro": 0,
        }
        more = {"problems": self.report_problems, "epoch": 2, "since_epoch": 0}
        await emit({"step": "verified", "report": report | more, "done": True})

    async def _ledger_export(self, emit: Emit) -> None:
        for piece in (b"MTOR ledger export 1\n", bytes(range(256)) * 40):
            await emit({"step": "exporting", "done_count": 1, "total_count": 2})
            await emit({"data": base64.b64encode(piece).decode()})
        await emit({"step": "exported", "federation": "f" * 64, "done": True})


def _serving(row: Json) -> Json:
    kept = {name: row[name] for name in ("realm", "model", "device", "device_name", "slots", "busy", "queued")}
    state = {"requests": ["chat"], "ready": True, "unloaded": False, "restarts": 0}
    return kept | state | {"tokens_per_second": 31.5, "memory_mib": 610}


def _loaded(model: str, fits: Json, *, loaded: bool = True) -> Json:
    counts = {"busy": 0, "queued": 0, "idle_seconds": 5 if loaded else 0, "pinned": False}
    place = {"where": CARD if loaded else "", "planned_mib": 600 if loaded else 0, "context": 8192 if loaded else 0}
    return {"model": model, "loaded": loaded, "problem": "", "fits": fits} | counts | place


def _experience(successes: int, failures: int) -> Json:
    times = {"ttft_ms": 240.0, "tokens_per_second": 28.0, "avoid_until_ms": 0}
    return {"successes": successes, "failures": failures, "consecutive_failures": 0} | times


def _worker(model: str, *, ready: bool) -> Json:
    server = {"realm": "$CHAT", "model": model, "engine": "openai", "url": "http://127.0.0.1:11434/v1", "ready": ready}
    counts = {"slots": 2, "busy": 1 if ready else 0, "queued": 0, "answered": 12_345, "failed": 0 if ready else 3}
    return server | counts | {"last_error": "" if ready else "the server refuses connections; start it"}


def _logged(number: int) -> Json:
    level = ["info", "debug", "info", "warning", "info", "error"][number % 6]
    line = {
        "time": 1_764_500_000 + number,
        "level": level,
        "logger": "mtor.router",
        "message": f"line {number} went by",
    }
    return line | ({"query": f"{number:032x}"} if number % 2 else {})


def _account(node: NodeId, name: str, balance: int, *, main: bool = False) -> Json:
    amounts = {"balance": balance, "held": 0, "earned": 0, "spent": 0, "pending": 0, "owed": 0}
    texts = {"balance_text": format_credits(balance), "held_text": format_credits(0)}
    owner = {"owner": "" if main else peer_id(OWN), "recovery": "", "key_changes": 0}
    return {"account": peer_id(node), "name": name, "main": main} | owner | amounts | texts


def _entry(number: int) -> Json:
    """An entry of the journal; the first is a grant, others are queries, some as the worker."""
    identity = hashlib.sha256(b"entry %d" % number).hexdigest()
    time_ms = 1_764_000_000_000 + number * 3_000_000
    if number == 0:
        sentence = "The issuer of home granted you 50 cr."
        return {
            "kind": "grant",
            "id": identity,
            "amount": 50 * CREDIT,
            "counterparty": peer_id(NEAR),
            "time_ms": time_ms,
        } | {"sentence": sentence}
    asked = number % 3 != 0
    amount = cost(20 + number, 1_000) + cost(40, 2_000)
    model = HOSTILE if number == 128 else [CHAT_MODEL, EYES, VOICE][number % 3]
    return {
        "kind": "query",
        "id": identity,
        "amount": -amount if asked else amount,
        "counterparty": peer_id(NEAR),
        "time_ms": time_ms,
        "role": "requester" if asked else "worker",
        "query": identity[:32],
        "realm": "$CHAT",
        "model": model,
        "units_in": 20 + number,
        "units_out": 40,
        "price_in": 1_000,
        "price_out": 2_000,
        "quote": "c" * 64,
        "channel": "d" * 64,
        "transcript": "e" * 64,
        "digest": "f" * 64,
        "outcome": "stop",
        "sentence": f"{model} on {peer_id(NEAR)[-8:]} answered you: {20 + number} prompt tokens. Query number {number}."
        if asked
        else f"You answered {peer_id(NEAR)[-8:]} with {model}. Query number {number}.",
    }


@contextmanager
def owner_world(data: Path) -> Iterator[BrowserWorld]:
    """A world whose owner's side is whole."""
    world = BrowserWorld(data)
    world.operations = OwnerOperations(world.state)
    world.begin()
    try:
        yield world
    finally:
        world.answers.let_go.set()
        world.stop()


def owners(world: BrowserWorld) -> OwnerOperations:
    """The owner's side of such a world."""
    assert isinstance(world.operations, OwnerOperations)
    return world.operations
