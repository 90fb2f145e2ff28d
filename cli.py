"""`mtor`: the command line.

Rule: thin. It reads arguments, finds the verb in `node/commands/`, and turns what goes wrong into a sentence on
standard error and an exit code. Nothing heavy is imported before a verb needs it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

OK, FAILED, USAGE, NO_NODE, REFUSED, STOPPED = 0, 1, 2, 3, 4, 130
EPILOG = """exit codes: 0 done · 1 failed · 2 wrong usage · 3 no node is running · 4 the node or a peer refused
130 stopped by Ctrl-C
documentation: docs/quickstart.md"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; the process's exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if not hasattr(options, "run"):
        parser.print_help()
        return USAGE
    try:
        module, _, function = options.run.partition(":")
        code: int = getattr(import_module(f"node.commands.{module}"), function)(options)
        return code
    except KeyboardInterrupt:
        return STOPPED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except Exception as error:
        if os.environ.get("MTOR_DEBUG"):
            raise
        return _explain(error)
    except BaseExceptionGroup as group:
        return _stopped(group)


def _stopped(group: BaseExceptionGroup[BaseException]) -> int:
    """Ctrl-C in one of trio's task groups comes out as a group. Raises it again if there is more in it."""
    from node.nurseries import only_interrupts

    if not only_interrupts(group):
        raise group
    return STOPPED


def _explain(error: Exception) -> int:
    """One sentence on standard error. Errors of our own name the fix; others name where to look."""
    kind = type(error).__name__
    ours = type(error).__module__.partition(".")[0] in ("node", "protocol")
    print(f"mtor: {error}" if ours else f"mtor: {kind}: {error} (MTOR_DEBUG=1 shows where)", file=sys.stderr)
    return {"NoNode": NO_NODE, "NodeRefused": REFUSED, "UsageError": USAGE, "ConfigError": USAGE}.get(kind, FAILED)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mtor",
        description="A node of an MTOR federation: home graphics cards that answer each other's queries.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--data", type=Path, help="data folder (default: $MTOR_DATA, or the platform's place)")
    reading = argparse.ArgumentParser(add_help=False, parents=[common])
    reading.add_argument("--json", action="store_true", help="print one JSON value")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB")
    _add_node(verbs, common, reading)
    _add_asking(verbs, reading)
    _add_models(verbs, common, reading)
    _add_ledger(verbs, reading)
    _add_federation(verbs, common, reading)
    _add_keys(verbs, common, reading)
    _add_setup(verbs, reading)
    return parser


def _verb(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run: str,
    help: str,
    parent: argparse.ArgumentParser,
) -> argparse.ArgumentParser:
    verb = verbs.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".", parents=[parent])
    verb.set_defaults(run=run)
    return verb


def _group(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser], name: str, help: str
) -> argparse._SubParsersAction[argparse.ArgumentParser]:
    group = verbs.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".")
    return group.add_subparsers(title="verbs", metavar="VERB", required=True)


def _count(text: str) -> int:
    """A number of lines."""
    if not text.isdecimal() or int(text) > 10_000:
        raise argparse.ArgumentTypeError("a number from 0 to 10000")
    return int(text)


