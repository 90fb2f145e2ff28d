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
OptionalRecord = Annotated[bytes, Length(0, params.MAX_RECORD_BYTES)]  # empty if there is none
Proof = Annotated[bytes, Length(1, params.MAX_EVIDENCE_BYTES)]  # an encoded Equivocation or DoubleVote
Thousandths = Annotated[int, Between(0, 1_000_000)]
Code = Annotated[int, Between(1, 255)]
Feature = Annotated[int, Between(0, 65_535)]
Features = Annotated[tuple[Feature, ...], Length(0, params.MAX_FEATURES)]
ModelFeature = Annotated[int, Between(1, 127)]
ToolName = Annotated[str, Length(1, params.MAX_TOOL_NAME_BYTES)]
TurnIndex = Annotated[int, Between(0, params.MAX_MESSAGES - 1)]
Schema = Annotated[str, Length(0, params.MAX_SCHEMA_BYTES)]  # the text of a JSON object, or empty
Token = Annotated[bytes, Length(0, params.MAX_TOKEN_BYTES)]  # UTF-8, perhaps cut within a character
Tokens = Annotated[int, Between(0, params.MAX_OUTPUT_TOKENS * 16)]  # or other units of a realm
MessageNumber = Annotated[int, Between(1, 127)]
Flag = Annotated[int, Between(0, 1)]
Witness = Annotated[int, Between(0, params.MAX_WITNESSES - 1)]  # index in genesis
Balance = Annotated[int, Between(-params.MAX_INTEGER, params.MAX_INTEGER)]  # µcredits; issuers' are negative


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
    """A signature of a witness over a vote or ballot, and its index in genesis."""

    witness: Witness
    signature: Signature


WitnessSignatures = Annotated[tuple[WitnessSignature, ...], Length(0, params.MAX_WITNESSES)]


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


@message(9)
@dataclass(frozen=True, slots=True)
class Attach(Message):
    """An account's first order: it belongs to `owner` for ever."""

    account: Key
    sequence: Count  # 0
    previous: Hash
    owner: Key
    consent: Signature  # the owner's, over Consent(account, owner)
    epoch: Count


@message(10)
@dataclass(frozen=True, slots=True)
class Move(Message):
    """Credits between two accounts of one owner."""

    account: Key
    sequence: Count
    previous: Hash
    to: Key
    amount: Amount
    epoch: Count


@message(11)
@dataclass(frozen=True, slots=True)
class Recovery(Message):
    """Names the key that may rotate this account's key if that is lost or stolen."""

    account: Key
    sequence: Count
    previous: Hash
    key: Key
    epoch: Count


@message(12)
@dataclass(frozen=True, slots=True)
class Rotate(Message):
    """The account's orders after this one are signed by `key`."""

    account: Key
    sequence: Count
    previous: Hash
    key: Key
    consent: Signature  # of `key`, over Consent(account, key)
    epoch: Count


@message(13)
@dataclass(frozen=True, slots=True)
class Snapshot(Message):
    """What a witness signs when it freezes: these and no other orders of the epoch lie in its log."""

    epoch: Count
    previous: Hash  # the checkpoint that opened the epoch; the federation's id for the first
    count: Count
    root: Hash  # Merkle root of the orders' ids, ascending


@dataclass(frozen=True, slots=True)
class Source:
    """One witness's snapshot in a checkpoint."""

    witness: Witness
    count: Count
    root: Hash
    signature: Signature  # the witness's, over the Snapshot


@message(14)
@dataclass(frozen=True, slots=True)
class Checkpoint(Message):
    """The end of an epoch: the union of 2f+1 snapshots, and the state that it makes. Opens the epoch `epoch`."""

    epoch: Count
    previous: Hash
    time_ms: Milliseconds
    count: Count  # orders in the union
    orders: Hash  # Merkle root of their ids, ascending
    state: Hash  # Merkle root of accounts and open channels after refunds
    sources: Annotated[tuple[Source, ...], Length(1, params.MAX_WITNESSES)]


