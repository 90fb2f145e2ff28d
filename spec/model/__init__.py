"""The ledger with 3f+1 witnesses as models that a program walks through, state by state.

    make model-check        (or: python -m spec.model; some minutes; `--short` leaves the long walks out)

Four models, each as small as its question allows, in one file each; its docstring states what happens in it:

    orders      one number of an account: votes, certificates, stores, freezing, merge        I3, I7
    funding     orders that need other orders: are merges closed and solvent?                 I2, I4
    channels    a Close over several epochs, its refund, void Closes, witnesses set back      I3, I7
    consensus   rounds of promises, prepares and commits that end an epoch                    one decision; progress

`suite` lists the checks: the design itself, *mutants* (the design without one of its rules, which must be found
broken; the shortest way there is printed), and *spare* rules (without them these properties hold all the same).

The reduction. Witnesses have no names: a state says how many correct witnesses are how. The f Byzantine ones are not
in the state at all. They sign every vote, acknowledgement, ballot and promise that the adversary could use, at any
time; whatever they could hold back, it can also do without. Messages are not in the state either: what was signed can
be used at any time later, by anybody, in any order, or never. That is at least what an asynchronous network can do.

What is covered. Every state of n = 4, f = 1, and of n = 7, f = 2, within these bounds: two conflicting orders (A, B)
for a number or a channel; two or three (n = 7: two) changes of epochs; the scenarios of `funding`; three rounds of
consensus (n = 7: two) in which every coordinator is bad, and one more round.

What is assumed, and so not covered: hashes and signatures hold; what a correct witness signs is on its disk before; a
signed snapshot can be told from a false one, and the orders of a decision can be had from the f+1 correct witnesses
that prepared it first. `orders` and `channels` take a decision as one step: that there is one for an epoch is what
`consensus` shows. More than two conflicting orders, longer chains, sub-accounts and rotated keys, more epochs or
rounds: the arguments in chapter 05 are meant to carry there; these walks do not. `tests/` hold the code to the
chapter.

Witnesses that were set back (an old disk; what they signed is in the world). The assumption, exactly: *it knows
before it signs anything again*, and then (1) gives no votes, acknowledgements, snapshots, promises and ballots until
it has adopted the decision that ends the last epoch in which it signed anything, and (2) never again votes for the
settlement of a channel that existed then. Any number of such witnesses besides f Byzantine ones leave everything
safe. Each counts as one of the f faults for progress only: while fewer than 2f+1 witnesses are left, no order is
final and no epoch ends. A witness that was set back and does *not* know is one of the f Byzantine ones; that it
abstains when it meets a vote of its own that it does not remember narrows this, and is no substitute (see the
mutants). In `consensus` a witness that abstains is one that the adversary asks nothing any more, and one that does
not know is a Byzantine one.
"""
