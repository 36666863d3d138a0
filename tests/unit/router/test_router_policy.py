"""The routing policy, by its whole table: type x role x audience x priority."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest

from tocsin.contracts.analysis import AnomalyScore, Assessment, Verdict
from tocsin.contracts.base import Message
from tocsin.contracts.catalogue import ROUTED
from tocsin.contracts.decisions import DecisionAnnounced, Option, Outcome, Proposal
from tocsin.contracts.errors import DeniedError, InvalidInputError, TocsinError
from tocsin.contracts.identifiers import Priority, Role, ServiceName, Severity, SpiffeId
from tocsin.contracts.observations import Finding, FindingKind, Incident, Observations, Technique
from tocsin.contracts.policy import POLICY, Reach, parse_audience
from tocsin.contracts.response import Action, Command, ResponseOrder
from tocsin.contracts.routing import Coordination, Discovery, Intelligence, ThreatAlert
from tocsin.router.policy import Route, route

DOMAIN = "test.tocsin"
ASKERS = {Role.ADMIN, Role.ANALYST, Role.HUNTER}
CLEARED = {Role.SENTINEL, Role.HUNTER, Role.ANALYST, Role.SPECIALIST, Role.ADMIN}
AUDIENCES = (
    "all",
    *(f"role.{role.value}" for role in Role),
    *(f"agent.{role.value}-9" for role in Role),
    "agent.nobody",
    "mission.m1",
    "group.g1",
)
FINDING = Finding(
    kind=FindingKind.SCAN,
    subject="10.0.0.1",
    internal=True,
    targets=(),
    score=0.9,
    technique=Technique(id="T1046", name="scan"),
    evidence=(),
    source="x",
    first_s=0,
    last_s=1,
    connections=3,
)
INCIDENT = Incident(incident=bytes(16), primary=FINDING, alerts=())
ASSESSMENT = Assessment(
    workflow=bytes(16),
    incident=bytes(16),
    subject="10.0.0.1",
    verdict=Verdict.MALICIOUS,
    confidence=0.9,
    technique=FINDING.technique,
    quantum=(score := AnomalyScore(model="m", score=1, baseline_quantile=1, anomalous=True, train_samples=9)),
    classical=(score,),
    qpu="q",
    estimated_fidelity=0.9,
    evidence=(),
    finding=FINDING,
    recommended=None,
    baseline="b",
)
ORDER = ResponseOrder(
    decision=bytes(32),
    certificate=bytes(32),
    command=Command(action=Action.CONTAIN, address="10.0.0.1", duration_s=60),
)


RESULT = DecisionAnnounced(
    decision=bytes(32),
    epoch=bytes(32),
    outcome=Outcome.CLOSED,
    why="nobody cared",
    option=None,
    certificate=None,
    certificate_bytes=0,
    object_name=None,
    round=1,
    participants=4,
    quorum=3,
    ballots_for=0,
    ballots_received=0,
    missing=(),
    elapsed_ms=1.0,
)


def role_of(name: str) -> Role | None:
    """Nine agents of each role are enrolled: <role>-1 to <role>-9."""
    role, _, number = name.rpartition("-")
    return Role(role) if number.isdigit() and role in set(Role) else None


def agent(role: Role) -> SpiffeId:
    return SpiffeId.agent(DOMAIN, role, f"{role.value}-1")


def body_for(type_name: str, sender: SpiffeId, priority: Priority) -> Message:
    """A body to which nobody could object."""
    role = sender.role or Role.ADMIN
    produced: dict[Role, Observations | Incident | Assessment] = {
        Role.HUNTER: INCIDENT,
        Role.ANALYST: ASSESSMENT,
        Role.ADMIN: ASSESSMENT,
    }
    observations = Observations(source="x", sequence=0)
    bodies: dict[str, Message] = {
        "discovery": Discovery(agent=sender.name, role=role, host="h1"),
        "threat_alert": ThreatAlert(
            severity=Severity.CRITICAL if priority is Priority.CRITICAL else Severity.HIGH, summary="x"
        ),
        "coordination": Coordination(content=produced.get(role, observations)),
        "intelligence": Intelligence(summary="x"),
        "consensus_proposal": Proposal(
            epoch=bytes(32),
            workflow=bytes(16),
            subject="s",
            evidence=(),
            assessment=bytes(32),
            options=(Option(name="a", command=None, text=""), Option(name="b", command=None, text="")),
            deadline_ms=1000,
        ),
        "decision_result": RESULT,
    }
    return bodies[type_name]


def expected_reason(type_name: str, role: Role, audience: str, priority: Priority) -> str | None:
    """The policy once more, in the order of its checks, written without the table. None: forwarded."""
    kind, _, name = audience.partition(".")
    some: dict[str, set[Role]] = {
        "intelligence": set(CLEARED),
        "decision_result": set(),
    }
    senders = some.get(type_name, set(Role))
    admissible = {
        "discovery": audience == "role.admin" or kind == "group",
        "threat_alert": kind in {"all", "role", "agent"},
        "coordination": kind != "all",
        "intelligence": kind in {"role", "agent"},
        "consensus_proposal": kind == "all",
        "decision_result": kind == "all",
    }[type_name]
    secret = type_name == "intelligence"
    checks = {
        "sender_not_allowed": role not in senders,
        "audience_not_allowed": not admissible,
        "priority_not_allowed": priority is Priority.CRITICAL and type_name != "threat_alert",
        # Words only, for all: more is tested with the table of proposers.
        "proposer_not_allowed": type_name == "consensus_proposal" and role not in ASKERS,
        "content_not_allowed": type_name == "coordination" and role is Role.GUARDIAN,
        "no_such_recipient": name == "nobody" and priority < Priority.CRITICAL,
        "no_need_to_know": secret and name.removesuffix("-9") not in CLEARED,
    }
    return next((reason for reason, applies in checks.items() if applies), None)


def refusal(type_name: str, sender: SpiffeId, audience: str, priority: Priority, body: Message) -> str | None:
    try:
        route(type_name, sender, audience, priority, body, role_of)
    except TocsinError as error:
        return error.reason
    return None


@pytest.mark.parametrize("type_name", [kind.name for kind in ROUTED])
@pytest.mark.parametrize("role", list(Role))
def test_the_whole_table(type_name: str, role: Role) -> None:
    for audience, priority in itertools.product(AUDIENCES, Priority):
        sender = agent(role)
        body = body_for(type_name, sender, priority)
        got = refusal(type_name, sender, audience, priority, body)
        assert got == expected_reason(type_name, role, audience, priority), (audience, priority)


def test_every_routed_type_has_a_row_and_its_senders_are_the_catalogues() -> None:
    assert set(POLICY) == {kind.name for kind in ROUTED}
    assert all(POLICY[kind.name].senders == kind.senders for kind in ROUTED)


def test_a_decisions_result_goes_out_as_an_emergency_and_only_an_instance_sends_one() -> None:
    consensus = SpiffeId.service(DOMAIN, ServiceName.CONSENSUS, "0")
    way = route("decision_result", consensus, "all", Priority.CRITICAL, RESULT, role_of)
    assert (way.subject, way.backup is not None) == ("tocsin.v1.deliver.all", True)
    cli = SpiffeId.service(DOMAIN, ServiceName.CLI, "0")
    assert refusal("decision_result", cli, "all", Priority.CRITICAL, RESULT) == "sender_not_allowed"


@pytest.mark.parametrize(
    ("audience", "subject"),
    [
        ("all", "tocsin.v1.deliver.all"),
        ("role.guardian", "tocsin.v1.deliver.role.guardian"),
        ("agent.admin-1", "tocsin.v1.deliver.agent.admin-1"),
    ],
)
@pytest.mark.parametrize("priority", list(Priority))
def test_an_alert_has_one_core_subject_and_a_backup_only_if_critical(
    audience: str, subject: str, priority: Priority
) -> None:
    sender = agent(Role.SENTINEL)
    body = body_for("threat_alert", sender, priority)
    backup = "tocsin.v1.alert.backup.critical" if priority is Priority.CRITICAL else None
    assert route("threat_alert", sender, audience, priority, body, role_of) == Route(
        subject, backup, parse_audience(audience)
    )


@dataclass(frozen=True)
class Case:
    why: str
    type_name: str
    role: Role
    audience: str
    priority: Priority
    body: Message
    reason: str | None


HIGH, CRITICAL = Priority.HIGH, Priority.CRITICAL
CASES = [
    Case(
        "critical severity, high priority",
        "threat_alert",
        Role.ADMIN,
        "all",
        HIGH,
        ThreatAlert(severity=Severity.CRITICAL, summary=""),
        "severity_mismatch",
    ),
    Case(
        "high severity, critical priority",
        "threat_alert",
        Role.ADMIN,
        "all",
        CRITICAL,
        ThreatAlert(severity=Severity.HIGH, summary=""),
        "severity_mismatch",
    ),
    Case(
        "a sentinel orders",
        "threat_alert",
        Role.SENTINEL,
        "all",
        CRITICAL,
        ThreatAlert(severity=Severity.CRITICAL, summary="", order=ORDER),
        "order_not_allowed",
    ),
    Case(
        "an order below critical",
        "threat_alert",
        Role.ADMIN,
        "all",
        HIGH,
        ThreatAlert(severity=Severity.HIGH, summary="", order=ORDER),
        "order_not_allowed",
    ),
    Case(
        "an admin orders",
        "threat_alert",
        Role.ADMIN,
        "all",
        CRITICAL,
        ThreatAlert(severity=Severity.CRITICAL, summary="", order=ORDER),
        None,
    ),
    Case(
        "another's name",
        "discovery",
        Role.CANARY,
        "role.admin",
        HIGH,
        Discovery(agent="canary-2", role=Role.CANARY, host="h"),
        "not_itself",
    ),
    Case(
        "another's role",
        "discovery",
        Role.CANARY,
        "role.admin",
        HIGH,
        Discovery(agent="canary-1", role=Role.ADMIN, host="h"),
        "not_itself",
    ),
    Case(
        "a canary's incident",
        "coordination",
        Role.CANARY,
        "agent.analyst-9",
        HIGH,
        Coordination(content=INCIDENT),
        "content_not_allowed",
    ),
    Case(
        "a hunter's assessment",
        "coordination",
        Role.HUNTER,
        "agent.analyst-9",
        HIGH,
        Coordination(content=ASSESSMENT),
        "content_not_allowed",
    ),
    Case(
        "a hunter's incident",
        "coordination",
        Role.HUNTER,
        "agent.analyst-9",
        HIGH,
        Coordination(content=INCIDENT),
        None,
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.why)
def test_the_rules_about_bodies(case: Case) -> None:
    assert refusal(case.type_name, agent(case.role), case.audience, case.priority, case.body) == case.reason


@pytest.mark.parametrize(
    "sender", [SpiffeId.host(DOMAIN, "h1"), SpiffeId.service(DOMAIN, ServiceName.ROUTER, "0")]
)
def test_only_agents_are_routed(sender: SpiffeId) -> None:
    body = ThreatAlert(severity=Severity.HIGH, summary="")
    assert refusal("threat_alert", sender, "all", HIGH, body) == "sender_not_allowed"


def test_a_type_without_a_row_is_refused() -> None:
    body = ThreatAlert(severity=Severity.HIGH, summary="")
    assert refusal("ballot", agent(Role.ADMIN), "all", HIGH, body) == "unknown_type"


@pytest.mark.parametrize(
    "text",
    ["", "all.", "all.x", "agent", "agent.", "agent.A", "agent.a.b", "agent.*", "role.king", "service.router",
     "event", "group.>", "mission. x", "reply.agent.a", "agent.a\n"],
)  # fmt: skip
def test_an_audience_that_names_no_agents_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        parse_audience(text)
    assert caught.value.reason == "bad_audience"


def test_refusals_are_of_the_right_family() -> None:
    with pytest.raises(DeniedError):
        route("threat_alert", agent(Role.ADMIN), "mission.m", HIGH, CASES[0].body, role_of)
    assert parse_audience("mission.m1").reach is Reach.MISSION