@message(15)
@dataclass(frozen=True, slots=True)
class Decision(Message):
    """A checkpoint and the ballots of a quorum that committed to it."""

    body: Record
    round: Count
    commits: Annotated[tuple[WitnessSignature, ...], Length(1, params.MAX_WITNESSES)]


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
    """What a model runs on. `kind` is "cuda", "mps", "cpu", or "outer" for a server that does not say; only a card has
    the rest."""

    kind: Annotated[str, Length(1, 16)]
    name: Name
    vram_mib: Count
    compute_capability: Annotated[int, Between(0, 1_000)]  # tenths: 8.9 is 89
    free_mib: Count = 0  # of vram_mib, when the offer was signed
    driver: Annotated[str, Length(0, 32)] = ""


@dataclass(frozen=True, slots=True)
class ModelOffer:
    """One model that a node serves in one realm."""

    realm: Realm
    model: Annotated[str, Length(1, params.MAX_NAME_BYTES)]
    digest: Hash  # sha256 of the weights' file list; NO_HASH where an outer server keeps them
    requests: Annotated[tuple[MessageNumber, ...], Length(1, params.MAX_REQUEST_KINDS)]  # kinds of payload it takes
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
    free: Flag  # 1: strangers may ask within a quota
    features: Annotated[tuple[ModelFeature, ...], Length(0, params.MAX_MODEL_FEATURES)] = ()  # see `wishes`


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

    role: Annotated[str, Length(1, params.MAX_ROLE_BYTES)]  # "system", "user", "assistant" or "tool"
    text: Annotated[str, Length(0, params.MAX_TEXT_BYTES)]


@dataclass(frozen=True, slots=True)
class Tool:
    """A function of the asker's that the model may call."""

    name: ToolName
    description: Schema  # free text
    parameters: Schema  # of its arguments; empty: it takes none


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a tool, earlier in the conversation."""

    turn: TurnIndex  # of the assistant, which made it
    answer: TurnIndex  # the turn of the tool with its result; 0: there is none
    name: ToolName
    arguments: Annotated[str, Length(0, params.MAX_ARGUMENTS_BYTES)]  # the text of a JSON object


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a conversation asks for beyond text, and what not every model can do."""

    tools: Annotated[tuple[Tool, ...], Length(0, params.MAX_TOOLS)] = ()
    must_call: Flag = 0  # 1: the answer calls a tool
    one_call: Flag = 0  # 1: the answer has one call at most
    calls: Annotated[tuple[Call, ...], Length(0, params.MAX_MESSAGES)] = ()
    schema: Schema = ""  # the answer's text is JSON by this schema
    logprobs: Flag = 0  # 1: with the likelihood of each token
    likeliest: Annotated[int, Between(0, params.MAX_LIKELIEST)] = 0  # and of so many in its place


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
    wishes: Annotated[tuple[Wishes, ...], Length(0, 1)] = ()


@dataclass(frozen=True, slots=True)
class Media:
    """A picture or sound that belongs to a request. Its bytes follow the query as `Input`s, in the request's order."""

    kind: Annotated[str, Length(1, 16)]  # "image" or "audio"; what it really is, its bytes say
    size: Annotated[int, Between(1, params.MAX_INPUT_BYTES)]
    turn: TurnIndex  # that shows it; 0 where there are none


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

    finish: Annotated[str, Length(1, 16)]  # "stop", "length", "tool_calls" or "cancelled"
    units_in: Tokens
    units_out: Tokens
    digest: Hash  # sha256 of all that was delivered


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


@message(43)
@dataclass(frozen=True, slots=True)
class Input(Message):
    """Requester to worker, after the query: the next bytes of the request's media."""

    index: Count
    data: Annotated[bytes, Length(1, params.MAX_CHUNK_BYTES)]


@message(44)
@dataclass(frozen=True, slots=True)
class Output(Message):
    """Worker to requester: the next bytes of a picture or sound. Counted and paid as a `Chunk` is."""

    index: Count  # one count with the chunks
    units_out: Tokens
    media_type: Annotated[str, Length(1, 64)]  # "image/png", "audio/pcm;rate=24000"
    data: Annotated[bytes, Length(1, params.MAX_CHUNK_BYTES)]


