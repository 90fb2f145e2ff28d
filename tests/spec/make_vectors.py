"""Writes `spec/vectors/*.json` (all but the ledger's) and the examples in `spec/*.md`.

Rule: nothing random, no clock; running it twice gives the same bytes. A case's input is written here, its result
comes from the code, so a change of the wire shows up as a change of these files, to be read and explained.
Cases that must fail say so here: a result where a failure is expected stops the run.

    python tests/spec/make_vectors.py
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import edwards
from runners import RUNNERS, outcome
from vector_json import to_json

from protocol import messages, params
from protocol.codec import body_hash, encode
from protocol.exchange import Delivered, transcript_hash
from protocol.framing import frame
from protocol.ids import NO_HASH, ChannelId, FederationId, NodeId, QueryId, RealmId, peer_id
from protocol.messages import (
    REGISTRY,
    Accept,
    AccountState,
    Attach,
    Ballot,
    Balloted,
    Begin,
    Call,
    Called,
    Cancel,
    Certificate,
    Certificates,
    ChannelState,
    ChatRequest,
    Checkpoint,
    Chosen,
    Chunk,
    Close,
    Commit,
    Consent,
    Decision,
    Device,
    Done,
    DoubleVote,
    Envelope,
    Equivocation,
    Error,
    Evidence,
    FetchCertificates,
    FetchEpoch,
    FetchEvidence,
    FetchGenesis,
    FetchHead,
    FetchIds,
    FetchRecords,
    FetchSnapshot,
    FetchStanding,
    FetchState,
    Genesis,
    GenesisAnswer,
    Grant,
    Head,
    Hold,
    Ids,
    ImagineRequest,
    Input,
    Join,
    Joined,
    KeySince,
    LedgerProof,
    Likelihood,
    LikelyChunk,
    Media,
    Message,
    ModelOffer,
    Offer,
    Output,
    Pay,
    Progress,
    Promise,
    Promised,
    Propose,
    Query,
    Records,
    Recovery,
    Refund,
    Refuse,
    Rejected,
    RequestVote,
    Rotate,
    Settled,
    Snapshot,
    Source,
    SpeakRequest,
    Standing,
    StateLeaves,
    StoreCertificate,
    Stored,
    Tool,
    TranscribeRequest,
    Turn,
    VisionRequest,
    Vote,
    Voted,
    Voucher,
    Wishes,
    WitnessSignature,
)
from protocol.pricing import channel_cost
from protocol.signing import Signer, seal, signed_bytes

SPEC = Path(__file__).parents[2] / "spec"
VECTORS = SPEC / "vectors"

Json = Any
Case = dict[str, Json]

# --- fixed values ------------------------------------------------------------------------------------

SEED_A, SEED_B = bytes([1]) * 32, bytes([2]) * 32
ALICE, BOB = Signer.from_seed(SEED_A), Signer.from_seed(SEED_B)
FEDERATION, OTHER_FEDERATION = FederationId(bytes([0x0F]) * 32), FederationId(bytes([0x1F]) * 32)
CHANNEL = ChannelId(bytes([0x0C]) * 32)
QUERY_ID = QueryId(bytes(range(16)))
NOW = 1_800_000_000_000  # Unix time, ms
PRICE_IN, PRICE_OUT = 1_000, 3_000


def vars_of(record: Any) -> dict[str, Json]:
    """The fields of a record by name."""
    return {name: getattr(record, name) for name in record.__dataclass_fields__}


CPU = Device("cpu", "AMD EPYC 9V74", 0, 0)
CARD = Device("cuda", "NVIDIA GeForce RTX 3060", 12_288, 86, 9_216, "550.54.14")
OUTER = Device("outer", "", 0, 0)
SMALL = ModelOffer(
    realm=RealmId("$CHAT"),
    model="smollm2-135m",
    digest=bytes([0xD1]) * 32,
    requests=(32,),
    context_tokens=8_192,
    max_output_tokens=1_024,
    device=CPU,
    slots=2,
    busy=1,
    queued=0,
    price_in=PRICE_IN,
    price_out=PRICE_OUT,
    window=64,
    tokens_per_second=24_500,
    free=1,
)
LARGE = replace(
    SMALL,
    realm=RealmId("$VISION"),
    model="smolvlm-500m",
    digest=bytes([0xD2]) * 32,
    requests=(32, 84),
    context_tokens=131_072,
    max_output_tokens=4_096,
    device=CARD,
    slots=8,
    busy=0,
    queued=3,
    price_in=2_000,
    price_out=9_000,
    window=256,
    tokens_per_second=61_250,
    free=0,
    features=(1, 2, 3, 4),
)
SPOKEN = replace(
    SMALL, realm=RealmId("$READERS"), model="tts-1", digest=NO_HASH, requests=(87,), context_tokens=0, device=OUTER
)
ADDRESS = f"/ip4/192.0.2.7/tcp/9001/p2p/{peer_id(ALICE.node)}"
OFFER = Offer(ALICE.node, NOW, NOW, NOW + params.OFFER_LIFETIME, (ADDRESS,), (SMALL,), ())
CHAT = ChatRequest(
    (Turn("system", "Be brief."), Turn("user", "What is the capital of France?")),
    max_tokens=64,
    temperature=600,
    top_p=920,
    top_k=0,
    repetition_penalty=1_100,
    frequency_penalty=2_000,
    presence_penalty=2_000,
    seed=7,
    stop=("\n\n",),
)
WEATHER = Tool("get_weather", "The weather in a city", '{"type":"object","properties":{"city":{"type":"string"}}}')
CLOCK = Tool("clock", "", "")
TOOLED = replace(CHAT, wishes=(Wishes(tools=(WEATHER, CLOCK)),))
ASKED_OF = replace(
    CHAT,
    turns=(Turn("user", "Weather in Paris?"), Turn("assistant", ""), Turn("tool", "rain")),
    wishes=(Wishes(tools=(WEATHER,), calls=(Call(1, 2, "get_weather", '{"city":"Paris"}'),)),),
)
MEASURED = replace(CHAT, wishes=(Wishes(logprobs=1, likeliest=2),))
SHAPED = replace(CHAT, wishes=(Wishes(schema='{"type":"object"}'),))
IMAGE = Media("image", 70, 1)
SEEN = VisionRequest(**{**vars_of(CHAT), "media": (IMAGE, Media("image", 30, 1))})
DRAWN = ImagineRequest("a red fox", "", 256, 256, 24, 2_500, 7, 1)
HEARD = TranscribeRequest((Media("audio", 960, 0),), "en", "", 0, 1, 0)
SAID = SpeakRequest("Guten Morgen, Größe!", "", 1_000)
QUERY = Query(QUERY_ID, RealmId("$CHAT"), "smollm2-135m", 120_000, CHANNEL, encode(CHAT), "", 0, ())
FREE_QUERY = Query(QUERY_ID, RealmId("$CHAT"), "", 120_000, ChannelId(NO_HASH), encode(CHAT), "", 0, ())
HOLD = Hold(
    ALICE.node, 3, bytes([0xAA]) * 32, BOB.node, 2_000_000, PRICE_IN, PRICE_OUT, NOW + params.HOLD_LIFETIME,
    body_hash(encode(OFFER)), 0,
)  # fmt: skip


def sha(text: str) -> bytes:
    """sha256 of a text's UTF-8."""
    return hashlib.sha256(text.encode()).digest()


def voucher_for(point: Delivered) -> Voucher:
    """The voucher for a point of the first query of a channel."""
    amount = channel_cost(point.units_in, point.units_out, PRICE_IN, PRICE_OUT)
    return Voucher(CHANNEL, amount, point.units_in, point.units_out, transcript_hash(NO_HASH, QUERY_ID, point))


def pay_for(point: Delivered) -> Pay:
    """That voucher, signed by Alice."""
    body = encode(voucher_for(point))
    return Pay(body, ALICE.sign(FEDERATION, body))


# --- making cases ------------------------------------------------------------------------------------


def case(kind: str, name: str, given: dict[str, Json]) -> Case:
    """A case that succeeds: its result is what the code gives."""
    result = outcome(RUNNERS[kind], given)
    if "expect" not in result:
        raise SystemExit(f"{kind}: {name} fails with {result}")
    return {"name": name, "input": given, **result}


def failing(kind: str, name: str, error: str, given: dict[str, Json]) -> Case:
    """A case that must fail with `error`."""
    result = outcome(RUNNERS[kind], given)
    if result != {"error": error}:
        raise SystemExit(f"{kind}: {name} should fail with {error}, gives {result}")
    return {"name": name, "input": given, "error": error}


def vector_file(kind: str, description: str, cases: Iterable[Case]) -> str:
    """The text of a file."""
    content = {"kind": kind, "description": description, "cases": list(cases)}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


# --- encoding ----------------------------------------------------------------------------------------


