"""The rules of money, as pure functions over a mapping of bytes to bytes.

Read it in this order; the first seven files are what a credit is and how it moves:

    state          what is stored: accounts, channels, locks, the log
    genesis        who may vote and who may grant
    orders         what an order must say, whoever's balance it concerns
    accounts       who can pay for it
    votes          which one order of a number a witness votes for
    quorums        what enough witnesses have signed
    certificates   what an order does, once a quorum has voted
    channels       vouchers between the two sides of a channel
    families       keys of an account, accounts of an owner
    checkpoints    the union of a quorum's logs at the end of an epoch, and the state that it makes
    epochs         how witnesses agree on that end: promises, prepares, commits
    merkle, proofs what can be shown to somebody who has no ledger
    evidence       proofs against those who sign two things
    pruning        what may be forgotten
    audit, assumed everything made anew and compared, one signature at a time or on many cores
"""
