"""`mtor config`, `doctor`, `demo`, `version`."""

from __future__ import annotations

import argparse

from node.commands.screen import print_json
from node.paths import config_file, data_folder


def config_check(options: argparse.Namespace) -> int:
    """Find mistakes. Raises `ConfigError` with all of them."""
    from node.config_file import load_config

    path = config_file(data_folder(options.data), options.config)
    config = load_config(path)
    if options.json:
        print_json({"ok": True, "file": str(path), "exists": path.exists(), "realms": len(config.realms)})
    elif path.exists():
        print(f"{path}: no mistakes; {len(config.realms)} models to serve")
    else:
        print(f"{path} does not exist; the defaults hold and no model is served")
    return 0


def config_show(options: argparse.Namespace) -> int:
    """The values in force, with file, environment and defaults put together."""
    from node.config_file import load_config

    config = load_config(config_file(data_folder(options.data), options.config))
    if options.json:
        print_json(config.model_dump(mode="json"))
        return 0
    import yaml

    print(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True), end="")
    return 0


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

    return main(options.json, options.keep, options.data)


def show_version(options: argparse.Namespace) -> int:
    """The version."""
    from node.version import VERSION

    if options.json:
        print_json({"version": VERSION})
    else:
        print(f"mtor {VERSION}")
    return 0