def _add_config_flags(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--config", type=Path, help="realms.yml (default: the one in the data folder)")


def _add_node(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser],
    common: argparse.ArgumentParser,
    reading: argparse.ArgumentParser,
) -> None:
    up = _verb(verbs, "up", "nodes:up", "run the node until Ctrl-C", common)
    _add_config_flags(up)
    up.add_argument("--model", action="append", default=[], help="serve this model (more than once is fine)")
    up.add_argument("--realm", default="", help="the realm of those models (default: what each is made for)")
    up.add_argument("--port", type=int, help="HTTP port (gateway.port)")
    up.add_argument("--listen", action="append", default=[], help="libp2p address, e.g. /ip4/0.0.0.0/tcp/9001")
    up.add_argument("--bootstrap", action="append", default=[], metavar="ADDRESS", help="a peer to join by")
    up.add_argument("--no-gossip", action="store_true", help="advertise and listen in the DHT alone")
    up.add_argument("--no-dht", action="store_true", help="advertise and listen by gossip alone")
    up.add_argument("--log-format", choices=("text", "json"), help="how log lines look")
    up.add_argument("--log-level", choices=("debug", "info", "warning", "error"), help="what is logged")
    page = _verb(verbs, "open", "page:open_page", "open the node's page in the browser, as its operator", common)
    page.add_argument("--print", dest="show", action="store_true", help="print the link (one use, ten minutes)")
    _verb(verbs, "stop", "nodes:stop", "end the running node", common)
    status = _verb(verbs, "status", "nodes:status", "what runs here, and what is wrong", reading)
    realms = _verb(verbs, "realms", "nodes:realms", "what is on offer, here and elsewhere", reading)
    for verb in (status, realms, _add_peers(verbs, reading)):
        verb.add_argument("--watch", action="store_true", help="again each second, until q (with --json: a line each)")
    _add_serving(verbs, reading)
    logs = _verb(verbs, "logs", "logs:logs", "the node's log, also while no node runs", reading)
    logs.add_argument("--lines", type=_count, default=200, metavar="N", help="the last N lines that fit (default: 200)")
    logs.add_argument("--follow", action="store_true", help="and each new one, until Ctrl-C")
    levels = ("debug", "info", "warning", "error")
    logs.add_argument("--level", choices=levels, default="debug", help="this or graver")
    logs.add_argument("--query", default="", metavar="ID", help="of one query (its id, or how that begins)")
    pause = _verb(verbs, "pause", "owner:pause", "step aside: no queries, no models on the cards", reading)
    pause.add_argument("--for", dest="duration", metavar="TIME", help="like 45m, 2h, 1h30m (default: until resume)")
    resume = _verb(verbs, "resume", "owner:resume", "serve again", reading)
    resume.add_argument("--anyway", action="store_true", help="also overrule a game that is running, until it ends")
    hardware = _verb(verbs, "hardware", "owner:hardware", "cards, what uses them, what is loaded, what fits", reading)
    _add_config_flags(hardware)
    _verb(verbs, "id", "nodes:show_id", "this node's peer id", reading)


def _add_peers(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser], reading: argparse.ArgumentParser
) -> argparse.ArgumentParser:
    peers = _verb(verbs, "peers", "nodes:peers", "the nodes that are known, and how they did for us", reading)
    more = peers.add_subparsers(title="verbs", metavar="VERB")
    again = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)  # what stood before stays
    again.add_argument("--data", type=Path, help="data folder")
    again.add_argument("--json", action="store_true", help="print one JSON value")
    block = _verb(more, "block", "peers:block", "refuse a peer from now on", again)
    block.add_argument("peer", help="its peer id, or the end of it as `mtor peers` shows it")
    block.add_argument("--reason", default="", help="for yourself; it is never sent")
    unblock = _verb(more, "unblock", "peers:unblock", "let a peer in again", again)
    unblock.add_argument("peer", help="its peer id, or the end of it")
    _verb(more, "blocked", "peers:blocked", "who is refused, why and since when", again)
    return peers


def _add_serving(verbs: argparse._SubParsersAction[argparse.ArgumentParser], reading: argparse.ArgumentParser) -> None:
    serve = _verb(verbs, "serve", "serving:serve", "serve a model on the running node", reading)
    serve.add_argument("--slots", type=int, help="queries answered at once")
    serve.add_argument("--device", choices=("auto", "cpu", "cuda"), help="where it runs (default: auto)")
    serve.add_argument("--price-in", type=int, metavar="MICRO", help="µcredits for 1,000 units of question")
    serve.add_argument("--price-out", type=int, metavar="MICRO", help="µcredits for 1,000 units of answer")
    unserve = _verb(verbs, "unserve", "serving:unserve", "serve a model no longer; what runs may end", reading)
    for verb in (serve, unserve):
        verb.add_argument("model", help="a name from `mtor models list`, or the path of a folder")
        verb.add_argument("--realm", default="", help="a realm's name (default: what the model is made for)")
        verb.add_argument("--once", action="store_true", help="until the node ends: realms.yml is not changed")
    _verb(verbs, "workers", "serving:workers", "models of servers beside the node, and how they do", reading)


