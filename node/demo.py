"""`mtor demo`: three node processes on loopback, one question to each realm, one killed worker, one ledger.

Rule: nothing here is staged. The nodes are ordinary `mtor up` processes with data folders of their own, the demo
talks to them as any client does, the killed worker is killed with SIGKILL in the middle of its answer, and what is
printed at the end is what the nodes' own ledgers say.
"""

from __future__ import annotations

import base64
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from node.commands.making import speech
from node.engines.sign import sign
from node.federation import FederationError
from node.local_federation import NodeFailed, NodeProcess, local_federation, wait_models
from protocol.pricing import format_credits

MODEL = "smollm2-135m"
SHORT_QUESTION = "What is the capital of France? Answer in one sentence."
LONG_QUESTION = "Write a short story about a dog who finds an old map in the garden."
LONG_TOKENS = 160
DELIVERY_SECONDS = 30.0
KILL_AFTER_PIECES = 25  # the serving worker dies after this many pieces of the long answer
WORKERS = ("worker-1", "worker-2")
PICTURE_MODEL, EYES_MODEL, VOICE_MODEL, EARS_MODEL = "emoji-64", "mtor-eyes", "hibari", "whisper-tiny.en"
OTHER_MODELS = (PICTURE_MODEL, EYES_MODEL, VOICE_MODEL, EARS_MODEL)
CHAT_REALM = f"realms:\n  - model: {MODEL}\n"
ALL_REALMS = CHAT_REALM + "".join(f"  - model: {model}\n    threads: 1\n" for model in OTHER_MODELS)
PICTURE = "red apple"
SIGN = "MTOR: home cards that answer"
SENTENCE = "Graphics cards at home can answer the questions of others."


