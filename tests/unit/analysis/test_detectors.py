from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest
from unit.analysis.traffic import flow, window

from tocsin.analysis import ids
from tocsin.analysis.detection import Detection, strongest_first
from tocsin.analysis.detectors import MIN_GUESSES, beacon, brute_force, judge, log10_binomial_tail, scan
from tocsin.analysis.ingest import RecordReader
from tocsin.analysis.labels import compare
from tocsin.analysis.office import office_traffic
from tocsin.analysis.records import Label
from tocsin.contracts.errors import InvalidInputError
from tocsin.contracts.observations import FindingKind, Flow, FlowState, IdsAlert, Observations

DATA = Path(__file__).resolve().parents[3].parent / "shared" / "data"
REJECTED, UNANSWERED, RESET = FlowState.REJECTED, FlowState.UNANSWERED, FlowState.RESET


FOUND, QUIET = True, False


@dataclass(frozen=True)
class Case:
    name: str
    flows: list[Flow]
    found: bool
    targets: tuple[str, ...] | None = None
    technique: str | None = None


def ports(count: int, state: FlowState, **more: str | int) -> list[Flow]:
    return [flow(i / 10, port=1000 + i, state=state, **more) for i in range(count)]  # type: ignore[arg-type]


def hosts(count: int, state: FlowState, first: int = 1) -> list[Flow]:
    return [flow(i / 10, peer=f"10.9.0.{first + i}", port=445, state=state) for i in range(count)]


def udp(first_port: int, source_port: int = 0) -> list[Flow]:
    return [
        flow(i, port=first_port + i, source_port=source_port, protocol="udp", state=UNANSWERED)
        for i in range(20)
    ]


PINGS = [flow(i, port=0, peer=f"10.9.0.{i + 1}", protocol="icmp", state=UNANSWERED) for i in range(20)]


@pytest.mark.parametrize(
    "case",
    [
        Case("vertical", ports(20, REJECTED), FOUND, ("10.0.0.9",), "T1046"),
        Case("vertical from outside", ports(20, REJECTED, source="203.0.113.5"), FOUND, None, "T1595"),
        Case("horizontal", hosts(20, UNANSWERED), FOUND, None, "T1046"),
        Case("five of five", ports(5, REJECTED), FOUND),
        Case("four of four are too few", ports(4, REJECTED), QUIET),
        Case("everything answers", ports(50, FlowState.ESTABLISHED), QUIET),
        Case("aborted is answered", ports(50, RESET), QUIET),
        Case("a fifth fails, as may be", hosts(40, FlowState.ESTABLISHED) + hosts(10, REJECTED, 41), QUIET),
        Case("half fails", hosts(20, FlowState.ESTABLISHED) + hosts(20, REJECTED, 41), FOUND),
        Case("one dead service, often", [flow(i, state=REJECTED) for i in range(100)], QUIET),
        Case("a port that answers later", ports(9, REJECTED) + ports(9, FlowState.ESTABLISHED), QUIET),
        Case("UDP", ports(20, UNANSWERED, protocol="udp"), FOUND),
        Case("UDP replies to dynamic ports", udp(50000), QUIET),
        Case("DNS replies", udp(2000, source_port=53), QUIET),
        Case("ICMP has no ports", PINGS, QUIET),
    ],
    ids=lambda case: case.name,
)  # fmt: skip
def test_scan(case: Case) -> None:
    found = scan(window(case.flows))
    assert (found is not None) is case.found
    if found:
        assert found.score >= 0.5
        assert case.targets in {None, found.targets}
        assert case.technique in {None, found.technique.id}
        assert len(found.targets) <= 16


def test_a_larger_scan_scores_higher() -> None:
    scores = [found.score for count in (5, 10, 50, 500) if (found := scan(window(ports(count, REJECTED))))]
    assert scores == sorted(scores)
    assert len(set(scores)) == 4
    assert scores[-1] < 1


