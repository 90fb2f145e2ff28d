"""`mtor config`, `doctor`, `demo`, `version`."""

from __future__ import annotations

import argparse
from pathlib import Path
from textwrap import indent
from typing import Any

from node.commands.screen import print_json
from node.paths import config_file, data_folder


def config_check(options: argparse.Namespace) -> int:
    """Find mistakes. Raises `ConfigError` with all of them."""
    from node.config_file import load_config

    path = config_file(data_folder(options.data), options.config)
    config = load_config(path, must_exist=options.config is not None)
    if options.json:
        print_json({"ok": True, "file": str(path), "exists": path.exists(), "realms": len(config.realms)})
    elif path.exists():
        print(f"{path}: no mistakes; {len(config.realms)} models to serve")
    else:
        print(f"{path} does not exist; the defaults hold and no model is served")
    return 0


def config_show(options: argparse.Namespace) -> int:
    """The values in force, with file, environment and defaults put together, and where each that is set comes from."""
    from node.config_file import DEFAULT, read_config

    path = config_file(data_folder(options.data), options.config)
    config, sources = read_config(path, must_exist=options.config is not None)
    tree = config.model_dump(mode="json")
    if options.json:
        print_json(tree)
        return 0
    for name, section in tree.items():
        settings = section if isinstance(section, dict) else {"": section}
        if isinstance(section, dict):
            print(f"{name}:")
        for key, value in settings.items():
            origin = sources.origin((name, key) if key else (name,))
            if origin != DEFAULT:
                print(f"{'  ' if key else ''}# {origin}")
            print(indent(_yaml({key or name: value}), "  " if key else ""), end="")
    return 0


def config_set(options: argparse.Namespace) -> int:
    """Change one setting: by the running node, or in the file alone."""
    import trio

    from node.commands.client import NodeClient, NoNode

    data = data_folder(options.data)
    arguments = {"key": options.key, "value": _read_value(options.value)}
    running = True
    try:
        answer = NodeClient(data).call("config.set", arguments)
    except NoNode:
        answer, running = trio.run(_set_offline, config_file(data, options.config), arguments), False
    if options.json:
        print_json(answer)
        return 0
    print(_yaml({answer["key"]: answer["value"]}), end="")
    if running:
        print("it holds from the next start on (`mtor stop`, `mtor up`)" if answer["restart"] else "it is in force now")
    if "note" in answer:
        print(f"! {answer['note']}")
    return 0


def _read_value(text: str) -> Any:
    import yaml

    from node.commands.client import UsageError

    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise UsageError(f"{text!r} is not a YAML value; put a text in quotes of its own") from None


async def _set_offline(path: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    from node.config_file import load_config
    from node.config_keeper import ConfigKeeper
    from node.config_operations import ConfigOperations
    from node.operations import dispatch

    return await dispatch(ConfigOperations(ConfigKeeper(path, load_config(path)), {}).methods, "config.set", arguments)


def _yaml(value: dict[str, Any]) -> str:
    import yaml

    return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True))


def doctor(options: argparse.Namespace) -> int:
    """Look for what is wrong; 1 if something must be mended."""
    from node.doctor import examine

    findings = examine(data_folder(options.data), options.config)
    if options.json:
        print_json([{"level": f.level, "about": f.about, "found": f.found, "fix": f.fix} for f in findings])
    else:
        for finding in findings:
            print(f"{finding.level:<5} {finding.about}: {finding.found}")
            if finding.fix:
                print(f"      → {finding.fix}")
    return 1 if any(finding.level == "bad" for finding in findings) else 0


def demo(options: argparse.Namespace) -> int:
    """Three nodes, two questions, one killed worker, one ledger."""
    from node.demo import main

    return main(options.json, options.keep, options.data, options.witnesses)


def show_version(options: argparse.Namespace) -> int:
    """The version."""
    from node.version import VERSION

    if options.json:
        print_json({"version": VERSION})
    else:
        print(f"mtor {VERSION}")
    return 0