@message(45)
@dataclass(frozen=True, slots=True)
class Progress(Message):
    """Worker to requester: how far it is, perhaps with a small picture of it. Nothing is owed for it."""

    done: Count
    total: Count  # 0: not known
    preview: Annotated[bytes, Length(0, params.MAX_CHUNK_BYTES)]  # a PNG or JPEG


@message(46)
@dataclass(frozen=True, slots=True)
class Called(Message):
    """Worker to requester: the model calls a tool. Without a name: more of the last call's arguments."""

    index: Count  # one count with the chunks
    units_out: Tokens
    name: Annotated[str, Length(0, params.MAX_TOOL_NAME_BYTES)]
    arguments: Annotated[str, Length(0, params.MAX_CHUNK_BYTES)]


@dataclass(frozen=True, slots=True)
class Likelihood:
    """How likely a model finds a token."""

    token: Token
    nats: Count  # millionths of the negative natural logarithm of its probability


@dataclass(frozen=True, slots=True)
class Chosen:
    """A token of the answer, and the likeliest in its place, likeliest first."""

    token: Token
    nats: Count
    likeliest: Annotated[tuple[Likelihood, ...], Length(0, params.MAX_LIKELIEST)]


@message(47)
@dataclass(frozen=True, slots=True)
class LikelyChunk(Chunk):
    """Worker to requester: a chunk, with the tokens that it consists of."""

    tokens: Annotated[tuple[Chosen, ...], Length(1, params.MAX_CHUNK_TOKENS)]


# --- 84-87: payloads of the other realms (spec/04-query.md) -------------------------------------------


@message(84)
@dataclass(frozen=True, slots=True)
class VisionRequest(ChatRequest):
    """The payload of a $VISION query: a conversation whose turns show pictures."""

    media: Annotated[tuple[Media, ...], Length(1, params.MAX_INPUTS)] = ()  # of which there is at least one


@message(85)
@dataclass(frozen=True, slots=True)
class ImagineRequest(Message):
    """The payload of an $IMAGINE query: one picture from words. A 0 leaves the choice to the worker."""

    prompt: Annotated[str, Length(1, params.MAX_PROMPT_BYTES)]
    negative_prompt: Annotated[str, Length(0, params.MAX_PROMPT_BYTES)]
    width: Annotated[int, Between(0, params.MAX_PICTURE_SIDE)]  # pixels
    height: Annotated[int, Between(0, params.MAX_PICTURE_SIDE)]
    steps: Annotated[int, Between(0, params.MAX_PICTURE_STEPS)]
    guidance: Annotated[int, Between(0, 50_000)]  # thousandths
    seed: Count
    previews: Flag  # 1: small pictures of the work in progress are welcome


@message(86)
@dataclass(frozen=True, slots=True)
class TranscribeRequest(Message):
    """A payload of $SPEECH: sound to text."""

    media: Annotated[tuple[Media, ...], Length(1, 1)]
    language: Annotated[str, Length(0, 16)]  # "en"; empty: the worker listens for it
    prompt: Annotated[str, Length(0, params.MAX_PROMPT_BYTES)]  # names and words to expect
    temperature: Annotated[int, Between(0, 1_000)]  # thousandths
    timestamps: Flag  # 1: the text is WebVTT
    translate: Flag  # 1: into English


@message(87)
@dataclass(frozen=True, slots=True)
class SpeakRequest(Message):
    """A payload of $SPEECH: text to sound."""

    text: Annotated[str, Length(1, params.MAX_SPOKEN_BYTES)]
    voice: Name  # empty: the worker's own choice
    speed: Annotated[int, Between(250, 4_000)]  # thousandths; 1000 is as the voice speaks


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

    witness: Witness
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
    epoch: Count  # in force at the witness: an order is final with a quorum of acknowledgements of one epoch


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


@message(57)
@dataclass(frozen=True, slots=True)
class FetchHead(Message):
    """Owner to witness: how does my account stand?"""

    account: Key


