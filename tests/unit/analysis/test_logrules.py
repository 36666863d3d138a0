"""The rules over log lines at their thresholds, and the watch that keeps them."""

from __future__ import annotations

import json
import random
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import SHARED

from tocsin.analysis.detectors import MIN_UPLOAD, exfiltration
from tocsin.analysis.events import DnsAnswer, Entry, Login, Notice, TlsSession
from tocsin.analysis.logrules import MIN_FAILED_LOGINS, MIN_NXDOMAINS, MIN_TLS_SESSIONS, LogRules
from tocsin.analysis.logs import LogParser
from tocsin.analysis.watching import Watch
from tocsin.analysis.windows import Window
from tocsin.contracts.errors import InvalidInputError
from tocsin.contracts.observations import Finding, FindingKind, Flow, FlowState

OUTSIDE, OURS = "203.0.113.9", "10.0.0.5"


def login(number: int, *, succeeded: bool = False, closing: bool = False, port: int = 0) -> Login:
    return Login(1000.0 + number, "ssh", "gate", OUTSIDE, port or 40_000 + number, "root", succeeded, closing)


def found(*events: DnsAnswer | TlsSession | Login | Notice) -> list[Finding]:
    rules = LogRules("/var/log/x")
    for event in events:
        rules.take(event)
    return rules.peek()


def test_guessing_is_found_from_its_limit_on_and_success_makes_it_high() -> None:
    assert not found(*map(login, range(MIN_FAILED_LOGINS - 1)))
    (guessing,) = found(*map(login, range(MIN_FAILED_LOGINS)))
    assert (guessing.kind, guessing.score, guessing.technique.id) == (FindingKind.BRUTE_FORCE, 0.5, "T1110")
    (entered,) = found(*map(login, range(MIN_FAILED_LOGINS)), login(9, succeeded=True))
    assert (entered.score, entered.technique.id) == (0.9, "T1078")
    assert not found(*(login(n, succeeded=True) for n in range(50))), "who logs in does not guess"