def samples() -> list[tuple[str, Message]]:
    """At least one of each message, with the edges of their fields."""
    point = Delivered(20, 2, sha("Paris."))
    vote = Vote(body_hash(encode(HOLD)), 3, hashlib.sha256(ALICE.node).digest())
    certificate = Certificate(
        encode(HOLD), ALICE.sign(FEDERATION, encode(HOLD)), (WitnessSignature(0, BOB.sign(FEDERATION, encode(vote))),)
    )
    genesis = Genesis("example", NOW, (BOB.node,), 0, (ALICE.node,), 9_000 * params.MICRO, params.EPOCH_LENGTH)
    pay = pay_for(point)
    return [
        ("grant", Grant(ALICE.node, 0, hashlib.sha256(ALICE.node).digest(), BOB.node, 9_000 * params.MICRO, 0)),
        ("hold", HOLD),
        ("voucher", voucher_for(point)),
        ("close", Close(CHANNEL, pay.voucher, pay.signature)),
        ("vote", vote),
        ("certificate", certificate),
        ("genesis", genesis),
        ("refund", Refund(BOB.node, CHANNEL, NOW)),
        ("envelope", Envelope(ALICE.node, FEDERATION, b"\x91\x27", ALICE.sign(FEDERATION, b"\x91\x27"))),
        ("offer: one model", OFFER),
        ("offer: two models, no address, an odd feature", Offer(BOB.node, 1, 0, 1, (), (SMALL, LARGE), (1,))),
        ("offer: a realm of an operator's own, on a server that does not say", offer_like(models=(SPOKEN,))),
        ("offer: a node that only asks", Offer(BOB.node, params.MAX_INTEGER, NOW, NOW + 1, (), (), ())),
        ("chat request", CHAT),
        ("chat request: all at their lowest", ChatRequest((Turn("user", ""),), 0, 0, 0, 0, 100, 0, 0, 0, ())),
        ("vision request", SEEN),
        ("vision request: all at their lowest", VisionRequest(
            (Turn("user", ""),), 0, 0, 0, 0, 100, 0, 0, 0, (), (), (Media("image", 1, 0),)
        )),
        ("vision request: the most media of the most bytes", replace(
            SEEN, media=(Media("image", params.MAX_INPUT_BYTES, params.MAX_MESSAGES - 1),) * params.MAX_INPUTS
        )),
        ("chat request: with tools", TOOLED),
        ("chat request: a call and its result", ASKED_OF),
        ("chat request: every wish at its highest", replace(CHAT, wishes=(Wishes(
            (Tool("x" * 64, "é", "{}"),), 1, 1, (Call(1_023, 1_023, "x" * 64, "{}"),), '{"type":"object"}', 1, 20),))),
        ("vision request: with a schema", replace(SEEN, wishes=SHAPED.wishes)),
        ("called", Called(3, 9, "get_weather", '{"city":')),
        ("called: more of it", Called(4, 12, "", '"Paris"}')),
        ("likely chunk", LikelyChunk(0, 2, "Paris.", (
            Chosen(b"Paris", 10_050, (Likelihood(b"Paris", 10_050), Likelihood(b" Lyon", 4_610_000))),
            Chosen(b".", 0, ())))),
        ("likely chunk: half a character, never chosen before", LikelyChunk(7, 9, "", (
            Chosen(b"\xc3", params.MAX_INTEGER, ()),))),
        ("imagine request", DRAWN),
        ("imagine request: all is left to the worker", ImagineRequest("x", "", 0, 0, 0, 0, 0, 0)),
        ("imagine request: all at their highest", ImagineRequest(
            "x", "y" * params.MAX_PROMPT_BYTES, 2_048, 2_048, 150, 50_000, params.MAX_INTEGER, 1
        )),
        ("transcribe request", HEARD),
        ("transcribe request: into English", TranscribeRequest((Media("audio", 1, 0),), "", "Größe", 1_000, 0, 1)),
        ("speak request", SAID),
        ("speak request: slow", SpeakRequest("x", "af_heart", 250)),
        ("input", Input(0, b"\x89PNG")),
        ("input: 256 bytes take the longer form", Input(1, bytes(256))),
        ("output: of a picture", Output(0, 0, "image/png", b"\x89PNG")),
        ("output: sound", Output(3, 1, "audio/pcm;rate=24000", bytes(range(64)))),
        ("progress", Progress(3, 24, b"")),
        ("progress: a preview, and no end in sight", Progress(1, 0, b"\xff\xd8\xff")),
        ("query: paid", QUERY),
        ("query: free, continued", Query(
            QUERY_ID, RealmId("$CHAT"), "", 1, ChannelId(NO_HASH), encode(CHAT), "The capital 🇫🇷 is", 5, (3, 65_535)
        )),
        ("accept: now", Accept(0, 0)),
        ("accept: third in the queue", Accept(3, 4_500)),
        ("refuse", Refuse(6, "busy", 1_500)),
        ("begin", Begin(20, "smollm2-135m", 64)),
        ("chunk", Chunk(0, 1, "Paris")),
        ("chunk: heartbeat", Chunk(12, 64, "")),
        ("chunk: text of 32 bytes takes the longer form", Chunk(1, 9, "a" * 32)),
        ("chunk: text of 256 bytes", Chunk(1, 9, "é" * 128)),
        ("pay", pay),
        ("cancel", Cancel()),
        ("done", Done("stop", 20, 2, sha("Paris."))),
        ("error", Error(15, "the engine's process ended", 0)),
        ("settled", Settled(26)),
        ("request vote", RequestVote(encode(HOLD), ALICE.sign(FEDERATION, encode(HOLD)))),
        ("voted", Voted(30, BOB.sign(FEDERATION, encode(vote)))),
        ("store certificate", StoreCertificate(encode(certificate))),
        ("stored", Stored(127, 0)),
        ("stored: 128 takes a byte more", Stored(128, 0)),
        ("stored: 256", Stored(256, 0)),
        ("stored: 65,536", Stored(65_536, 0)),
        ("stored: 2^32", Stored(2**32, 0)),
        ("stored: 2^53-1", Stored(params.MAX_INTEGER, 0)),
        ("rejected", Rejected(35, "another order holds this account's number already")),
        ("fetch certificates", FetchCertificates(0, 256)),
        ("certificates", Certificates(5, 6, (encode(certificate),))),
        ("certificates: none", Certificates(6, 6, ())),
        ("fetch genesis", FetchGenesis()),
        ("genesis answer", GenesisAnswer(encode(genesis))),
        *ledger_samples(genesis, certificate),
    ]  # fmt: skip


def ledger_samples(genesis: Genesis, certificate: Certificate) -> list[tuple[str, Message]]:
    """Accounts of one owner, the end of an epoch, evidence, and what is asked about them."""
    head = hashlib.sha256(BOB.node).digest()
    consent = ALICE.sign(FEDERATION, encode(Consent(BOB.node, ALICE.node)))
    other = encode(replace(HOLD, amount=1))
    equivocation = Equivocation(
        encode(HOLD), ALICE.sign(FEDERATION, encode(HOLD)), other, ALICE.sign(FEDERATION, other)
    )
    vote = certificate.votes[0].signature
    snapshot = Snapshot(0, FEDERATION, 1, sha("a root"))
    signed = BOB.sign(FEDERATION, encode(snapshot))
    checkpoint = Checkpoint(
        1, FEDERATION, NOW, 1, snapshot.root, sha("a state"), (Source(0, 1, snapshot.root, signed),)
    )
    identity = body_hash(encode(checkpoint))
    promise = BOB.sign(FEDERATION, encode(Promise(0, 0, 0, NO_HASH)))
    prepares, commits = (
        (WitnessSignature(0, BOB.sign(FEDERATION, encode(Ballot(phase, 0, 0, identity)))),) for phase in (1, 2)
    )
    decision = Decision(encode(checkpoint), 0, commits)
    account = AccountState(BOB.node, 0, 1, head, ALICE.node, 0, (), ())
    channel = ChannelState(CHANNEL, HOLD.payer, HOLD.payee, HOLD.amount, HOLD.price_in, HOLD.price_out, HOLD.expiry_ms)
    balances = {
        "": 9_000 * params.MICRO,
        ": -1": -1,
        ": -32": -32,
        ": -33 takes a byte more": -33,
        ": -128": -128,
        ": -129": -129,
        ": -32,768": -32_768,
        ": -32,769": -32_769,
        ": -2^31": -(2**31),
        ": below -2^31": -(2**31) - 1,
        ": -(2^53-1)": -params.MAX_INTEGER,
    }
    return [
        ("attach", Attach(BOB.node, 0, head, ALICE.node, consent, 0)),
        ("move", messages.Move(BOB.node, 1, head, ALICE.node, 1, 0)),
        ("recovery", Recovery(BOB.node, 2, head, ALICE.node, 1)),
        ("rotate", Rotate(BOB.node, 3, head, ALICE.node, consent, 1)),
        ("snapshot", snapshot),
        ("checkpoint", checkpoint),
        ("decision", decision),
        ("fetch head", FetchHead(ALICE.node)),
        ("head: nothing voted for", Head(0, 0, hashlib.sha256(ALICE.node).digest(), b"", b"")),
        ("head", Head(0, 3, HOLD.previous, certificate.body, certificate.signature)),
        ("fetch ids", FetchIds(0, 8_192)),
        ("ids", Ids(5, 6, (body_hash(encode(HOLD)),))),
        ("fetch records", FetchRecords((body_hash(encode(HOLD)), identity))),
        ("records", Records((encode(certificate), encode(decision)))),
        ("fetch epoch", FetchEpoch(0, 0, 1)),
        ("consent", Consent(BOB.node, ALICE.node)),
        ("equivocation", equivocation),
        ("double vote", DoubleVote(0, encode(HOLD), vote, other, vote)),
        ("promise: nothing prepared", Promise(0, 0, 0, NO_HASH)),
        ("promise", Promise(0, 4, 1, identity)),
        ("ballot: prepare", Ballot(1, 0, 0, identity)),
        ("ballot: commit", Ballot(2, 0, 0, identity)),
        *((f"account state{name}", replace(account, balance=balance)) for name, balance in balances.items()),
        ("account state: rotated twice, a recovery key", replace(
            account, keys=(KeySince(1, ALICE.node), KeySince(3, BOB.node)), recoveries=(KeySince(2, ALICE.node),)
        )),
        ("channel state", channel),
        ("join", Join(0, 0)),
        ("joined: nothing prepared", Joined(0, 1, snapshot.root, signed, promise, 0, b"", ())),
        ("joined", Joined(0, 1, snapshot.root, signed, promise, 1, encode(checkpoint), prepares)),
        ("propose", Propose(0, encode(checkpoint), (Promised(0, 0, NO_HASH, promise),), ())),
        ("propose: what was prepared", Propose(4, encode(checkpoint), (Promised(0, 1, identity, promise),), prepares)),
        ("commit", Commit(0, encode(checkpoint), prepares)),
        ("balloted", Balloted(0, prepares[0].signature)),
        ("fetch snapshot", FetchSnapshot(3, 0, 8_192)),
        ("fetch state", FetchState(0, 256)),
        ("state leaves", StateLeaves(encode(decision), 1, 0, 2, (encode(account), encode(channel)))),
        ("state leaves: the first epoch", StateLeaves(b"", 0, 0, 0, ())),
        ("fetch evidence", FetchEvidence(0, 64)),
        ("evidence", Evidence(1, (encode(equivocation),))),
        ("fetch standing", FetchStanding()),
        ("standing", Standing(3, 1, 0, 0)),
        ("standing: bounds", Standing(2**53 - 1, 1, 1, 1)),
        ("ledger proof: an account", LedgerProof(
            encode(genesis), encode(decision), encode(account), b"", 1, 2, (sha("a neighbour"),)
        )),
        ("ledger proof: an order that no checkpoint holds", LedgerProof(
            encode(genesis), b"", encode(certificate), b"", 0, 0, ()
        )),
    ]  # fmt: skip


def encodings() -> str:
    """encoding.json"""
    named = samples()
    missing = {cls.__name__ for cls in REGISTRY.values()} - {type(message).__name__ for _, message in named}
    if missing:
        raise SystemExit(f"no sample of {sorted(missing)}")
    return vector_file(
        "encoding",
        "Every message, and the edges of the integer, string and array forms. Signatures are real, ids are not.",
        (case("encoding", name, {"message": to_json(message)}) for name, message in named),
    )


