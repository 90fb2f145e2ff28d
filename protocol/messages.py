"""Every message of the wire: a frozen dataclass, its number, one registry.

Rule: a message is an array `[number, field, …]` in the order written here. Bounds stand in the
annotations and are checked by `codec` on both encoding and decoding. There are no optional fields:
"none" is 0, the empty string, the empty array or `NO_HASH`. Fractions travel as thousandths.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, TypeVar

from protocol import params
from protocol.ids import ChannelId, FederationId, NodeId, QueryId, RealmId


@dataclass(frozen=True, slots=True)
class Between:
    """Inclusive bounds of an integer."""

    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Length:
    """Inclusive bounds of a length: bytes of a bin, UTF-8 bytes of a string, elements of an array."""

    low: int
    high: int


Amount = Annotated[int, Between(0, params.MAX_INTEGER)]  # µcredits
Count = Annotated[int, Between(0, params.MAX_INTEGER)]
Milliseconds = Annotated[int, Between(0, params.MAX_INTEGER)]
Key = Annotated[NodeId, Length(params.KEY_BYTES, params.KEY_BYTES)]
Hash = Annotated[bytes, Length(params.HASH_BYTES, params.HASH_BYTES)]
Signature = Annotated[bytes, Length(params.SIGNATURE_BYTES, params.SIGNATURE_BYTES)]
Federation = Annotated[FederationId, Length(params.HASH_BYTES, params.HASH_BYTES)]
Channel = Annotated[ChannelId, Length(params.HASH_BYTES, params.HASH_BYTES)]
Query16 = Annotated[QueryId, Length(params.QUERY_ID_BYTES, params.QUERY_ID_BYTES)]
Realm = Annotated[RealmId, Length(2, params.MAX_NAME_BYTES)]
Name = Annotated[str, Length(0, params.MAX_NAME_BYTES)]
Reason = Annotated[str, Length(0, params.MAX_REASON_BYTES)]
Record = Annotated[bytes, Length(1, params.MAX_RECORD_BYTES)]  # encoded bytes of a ledger record
Thousandths = Annotated[int, Between(0, 1_000_000)]
Code = Annotated[int, Between(1, 255)]
Feature = Annotated[int, Between(0, 65_535)]
Features = Annotated[tuple[Feature, ...], Length(0, params.MAX_FEATURES)]
Tokens = Annotated[int, Between(0, params.MAX_OUTPUT_TOKENS * 16)]


class Message:
    """Base of all numbered messages."""

    __slots__ = ()


MessageType = TypeVar("MessageType", bound=type[Message])

REGISTRY: dict[int, type[Message]] = {}
NUMBERS: dict[type[Message], int] = {}


def message(number: int) -> Callable[[MessageType], MessageType]:
    """Class decorator: give a message its number on the wire."""

    def register(cls: MessageType) -> MessageType:
        if number in REGISTRY:
            raise ValueError(f"number {number} belongs to {REGISTRY[number].__name__}")
        REGISTRY[number] = cls
        NUMBERS[cls] = number
        return cls

    return register


# --- 1-15: records of the ledger (spec/05-ledger.md) --------------------------------------------------


@message(1)
@dataclass(frozen=True, slots=True)
class Grant(Message):
    """An issuer's public order that gives credits to an account."""

    issuer: Key
    sequence: Count
    previous: Hash  # body hash of the account's order before; sha256(account) for the first
    to: Key
    amount: Amount
    epoch: Count


@message(2)
@dataclass(frozen=True, slots=True)
class Hold(Message):
    """The payer locks `amount` for one worker: the opening of a channel, whose id is this body's hash."""

    payer: Key
    sequence: Count
    previous: Hash
    payee: Key
    amount: Amount
    price_in: Amount  # µcredits for 1,000 prompt tokens
    price_out: Amount  # µcredits for 1,000 output tokens
    expiry_ms: Milliseconds  # Unix time
    quote: Hash  # sha256 of the offer's body that quoted the prices
    epoch: Count


@message(3)
@dataclass(frozen=True, slots=True)
class Voucher(Message):
    """The payer's promise, cumulative over the channel. A later one replaces an earlier one."""

    channel: Channel
    cumulative: Amount
    units_in: Count  # prompt tokens over the channel's life
    units_out: Count  # output tokens over the channel's life
    transcript: Hash


@message(4)
@dataclass(frozen=True, slots=True)
class Close(Message):
    """The worker's order that settles a channel by the last voucher: the co-signed receipt."""

    channel: Channel
    voucher: Record
    voucher_signature: Signature


@message(5)
@dataclass(frozen=True, slots=True)
class Vote(Message):
    """What a witness signs: this order and no other for (`object`, `version`)."""

    order: Hash
    version: Count
    object: Hash


