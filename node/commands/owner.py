"""`mtor pause`, `resume`, `hardware`."""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Iterator
from pathlib import Path

from node.commands.client import Json, NodeClient, NoNode
from node.commands.screen import print_json, print_table, printable
from node.paths import config_file, data_folder, models_folder

UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


class UsageError(ValueError):
    """The command was written wrongly."""


def pause(options: argparse.Namespace) -> int:
    """The owner takes the machine."""
    seconds = None if options.duration is None else parse_duration(options.duration)
    state = NodeClient(data_folder(options.data)).call("pause", {"seconds": seconds})
    return _tell(options, state)


def resume(options: argparse.Namespace) -> int:
    """The owner gives it back."""
    state = NodeClient(data_folder(options.data)).call("resume", {"anyway": options.anyway})
    if not options.json and state["paused"]:
        print("the pause by hand has ended, but something else asks for the machine; --anyway overrules it")
    return _tell(options, state)


def _tell(options: argparse.Namespace, state: Json) -> int:
    if options.json:
        print_json(state)
    else:
        print(guard_words(state))
    return 0


def guard_words(state: Json) -> str:
    """The guard's state in one line."""
    if not state["paused"]:
        ignored = f" (ignoring for now: {', '.join(state['overruled'])})" if state["overruled"] else ""
        return f"serving{ignored}"
    if state["resumes_in_seconds"] is not None:
        return f"paused; serves again in {state['resumes_in_seconds']} s of quiet"
    until = state["until_ms"]
    end = f" until {time.strftime('%a %H:%M', time.localtime(until / 1_000))}" if until is not None else ""
    return f"paused{end}: {printable(state['why'])}"


def parse_duration(text: str) -> int:
    """Seconds of `90s`, `45m`, `2h`, `1h30m`, `3d`. Raises `UsageError`."""
    if not re.fullmatch(r"(\d{1,6}[smhd])+", text):
        raise UsageError(f"{text!r} is no length of time; write 45m, 2h, 1h30m or 3d")
    seconds = sum(int(number) * UNITS[unit] for number, unit in re.findall(r"(\d+)([smhd])", text))
    if not 0 < seconds <= 366 * UNITS["d"]:
        raise UsageError(f"{text!r}: a pause lasts from a second to a year; without --for it lasts until `mtor resume`")
    return seconds


def hardware(options: argparse.Namespace) -> int:
    """Cards, what runs on them, what is loaded, what fits."""
    data = data_folder(options.data)
    try:
        facts = NodeClient(data).call("hardware")
    except NoNode:
        facts = _without_node(data, options.config)
    if options.json:
        print_json(facts)
        return 0
    for line in _lines(facts):
        print(line)
    if facts["models"]:
        print()
        headings = ("model", "state", "where", "MiB", "context")
        print_table(headings, [_model_row(model) for model in facts["models"]])
    for model in facts["models"]:
        for line in _advice(model):
            print(line)
    return 0


def _lines(facts: Json) -> Iterator[str]:
    count, about = len(facts["cards"]) or "none", printable(facts["about"])
    yield f"cards: {count} ({about})"
    for card in facts["cards"]:
        capability = card["compute_capability"]
        work = "" if card["utilisation"] is None else f", {card['utilisation']} % busy"
        yield (
            f"  {card['index']}: {printable(card['name'])}, {card['free_mib']} of {card['vram_mib']} MiB free{work}, "
            f"compute capability {capability // 10}.{capability % 10}, driver {card['driver'] or '-'}"
        )
        if card["processes"] is None:
            yield "     who uses it cannot be told"
        for process in card["processes"] or ():
            size = "" if process["mib"] is None else f", {process['mib']} MiB"
            name = printable(process["name"]) or "not to be seen from here"
            yield f"     {process['pid']} {name} ({process['use']}{size}): {process['whose']}"
    yield f"memory for models on the CPU: {facts['cpu_mib']} MiB"
    if facts["guard"] is None:
        yield "no node is running: nothing is loaded"
        return
    yield f"game guard: {guard_words(facts['guard'])}"
    for sense in facts["guard"]["senses"]:
        yield f"  {sense['name']}: {sense['says']}" + (f" ({printable(sense['why'])})" if sense["why"] else "")


def _model_row(model: Json) -> tuple[str, ...]:
    fits = model["fits"]
    if model["where"]:
        state = ("loaded" if model["loaded"] else "loading") + (", pinned" if model["pinned"] else "")
        return printable(model["model"]), state, printable(model["where"]), str(model["planned_mib"]), _or_dash(model)
    state = "not loaded" if fits["fits"] else "does not fit"
    return printable(model["model"]), state, printable(fits["where"]) or "-", str(fits["mib"]), _or_dash(fits)


def _or_dash(row: Json) -> str:
    return str(row["context"] or "-")


def _advice(model: Json) -> Iterator[str]:
    fits = model["fits"]
    if not fits["fits"]:
        yield f"! {printable(fits['said'])}"
        yield from (f"      → {printable(helps)}" for helps in fits["nearest"])
    elif model["problem"]:
        yield f"! {printable(model['problem'])}"


def _without_node(data: Path, config: Path | None) -> Json:
    """The same facts as a node would tell, as far as they are known without one."""
    from node.config_file import load_config
    from node.hardware import describe, look_at, open_cards
    from node.models import ModelStore
    from node.owner_operations import fits
    from node.serving import need_of

    loaded = load_config(config_file(data, config), must_exist=config is not None)
    cards = open_cards(loaded.hardware)
    space = look_at(cards, loaded.hardware.reserve_mib, {})
    store = ModelStore(models_folder(data))
    idle = {"loaded": False, "where": "", "planned_mib": 0, "context": 0, "pinned": False, "busy": 0, "queued": 0}
    models = [
        {"model": need.model, **idle, "idle_seconds": 0, "problem": "", "fits": fits(need, space)}
        for section in loaded.local_models
        for need in (need_of(section, store.find(section.model)),)
    ]
    facts: Json = {"about": cards.about, "cards": describe(cards, ()), "cpu_mib": space.cpu_mib, "models": models}
    return facts | {"guard": None}
