"""Sealed bodies: whoever they are for reads them, and any other use of the bytes is refused with its own reason."""

from __future__ import annotations

import functools
import hashlib
import hmac
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from tocsin.contracts.errors import ConflictError, InvalidInputError, TocsinError
from tocsin.crypto.keys import load_sealing_key, save_sealing_key
from tocsin.crypto.sealing import (
    MAX_RECIPIENTS,
    PUBLIC_BYTES,
    Sealed,
    SealingKey,
    SealingPublicKey,
    open_body,
    parse_sealed,
    seal_body,
)

BODY, HEAD = b"who did it", b"from, to, when"


@functools.cache
def key(number: int) -> SealingKey:
    return SealingKey.from_seed(bytes([number]) * 32)


def sealed_to(*numbers: int, body: bytes = BODY, head: bytes = HEAD) -> Sealed:
    return parse_sealed(seal_body(body, head, [key(number).public for number in numbers]))


def reason_of(sealed: Sealed, number: int = 1, head: bytes = HEAD) -> str:
    with pytest.raises(TocsinError) as caught:
        open_body(sealed, head, key(number))
    return caught.value.reason


@pytest.mark.parametrize("count", [1, 2, MAX_RECIPIENTS])
def test_every_recipient_reads_it_and_the_plaintext_is_not_in_the_bytes(count: int) -> None:
    data = seal_body(BODY, HEAD, [key(number).public for number in range(count)])
    assert BODY not in data
    assert all(open_body(parse_sealed(data), HEAD, key(number)) == BODY for number in {0, count - 1})


def test_recipients_are_bounded_and_the_same_key_counts_once() -> None:
    many = [key(number).public for number in range(MAX_RECIPIENTS + 1)]
    for recipients, reason in (([], "no_recipients"), (many, "too_many_recipients")):
        with pytest.raises(InvalidInputError) as caught:
            seal_body(BODY, HEAD, recipients)
        assert caught.value.reason == reason
    assert len(sealed_to(1, 1, 1).recipients) == 1


def test_each_misuse_has_its_own_reason() -> None:
    two = sealed_to(1, 2)
    mine = two.recipients.index(key(1).public.id)
    assert reason_of(two, 3) == "not_a_recipient"
    assert reason_of(two, head=b"another message") == "bad_wrap"
    stripped = two._replace(recipients=(two.recipients[mine],), wraps=(two.wraps[mine],))
    assert reason_of(stripped) == "bad_wrap"
    other = sealed_to(1, 2)
    assert reason_of(two._replace(wraps=two.wraps[::-1])) == "bad_wrap"
    assert reason_of(two._replace(commitment=other.commitment)) == "bad_commitment"
    assert reason_of(two._replace(wraps=other.wraps)) == "bad_commitment"
    assert reason_of(two._replace(ciphertext=other.ciphertext)) == "bad_ciphertext"


def test_a_key_follows_from_its_seed_as_in_the_x_wing_draft() -> None:
    """draft-connolly-cfrg-xwing-kem-10, appendix C, the first vector: its public key begins so."""
    made = SealingKey.from_seed(
        bytes.fromhex("7f9c2ba4e88f827d616045507605853ed73b8093f6efbc88eb1a6eacfa66ef26")
    )
    assert made.public.raw.hex().startswith("e2236b35a8c24b39b10aa1323a96a919a2ced88400633a7b07131713fc14b2b5")
    assert "7f9c2b" not in repr(made)


@pytest.mark.parametrize(
    "raw",
    [b"", bytes(PUBLIC_BYTES - 1), bytes(PUBLIC_BYTES), b"\xff" * PUBLIC_BYTES, key(1).public.raw[:-32] + bytes(32)],
    ids=["nothing", "short", "zeros", "no polynomial", "a point of small order"],
)  # fmt: skip
def test_a_public_key_that_nothing_can_be_sealed_to_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidInputError) as caught:
        SealingPublicKey.from_bytes(raw)
    assert caught.value.reason == "bad_sealing_key"


def test_a_key_file_is_private_never_replaced_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "host.sealing"
    save_sealing_key(path, key(1))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_sealing_key(path) == key(1)
    with pytest.raises(ConflictError):
        save_sealing_key(path, key(2))
    for text in ("", "00" * 31, "zz" * 32, "é"):
        path.write_text(text)
        with pytest.raises(InvalidInputError) as caught:
            load_sealing_key(path)
        assert caught.value.reason == "bad_key_file"


def test_a_wrap_opens_by_hand_as_the_reference_page_says() -> None:
    """RFC 9180 section 5.1 over the X-Wing combiner, from primitives: what another language has to do."""
    (recipient,), (wrap,) = (sealed := sealed_to(1)).recipients, sealed.wraps
    expanded = hashlib.shake_256(key(1).seed).digest(96)
    mlkem = MLKEM768PrivateKey.from_seed_bytes(expanded[:64])
    x25519 = X25519PrivateKey.from_private_bytes(expanded[64:])
    share = wrap[1088:1120]
    shared = hashlib.sha3_256(
        mlkem.decapsulate(wrap[:1088])
        + x25519.exchange(X25519PublicKey.from_public_bytes(share))
        + share
        + x25519.public_key().public_bytes_raw()
        + b"\\.//^\\"
    ).digest()
    suite = b"HPKE" + bytes.fromhex("647a00010002")

    def extract(salt: bytes, label: bytes, ikm: bytes) -> bytes:
        return hmac.digest(salt or bytes(32), b"HPKE-v1" + suite + label + ikm, "sha256")

    def expand(secret: bytes, label: bytes, context: bytes, length: int) -> bytes:
        labelled = length.to_bytes(2, "big") + b"HPKE-v1" + suite + label + context
        return HKDFExpand(SHA256(), length, labelled).derive(secret)

    info = hashlib.sha256(b"tocsin/sealing/1 info" + hashlib.sha256(HEAD).digest() + recipient).digest()
    context = b"\x00" + extract(b"", b"psk_id_hash", b"") + extract(b"", b"info_hash", info)
    secret = extract(shared, b"secret", b"")
    aead = AESGCM(expand(secret, b"key", context, 32))
    content_key = aead.decrypt(expand(secret, b"base_nonce", context, 12), wrap[1120:], b"")
    assert hashlib.sha256(b"tocsin/sealing/1 commitment" + content_key).digest() == sealed.commitment
    assert AESGCM(content_key).decrypt(bytes(12), sealed.ciphertext, HEAD) == BODY