# Accept is [34, queue_position, wait_ms]; Settled is [42, cumulative]; Chunk is [37, index, units_out, text].
GRANT_FIELDS = "c420" + "11" * 32 + "00 c420" + "22" * 32 + "c420" + "33" * 32 + "01 00"
STATE_FIELDS, STATE_REST = "c420" + "11" * 32, "00" + ("c420" + "22" * 32) * 2 + "00 90 90"
MALFORMED = [
    ("nothing", ""),
    ("an integer", "22"),
    ("an empty array", "90"),
    ("an empty map", "80"),
    ("a map", "81222a"),
    ("nil", "c0"),
    ("no number", "92a12200"),
    ("number 0", "9100"),
    ("number 90", "915a"),
    ("number 127", "917f"),
    ("number 128", "91cc80"),
    ("the number is true", "92c300"),
    ("a grant whose number is true, not 1", "97 c3" + GRANT_FIELDS),
    ("a grant whose number is 1.0, not 1",
     "97 cb3ff0000000000000" + GRANT_FIELDS),
    ("the number is 34.0", "93cb40410000000000000000"),
    ("a field less", "9222 00"),
    ("a field more", "9422 00 00 00"),
    ("a byte behind", "9322 00 00 00"),
    ("two messages", "9322 00 00 9322 00 00"),
    ("cut short", "9322 00"),
    ("cut inside a string", "94250001a2 61"),
    ("the number in two bytes", "93cc2200 00"),
    ("5 in two bytes", "9322 00 cc05"),
    ("5 in three bytes", "9322 00 cd0005"),
    ("5 in five bytes", "9322 00 ce00000005"),
    ("5 in nine bytes", "9322 00 cf0000000000000005"),
    ("5 as a signed byte", "9322 00 d005"),
    ("300 as a signed integer", "9322 00 d1012c"),
    ("-1", "9322 00 ff"),
    ("-1 in nine bytes", "9322 00 d3ffffffffffffffff"),
    ("2^53", "922a cf0020000000000000"),
    ("2^64-1", "922a cfffffffffffffffff"),
    ("1.0", "9322 00 cb3ff0000000000000"),
    ("1.0 in single precision", "9322 00 ca3f800000"),
    ("not a number", "9322 00 cb7ff8000000000000"),
    ("nil as a field", "9322 00 c0"),
    ("false as a field", "9322 00 c2"),
    ("true as a field", "9322 00 c3"),
    ("an empty map as a field", "9322 00 80"),
    ("a map as a field", "9322 00 810001"),
    ("a map with a key twice", "9322 00 8200010002"),
    ("an extension", "9322 00 d40101"),
    ("an empty extension", "9322 00 c70001"),
    ("a timestamp", "9322 00 d6ff00000000"),
    ("the byte that MessagePack never uses", "9322 00 c1"),
    ("queue_position above its bound", "9322 ce00010000 00"),
    ("a string for an integer", "9322 00 a130"),
    ("bin for a string", "9425 00 01 c40161"),
    ("a string for bin", "9238 a161"),
    ("a string in the long form", "9425 00 01 d90161"),
    ("a string in a longer form", "9425 00 01 da000161"),
    ("bin in a longer form", "9238 c50001aa"),
    ("an array in the long form", "dc000322 00 00"),
    ("an array in the longest form", "dd0000000322 00 00"),
    ("an inner array in the long form", "9436 00 00 dc0000"),
    ("an array that claims 2^32-1 elements", "ddffffffff"),
    ("a string that claims 2^32-1 bytes", "9425 00 01 dbffffffff"),
    ("UTF-8 cut in the middle of a character", "9425 00 01 a1c3"),
    ("a byte that UTF-8 does not have", "9425 00 01 a1ff"),
    ("a long form of a character in UTF-8", "9425 00 01 a2c0af"),
    ("a lone surrogate", "9425 00 01 a3eda080"),
    ("a pair of surrogates", "9425 00 01 a6eda081edb080"),
    ("a character above U+10FFFF", "9425 00 01 a4f4908080"),
    ("an array for an integer", "9322 00 90"),
    ("an integer for an array", "9436 00 00 00"),
    ("eight arrays deep, no message", "91" * 7 + "90"),
    ("nine arrays deep", "91" * 8 + "90"),
    ("a thousand arrays deep", "91" * 999 + "90"),
    ("a key of 31 bytes", "94 08 c41f" + "11" * 31 + "c420" + "0c" * 32 + "00"),
    ("a key of 33 bytes", "94 08 c421" + "11" * 33 + "c420" + "0c" * 32 + "00"),
    ("a balance below -(2^53-1)", "99 45" + STATE_FIELDS + "d3ffe0000000000000" + STATE_REST),
    ("a balance of -1 in two bytes", "99 45" + STATE_FIELDS + "d0ff" + STATE_REST),
    ("a balance of -33 in three bytes", "99 45" + STATE_FIELDS + "d1ffdf" + STATE_REST),
    ("a balance of 5 as a signed byte", "99 45" + STATE_FIELDS + "d005" + STATE_REST),
    ("a next number of -1", "99 45" + STATE_FIELDS + "00 ff" + STATE_REST[2:]),
    ("a ballot of phase 0", "95 44 00 00 00 c420" + "11" * 32),
    ("a ballot of phase 3", "95 44 03 00 00 c420" + "11" * 32),
    ("an input without bytes", "93 2b 00 c400"),
    ("an output without bytes", "95 2c 00 00 a9" + b"image/png".hex() + "c400"),
    ("an output without a media type", "95 2c 00 00 a0 c40101"),
    ("progress: a preview as a string", "94 2d 00 00 a0"),
    ("a picture without bytes in a request", encode(HEARD).hex().replace("cd03c0", "00")),
    ("a request to transcribe nothing", "97 56 90 a0 a0 00 00 00"),
    ("a request to transcribe two sounds", "97 56 92 93a56175646966 0100" + "93a5617564696f0100" + "a0a0000000"),
    ("a picture of 2,049 pixels", encode(replace(DRAWN, width=2_048)).hex().replace("cd0800", "cd0801")),
    ("more features than 32", "98 11 c420" + "11" * 32 + "00 00 01 90 90 dc0021" + "01" * 33),
]  # fmt: skip


def decodings() -> str:
    """decoding.json"""
    frame_limit = params.MAX_FRAME_BYTES
    good = encode(Refuse(6, "busy", 1_500))
    too_long = encode(Chunk(0, 0, "a" * 200))

    def given(hexadecimal: str, limit: int = frame_limit) -> dict[str, Json]:
        return {"hex": hexadecimal.replace(" ", ""), "limit": limit}

    return vector_file(
        "decoding",
        "Bytes that are one canonical message, and bytes that are not.",
        [
            case("decoding", "a request to transcribe", given(encode(HEARD).hex())),
            case("decoding", "a picture of 2,048 pixels", given(encode(replace(DRAWN, width=2_048)).hex())),
            case("decoding", "refuse", given(good.hex())),
            case("decoding", "exactly at the limit", given(good.hex(), len(good))),
            case("decoding", "cancel: no fields", given("9127")),
            case(
                "decoding",
                "a grant",
                given("97 01" + GRANT_FIELDS),
            ),
            case("decoding", "a string of four-byte characters", given(encode(Chunk(0, 2, "🦙🦙")).hex())),
            case("decoding", "U+0000 and U+FFFF are characters", given(encode(Chunk(0, 2, "\0\uffff")).hex())),
            *(failing("decoding", name, "Malformed", given(hexadecimal)) for name, hexadecimal in MALFORMED),
            failing("decoding", "a byte above the limit", "Malformed", given(good.hex(), len(good) - 1)),
            failing("decoding", "much above the limit", "Malformed", given(too_long.hex(), 100)),
        ],
    )


# --- framing -----------------------------------------------------------------------------------------


def framings() -> str:
    """framing.json"""
    one, two = frame(encode(Cancel())), frame(encode(Accept(0, 0)))
    long = frame(encode(Chunk(0, 3, "b" * 300)))
    every = b"".join([one, two, long])

    def given(pieces: Iterable[bytes], limit: int = 1_024) -> dict[str, Json]:
        return {"limit": limit, "pieces": [piece.hex() for piece in pieces]}

    def bytewise(data: bytes) -> list[bytes]:
        return [data[at : at + 1] for at in range(len(data))]

    return vector_file(
        "framing",
        "What arrives on a stream, in pieces, and the frames in it.",
        [
            case("framing", "nothing", given([])),
            case("framing", "one frame", given([one])),
            case("framing", "an empty frame", given([b"\0"])),
            case("framing", "three frames in one piece", given([every])),
            case("framing", "three frames byte by byte", given(bytewise(every))),
            case("framing", "a length of two bytes, cut between them", given([long[:1], long[1:]])),
            case("framing", "a frame and a half", given([one + two[:2]])),
            case("framing", "half a length", given([b"\x80"])),
            case("framing", "exactly at the limit", given([frame(bytes(16))], 16)),
            failing("framing", "a byte above the limit", "Malformed", given([frame(bytes(17))], 16)),
            failing("framing", "above the limit, nothing of it sent yet", "Malformed", given([b"\x81\x08"])),
            failing("framing", "good, then above the limit", "Malformed", given([one + b"\x81\x08"])),
            failing("framing", "0 in two bytes", "Malformed", given([b"\x80\x00"])),
            failing("framing", "2 in two bytes", "Malformed", given([b"\x82\x00\x91\x27"])),
            failing("framing", "2 in three bytes", "Malformed", given([b"\x82\x80\x00"])),
            failing("framing", "2 in four bytes, byte by byte", "Malformed", given(bytewise(b"\x82\x80\x80\x00"))),
            failing("framing", "four bytes and no end", "Malformed", given([b"\xff\xff\xff\xff"])),
            failing("framing", "five bytes", "Malformed", given([b"\x80\x80\x80\x80\x01"])),
            failing("framing", "2^28-1", "Malformed", given([b"\xff\xff\xff\x7f"])),
        ],
    )


# --- signatures --------------------------------------------------------------------------------------

BODY = encode(HOLD)


