"""``tocsin envelope inspect``: what is in an envelope, and whether it holds."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from tocsin.bus.envelope import Envelope, decode_body, decode_envelope
from tocsin.contracts.catalogue import message_types
from tocsin.contracts.errors import InvalidInputError, TocsinError
from tocsin.crypto import BatchVerifier, TrustStore, root_from_path
from tocsin.crypto.sealing import parse_sealed

MAX_BYTES = 2 * 1024 * 1024
INVALID = "INVALID"


def parse(data: bytes) -> bytes:
    """Take an envelope's bytes as they are, or as hexadecimal text."""
    text = data.strip()
    if text and all(byte in b"0123456789abcdefABCDEF" for byte in text) and len(text) % 2 == 0:
        return bytes.fromhex(text.decode())
    return data


def inspect(data: bytes, trust: TrustStore | None) -> dict[str, object]:
    """Describe an envelope.

    Args:
        data: its bytes.
        trust: knows the sender's certificate; None or an unknown key leaves the signature unchecked, and
            says so.

    Raises:
        InvalidInputError: the bytes are no envelope.
    """
    envelope = decode_envelope(data, max_bytes=MAX_BYTES)
    content, proof = envelope.content, envelope.proof
    return {
        "bytes": len(data),
        "id": content.id.hex(),
        "type": content.type,
        "priority": content.priority,
        "sender": content.sender,
        "audience": content.audience,
        "issued_at": datetime.fromtimestamp(content.issued_at / 1e9, UTC).isoformat(),
        "ttl_ms": content.ttl_ms,
        "correlation": content.correlation.hex() if content.correlation else None,
        "trace": content.trace,
        "sealed": content.sealed,
        "leaf": envelope.leaf.hex(),
        "key_id": envelope.key_id.hex(),
        "algorithm": proof.algorithm.label,
        "batch": {"index": proof.index, "size": proof.size, "root": _root(envelope)},
        "signature": _signature(envelope, trust),
        "body": _body(envelope),
    }


def _root(envelope: Envelope) -> str:
    proof = envelope.proof
    try:
        return root_from_path(envelope.leaf, proof.index, proof.size, proof.path).hex()
    except TocsinError as error:
        return f"invalid: {error.reason}"


def _signature(envelope: Envelope, trust: TrustStore | None) -> str:
    identity = trust.identity(envelope.key_id) if trust is not None else None
    if trust is not None and envelope.key_id == trust.root.key_id:
        identity = trust.root
    if identity is None:
        return "not checked: the sender's certificate is not known here"
    try:
        BatchVerifier().verify(identity.verifier, envelope.leaf, envelope.proof)
    except TocsinError as error:
        return f"{INVALID}: {error.reason}"
    if not identity.names(envelope.content.sender):
        return f"{INVALID}: the certificate does not name this sender"
    return "valid"


def _body(envelope: Envelope) -> object:
    content = envelope.content
    known = {kind.name: kind for kind in message_types()}
    kind = known.get(content.type)
    if content.sealed:
        return _sealed(content.body)
    if kind is None:
        return {"hex": content.body.hex()[:512], "note": "unknown type"}
    try:
        return json.loads(decode_body(kind.model, content.body).model_dump_json())
    except InvalidInputError as error:
        return {"hex": content.body.hex()[:512], "note": str(error)}


def _sealed(body: bytes) -> dict[str, object]:
    try:
        sealed = parse_sealed(body)
    except InvalidInputError as error:
        return {"hex": body.hex()[:512], "note": str(error)}
    return {"sealed_to": [one.hex() for one in sealed.recipients], "ciphertext_bytes": len(sealed.ciphertext)}