@dataclass(frozen=True, slots=True)
class WitnessSignature:
    """A vote's signature and the index of its witness in genesis."""

    witness: Annotated[int, Between(0, params.MAX_WITNESSES - 1)]
    signature: Signature


@message(6)
@dataclass(frozen=True, slots=True)
class Certificate(Message):
    """An order, its owner's signature, and votes of a quorum (2f+1) of witnesses."""

    body: Record
    signature: Signature
    votes: Annotated[tuple[WitnessSignature, ...], Length(1, params.MAX_WITNESSES)]


@message(7)
@dataclass(frozen=True, slots=True)
class Genesis(Message):
    """The federation's constitution; its hash is the federation's id."""

    name: Annotated[str, Length(1, 64)]
    created_ms: Milliseconds
    witnesses: Annotated[tuple[Key, ...], Length(1, params.MAX_WITNESSES)]
    faults: Annotated[int, Between(0, 10)]  # f; there are 3f+1 witnesses
    issuers: Annotated[tuple[Key, ...], Length(1, params.MAX_ISSUERS)]
    supply_cap: Amount
    epoch_length_ms: Milliseconds


@message(8)
@dataclass(frozen=True, slots=True)
class Refund(Message):
    """The witness's order that returns an expired hold's remainder to its payer (n = 1 only)."""

    witness: Key
    channel: Channel
    time_ms: Milliseconds


# --- 16-23: offers (spec/03-offers.md) ----------------------------------------------------------------


@message(16)
@dataclass(frozen=True, slots=True)
class Envelope(Message):
    """Signed bytes: `body` is one encoded message, signed for one federation by `signer`."""

    signer: Key
    federation: Federation
    body: Annotated[bytes, Length(1, params.MAX_FRAME_BYTES)]
    signature: Signature


@dataclass(frozen=True, slots=True)
class Device:
    """What a model runs on. `kind` is "cuda", "mps" or "cpu"; a cpu has 0 of the rest."""

    kind: Annotated[str, Length(1, 16)]
    name: Name
    vram_mib: Count
    compute_capability: Annotated[int, Between(0, 1_000)]  # tenths: 8.9 is 89


@dataclass(frozen=True, slots=True)
class ModelOffer:
    """One model that a node serves in one realm."""

    realm: Realm
    model: Annotated[str, Length(1, params.MAX_NAME_BYTES)]
    digest: Hash  # sha256 of the weights' file list; NO_HASH where an outer server keeps them
    context_tokens: Tokens
    max_output_tokens: Tokens
    device: Device
    slots: Annotated[int, Between(0, 65_535)]
    busy: Annotated[int, Between(0, 65_535)]
    queued: Annotated[int, Between(0, 65_535)]
    price_in: Amount
    price_out: Amount
    window: Annotated[int, Between(1, params.MAX_WINDOW)]
    tokens_per_second: Thousandths  # measured by its owner, thousandths; a claim
    free: Annotated[int, Between(0, 1)]  # 1: strangers may ask within a quota


@message(17)
@dataclass(frozen=True, slots=True)
class Offer(Message):
    """Everything one node serves, until `expires_ms`. A higher sequence replaces a lower one."""

    node: Key
    sequence: Count
    issued_ms: Milliseconds
    expires_ms: Milliseconds
    addresses: Annotated[
        tuple[Annotated[str, Length(1, params.MAX_ADDRESS_BYTES)], ...], Length(0, params.MAX_ADDRESSES)
    ]
    models: Annotated[tuple[ModelOffer, ...], Length(0, params.MAX_MODELS)]
    features: Features