def test_binomial_tail_against_hand_computed_values() -> None:
    assert 10 ** log10_binomial_tail(5, 5, 0.2) == pytest.approx(0.2**5)
    assert 10 ** log10_binomial_tail(4, 3, 0.5) == pytest.approx(5 / 16)
    assert 10 ** log10_binomial_tail(10, 0, 0.2) == pytest.approx(1.0)
    assert log10_binomial_tail(2048, 2048, 0.2) == pytest.approx(2048 * -0.69897, rel=1e-4)


def guesses(count: int, **more: object) -> list[Flow]:
    return [flow(i * 2.0, port=22, **more) for i in range(count)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "case",
    [
        Case("ssh", guesses(MIN_GUESSES), FOUND, ("10.0.0.9",), "T1110"),
        Case("one fewer", guesses(MIN_GUESSES - 1), QUIET),
        Case("aborted by the server", guesses(30, state=RESET), FOUND),
        Case("nothing answers: no password was tried", guesses(30, state=REJECTED), QUIET),
        Case("long sessions", guesses(30, duration_s=600.0), QUIET),
        Case("large transfers", guesses(30, received=1_000_000), QUIET),
        Case("an ordinary web server", [flow(i, port=443) for i in range(100)], QUIET),
        Case("an application and its database", [flow(i, port=5432) for i in range(100)], QUIET),
        Case("a database from outside", [flow(i, port=5432, source="203.0.113.5") for i in range(100)], FOUND),
        Case("ssh on a port of its own", [flow(i, port=40022, service="ssh") for i in range(30)], FOUND),
        Case("spread over many hosts", [flow(i, port=22, peer=f"10.9.0.{i + 1}") for i in range(60)], QUIET),
    ],
    ids=lambda case: case.name,
)  # fmt: skip
def test_brute_force(case: Case) -> None:
    found = brute_force(window(case.flows))
    assert (found is not None) is case.found
    if found:
        assert found.score >= 0.5
        assert case.targets in {None, found.targets}
        assert found.technique.id == "T1110"


def beats(count: int, period_s: float = 20.0, jitter: float = 0.0, **more: object) -> list[Flow]:
    random = Random(7)  # noqa: S311
    times, at_s = [], 0.0
    for _ in range(count):
        times.append(at_s)
        at_s += period_s * (1 - jitter * random.random())
    return [flow(at_s, **more) for at_s in times]  # type: ignore[arg-type]


RANDOM_TIMES = sorted(Random(3).uniform(0, 300) for _ in range(30))  # noqa: S311


@pytest.mark.parametrize(
    "case",
    [
        Case("regular", beats(10), FOUND, ("10.0.0.9",), "T1071"),
        Case("unusual port", beats(10, port=5888), FOUND, None, "T1571"),
        Case("half jitter", beats(14, jitter=0.5), FOUND),
        Case("too few", beats(7), QUIET),
        Case("random arrivals", [flow(at_s) for at_s in RANDOM_TIMES], QUIET),
        Case("random arrivals, all refused", [flow(at_s, state=REJECTED) for at_s in RANDOM_TIMES], FOUND),
        Case("a burst", beats(50, period_s=0.1), QUIET),
        Case("DNS", beats(20, port=53, protocol="udp"), QUIET),
        Case("NTP", beats(20, port=123, protocol="udp"), QUIET),
        Case("calls in from outside", beats(20, source="203.0.113.5"), QUIET),
        Case("ICMP", beats(20, protocol="icmp", port=0), QUIET),
        Case("each attempt logged three times", [
            flow(at + retry, source_port=5000 + at, port=5888, state=REJECTED)
            for at in range(0, 60, 2) for retry in (0.0, 0.5, 1.0)
        ], FOUND, None, "T1571"),
    ],
    ids=lambda case: case.name,
)  # fmt: skip
def test_beacon(case: Case) -> None:
    found = beacon(window(case.flows))
    assert (found is not None) is case.found
    if found:
        assert 0.5 <= found.score <= 1
        assert case.targets in {None, found.targets}
        assert case.technique in {None, found.technique.id}


