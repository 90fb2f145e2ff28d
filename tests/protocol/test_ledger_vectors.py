"""The ledger's vectors are what the code gives; tests/spec/test_vectors.py runs each of them."""

from tests.protocol.make_ledger_vectors import generated


def test_generating_again_gives_the_same_files() -> None:
    for path, text in generated().items():
        assert path.read_text(encoding="utf-8") == text, (
            f"{path.name}: run python -m tests.protocol.make_ledger_vectors"
        )