# --- 32-47: the query exchange (spec/04-query.md) -----------------------------------------------------


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation."""

    role: Annotated[str, Length(1, params.MAX_ROLE_BYTES)]  # "system", "user" or "assistant"
    text: Annotated[str, Length(0, params.MAX_TEXT_BYTES)]


@message(32)
@dataclass(frozen=True, slots=True)
class ChatRequest(Message):
    """The payload of a $CHAT query."""

    turns: Annotated[tuple[Turn, ...], Length(1, params.MAX_MESSAGES)]
    max_tokens: Annotated[int, Between(0, params.MAX_OUTPUT_TOKENS)]  # 0: as many as the offer allows
    temperature: Annotated[int, Between(0, 2_000)]  # thousandths; 0 is greedy
    top_p: Annotated[int, Between(0, 1_000)]  # thousandths
    top_k: Annotated[int, Between(0, 1_000_000)]  # 0: no limit
    repetition_penalty: Annotated[int, Between(100, 10_000)]  # thousandths; 1000 is none
    frequency_penalty: Annotated[int, Between(0, 4_000)]  # thousandths + 2000; 2000 is none
    presence_penalty: Annotated[int, Between(0, 4_000)]  # thousandths + 2000; 2000 is none
    seed: Count  # 0: the worker chooses
    stop: Annotated[tuple[Annotated[str, Length(1, params.MAX_STOP_BYTES)], ...], Length(0, params.MAX_STOP_STRINGS)]


@message(33)
@dataclass(frozen=True, slots=True)
class Query(Message):
    """Requester to worker, first: what to answer, within what time, and how it is paid."""

    query_id: Query16
    realm: Realm
    model: Name  # "" lets the worker choose
    time_left_ms: Annotated[int, Between(1, params.MAX_DEADLINE)]
    channel: Channel  # NO_HASH asks for the free lane
    payload: Annotated[bytes, Length(1, params.MAX_FRAME_BYTES)]  # one encoded request of the realm
    prefix: Annotated[str, Length(0, params.MAX_TEXT_BYTES)]  # what another worker delivered already
    prefix_tokens: Tokens
    features: Features


@message(34)
@dataclass(frozen=True, slots=True)
class Accept(Message):
    """Worker to requester: admitted. May come again while the queue moves."""

    queue_position: Annotated[int, Between(0, 65_535)]  # 0: starting now
    wait_ms: Milliseconds  # estimate


@message(35)
@dataclass(frozen=True, slots=True)
class Refuse(Message):
    """Worker to requester: not admitted. Ends the exchange; nothing is owed."""

    code: Code
    reason: Reason
    retry_after_ms: Milliseconds


@message(36)
@dataclass(frozen=True, slots=True)
class Begin(Message):
    """Worker to requester: the prompt is counted. The first voucher covers `units_in`."""

    units_in: Tokens
    model: Name
    window: Annotated[int, Between(1, params.MAX_WINDOW)]


@message(37)
@dataclass(frozen=True, slots=True)
class Chunk(Message):
    """Worker to requester: the next piece of text. `units_out` counts this query's output tokens so far."""

    index: Count
    units_out: Tokens
    text: Annotated[str, Length(0, params.MAX_CHUNK_BYTES)]


@message(38)
@dataclass(frozen=True, slots=True)
class Pay(Message):
    """Requester to worker: a voucher. Also the flow control: it opens the window further."""

    voucher: Record
    signature: Signature


@message(39)
@dataclass(frozen=True, slots=True)
class Cancel(Message):
    """Requester to worker: stop at the next token and say what was delivered."""


@message(40)
@dataclass(frozen=True, slots=True)
class Done(Message):
    """Worker to requester: the whole answer was sent. Without it an answer is not complete."""

    finish: Annotated[str, Length(1, 16)]  # "stop", "length" or "cancelled"
    units_in: Tokens
    units_out: Tokens
    digest: Hash  # sha256 of the delivered text's UTF-8 bytes


@message(41)
@dataclass(frozen=True, slots=True)
class Error(Message):
    """Worker to requester: the answer ends here and is not complete."""

    code: Code
    reason: Reason
    retry_after_ms: Milliseconds


@message(42)
@dataclass(frozen=True, slots=True)
class Settled(Message):
    """Worker to requester, last: the final voucher is on disk."""

    cumulative: Amount


# --- 48-63: talking to a witness (spec/05-ledger.md) --------------------------------------------------


@message(48)
@dataclass(frozen=True, slots=True)
class RequestVote(Message):
    """Owner to witness: vote for this order."""

    body: Record
    signature: Signature


@message(49)
@dataclass(frozen=True, slots=True)
class Voted(Message):
    """Witness to owner: the vote, synced to disk before it left."""

    witness: Annotated[int, Between(0, params.MAX_WITNESSES - 1)]
    signature: Signature


@message(50)
@dataclass(frozen=True, slots=True)
class StoreCertificate(Message):
    """Anybody to witness: apply this certificate and keep it."""

    certificate: Record


@message(51)
@dataclass(frozen=True, slots=True)
class Stored(Message):
    """Witness: applied and synced; `position` is the certificate's place in this witness's log."""

    position: Count


@message(52)
@dataclass(frozen=True, slots=True)
class Rejected(Message):
    """Witness: no, and why."""

    code: Code
    reason: Reason


@message(53)
@dataclass(frozen=True, slots=True)
class FetchCertificates(Message):
    """Anybody to anybody: certificates of the log from `start` on, at most `limit`."""

    start: Count
    limit: Annotated[int, Between(1, params.MAX_CERTIFICATES)]


@message(54)
@dataclass(frozen=True, slots=True)
class Certificates(Message):
    """The answer: consecutive certificates, and how many the log holds in all."""

    start: Count
    total: Count
    certificates: Annotated[tuple[Record, ...], Length(0, params.MAX_CERTIFICATES)]


@message(55)
@dataclass(frozen=True, slots=True)
class FetchGenesis(Message):
    """Anybody to anybody: which federation is this?"""


@message(56)
@dataclass(frozen=True, slots=True)
class GenesisAnswer(Message):
    """The encoded genesis; the receiver compares its hash with the federation id that it expects."""

    genesis: Record
