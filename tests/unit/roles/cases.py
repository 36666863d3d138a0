"""Findings, connections and assessments that the tests of the roles write by hand."""

from __future__ import annotations

from tocsin.analysis.techniques import BRUTE_FORCE
from tocsin.contracts.analysis import AnomalyScore, Assessment, Verdict
from tocsin.contracts.observations import Finding, FindingKind, Flow, FlowState, WindowFeatures
from tocsin.contracts.response import Action, Command

FEATURES = WindowFeatures(
    host="203.0.113.9",
    window_start_s=0.0,
    window_s=300.0,
    connections=30,
    distinct_ports=1,
    distinct_peers=1,
    rejected_share=0.0,
    interval_regularity=0.5,
    port_concentration=1.0,
    bytes_sent=900,
    bytes_received=900,
)
COMMAND = Command(action=Action.DENY, address="203.0.113.9", duration_s=3600)


def finding(
    subject: str = "203.0.113.9",
    *,
    kind: FindingKind = FindingKind.BRUTE_FORCE,
    score: float = 0.6,
    source: str = "capture.eve.json",
    features: WindowFeatures | None = FEATURES,
    targets: tuple[str, ...] = ("10.0.0.1",),
    connections: int = 30,
) -> Finding:
    return Finding(
        kind=kind,
        subject=subject,
        internal=False,
        targets=targets,
        score=score,
        technique=BRUTE_FORCE,
        evidence=("30 connections to SSH",),
        features=features,
        source=source,
        first_s=1.0,
        last_s=9.0,
        connections=connections,
    )


def probe(number: int, *, source: str = "203.0.113.9", at_s: float = 100.0) -> Flow:
    """A connection to the port ``number`` that nobody answers."""
    return Flow(
        at_s=at_s + number / 100,
        source=source,
        source_port=40_000 + number,
        destination="10.0.0.1",
        destination_port=1000 + number,
        protocol="tcp",
        state=FlowState.UNANSWERED,
    )


def assessment(*, recommended: Command | None = COMMAND, incident: bytes = bytes(16)) -> Assessment:
    score = AnomalyScore(model="m", score=1.0, baseline_quantile=0.99, anomalous=True, train_samples=20)
    return Assessment(
        workflow=b"w" * 16,
        incident=incident,
        subject="203.0.113.9",
        verdict=Verdict.MALICIOUS if recommended else Verdict.BENIGN,
        confidence=0.9,
        technique=BRUTE_FORCE,
        quantum=score,
        classical=(score,),
        qpu="fake-qpu",
        estimated_fidelity=0.9,
        evidence=("30 guesses",),
        finding=finding(),
        recommended=recommended,
        baseline="office-v1",
    )
