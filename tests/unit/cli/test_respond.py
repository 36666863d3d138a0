"""What `tocsin respond`, `up --agent` and `up --set` take, and what they say."""

from __future__ import annotations

import json

import pytest

from tocsin.agent.openc2 import Status
from tocsin.cli.exits import Exit
from tocsin.cli.fleetplan import name_agents
from tocsin.cli.respond import Answer, command_from, parse_duration
from tocsin.cli.stack import host_settings
from tocsin.cli.traps import lines
from tocsin.contracts.decisions import DecisionAnnounced, Option, Outcome
from tocsin.contracts.errors import InvalidInputError
from tocsin.contracts.identifiers import Role
from tocsin.contracts.observations import SensorReady
from tocsin.contracts.response import Action, Actuation, ActuationOutcome, Command

COMMAND = Command(action=Action.DENY, address="203.0.113.9", duration_s=60)
DECISION = b"d" * 32


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("30m", 1800), ("1h", 3600), ("30d", 30 * 86_400)])
def test_durations(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "1", "0s", "-1h", "31d", "1w", "1 h", "99999999d", "1e3s"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        parse_duration(text)
    assert caught.value.reason == "bad_duration"


def test_an_address_in_disguise_is_asked_for_as_what_it_is() -> None:
    assert command_from(Action.DENY, "::ffff:203.0.113.9", "1m") == COMMAND
    with pytest.raises(InvalidInputError):
        command_from(Action.DENY, "example.org", "1m")


def announced(command: Command | None = COMMAND, outcome: Outcome = Outcome.DECIDED) -> DecisionAnnounced:
    return DecisionAnnounced(
        decision=DECISION,
        epoch=b"e" * 32,
        outcome=outcome,
        why="",
        option=Option(name="deny", command=command, text="deny it"),
        certificate=None,
        certificate_bytes=0,
        object_name=None,
        round=1,
        participants=3,
        quorum=3,
        ballots_for=3,
        ballots_received=3,
        missing=(),
        elapsed_ms=1.0,
    )


def actuation(outcome: ActuationOutcome) -> Actuation:
    return Actuation(
        decision=DECISION,
        command=COMMAND,
        actuator="dry-run",
        outcome=outcome,
        ballots_verified=3,
        quorum=3,
        detail="x",
        at_ns=1,
    )


def answer(*outcomes: ActuationOutcome, decision: DecisionAnnounced | None = None) -> Answer:
    made = Answer(COMMAND, frozenset({"guardian-01", "guardian-02"}), "admin-01", DECISION)
    made.announced = decision or announced()
    made.actuations = {f"guardian-0{n + 1}": actuation(one) for n, one in enumerate(outcomes)}
    return made


@pytest.mark.parametrize(
    ("given", "code", "status"),
    [
        (answer(ActuationOutcome.DONE, ActuationOutcome.WOULD_DO), Exit.OK, Status.OK),
        (answer(ActuationOutcome.DONE), Exit.INCOMPLETE, Status.INTERNAL_ERROR),
        (answer(ActuationOutcome.DONE, ActuationOutcome.FAILED), Exit.INCOMPLETE, Status.INTERNAL_ERROR),
        (answer(decision=announced(command=None)), Exit.NOT_DECIDED, Status.FORBIDDEN),
        (answer(decision=announced(outcome=Outcome.CLOSED)), Exit.NOT_DECIDED, Status.FORBIDDEN),
    ],
)
def test_an_answer_says_how_it_ended(given: Answer, code: Exit, status: Status) -> None:
    assert given.exit is code
    assert given.openc2().status is status
    assert json.loads(given.json())["decision"] == DECISION.hex()
    assert any(line.startswith("silent") for line in given.lines()) is (
        given.decided and len(given.actuations) < 2
    )


def test_agents_are_named_and_spread() -> None:
    agents = name_agents(["canary-01:canary", "admin-01:admin", "guardian-01:guardian"], 2)
    assert [(one.name, one.role, one.host) for one in agents] == [
        ("canary-01", Role.CANARY, "host-1"),
        ("admin-01", Role.ADMIN, "host-2"),
        ("guardian-01", Role.GUARDIAN, "host-1"),
    ]
    assert name_agents([], 4) == ()


@pytest.mark.parametrize("specs", [["canary"], ["a:king"], ["A_B:canary"], ["a:canary", "a:admin"]])
def test_what_names_no_agent_is_refused(specs: list[str]) -> None:
    with pytest.raises(InvalidInputError):
        name_agents(specs, 1)


def test_settings_of_hosts_are_checked_by_name() -> None:
    given = ["guardian_actuator=webhook", "guardian_webhook_url=https://example.org/?a=b"]
    assert host_settings(given)["guardian_webhook_url"] == "https://example.org/?a=b"
    for text in ("guardian_actuator", "no_such=1", "host_name=other", "=x"):
        with pytest.raises(InvalidInputError) as caught:
            host_settings([text])
        assert caught.value.reason == "bad_setting"


def test_traps_are_listed_by_what_they_imitate() -> None:
    sensors = [
        SensorReady(agent="d-02", address="::1", port=7, imitates="ssh"),
        SensorReady(agent="c-01", address="127.0.0.1", port=9, imitates="canary"),
    ]
    assert lines(sensors, None) == ["canary 127.0.0.1:9 c-01", "ssh [::1]:7 d-02"]
    assert lines(sensors, "ssh") == ["ssh [::1]:7 d-02"]