class Screen:
    """What a person sees: whole lines, and pieces of an answer that run on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def line(self, text: str = "") -> None:
        """A line of its own."""
        print(text, file=self._stream, flush=True)

    def piece(self, text: str) -> None:
        """A piece of an answer, indented where it breaks."""
        print(text.replace("\n", "\n   "), end="", file=self._stream, flush=True)


class DemoFailed(Exception):
    """The demo could not go on; the message says where to look."""


@dataclass
class Answer:
    """What the client saw of one question."""

    text: str = ""
    pieces: int = 0
    worker: str = ""
    workers: list[str] = field(default_factory=list)
    ttft_ms: int = 0
    facts: dict[str, Any] = field(default_factory=dict)  # the final chunk's `mtor` object

    def as_json(self) -> dict[str, Any]:
        """The shape of `--json`."""
        shares = self.facts.get("shares", [])
        return {
            "text": self.text,
            "worker": self.workers[-1] if self.workers else "",
            "ttft_ms": self.ttft_ms,
            "tokens": self.facts.get("units_out", 0),
            "receipts": [share["receipt"] for share in shares if share["receipt"]],
            "failover": bool(self.facts.get("failover")),
            "shares": shares,
        }


def main(as_json: bool, keep: bool = False, folder: Path | None = None, witnesses: int = 1) -> int:
    """Run the demo; 0 if everything it shows came true."""
    screen = Screen(sys.stderr if as_json else sys.stdout)
    root = folder or Path(tempfile.mkdtemp(prefix="mtor-demo-"))
    try:
        result = _run(root, screen, witnesses)
    except FederationError as error:
        print(f"demo: {error}", file=sys.stderr)
        shutil.rmtree(root, ignore_errors=True)
        return 1
    except (DemoFailed, NodeFailed) as error:
        print(f"demo: {error}", file=sys.stderr)
        print(f"the nodes' folders are kept in {root}", file=sys.stderr)
        return 1
    if as_json:
        print(json.dumps(result))
    if not keep:
        shutil.rmtree(root, ignore_errors=True)
    ledger = result["ledger"]
    return 0 if ledger["verified"] and ledger["sum_micro"] == 0 and ledger["paid_for_delivered"] else 1


def _run(root: Path, screen: Screen, witnesses: int) -> dict[str, Any]:
    screen.line(
        f"▸ a federation of {max(3, witnesses)} nodes: a gateway without a model, two workers with SmolLM2-135M"
        + (f"; {witnesses} witnesses, of which {(witnesses - 1) // 3} may fail" if witnesses > 1 else "")
    )
    began = time.monotonic()
    realms = {WORKERS[0]: CHAT_REALM, WORKERS[1]: ALL_REALMS}
    results = Path(tempfile.mkdtemp(prefix="mtor-demo-results-"))
    with local_federation(root, WORKERS, realms, witnesses) as nodes:
        for node in nodes:
            screen.line(f"   {node.name:<9} {node.node}")
        screen.line(f"   ready after {time.monotonic() - began:.1f} s")
        first = _ask(nodes, SHORT_QUESTION, 60, screen, lambda answer: None)
        killer = _Killer(nodes[1:3], screen)
        second = _ask(nodes, LONG_QUESTION, LONG_TOKENS, screen, killer)
        if killer.killed is None or not second.facts.get("failover"):
            raise DemoFailed("the long answer ended before the worker could be killed")
        screen.line(f"\n▸ {killer.killed.name} starts again, and settles what it had been promised")
        killer.killed.start()
        killer.killed.wait_ready()
        wait_models(nodes[0], (MODEL, *OTHER_MODELS))
        others = [_imagine(nodes, screen, results), _look(nodes, screen, results)]
        others += _say_and_listen(nodes, screen, results)
        return _report(nodes, [first, second, *others], screen) | {"results": str(results)}


class _Killer:
    """Kills the worker that is serving, once, in the middle of its answer."""

    def __init__(self, workers: list[NodeProcess], screen: Screen) -> None:
        self._workers = workers
        self._screen = screen
        self.killed: NodeProcess | None = None

    def __call__(self, answer: Answer) -> None:
        if self.killed is not None or answer.pieces < KILL_AFTER_PIECES:
            return
        self.killed = next(worker for worker in self._workers if worker.node == answer.worker)
        self.killed.kill()
        self._screen.piece(f"\n✂ {self.killed.name} was killed here (SIGKILL)\n")


def _ask(
    nodes: list[NodeProcess],
    question: str,
    max_tokens: int,
    screen: Screen,
    after_piece: Callable[[Answer], None],
) -> Answer:
    """Ask through the gateway's OpenAI API, showing the answer as it comes."""
    screen.line(f"\n▸ {question}")
    screen.piece("   ")
    names = {node.node: node.name for node in nodes}
    answer = Answer()
    began = time.monotonic()
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    for chunk in nodes[0].client.chat(body):
        _note_worker(answer, chunk.get("mtor") or {})
        for choice in chunk["choices"]:
            text = choice["delta"].get("content") or ""
            if text:
                answer.ttft_ms = answer.ttft_ms or round((time.monotonic() - began) * 1_000)
                answer.text += text
                answer.pieces += 1
                screen.piece(text)
                after_piece(answer)
    if not answer.facts:
        raise DemoFailed("the answer ended without its final facts")
    worked = " then ".join(names.get(worker, worker) for worker in answer.workers)
    screen.line(f"\n   — {worked}; first token after {answer.ttft_ms} ms, {answer.facts['units_out']} tokens")
    return answer


# --- the other realms --------------------------------------------------------------------------------------


def _imagine(nodes: list[NodeProcess], screen: Screen, results: Path) -> Answer:
    """A picture of words."""
    screen.line(f"\n▸ $IMAGINE: {PICTURE}")
    body = {"model": PICTURE_MODEL, "prompt": PICTURE, "size": "256x256", "seed": 7, "stream": True}
    answer = Answer()
    for chunk in nodes[0].client.events("/v1/images/generations", body):
        if chunk["type"] == "image_generation.completed":
            (results / "picture.png").write_bytes(base64.b64decode(chunk["b64_json"]))
            answer = _answered(str(results / "picture.png"), chunk["mtor"])
    screen.line(f"   {answer.text}")
    return answer


