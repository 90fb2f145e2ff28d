"""This node's gateway beside LiteLLM's proxy, in front of the same upstream that answers at once, in one run.

Rule: the three ways (straight to the upstream, through the node, through LiteLLM) take turns, so that a busy machine is
busy for all. A client sends its next request when its last answer is whole; what a way adds is its time less the
straight one's. The node serves the upstream as a worker of its own (`engine: openai`), so that routing, admission and
limits are passed as by any query.

    python bench/gateways.py --litellm VENV/bin/litellm [--at-once 8] [--requests 200] [--rounds 5]

LiteLLM is not needed by this project: python -m venv VENV && VENV/bin/pip install 'litellm[proxy]' uvloop
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from load_clients import Load, Seen, percentile, stream
from upstream import MODEL, WORDS

from node.local_federation import NodeProcess, local_federation

START_SECONDS = 120.0
UPSTREAM_PORT, LITELLM_PORT = 9_400, 9_401
REALMS = f"""\
realms:
  - realm: $CHAT
    model: {MODEL}
    engine: openai
    url: http://127.0.0.1:{UPSTREAM_PORT}/v1
    slots: 64
    queue: 256
"""
LITELLM = f"""\
model_list:
  - model_name: {MODEL}
    litellm_params:
      model: openai/{MODEL}
      api_base: http://127.0.0.1:{UPSTREAM_PORT}/v1
      api_key: none
litellm_settings:
  telemetry: false
"""


@contextmanager
def program(command: list[str], log: Path, url: str) -> Iterator[None]:
    """A program that answers at `url`; ended afterwards."""
    environment = os.environ | {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "NO_DOCS": "True"}
    environment |= {"LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true"}  # loopback, for minutes
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=output, env=environment)
    try:
        _wait(url, process, log)
        yield
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"{url} does not answer:\n{log.read_text(errors='replace')[-2_000:]}")


async def closed_loop(load: Load, at_once: int) -> tuple[list[Seen], float]:
    """`load.clients` requests by `at_once` clients, one after the other each; (what was seen, seconds)."""
    left = iter(range(load.clients))
    seen: list[Seen] = []

    async def client() -> None:
        for _ in left:
            seen.append(await stream(load))

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(at_once)))
    return seen, time.perf_counter() - began


def measure(ways: dict[str, str], options: argparse.Namespace) -> list[dict[str, object]]:
    """A row for each way."""
    seen: dict[str, list[Seen]] = {way: [] for way in ways}
    seconds = dict.fromkeys(ways, 0.0)
    for number in range(options.rounds + 1):
        for way, url in ways.items():
            load = Load(url, options.requests, 0, model=MODEL, expected="".join(WORDS))
            answers, took = asyncio.run(closed_loop(load, options.at_once))
            if number:  # the first round warms up
                seen[way] += answers
                seconds[way] += took
    rows: list[dict[str, object]] = []
    straight = {name: _times(seen["upstream"], name) for name in ("first", "whole")}
    for way, answers in seen.items():
        row: dict[str, object] = {"way": way, "at_once": options.at_once, "answers": len(answers)}
        row["failed"] = sum(bool(each.problem) or each.status != 200 for each in answers)
        row["requests_a_second"] = round(len(answers) / seconds[way], 1)
        for name in ("first", "whole"):
            times = _times(answers, name)
            for percent in (50, 99):
                value = percentile(times, percent)
                row[f"{name}_p{percent}_ms"] = round(value * 1_000, 2)
                row[f"added_{name}_p{percent}_ms"] = round((value - percentile(straight[name], percent)) * 1_000, 2)
        rows.append(row)
    return rows


def _times(seen: list[Seen], name: str) -> list[float]:
    return [getattr(each, name) for each in seen if not each.problem and each.status == 200]


@contextmanager
def node(root: Path) -> Iterator[NodeProcess]:
    """A node whose worker is the upstream."""
    with local_federation(root, ["worker"], REALMS) as nodes:
        yield nodes[1]


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--litellm", type=Path, help="LiteLLM's program; left out: the node alone")
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--requests", type=int, default=200, help="a round and way")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mtor-bench-") as folder, ExitStack() as stack:
        root = Path(folder)
        upstream = f"http://127.0.0.1:{UPSTREAM_PORT}/v1"
        command = [sys.executable, str(Path(__file__).with_name("upstream.py")), "--port", str(UPSTREAM_PORT)]
        stack.enter_context(program(command, root / "upstream.txt", f"{upstream}/models"))
        ways = {"upstream": upstream, "this node": f"{stack.enter_context(node(root / 'nodes')).client.url}/v1"}
        if options.litellm:
            (root / "litellm.yml").write_text(LITELLM)
            proxy = f"http://127.0.0.1:{LITELLM_PORT}"
            command = [str(options.litellm), "--config", str(root / "litellm.yml"), "--port", str(LITELLM_PORT)]
            command += ["--host", "127.0.0.1", "--num_workers", "1"]
            stack.enter_context(program(command, root / "litellm.txt", f"{proxy}/health/liveliness"))
            ways["LiteLLM"] = f"{proxy}/v1"
        rows = measure(ways, options)
    for row in rows:
        print(json.dumps(row))
    return 0


if __name__ == "__main__":
    sys.exit(main())
