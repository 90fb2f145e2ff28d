"""`mtor keys create|list|revoke`."""

from __future__ import annotations

import argparse
import time

from node.commands.screen import print_json, print_table
from node.gateway.keys import ApiKeys
from node.paths import data_folder


def create(options: argparse.Namespace) -> int:
    """Make a key; it is shown once."""
    print(ApiKeys(data_folder(options.data)).create(options.name))
    return 0


def list_keys(options: argparse.Namespace) -> int:
    """The keys that exist, without themselves."""
    keys = ApiKeys(data_folder(options.data)).all()
    if options.json:
        print_json([{"id": key.id, "name": key.name, "created": key.created} for key in keys])
        return 0
    when = [time.strftime("%Y-%m-%d", time.localtime(key.created)) for key in keys]
    print_table(("id", "name", "created"), [(key.id, key.name, day) for key, day in zip(keys, when, strict=True)])
    return 0


def revoke(options: argparse.Namespace) -> int:
    """Remove a key; a running node refuses it from its next request on."""
    key = ApiKeys(data_folder(options.data)).revoke(options.id)
    print(f"revoked {key.id} ({key.name})")
    return 0