def signings() -> str:
    """signing.json"""

    def given(seed: bytes, federation: bytes, body: bytes) -> dict[str, Json]:
        return {"seed": seed.hex(), "federation": federation.hex(), "body": body.hex()}

    return vector_file(
        "signing",
        "What a signature covers: the domain, the number, the federation, the body.",
        [
            case("signing", "cancel", given(SEED_A, FEDERATION, encode(Cancel()))),
            case("signing", "hold", given(SEED_A, FEDERATION, BODY)),
            case("signing", "the same hold in another federation", given(SEED_A, OTHER_FEDERATION, BODY)),
            case("signing", "the same hold by another key", given(SEED_B, FEDERATION, BODY)),
            case("signing", "offer", given(SEED_A, FEDERATION, encode(OFFER))),
            failing("signing", "a body of one byte", "Malformed", given(SEED_A, FEDERATION, b"\x91")),
            failing("signing", "a body that is no array", "Malformed", given(SEED_A, FEDERATION, b"\xa1\x27")),
            failing("signing", "a number in two bytes", "Malformed", given(SEED_A, FEDERATION, b"\x91\xcc")),
        ],
    )  # fmt: skip


def signature_given(
    key: bytes, signature: bytes, federation: bytes = FEDERATION, body: bytes = BODY
) -> dict[str, Json]:
    """The input of a `verifying` case."""
    return {"key": key.hex(), "federation": federation.hex(), "body": body.hex(), "signature": signature.hex()}


def flipped(data: bytes, bit: int) -> bytes:
    """`data` with one bit changed."""
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def verifyings() -> str:
    """verifying.json"""
    good = ALICE.sign(FEDERATION, BODY)
    number_changed = bytes([BODY[0], BODY[1] + 1]) + BODY[2:]
    bad = [
        ("another federation", signature_given(ALICE.node, good, OTHER_FEDERATION)),
        ("another message number in front", signature_given(ALICE.node, edwards.sign_raw(
            SEED_A, params.SIGNING_DOMAIN + b"\x01" + FEDERATION + BODY))),
        ("another number in the body", signature_given(ALICE.node, good, FEDERATION, number_changed)),
        ("the body alone was signed", signature_given(ALICE.node, edwards.sign_raw(SEED_A, BODY))),
        ("another key", signature_given(BOB.node, good)),
        ("a bit of the body", signature_given(ALICE.node, good, FEDERATION, flipped(BODY, 8 * len(BODY) - 1))),
        *((f"bit {bit} of the signature", signature_given(ALICE.node, flipped(good, bit)))
          for bit in (0, 255, 256, 507, 508, 511)),
        ("all zero", signature_given(ALICE.node, bytes(64))),
        ("63 bytes", signature_given(ALICE.node, good[:-1])),
        ("65 bytes", signature_given(ALICE.node, good + b"\0")),
        ("no bytes", signature_given(ALICE.node, b"")),
        ("a key of 31 bytes", signature_given(ALICE.node[:-1], good)),
        ("a key that is no point of the curve", signature_given(edwards.not_a_point(), good)),
        ("S + L: not reduced", signature_given(ALICE.node, good[:32] + edwards.plus_order(good[32:]))),
        ("R with a component of small order, which a cofactored check accepts",
         signature_given(ALICE.node, edwards.sign_with_torsion(SEED_A, signed_bytes(FEDERATION, BODY)))),
        ("R the neutral element", signature_given(
            ALICE.node, edwards.sign_with_neutral_r(SEED_A, signed_bytes(FEDERATION, BODY)))),
        ("a key with a component of small order", signature_given(*edwards.mixed_key_signature(
            SEED_A, lambda key: signed_bytes(FEDERATION, BODY)))),
    ]  # fmt: skip
    small = edwards.small_order_encodings()
    forged = [
        (f"small-order key {index} of {len(small)}, forged without a private key",
         signature_given(key, edwards.forge(key, signed_bytes(FEDERATION, BODY))))
        for index, key in enumerate(small, start=1)
    ]  # fmt: skip
    return vector_file(
        "verifying",
        "Signatures that are valid, and all kinds that are not. The 14 small-order keys come with forgeries.",
        [
            case("verifying", "good", signature_given(ALICE.node, good)),
            case("verifying", "good, of an empty message", signature_given(
                BOB.node, BOB.sign(OTHER_FEDERATION, b"\x91\x27"), OTHER_FEDERATION, b"\x91\x27")),
            *(failing("verifying", name, "BadSignature", given) for name, given in bad),
            *(failing("verifying", name, "BadSignature", given) for name, given in forged),
        ],
    )  # fmt: skip


def envelopes() -> str:
    """envelope.json"""
    good = seal(ALICE, FEDERATION, encode(OFFER))
    signature = ALICE.sign(FEDERATION, encode(OFFER))

    def given(data: bytes, limit: int = params.MAX_OFFER_BYTES) -> dict[str, Json]:
        return {"hex": data.hex(), "limit": limit}

    def made(signer: bytes, federation: bytes, body: bytes, by: bytes) -> dict[str, Json]:
        return given(encode(Envelope(NodeId(signer), FederationId(federation), body, by)))

    neutral = edwards.small_order_encodings()[2]
    body = encode(OFFER)
    return vector_file(
        "envelope",
        "Envelopes whose signature holds, and others.",
        [
            case("envelope", "good", given(good)),
            case("envelope", "good, exactly at the limit", given(good, len(good))),
            failing("envelope", "a byte above the limit", "Malformed", given(good, len(good) - 1)),
            failing("envelope", "a byte behind", "Malformed", given(good + b"\0")),
            failing("envelope", "another message", "Malformed", given(encode(Cancel()))),
            failing("envelope", "the bare offer", "Malformed", given(body)),
            failing("envelope", "another signer named", "BadSignature", made(BOB.node, FEDERATION, body, signature)),
            failing("envelope", "another federation", "BadSignature", made(
                ALICE.node, OTHER_FEDERATION, body, signature)),
            failing("envelope", "a small-order signer", "BadSignature", made(
                neutral, FEDERATION, body, edwards.forge(neutral, signed_bytes(FEDERATION, body)))),
            failing("envelope", "a body that is no message", "Malformed", made(
                ALICE.node, FEDERATION, b"\xa1\x27", signature)),
        ],
    )  # fmt: skip


# --- names -------------------------------------------------------------------------------------------


def peer_ids() -> str:
    """peer_id.json"""
    good = peer_id(ALICE.node)
    return vector_file(
        "peer_id",
        "The libp2p spelling of a node id.",
        [
            case("peer_id", "seed 01 x 32", {"peer_id": good}),
            case("peer_id", "seed 02 x 32", {"peer_id": peer_id(BOB.node)}),
            failing("peer_id", "empty", "Malformed", {"peer_id": ""}),
            failing("peer_id", "a character less", "Malformed", {"peer_id": good[:-1]}),
            failing("peer_id", "a character more", "Malformed", {"peer_id": good + "1"}),
            failing("peer_id", "a 1 in front: a zero byte more", "Malformed", {"peer_id": "1" + good}),
            failing("peer_id", "a character that base58 does not have", "Malformed", {"peer_id": good[:-1] + "0"}),
            failing("peer_id", "an RSA peer id", "Malformed", {
                "peer_id": "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"}),
            failing("peer_id", "a CID", "Malformed", {
                "peer_id": "bafzaajaiaejcbzdibmxyzdjbbehgvizh6g5tikvy47mshdy6gwbruvgwvd24seje"}),
            failing("peer_id", "the key in hexadecimal", "Malformed", {"peer_id": ALICE.node.hex()}),
            failing("peer_id", "very long", "Malformed", {"peer_id": "1" * 129}),
        ],
    )  # fmt: skip


def realms() -> str:
    """realm.json"""
    good = ["$CHAT", "$VISION", "$A", "$GPT_2", "$4K", "$" + "A" * 127]
    bad = ["", "$", "CHAT", "$chat", "$Chat", "$CHAT ", "$CH-AT", "$$CHAT", "$ÄRGER", "$٣", "$CHAT\n", "$" + "A" * 128]
    return vector_file(
        "realm",
        "Names of realms.",
        [
            *(case("realm", f"good: {text[:20]!r}", {"realm": text}) for text in good),
            *(failing("realm", f"bad: {text[:20]!r}", "Malformed", {"realm": text}) for text in bad),
        ],
    )


# --- offers ------------------------------------------------------------------------------------------


def offer_like(**changes: Json) -> Offer:
    """The sample offer with other values."""
    values = {name: getattr(OFFER, name) for name in OFFER.__dataclass_fields__}
    return Offer(**{**values, **changes})


def sealed(offer: Offer, signer: Signer = ALICE, federation: FederationId = FEDERATION) -> bytes:
    """The offer's envelope, whoever signs it."""
    return seal(signer, federation, encode(offer))


def offers() -> str:
    """offer.json"""
    known = sealed(OFFER)
    second = params.OFFER_MIN_INTERVAL
    later = offer_like(sequence=NOW + second, issued_ms=NOW + second, expires_ms=NOW + second + params.OFFER_LIFETIME)
    hurried = offer_like(sequence=NOW + 1, issued_ms=NOW + second - 1, expires_ms=NOW + params.OFFER_LIFETIME)
    skewed = offer_like(issued_ms=NOW + params.CLOCK_SKEW, expires_ms=NOW + params.CLOCK_SKEW + 1)
    too_new = offer_like(issued_ms=NOW + params.CLOCK_SKEW + 1, expires_ms=NOW + params.CLOCK_SKEW + 2)
    longest = offer_like(expires_ms=NOW + params.MAX_OFFER_LIFETIME)
    too_long = offer_like(expires_ms=NOW + params.MAX_OFFER_LIFETIME + 1)
    twice = offer_like(models=(SMALL, SMALL))
    bad_realm = offer_like(models=(ModelOffer(**{**vars_of(SMALL), "realm": RealmId("$chat")}),))
    most, realm = params.MAX_INTEGER, RealmId("$" + "A" * 127)
    huge_device = Device("k" * 16, "n" * 128, most, 1_000, most, "d" * 32)
    huge_model = ModelOffer(
        realm, "", NO_HASH, (127,) * 8, 16_000_000, 16_000_000, huge_device, 65_535, 65_535, 65_535, most, most, 4_096,
        1_000_000, 1,
    )  # fmt: skip
    huge = Offer(
        ALICE.node, most, NOW, NOW + params.OFFER_LIFETIME, tuple(f"/dns4/{index}{'x' * 249}" for index in range(8)),
        tuple(replace(huge_model, model=f"{index:02}" * 64) for index in range(16)), (65_535,) * 32,
    )  # fmt: skip
    flipped_signature = flipped(known, 8 * len(known) - 1)

    def given(data: bytes, known_offer: bytes = b"", now_ms: int = NOW) -> dict[str, Json]:
        return {"sealed": data.hex(), "known": known_offer.hex(), "now_ms": now_ms}

    return vector_file(
        "offer",
        "What a node does with a gossiped offer: rules O1 to O7.",
        [
            case("offer", "O7: the first of its node", given(known)),
            case("offer", "O7: another federation's", given(sealed(OFFER, ALICE, OTHER_FEDERATION))),
            case("offer", "O7: newer by OFFER_MIN_INTERVAL", given(sealed(later), known)),
            case("offer", "O7: issued exactly CLOCK_SKEW ahead", given(sealed(skewed))),
            case("offer", "O7: expires in 1 ms", given(known, b"", NOW + params.OFFER_LIFETIME - 1)),
            case("offer", "O7: the longest lifetime", given(sealed(longest))),
            case("offer", "O7: no models", given(sealed(offer_like(models=())))),
            case("offer", "O7: everything at its longest", given(sealed(huge))),
            case("offer", "O7: other realms, a request that nobody knows", given(sealed(
                offer_like(models=(LARGE, SPOKEN, replace(SPOKEN, model="new", requests=(95, 87))))))),
            case("offer", "O1: longer than MAX_OFFER_BYTES", given(known + bytes(params.MAX_OFFER_BYTES))),
            case("offer", "O2: no bytes", given(b"")),
            case("offer", "O2: a byte behind", given(known + b"\0")),
            case("offer", "O2: a bit of the signature", given(flipped_signature)),
            case("offer", "O2: signed by another node", given(sealed(OFFER, BOB))),
            case("offer", "O2: another message in the envelope", given(seal(ALICE, FEDERATION, encode(Cancel())))),
            case("offer", "O2: lives too long", given(sealed(too_long))),
            case("offer", "O2: ends when it begins", given(sealed(offer_like(expires_ms=NOW)))),
            case("offer", "O2: ends before it begins", given(sealed(offer_like(expires_ms=NOW - 1)))),
            case("offer", "O2: a model twice in a realm", given(sealed(twice))),
            case("offer", "O2: an illegal realm", given(sealed(bad_realm))),
            case("offer", "O2 comes before O4: forged and expired", given(flipped_signature, b"", NOW + params.DAYS)),
            case("offer", "O3: issued CLOCK_SKEW and 1 ms ahead", given(sealed(too_new))),
            case("offer", "O4: expires now", given(known, b"", NOW + params.OFFER_LIFETIME)),
            case("offer", "O4: long ago", given(known, b"", NOW + params.DAYS)),
            case("offer", "O5: the same again", given(known, known)),
            case("offer", "O5: an earlier one", given(known, sealed(later))),
            case("offer", "O6: newer by less than OFFER_MIN_INTERVAL", given(sealed(hurried), known)),
        ],
    )  # fmt: skip


