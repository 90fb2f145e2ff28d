"""Every number that `spec/` names, with its unit.

Rule: a number that two nodes must agree on stands here, with the reason for its size. A number that
only concerns one node stands in that node's configuration.
"""

from typing import Final

# --- units ------------------------------------------------------------------------------------------
MILLISECONDS: Final = 1
SECONDS: Final = 1_000 * MILLISECONDS
MINUTES: Final = 60 * SECONDS
HOURS: Final = 60 * MINUTES
DAYS: Final = 24 * HOURS
KIB: Final = 1_024
MIB: Final = 1_024 * KIB

MICRO: Final = 1_000_000  # µcredits in one credit
MAX_INTEGER: Final = 2**53 - 1  # largest integer that JavaScript, JSON and msgpack all carry exactly
PRICE_UNITS: Final = 1_000  # prices are µcredits for this many tokens

# --- protocol identifiers; the number is the major version -------------------------------------------
QUERY_PROTOCOL: Final = "/mtor/query/1"
LEDGER_PROTOCOL: Final = "/mtor/ledger/1"
OFFERS_TOPIC: Final = "/mtor/offers/1"
EVIDENCE_TOPIC: Final = "/mtor/evidence/1"
DHT_NAMESPACE: Final = "mtor"  # record keys are /mtor/<peer id>
SIGNING_DOMAIN: Final = b"mtor/1\0"

# --- sizes ------------------------------------------------------------------------------------------
KEY_BYTES: Final = 32
HASH_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
QUERY_ID_BYTES: Final = 16
MAX_FRAME_BYTES: Final = 1 * MIB  # a long conversation fits; a hostile peer cannot make us hold more
MAX_RECORD_BYTES: Final = 4_096  # one ledger record; the largest legal one is under 700 B
MAX_OFFER_BYTES: Final = 12 * KIB  # an offer with everything at its longest is shorter
MAX_DEPTH: Final = 8  # nesting of arrays in any message
MAX_NAME_BYTES: Final = 128  # model, realm and device names
MAX_ADDRESSES: Final = 8
MAX_ADDRESS_BYTES: Final = 256
MAX_MODELS: Final = 16  # model entries in one offer
MAX_FEATURES: Final = 32
MAX_MESSAGES: Final = 1_024  # turns in one conversation
MAX_ROLE_BYTES: Final = 16
MAX_TEXT_BYTES: Final = MAX_FRAME_BYTES - 16 * KIB  # one message's text; the rest is room for the frame
MAX_CHUNK_BYTES: Final = 64 * KIB
MAX_STOP_STRINGS: Final = 16
MAX_STOP_BYTES: Final = 256
MAX_REASON_BYTES: Final = 512
MAX_REQUEST_KINDS: Final = 8  # kinds of payload that one model takes
MAX_INPUTS: Final = 8  # pictures or sounds of one request
MAX_INPUT_BYTES: Final = 16 * MIB  # of one request, together: photos and some minutes of sound as people have them
MAX_OUTPUT_BYTES: Final = 64 * MIB  # of one answer: 23 minutes of speech at 24 kHz
MAX_PROMPT_BYTES: Final = 4 * KIB  # for a picture, or beside a sound
MAX_SPOKEN_BYTES: Final = 32 * KIB
MAX_TOOLS: Final = 128  # of a request; OpenAI's limit
MAX_TOOL_NAME_BYTES: Final = 64
MAX_SCHEMA_BYTES: Final = 64 * KIB  # a JSON schema; a tool's description
MAX_JSON_DEPTH: Final = 64  # nesting in a JSON text
MAX_CALLS: Final = 128  # of tools in one answer
MAX_ARGUMENTS_BYTES: Final = 256 * KIB  # of one call: a file of source code
CALL_TOKENS: Final = 64  # that a model may write around a call's name and arguments
MAX_LIKELIEST: Final = 20  # tokens told in place of one
MAX_TOKEN_BYTES: Final = 256
MAX_CHUNK_TOKENS: Final = 128  # with likelihoods in one message: the largest is under 800 KiB
MAX_MODEL_FEATURES: Final = 8  # that one model has
MAX_PICTURE_SIDE: Final = 2_048  # pixels
MAX_PICTURE_STEPS: Final = 150
PICTURE_UNIT: Final = 65_536  # pixels times steps that count as one unit
PICTURE_TOKENS: Final = 16_384  # prompt tokens that one picture may count as
MIN_SOUND_RATE: Final = 8_000  # samples a second of a spoken answer
MAX_SOUND_RATE: Final = 48_000
MIN_HEARD_BYTES: Final = 50  # of a tenth of a second of sound to transcribe: 4 kbit/s, below any codec for speech
MAX_SOUND_TENTHS: Final = 36_000  # an hour in one request
MAX_OUTPUT_TOKENS: Final = 1_000_000
MAX_WITNESSES: Final = 31
MAX_ISSUERS: Final = 8
MAX_CERTIFICATES: Final = 256  # certificates in one answer to a range request
MAX_REQUEST_BYTES: Final = 16 * KIB  # to a ledger; the largest is a checkpoint with 31 promises and as many ballots
MAX_ROUND_JUMP: Final = 1_024  # rounds that a witness leaves out at once: nobody can use them all up
MAX_IDS: Final = 8_192  # ids in one answer: 272 KiB
MAX_SUB_ACCOUNTS: Final = 64  # that a witness lets one owner attach: they cost nothing
MAX_ROTATIONS: Final = 32  # keys that one account can have had, and recovery keys: its leaf stays one record
MAX_PATH: Final = 53  # hashes in a Merkle path: a list has at most 2^53-1 leaves
MAX_EVIDENCE: Final = 64  # proofs in one answer
MAX_EVIDENCE_BYTES: Final = 2 * KIB  # two orders with their signatures

