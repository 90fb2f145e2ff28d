"""A node in a process of its own: prints its address, echoes on one protocol, sends for ever on another."""

from __future__ import annotations

import sys

import trio

from node.libp2p_host import Libp2pNetwork
from node.network import RecordRules, Stream

ECHO = "/mtor/test/echo/1"
FLOOD = "/mtor/test/flood/1"


async def echo(stream: Stream) -> None:
    while data := await stream.receive():
        await stream.send(data)


async def flood(stream: Stream) -> None:
    while True:
        await stream.send(b"x" * 1_000)
        await trio.sleep(0.01)


async def main() -> None:
    rules = RecordRules(valid=lambda key, value: True, newest=lambda key, values: 0)
    network = Libp2pNetwork(bytes([int(sys.argv[1])]) * 32, rules, listen=["/ip4/127.0.0.1/tcp/0"])
    network.serve(ECHO, echo)
    network.serve(FLOOD, flood)
    async with trio.open_nursery() as nursery:
        await nursery.start(network.run)
        print(network.addresses()[0], flush=True)
        await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(main)