def records() -> str:
    """record.json"""
    key = f"/mtor/{peer_id(ALICE.node)}"

    def given(record_key: str, value: bytes) -> dict[str, Json]:
        return {"key": record_key, "value": value.hex()}

    good = sealed(OFFER)
    return vector_file(
        "record",
        "What a DHT node is asked to store. It looks at no clock.",
        [
            case("record", "good", given(key, good)),
            case("record", "expired long ago", given(key, sealed(offer_like(sequence=1, issued_ms=1, expires_ms=2)))),
            case("record", "under another node's key", given(f"/mtor/{peer_id(BOB.node)}", good)),
            case("record", "under another namespace", given(f"/other/{peer_id(ALICE.node)}", good)),
            case("record", "under no peer id", given("/mtor/alice", good)),
            case("record", "under a realm", given("/mtor/realm/$CHAT", good)),
            case("record", "a bit of the signature", given(key, flipped(good, 8 * len(good) - 1))),
            case("record", "too long", given(key, good + bytes(params.MAX_OFFER_BYTES))),
            case("record", "no bytes", given(key, b"")),
        ],
    )


def newest_records() -> str:
    """newest_record.json"""
    key = f"/mtor/{peer_id(ALICE.node)}"
    old, new = sealed(offer_like(sequence=5)), sealed(offer_like(sequence=6))
    forged = sealed(offer_like(sequence=7), BOB)

    def given(*values: bytes) -> dict[str, Json]:
        return {"key": key, "values": [value.hex() for value in values]}

    return vector_file(
        "newest_record",
        "Which of several DHT values to keep: the valid one with the highest sequence.",
        [
            case("newest_record", "one", given(old)),
            case("newest_record", "the newer comes second", given(old, new)),
            case("newest_record", "the newer comes first", given(new, old)),
            case("newest_record", "a forged one with a higher sequence", given(old, forged, new)),
            case("newest_record", "nothing valid: the first", given(forged, b"")),
        ],
    )


# --- the query exchange ------------------------------------------------------------------------------

Move = tuple[str, Message]
R, W = "requester", "worker"
HELLO: list[Move] = [
    (R, QUERY),
    (W, Accept(2, 3_000)),
    (W, Accept(0, 0)),
    (W, Begin(20, "smollm2-135m", 64)),
    (R, pay_for(Delivered(20, 0, sha("")))),
    (W, Chunk(0, 1, "Paris")),
    (W, Chunk(1, 2, ".")),
    (W, Chunk(2, 2, "")),
]
LAST: list[Move] = [(W, Done("stop", 20, 2, sha("Paris.")))]
PAID: list[Move] = [(R, pay_for(Delivered(20, 2, sha("Paris."))))]
SETTLED: list[Move] = [(W, Settled(26))]
ASKED, ACCEPTED, BEGUN = HELLO[:1], HELLO[:3], HELLO[:4]


def exchange_given(view: str, moves: list[Move]) -> dict[str, Json]:
    """The input of an `exchange` case."""
    return {"view": view, "moves": [{"by": by, "message": to_json(message)} for by, message in moves]}


def asking(request: Message, **changes: Json) -> Move:
    """A query with another payload."""
    return R, replace(QUERY, payload=encode(request), **changes)


ACCEPT: Move = (W, Accept(0, 0))
PNG, PCM, WAV = "image/png", "audio/pcm;rate=8000", bytes(960)
SHOWN = [(R, Input(0, bytes(64))), (R, Input(1, bytes(36)))]
SEEING: list[Move] = [asking(SEEN), ACCEPT, *SHOWN]
DRAWING: list[Move] = [asking(DRAWN), ACCEPT, (W, Begin(0, "emoji-64", 64)), (R, pay_for(Delivered(0, 0, sha(""))))]
HEARING: list[Move] = [asking(HEARD), ACCEPT, (R, Input(0, WAV))]
SAYING: list[Move] = [asking(SAID), ACCEPT, (W, Begin(22, "kokoro-82m", 64)), (R, pay_for(Delivered(22, 0, sha(""))))]
PICTURE = [(W, Output(0, 0, PNG, b"\x89PNG")), (W, Output(1, 24, PNG, b"IEND"))]


