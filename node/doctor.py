"""`mtor doctor`: what is wrong on this machine, and how to mend it.

Rule: each finding stands with its fix. It looks, and changes nothing; it works whether or not a node runs, and no
question that it asks of a machine, a peer or a node waits for longer than some seconds.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import socket
import stat
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from packaging.requirements import Requirement

from node.bootstrap import BootstrapError, read_bootstrap_file
from node.cards import Card, Cards
from node.commands.client import NodeClient, NodeRefused, NoNode
from node.config import NodeConfig, RealmSection
from node.config_file import ConfigError, load_config
from node.fake_cards import CardsFileError
from node.gateway.guards import is_loopback
from node.gateway.keys import ApiKeys, KeysError
from node.hardware import look_at, open_cards
from node.identity import KEY_FILE, IdentityError, load_or_create_identity
from node.models import CATALOGUE, ModelError, ModelStore
from node.operations import Json
from node.owner_operations import fits
from node.paths import config_file, models_folder
from node.serving import need_of
from protocol.ids import peer_id

PACKAGE = "mtor-node"
LOW_SPACE_BYTES = 1_000_000_000
DIAL_SECONDS = 3.0
NODE_SECONDS = 10.0  # a node that says nothing for so long hangs
OLDEST_PLAUSIBLE = 1_760_000_000  # Unix seconds; a clock before this makes every offer look expired
FUTURE_SECONDS = 3_600.0  # files that are younger than now by more tell of a clock that was set back
OTHERS = stat.S_IRWXG | stat.S_IRWXO
NODE_LOG = "see its log in the data folder, logs/node.log"
ASK_OPERATOR = "ask its operator for its present address (`mtor status`), or check the firewall on both sides"
PYTORCH = "install a CUDA build of torch: https://pytorch.org/get-started/locally names the command"


@dataclass(frozen=True, slots=True)
class Finding:
    """`level`: "ok", "note" (works, but know this) or "bad" (mend it)."""

    level: str
    about: str
    found: str
    fix: str = ""


def examine(data: Path, config_path: Path | None = None) -> list[Finding]:
    """Everything that can be looked at from here. Blocks for some seconds."""
    machine = [*_python(), *_folder(data), *_identity(data), *_clock(data)]
    status, about_node = _node(data)
    running = status is not None
    path = config_file(data, config_path)
    try:
        config = load_config(path, must_exist=config_path is not None)
    except ConfigError as error:
        fix = "correct it; `mtor config check` tells when it is right"
        return [*machine, Finding("bad", "configuration", str(error), fix), *about_node]
    told = f"{path} has no mistakes" if path.exists() else "no realms.yml: the defaults hold"
    findings = [*machine, Finding("ok", "configuration", told), *about_node]
    try:
        cards = open_cards(config.hardware)
    except CardsFileError as error:
        return [*findings, Finding("bad", "card", str(error), "correct the file, or take hardware.declared out")]
    findings += [*_cards(cards), *_models(ModelStore(models_folder(data)), config, cards, running)]
    findings += _served(config, status or {})
    if not running:
        findings += _ports(config)
    return [*findings, *_gateway(data, config), *_listening(config), *_joining(config, status or {})]


# --- the machine ---------------------------------------------------------------------------------------


def _python() -> Iterator[Finding]:
    yield Finding("ok", "python", f"{sys.version.split()[0]} on {sys.platform}")
    reinstall = "install the node again, in a checkout with `make venv`"
    try:
        requirements = [Requirement(text) for text in importlib.metadata.requires(PACKAGE) or ()]
    except importlib.metadata.PackageNotFoundError:
        yield Finding("bad", "packages", f"{PACKAGE} itself is not installed", reinstall)
        return
    problems = [_package_problem(requirement) for requirement in requirements]
    for problem in filter(None, problems):
        yield Finding("bad", "packages", problem, reinstall)
    if not any(problems):
        yield Finding("ok", "packages", "all that the node needs is installed, in versions that fit")


def _package_problem(requirement: Requirement) -> str:
    """What is wrong with one dependency; "" if nothing is."""
    if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
        return ""
    try:
        found = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return f"{requirement.name} is not installed"
    if requirement.specifier.contains(found, prereleases=True):
        return ""
    return f"{requirement.name} {found} is installed; the node needs {requirement.specifier}"


def _folder(data: Path) -> Iterator[Finding]:
    free = shutil.disk_usage(data).free
    fix = "make room; the ledger stops when the disk is full" if free < LOW_SPACE_BYTES else ""
    yield Finding("bad" if fix else "ok", "data folder", f"{data}, {free / 10**9:.1f} GB free", fix)
    if not os.access(data, os.W_OK | os.X_OK):
        yield Finding("bad", "data folder", "cannot be written", f"chown it to the user that runs the node: {data}")
    if os.name != "nt" and data.stat().st_mode & OTHERS:
        yield Finding("bad", "data folder", "others on this machine can look into it", f"chmod 700 {data}")


def _identity(data: Path) -> Iterator[Finding]:
    key = data / KEY_FILE
    if not key.exists():
        yield Finding("note", "identity", "none yet", "it is made at the first start; keep a copy of it")
        return
    if os.name != "nt" and key.stat().st_mode & OTHERS:
        yield Finding("bad", "identity", f"others on this machine can read {key}", f"chmod 600 {key}")
        return
    try:
        yield Finding("ok", "identity", peer_id(load_or_create_identity(data).node))
    except IdentityError as error:
        yield Finding("bad", "identity", str(error), f"put your copy of {KEY_FILE} back")


def _clock(data: Path) -> Iterator[Finding]:
    now = time.time()
    newest = max((path.stat().st_mtime for path in data.iterdir()), default=0.0)
    if now < max(OLDEST_PLAUSIBLE, newest - FUTURE_SECONDS):
        yield Finding("bad", "clock", time.ctime(now), "set the clock; offers and holds are signed with the time")


def _cards(cards: Cards) -> Iterator[Finding]:
    """What the driver knows, and whether torch can use it."""
    found = cards.cards()
    for card in found:
        yield Finding("note" if card.declared else "ok", "card", _describe(card))
    if found and all(card.declared for card in found):
        return
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a library that torch loads is missing
        yield Finding("bad", "torch", f"cannot be loaded: {error}", "pip install torch==2.13.0")
        return
    usable = torch.cuda.device_count() if torch.cuda.is_available() else 0
    yield from _use_of(found, cards.about, usable, torch.__version__, torch.version.cuda)


def _describe(card: Card) -> str:
    major, minor = divmod(card.compute_capability, 10)
    return f"{card.name}, {card.free_mib} of {card.vram_mib} MiB free, compute capability {major}.{minor}"


def _use_of(
    found: Sequence[Card], about: str, usable: int, torch_version: str, torch_cuda: str | None
) -> Iterator[Finding]:
    """Do the driver and torch see the same? `usable` cards are what torch has."""
    if found and not usable:
        yield _unusable(found[0], torch_version, torch_cuda)
    if not found and usable:
        fix = "reinstall the driver with its management library (nvidia-smi must work)"
        yield Finding("bad", "card", f"torch can use a card, but {about}: nothing is known of its memory", fix)
    if not found and not usable:
        fix = "fine for small models; if there is an NVIDIA card, install its driver (nvidia-smi must work)"
        yield Finding("note", "card", f"none, for {about}: models run on the CPU", fix)


def _unusable(card: Card, torch_version: str, torch_cuda: str | None) -> Finding:
    name = f"{card.name} (driver {card.driver or 'unknown'})"
    if torch_cuda is None:
        return Finding("bad", "card", f"{name} is here, but this torch ({torch_version}) is a CPU build", PYTORCH)
    fix = f"update the NVIDIA driver to one that has CUDA {torch_cuda}, and restart"
    return Finding("bad", "card", f"{name} is here, but torch ({torch_version}) cannot use it", fix)


# --- models --------------------------------------------------------------------------------------------


def _models(store: ModelStore, config: NodeConfig, cards: Cards, running: bool) -> Iterator[Finding]:
    space = look_at(cards, config.hardware.reserve_mib, {})
    for section in config.local_models:
        try:
            folder = store.find(section.model)
        except ModelError as error:
            pull = section.model in CATALOGUE
            fix = f"mtor models pull {section.model}" if pull else "correct `model` in realms.yml; `mtor models list`"
            yield Finding("bad", "model", str(error), fix)
            continue
        yield Finding("ok", "model", f"{section.model} is here and its digests are right")
        if not running:  # a running node has the model in the memory already
            yield from _place(section, fits(need_of(section, folder), space))


def _served(config: NodeConfig, status: Json) -> Iterator[Finding]:
    """What is served when the configuration names nothing: what the running node's command line named."""
    served = sorted({serving["model"] for serving in status.get("serving", ())})
    if not config.realms and served:
        yield Finding("ok", "models", f"the running node serves {', '.join(served)}, as its command line says")
    elif not config.realms:
        fix = "fine for a node that only asks; otherwise `mtor up --model smollm2-135m`, or `realms:` in realms.yml"
        yield Finding("note", "models", "the configuration serves none", fix)


