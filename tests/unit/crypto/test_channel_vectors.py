"""Known answers: the bytes of a channel as they were when version 1 was fixed. They do not change."""

from __future__ import annotations

import hmac
import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from tocsin.crypto.channels import Initiation, Keys, Parties
from tocsin.crypto.channels.schedule import derive

VECTORS: dict[str, Any] = json.loads(Path(__file__).with_name("channel_vectors.json").read_text())
PARTIES = Parties("spiffe://test.tocsin/agent/hunter/hunter-01", "spiffe://test.tocsin/agent/hunter/hunter-02")


def test_the_initiator_of_the_vectors_understands_the_responder() -> None:
    initiation = Initiation.begin(
        PARTIES,
        qkd=(b"\x07" * 16, b"\x08" * 32),
        nonce=b"\x03" * 32,
        seeds=(bytes(range(64)), bytes(range(64, 96))),
    )
    assert sha256(initiation.offer).hexdigest() == VECTORS["offer_sha256"]
    session = initiation.finish(bytes.fromhex(VECTORS["answer"]), Keys(b"\x01" * 32, b"\x02" * 32))
    assert session.channel.hex() == VECTORS["channel"]
    assert [session.seal(b"hello").hex(), session.seal(b"").hex()] == VECTORS["frames_to_responder"]
    assert session.open(bytes.fromhex(VECTORS["frame_to_initiator"])) == b"hello back"


@pytest.mark.parametrize(("name", "qkd"), [("without_qkd", None), ("with_qkd", b"\x44" * 32)])
def test_the_key_schedule_is_plain_hkdf(name: str, qkd: bytes | None) -> None:
    """Once by our code, once by RFC 5869 written out."""
    transcript, mlkem, x25519 = b"\x11" * 32, b"\x22" * 32, b"\x33" * 32
    schedule = derive(transcript, mlkem, x25519, qkd)
    flat = [one.hex() if isinstance(one, bytes) else [part.hex() for part in one] for one in schedule]
    assert flat == VECTORS["schedule"][name]
    secrets = mlkem + x25519 + (sha256(qkd).digest() if qkd else b"")
    key = hmac.digest(transcript, secrets, "sha256")
    okm, block = b"", b""
    for number in range(1, 6):
        block = hmac.digest(key, block + b"tocsin/channel/1 keys" + transcript + bytes([number]), "sha256")
        okm += block
    confirming = hmac.digest(okm[:32], b"tocsin/channel/1 confirmation" + transcript, "sha256")
    assert schedule.confirmation == confirming
    assert schedule.to_responder == (okm[32:64], okm[64:76])
    assert schedule.to_initiator == (okm[76:108], okm[108:120])
    assert schedule.channel == okm[120:136]