def _add_asking(verbs: argparse._SubParsersAction[argparse.ArgumentParser], reading: argparse.ArgumentParser) -> None:
    ask = _verb(verbs, "ask", "asking:ask", "ask one question and print the answer as it comes", reading)
    ask.add_argument("text", help="the question; - reads it from standard input")
    chat = _verb(verbs, "chat", "asking:chat", "a conversation (/reset, /quit; Ctrl-C stops an answer)", reading)
    ask.add_argument("--image", type=Path, action="append", default=[], help="a picture that it is about (repeatable)")
    for verb in (ask, chat):
        verb.add_argument("--system", help="a system message before the conversation")
        verb.add_argument("--max-tokens", type=int, help="longest answer")
        verb.add_argument("--temperature", type=float, help="0 is deterministic")
        verb.add_argument("--seed", type=int, help="same seed, same answer of the same worker")
    imagine = _verb(verbs, "imagine", "making:imagine", "make a picture of words, as a PNG file", reading)
    imagine.add_argument("text", metavar="PROMPT", help="what it should show")
    imagine.add_argument("--size", help="like 256x256 (default: the model's own)")
    imagine.add_argument("--steps", type=int, help="more steps take longer (default: the model's own)")
    imagine.add_argument("--guidance", type=float, help="how closely it follows the words")
    imagine.add_argument("--negative", help="what it should not show")
    imagine.add_argument("--seed", type=int, help="same words and seed, same picture of the same worker")
    say = _verb(verbs, "say", "making:say", "speak a text, as a WAV file", reading)
    say.add_argument("text", help="what to say; - reads it from standard input")
    say.add_argument("--voice", help="a voice's name (default: the worker's own)")
    say.add_argument("--speed", type=float, help="1 is as the voice speaks")
    hear = _verb(verbs, "transcribe", "making:transcribe", "write down what a sound says", reading)
    hear.add_argument("file", type=Path, help="WAV, MP3, OGG or FLAC")
    hear.add_argument("--language", help="a code like en (default: the worker listens for it)")
    hear.add_argument("--prompt", help="names and words to expect")
    hear.add_argument("--timestamps", action="store_true", help="as WebVTT, with times")
    hear.add_argument("--translate", action="store_true", help="into English")
    for verb in (imagine, say):
        verb.add_argument("--out", metavar="FILE", help="where it goes (default: a name made of the text)")
        verb.add_argument("--force", action="store_true", help="replace the file if it exists")
    for verb in (ask, chat, imagine, say, hear):
        _add_wishes(verb)


def _add_wishes(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--model", default="auto", help="a model's name (default: any)")
    verb.add_argument("--realm", help="a realm's name (default: the verb's own)")
    verb.add_argument("--worker", help="this peer id and no other")
    verb.add_argument("--min-vram", type=int, metavar="MIB", help="cards with at least this much memory")
    verb.add_argument("--device", choices=("cuda", "mps", "cpu"), help="kind of device")
    verb.add_argument("--max-price", type=int, metavar="MICRO", help="µcredits for 1,000 units of answer at most")
    verb.add_argument("--max-price-in", type=int, metavar="MICRO", help="µcredits for 1,000 units of question at most")
    verb.add_argument("--min-context", type=int, metavar="TOKENS", help="models that look at so many tokens at once")
    verb.add_argument("--deadline", type=float, metavar="SECONDS", help="the whole answer within this time")


def _add_models(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser],
    common: argparse.ArgumentParser,
    reading: argparse.ArgumentParser,
) -> None:
    models = _group(verbs, "models", "the models on this machine")
    _verb(models, "list", "models:list_models", "what is here and what can be pulled", reading)
    show = _verb(models, "show", "models:show", "one model: licence, limits, files, and whether it fits", reading)
    show.add_argument("model", help="a name from `mtor models list`")
    pull = _verb(
        models, "pull", "models:pull", "fetch, check and convert a model; goes on where it was cut off", common
    )
    pull.add_argument("model", help="a name from the list, hf:OWNER/NAME[@REVISION][:FILE.gguf], or an https address")
    pull.add_argument("--sha256", default="", metavar="HEX", help="the digest of what lies at an address")
    pull.add_argument("--name", default="", help="what it is called here (default: what suits)")
    pull.add_argument("--yes", action="store_true", help="agree to the licence of a hub's model without being asked")
    add = _verb(models, "add", "models:add", "register a folder with safetensors, or a GGUF, of this machine", common)
    add.add_argument("path", type=Path, help="the folder or the .gguf file")
    add.add_argument("--name", default="", help="what it is called here (default: as the folder)")
    add.add_argument("--copy", action="store_true", help="copy the files into the store (default: leave them there)")
    verify = _verb(models, "verify", "models:verify", "read all files and compare digests", reading)
    verify.add_argument("model", nargs="?", default="", help="a name from `mtor models list` (default: all)")
    remove = _verb(models, "rm", "models:remove", "delete a model from this machine", common)
    remove.add_argument("model", help="a name from `mtor models list`")


