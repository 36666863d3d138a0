"""Zeek's ssl.log and x509.log, as JSON lines or tab-separated with their # headers, into an inventory.

Both key styles are read, ``id.resp_h`` and ``id_resp_h``, ``certificate.key_alg`` and ``certificate_key_alg``;
certificates are joined by file id (``cert_chain_fuids``) or, from Zeek 5 on, by fingerprint (``cert_chain_fps``).
Read x509.log first: sessions name certificates that must be known by then.

What is malformed, truncated, binary or over-long is counted by reason and skipped; lines of other logs in a
combined stream are skipped by design. Nothing in the bytes raises anything but InvalidInputError.

Fields: https://docs.zeek.org/en/master/scripts/base/protocols/ssl/main.zeek.html and
https://docs.zeek.org/en/master/scripts/base/files/x509/main.zeek.html
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import BinaryIO

from tocsin.analysis.ingest import SNIFFED_LINES
from tocsin.analysis.inventory.model import MAX_TEXT, Certificate, InventoryBuilder, Variant
from tocsin.analysis.lines import Line, bounded_lines
from tocsin.analysis.records import (
    BadLineError,
    JsonObject,
    SkippedLineError,
    address,
    decode_object,
    seconds_of,
    text,
    whole,
)
from tocsin.analysis.zeek import TsvParser
from tocsin.contracts.errors import InvalidInputError

MAX_CHAIN = 16
_NUMBERS = frozenset(
    {
        f"{prefix}{separator}{name}"
        for prefix, name in (
            ("id", "resp_p"),
            ("certificate", "not_valid_before"),
            ("certificate", "not_valid_after"),
            ("certificate", "key_length"),
        )
        for separator in "._"
    }
    | {"ts"}
)
_VERSIONS = {
    "SSLv2": "SSLv2",
    "SSLv3": "SSLv3",
    "TLSv10": "TLSv1.0",
    "TLSv11": "TLSv1.1",
    "TLSv12": "TLSv1.2",
    "TLSv13": "TLSv1.3",
    "DTLSv10": "DTLSv1.0",
    "DTLSv12": "DTLSv1.2",
    "DTLSv13": "DTLSv1.3",
}


@dataclass(frozen=True, slots=True)
class LogStatistics:
    """What was read of one log."""

    lines: int
    taken: int
    bad: int
    bad_by_reason: dict[str, int]
    skipped: int
    """Headers, lines of other logs, and handshakes that were not completed."""


def read_certificates(stream: BinaryIO, builder: InventoryBuilder) -> LogStatistics:
    """Read an x509.log into ``builder``.

    Raises:
        InvalidInputError: ``unknown_format``: none of its first lines is one of an x509 log.
    """

    def take(record: JsonObject) -> None:
        certificate, aliases = certificate_of(record)
        builder.add_certificate(certificate, aliases)

    return _read(stream, "x509", take)


def read_sessions(stream: BinaryIO, builder: InventoryBuilder) -> LogStatistics:
    """Read an ssl.log into ``builder``.

    Raises:
        InvalidInputError: ``unknown_format``: none of its first lines is one of an ssl log.
    """

    def take(record: JsonObject) -> None:
        if _truth(record.get("established")) is not True:
            raise SkippedLineError("not_established")
        builder.add_session(
            address(_at(record, "id", "resp_h")),
            _port(_at(record, "id", "resp_p")),
            _variant(record),
            at_s=_moment(record.get("ts")),
            server_name=text(record.get("server_name"))[:MAX_TEXT],
            certificates=_chain(record),
        )

    return _read(stream, "ssl", take)


def certificate_of(record: JsonObject) -> tuple[Certificate, tuple[str, ...]]:
    """Read one line of an x509.log: the certificate, and the ids by which sessions name it.

    Raises:
        BadLineError: what it lacks.
    """
    kind = text(_at(record, "certificate", "key_type")).lower()
    if not kind:
        kind = _kind(text(_at(record, "certificate", "key_alg")))
    bits = whole(_at(record, "certificate", "key_length"))
    said = Certificate(
        id="",
        subject=text(_at(record, "certificate", "subject"))[:MAX_TEXT],
        issuer=text(_at(record, "certificate", "issuer"))[:MAX_TEXT],
        not_before_s=_moment(_at(record, "certificate", "not_valid_before")),
        not_after_s=_moment(_at(record, "certificate", "not_valid_after")),
        key_kind=kind[:64],
        key_bits=bits if 0 < bits < 2**20 else None,
        curve=text(_at(record, "certificate", "curve"))[:64],
        signature=text(_at(record, "certificate", "sig_alg"))[:MAX_TEXT],
    )
    fingerprint = text(record.get("fingerprint"))[:128]
    file_id = text(record.get("id"))[:128]
    if not kind or not (fingerprint or file_id):
        raise BadLineError("no_certificate")
    named = fingerprint or _digest(said, text(_at(record, "certificate", "serial")))
    return replace(said, id=named), ((file_id,) if file_id else ())


def _digest(said: Certificate, serial: str) -> str:
    """Return an id of what the log says: one certificate that was seen in many sessions is one."""
    parts = (serial, said.subject, said.issuer, said.not_after_s, said.key_kind, said.key_bits, said.signature)
    return "log-" + hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _kind(algorithm: str) -> str:
    """Return the kind of a key by the name of its algorithm, where Zeek knows no type for it."""
    known = {"rsaEncryption": "rsa", "id-ecPublicKey": "ecdsa", "dsaEncryption": "dsa"}
    return known.get(algorithm, algorithm.lower())


def _variant(record: JsonObject) -> Variant:
    version = text(record.get("version"))[:64]
    suite = text(record.get("cipher"))[:128]
    if not version or not suite:
        raise BadLineError("no_cipher")
    named = _VERSIONS.get(version.partition("-")[0], version)
    return Variant(named, suite, text(record.get("curve"))[:64])


def _chain(record: JsonObject) -> tuple[str, ...]:
    for key in ("cert_chain_fps", "cert_chain_fuids"):
        value = record.get(key)
        if isinstance(value, list):
            return tuple(text(one)[:128] for one in value[:MAX_CHAIN])
        if isinstance(value, str) and value:
            return tuple(one[:128] for one in value.split(",", MAX_CHAIN)[:MAX_CHAIN])
    return ()


def _at(record: JsonObject, prefix: str, key: str) -> object:
    dotted = record.get(f"{prefix}.{key}")
    return record.get(f"{prefix}_{key}") if dotted is None else dotted


def _truth(value: object) -> bool | None:
    return value if isinstance(value, bool) else {"T": True, "F": False}.get(str(value)[:1])


def _moment(value: object) -> float:
    seconds = seconds_of(value)
    if not math.isfinite(seconds) or not -1e11 < seconds < 1e12:
        raise BadLineError("bad_timestamp")
    return seconds


def _port(value: object) -> int:
    port = whole(value)
    if not 0 < port < 65_536:
        raise BadLineError("bad_port")
    return port


def _read(stream: BinaryIO, path: str, take: Callable[[JsonObject], None]) -> LogStatistics:
    lines = bounded_lines(stream)
    head = list(islice(lines, SNIFFED_LINES))
    decode = _decoder(head, path)
    counted: Counter[str] = Counter()
    bad: Counter[str] = Counter()
    for line in chain(head, lines):
        counted["lines"] += 1
        try:
            take(decode(_content(line)))
            counted["taken"] += 1
        except SkippedLineError:
            counted["skipped"] += 1
        except BadLineError as reason:
            bad[reason.reason] += 1
    return LogStatistics(counted["lines"], counted["taken"], bad.total(), dict(bad), counted["skipped"])


def _content(line: Line) -> bytes:
    if line.too_long:
        raise BadLineError("too_long")
    if not line.data.strip():
        raise BadLineError("empty")
    return line.data


def _decoder(head: list[Line], path: str) -> Callable[[bytes], JsonObject]:
    for line in head:
        if line.data.startswith((b"#separator ", b"#fields")):
            return TsvParser(path, _NUMBERS).record
        if _is_ours(line.data, path):
            return lambda data: _json(data, path)
    raise InvalidInputError(
        f"none of the first {len(head)} lines is one of Zeek's {path}.log",
        reason="unknown_format",
        advice=f"Give Zeek's {path}.log, as JSON lines or tab-separated with its # header lines.",
    )


def _is_ours(data: bytes, path: str) -> bool:
    try:
        _json(data, path)
    except (BadLineError, SkippedLineError):
        return False
    return True


def _json(data: bytes, path: str) -> JsonObject:
    record = decode_object(data)
    named = text(record.get("_path", record.get("@stream")))
    # A log of its own does not name itself; then it is known by a field that no other log has.
    marks = {"ssl": ("cipher", "ssl_history"), "x509": ("certificate.key_alg", "certificate_key_alg")}[path]
    if named != path and (named or not any(mark in record for mark in marks)):
        raise SkippedLineError(named[:64] or "other")
    return record