# --- offers -----------------------------------------------------------------------------------------
OFFER_LIFETIME: Final = 60 * SECONDS  # a peer that vanished leaves its ghost for no longer
MAX_OFFER_LIFETIME: Final = 10 * MINUTES
OFFER_INTERVAL: Final = 20 * SECONDS  # three chances to be heard in one lifetime
OFFER_LOAD_INTERVAL: Final = 5 * SECONDS  # the pace of news that are of load alone: everybody hears all of them
OFFER_MIN_INTERVAL: Final = 1 * SECONDS  # a publisher's pace; faster ones are ignored, not punished
CLOCK_SKEW: Final = 30 * SECONDS  # home computers' clocks disagree by seconds

# --- the query exchange -----------------------------------------------------------------------------
DEFAULT_WINDOW: Final = 64  # output tokens that a worker runs ahead of the last voucher
MAX_WINDOW: Final = 4_096
FIRST_REPLY_TIMEOUT: Final = 10 * SECONDS  # query sent -> accept or refuse
INPUT_TIMEOUT: Final = 60 * SECONDS  # accept -> the last of the inputs: 16 MiB over a home's uplink
HEARTBEAT_INTERVAL: Final = 3 * SECONDS  # an Accept or an empty Chunk while there is nothing else to say
SILENCE_TIMEOUT: Final = 12 * SECONDS  # without a frame a worker is lost: four missed heartbeats
VOUCHER_TIMEOUT: Final = 15 * SECONDS  # a worker out of window waits this long for the next voucher
DEFAULT_DEADLINE: Final = 120 * SECONDS
MAX_DEADLINE: Final = 30 * MINUTES
PREFIX_TOKEN_ALLOWANCE: Final = 256  # tokens a chat template may add around the prompt's bytes

# --- the ledger -------------------------------------------------------------------------------------
HOLD_LIFETIME: Final = 1 * HOURS
MAX_HOLD_LIFETIME: Final = 30 * DAYS
SETTLE_MARGIN: Final = 5 * MINUTES  # a worker closes a channel this long before its hold expires
EPOCH_LENGTH: Final = 7 * DAYS
REFUND_DELAY: Final = (
    1 * HOURS
)  # a checkpoint refunds holds expired for this long: a freeze must not cost a worker its pay
CHECKPOINT_LAG: Final = 10 * MINUTES  # that a new checkpoint's time may lie back: else the next epoch is due at once
DEFAULT_SUPPLY_CAP: Final = 9_000_000_000 * MICRO