def _add_ledger(verbs: argparse._SubParsersAction[argparse.ArgumentParser], reading: argparse.ArgumentParser) -> None:
    ledger = _group(verbs, "ledger", "the credit ledger")
    balance = _verb(ledger, "balance", "ledger:balance", "what an account has", reading)
    balance.add_argument("account", nargs="?", default="", help="a peer id (default: this node)")
    history = _verb(ledger, "history", "ledger:history", "what moved, newest first", reading)
    history.add_argument("--limit", type=int, default=20, help="entries at most")
    history.add_argument("--before", default="", help="entries older than this position")
    show = _verb(ledger, "show", "ledger:show", "explain one entry: counts, prices, who, when", reading)
    show.add_argument("id", help="an id from the history, or its first characters")
    why = _verb(ledger, "why", "ledger:why", "where a balance comes from, down to its receipts", reading)
    why.add_argument("subject", nargs="?", default="", metavar="ACCOUNT|ID", help="default: this node's account")
    why.add_argument("--by", choices=("counterparty", "day"), default="counterparty", help="how to group")
    why.add_argument("--limit", type=int, default=20, help="groups at most")
    why.add_argument("--lines", action="store_true", help="every line, oldest first")
    verify = _verb(ledger, "verify", "ledger:verify", "check every link and the sum of this ledger, or a file", reading)
    verify.add_argument("file", nargs="?", type=Path, help="a proof or an export: needs no node and no data folder")
    verify.add_argument("--signatures", action="store_true", help="check every signature too (a file's always are)")
    verify.add_argument("--federation", default="", metavar="ID", help="it has to be this federation's")
    audit = _verb(ledger, "audit", "ledger:audit", "what is wrong or odd in the federation", reading)
    audit.add_argument("--signatures", action="store_true", help="check every signature too")
    _add_ledger_files(ledger, reading)
    _verb(ledger, "settle", "ledger:settle", "close the channels that owe this node now", reading)
    _add_accounts(ledger, reading)
    _add_epochs(ledger, reading)


def _add_ledger_files(
    ledger: argparse._SubParsersAction[argparse.ArgumentParser], reading: argparse.ArgumentParser
) -> None:
    prove = _verb(ledger, "prove", "ledger_files:prove", "a file that shows an account or order to anybody", reading)
    prove.add_argument("subject", metavar="ACCOUNT|ID", help="a peer id, or an id from the history")
    prove.add_argument("file", type=Path, help="where the proof is written; checked by `mtor ledger verify FILE`")
    prove.add_argument("--state", action="store_true", help="that a channel was open at the last checkpoint")
    export = _verb(ledger, "export", "ledger_files:export", "this ledger as one file", reading)
    export.add_argument("file", type=Path, help="where it is written")
    for verb in (prove, export):
        verb.add_argument("--force", action="store_true", help="replace the file if it exists")
    bring_in = _verb(ledger, "import", "ledger_files:bring_in", "take in what is new in an exported ledger", reading)
    bring_in.add_argument("file", type=Path, help="what `export` wrote, here or on another node")


def _add_accounts(
    ledger: argparse._SubParsersAction[argparse.ArgumentParser], reading: argparse.ArgumentParser
) -> None:
    account = _group(ledger, "account", "sub-accounts: for API keys and other devices, each with its own limit")
    _verb(account, "list", "accounts:list_accounts", "the accounts that this node signs for", reading)
    create = _verb(account, "create", "accounts:create", "a sub-account that this node keeps the key of", reading)
    create.add_argument("name", help="what to call it")
    create.add_argument("--credits", default="0", help="credits to move to it: all that it can spend")
    consent = _verb(account, "consent", "accounts:consent", "let another node's account be a sub-account", reading)
    consent.add_argument("account", help="that node's peer id")
    attach = _verb(account, "attach", "accounts:attach", "be another account's sub-account, for ever", reading)
    attach.add_argument("owner", help="its peer id")
    attach.add_argument("consent", help="from `mtor ledger account consent` there")
    move = _verb(ledger, "move", "accounts:move", "move credits between accounts of one owner", reading)
    move.add_argument("to", help="a peer id, the name of an account, or self: this node's own")
    move.add_argument("credits", help="an amount like 100 or 1.5, or all")
    move.add_argument("--from", dest="source", default="", metavar="ACCOUNT", help="default: this node's own")
    recovery = _verb(ledger, "recovery-key", "accounts:recovery_key", "make a key that can recover an account", reading)
    recovery.add_argument("file", type=Path, help="where its secret is written; keep it off this machine")
    recovery.add_argument("--account", default="", help="a name or a peer id (default: this node's own)")
    recover = _verb(ledger, "recover", "accounts:recover", "take over an account by its recovery file", reading)
    recover.add_argument("file", type=Path, help="what `recovery-key` wrote")
    recover.add_argument("--name", default="", help="what to call the account here")
    rotate = _verb(ledger, "rotate-key", "accounts:rotate_key", "sign for a sub-account with a new key", reading)
    rotate.add_argument("account", help="its name or peer id")


