"""`realms.yml` changed while the node runs: what is not meant stays to the byte, what cannot be read is left alone."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from node.config import NodeConfig
from node.config_edit import Append, Change, Drop, Put, edited
from node.config_file import ConfigError, load_config, parse_tree
from node.config_keeper import ConfigKeeper, Written
from node.config_operations import ConfigOperations
from node.operations import OperationFailed, dispatch

EXAMPLE = Path(__file__).parents[2] / "realms.example.yml"
FILE = Path("realms.yml")
MODEL = {"model": "m", "price_in": 5}
LINES = "  - model: m\n    price_in: 5\n"

# --- the text --------------------------------------------------------------------------------------------

EDITS: list[tuple[str, Change, str]] = [
    # one more item
    ("# mine\n", Append(("realms",), MODEL), "# mine\nrealms:\n" + LINES),
    ("log: {}", Append(("realms",), MODEL), "log: {}\nrealms:\n" + LINES),
    ("realms:  # what\n  # - model: a\n", Append(("realms",), MODEL), f"realms:  # what\n{LINES}  # - model: a\n"),
    ("realms: []  # none\nlog: {}\n", Append(("realms",), MODEL), f"realms:  # none\n{LINES}log: {{}}\n"),
    ("realms: [{model: a}]\n", Append(("realms",), MODEL), "realms: [{model: a}, {model: m, price_in: 5}]\n"),
    ("{realms: []}\n", Append(("realms",), MODEL), "{realms: [{model: m, price_in: 5}]}\n"),
    (
        "realms:\n- model: a  # first\n  # slots: 3\n# end\nlog: {}\n",
        Append(("realms",), MODEL),
        "realms:\n- model: a  # first\n  # slots: 3\n- model: m\n  price_in: 5\n# end\nlog: {}\n",
    ),
    ("a: 1\r\n", Append(("blocked_peers",), "x"), "a: 1\r\nblocked_peers: [x]\r\n"),
    # a value
    ("log: {level: info} # l\n", Put(("log", "level"), "debug"), "log: {level: debug} # l\n"),
    ("log:\n  level:  info  # l\n", Put(("log", "level"), "debug"), "log:\n  level:  debug  # l\n"),
    ("log:\n    # l\n\nnode: {}\n", Put(("log", "level"), "debug"), "log:\n  level: debug\n    # l\n\nnode: {}\n"),
    ("log:\n    files: 2  # f\n", Put(("log", "level"), "debug"), "log:\n    files: 2  # f\n    level: debug\n"),
    ("log: {}\n", Put(("log", "level"), "debug"), "log: {level: debug}\n"),
    ("log: ~  # l\n", Put(("log", "level"), "debug"), "log: {level: debug}  # l\n"),
    ("node: {}\n# end\n", Put(("log", "level"), "debug"), "node: {}\n# end\nlog:\n  level: debug\n"),
    ("node:\n  listen:  # l\n    - a\n  name: b\n", Put(("node", "listen"), ["c", "d"]),
     "node:\n  listen: [c, d]  # l\n  name: b\n"),
    ("node:\n  name: |\n    a\n    b\n\nlog: {}\n", Put(("node", "name"), "yes: #1"),
     "node:\n  name: 'yes: #1'\n\nlog: {}\n"),
    ("realms:\n  - model: a\n  - {model: b}\n", Put(("realms", 1, "slots"), 3),
     "realms:\n  - model: a\n  - {model: b, slots: 3}\n"),
    # one item less
    ("realms:  # all\n  - model: a\n  # of b\n  - model: b  # bee\n    # deep\n  - model: c\n", Drop(("realms",), 1),
     "realms:  # all\n  - model: a\n  # of b\n  - model: c\n"),
    ("realms:  # all\n  -\n    model: a\n  # end\nlog: {}\n", Drop(("realms",), 0),
     "realms: []  # all\n  # end\nlog: {}\n"),
    ("realms: [{model: a}, {model: b}]\n", Drop(("realms",), 0), "realms: [{model: b}]\n"),
    ("realms: [{model: a}, {model: b}]\n", Drop(("realms",), 1), "realms: [{model: a}]\n"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "change", "after"), EDITS)
def test_what_is_not_meant_stays_to_the_byte(text: str, change: Change, after: str) -> None:
    assert edited(FILE, text, [change]) == after


def test_a_file_that_is_not_there_begins_with_where_to_read_on() -> None:
    fresh = edited(FILE, "", [Append(("realms",), MODEL)])
    assert fresh.startswith("# ") and "docs/operating.md" in fresh and fresh.endswith(f"\n\nrealms:\n{LINES}")


def test_the_example_survives_every_kind_of_change() -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    changes: list[Change] = [
        Append(("realms",), MODEL),
        Put(("realms", 0, "slots"), 7),
        Put(("guard", "pause"), ["18:00-23:00 mon-fri"]),
        Append(("blocked_peers",), {"node": "n", "reason": "it's: [so]", "since": "2026-01-02T03:04:05Z"}),
        Drop(("realms",), 0),
    ]
    after = edited(FILE, text, changes)
    tree, before = parse_tree(FILE, after)[0], parse_tree(FILE, text)[0]
    assert tree["realms"] == [MODEL] and tree["guard"]["pause"] == ["18:00-23:00 mon-fri"]
    assert tree["blocked_peers"] == [{"node": "n", "reason": "it's: [so]", "since": "2026-01-02T03:04:05Z"}]
    untouched = before.keys() - {"realms", "guard", "blocked_peers"}
    assert {name: tree[name] for name in untouched} == {name: before[name] for name in untouched}
    kept = [line for line in text.splitlines() if line.startswith(("#", "gateway"))]
    assert [line for line in after.splitlines() if line in kept] == kept


@pytest.mark.parametrize(
    ("text", "change", "said"),
    [
        ("log: &l {level: info}\nnode: *l\n", Put(("node", "level"), "debug"), "realms.yml:1:17: this cannot be"),
        ("node: {}\n...\n", Put(("log", "level"), "debug"), "write there log.level: debug"),
        ("log:\n  level: [1\n", Put(("log", "level"), "debug"), "realms.yml:3:1: not valid YAML: "),
        ("- a\n", Put(("log", "level"), "debug"), "realms.yml:1:1: the file is a mapping"),
    ],
)  # fmt: skip
def test_what_cannot_be_changed_so_is_refused_with_its_place(text: str, change: Change, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        edited(FILE, text, [change])
    assert said in str(refused.value)


# --- the file --------------------------------------------------------------------------------------------


def keeper(
    path: Path, text: str | None = None, flags: dict[str, Any] | None = None, **environment: str
) -> ConfigKeeper:
    """Over a file with this text."""
    if text is not None:
        path.write_bytes(text.encode())
    return ConfigKeeper(path, load_config(path, environment, flags), flags, environment)


def names(folder: Path) -> list[str]:
    """Of what lies in it: no half-written file is left."""
    return sorted(each.name for each in folder.iterdir())


def puts(*changes: Change) -> Callable[[Written], Sequence[Change]]:
    """A decision that asks nothing."""
    return lambda written: changes


async def test_a_new_file_is_private_and_an_old_one_keeps_its_mode_and_its_link(tmp_path: Path) -> None:
    path, real = tmp_path / "realms.yml", tmp_path / "elsewhere.yml"
    assert await keeper(path).change(puts(Put(("log", "level"), "debug")))
    assert path.stat().st_mode & 0o777 == 0o600
    path.rename(real)
    real.chmod(0o644)
    path.symlink_to(real)
    assert await keeper(path).change(puts(Put(("log", "level"), "error")))
    assert path.is_symlink() and real.stat().st_mode & 0o777 == 0o644
    assert load_config(path, {}).log.level == "error" and names(tmp_path) == ["elsewhere.yml", path.name]


async def test_what_the_owner_wrote_meanwhile_stays(tmp_path: Path) -> None:
    path = tmp_path / "realms.yml"
    keeping = keeper(path, "log: {level: info}\n")
    path.write_text("# new\nlog: {level: info}\nnode: {name: attic}\n")
    await keeping.change(puts(Put(("log", "files"), 9)))
    assert path.read_text() == "# new\nlog: {level: info, files: 9}\nnode: {name: attic}\n"


async def test_a_file_that_changes_at_the_same_moment_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "realms.yml"
    keeping = keeper(path, "log: {level: info}\n")

    def decide(written: Written) -> Sequence[Change]:
        path.write_text("log: {level: error}\n")
        return [Put(("log", "files"), 9)]

    with pytest.raises(ConfigError, match="changed by somebody else"):
        await keeping.change(decide)
    assert path.read_text() == "log: {level: error}\n" and names(tmp_path) == [path.name]


async def test_a_file_that_cannot_be_read_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "realms.yml"
    keeping = keeper(path, "")
    path.write_text("log:\n\tlevel: info\n")
    with pytest.raises(ConfigError, match=r"realms\.yml:2:1: not valid YAML"):
        await keeping.change(puts(Put(("log", "files"), 9)))
    assert path.read_text() == "log:\n\tlevel: info\n"


# --- config.show and config.set --------------------------------------------------------------------------


class Panel:
    """The operations, and what was put in force."""

    def __init__(self, keeping: ConfigKeeper) -> None:
        self.applied: list[NodeConfig] = []
        live = dict.fromkeys(("log.level", "free.tokens_per_day", "backup"), self.applied.append)
        self._operations = ConfigOperations(keeping, live)

    async def set(self, key: str, value: Any) -> dict[str, Any]:
        """`config.set`."""
        return await dispatch(self._operations.methods, "config.set", {"key": key, "value": value})

    async def show(self) -> dict[str, dict[str, Any]]:
        """`config.show`, by key."""
        rows = (await dispatch(self._operations.methods, "config.show", {}))["settings"]
        return {row["key"]: row for row in rows}


async def test_every_setting_is_shown_with_what_it_is(tmp_path: Path) -> None:
    secret = "{model: m, engine: a1111, url: 'http://127.0.0.1:1', options: {api_key: s3cret}}"
    text = f"gateway: {{port: 9100}}\nrealms: [{secret}]\n"
    shown = await Panel(keeper(tmp_path / "realms.yml", text)).show()
    port = {"value": 9100, "default": 9000, "kind": "int", "live": False}
    assert shown["gateway.port"].items() >= port.items() and "free port" in shown["gateway.port"]["description"]
    kinds = {key: shown[key]["kind"] for key in ("node.name", "node.dht", "node.listen", "node.bootstrap", "backup")}
    assert kinds == {
        "node.name": "text",
        "node.dht": "bool",
        "node.listen": "list",
        "node.bootstrap": "text",
        "backup": "map",
    }
    assert shown["log.level"]["choices"] == ["debug", "info", "warning", "error"] and shown["log.level"]["live"]
    assert all({"key", "value", "default", "description", "kind", "live"} <= row.keys() for row in shown.values())
    assert len(shown) == len(dict.fromkeys(shown)) > 40
    assert "s3cret" not in str(shown) and "mtor serve" in shown["realms"]["changed_by"]


async def test_a_live_setting_is_in_force_at_once_and_another_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "realms.yml"
    panel = Panel(keeper(path, "# mine\nlog: {level: info}  # l\n"))
    assert await panel.set("log.level", "debug") == {"key": "log.level", "value": "debug", "restart": False}
    assert [config.log.level for config in panel.applied] == ["debug"]
    assert await panel.set("gateway.port", "9100") == {"key": "gateway.port", "value": 9100, "restart": True}
    assert len(panel.applied) == 1
    assert path.read_text() == "# mine\nlog: {level: debug}  # l\ngateway:\n  port: 9100\n"
    shown = await panel.show()
    assert (shown["log.level"]["value"], shown["gateway.port"]["value"]) == ("debug", 9000)
    assert shown["gateway.port"]["after_restart"] == 9100 and "after_restart" not in shown["log.level"]
    assert not (await panel.set("gateway.port", 9000))["restart"]  # what is in force


async def test_lists_maps_and_paths(tmp_path: Path) -> None:
    path = tmp_path / "realms.yml"
    panel = Panel(keeper(path))
    assert (await panel.set("gateway.allowed_hosts", "mtor.lan"))["value"] == ["mtor.lan"]
    assert (await panel.set("backup", {"$POETRY": ["$CHAT"]}))["value"] == {"$POETRY": ["$CHAT"]}
    assert (await panel.set("node.bootstrap", "peers.txt"))["value"] == "peers.txt"
    assert (await panel.set("workers.allowed", ["127.0.0.1"]))["value"] == ["127.0.0.1/32"]
    config = load_config(path, {})
    assert config.node.bootstrap == tmp_path / "peers.txt" and config.backup == {"$POETRY": ("$CHAT",)}


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("gatway.port", 1, "gatway is not a setting; did you mean gateway?"),
        ("gateway.prot", 1, "gateway.prot is not a setting; did you mean port?"),
        ("gateway.port", 70_000, "gateway.port: Input should be less than or equal to 65535"),
        ("gateway.port", None, "gateway.port: Input should be a valid integer"),
        ("gateway.port.x", 1, "gateway.port: Input should be a valid integer"),
        ("gateway", 1, "gateway: Input should be a valid dictionary"),
        ("log.level", "loud", "log.level: Input should be 'debug', 'info'"),
        ("guard.pause", ["25:00"], "'25:00' is no schedule"),
        ("node.listen", ["x"], "'x' is not an address like /ip4/"),
        ("", 1, " is not a setting"),
        ("realms", [], "`mtor serve`"),
        ("realms.0.slots", 1, "`mtor serve`"),
        ("blocked_peers", [], "`mtor peers block`"),
    ],
)
async def test_a_mistake_changes_nothing(tmp_path: Path, key: str, value: Any, said: str) -> None:
    path = tmp_path / "realms.yml"
    panel = Panel(keeper(path, "# mine\n"))
    with pytest.raises(OperationFailed) as failed:
        await panel.set(key, value)
    assert said in str(failed.value) and "that" not in str(failed.value)
    assert path.read_text() == "# mine\n" and panel.applied == []


async def test_a_file_with_a_mistake_is_told_with_its_place_and_shown_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "realms.yml"
    panel = Panel(keeper(path, ""))
    path.write_text("log:\n  levl: info\n")
    with pytest.raises(OperationFailed, match=r"realms\.yml:2:3: log\.levl is not a setting; did you mean level\?"):
        await panel.set("log.level", "debug")
    assert (await panel.show())["log.level"]["value"] == "info"


async def test_what_stands_above_the_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "realms.yml"
    panel = Panel(keeper(path, "", {"gateway": {"port": 0}}, MTOR_LOG__LEVEL="error"))
    changed = await panel.set("log.level", "debug")
    assert "MTOR_LOG__LEVEL sets it too" in changed["note"] and panel.applied[-1].log.level == "debug"
    assert "the command line sets it too" in (await panel.set("gateway.port", 9100))["note"]
    shown = await panel.show()
    assert (shown["log.level"]["set_by"], shown["gateway.port"]["set_by"]) == ("MTOR_LOG__LEVEL", "the command line")
    assert load_config(path, {}).log.level == "debug"
