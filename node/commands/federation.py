"""`mtor federation create|show|join|grant`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from node.commands.asking_node import call
from node.commands.client import NodeClient, NoNode
from node.commands.offline import read_ledger
from node.commands.screen import print_facts, print_json, printable
from node.federation import (
    FederationError,
    create_federation,
    genesis_path,
    install_genesis,
    load_genesis,
    prepare_witness,
)
from node.identity import load_or_create_identity
from node.paths import config_file, data_folder, exclusive
from protocol.errors import ProtocolError
from protocol.ids import FederationId, NodeId, parse_peer_id, peer_id
from protocol.ledger.genesis import Federation, open_genesis

FETCH_SECONDS = 15.0
WITNESS_FOLDERS = "witnesses"  # in the creator's data folder: one data folder for each further witness made here
HOME_ACCOUNTS = 2  # the founder and its issuer: nobody else has been here

_TCP_PORT = re.compile(r"/tcp/(\d+)")


def create(options: argparse.Namespace) -> int:
    """Found a federation."""
    data = data_folder(options.data)
    others = [_witness(text) for text in options.witness]
    missing = max(0, (options.witnesses or 1 + len(others)) - 1 - len(others))
    if options.witnesses and options.witnesses < 1 + len(others):
        raise FederationError(
            f"--witnesses {options.witnesses}, but with this node there are {1 + len(others)}: leave one of both out"
        )
    with exclusive(data):
        node = load_or_create_identity(data).node
        _check_leaving(data, load_genesis(data), options.force)
        folders = [data / WITNESS_FOLDERS / str(number) for number in range(2, 2 + missing)]
        made = [load_or_create_identity(folder).node for folder in folders]
        federation = create_federation(data, options.name, [*others, *made])
        port = _listening_port(data, options.config)
        for number, folder in enumerate(folders, 1):
            prepare_witness(folder, federation, port + 10 + number, f"/ip4/127.0.0.1/tcp/{port}/p2p/{peer_id(node)}")
    print(f"federation {printable(options.name)} {federation.id.hex()}")
    roles = "its witness" if federation.single else f"one of its {1 + len(others) + missing} witnesses"
    print(f"this node ({peer_id(node)}) is {roles} and holds its issuer key: {data / 'federation' / 'issuer.key'}")
    if not federation.single:
        _explain_witnesses(federation, folders)
    print("give others the file from `mtor federation show --export FILE`; they join with `mtor federation join FILE`")
    return 0


def _witness(text: str) -> NodeId:
    try:
        return parse_peer_id(text)
    except ProtocolError as error:
        raise FederationError(f"--witness {text}: {error}; the other node's owner finds it with `mtor id`") from None


def _listening_port(data: Path, config: Path | None) -> int:
    """The TCP port that this node will listen on; the default's if it takes any free one."""
    from node.config import NodeSection
    from node.config_file import load_config

    listen = load_config(config_file(data, config), must_exist=config is not None).node.listen
    ports = [int(found[1]) for address in (*listen, *NodeSection().listen) if (found := _TCP_PORT.search(address))]
    return next(port for port in ports if port)


def _explain_witnesses(federation: Federation, folders: Sequence[Path]) -> None:
    faults = federation.genesis.faults
    may = "one of them is" if faults == 1 else f"{faults} of them are"
    print(f"it goes on while {may} down, slow or lying; {federation.quorum} have to agree")
    for folder in folders:
        print(f"  start another witness: mtor up --data {folder}")
    if folders:
        print(
            "on one machine they stand a crash of each other; to stand the loss of a machine, move each folder to one "
            "of its own, and name this node's address in its bootstrap_peers.txt"
        )
    else:
        print("the other witnesses join with the genesis file, and have to run before credits can move")


def show(options: argparse.Namespace) -> int:
    """Which federation this is; write its genesis if asked."""
    data = data_folder(options.data)
    facts = call(options, "federation.show")
    if options.export:
        options.export.write_bytes(genesis_path(data).read_bytes())
    if options.json:
        print_json(facts)
        return 0
    print_facts(
        {
            "name": printable(facts["name"]),
            "id": facts["id"],
            "witnesses": "\n".join(facts["witnesses"]),
            "agreement": f"{2 * facts['faults'] + 1} of {len(facts['witnesses'])}; {facts['faults']} may fail or lie",
            "this node": _roles(facts["witness"], facts["issuer"]),
            "supply cap": facts["supply_cap_text"],
        }
    )
    if options.export:
        print(f"genesis written to {options.export}")
    return 0