def _place(section: RealmSection, place: Json) -> Iterator[Finding]:
    """Does a model find a card, and room on it?"""
    if not place["fits"]:
        fix = "; or ".join(place["nearest"]) or "take a smaller model, or end what uses the memory"
        yield Finding("bad", "model", place["said"], fix)
    elif section.device == "auto" and place["where"] == "CPU" and "no card holds it" in place["said"]:
        yield Finding("note", "model", place["said"], "a smaller model would run on a card; see `mtor hardware`")


# --- the node and its ports ----------------------------------------------------------------------------


def _node(data: Path) -> tuple[Json | None, list[Finding]]:
    """Does a node run, and is it well? Its status; empty if it does not tell, None if no node runs."""
    try:
        client = NodeClient(data, NODE_SECONDS)
        status = client.call("status")
        waiting = client.not_ready()
    except NoNode as error:
        return None, [Finding("note", "node", str(error), "mtor up")]
    except NodeRefused as error:
        return {}, [Finding("bad", "node", f"it runs, but says: {error}", NODE_LOG)]
    findings = [Finding("ok", "node", f"runs for {status['uptime_seconds']} s with {status['peers']} peers")]
    if waiting:
        fix = "wait, serve a model, or join a peer that does; `mtor status` and `mtor peers` show more"
        findings.append(Finding("note", "node", f"it could answer no question now: {waiting}", fix))
    return status, findings + [Finding("bad", "node", problem, NODE_LOG) for problem in status["problems"]]