def _add_epochs(ledger: argparse._SubParsersAction[argparse.ArgumentParser], reading: argparse.ArgumentParser) -> None:
    epoch = _group(ledger, "epoch", "the end of an epoch, in which the witnesses agree on what happened")
    _verb(epoch, "status", "epochs:status", "the epoch in force, and where the witnesses stand", reading)
    propose = _verb(epoch, "propose", "epochs:propose", "end the epoch now (on a witness)", reading)
    propose.add_argument(
        "--after-restore", action="store_true", help="this only witness lost its ledger: take back what members have"
    )
    _verb(epoch, "accept", "epochs:accept", "agree that it ends before its time (on a witness)", reading)


def _add_federation(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser],
    common: argparse.ArgumentParser,
    reading: argparse.ArgumentParser,
) -> None:
    federation = _group(verbs, "federation", "whom this node shares a ledger with")
    create = _verb(federation, "create", "federation:create", "found a federation; this node is a witness", common)
    create.add_argument("name", help="its name")
    create.add_argument(
        "--witnesses",
        type=int,
        metavar="N",
        help="1, 4, 7 …; a data folder is made for each that --witness does not name",
    )
    create.add_argument("--witness", action="append", default=[], metavar="PEER_ID", help="another node as a witness")
    _add_config_flags(create)
    show = _verb(federation, "show", "federation:show", "which federation this node belongs to", reading)
    show.add_argument("--export", type=Path, metavar="FILE", help="write its genesis, which others join by")
    join = _verb(federation, "join", "federation:join", "become a member of a federation", common)
    join.add_argument("genesis", help="a file from `show --export`, or ID@MULTIADDRESS of a member")
    for verb in (create, join):
        verb.add_argument("--force", action="store_true", help="even if this node has dealings in the one before")
    grant = _verb(federation, "grant", "federation:grant", "issue credits to a node (its creator alone)", reading)
    grant.add_argument("to", help="a peer id")
    grant.add_argument("credits", help="an amount like 100 or 1.5")


def _add_keys(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser],
    common: argparse.ArgumentParser,
    reading: argparse.ArgumentParser,
) -> None:
    keys = _group(verbs, "keys", "API keys for clients on other machines")
    create = _verb(keys, "create", "keys:create", "make a key and show it once", common)
    create.add_argument("name", help="whose it is")
    create.add_argument(
        "--scope", action="append", metavar="SCOPE", help="a realm like '$CHAT', or models (default: all)"
    )
    create.add_argument("--expires", type=int, metavar="DAYS", help="after how many days it ends (default: never)")
    create.add_argument("--requests", type=int, metavar="N", help="queries a minute (default: no limit)")
    create.add_argument("--tokens", type=int, metavar="N", help="tokens a minute, in and out (default: no limit)")
    create.add_argument("--month", metavar="CREDITS", help="credits that it may cost in a calendar month, UTC")
    create.add_argument("--credits", default="", help="a limit: a sub-account with so many credits pays")
    create.add_argument("--account", default="", help="the sub-account that pays (`mtor ledger account list`)")
    _verb(keys, "list", "keys:list_keys", "the keys that exist", reading)
    _verb(keys, "revoke", "keys:revoke", "remove a key", common).add_argument("id", help="from `mtor keys list`")


def _add_setup(verbs: argparse._SubParsersAction[argparse.ArgumentParser], reading: argparse.ArgumentParser) -> None:
    config = _group(verbs, "config", "the configuration, realms.yml")
    for name, text in (("check", "find mistakes, with line and column"), ("show", "the values in force")):
        _add_config_flags(_verb(config, name, f"setup:config_{name}", text, reading))
    change = _verb(config, "set", "setup:config_set", "change a setting, at once where that is possible", reading)
    _add_config_flags(change)
    change.add_argument("key", help="like log.level; `mtor config show` has all")
    change.add_argument("value", help="as in YAML: 10, true, text, [a, b]")
    doctor = _verb(verbs, "doctor", "setup:doctor", "look for what is wrong, and say how to mend it", reading)
    _add_config_flags(doctor)
    demo = _verb(verbs, "demo", "setup:demo", "three nodes here, two questions, one killed worker, one ledger", reading)
    demo.add_argument("--keep", action="store_true", help="keep the nodes' data folders")
    demo.add_argument("--witnesses", type=int, default=1, metavar="N", help="1, 4 or 7 … (default: 1)")
    _verb(verbs, "version", "setup:show_version", "the version", reading)


if __name__ == "__main__":
    sys.exit(main())
