"""Zeek's conn.log, as JSON lines or tab-separated with its # headers, with or without labels.

JSON: both key styles, ``id.orig_h`` and ``id_orig_h``; a line of another log in a combined stream (its
``_path`` or ``@stream`` is not conn) is skipped by design.

Tab-separated: ``#separator``, ``#unset_field``, ``#empty_field``, ``#path`` and ``#fields`` are honoured. A
second ``#fields`` line, as in logs that were concatenated, is counted as a bad line; the columns that it names
hold from there on. Labelled logs carry ``label`` and ``detailedlabel`` columns.

Formats: https://docs.zeek.org/en/master/log-formats.html, conn_state:
https://docs.zeek.org/en/master/scripts/base/protocols/conn/main.zeek.html
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from tocsin.analysis.records import (
    BadLineError,
    JsonObject,
    Label,
    Parsed,
    SkippedLineError,
    address,
    checked_flow,
    decode_object,
    seconds_of,
    text,
    whole,
)
from tocsin.contracts.observations import FlowState

HEADER = "header"
"""The type under which header and comment lines are counted as skipped."""

STATES: Mapping[str, FlowState] = {
    "S0": FlowState.UNANSWERED,  # attempt seen, no reply
    "SH": FlowState.UNANSWERED,  # SYN then FIN, no SYN-ACK
    "RSTOS0": FlowState.UNANSWERED,  # SYN then RST by the originator, no SYN-ACK
    "REJ": FlowState.REJECTED,
    "RSTO": FlowState.RESET,
    "RSTR": FlowState.RESET,
    "RSTRH": FlowState.RESET,  # SYN-ACK then RST by the responder, no SYN seen
    "S1": FlowState.ESTABLISHED,
    "S2": FlowState.ESTABLISHED,
    "S3": FlowState.ESTABLISHED,
    "SF": FlowState.ESTABLISHED,
    "SHR": FlowState.OTHER,  # the responder's half only
    "OTH": FlowState.OTHER,
}
"""Zeek's conn_state, reduced. The comments quote what is not in the name."""

_MAX_COLUMNS = 256
_LABEL_MAX = 256
_ESCAPED = re.compile(r"\\x([0-9a-fA-F]{2})")


def parse_json(data: bytes) -> Parsed:
    """Parse one JSON line."""
    record = decode_object(data)
    stream = record.get("_path", record.get("@stream", "conn"))
    if stream != "conn":
        raise SkippedLineError(text(stream))
    # Zeek writes every proto; a line without it is of another log that does not name itself.
    return parsed(record)


def end(record: JsonObject, key: str) -> object:
    """Return a field of the connection's ends, in either style of keys."""
    dotted = record.get(f"id.{key}")
    return record.get(f"id_{key}") if dotted is None else dotted


def parsed(record: JsonObject) -> Parsed:
    """Return the connection of a record of conn.log, and its label."""
    protocol = text(record.get("proto")).lower()
    state = text(record.get("conn_state"))
    if not protocol:
        raise BadLineError("no_protocol")
    if state and state not in STATES:
        raise BadLineError("bad_conn_state")
    # Zeek puts the type and code of an ICMP message where the ports are; they are no ports.
    ports = ("orig_p", "resp_p") if protocol not in {"icmp", "icmp6"} else ("", "")
    flow = checked_flow(
        at_s=seconds_of(record.get("ts")),
        ends=(
            address(end(record, "orig_h")),
            whole(end(record, ports[0])),
            address(end(record, "resp_h")),
            whole(end(record, ports[1])),
        ),
        protocol=protocol,
        service=text(record.get("service"))[:64] or None,
        duration_s=_duration(record.get("duration")),
        octets=(whole(record.get("orig_bytes")), whole(record.get("resp_bytes"))),
        state=STATES.get(state, FlowState.OTHER),
    )
    return Parsed(flow=flow, label=_label(record))


def _duration(value: object) -> float | None:
    return None if value is None else seconds_of(value)


def _label(record: JsonObject) -> Label | None:
    label = text(record.get("label"))
    if not label:
        return None
    return Label(label[:_LABEL_MAX], text(record.get("detailedlabel"))[:_LABEL_MAX])


CONN_NUMBERS = frozenset(
    {"ts", "duration", "id.orig_p", "id.resp_p", "id_orig_p", "id_resp_p", "orig_bytes", "resp_bytes"}
)
"""Columns of conn.log that are read as numbers."""


class TsvParser:
    """Parses the lines of one tab-separated log; remembers its headers, and nothing else.

    Args:
        path: Name of the log, as its ``#path`` header says it.
        numbers: Columns that are read as numbers; all others are text.
    """

    def __init__(self, path: str = "conn", numbers: frozenset[str] = CONN_NUMBERS) -> None:
        self._path = path
        self._numbers = numbers
        self._separator = "\t"
        self._unset = "-"
        self._empty = "(empty)"
        self._fields: tuple[str, ...] = ()

    def parse(self, data: bytes) -> Parsed:
        """Parse one line; headers raise :class:`SkippedLineError` or, where repeated, count as bad."""
        return parsed(self.record(data))

    def record(self, data: bytes) -> JsonObject:
        """Return a line's values by column, unset ones None; headers as in :meth:`parse`."""
        try:
            line = data.decode("utf-8")
        except UnicodeDecodeError:
            raise BadLineError("not_utf8") from None
        if "\x00" in line:
            raise BadLineError("binary")
        if line.startswith("#"):
            self._header(line)
            raise SkippedLineError(HEADER)
        if not self._fields:
            raise BadLineError("no_header")
        values = line.split(self._separator)
        if len(values) != len(self._fields):
            raise BadLineError("column_count")
        return {name: self._value(name, value) for name, value in zip(self._fields, values, strict=True)}

    def _header(self, line: str) -> None:
        if line.startswith("#separator "):
            self._separator = unescaped(line.removeprefix("#separator ").strip())
            return
        name, *values = line.split(self._separator)
        if name == "#unset_field" and values:
            self._unset = values[0]
        elif name == "#empty_field" and values:
            self._empty = values[0]
        elif name == "#path" and values and values[0] != self._path:
            raise BadLineError(f"not_a_{self._path}_log")
        elif name == "#fields":
            self._name_columns(tuple(values))

    def _name_columns(self, names: tuple[str, ...]) -> None:
        if not names or len(names) > _MAX_COLUMNS or len(set(names)) != len(names):
            raise BadLineError("bad_header")
        repeated = bool(self._fields)
        self._fields = names
        if repeated:
            raise BadLineError("duplicate_header")

    def _value(self, name: str, value: str) -> object:
        if value == self._unset:
            return None
        if value == self._empty:
            return ""
        if name not in self._numbers:
            return value
        return number(value)


def number(value: str) -> int | float:
    """Return a number of a tab-separated log; whole ones exactly."""
    try:
        # int() first: a byte count above 2**53 would lose digits as a float.
        return int(value) if value.isdecimal() else _finite(value)
    except (ValueError, OverflowError):
        raise BadLineError("bad_number") from None


def _finite(value: str) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(value)
    return number


def unescaped(written: str) -> str:
    r"""Return the separator that a header spells as ``\x09`` or as itself."""
    escaped = _ESCAPED.fullmatch(written)
    separator = chr(int(escaped[1], 16)) if escaped else written
    if len(separator) != 1:
        raise BadLineError("bad_header")
    return separator
