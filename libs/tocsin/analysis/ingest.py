"""Read connections and IDS alerts from Suricata EVE JSON and Zeek conn logs.

What is malformed, truncated, binary, empty or over-long is counted with its line number and skipped; what
carries no connection by design (EVE dns, http, ...; Zeek headers) is counted by type. Nothing that is in the
bytes raises anything but :class:`InvalidInputError`, and that only when the format is not known.

    with path.open("rb") as stream:
        reader = RecordReader(stream)
        flows = [record.flow for record in reader if record.flow]
        print(reader.statistics())
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain, islice
from typing import BinaryIO

from tocsin.analysis import eve, zeek
from tocsin.analysis.lines import MAX_LINE_BYTES, Line, bounded_lines
from tocsin.analysis.records import BadLineError, Label, Parsed, SkippedLineError, decode_object
from tocsin.contracts.errors import InvalidInputError
from tocsin.contracts.observations import Flow, IdsAlert

SNIFFED_LINES = 32
"""Lines that decide the format: enough to pass Zeek's eight header lines and some damage in front."""

BAD_LINES_LISTED = 100
"""Bad lines that are listed by number; the rest is only counted."""

TYPES_COUNTED = 64
"""Types of skipped records that are counted one by one; a type is text from outside."""


class InputFormat(StrEnum):
    """The formats that are read."""

    EVE = "eve"
    ZEEK_JSON = "zeek_json"
    ZEEK_TSV = "zeek_tsv"


def sniff(first_lines: Sequence[bytes]) -> InputFormat:
    """Tell the format by the first line that gives it away.

    Raises:
        InvalidInputError: ``unknown_format``.
    """
    for data in first_lines:
        found = _sniff_line(data)
        if found:
            return found
    raise InvalidInputError(
        f"none of the first {len(first_lines)} lines is a connection record of a known format",
        reason="unknown_format",
        advice="Give a Suricata EVE JSON file (eve.json) or a Zeek conn log (JSON lines, or tab-separated "
        "with its # header lines).",
    )


def _sniff_line(data: bytes) -> InputFormat | None:
    if data.startswith((b"#separator ", b"#fields")):
        return InputFormat.ZEEK_TSV
    try:
        record = decode_object(data)
    except BadLineError:
        return None
    if isinstance(record.get("event_type"), str):
        return InputFormat.EVE
    # Every log of Zeek has the two hosts; conn_state is in the conn log only.
    if "conn_state" in record and ("id.orig_h" in record or "id_orig_h" in record):
        return InputFormat.ZEEK_JSON
    return None


@dataclass(frozen=True, slots=True)
class Record:
    """One line that said something: a flow or an alert of the IDS, and its label if it is labelled."""

    line_number: int
    flow: Flow | None
    ids_alert: IdsAlert | None
    label: Label | None


@dataclass(frozen=True, slots=True)
class IngestStatistics:
    """What a reader has read so far."""

    format: InputFormat | None
    """None until the first line was asked for."""
    lines: int
    flows: int
    ids_alerts: int
    bad: int
    bad_by_reason: dict[str, int]
    first_bad: tuple[tuple[int, str], ...]
    """Line number and reason of the first bad lines."""
    skipped_by_type: dict[str, int]
    """Lines that carry no connection by design."""


class RecordReader:
    """Iterates over the records of one stream, once; bounded memory; counts what it skips.

    The format is told by the first lines (:func:`sniff`) when iteration begins, so that
    :class:`InvalidInputError` comes from the first ``next()``.
    """

    def __init__(self, stream: BinaryIO, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        self._lines = bounded_lines(stream, max_line_bytes)
        self._format: InputFormat | None = None
        self._read = 0
        self._flows = 0
        self._alerts = 0
        self._bad: Counter[str] = Counter()
        self._first_bad: list[tuple[int, str]] = []
        self._skipped: Counter[str] = Counter()
        self._records = self._iterate()

    def __iter__(self) -> Iterator[Record]:
        return self._records

    def statistics(self) -> IngestStatistics:
        """Return the counts so far."""
        return IngestStatistics(
            format=self._format,
            lines=self._read,
            flows=self._flows,
            ids_alerts=self._alerts,
            bad=self._bad.total(),
            bad_by_reason=dict(self._bad),
            first_bad=tuple(self._first_bad),
            skipped_by_type=dict(self._skipped),
        )

    def _iterate(self) -> Iterator[Record]:
        head = list(islice(self._lines, SNIFFED_LINES))
        self._format = sniff([line.data for line in head])
        parse = _parser(self._format)
        for line in chain(head, self._lines):
            self._read += 1
            parsed = self._take(line, parse)
            if parsed is None:
                continue
            self._flows += parsed.flow is not None
            self._alerts += parsed.ids_alert is not None
            yield Record(line.number, parsed.flow, parsed.ids_alert, parsed.label)

    def _take(self, line: Line, parse: Callable[[bytes], Parsed]) -> Parsed | None:
        try:
            return parse(_content(line))
        except BadLineError as bad:
            self._bad[bad.reason] += 1
            if len(self._first_bad) < BAD_LINES_LISTED:
                self._first_bad.append((line.number, bad.reason))
        except SkippedLineError as skipped:
            kind = skipped.reason[:64]
            known = kind in self._skipped or len(self._skipped) < TYPES_COUNTED
            self._skipped[kind if known else "other"] += 1
        return None


def _content(line: Line) -> bytes:
    if line.too_long:
        raise BadLineError("too_long")
    if not line.data.strip():
        raise BadLineError("empty")
    return line.data


def _parser(found: InputFormat) -> Callable[[bytes], Parsed]:
    match found:
        case InputFormat.EVE:
            return eve.parse
        case InputFormat.ZEEK_JSON:
            return zeek.parse_json
        case InputFormat.ZEEK_TSV:
            return zeek.TsvParser().parse
