"""What every log format has in common: a record, a bad line, a line that is skipped by design.

The parsers of the formats (``eve``, ``zeek``) return a :class:`Parsed` or raise :class:`BadLineError` or
:class:`SkippedLineError`; they raise nothing else, whatever the bytes are. Both are control flow inside
this package, not failures, and never leave :class:`tocsin.analysis.ingest.RecordReader`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from ipaddress import ip_address
from typing import NoReturn

from pydantic import ValidationError

from tocsin.contracts.observations import Flow, FlowState, IdsAlert

_SURROGATE = re.compile("[\ud800-\udfff]")

JsonObject = Mapping[str, object]
"""A decoded JSON object: keys are text, values are checked where they are used."""


@dataclass(frozen=True, slots=True)
class Label:
    """Ground truth that a data set carries. Never part of a flow, so that no detector can see it."""

    label: str
    detail: str


@dataclass(frozen=True, slots=True)
class Parsed:
    """What one line says: a connection, or an alert of the IDS, and perhaps its label."""

    flow: Flow | None = None
    ids_alert: IdsAlert | None = None
    label: Label | None = None


class LineSignal(Exception):  # noqa: N818  (control flow, not a failure: style.md section 5)
    """Root of the two ways in which a line yields no record."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class BadLineError(LineSignal):
    """The line is not what its format promises; ``reason`` says why."""


class SkippedLineError(LineSignal):
    """The line is fine and carries no connection; ``reason`` is the type of record."""


def _refuse_constant(name: str) -> NoReturn:
    raise BadLineError("not_finite") from ValueError(name)


def decode_object(data: bytes) -> JsonObject:
    """Decode one JSON object; NaN, Infinity, deep nesting and bytes that are not UTF-8 are bad lines."""
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError:
        raise BadLineError("not_utf8") from None
    except RecursionError:
        raise BadLineError("nested_too_deeply") from None
    except ValueError:  # malformed JSON, or an integer of more digits than Python converts
        raise BadLineError("malformed_json") from None
    if not isinstance(value, dict):
        raise BadLineError("not_an_object")
    return value


def nested(record: JsonObject, key: str) -> JsonObject:
    """Return the object under ``key``, or an empty one where there is none."""
    value = record.get(key)
    return value if isinstance(value, dict) else {}


@lru_cache(maxsize=8192)
def _canonical(text: str) -> str:
    return str(ip_address(text))


def address(value: object) -> str:
    """Return an address in its canonical form, so that one host has one name."""
    if not isinstance(value, str) or len(value) > 64:
        raise BadLineError("bad_address")
    try:
        return _canonical(value)
    except ValueError:
        raise BadLineError("bad_address") from None


def seconds_of(value: object) -> float:
    """Return seconds since the epoch from a number or an ISO 8601 text (without a zone: UTC)."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise BadLineError("bad_timestamp")
    try:
        if not isinstance(value, str):
            return float(value)
        moment = datetime.fromisoformat(value)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError, OSError):
        raise BadLineError("bad_timestamp") from None


def whole(value: object) -> int:
    """Return a count or a port: a JSON integer (or an integral float); absent is 0."""
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
        raise BadLineError("bad_number")
    return int(value)


def text(value: object) -> str:
    """Return a text field; absent is empty. Half of a surrogate pair, which JSON can spell, is bad."""
    if value is None:
        return ""
    if not isinstance(value, str) or _SURROGATE.search(value):
        raise BadLineError("bad_text")
    return value


def checked_flow(
    *,
    at_s: float,
    ends: tuple[str, int, str, int],
    protocol: str,
    service: str | None,
    duration_s: float | None,
    octets: tuple[int, int],
    state: FlowState,
) -> Flow:
    """Build a flow; what is out of bounds (negative, infinite, a port above 65535) is a bad line.

    Args:
        at_s: Start, in seconds since the epoch.
        ends: Source address and port, destination address and port.
        protocol: As the log spells it; lower-cased here.
        service: Application protocol, if the log knows it.
        duration_s: None where the log does not say.
        octets: Bytes sent by the originator and by the responder.
        state: How the connection ended.
    """
    source, source_port, destination, destination_port = ends
    try:
        return Flow(
            at_s=at_s,
            source=source,
            source_port=source_port,
            destination=destination,
            destination_port=destination_port,
            protocol=protocol.lower(),
            service=service,
            duration_s=duration_s,
            bytes_sent=octets[0],
            bytes_received=octets[1],
            state=state,
        )
    except ValidationError:
        raise BadLineError("out_of_bounds") from None