def media_exchanges() -> tuple[list[tuple[str, str, list[Move]]], list[tuple[str, str, list[Move]]]]:
    """Legal and illegal conversations with pictures and sounds."""
    cancel, error = (R, Cancel()), (W, Error(15, "crashed", 0))
    whole = (W, Done("stop", 0, 24, hashlib.sha256(b"\x89PNGIEND").digest()))
    paid = (R, pay_for(Delivered(0, 24, hashlib.sha256(b"\x89PNGIEND").digest())))
    limit_seen = len(encode(SEEN)) + 256 + 2 * 16_384
    tenth = bytes(1_600)
    legal: list[tuple[str, str, list[Move]]] = [
        ("pictures, then a question about them", R, [
            *SEEING, (W, Begin(900, "smolvlm-500m", 64)), (W, Chunk(0, 2, "A fox.")), (W, Done("stop", 900, 2, sha(
                "A fox.")))]),
        ("the same, inputs before any reply", W, [
            asking(SEEN), *SHOWN, ACCEPT, (W, Begin(900, "smolvlm-500m", 64)), (W, Chunk(0, 2, "A fox."))]),
        ("inputs between the replies", R, [asking(SEEN), SHOWN[0], (W, Accept(2, 9)), SHOWN[1], ACCEPT]),
        ("refused while inputs come", W, [asking(SEEN), SHOWN[0], (W, Refuse(6, "busy", 1_500))]),
        ("an input crossed the worker's error", W, [asking(SEEN), ACCEPT, SHOWN[0], error, SHOWN[1], (W, Settled(0))]),
        ("cancelled before all inputs were sent", R, [
            asking(SEEN), ACCEPT, SHOWN[0], cancel, (W, Done("cancelled", 0, 0, sha(""))), (W, Settled(0))]),
        ("a query with pictures, continued", R, [
            asking(SEEN, prefix="A red", prefix_tokens=2), ACCEPT, *SHOWN, (W, Begin(902, "smolvlm-500m", 64)),
            (W, Chunk(0, 2, " fox."))]),
        ("as many tokens as two pictures may be", R, [*SEEING, (W, Begin(limit_seen, "", 1))]),
        ("a picture, with progress, paid", R, [
            *DRAWING, (W, Progress(1, 24, b"")), (W, Chunk(0, 0, "")), (W, Progress(24, 24, b"\xff\xd8")),
            (W, Output(1, 0, PNG, b"\x89PNG")), (W, Output(2, 24, PNG, b"IEND")), whole, paid, (W, Settled(72))]),
        ("a picture cancelled on the way: nothing is owed", R, [
            *DRAWING, PICTURE[0], cancel, (W, Progress(2, 24, b"")), (W, Done("cancelled", 0, 0, hashlib.sha256(
                b"\x89PNG").digest())), (W, Settled(0))]),
        ("the cancel crossed the end of a picture", R, [*DRAWING, PICTURE[0], cancel, PICTURE[1], whole]),
        ("a heartbeat behind a picture", R, [*DRAWING, *PICTURE, (W, Chunk(2, 24, "")), whole]),
        ("a picture that the worker chose the size of", R, [
            asking(replace(DRAWN, width=0, height=0, steps=0)), ACCEPT, (W, Begin(0, "", 64)),
            (W, Output(0, 9_600, PNG, b"\x89PNG"))]),
        ("a picture's size rounded up", R, [
            asking(replace(DRAWN, width=257, height=1, steps=1)), ACCEPT, (W, Begin(0, "", 64)),
            (W, Output(0, 1, PNG, b"\x89PNG"))]),
        ("sound to text", R, [
            *HEARING, (W, Begin(20, "whisper", 64)), (W, Chunk(0, 9, "WEBVTT\n")), (W, Done("stop", 20, 9, sha(
                "WEBVTT\n")))]),
        ("text to sound", R, [
            *SAYING, (W, Output(0, 1, PCM, tenth)), (W, Output(1, 2, PCM, bytes(1))), (W, Done(
                "stop", 22, 2, hashlib.sha256(bytes(1_601)).digest()))]),
        ("text to sound, 22,050 samples a second", R, [
            *SAYING, (W, Output(0, 2, "audio/pcm;rate=22050", bytes(4_411)))]),
        ("text to sound, 48,000 samples a second", R, [*SAYING, (W, Output(0, 1, "audio/pcm;rate=48000", tenth))]),
        ("a payload that is no request, refused", R, [
            (R, replace(QUERY, payload=b"\x91\x27")), (W, Refuse(12, "no request", 0))]),
        ("a payload that is nothing, accepted and given up", R, [
            (R, replace(QUERY, payload=b"\xc1")), ACCEPT, (W, Error(12, "no request", 0)), (W, Settled(0))]),
    ]  # fmt: skip
    said = (W, Output(0, 1, PCM, tenth))
    illegal: list[tuple[str, str, list[Move]]] = [
        ("an input before the query", W, [SHOWN[0]]),
        ("an input from the worker", R, [asking(SEEN), (W, SHOWN[0][1])]),
        ("an input for a chat", W, [*ASKED, SHOWN[0]]),
        ("an input for a payload that is no request", W, [(R, replace(QUERY, payload=b"\x91\x27")), SHOWN[0]]),
        ("input 1 first", W, [asking(SEEN), (R, Input(1, b"a"))]),
        ("input 0 twice", W, [asking(SEEN), SHOWN[0], (R, Input(0, b"a"))]),
        ("more bytes than the media have", W, [asking(SEEN), SHOWN[0], (R, Input(1, bytes(37)))]),
        ("an input when all are there", W, [*SEEING, (R, Input(2, b"a"))]),
        ("an input after begin", W, [*SEEING, (W, Begin(9, "", 64)), (R, Input(2, b"a"))]),
        ("an input after a cancel", W, [asking(SEEN), cancel, SHOWN[0]]),
        ("an input after a refusal", W, [asking(SEEN), (W, Refuse(6, "", 0)), SHOWN[0]]),
        ("begin without the inputs", R, [asking(SEEN), ACCEPT, (W, Begin(9, "", 64))]),
        ("begin with half of the inputs", R, [asking(SEEN), ACCEPT, SHOWN[0], (W, Begin(9, "", 64))]),
        ("begin with half of the inputs, cancelled", R, [
            asking(SEEN), ACCEPT, SHOWN[0], cancel, (W, Begin(9, "", 64))]),
        ("begin for a payload that is no request", R, [
            (R, replace(QUERY, payload=b"\x91\x27")), ACCEPT, (W, Begin(0, "", 64))]),
        ("more tokens than two pictures may be", R, [*SEEING, (W, Begin(limit_seen + 1, "", 1))]),
        ("a picture's words counted", R, [asking(DRAWN), ACCEPT, (W, Begin(1, "", 64))]),
        ("more tenths of a second than the sound can have", R, [*HEARING, (W, Begin(21, "", 64))]),
        ("more bytes than the text has", R, [asking(SAID), ACCEPT, (W, Begin(23, "", 64))]),
        ("progress before begin", R, [asking(DRAWN), ACCEPT, (W, Progress(0, 0, b""))]),
        ("progress after the last word", R, [*DRAWING, *PICTURE, whole, (W, Progress(0, 0, b""))]),
        ("progress from the requester", W, [*DRAWING, (R, Progress(0, 0, b""))]),
        ("an output before begin", R, [asking(DRAWN), ACCEPT, PICTURE[0]]),
        ("an output before begin, cancelled", R, [asking(DRAWN), ACCEPT, cancel, PICTURE[0]]),
        ("an output after the last word", R, [*DRAWING, *PICTURE, whole, (W, Output(2, 24, PNG, b"a"))]),
        ("output 1 first", R, [*DRAWING, PICTURE[1]]),
        ("an output with the index of a heartbeat", R, [*DRAWING, (W, Chunk(0, 0, "")), PICTURE[0]]),
        ("a picture in a chat", R, [*BEGUN, PICTURE[0]]),
        ("sound in a transcript", R, [*HEARING, (W, Begin(20, "", 64)), said]),
        ("text in the place of a picture", R, [*DRAWING, (W, Chunk(0, 0, "a fox"))]),
        ("a picture that is a page", R, [*DRAWING, (W, Output(0, 0, "text/html", b"<script>"))]),
        ("sound in the place of a picture", R, [*DRAWING, said]),
        ("a picture in the place of sound", R, [*SAYING, PICTURE[0]]),
        ("sound of another kind", R, [*SAYING, (W, Output(0, 0, "audio/mpeg", b"ID3"))]),
        ("sound whose rate changes", R, [*SAYING, said, (W, Output(1, 1, "audio/pcm;rate=48000", tenth))]),
        *((f"sound with a rate of {rate!r}", R, [*SAYING, (W, Output(0, 0, f"audio/pcm;rate={rate}", tenth))])
          for rate in ("", "0", "7999", "48001", "024000", "24000 ", "-24000", "٢٤٠٠٠")),
        ("more sound than the bytes can hold", R, [*SAYING, (W, Output(0, 2, PCM, tenth))]),
        ("more sound than the bytes can hold at their rate", R, [
            *SAYING, (W, Output(0, 2, "audio/pcm;rate=22050", bytes(4_410)))]),
        ("sound before there is any", R, [*SAYING, (W, Chunk(0, 1, ""))]),
        ("a picture before there is any", R, [*DRAWING, (W, Chunk(0, 24, ""))]),
        ("a larger picture than was asked for", R, [*DRAWING, (W, Output(0, 25, PNG, b"\x89PNG"))]),
        ("a picture counted before its end", R, [
            *DRAWING, (W, Output(0, 24, PNG, b"\x89PNG")), (W, Output(1, 24, PNG, b"IEND"))]),
        ("falling counts of sound", R, [*SAYING, said, (W, Output(1, 0, PCM, tenth))]),
        ("done with the digest of the text alone", R, [*SAYING, said, (W, Done("stop", 22, 1, sha("")))]),
    ]  # fmt: skip
    return legal, illegal


TALKING: list[Move] = [asking(TOOLED), ACCEPT, (W, Begin(120, "", 64))]
MEASURING: list[Move] = [asking(MEASURED), ACCEPT, (W, Begin(20, "", 64))]
WHOLE_CALL: Move = (W, Called(0, 9, "get_weather", '{"city":"Paris"}'))
LIKELY = LikelyChunk(0, 1, "Paris", (Chosen(b"Paris", 9, (Likelihood(b"Paris", 9), Likelihood(b"Rome", 5_000_000))),))


