"""`realms.yml` -> one frozen `NodeConfig`.

Rule: everything an operator can set stands here, with its unit, its default and a sentence. A file is accepted
whole or refused with line, column and the nearest known key.
"""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, IPvAnyNetwork, model_validator

Engine = Literal[
    "auto",
    "torch-chat",
    "torch-vision",
    "vision-composed",
    "diffusers",
    "emoji",
    "whisper",
    "voice",
    "torch-voice",
    "openai",
    "a1111",
    "predict",
]
OUTER_ENGINES = frozenset({"openai", "a1111", "predict"})  # servers that the operator runs beside the node


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
    tls_certificate: Path | None = Field(
        None, description="The gateway's own certificate, with those that signed it (PEM): it speaks https then."
    )
    tls_key: Path | None = Field(None, description="The certificate's key (PEM).")
    allowed_hosts: tuple[str, ...] = Field((), description="Host headers to answer besides loopback's.")
    allowed_origins: tuple[str, ...] = Field((), description="Origins of web pages that may call this gateway.")
    max_body_bytes: int = Field(
        24 * 1024 * 1024, ge=1_024, description="Larger requests get 413; 16 MiB of pictures are 22 MiB as base64."
    )
    max_concurrent: int = Field(256, ge=1, description="Requests answered at once; more get 503 with Retry-After.")
    admin: Literal["loopback", "any"] = Field(
        "loopback", description="From where the operator's routes may be called: this machine, or anywhere."
    )
    trusted_proxies: tuple[IPvAnyNetwork, ...] = Field(
        (), description="Reverse proxies whose X-Forwarded-For is believed: [127.0.0.1, 10.0.0.0/8]."
    )
    anonymous: Literal["auto", "nobody", "loopback", "anybody"] = Field(
        "auto", description="Who may ask without a key; auto: this machine, while nobody else can reach the gateway."
    )
    anonymous_requests_per_minute: int = Field(20, ge=0, description="Queries without a key, an address; 0 no limit.")
    anonymous_tokens_per_minute: int = Field(0, ge=0, description="Tokens without a key, an address; 0 no limit.")
    anonymous_tokens_per_day: int = Field(20_000, ge=0, description="Tokens a day, the same; 0 no limit.")
    anonymous_total_tokens_per_day: int = Field(
        200_000, ge=0, description="Tokens a day of all who ask without a key together; 0 no limit."
    )
    address_requests_per_minute: int = Field(600, ge=0, description="Requests of one address; 0 no limit.")
    address_concurrent: int = Field(32, ge=0, description="Queries of one address answered at once; 0 no limit.")
    limit_loopback: bool = Field(
        False, description="true: these limits of addresses and without a key also hold for this machine's programs."
    )
    max_connections: int = Field(
        2_048, ge=1, le=100_000, description="Connections at once; one address from elsewhere has a quarter at most."
    )
    fetch_pictures: bool = Field(
        False, description="true: a picture may be named by an http address, which this node fetches if it is public."
    )
    max_sockets: int = Field(64, ge=1, description="WebSockets open at once; more get 503.")
    max_socket_queries: int = Field(32, ge=1, description="Queries at once on one WebSocket.")
    max_kept_bytes: int = Field(
        64 * 1024 * 1024, ge=65_536, description="Of answers kept for WebSocket clients that read slowly or come back."
    )


class RealmSection(Section):
    """One model served in one realm."""

    realm: str = Field("", description="The kind of work; left out: what the model is made for. Any $NAME will do.")
    model: str = Field(..., description="A name from `mtor models list`, or a folder with safetensors.")
    engine: Engine = Field("auto", description="What runs it; auto takes what suits the model.")
    options: dict[str, str] = Field({}, description="The engine's own settings.")
    url: str = Field("", description="The server of an openai, a1111 or predict engine: http://127.0.0.1:11434/v1.")
    api_key_env: str = Field("", description="The variable that holds that server's key.")
    api_key_file: Path | None = Field(None, description="Or the file that holds it.")
    max_response_bytes: int = Field(
        32 * 1024 * 1024, ge=1_024, le=1 << 30, description="More than this of one answer of that server is cut off."
    )
    slots: int = Field(2, ge=1, le=64, description="Queries answered at once.")
    queue: int = Field(16, ge=0, le=1_024, description="Queries that may wait; more are refused as overloaded.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes a card when there is one.")
    threads: int = Field(0, ge=0, le=256, description="CPU threads; 0 lets torch choose.")
    context: int = Field(
        0, ge=0, le=1 << 24, description="Longest conversation in tokens; 0 is the model's, or as long as fits."
    )
    pinned: bool = Field(False, description="Stays loaded when another model needs its room.")
    arithmetic: Literal["auto", "packed", "packed-fp32", "bf16", "fp32"] = Field(
        "auto", description="On a CPU; auto measures which is fast. Workers with the same one give the same words."
    )
    max_tokens: int = Field(
        0, ge=0, description="Longest answer in the realm's units (tokens of text); 0 is what suits its kind."
    )
    price_in: int = Field(1_000, ge=0, description="µcredits for 1,000 prompt tokens.")
    price_out: int = Field(3_000, ge=0, description="µcredits for 1,000 output tokens.")
    window: int = Field(64, ge=1, le=4_096, description="Output tokens sent ahead of the last voucher.")

    @property
    def outer(self) -> bool:
        """True for a model of a server that the operator runs beside the node."""
        return self.engine in OUTER_ENGINES