@message(58)
@dataclass(frozen=True, slots=True)
class Head(Message):
    """The answer: the account's standing, and the order that this witness has voted for beyond it."""

    epoch: Count
    next_sequence: Count
    head: Hash
    body: OptionalRecord  # empty if there is none
    signature: Annotated[bytes, Length(0, params.SIGNATURE_BYTES)]


@message(59)
@dataclass(frozen=True, slots=True)
class FetchIds(Message):
    """Anybody to anybody: ids of this node's log from `start` on."""

    start: Count
    limit: Annotated[int, Between(1, params.MAX_IDS)]


@message(60)
@dataclass(frozen=True, slots=True)
class Ids(Message):
    """The answer: consecutive ids, and how many there are in all."""

    start: Count
    total: Count
    ids: Annotated[tuple[Hash, ...], Length(0, params.MAX_IDS)]


@message(61)
@dataclass(frozen=True, slots=True)
class FetchRecords(Message):
    """Anybody to anybody: the certificates and decisions with these ids."""

    ids: Annotated[tuple[Hash, ...], Length(1, params.MAX_CERTIFICATES)]


@message(62)
@dataclass(frozen=True, slots=True)
class Records(Message):
    """The answer: those that are known, as many as fit, in the order asked."""

    records: Annotated[tuple[Record, ...], Length(0, params.MAX_CERTIFICATES)]


@message(63)
@dataclass(frozen=True, slots=True)
class FetchEpoch(Message):
    """Anybody to anybody: the ids of a closed epoch's union, ascending; answered by Ids."""

    epoch: Count
    start: Count
    limit: Annotated[int, Between(1, params.MAX_IDS)]


@dataclass(frozen=True, slots=True)
class KeySince:
    """A key that signs an account's orders, or may rotate it, from a number on."""

    sequence: Count
    key: Key


# --- 64-95: more of the ledger (spec/05-ledger.md) ----------------------------------------------------


@message(64)
@dataclass(frozen=True, slots=True)
class Consent(Message):
    """What the key `key` signs to own `account`, or to become its key."""

    account: Key
    key: Key


@message(65)
@dataclass(frozen=True, slots=True)
class Equivocation(Message):
    """Proof: one owner signed two orders for one (object, version) of one epoch."""

    first: Record
    first_signature: Signature
    second: Record
    second_signature: Signature


@message(66)
@dataclass(frozen=True, slots=True)
class DoubleVote(Message):
    """Proof: one witness voted for two orders for one (object, version) of one epoch."""

    witness: Witness
    first: Record
    first_vote: Signature
    second: Record
    second_vote: Signature


@message(67)
@dataclass(frozen=True, slots=True)
class Promise(Message):
    """What a witness signs to join a round: it ballots in no earlier one any more."""

    epoch: Count
    round: Count
    prepared: Count  # 0: in no round so far; else that round + 1, the highest
    checkpoint: Hash  # what it prepared there; NO_HASH if nothing


@message(68)
@dataclass(frozen=True, slots=True)
class Ballot(Message):
    """What a witness signs for a checkpoint in a round."""

    phase: Annotated[int, Between(1, 2)]  # 1 prepare, 2 commit
    epoch: Count  # that ends
    round: Count
    checkpoint: Hash


@message(69)
@dataclass(frozen=True, slots=True)
class AccountState(Message):
    """A leaf of the state: one account."""

    account: Key
    balance: Balance
    next_sequence: Count
    head: Hash
    owner: Hash  # NO_HASH: it belongs to nobody else
    sub_accounts: Count
    keys: Annotated[tuple[KeySince, ...], Length(0, params.MAX_ROTATIONS)]
    recoveries: Annotated[tuple[KeySince, ...], Length(0, params.MAX_ROTATIONS)]


@message(70)
@dataclass(frozen=True, slots=True)
class ChannelState(Message):
    """A leaf of the state: one open channel."""

    channel: Channel
    payer: Key
    payee: Key
    amount: Amount
    price_in: Amount
    price_out: Amount
    expiry_ms: Milliseconds


@message(71)
@dataclass(frozen=True, slots=True)
class Join(Message):
    """Coordinator to witness: end this epoch, in this round."""

    epoch: Count
    round: Count