def test_a_regular_beacon_that_is_turned_away_at_an_odd_port_scores_highest() -> None:
    found = beacon(window(beats(32, period_s=9, port=5888, state=REJECTED)))
    assert found is not None
    assert found.score == pytest.approx(1.0)


def test_every_finding_carries_five_minutes_of_features() -> None:
    flows = [flow(i * 3600.0, port=1000 + i, state=REJECTED) for i in range(20)]
    findings = judge(window(flows, 86400), "here")
    assert {finding.kind for finding in findings} == {FindingKind.SCAN}
    assert findings[0].features is not None
    assert findings[0].features.window_s == 300
    assert findings[0].connections == 20


def alert(at_s: float = 0.0, **more: object) -> IdsAlert:
    fields: dict[str, object] = {
        "at_s": at_s, "source": "203.0.113.5", "destination": "10.0.0.9", "destination_port": 1433,
        "signature_id": 1, "signature": "ET SCAN", "category": "Potentially Bad Traffic", "severity": 2,
    }  # fmt: skip
    return IdsAlert.model_validate(fields | more)


@pytest.mark.parametrize(
    ("given", "subject", "technique"),
    [
        (alert(), "203.0.113.5", "T1595"),
        (alert(source="10.0.0.3"), "10.0.0.3", "T1071"),
        (alert(category="Detection of a Network Scan", source="10.0.0.3"), "10.0.0.3", "T1046"),
        (alert(category="A Network Trojan was detected"), "10.0.0.9", "T1071"),
        (alert(category="Crypto Currency Mining Activity Detected"), "10.0.0.9", "T1496"),
        (alert(category="Web Application Attack"), "203.0.113.5", "T1190"),
        (alert(category="Web Application Attack", source="10.0.0.3"), "10.0.0.3", "T1210"),
        (alert(category="never heard of"), "203.0.113.5", "T1595"),
    ],
)
def test_ids_subject_and_technique(given: IdsAlert, subject: str, technique: str) -> None:
    detection = Detection("ids")
    detection.feed(Observations(source="ids", sequence=0, ids_alerts=(given,)))
    (finding,) = detection.close()
    assert (finding.subject, finding.technique.id) == (subject, technique)
    assert finding.features is not None
    assert finding.features.host == subject


def test_ids_score() -> None:
    assert ids.score({(1, 2): 1}) == pytest.approx(0.2)
    assert ids.score({(1, 1): 1}) == pytest.approx(0.35)
    assert ids.score({(1, 2): 50}) == pytest.approx(0.4)
    assert ids.score({(1, 2): 1, (2, 2): 1}) == pytest.approx(1 - 0.8 * 0.8)
    assert ids.score({(1, 200): 1}) == pytest.approx(0.05)


def test_ids_features_are_of_the_connections_where_there_are_any() -> None:
    detection = Detection("ids")
    flows = tuple(flow(10 + i, source="203.0.113.5", port=1433, state=REJECTED) for i in range(3))
    detection.feed(Observations(source="ids", sequence=0, ids_alerts=(alert(9.0),), flows=flows))
    (finding,) = detection.close()
    assert finding.features is not None
    assert finding.features.connections == 3
    assert finding.features.rejected_share == 1


def test_repeats_merge_into_the_strongest() -> None:
    detection = Detection("here", window_s=300, long_window_s=300)
    weak = tuple(flow(i / 10, port=1000 + i, state=REJECTED) for i in range(5))
    strong = tuple(flow(5000 + i / 10, peer="10.0.0.7", port=1000 + i, state=REJECTED) for i in range(50))
    again = tuple(flow(9000 + i / 10, port=1000 + i, state=REJECTED) for i in range(5))
    told = []
    for sequence, flows in enumerate((weak, strong, again)):
        told += detection.feed(Observations(source="here", sequence=sequence, flows=flows))
        told += detection.advance(flows[-1].at_s + 600)
    assert [len(finding.targets) for finding in told] == [1, 2]
    (merged,) = detection.findings()
    assert merged.score == max(finding.score for finding in told)
    assert merged.targets == ("10.0.0.7", "10.0.0.9")
    assert (merged.first_s, merged.last_s, merged.connections) == (0.0, 9000.4, 50)
    assert merged.evidence[-1].startswith("found in 6 windows")
    assert detection.close() == []


