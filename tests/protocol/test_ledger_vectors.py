"""The ledger's vectors are what the code gives; tests/spec/test_vectors.py runs each of them."""

from protocol.ledger.votes import vote_body
from tests.protocol.ledger_world import ALICE, BOB, FEDERATION, World
from tests.protocol.make_ledger_vectors import VECTORS, generated


def test_generating_again_gives_the_same_files() -> None:
    for path, text in generated().items():
        assert path.read_text(encoding="utf-8") == text, (
            f"{path.name}: run python -m tests.protocol.make_ledger_vectors"
        )


def test_the_chapters_example_is_what_the_code_gives() -> None:
    text = "".join((VECTORS.parent / "05-ledger.md").read_text(encoding="utf-8").split())
    world = World()
    world.do(world.grant(ALICE.node, 1_000_000))
    hold = world.hold(ALICE, BOB.node, 400_000)
    vote = vote_body(world.check(hold))
    certificate = world.certificate(hold)
    world.apply(certificate)
    voucher = world.voucher(ALICE, hold.hash, 100, 50)
    world.do(world.close(BOB, hold.hash, voucher))
    for shown in (FEDERATION.id, FEDERATION.body, hold.body, hold.hash, vote, voucher.body):
        assert shown.hex() in text
    assert (len(hold.body), len(certificate)) == (160, 299)
    assert (world.balance(ALICE), world.balance(BOB)) == (999_750, 250)
