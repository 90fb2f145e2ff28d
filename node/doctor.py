"""`mtor doctor`: what is wrong on this machine, and how to mend it.

Rule: each finding stands with its fix. It looks, and changes nothing; it works whether or not a node runs.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from node.bootstrap import BootstrapError, read_bootstrap_file
from node.config import NodeConfig
from node.config_file import ConfigError, load_config
from node.gateway.guards import is_loopback
from node.identity import KEY_FILE
from node.models import ModelError, ModelStore
from node.paths import config_file, models_folder

LOW_SPACE_BYTES = 1_000_000_000
DIAL_SECONDS = 3.0
OLDEST_PLAUSIBLE = 1_760_000_000  # Unix seconds; a clock before this makes every offer look expired


@dataclass(frozen=True, slots=True)
class Finding:
    """`level`: "ok", "note" (works, but know this) or "bad" (mend it)."""

    level: str
    about: str
    found: str
    fix: str = ""


def examine(data: Path, config_path: Path | None = None) -> list[Finding]:
    """Everything that can be looked at from here."""
    findings = [*_python(), *_folder(data), *_clock(), *_cards()]
    path = config_file(data, config_path)
    try:
        config = load_config(path)
    except ConfigError as error:
        return [
            *findings,
            Finding("bad", "configuration", str(error), "correct it; `mtor config check` tells when it is right"),
        ]
    told = f"{path} has no mistakes" if path.exists() else "no realms.yml: the defaults hold, no model is served"
    findings.append(Finding("ok", "configuration", told))
    return [*findings, *_models(data, config), *_gateway(data, config), *_listening(data, config), *_joining(config)]


def _python() -> Iterator[Finding]:
    yield Finding("ok", "python", f"{sys.version.split()[0]} on {sys.platform}")
    for name, wanted in (("libp2p", "0.8.1"), ("torch", ""), ("transformers", "")):
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(
                "bad", name, "is not installed", "install the node again: pip install mtor-node, or `make venv`"
            )
            continue
        if wanted and found != wanted:
            yield Finding("bad", name, f"{found}; the node needs {wanted}", f"pip install {name}=={wanted}")


def _folder(data: Path) -> Iterator[Finding]:
    free = shutil.disk_usage(data).free
    fix = "make room; the ledger stops when the disk is full" if free < LOW_SPACE_BYTES else ""
    yield Finding("bad" if fix else "ok", "data folder", f"{data}, {free // 10**9} GB free", fix)
    if sys.platform != "win32" and data.stat().st_mode & 0o077:
        yield Finding("bad", "data folder", "others on this machine can look into it", f"chmod 700 {data}")
    key = data / KEY_FILE
    if key.exists() and not os.access(key, os.R_OK):
        yield Finding("bad", "identity", f"{key} cannot be read", f"chown it to the user that runs the node: {key}")


def _clock() -> Iterator[Finding]:
    if time.time() < OLDEST_PLAUSIBLE:
        yield Finding("bad", "clock", time.ctime(), "set the clock; offers and holds are signed with the time")


def _cards() -> Iterator[Finding]:
    """What torch sees, and if it sees no card, why."""
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(index)
            yield Finding(
                "ok", "card", f"{card.name}, {card.total_memory // 2**20} MiB, capability {card.major}.{card.minor}"
            )
        return
    driver = _nvidia_driver()
    if driver and torch.version.cuda is None:
        fix = "install a CUDA build of torch: https://pytorch.org/get-started/locally names the command"
        yield Finding("bad", "card", f"{driver} is here, but this torch ({torch.__version__}) is a CPU build", fix)
    elif driver:
        yield Finding(
            "bad", "card", f"{driver} is here, but torch cannot use it", "update the NVIDIA driver and restart"
        )
    else:
        yield Finding("note", "card", "none: models run on the CPU", "fine for small models")


def _nvidia_driver() -> str:
    """Name and driver of the first card as the driver's own tool says; "" without one."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ""
    query = [tool, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        result = subprocess.run(query, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.splitlines()[0] if result.returncode == 0 and result.stdout else ""


def _models(data: Path, config: NodeConfig) -> Iterator[Finding]:
    store = ModelStore(models_folder(data))
    for section in config.realms:
        try:
            store.find(section.model)
        except ModelError as error:
            yield Finding("bad", "model", str(error), f"mtor models pull {section.model}")
        else:
            yield Finding("ok", "model", f"{section.model} is here and its digests are right")


def _gateway(data: Path, config: NodeConfig) -> Iterator[Finding]:
    """Is the node up, and if not, is its port free?"""
    from node.commands.client import NodeClient, NodeRefused, NoNode

    try:
        status = NodeClient(data).call("status")
    except NoNode as error:
        yield Finding("note", "node", str(error), "mtor up")
    except NodeRefused as error:
        yield Finding("bad", "node", f"it runs, but says: {error}", "see its log in the data folder, logs/node.log")
    else:
        yield Finding("ok", "node", f"runs for {status['uptime_seconds']} s with {status['peers']} peers")
        for problem in status["problems"]:
            yield Finding("bad", "node", problem, "see its log in the data folder, logs/node.log")
        return
    port = config.gateway.port
    if port and _in_use(config.gateway.host, port):
        yield Finding(
            "bad", "gateway port", f"{port} is used by another program", "set gateway.port, or end that program"
        )
    if not is_loopback(config.gateway.host):
        yield Finding(
            "note", "gateway", f"{config.gateway.host} can be reached by others", "clients need keys: mtor keys create"
        )


def _listening(data: Path, config: NodeConfig) -> Iterator[Finding]:
    only_here = all("/127.0.0.1/" in address or "/::1/" in address for address in config.node.listen)
    if only_here:
        fix = "node.listen: [/ip4/0.0.0.0/tcp/9001], and forward that port in the router"
        yield Finding("note", "listening", "on this machine alone: other machines cannot reach the node", fix)


def _joining(config: NodeConfig) -> Iterator[Finding]:
    if config.node.bootstrap is None:
        yield Finding("note", "bootstrap", "no list of peers is set", "mtor up --bootstrap ADDRESS joins for one run")
        return
    try:
        peers = read_bootstrap_file(config.node.bootstrap)
    except BootstrapError as error:
        yield Finding("bad", "bootstrap", str(error), "correct the list")
        return
    for peer in peers:
        problem = _dial(peer.address)
        fix = (
            "ask its operator for its present address (`mtor status`), or check the firewall on both sides"
            if problem
            else ""
        )
        yield Finding("bad" if problem else "ok", "bootstrap", f"{peer.address} {problem or 'can be reached'}", fix)


def _dial(address: str) -> str:
    """ "" if a TCP connection to a multiaddress succeeds; the reason otherwise."""
    parts = address.split("/")
    try:
        host, port = parts[2], int(parts[4])
        socket.create_connection((host, port), timeout=DIAL_SECONDS).close()
    except (OSError, ValueError, IndexError) as error:
        return f"cannot be reached: {error}"
    return ""


def _in_use(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        if sys.platform != "win32":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return True
    return False