def test_the_end_of_a_connection_that_failed_is_not_counted_again() -> None:
    failed = [login(n, port=50_000 + n) for n in range(MIN_FAILED_LOGINS // 2)]
    closed = [login(n, port=50_000 + n, closing=True) for n in range(MIN_FAILED_LOGINS // 2)]
    assert not found(*failed, *closed)
    assert found(*(login(n, closing=True) for n in range(MIN_FAILED_LOGINS)))


def test_data_in_names_is_found_and_ordinary_names_are_not() -> None:
    letters = random.Random(1)  # noqa: S311 - names, not secrets
    names = ["".join(letters.choices(string.ascii_lowercase + string.digits, k=50)) for _ in range(160)]
    (tunnel,) = found(
        *(DnsAnswer(1.0 + n, OURS, f"{name}.t.example.org", missing=False) for n, name in enumerate(names))
    )
    assert (tunnel.kind, tunnel.technique.id) == (FindingKind.DNS_TUNNEL, "T1071.004")
    ordinary = [DnsAnswer(float(n), OURS, f"www{n % 7}.cdn.example.org", missing=False) for n in range(3000)]
    assert not found(*ordinary)
    block_list = [
        DnsAnswer(1.0 + n, OURS, f"{name}.zen.spamhaus.org", missing=False) for n, name in enumerate(names)
    ]
    assert not found(*block_list)


def test_many_domains_that_do_not_exist_are_found_and_one_search_list_is_not() -> None:
    (missing,) = found(
        *(DnsAnswer(float(n), OURS, f"qx{n}.example", missing=True) for n in range(MIN_NXDOMAINS))
    )
    assert (missing.kind, missing.score) == (FindingKind.NXDOMAIN, 0.5)
    assert not found(*(DnsAnswer(float(n), OURS, f"host{n}.corp.example", missing=True) for n in range(200)))
    assert not found(*(DnsAnswer(float(n), OURS, f"probe{n}", missing=True) for n in range(200)))


def test_certificates_that_nobody_vouches_for() -> None:
    def sessions(server: str, problem: str) -> list[TlsSession]:
        return [TlsSession(float(n), OURS, server, 443, "", "CN=x", problem) for n in range(MIN_TLS_SESSIONS)]

    assert [one.score for one in found(*sessions("203.0.113.9", "self signed certificate"))] == [0.5]
    assert [one.score for one in found(*sessions("10.0.0.9", "self signed certificate"))] == [0.3]
    assert not found(*sessions("203.0.113.9", ""))


def test_notices_count_by_their_weight() -> None:
    notices = [
        Notice(1.0, "Scan::Port_Scan", "m", OUTSIDE, OURS),
        Notice(2.0, "SSL::Invalid_Server_Cert", "", OUTSIDE, ""),
    ]
    (one,) = found(*notices)
    assert one.score == pytest.approx(1 - 0.4 * 0.65)
    assert one.technique.id == "T1595"
    (unknown,) = found(Notice(1.0, "Nobody::Knows", "", OURS, ""))
    assert unknown.score == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("sent", "received", "peer", "is_found"),
    [
        (MIN_UPLOAD, 0, "203.0.113.9", True),
        (MIN_UPLOAD - 1, 0, "203.0.113.9", False),
        (MIN_UPLOAD, MIN_UPLOAD, "203.0.113.9", False),
        (10 * MIN_UPLOAD, 0, "10.0.0.9", False),
    ],
)
def test_exfiltration_is_much_that_goes_out_and_little_that_comes_back(
    sent: int, received: int, peer: str, is_found: bool
) -> None:
    flow = Flow(
        at_s=1.0,
        source=OURS,
        source_port=1,
        destination=peer,
        destination_port=443,
        protocol="tcp",
        bytes_sent=sent,
        bytes_received=received,
        state=FlowState.ESTABLISHED,
    )
    suspicion = exfiltration(Window(OURS, 0.0, 300.0, [flow]))
    assert (suspicion is not None) is is_found
    if suspicion:
        assert (suspicion.score, suspicion.technique.id) == (0.5, "T1048")


EVENTS: st.SearchStrategy[Entry] = st.one_of(
    st.builds(login, st.integers(0, 900), succeeded=st.booleans(), closing=st.booleans()),
    st.builds(DnsAnswer, st.floats(0, 1e6), st.just(OURS), st.text(max_size=60), st.booleans()),
    st.builds(Notice, st.floats(0, 1e6), st.text(max_size=9), st.text(max_size=9), st.just(OURS), st.just("")),
    st.builds(
        TlsSession, st.floats(0, 1e6), st.just(OURS), st.just(OUTSIDE), st.just(443), *[st.text(max_size=9)] * 3
    ),
)


@given(st.lists(EVENTS, max_size=60), st.integers(0, 60))
@settings(max_examples=60, deadline=None)
def test_a_watch_that_was_kept_goes_on_as_if_nothing_had_been(events: list[Entry], at: int) -> None:
    one, other = Watch("/x"), Watch("/x")
    one.take(events[:at], now_s=1e9)
    other.load(json.loads(json.dumps(one.dump())))
    assert one.take(events[at:], now_s=1e9) == other.take(events[at:], now_s=1e9)
    assert one.look() == other.look()
    assert one.dump() == other.dump()


@pytest.mark.parametrize(
    "state",
    [
        {"detection": 3},
        {"rules": {"logins": [["a", "b", {}]]}},
        {"detection": {"flows": [["x", 0, 0, 0, [[1]]]]}},
    ],
)
def test_a_damaged_state_is_refused(state: dict[str, object]) -> None:
    with pytest.raises(InvalidInputError) as caught:
        Watch("/x").load(state)
    assert caught.value.reason == "bad_state"


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared")
@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("mixed.conn.log", set()),
        ("apt29-nashua.dns.log", set()),
        ("apt29-nashua.ssl.log", {"tls"}),
        ("apt29-nashua.notice.log", {"notice"}),
        ("apt29-nashua.conn.log", {"beacon"}),
        ("port-scan-vertical.conn.log", {"scan"}),
        ("port-scan-horizontal.conn.log", {"scan"}),
        ("ctu-sme-11-win.conn.log.labeled", {"beacon"}),
    ],
)
def test_real_logs_show_what_they_hold_and_ordinary_traffic_nothing(name: str, kinds: set[str]) -> None:
    parser, watch = LogParser(), Watch(name)
    entries = [parser.take(line, now_s=2e9) for line in (SHARED / "data/zeek" / name).read_bytes().splitlines()]
    closed = watch.take([entry for entry in entries if entry is not None], now_s=2e9)
    assert {one.kind.value for one in (*closed, *watch.look())} == kinds
