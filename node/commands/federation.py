"""`mtor federation create|show|join|grant`."""

from __future__ import annotations

import argparse
from pathlib import Path

from node.commands.asking_node import call
from node.commands.client import NodeClient, NoNode
from node.commands.offline import read_ledger
from node.commands.screen import print_facts, print_json, printable
from node.federation import FederationError, create_federation, genesis_path, install_genesis, load_genesis
from node.identity import load_or_create_identity
from node.paths import data_folder, exclusive
from protocol.ids import FederationId, peer_id
from protocol.ledger.genesis import Federation, open_genesis

FETCH_SECONDS = 15.0
HOME_ACCOUNTS = 2  # the founder and its issuer: nobody else has been here


def create(options: argparse.Namespace) -> int:
    """Found a federation."""
    data = data_folder(options.data)
    with exclusive(data):
        node = load_or_create_identity(data).node
        _check_leaving(data, load_genesis(data), options.force)
        federation = create_federation(data, options.name)
    print(f"federation {printable(options.name)} {federation.id.hex()}")
    print(f"this node ({peer_id(node)}) is its witness and holds its issuer key: {data / 'federation' / 'issuer.key'}")
    print("give others the file from `mtor federation show --export FILE`; they join with `mtor federation join FILE`")
    return 0


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