def _ports(config: NodeConfig) -> Iterator[Finding]:
    """Are the ports free that the node will take?"""
    wanted = [("gateway.port", config.gateway.host, config.gateway.port)]
    for address in config.node.listen:
        _, protocol, host, _, port = address.split("/")
        wanted += [("node.listen", host, int(port))] if protocol in ("ip4", "ip6") else []
    for setting, host, number in wanted:
        if number and _in_use(host, number):
            yield Finding(
                "bad", "port", f"{number} is used by {_holder(number)}", f"set {setting}, or end that program"
            )


def _in_use(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        if os.name != "nt":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return True
    return False


def _holder(port: int) -> str:
    """Who listens on a port, as far as the system tells."""
    with suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            listens = connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
            if listens and connection.pid:
                return f"{psutil.Process(connection.pid).name()} (process {connection.pid})"
    return "another program"


def _gateway(data: Path, config: NodeConfig) -> Iterator[Finding]:
    if is_loopback(config.gateway.host):
        return
    try:
        keys = ApiKeys(data).all()
    except KeysError as error:
        yield Finding("bad", "API keys", str(error), "remove the file, then mtor keys create NAME")
        return
    found = f"{config.gateway.host} can be reached by others, who need an API key; {len(keys)} exist"
    yield Finding("note", "gateway", found, "" if keys else "mtor keys create NAME")


# --- the network ---------------------------------------------------------------------------------------


def _listening(config: NodeConfig) -> Iterator[Finding]:
    if all("/127." in address or "/::1/" in address for address in config.node.listen):
        fix = "node.listen: [/ip4/0.0.0.0/tcp/9001], and forward that port in the router"
        yield Finding("note", "listening", "on this machine alone: other machines cannot reach the node", fix)


def _joining(config: NodeConfig, status: Json) -> Iterable[Finding]:
    from node.app import BUNDLED_BOOTSTRAP

    path = config.node.bootstrap or (BUNDLED_BOOTSTRAP if BUNDLED_BOOTSTRAP.exists() else None)
    try:
        addresses = [peer.address for peer in read_bootstrap_file(path)] if path else []
    except BootstrapError as error:
        return [Finding("bad", "bootstrap", str(error), "correct the list")]
    if not addresses and (known := status.get("bootstrap", {}).get("known", 0)):
        reached = status["bootstrap"]["reachable"]
        found = f"the running node reaches {reached} of {known} first peers, which its command line named"
        return [Finding("ok" if reached else "bad", "bootstrap", found, "" if reached else ASK_OPERATOR)]
    if not addresses:
        fix = "`mtor up --bootstrap ADDRESS` joins for one run, a list as node.bootstrap at every start"
        return [Finding("note", "bootstrap", "no first peer is known: the node waits until somebody dials it", fix)]
    with ThreadPoolExecutor(len(addresses)) as pool:
        return list(pool.map(_dialled, addresses))


def _dialled(address: str) -> Finding:
    """Does a TCP connection to a bootstrap address succeed?"""
    _, _, host, _, port, *_ = address.split("/")
    try:
        socket.create_connection((host, int(port)), timeout=DIAL_SECONDS).close()
    except OSError as error:
        return Finding("bad", "bootstrap", f"{address} cannot be reached: {error}", ASK_OPERATOR)
    return Finding("ok", "bootstrap", f"{address} can be reached")
