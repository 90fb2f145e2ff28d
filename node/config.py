"""`realms.yml` -> one frozen `NodeConfig`.

Rule: everything an operator can set stands here, with its unit, its default and a sentence. A file is accepted
whole or refused with line, column and the nearest known key.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """Base of all sections: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class NodeSection(Section):
    """This node on the network."""

    name: str = Field("", description="A petname for screens and logs; never sent as an identity.")
    listen: tuple[str, ...] = Field(("/ip4/0.0.0.0/tcp/9001",), description="libp2p multiaddresses to listen on.")
    announce: tuple[str, ...] = Field((), description="Addresses to tell others, when they differ from `listen`.")
    bootstrap: Path | None = Field(None, description="A bootstrap_peers.txt of your own.")
    gossip: bool = Field(True, description="Advertise and listen over GossipSub.")
    dht: bool = Field(True, description="Advertise and look up in the DHT.")
    max_connections: int = Field(200, ge=1, le=10_000, description="Connections kept at most.")


class GatewaySection(Section):
    """The HTTP side."""

    host: str = Field("127.0.0.1", description="Anything but loopback needs API keys.")
    port: int = Field(9000, ge=0, le=65_535, description="0 takes a free port.")
    allowed_hosts: tuple[str, ...] = Field((), description="Host headers to answer besides loopback's.")
    allowed_origins: tuple[str, ...] = Field((), description="Origins of web pages that may call this gateway.")
    max_body_bytes: int = Field(2 * 1024 * 1024, ge=1_024, description="Larger requests get 413.")
    max_concurrent: int = Field(256, ge=1, description="Requests answered at once; more get 503 with Retry-After.")


class RealmSection(Section):
    """One model served in one realm."""

    realm: str = Field("$CHAT", description="The kind of work.")
    model: str = Field(..., description="A name from `mtor models list`, or a folder with safetensors.")
    engine: Literal["torch-chat"] = Field("torch-chat", description="What runs it.")
    slots: int = Field(2, ge=1, le=64, description="Queries answered at once.")
    queue: int = Field(16, ge=0, le=1_024, description="Queries that may wait; more are refused as overloaded.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes a card when there is one.")
    threads: int = Field(0, ge=0, le=256, description="CPU threads; 0 lets torch choose.")
    arithmetic: Literal["auto", "packed", "bf16", "fp32"] = Field(
        "auto", description="On a CPU; auto measures which is fast. Workers with the same one give the same words."
    )
    max_tokens: int = Field(1_024, ge=1, description="Longest answer, in tokens.")
    price_in: int = Field(1_000, ge=0, description="µcredits for 1,000 prompt tokens.")
    price_out: int = Field(3_000, ge=0, description="µcredits for 1,000 output tokens.")
    window: int = Field(64, ge=1, le=4_096, description="Output tokens sent ahead of the last voucher.")


class FreeSection(Section):
    """What strangers may have for nothing."""

    tokens_per_day: int = Field(20_000, ge=0, description="Tokens a day for each peer without cover; 0 closes it.")
    total_tokens_per_day: int = Field(200_000, ge=0, description="The same for all such peers together.")


class SpendSection(Section):
    """What this node pays."""

    hold: int = Field(2_000_000, ge=1, description="µcredits locked for a worker at a time.")
    max_price_out: int = Field(0, ge=0, description="µcredits for 1,000 output tokens at most; 0 is no limit.")
    close_after_seconds: int = Field(60, ge=1, description="A worker settles a channel idle for this long.")


class LedgerSection(Section):
    """The copy of the ledger on this machine."""

    keep_epochs: int = Field(
        0, ge=0, le=10_000, description="Ended epochs whose orders are kept; older ones are deleted. 0 keeps all."
    )


class LogSection(Section):
    """Logs never hold prompts, answers or keys."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"
    max_bytes: int = Field(5_000_000, ge=10_000, description="A log file is rotated at this size.")
    files: int = Field(3, ge=1, le=100, description="Rotated files kept.")


class NodeConfig(Section):
    """All of `realms.yml`."""

    node: NodeSection = NodeSection()
    gateway: GatewaySection = GatewaySection()
    realms: tuple[RealmSection, ...] = ()
    free: FreeSection = FreeSection()
    spend: SpendSection = SpendSection()
    ledger: LedgerSection = LedgerSection()
    log: LogSection = LogSection()
    blocked_peers: tuple[str, ...] = Field((), description="Peer ids that are refused.")