def _roles(witness: bool, issuer: bool) -> str:
    roles = [name for name, has in (("witness", witness), ("issuer", issuer)) if has]
    return " and ".join(roles) or "member"


def join(options: argparse.Namespace) -> int:
    """Become a member. The ledger of the federation before stays where it is."""
    data = data_folder(options.data)
    with exclusive(data):
        before = load_genesis(data)
        federation = _read(data, options.genesis)
        if before is not None and before.id != federation.id:
            _check_leaving(data, before, options.force)
        install_genesis(data, federation)
    print(f"joined {printable(federation.genesis.name)} {federation.id.hex()}")
    if before is not None and before.id != federation.id:
        print(f"the ledger of {printable(before.genesis.name)} is kept; join it again to go back")
    print(
        "start the node with `mtor up --bootstrap ADDRESS` of a member, and ask its issuer for a grant to "
        f"{peer_id(load_or_create_identity(data).node)}"
    )
    return 0


def _check_leaving(data: Path, before: Federation | None, force: bool) -> None:
    """Refuse to leave a federation in which this node has dealt with others, unless told to. Its credits, and what it
    owes, count there alone; if it is the witness, the others cannot go on without it. Raises `FederationError`."""
    if before is None or force:
        return
    report = read_ledger(data, "ledger.verify", {})
    founded = read_ledger(data, "federation.show", {})["issuer"]
    others = report["accounts"] > HOME_ACCOUNTS if founded else report["certificates"] > 0
    if others:
        raise FederationError(
            f"this node has dealings in {printable(before.genesis.name)} ({report['certificates']} ledger entries), "
            "and its credits count there alone; `mtor ledger settle` first, then add --force. That ledger is kept"
        )


def _read(data: Path, source: str) -> Federation:
    """A genesis from a file, or from a member over the network. Raises `FederationError`."""
    name, found, address = source.partition("@")
    if not found:
        path = Path(source)
        if not path.is_file():
            raise FederationError(f"{source} is no file; write FILE, or ID@/ip4/…/p2p/12D3KooW…")
        return open_genesis(path.read_bytes())
    try:
        expected = FederationId(bytes.fromhex(name))
    except ValueError:
        raise FederationError(f"{name!r} is no federation id: 64 hex digits from `mtor federation show`") from None
    return open_genesis(_fetch(data, address), expected)


def _fetch(data: Path, address: str) -> bytes:
    """The genesis body that a member sends."""
    import trio

    from node.ledger_service import ask
    from node.libp2p_host import Libp2pNetwork
    from node.network import NetworkError, RecordRules
    from protocol.errors import Malformed
    from protocol.messages import FetchGenesis, GenesisAnswer
    from protocol.offers import newest_record, record_valid

    async def fetch() -> bytes:
        rules = RecordRules(record_valid, newest_record)
        seed = load_or_create_identity(data).seed
        network = Libp2pNetwork(seed, rules, listen=("/ip4/0.0.0.0/tcp/0",), gossip=False, dht=False)
        async with trio.open_nursery() as nursery:
            await nursery.start(network.run)
            with trio.move_on_after(FETCH_SECONDS):
                answer = await ask(network, await network.connect(address), (address,), FetchGenesis())
                nursery.cancel_scope.cancel()
                if isinstance(answer, GenesisAnswer):
                    return answer.genesis
        raise NetworkError(f"{address} gave no genesis within {FETCH_SECONDS:.0f} s")

    from node.nurseries import one_error

    try:
        with one_error():
            body: bytes = trio.run(fetch)
    except (NetworkError, Malformed) as error:
        raise FederationError(f"the genesis could not be fetched: {error}") from None
    return body


def grant(options: argparse.Namespace) -> int:
    """Issue credits, by the running node."""
    try:
        client = NodeClient(data_folder(options.data))
    except NoNode as error:
        raise NoNode(f"a grant needs the running node of the federation's creator: {error}") from None
    facts = client.call("federation.grant", {"to": options.to, "credits": options.credits})
    if options.json:
        print_json(facts)
    else:
        print(f"{facts['amount_text']} granted to {facts['to']} (order {facts['id'][:12]})")
    return 0
