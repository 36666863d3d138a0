"""Suricata EVE: one JSON object a line, typed by ``event_type``.

``flow`` records are connections and ``alert`` records are the IDS's own alerts; every other type (dns, http,
fileinfo, tls, anomaly, ...) describes a connection that has its own flow record, and is skipped by design where
connections are read (:func:`parse`). Who watches a log reads :func:`dns` answers and :func:`tls` sessions too.

Format: https://docs.suricata.io/en/latest/output/eve/eve-json-format.html
"""

from __future__ import annotations

from pydantic import ValidationError

from tocsin.analysis.events import DnsAnswer, TlsSession
from tocsin.analysis.records import (
    BadLineError,
    JsonObject,
    Parsed,
    SkippedLineError,
    address,
    checked_flow,
    decode_object,
    nested,
    seconds_of,
    text,
    whole,
)
from tocsin.contracts.observations import Flow, FlowState, IdsAlert

_SYN, _RST = 0x02, 0x04
"""TCP flag bits (RFC 9293 section 3.1), as Suricata writes them in hexadecimal."""

_TEXT_MAX = 512

MAX_S = 1e11
"""Latest time of a record, in seconds since the epoch: the bound of a flow's."""


def parse(data: bytes) -> Parsed:
    """Parse one line of EVE JSON."""
    return parse_record(decode_object(data))


def parse_record(record: JsonObject) -> Parsed:
    """Return the connection or the alert of a record."""
    kind = record.get("event_type")
    if kind == "flow":
        return Parsed(flow=_flow(record))
    if kind == "alert":
        return Parsed(ids_alert=_alert(record))
    name = text(kind)
    if not name:
        raise BadLineError("no_event_type")
    raise SkippedLineError(name)


def _flow(record: JsonObject) -> Flow:
    flow = nested(record, "flow")
    start_s = seconds_of(flow.get("start", record.get("timestamp")))
    end = flow.get("end")
    protocol = text(record.get("proto"))
    if not protocol:
        raise BadLineError("no_protocol")
    return checked_flow(
        at_s=start_s,
        ends=(
            address(record.get("src_ip")),
            whole(record.get("src_port")),
            address(record.get("dest_ip")),
            whole(record.get("dest_port")),
        ),
        protocol=protocol,
        service=_service(record),
        duration_s=None if end is None else seconds_of(end) - start_s,
        octets=(whole(flow.get("bytes_toserver")), whole(flow.get("bytes_toclient"))),
        state=state_of(record),
    )


def _service(record: JsonObject) -> str | None:
    service = text(record.get("app_proto"))
    return None if service in {"", "failed", "unknown"} else service


def _flags(value: object) -> int:
    try:
        return int(value, 16) if isinstance(value, str) and len(value) <= 4 else 0
    except ValueError:
        return 0


def state_of(record: JsonObject) -> FlowState:
    """Reduce flow.state and the TCP flags of both directions to a state.

    Suricata's ``closed`` covers an orderly end, a refusal and an abort alike; the flags tell them apart.
    """
    state = nested(record, "flow").get("state")
    tcp = nested(record, "tcp")
    from_client, from_server = _flags(tcp.get("tcp_flags_ts")), _flags(tcp.get("tcp_flags_tc"))
    if from_server & _RST and not from_server & _SYN:
        return FlowState.REJECTED
    if state == "new":
        return FlowState.UNANSWERED
    if (from_client | from_server) & _RST:
        return FlowState.RESET
    if state in {"established", "closed"}:
        return FlowState.ESTABLISHED
    return FlowState.OTHER


def _alert(record: JsonObject) -> IdsAlert:
    alert = nested(record, "alert")
    try:
        return IdsAlert(
            at_s=seconds_of(record.get("timestamp")),
            source=address(record.get("src_ip")),
            destination=address(record.get("dest_ip")),
            destination_port=whole(record.get("dest_port")),
            signature_id=whole(alert.get("signature_id")),
            signature=text(alert.get("signature"))[:_TEXT_MAX],
            category=text(alert.get("category"))[:_TEXT_MAX],
            severity=whole(alert.get("severity")),
        )
    except ValidationError:
        raise BadLineError("out_of_bounds") from None


def dns(record: JsonObject) -> DnsAnswer:
    """Return the answer to a query; a query by itself is skipped.

    Answers are told by their type (``answer`` in versions 1 and 2, ``response`` in 3); the client is the side that
    does not speak from port 53. Version 1 has one record for each resource record, version 3 the names in
    ``queries``.
    """
    said = nested(record, "dns")
    if text(said.get("type")) not in {"answer", "response"}:
        raise SkippedLineError("dns query")
    name = said.get("rrname")
    queries = said.get("queries")
    if name is None and isinstance(queries, list) and queries and isinstance(queries[0], dict):
        name = queries[0].get("rrname")
    if not name:
        raise SkippedLineError("dns without a name")
    client = record.get("dest_ip") if whole(record.get("src_port")) == 53 else record.get("src_ip")
    return DnsAnswer(
        at_s=_event_s(record),
        client=address(client),
        name=text(name).lower().rstrip(".")[:255],
        missing=text(said.get("rcode")) == "NXDOMAIN",
    )


def tls(record: JsonObject) -> TlsSession:
    """Return a TLS session; one without a certificate (resumed, or TLS 1.3, which hides it) is skipped.

    Suricata checks no chain: all that is seen is a certificate that its own subject has issued.
    """
    said = nested(record, "tls")
    subject, issuer = text(said.get("subject")), text(said.get("issuerdn"))
    if not subject:
        raise SkippedLineError("tls without a certificate")
    return TlsSession(
        at_s=_event_s(record),
        client=address(record.get("src_ip")),
        server=address(record.get("dest_ip")),
        port=whole(record.get("dest_port")),
        server_name=text(said.get("sni"))[:255],
        subject=subject[:_TEXT_MAX],
        problem="self signed certificate" if subject == issuer else "",
    )


def _event_s(record: JsonObject) -> float:
    """Return when an event was; like a flow's start, not before the epoch and finite."""
    at_s = seconds_of(record.get("timestamp"))
    if not 0 <= at_s <= MAX_S:
        raise BadLineError("out_of_bounds")
    return at_s