class WorkersSection(Section):
    """Servers that the operator runs, whose models this node offers."""

    allowed: tuple[IPvAnyNetwork, ...] = Field(
        (ip_network("127.0.0.0/8"), ip_network("::1/128")),
        description="Addresses where they may be: [127.0.0.1, 192.168.1.0/24]. Nothing else is ever asked.",
    )


class HardwareSection(Section):
    """Cards and memory."""

    reserve_mib: int = Field(512, ge=0, description="Of each card, left to the screen and to others.")
    idle_unload_seconds: int = Field(0, ge=0, description="A model that nobody asked for in so long leaves; 0 never.")
    declared: Path | None = Field(None, description="A JSON file of cards to believe in instead of looking.")


class GuardSection(Section):
    """The game guard: when the owner needs the machine, the node steps aside."""

    enabled: bool = Field(True, description="false leaves `mtor pause` alone.")
    card: bool = Field(True, description="Other programs on a card.")
    compute_mib: int = Field(256, ge=0, description="A program that computes on a card counts above this.")
    graphics_mib: int = Field(128, ge=0, description="One that draws counts above this.")
    busy_percent: int = Field(60, ge=1, le=100, description="Or above this share of the card's time.")
    ignore_programs: tuple[str, ...] = Field((), description="Programs that never count, beside desktops and browsers.")
    programs: tuple[str, ...] = Field((), description="Programs that always count while they run: [game.exe, obs*].")
    full_screen: bool = Field(True, description="A window that fills the screen.")
    battery: bool = Field(True, description="A laptop that is not plugged in.")
    pause: tuple[str, ...] = Field((), description="Hours of the owner: [18:00-23:00 mon-fri, 22:00-02:00 sat].")
    resume_after_seconds: int = Field(30, ge=0, le=86_400, description="Of quiet, before the node serves again.")


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


class BlockedPeer(Section):
    """A peer that is refused. A peer id alone will do."""

    node: str = Field(..., description="Its peer id.")
    reason: str = Field("", description="Why, for the owner; never sent.")
    since: str = Field("", description="When it was blocked, UTC.")

    @model_validator(mode="before")
    @classmethod
    def _of_text(cls, value: Any) -> Any:
        return {"node": value} if isinstance(value, str) else value


class NodeConfig(Section):
    """All of `realms.yml`."""

    node: NodeSection = NodeSection()
    gateway: GatewaySection = GatewaySection()
    realms: tuple[RealmSection, ...] = ()
    workers: WorkersSection = WorkersSection()
    hardware: HardwareSection = HardwareSection()
    guard: GuardSection = GuardSection()
    free: FreeSection = FreeSection()
    spend: SpendSection = SpendSection()
    ledger: LedgerSection = LedgerSection()
    log: LogSection = LogSection()
    backup: dict[str, tuple[str, ...]] = Field(
        {}, description="Realms that stand in for another while nobody there can answer, in order."
    )
    blocked_peers: tuple[BlockedPeer, ...] = Field((), description="Peer ids that are refused.")

    @property
    def local_models(self) -> tuple[RealmSection, ...]:
        """Those of `realms` that this node loads itself."""
        return tuple(section for section in self.realms if not section.outer)

    @property
    def outer_models(self) -> tuple[RealmSection, ...]:
        """Those of `realms` whose servers run beside the node."""
        return tuple(section for section in self.realms if section.outer)
