"""`mtor up`, `stop`, `status`, `peers`, `realms`, `id`."""

from __future__ import annotations

import argparse
from typing import Any

from node.commands.client import Json, NodeClient
from node.commands.owner import guard_words
from node.commands.screen import print_facts, print_json, print_table, printable
from node.paths import config_file, data_folder

SERVING_HEADINGS = ("realm", "model", "device", "busy", "queued", "tokens/s")
PEER_HEADINGS = ("node", "connected", "federation", "serves")
OFFER_HEADINGS = ("realm", "model", "node", "device", "busy", "in / out per 1,000 tokens", "free")


def up(options: argparse.Namespace) -> int:
    """Run the node."""
    from node.app import Launch, run_node
    from node.config_file import load_config

    data = data_folder(options.data)
    path = config_file(data, options.config)
    flags = _overrides(options)
    config = load_config(path, overrides=flags, must_exist=options.config is not None)
    return run_node(config, Launch(data, tuple(options.bootstrap), options.config, flags))


def _overrides(options: argparse.Namespace) -> Json:
    """What the flags of `up` say, in the shape of realms.yml."""
    sections: dict[str, Json] = {"node": {}, "gateway": {}, "log": {}}
    given: list[tuple[str, str, Any]] = [
        ("gateway", "port", options.port),
        ("node", "listen", options.listen or None),
        ("node", "gossip", False if options.no_gossip else None),
        ("node", "dht", False if options.no_dht else None),
        ("log", "format", options.log_format),
        ("log", "level", options.log_level),
    ]
    for section, key, value in given:
        if value is not None:
            sections[section][key] = value
    tree: Json = {name: section for name, section in sections.items() if section}
    if options.model:
        tree["realms"] = [{"realm": options.realm, "model": model} for model in options.model]
    return tree


def stop(options: argparse.Namespace) -> int:
    """End the node."""
    NodeClient(data_folder(options.data)).call("stop")
    print("stopping")
    return 0


def status(options: argparse.Namespace) -> int:
    """What runs here."""
    if options.watch:
        return _watch(options, "status")
    facts = NodeClient(data_folder(options.data)).call("status")
    if options.json:
        print_json(facts)
        return 0
    print_facts(
        {
            "node": facts["node"],
            "name": facts["name"] or "-",
            "version": facts["version"],
            "up for": f"{facts['uptime_seconds']} s",
            "federation": f"{printable(facts['federation']['name'])} ({facts['federation']['id'][:16]}…), "
            f"epoch {facts['federation']['epoch']}",
            "balance": facts["balance"]["balance_text"],
            "peers": facts["peers"],
            "addresses": "\n".join(facts["addresses"]),
            "game guard": guard_words(facts["guard"]),
        }
    )
    rows = [serving_row(serving, paused=facts["guard"]["paused"]) for serving in facts["serving"]]
    if rows:
        print()
        print_table(SERVING_HEADINGS, rows)
    for problem in facts["problems"]:
        print(f"! {problem}")
    return 0


def _watch(options: argparse.Namespace, operation: str) -> int:
    """The same again each second."""
    from node.commands.watch import watch
    from node.commands.watched import DRAWN

    return watch(data_folder(options.data), operation, DRAWN[operation], as_json=options.json)


def serving_row(serving: Json, *, paused: bool) -> tuple[str, ...]:
    """One model of `mtor status`."""
    absent = "paused" if paused else "unloaded" if serving["unloaded"] else "loading"
    busy = f"{serving['busy']}/{serving['slots']}" if serving["ready"] else absent
    # Other answers than a chat's come at once, or in other units.
    counted = serving["tokens_per_second"] and "chat" in serving["requests"]
    speed = f"{serving['tokens_per_second']:.1f}" if counted else "-"
    return serving["realm"], serving["model"], serving["device"], busy, str(serving["queued"]), speed


def peers(options: argparse.Namespace) -> int:
    """The nodes that are known."""
    if options.watch:
        return _watch(options, "peers")
    rows = NodeClient(data_folder(options.data)).call("peers")["peers"]
    if options.json:
        print_json(rows)
        return 0
    if not rows:
        print("no other node is known; join one with `mtor up --bootstrap ADDRESS`")
        return 0
    print_table(PEER_HEADINGS, [peer_row(peer) for peer in rows])
    return 0


def peer_row(peer: Json) -> tuple[str, ...]:
    """One line of `mtor peers`."""
    serves = ", ".join(f"{model['realm']} {printable(model['model'])}" for model in peer["models"]) or "-"
    return peer["node"], "yes" if peer["connected"] else "no", "own" if peer["same_federation"] else "other", serves


def realms(options: argparse.Namespace) -> int:
    """What is on offer."""
    if options.watch:
        return _watch(options, "realms")
    rows = NodeClient(data_folder(options.data)).call("realms")["realms"]
    if options.json:
        print_json(rows)
        return 0
    if not rows:
        print("nothing is on offer; serve a model with `mtor serve smollm2-135m`, or join a peer")
        return 0
    print_table(OFFER_HEADINGS, [offer_row(realm["realm"], offer) for realm in rows for offer in realm["offers"]])
    return 0


def offer_row(realm: str, offer: Json) -> tuple[str, ...]:
    """One line of `mtor realms`."""
    node = f"…{offer['node'][-8:]}" + (" (own)" if offer["own"] else "")
    device = f"{offer['device']} {offer['vram_mib']} MiB" if offer["vram_mib"] else offer["device"]
    prices = f"{offer['price_in']} / {offer['price_out']} µcr"
    busy = f"{offer['busy']}/{offer['slots']}"
    return realm, printable(offer["model"]), node, device, busy, prices, "yes" if offer["free"] else "no"


def show_id(options: argparse.Namespace) -> int:
    """This node's peer id; made at the first call."""
    from node.identity import load_or_create_identity
    from protocol.ids import peer_id

    node = load_or_create_identity(data_folder(options.data)).node
    if options.json:
        print_json({"node": peer_id(node), "public_key": node.hex()})
    else:
        print(peer_id(node))
    return 0
