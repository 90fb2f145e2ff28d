"""The key file: private, whole, never replaced."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node import identity
from node.identity import IdentityError, load_or_create_identity, load_or_create_key
from protocol.ids import FederationId
from protocol.signing import verify


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_first_start_makes_a_key_and_later_ones_keep_it(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "node"
    first = load_or_create_identity(folder)
    again = load_or_create_identity(folder)
    assert (first.node, first.seed) == (again.node, again.seed)
    assert mode(folder / "identity.key") == 0o600
    assert [path.name for path in folder.iterdir()] == ["identity.key"]


def test_two_nodes_differ(tmp_path: Path) -> None:
    assert load_or_create_identity(tmp_path / "a").node != load_or_create_identity(tmp_path / "b").node


def test_the_key_is_private_before_it_holds_a_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def spy(key: Ed25519PrivateKey) -> bytes:
        seen.extend(mode(path) for path in tmp_path.iterdir())
        return b"not written in full"

    monkeypatch.setattr(identity, "_to_pem", spy)
    with pytest.raises(IdentityError):
        load_or_create_identity(tmp_path)
    assert seen == [0o600]


def test_the_file_is_what_other_tools_read(tmp_path: Path) -> None:
    made = load_or_create_identity(tmp_path)
    key = serialization.load_pem_private_key((tmp_path / "identity.key").read_bytes(), password=None)
    assert isinstance(key, Ed25519PrivateKey)
    assert key.public_key().public_bytes_raw() == made.node


def test_a_key_of_ones_own_signs(tmp_path: Path) -> None:
    signer = load_or_create_key(tmp_path / "issuer.key")
    federation = FederationId(bytes(32))
    body = b"\x91\x01"
    verify(signer.node, federation, body, signer.sign(federation, body))
    assert load_or_create_key(tmp_path / "issuer.key").node == signer.node


def test_others_lose_access(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = load_or_create_identity(tmp_path)
    path = tmp_path / "identity.key"
    path.chmod(0o644)
    assert load_or_create_identity(tmp_path).node == made.node
    assert mode(path) == 0o600
    assert str(path) in caplog.text


@pytest.mark.parametrize("content", [b"", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", b"\xff\0"])
def test_a_damaged_file_is_named_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "identity.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(IdentityError, match="Put your copy") as raised:
        load_or_create_identity(tmp_path)
    assert str(path) in str(raised.value)
    assert path.read_bytes() == content


def test_a_key_of_another_kind_is_refused(tmp_path: Path) -> None:
    other = generate_private_key(SECP256R1())
    path = tmp_path / "identity.key"
    path.write_bytes(
        other.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    path.chmod(0o600)
    with pytest.raises(IdentityError, match="another kind"):
        load_or_create_identity(tmp_path)


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(IdentityError, match="permissions"):
        load_or_create_identity(tmp_path / "file" / "data")


def test_nothing_secret_is_printed(tmp_path: Path) -> None:
    made = load_or_create_identity(tmp_path)
    assert made.seed.hex() not in repr(made)
    assert repr(made.seed) not in repr(made)