def _look(nodes: list[NodeProcess], screen: Screen, results: Path) -> Answer:
    """A question about a picture: a sign, drawn here, so that everybody knows what it says."""
    path = results / "sign.png"
    path.write_bytes(sign(SIGN))
    screen.line(f"\n▸ $VISION: what does this picture say? ({path})")
    url = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
    shown = [{"type": "text", "text": "What does it say?"}, {"type": "image_url", "image_url": {"url": url}}]
    body = {"model": EYES_MODEL, "messages": [{"role": "user", "content": shown}], "stream": True}
    answer = Answer()
    for chunk in nodes[0].client.chat(body):
        _note_worker(answer, chunk.get("mtor") or {})
        answer.text += "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
    screen.line("   " + answer.text.replace("\n", "\n   "))
    return answer


def _say_and_listen(nodes: list[NodeProcess], screen: Screen, results: Path) -> list[Answer]:
    """Text to sound, and the sound to text again."""
    screen.line(f"\n▸ $SPEECH: say “{SENTENCE}”")
    client, path = nodes[0].client, results / "sentence.wav"
    sound, facts = speech(client, {"model": VOICE_MODEL, "input": SENTENCE})
    path.write_bytes(sound)
    screen.line(f"   {path}, {facts['units_out'] / 10:.1f} s")
    screen.line("\n▸ $SPEECH: what did it say?")
    heard = client.parsed(client.form("/v1/audio/transcriptions", {"model": EARS_MODEL}, path.name, sound))
    screen.line(f"   {heard['text']}")
    return [_answered(str(path), facts), _answered(heard["text"], heard["mtor"])]


def _answered(text: str, facts: dict[str, Any]) -> Answer:
    workers = [share["worker"] for share in facts["shares"]]
    return Answer(text, 1, workers[-1], workers, facts["ttft_ms"], facts)


def _note_worker(answer: Answer, facts: dict[str, Any]) -> None:
    worker = facts.get("worker")
    if worker and worker != answer.worker:
        answer.worker = worker
        answer.workers.append(worker)
    if "shares" in facts:
        answer.facts = facts


def _deliver(gateway: NodeProcess) -> None:
    """Wait until the worker that was killed has the last voucher, which was on its way when it died."""
    until = time.monotonic() + DELIVERY_SECONDS
    while time.monotonic() < until:
        if not gateway.client.call("ledger.settle")["undelivered"]:
            return
        time.sleep(0.5)
    raise DemoFailed("the killed worker did not take its last voucher")


def _report(nodes: list[NodeProcess], answers: list[Answer], screen: Screen) -> dict[str, Any]:
    """Settle, then ask each node's own ledger."""
    names = {node.node: node.name for node in nodes}
    _deliver(nodes[0])
    for node in (*nodes[1:], nodes[0], *nodes[1:]):  # workers close their channels, then all fetch what is new
        node.client.call("ledger.settle")
    reports = {node.name: node.client.call("ledger.verify", {"signatures": True}) for node in nodes}
    balances = {node.name: node.client.call("ledger.balance") for node in nodes}
    screen.line("\n▸ who was paid for what")
    for answer in answers:
        for share in answer.facts["shares"]:
            counts = f"{share['units_in']} + {share['units_out']} units"
            receipt = share["receipt"][:12]
            screen.line(
                f"   {names[share['worker']]:<9} {counts:<18} {format_credits(share['amount']):<14} receipt {receipt}"
            )
    screen.line("\n▸ the ledger, as each node sees it")
    for node in nodes:
        report, balance = reports[node.name], balances[node.name]
        verified = "verified" if report["verified"] else "NOT VERIFIED " + "; ".join(report["problems"])
        text = f"{balance['balance_text']:<18} sum {report['sum_micro']} µcr"
        screen.line(f"   {node.name:<9} {text}, {report['certificates']} certificates, {verified}")
    shares = [share for answer in answers for share in answer.facts["shares"]]
    earned = {name: balance["earned"] for name, balance in balances.items()}
    delivered = {name: sum(s["amount"] for s in shares if names[s["worker"]] == name) for name in WORKERS}
    return {
        "answers": [answer.as_json() for answer in answers],
        "ledger": {
            "verified": all(report["verified"] for report in reports.values()),
            "sum_micro": sum(report["sum_micro"] for report in reports.values()),
            "paid_for_delivered": all(earned[name] == delivered[name] for name in WORKERS),
            "balances": {name: balance["balance"] for name, balance in balances.items()},
            "earned": earned,
            "reports": reports,
        },
        "nodes": len(nodes),
    }