def test_peek_tells_and_remembers_nothing() -> None:
    detection = Detection("here")
    detection.feed(Observations(source="here", sequence=0, flows=tuple(ports(20, REJECTED))))
    assert [finding.kind for finding in detection.peek()] == [FindingKind.SCAN]
    assert detection.findings() == []
    assert detection.peek()[0] == detection.close()[0]


def test_observations_of_another_source_are_refused() -> None:
    with pytest.raises(InvalidInputError):
        Detection("here").feed(Observations(source="there", sequence=0))


def test_ordinary_hosts_neither_scan_nor_guess() -> None:
    """The office's appliances do look like beacons; see the test below for how many."""
    found = [finding for window in office_traffic(400, seed=11) for finding in judge(window, "office")]
    assert [finding for finding in found if finding.kind is not FindingKind.BEACON] == []


def test_false_beacons_among_ordinary_windows_are_the_strictly_periodic_ones() -> None:
    found = [finding for window in office_traffic(400, seed=11) for finding in judge(window, "office")]
    assert len(found) <= 0.08 * 400
    assert all(finding.features and finding.features.interval_regularity >= 0.75 for finding in found)


def run(name: str) -> tuple[Detection, list[tuple[Flow, Label | None]]]:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"the shared data are not beside the repository: {path}")
    detection, labelled = Detection(name), []
    with path.open("rb") as stream:
        for sequence, record in enumerate(RecordReader(stream)):
            flows = (record.flow,) if record.flow else ()
            alerts = (record.ids_alert,) if record.ids_alert else ()
            labelled += [(item, record.label) for item in flows]
            detection.feed(Observations(source=name, sequence=sequence, flows=flows, ids_alerts=alerts))
    detection.close()
    return detection, labelled


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("zeek/ctu-sme-11-win.conn.log.labeled", [("beacon", "192.168.1.107", "T1571")]),
        ("zeek/port-scan-vertical.conn.log", [("scan", "192.168.1.9", "T1046")]),
        ("zeek/port-scan-horizontal.conn.log", [("scan", "10.0.2.112", "T1046")]),
        ("zeek/apt29-nashua.conn.log", [("beacon", "10.0.1.6", "T1071")]),
        ("zeek/mixed.conn.log", []),
    ],
)
def test_what_the_given_captures_hold(name: str, expected: list[tuple[str, str, str]]) -> None:
    detection, _ = run(name)
    found = [(finding.kind, finding.subject, finding.technique.id) for finding in detection.findings()]
    assert found == expected


def test_suricata_capture_yields_scanners_and_alerts_and_no_host_of_ours() -> None:
    detection, _ = run("suricata/malicious.eve.json")
    findings = detection.findings()
    assert findings == strongest_first(findings)
    scanners = [finding.subject for finding in findings if finding.kind is FindingKind.SCAN]
    assert scanners == ["193.46.255.92", "45.143.200.10", "45.143.203.2"]
    assert sum(finding.kind is FindingKind.IDS for finding in findings) > 300
    assert all(finding.features is not None for finding in findings)


def test_ctu_findings_against_its_labels() -> None:
    detection, labelled = run("zeek/ctu-sme-11-win.conn.log.labeled")
    compared = compare(detection.findings(), labelled)
    assert compared.hosts.precision == 1
    assert compared.hosts.recall == 1
    assert compared.connections.true_positives + compared.connections.false_negatives == 719
    assert compared.connections.recall is not None
    assert compared.connections.recall > 0.99
    assert compared.unlabelled == 3
