"""Lines of watched logs: what they say, what is bad, and that any bytes are one or the other."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import SHARED

from tocsin.analysis import syslog
from tocsin.analysis.events import DnsAnswer, Login, Notice, TlsSession
from tocsin.analysis.logs import Format, LogParser, ParserState
from tocsin.analysis.records import BadLineError, SkippedLineError
from tocsin.contracts.observations import Flow

NOW_S = 1_764_000_000.0  # 24 November 2025
EVE = {
    "timestamp": "2021-06-06T16:26:27+0200",
    "src_ip": "192.168.1.129",
    "src_port": 35790,
    "dest_ip": "192.168.1.1",
}
NAMES = ("ts", "id.orig_h", "id.orig_p", "id.resp_h", "id.resp_p", "proto", "conn_state")
TSV = b"1700828217.3\t192.168.1.9\t50820\t45.33.32.156\t443\ttcp\tREJ"


def take(record: object) -> object:
    data = record if isinstance(record, bytes) else json.dumps(record).encode()
    return LogParser().take(data, now_s=NOW_S)


@pytest.mark.parametrize(
    "dns",
    [
        {"version": 2, "type": "answer", "rrname": "No.Such.Example.", "rcode": "NXDOMAIN"},
        {"version": 3, "type": "response", "queries": [{"rrname": "no.such.example"}], "rcode": "NXDOMAIN"},
    ],
)
def test_eve_answers_of_every_version_are_read(dns: dict[str, object]) -> None:
    answer = take({**EVE, "event_type": "dns", "dest_port": 53, "dns": dns})
    assert isinstance(answer, DnsAnswer)
    assert (answer.client, answer.name, answer.missing) == ("192.168.1.129", "no.such.example", True)


def test_an_eve_answer_that_is_logged_the_other_way_round_has_the_same_client() -> None:
    turned = {"src_ip": "192.168.1.1", "src_port": 53, "dest_ip": "192.168.1.129", "dest_port": 35790}
    record = {**EVE, **turned, "event_type": "dns", "dns": {"type": "answer", "rrname": "a.b.c"}}
    answer = take(record)
    assert isinstance(answer, DnsAnswer)
    assert answer.client == "192.168.1.129"


def test_a_certificate_that_its_own_subject_issued_is_a_problem() -> None:
    tls = {"subject": "CN=x", "issuerdn": "CN=x", "sni": "x.example"}
    session = take({**EVE, "event_type": "tls", "dest_port": 443, "tls": tls})
    assert isinstance(session, TlsSession)
    assert session.problem == "self signed certificate"
    other = take({**EVE, "event_type": "tls", "dest_port": 443, "tls": {**tls, "issuerdn": "CN=ca"}})
    assert isinstance(other, TlsSession)
    assert other.problem == ""


def test_zeek_logs_are_told_by_their_own_word_or_their_fields() -> None:
    at = {"ts": 1.0, "id.orig_h": "10.0.1.6", "id.resp_h": "10.0.0.4"}
    assert isinstance(take({**at, "_path": "dns", "query": "a.example"}), DnsAnswer)
    assert isinstance(take({**at, "note": "Scan::Port_Scan", "msg": "m", "src": "10.0.0.1"}), Notice)
    assert isinstance(take({**at, "proto": "tcp", "conn_state": "SF"}), Flow)


def test_a_tab_separated_log_goes_on_after_a_restart_and_ends_with_its_file() -> None:
    parser = LogParser()
    for header in (b"#separator \\x09", b"#path\tconn", b"#fields\t" + "\t".join(NAMES).encode()):
        assert parser.take(header, now_s=NOW_S) is None
    assert isinstance(parser.take(TSV, now_s=NOW_S), Flow)
    kept = ParserState.model_validate_json(parser.dump().model_dump_json())
    again = LogParser(kept)
    assert again.format is Format.ZEEK_TSV
    assert isinstance(again.take(TSV, now_s=NOW_S), Flow)
    again.begin()
    assert again.take(TSV, now_s=NOW_S) is None
    assert again.bad == {"malformed_json": 1}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (None, "too_long"),
        (b"  ", "empty"),
        (b"\xff\xfe", "not_utf8"),
        (b"{", "malformed_json"),
        (b'{"a": 1}', "unknown_format"),
        (json.dumps({**EVE, "event_type": "dns", "dns": {"type": "answer", "rrname": 3}}).encode(), "bad_text"),
        (json.dumps({"_path": "notice", "ts": 9e10, "src": "10.0.0.1", "note": "x"}).encode(), "in_the_future"),
        (
            json.dumps({"_path": "dns", "ts": -5, "id.orig_h": "10.0.0.1", "query": "a"}).encode(),
            "out_of_bounds",
        ),
    ],
)
def test_what_is_bad_is_counted_with_its_reason(line: bytes | None, reason: str) -> None:
    parser = LogParser()
    assert parser.take(line, now_s=NOW_S) is None
    assert parser.bad == {reason: 1}


SSHD = (
    "<38>1 2025-11-24T00:00:00.123+02:00 gate sshd 42 - - ",
    "<38>Nov 24 00:00:00 gate sshd[42]: ",
    "Nov  4 00:00:00 gate sshd[42]: ",
    "2025-11-24T00:00:00.123456+02:00 gate sshd-session[42]: ",
)


@pytest.mark.parametrize("head", SSHD)
@pytest.mark.parametrize(
    ("text", "user", "succeeded"),
    [
        ("Failed password for root from 203.0.113.9 port 50001 ssh2", "root", False),
        ("Failed password for invalid user a b from 203.0.113.9 port 50001 ssh2", "a b", False),
        ("Connection closed by authenticating user bob 203.0.113.9 port 50001 [preauth]", "bob", False),
        ("Accepted publickey for alice from 203.0.113.9 port 50001 ssh2: ED25519", "alice", True),
    ],
)
def test_logins_are_read_from_every_kind_of_head(head: str, text: str, user: str, succeeded: bool) -> None:
    login = syslog.parse((head + text).encode(), now_s=NOW_S)
    assert (login.client, login.user, login.succeeded) == ("203.0.113.9", user, succeeded)
    assert NOW_S - 30 * 86400 < login.at_s < NOW_S + 86400


def test_pam_speaks_for_other_services_and_a_user_cannot_forge_an_address() -> None:
    pam = b"Nov 24 00:00:00 gate vsftpd: pam_unix(vsftpd:auth): authentication failure; rhost=203.0.113.9 user=bob"
    assert isinstance(syslog.parse(pam, now_s=NOW_S), Login)
    user = b"x from 10.0.0.1 port 1 ssh2"
    forged = (
        b"Nov 24 00:00:00 gate sshd[1]: Failed password for invalid user %s from 203.0.113.9 port 2 ssh2" % user
    )
    assert syslog.parse(forged, now_s=NOW_S).client == "203.0.113.9"


def test_a_time_without_a_year_is_never_ahead() -> None:
    assert syslog.time_of("Dec 31 23:59:59", now_s=NOW_S) < NOW_S
    assert syslog.time_of("Jan  1 00:00:00", now_s=NOW_S) < NOW_S
    with pytest.raises(BadLineError):
        syslog.time_of("Feb 30 00:00:00", now_s=NOW_S)


@given(st.binary(max_size=300), st.sampled_from([None, *Format]))
def test_any_bytes_are_an_entry_or_are_counted(data: bytes, found: Format | None) -> None:
    parser = LogParser(ParserState(format=found))
    entry = parser.take(data, now_s=NOW_S)
    assert parser.lines == 1
    assert (entry is not None) + parser.bad.total() + parser.skipped.total() == 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = (
    *(
        "event_type",
        "timestamp",
        "src_ip",
        "src_port",
        "dest_ip",
        "dest_port",
        "proto",
        "dns",
        "tls",
        "flow",
        "alert",
    ),
    *(
        "_path",
        "ts",
        "id.orig_h",
        "id.resp_h",
        "id.resp_p",
        "query",
        "rcode_name",
        "note",
        "src",
        "subject",
        "issuer",
    ),
)


@settings(suppress_health_check=[HealthCheck.too_slow])  # on a busy machine the first draws are
@given(
    st.dictionaries(st.sampled_from(KEYS), JSON, max_size=12),
    st.sampled_from(
        [{"event_type": "dns"}, {"event_type": "tls"}, {"_path": "ssl"}, {"_path": "notice"}, {"_path": "dns"}]
    ),
)
def test_any_values_are_an_entry_or_are_counted(record: dict[str, object], kind: dict[str, str]) -> None:
    parser = LogParser()
    entry = parser.take(json.dumps({**record, **kind}).encode(), now_s=NOW_S)
    assert (entry is not None) + parser.bad.total() + parser.skipped.total() == 1


@given(st.text(max_size=200), st.sampled_from(SSHD))
def test_any_message_is_a_login_or_is_not(text: str, head: str) -> None:
    try:
        login = syslog.parse((head + text).encode(), now_s=NOW_S)
    except (BadLineError, SkippedLineError):
        return
    assert login.client


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared")
def test_every_line_of_the_real_logs_is_read() -> None:
    for path in sorted((SHARED / "data").glob("*/*log*")) + sorted((SHARED / "data").glob("suricata/*.json")):
        parser = LogParser()
        for line in path.read_bytes().splitlines():
            parser.take(line, now_s=NOW_S)
        assert not parser.bad, path.name
        assert parser.entries or "x509" in path.name
