"""Read whatever a watched log says, line by line and for ever: EVE, Zeek (JSON or tab-separated), syslog.

    parser = LogParser()
    for line in lines:
        entry = parser.take(line, now_s=now_s)      # None: bad or skipped, and counted

Unlike :class:`~tocsin.analysis.ingest.RecordReader`, which reads a file of connections to its end, it is fed lines as
they come, knows the logs beside ``conn``, and its state can be kept (:meth:`LogParser.dump`): the columns that a
tab-separated log named in its header hold after a restart in the middle of the file.

EVE: flow, alert, dns answers (versions 1 to 3), tls. Zeek: conn, dns, ssl, notice. Syslog: log-ins
(:mod:`tocsin.analysis.syslog`). Every other type is counted as skipped. The format is told by the first line that
gives it away; a log may change it only when it begins anew.
"""

from __future__ import annotations

from collections import Counter
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from tocsin.analysis import eve, syslog, zeeklogs
from tocsin.analysis.events import Entry
from tocsin.analysis.records import BadLineError, JsonObject, SkippedLineError, decode_object, text
from tocsin.contracts.base import Message

TYPES_COUNTED = 64
FUTURE_S = 86400.0
"""A record that is dated further ahead is bad: its time moves windows, and a clock that is wrong by more than a time
zone is no clock."""


class Format(StrEnum):
    """The formats of watched logs."""

    EVE = "eve"
    ZEEK_JSON = "zeek_json"
    ZEEK_TSV = "zeek_tsv"
    SYSLOG = "syslog"


class ParserState(Message):
    """What of a parser must survive a restart."""

    format: Format | None = None
    columns: zeeklogs.Columns = zeeklogs.Columns()
    log: Annotated[str, Field(max_length=64)] = ""


class LogParser:
    """Parses the lines of one log; counts what it cannot use."""

    def __init__(self, state: ParserState | None = None) -> None:
        self.lines = 0
        self.entries = 0
        self.bad: Counter[str] = Counter()
        self.skipped: Counter[str] = Counter()
        self._state = state or ParserState()

    @property
    def format(self) -> Format | None:
        """None until a line has given it away."""
        return self._state.format

    def dump(self) -> ParserState:
        """Return what must survive a restart."""
        return self._state

    def begin(self) -> None:
        """A new file begins: nothing of the last one's format holds."""
        self._state = ParserState()

    def take(self, line: bytes | None, *, now_s: float) -> Entry | None:
        """Return what a line says; None if it says nothing that is used, which is counted.

        Args:
            line: Without its line end; None for one that was too long to be kept.
            now_s: Seconds since the epoch.
        """
        self.lines += 1
        try:
            entry = self._parse(_content(line), now_s)
            _check_time(entry, now_s)
        except BadLineError as bad:
            self.bad[bad.reason] += 1
            return None
        except SkippedLineError as skipped:
            kind = skipped.reason[:64]
            known = kind in self.skipped or len(self.skipped) < TYPES_COUNTED
            self.skipped[kind if known else "other"] += 1
            return None
        self.entries += 1
        return entry

    def _parse(self, line: bytes, now_s: float) -> Entry:
        if line.startswith(b"#"):
            self._header(line)
            raise SkippedLineError("header")
        found = self._state.format
        if found is Format.ZEEK_TSV:
            return zeeklogs.entry(self._state.columns.record(line), self._state.columns.path or "conn")
        if found is Format.SYSLOG or (found is None and syslog.looks_like_syslog(line)):
            self._settle(Format.SYSLOG)
            return syslog.parse(line, now_s=now_s)
        record = decode_object(line)
        if found is None:
            found = self._tell(record)
        return self._eve(record) if found is Format.EVE else zeeklogs.entry(record, zeeklogs.log_of(record))

    def _header(self, line: bytes) -> None:
        if self._state.format not in {None, Format.ZEEK_TSV}:
            raise BadLineError("malformed_json")
        columns = self._state.columns.with_header(line)
        self._state = ParserState(format=Format.ZEEK_TSV, columns=columns)

    def _tell(self, record: JsonObject) -> Format:
        if isinstance(record.get("event_type"), str):
            return self._settle(Format.EVE)
        if zeeklogs.log_of(record):
            return self._settle(Format.ZEEK_JSON)
        raise BadLineError("unknown_format")

    def _settle(self, found: Format) -> Format:
        if self._state.format is None:
            self._state = ParserState(format=found)
        return found

    @staticmethod
    def _eve(record: JsonObject) -> Entry:
        kind = text(record.get("event_type"))
        if kind == "dns":
            return eve.dns(record)
        if kind == "tls":
            return eve.tls(record)
        parsed = eve.parse_record(record)
        entry = parsed.flow or parsed.ids_alert
        assert entry is not None  # noqa: S101 - parse_record raises for every other type
        return entry


def _content(line: bytes | None) -> bytes:
    if line is None:
        raise BadLineError("too_long")
    if not line.strip():
        raise BadLineError("empty")
    return line


def _check_time(entry: Entry, now_s: float) -> None:
    if entry.at_s > now_s + FUTURE_S:
        raise BadLineError("in_the_future")