@message(72)
@dataclass(frozen=True, slots=True)
class Joined(Message):
    """The answer: the witness is frozen; its snapshot, its promise, and what it prepared before."""

    witness: Witness
    count: Count
    root: Hash
    snapshot_signature: Signature
    promise_signature: Signature
    prepared: Count
    checkpoint: OptionalRecord  # the one that it prepared; empty if none
    ballots: WitnessSignatures  # that prepared it


@dataclass(frozen=True, slots=True)
class Promised:
    """One witness's promise in a proposal."""

    witness: Witness
    prepared: Count
    checkpoint: Hash
    signature: Signature


@message(73)
@dataclass(frozen=True, slots=True)
class Propose(Message):
    """Coordinator to witness: this checkpoint, because of these promises."""

    round: Count
    checkpoint: Record
    promises: Annotated[tuple[Promised, ...], Length(1, params.MAX_WITNESSES)]
    ballots: WitnessSignatures  # that prepared it in the highest round promised; empty for a new one


@message(74)
@dataclass(frozen=True, slots=True)
class Commit(Message):
    """Coordinator to witness: a quorum prepared it."""

    round: Count
    checkpoint: Record
    ballots: WitnessSignatures


@message(75)
@dataclass(frozen=True, slots=True)
class Balloted(Message):
    """The answer to Propose and Commit: the signature over the Ballot."""

    witness: Witness
    signature: Signature


@message(76)
@dataclass(frozen=True, slots=True)
class FetchSnapshot(Message):
    """Witness to coordinator: the ids behind a source of its proposal; answered by Ids."""

    witness: Witness
    start: Count
    limit: Annotated[int, Between(1, params.MAX_IDS)]


@message(77)
@dataclass(frozen=True, slots=True)
class FetchState(Message):
    """Anybody to anybody: leaves of the state at the beginning of the epoch in force, in their order."""

    start: Count
    limit: Annotated[int, Between(1, params.MAX_CERTIFICATES)]


@message(78)
@dataclass(frozen=True, slots=True)
class StateLeaves(Message):
    """The answer: consecutive leaves, how many there are in all, and the decision whose root they make."""

    decision: OptionalRecord  # empty in the first epoch
    position: Count  # of the decision in this node's log
    start: Count
    total: Count
    leaves: Annotated[tuple[Record, ...], Length(0, params.MAX_CERTIFICATES)]


@message(79)
@dataclass(frozen=True, slots=True)
class FetchEvidence(Message):
    """Anybody to anybody: proofs of misbehaviour in the epoch in force."""

    start: Count
    limit: Annotated[int, Between(1, params.MAX_EVIDENCE)]


@message(80)
@dataclass(frozen=True, slots=True)
class Evidence(Message):
    """The answer, and what is gossiped: encoded Equivocation and DoubleVote records."""

    total: Count
    records: Annotated[tuple[Proof, ...], Length(0, params.MAX_EVIDENCE)]


@message(81)
@dataclass(frozen=True, slots=True)
class LedgerProof(Message):
    """A file that shows somebody without a node what a federation's ledger holds. It is never sent by nodes."""

    genesis: Record
    decision: OptionalRecord  # empty: an order that no checkpoint holds yet
    leaf: Record  # an AccountState or ChannelState, else the Certificate of an order
    hold: OptionalRecord  # body of the Hold that a Close or Refund ends
    index: Count  # of the leaf, or of the order's id, below the checkpoint's root
    count: Count
    neighbours: Annotated[tuple[Hash, ...], Length(0, params.MAX_PATH)]  # from the leaf up to the root


@message(82)
@dataclass(frozen=True, slots=True)
class FetchStanding(Message):
    """Anybody to witness: would you join in ending the epoch? Binds nobody."""


@message(83)
@dataclass(frozen=True, slots=True)
class Standing(Message):
    """The answer: where the witness stands."""

    epoch: Count
    willing: Flag  # it would join now: the epoch is due, its operator agreed, or it is frozen
    frozen: Flag
    abstaining: Flag