def wishing_exchanges() -> tuple[list[tuple[str, str, list[Move]]], list[tuple[str, str, list[Move]]]]:
    """Legal and illegal conversations with tools and likelihoods."""
    called, cancel = '{"city":"Paris"}', (R, Cancel())
    part = params.MAX_CHUNK_BYTES
    longest = [
        (W, Called(0, 9, "clock", "a" * part)),
        *((W, Called(index, 9, "", "a" * part)) for index in range(1, params.MAX_ARGUMENTS_BYTES // part)),
    ]
    one = [asking(replace(TOOLED, wishes=(Wishes(tools=(WEATHER, CLOCK), one_call=1),))), *TALKING[1:]]
    many: list[Move] = [(W, Called(index, 0, "clock", "{}")) for index in range(params.MAX_CALLS)]
    legal: list[tuple[str, str, list[Move]]] = [
        ("a call", R, [*TALKING, WHOLE_CALL, (W, Done("tool_calls", 120, 9, sha("get_weather" + called)))]),
        ("text, a call in parts, a heartbeat, another call", R, [
            *TALKING, (W, Chunk(0, 3, "Let me see.")), (W, Called(1, 9, "get_weather", '{"city"')),
            (W, Called(2, 11, "", ':"Paris"}')), (W, Chunk(3, 11, "")), (W, Called(4, 14, "clock", "{}")),
            (W, Done("tool_calls", 120, 14, sha("Let me see.get_weather" + called + "clock{}")))]),
        ("no call though there are tools", W, [
            *TALKING, (W, Chunk(0, 1, "No.")), (W, Done("stop", 120, 1, sha("No.")))]),
        ("a call that the limit cut", R, [
            *TALKING, (W, Called(0, 9, "clock", "{")), (W, Done("length", 120, 9, sha("clock{")))]),
        ("a call crossed the cancel", R, [*TALKING, cancel, WHOLE_CALL]),
        ("the tokens around a call", R, [*TALKING, (W, Called(0, 512 + 64 + 7, "clock", "{}"))]),
        ("as many calls as there may be", R, [*TALKING, *many]),
        ("the longest arguments", R, [*TALKING, *longest]),
        ("long arguments, and those of another call", R, [*TALKING, *longest, (W, Called(4, 9, "clock", "{}"))]),
        ("one call where one is wished for", R, [*one, WHOLE_CALL]),
        ("with likelihoods", R, [*MEASURING, (W, LIKELY), (W, Done("stop", 20, 1, sha("Paris")))]),
        ("a plain chunk among likely ones", R, [*MEASURING, (W, LIKELY), (W, Chunk(1, 2, "."))]),
        ("likelihoods crossed the cancel", R, [*MEASURING, cancel, (W, LIKELY)]),
    ]  # fmt: skip
    illegal: list[tuple[str, str, list[Move]]] = [
        ("a call in a chat without tools", R, [*BEGUN, (W, Called(0, 1, "clock", "{}"))]),
        ("a call in the place of a picture", R, [*DRAWING, (W, Called(0, 0, "clock", "{}"))]),
        ("a call before begin, cancelled", R, [*TALKING[:2], cancel, WHOLE_CALL]),
        ("a call from the requester", W, [*TALKING, (R, WHOLE_CALL[1])]),
        ("a call of what is no tool", R, [*TALKING, (W, Called(0, 9, "delete_all", "{}"))]),
        ("more of no call", R, [*TALKING, (W, Called(0, 9, "", "{}"))]),
        ("nothing more of a call", R, [*TALKING, WHOLE_CALL, (W, Called(1, 9, "", ""))]),
        ("call 1 first", R, [*TALKING, (W, Called(1, 9, "clock", "{}"))]),
        ("text after a call", R, [*TALKING, WHOLE_CALL, (W, Chunk(1, 10, "Done."))]),
        ("more tokens than a call can have", R, [*TALKING, (W, Called(0, 512 + 64 + 8, "clock", "{}"))]),
        ("more tokens than can stand before a call", R, [*TALKING, (W, Chunk(0, 513, ""))]),
        ("a call too many", R, [*TALKING, *many, (W, Called(params.MAX_CALLS, 0, "clock", "{}"))]),
        ("longer arguments than there may be", R, [*TALKING, *longest, (W, Called(4, 9, "", "a"))]),
        ("a second call where one is wished for", R, [*one, WHOLE_CALL, (W, Called(1, 10, "clock", "{}"))]),
        ("done because of calls, without one", R, [*TALKING, (W, Done("tool_calls", 120, 0, sha("")))]),
        ("done with the digest of the arguments alone", R, [
            *TALKING, WHOLE_CALL, (W, Done("tool_calls", 120, 9, sha(called)))]),
        ("likelihoods that nobody asked for", R, [*BEGUN, (W, LIKELY)]),
        ("more likeliest tokens than were asked for", R, [
            *MEASURING, (W, replace(LIKELY, tokens=(Chosen(b"Paris", 9, (Likelihood(b"a", 1),) * 3),)))]),
        ("a likely chunk out of order", R, [*MEASURING, (W, replace(LIKELY, index=1))]),
        ("likelihoods before begin, cancelled", R, [*MEASURING[:2], cancel, (W, LIKELY)]),
        ("likely text after a call", R, [
            asking(replace(TOOLED, wishes=(Wishes(tools=(WEATHER,), logprobs=1, likeliest=2),))), *TALKING[1:],
            WHOLE_CALL, (W, replace(LIKELY, index=1, units_out=10))]),
    ]  # fmt: skip
    return legal, illegal


def exchanges() -> str:
    """exchange.json"""
    media_legal, media_illegal = media_exchanges()
    wishing_legal, wishing_illegal = wishing_exchanges()
    empty = sha("")
    refuse, error, cancel = (W, Refuse(6, "busy", 1_500)), (W, Error(15, "crashed", 0)), (R, Cancel())
    pay = PAID[0]
    legal: list[tuple[str, str, list[Move]]] = [
        ("a whole paid answer", R, HELLO + LAST + PAID + SETTLED),
        ("the same, seen by the worker", W, HELLO + LAST + PAID + SETTLED),
        ("free: nothing is signed", R, [(R, FREE_QUERY), *HELLO[1:4], *HELLO[5:], *LAST, (W, Settled(0))]),
        ("refused", R, [*ASKED, refuse]),
        ("an error in the queue", R, [*ASKED, (W, Accept(1, 9)), error]),
        ("an error in the middle, paid", R, [*HELLO, error, *PAID, *SETTLED]),
        ("cancelled before any reply", W, [*ASKED, cancel, (W, Done("cancelled", 0, 0, empty)), (W, Settled(0))]),
        ("cancelled, then refused: both were on their way", R, [*ASKED, cancel, refuse]),
        ("cancelled in the queue", R, [*ACCEPTED, cancel, (W, Done("cancelled", 0, 0, empty)), (W, Settled(0))]),
        ("cancelled; Begin and text were on their way", R, [
            *ACCEPTED, cancel, (W, Accept(0, 0)), HELLO[3], HELLO[5], (R, pay_for(Delivered(20, 1, sha("Paris")))),
            (W, Done("cancelled", 20, 1, sha("Paris")))]),
        ("cancelled in the middle", R, [
            *HELLO, cancel, (W, Done("cancelled", 20, 2, sha("Paris."))), *PAID, *SETTLED]),
        ("cancelled, and the engine failed", W, [*HELLO, cancel, error]),
        ("the cancel crossed Done", W, [*HELLO, *LAST, cancel, *PAID, *SETTLED]),
        ("an empty answer", R, [*BEGUN, (W, Done("stop", 20, 0, empty))]),
        ("tokens that gave no text yet", R, [*BEGUN, (W, Chunk(0, 512, ""))]),
        ("a character in each chunk", R, [
            *BEGUN, (W, Chunk(0, 1, "é")), (W, Chunk(1, 2, "🦙")), (W, Chunk(2, 3, "x"))]),
        ("as many prompt tokens as the query may have", R, [*ACCEPTED, (W, Begin(len(QUERY.payload) + 256, "", 1))]),
        ("continued from a prefix", R, [
            (R, Query(QUERY_ID, QUERY.realm, "", 9_000, CHANNEL, QUERY.payload, "The capital is", 3, ())),
            (W, Accept(0, 0)), (W, Begin(23, "smollm2-135m", 64)), (W, Chunk(0, 2, " Paris.")),
            (W, Done("stop", 23, 2, sha(" Paris.")))]),
    ]  # fmt: skip
    illegal: list[tuple[str, str, list[Move]]] = [
        ("the worker speaks first", R, [(W, Accept(0, 0))]),
        ("something before the query", W, [cancel]),
        ("a second query", W, [*ASKED, (R, QUERY)]),
        ("the worker sends a query", R, [*ASKED, (W, QUERY)]),
        ("a bare request", W, [(R, CHAT)]),
        ("begin without accept", R, [*ASKED, HELLO[3]]),
        ("an error without accept", R, [*ASKED, error]),
        ("done without accept", R, [*ASKED, (W, Done("stop", 0, 0, empty))]),
        ("a refusal after accept", R, [*ACCEPTED, refuse]),
        ("text before begin", R, [*ACCEPTED, HELLO[5]]),
        ("text before begin, cancelled", R, [*ACCEPTED, cancel, HELLO[5]]),
        ("done before begin", R, [*ACCEPTED, (W, Done("stop", 0, 0, empty))]),
        ("a voucher before begin", W, [*ACCEPTED, pay]),
        ("accept after begin", R, [*BEGUN, (W, Accept(0, 0))]),
        ("a second begin", R, [*BEGUN, HELLO[3]]),
        ("a second begin, cancelled", R, [*BEGUN, cancel, HELLO[3]]),
        ("more prompt tokens than the query can have", R, [*ACCEPTED, (W, Begin(len(QUERY.payload) + 257, "", 1))]),
        ("chunk 1 first", R, [*BEGUN, (W, Chunk(1, 1, "a"))]),
        ("chunk 0 twice", R, [*BEGUN, HELLO[5], HELLO[5]]),
        ("a skipped chunk", R, [*BEGUN, HELLO[5], (W, Chunk(2, 2, "."))]),
        ("falling counts", R, [*BEGUN, (W, Chunk(0, 2, "Paris")), (W, Chunk(1, 1, "."))]),
        ("more tokens than the text can have", R, [*BEGUN, (W, Chunk(0, 514, "a"))]),
        ("done with another digest", R, [*HELLO, (W, Done("stop", 20, 2, sha("Rome.")))]),
        ("done with more output tokens", R, [*HELLO, (W, Done("stop", 20, 3, sha("Paris.")))]),
        ("done with more prompt tokens", R, [*HELLO, (W, Done("stop", 21, 2, sha("Paris.")))]),
        ("the worker pays", R, [*BEGUN, (W, PAID[0][1])]),
        ("the worker cancels", R, [*BEGUN, (W, Cancel())]),
        ("the requester says done", W, [*HELLO, (R, LAST[0][1])]),
        ("a second cancel", W, [*BEGUN, cancel, cancel]),
        ("text after done", R, [*HELLO, *LAST, (W, Chunk(3, 2, ""))]),
        ("done twice", R, [*HELLO, *LAST, *LAST]),
        ("an error after done", R, [*HELLO, *LAST, error]),
        ("settled before the last word", R, [*HELLO, *SETTLED]),
        ("settled twice", R, [*HELLO, *LAST, *PAID, *SETTLED, *SETTLED]),
        ("a voucher after settled", W, [*HELLO, *LAST, *PAID, *SETTLED, pay]),
        ("anything after a refusal", W, [*ASKED, refuse, cancel]),
        ("a ledger message", W, [*ASKED, (R, FetchGenesis())]),
    ]  # fmt: skip
    return vector_file(
        "exchange",
        "Conversations as one side sees them; in the failing ones the last move is illegal.",
        [
            *(
                case("exchange", name, exchange_given(view, moves))
                for name, view, moves in legal + media_legal + wishing_legal
            ),
            *(
                failing("exchange", name, "IllegalMove", exchange_given(view, moves))
                for name, view, moves in illegal + media_illegal + wishing_illegal
            ),
        ],
    )


def queries() -> str:
    """query.json"""

    def given(query: Query, offered: int = 1_024) -> dict[str, Json]:
        return {"query": to_json(query), "offered": offered}

    def about(request: Message, **changes: Json) -> dict[str, Json]:
        return given(replace(QUERY, payload=encode(request), **changes))

    def chat(*turns: Turn, **changes: Json) -> dict[str, Json]:
        return about(replace(CHAT, turns=turns, **changes))

    def shows(kind: str, turn: int, *turns: Turn) -> dict[str, Json]:
        return about(replace(SEEN, turns=turns or SEEN.turns, media=(Media(kind, 5, turn),)))

    def hears(size: int) -> dict[str, Json]:
        return about(replace(HEARD, media=(Media("audio", size, 0),)))

    blank, answer, question = Turn("user", " \n"), Turn("assistant", "Paris."), Turn("user", "Why?")
    largest = params.MAX_INPUT_BYTES
    half, more = Media("image", largest // 2, 1), Media("image", largest // 2 + 1, 1)

    def calls(*made: Call, roles: str = "uat", **wished: Json) -> dict[str, Json]:
        names = {"u": "user", "a": "assistant", "t": "tool"}
        return chat(*(Turn(names[role], "x") for role in roles), wishes=(Wishes(calls=made, **wished),))

    def wishes(**wished: Json) -> dict[str, Json]:
        return about(replace(CHAT, wishes=(Wishes(**wished),)))

    made = Call(1, 2, "clock", "{}")
    deep = "[" * (params.MAX_JSON_DEPTH - 1) + "]" * (params.MAX_JSON_DEPTH - 1)
    good = [
        ("paid", given(QUERY)),
        ("free", given(FREE_QUERY)),
        ("continued", given(replace(QUERY, prefix="Das heißt", prefix_tokens=4))),
        ("a prefix whose tokens nobody counted", given(replace(QUERY, prefix="a"))),
        ("unknown optional features", given(replace(QUERY, features=(1, 65_535)))),
        ("a longer conversation", chat(Turn("user", "Capital?"), answer, question)),
        ("blanks, and something else", chat(question, blank)),
        ("as long an answer as is offered", chat(question, max_tokens=0)),
        ("a longer answer than is offered", chat(question, max_tokens=4_096)),
        ("pictures", about(SEEN)),
        ("pictures, continued", about(SEEN, prefix="A red", prefix_tokens=2)),
        ("a picture without words", shows("image", 0, blank)),
        ("a picture in an earlier turn", shows("image", 0, question, answer, question)),
        ("pictures of the most bytes", about(replace(SEEN, media=(half, half)))),
        ("a picture to make", about(DRAWN)),
        ("a picture of the worker's choice", about(ImagineRequest("x", "", 0, 0, 0, 0, 0, 0))),
        ("a large picture", given(replace(QUERY, payload=encode(replace(DRAWN, width=2_048))), 4_096)),
        ("a small picture", about(replace(DRAWN, width=1, height=1, steps=1))),
        ("sound to text", about(HEARD)),
        ("49 bytes of sound", hears(49)),
        ("50 bytes of sound", hears(50)),
        ("sound of the most bytes", hears(largest)),
        ("text to sound", about(SAID)),
        ("a realm of an operator's own", about(SAID, realm=RealmId("$READERS"))),
        ("tools", about(TOOLED)),
        ("tools, continued", about(TOOLED, prefix="Let me", prefix_tokens=2)),
        ("a tool must be called, and one alone", wishes(tools=(CLOCK,), must_call=1, one_call=1)),
        ("a call and its result, the tool still there", about(ASKED_OF)),
        ("a call and its result, the tool gone", calls(made)),
        ("a call without a result", calls(Call(1, 0, "clock", "{}"), roles="uau")),
        (
            "two calls of one turn, answered the other way round",
            calls(Call(1, 3, "a", "{}"), Call(1, 2, "b", "{}"), roles="uatt"),
        ),
        ("JSON by a schema", about(SHAPED)),
        ("a schema as deep as may be", wishes(schema=f'{{"a":{deep}}}')),
        ("brackets in a text are no depth", wishes(schema=f'{{"a":"{"[" * 200}"}}')),
        ("likelihoods", about(MEASURED)),
        ("every wish", wishes(tools=(WEATHER,), must_call=1, schema="{}", logprobs=1)),
        ("pictures and tools", about(replace(SEEN, wishes=TOOLED.wishes))),
    ]
    invalid = [
        ("prefix_tokens without a prefix", given(replace(QUERY, prefix_tokens=1))),
        ("another role", chat(Turn("tool", "x"), question)),
        ("nothing to answer", chat(question, answer)),
        ("nothing but blanks", chat(blank)),
        ("a payload that is no message", given(replace(QUERY, payload=b"\xc1"))),
        ("a payload that is no request", given(replace(QUERY, payload=encode(Cancel())))),
        ("a request in another encoding", given(replace(QUERY, payload=b"\xdc\x00\x0b" + encode(CHAT)[1:]))),
        ("a conversation about pictures that ends with the answer", shows("image", 0, question, answer)),
        ("a picture that is a sound", shows("audio", 1)),
        ("a picture in the system's turn", shows("image", 0)),
        ("a picture in the assistant's turn", shows("image", 1, question, answer, question)),
        ("a picture in a turn that is not there", shows("image", 2)),
        ("pictures of too many bytes", about(replace(SEEN, media=(half, more)))),
        ("eight pictures of 16 MiB", about(replace(SEEN, media=(Media("image", largest, 1),) * 8))),
        ("a blank prompt", about(replace(DRAWN, prompt=" \n"))),
        ("a picture with a prefix", about(DRAWN, prefix="a")),
        ("a picture to be transcribed", about(replace(HEARD, media=(IMAGE,)))),
        ("a transcript with a prefix", about(HEARD, prefix="Guten", prefix_tokens=1)),
        ("blank text", about(replace(SAID, text="\t"))),
        ("speech with a prefix", about(SAID, prefix="a")),
        ("wishes for nothing", wishes()),
        ("a tool's name with a blank", wishes(tools=(replace(CLOCK, name="a b"),))),
        ("a tool's name with a letter beyond ASCII", wishes(tools=(replace(CLOCK, name="größe"),))),
        ("a tool's name with a line end", wishes(tools=(replace(CLOCK, name="clock\n"),))),
        ("two tools of one name", wishes(tools=(CLOCK, CLOCK))),
        ("a call is a must without tools", wishes(must_call=1)),
        ("one call at most, without tools", wishes(one_call=1, logprobs=1)),
        ("likeliest tokens without likelihoods", wishes(likeliest=1)),
        ("parameters that are no JSON", wishes(tools=(replace(CLOCK, parameters="{"),))),
        ("a schema that is no object", wishes(schema="[]")),
        ("a schema that is a number of no JSON", wishes(schema='{"a":NaN}')),
        ("a schema with half a character", wishes(schema='{"a":"\\ud800"}')),
        ("a schema too deep", wishes(schema=f'{{"a":[{deep}]}}')),
        ("a schema and something behind it", wishes(schema="{} {}")),
        ("arguments that are no object", calls(replace(made, arguments="1"))),
        ("arguments that are empty", calls(replace(made, arguments=""))),
        ("a call with a bad name", calls(replace(made, name="a.b"))),
        ("a call in a turn of the user", calls(Call(0, 2, "clock", "{}"))),
        ("a call in a turn that is not there", calls(made, Call(9, 0, "clock", "{}"))),
        ("a call that a user answers", calls(Call(1, 2, "clock", "{}"), roles="uau")),
        ("a call answered before it is made", calls(Call(3, 2, "clock", "{}"), roles="uatau")),
        ("a call answered by a turn that is not there", calls(made, Call(1, 9, "clock", "{}"))),
        ("two calls with one answer", calls(made, made)),
        ("a tool's turn that answers nothing", calls(made, roles="uatt")),
        ("calls out of order", calls(Call(3, 0, "a", "{}"), Call(1, 2, "b", "{}"), roles="uatau")),
        ("pictures, and wishes for nothing", about(replace(SEEN, wishes=(Wishes(),)))),
    ]
    return vector_file(
        "query",
        "The rules of a query that need no state, and what it may cost.",
        [
            *(case("query", name, inputs) for name, inputs in good),
            failing("query", "an unknown required feature", "UNSUPPORTED_FEATURE", given(
                replace(QUERY, features=(1, 2)))),
            failing("query", "feature 0", "UNSUPPORTED_FEATURE", given(replace(QUERY, features=(0,)))),
            *(failing("query", name, "INVALID_REQUEST", inputs) for name, inputs in invalid),
        ],
    )  # fmt: skip


def transcripts() -> str:
    """transcript.json"""

    def given(previous: bytes, units_in: int, units_out: int, text: str) -> dict[str, Json]:
        return {
            "previous": previous.hex(),
            "query_id": QUERY_ID.hex(),
            "units_in": units_in,
            "units_out": units_out,
            "digest": sha(text).hex(),
        }

    return vector_file(
        "transcript",
        "The transcript that a voucher names, for points of a query.",
        [
            case("transcript", "the prompt, first query of a channel", given(NO_HASH, 20, 0, "")),
            case("transcript", "two tokens", given(NO_HASH, 20, 2, "Paris.")),
            case("transcript", "a later query", given(bytes([0x77]) * 32, 20, 2, "Paris.")),
            case("transcript", "large counts", given(NO_HASH, 2**40, 2**33 + 1, "")),
        ],
    )


# --- examples in the chapters ------------------------------------------------------------------------


def signing_example() -> str:
    """A small message, what is signed, and the signature."""
    body = encode(Cancel())
    return "\n".join(
        [
            f"key        {ALICE.node.hex()}",
            f"peer id    {peer_id(ALICE.node)}",
            *_wrapped("signed     ", signed_bytes(FEDERATION, body)),
            *_wrapped("signature  ", ALICE.sign(FEDERATION, body)),
        ]
    )


def encoding_example() -> str:
    """A refusal, field by field, and its frame."""
    message = encode(Refuse(6, "busy", 1_500))
    return "\n".join(
        [
            f"frame    {frame(message).hex(' ')}",
            "",
            f"{frame(message)[:1].hex()}               length: {len(message)} bytes",
            f"{message[:1].hex()}               array of 4",
            f"{message[1:2].hex()}               35: Refuse",
            f"{message[2:3].hex()}               code 6: OVERLOADED",
            f"{message[3:8].hex(' ')}   str of 4 bytes: busy",
            f"{message[8:].hex(' ')}         uint 16: 1,500",
        ]
    )


def offer_example() -> str:
    """The body of an offer, its quote, and its envelope."""
    envelope = seal(ALICE, FEDERATION, encode(OFFER))
    return "\n".join(
        [
            *_wrapped("body      ", encode(OFFER)),
            *_wrapped("quote     ", body_hash(encode(OFFER))),
            *_wrapped("envelope  ", envelope),
        ]
    )


def query_example() -> str:
    """A short paid conversation, all frames."""
    lines: list[str] = []
    for by, message in HELLO + LAST + PAID + SETTLED:
        lines.append(f"{'→' if by == R else '←'} {_spoken(message)}")
        lines += _wrapped("    ", frame(encode(message)))
    return "\n".join(lines)


def _spoken(message: Message) -> str:
    shown = {name: value for name, value in vars_of(message).items() if not isinstance(value, bytes) and value != ()}
    return " ".join([type(message).__name__, *(f"{name}={json.dumps(value)}" for name, value in shown.items())])


def _wrapped(label: str, data: bytes, width: int = 48) -> list[str]:
    pieces = [data[at : at + width].hex() for at in range(0, len(data), width)]
    return [(label if index == 0 else " " * len(label)) + piece for index, piece in enumerate(pieces)]


EXAMPLES = {
    "01-identity.md": {"signing": signing_example},
    "02-encoding.md": {"encoding": encoding_example},
    "03-offers.md": {"offer": offer_example},
    "04-query.md": {"query": query_example},
}


def with_examples(text: str, examples: dict[str, Any]) -> str:
    """A chapter's text with the block after each `<!-- example: NAME -->` made anew."""
    for name, make in examples.items():
        block = re.search(rf"<!-- example: {name} -->\n```\n(.*?)```\n", text, re.DOTALL)
        if block is None:
            raise SystemExit(f"no example {name}")
        text = f"{text[: block.start(1)]}{make()}\n{text[block.end(1) :]}"
    return text


# --- all of it ---------------------------------------------------------------------------------------

FILES = {
    "encoding.json": encodings,
    "decoding.json": decodings,
    "framing.json": framings,
    "signing.json": signings,
    "verifying.json": verifyings,
    "envelope.json": envelopes,
    "peer_id.json": peer_ids,
    "realm.json": realms,
    "offer.json": offers,
    "record.json": records,
    "newest_record.json": newest_records,
    "exchange.json": exchanges,
    "query.json": queries,
    "transcript.json": transcripts,
}


def generated() -> dict[Path, str]:
    """Every generated file's path and whole text."""
    vectors = {VECTORS / name: make() for name, make in FILES.items()}
    chapters = {SPEC / name: with_examples((SPEC / name).read_text("utf-8"), made) for name, made in EXAMPLES.items()}
    return vectors | chapters


if __name__ == "__main__":
    for path, text in generated().items():
        path.write_text(text, encoding="utf-8")
