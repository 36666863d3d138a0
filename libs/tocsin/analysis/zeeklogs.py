"""Zeek's logs beside conn: dns, ssl and notice, from JSON or tab-separated lines.

A JSON line says which log it is of by ``_path`` or ``@stream``; one that says neither is known by its fields. A
tab-separated one is known by its file's ``#path``.

Formats: https://docs.zeek.org/en/master/logs/index.html
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tocsin.analysis import zeek
from tocsin.analysis.events import DnsAnswer, Entry, Notice, TlsSession
from tocsin.analysis.records import BadLineError, JsonObject, SkippedLineError, address, seconds_of, text, whole
from tocsin.contracts.base import Message

MAX_COLUMNS = 256
MAX_S = 1e11
_TEXT_MAX = 512
_NUMBERS = frozenset(
    {
        "ts",
        "duration",
        "id.orig_p",
        "id.resp_p",
        "id_orig_p",
        "id_resp_p",
        "orig_bytes",
        "resp_bytes",
        "p",
        "rcode",
    }
)
VOUCHED = frozenset({"", "ok"})
"""Zeek's validation_status where it did not look, and where somebody vouches for the certificate."""

Short = Annotated[str, Field(max_length=256)]


class Columns(Message):
    """What the header of a tab-separated log has said so far."""

    separator: Annotated[str, Field(min_length=1, max_length=1)] = "\t"
    unset: Short = "-"
    empty: Short = "(empty)"
    path: Short = ""
    names: Annotated[tuple[Short, ...], Field(max_length=MAX_COLUMNS)] = ()

    def with_header(self, data: bytes) -> Columns:
        """Return the columns after a header line.

        Raises:
            BadLineError: ``not_utf8`` or ``bad_header``.
        """
        line = _decoded(data)
        if line.startswith("#separator "):
            return self.model_copy(
                update={"separator": zeek.unescaped(line.removeprefix("#separator ").strip())}
            )
        name, *values = line.split(self.separator)
        if any(len(value) > 256 for value in values) or len(values) > MAX_COLUMNS:
            raise BadLineError("bad_header")
        if name in {"#unset_field", "#empty_field", "#path"} and values:
            return self.model_copy(update={name.removeprefix("#").removesuffix("_field"): values[0]})
        if name == "#fields":
            if not values or len(set(values)) != len(values):
                raise BadLineError("bad_header")
            return self.model_copy(update={"names": tuple(values)})
        return self

    def record(self, data: bytes) -> JsonObject:
        """Return a line's values by column; unset ones are None.

        Raises:
            BadLineError: ``not_utf8``, ``binary``, ``no_header``, ``column_count`` or ``bad_number``.
        """
        line = _decoded(data)
        if "\x00" in line:
            raise BadLineError("binary")
        if not self.names:
            raise BadLineError("no_header")
        values = line.split(self.separator)
        if len(values) != len(self.names):
            raise BadLineError("column_count")
        return {name: self._value(name, value) for name, value in zip(self.names, values, strict=True)}

    def _value(self, name: str, value: str) -> object:
        if value == self.unset:
            return None
        if value == self.empty:
            return ""
        return zeek.number(value) if name in _NUMBERS else value


def _decoded(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise BadLineError("not_utf8") from None


def log_of(record: JsonObject) -> str:
    """Return which log a JSON record is of; empty if nothing says so."""
    named = record.get("_path", record.get("@stream"))
    if isinstance(named, str):
        return named[:64]
    marks = (("conn_state", "conn"), ("note", "notice"), ("cert_chain_fuids", "ssl"), ("cipher", "ssl"))
    return next((log for mark, log in marks if mark in record), "dns" if "qtype" in record else "")


def entry(record: JsonObject, log: str) -> Entry:
    """Return what a record of a log says.

    Raises:
        BadLineError: it is not what that log has.
        SkippedLineError: nothing that is used.
    """
    match log:
        case "conn":
            flow = zeek.parsed(record).flow
            assert flow is not None  # noqa: S101 - a conn record is a flow
            return flow
        case "dns":
            return _dns(record)
        case "ssl":
            return _ssl(record)
        case "notice":
            return _notice(record)
    raise SkippedLineError(log or "unknown")


def _dns(record: JsonObject) -> DnsAnswer:
    name = text(record.get("query"))
    if not name:
        raise SkippedLineError("dns without a name")
    return DnsAnswer(
        at_s=_at(record),
        client=address(zeek.end(record, "orig_h")),
        name=name.lower().rstrip(".")[:255],
        missing=text(record.get("rcode_name")) == "NXDOMAIN",
    )


def _ssl(record: JsonObject) -> TlsSession:
    subject = text(record.get("subject"))
    status = text(record.get("validation_status"))
    problem = status if status not in VOUCHED else ""
    if subject and subject == text(record.get("issuer")):
        problem = problem or "self signed certificate"
    if not subject and not problem:
        raise SkippedLineError("ssl without a certificate")
    return TlsSession(
        at_s=_at(record),
        client=address(zeek.end(record, "orig_h")),
        server=address(zeek.end(record, "resp_h")),
        port=whole(zeek.end(record, "resp_p")),
        server_name=text(record.get("server_name"))[:255],
        subject=subject[:_TEXT_MAX],
        problem=problem[:128],
    )


def _notice(record: JsonObject) -> Notice:
    source, destination = record.get("src"), record.get("dst")
    source = zeek.end(record, "orig_h") if source is None else source
    destination = zeek.end(record, "resp_h") if destination is None else destination
    if source is None:
        raise SkippedLineError("notice about no host")
    return Notice(
        at_s=_at(record),
        note=(text(record.get("note")) or "unknown")[:128],
        message=text(record.get("msg"))[:_TEXT_MAX],
        source=address(source),
        destination="" if destination is None else address(destination),
    )


def _at(record: JsonObject) -> float:
    at_s = seconds_of(record.get("ts"))
    if not 0 <= at_s <= MAX_S:
        raise BadLineError("out_of_bounds")
    return at_s
