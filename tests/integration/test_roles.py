"""The roles on real hosts, with real fleet, router and consensus, from a connection to an actuation.

The analysis between analyst and admin is not run here: the test answers in workflow's place.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from fleet_support import FleetWorld, agent_id, tokens_for
from support import DOMAIN, World, eventually
from unit.roles.cases import assessment, probe

from tocsin.agent import Agent, AgentHost, BallotChoice
from tocsin.agent.actuators.webhook import WebhookActuator
from tocsin.agent.roles import make
from tocsin.bus import Bus, Context
from tocsin.bus.envelope import (
    decode_envelope,
    encode_body,
    encode_content,
    encode_envelope,
    make_content,
    uuid7,
)
from tocsin.bus.sending import Sent
from tocsin.cli.decision_asking import Question
from tocsin.cli.respond import Asker
from tocsin.consensus.service import ConsensusService
from tocsin.consensus.settings import ConsensusSettings
from tocsin.contracts.analysis import AssessmentMade, SecurityRequest, WorkflowAccepted
from tocsin.contracts.base import Message
from tocsin.contracts.catalogue import (
    CONSENSUS_EPOCH,
    DELIVER_ALL,
    EVENT,
    EVENT_ASSESSMENT,
    FLEET_ROSTER,
    OBSERVE,
    WORKFLOW_SUBMIT,
)
from tocsin.contracts.decisions import Option, Outcome, Proposal, QuestionWish
from tocsin.contracts.errors import ConflictError
from tocsin.contracts.fleet import RosterRequest
from tocsin.contracts.identifiers import Role, ServiceName, Severity
from tocsin.contracts.observations import FindingKind, Observations, SensorReady
from tocsin.contracts.response import Action, Actuation, ActuationOutcome, Command
from tocsin.contracts.routing import ThreatAlert
from tocsin.crypto import Algorithm, sign_batch
from tocsin.evidence.epochs import make_epoch
from tocsin.evidence.verification import verify
from tocsin.router.service import RouterService
from tocsin.router.settings import RouterSettings

ONE = [
    ("sentinel-01", Role.SENTINEL),
    ("hunter-01", Role.HUNTER),
    ("analyst-01", Role.ANALYST),
    ("guardian-01", Role.GUARDIAN),
    ("deception-01", Role.DECEPTION),
    ("admin-01", Role.ADMIN),
]
TWO = [
    ("sentinel-02", Role.SENTINEL),
    ("hunter-02", Role.HUNTER),
    ("analyst-02", Role.ANALYST),
    ("guardian-02", Role.GUARDIAN),
    ("deception-02", Role.DECEPTION),
    ("canary-01", Role.CANARY),
    ("specialist-01", Role.SPECIALIST),
]


@dataclass
class Scene:
    """What the outside sees, and what workflow was asked."""

    world: World
    hosts: list[AgentHost] = field(default_factory=list)
    sensors: list[SensorReady] = field(default_factory=list)
    alerts: list[ThreatAlert] = field(default_factory=list)
    actuations: list[Actuation] = field(default_factory=list)
    requests: list[SecurityRequest] = field(default_factory=list)
    cli: Bus | None = None

    async def on_event(self, body: Message, _: Context) -> None:
        if isinstance(body, SensorReady):
            self.sensors.append(body)
        elif isinstance(body, Actuation):
            self.actuations.append(body)

    async def on_delivered(self, body: Message, _: Context) -> None:
        if isinstance(body, ThreatAlert):
            self.alerts.append(body)

    def findings(self) -> set[tuple[FindingKind, str]]:
        return {(one.finding.kind, one.finding.subject) for one in self.alerts if one.finding}

    async def observe(self, sequence: int, *, final: bool = False, probes: int = 0) -> int:
        """Hand a batch to sentinel-01; return its findings so far."""
        assert self.cli is not None
        flows = tuple(probe(number) for number in range(probes))
        batch = Observations(source="capture", sequence=sequence, flows=flows, final=final)
        taken = await self.cli.request(OBSERVE, batch, timeout_s=5, at={"agent": "sentinel-01"})
        return taken.findings

    def ports(self, imitates: str) -> list[int]:
        return [one.port for one in self.sensors if one.imitates == imitates]


@asynccontextmanager
async def scene_in(world: World, made: Callable[[Role, str], Agent] = make) -> AsyncIterator[Scene]:
    """Two hosts with all eight roles, enrolled, behind a router."""
    scene = Scene(world)
    async with FleetWorld(world, [*tokens_for("h1", ONE), *tokens_for("h2", TWO)], world.folder) as fleet:
        await fleet.start_fleet()
        settings = world.settings().model_dump()
        router = RouterService(await world.service(ServiceName.ROUTER), RouterSettings(**settings))
        await router.start()
        fleet.stack.push_async_callback(router.stop)
        monitor = await world.service(ServiceName.MONITOR)
        await monitor.subscribe(EVENT, scene.on_event)
        await monitor.subscribe(DELIVER_ALL, scene.on_delivered)
        scene.cli = await world.service(ServiceName.CLI)
        scene.hosts = [
            await fleet.start_host(name, agents, made) for name, agents in (("h1", ONE), ("h2", TWO))
        ]
        # Two deception agents with seven honeypots each, and a canary.
        await eventually(lambda: len(scene.sensors) == 15)
        await eventually(lambda: all(len(host.peers(Role.HUNTER)) == 2 for host in scene.hosts))
        yield scene


async def start_workflow(scene: Scene, command: Command) -> None:
    """Answer analysts as workflow does, with an assessment that recommends ``command``."""
    workflow = await scene.world.service(ServiceName.WORKFLOW)

    async def submit(request: SecurityRequest, context: Context) -> WorkflowAccepted:
        scene.requests.append(request)
        primary = request.incident.primary
        made = assessment(recommended=command, incident=request.incident.incident).model_copy(
            update={"workflow": uuid7(), "subject": primary.subject, "finding": primary}
        )
        announced = AssessmentMade(
            workflow=made.workflow,
            incident=made.incident,
            requester=str(context.sender),
            assessment=made,
        )
        await workflow.event(EVENT_ASSESSMENT, announced)
        return WorkflowAccepted(workflow=made.workflow)

    await workflow.serve(WORKFLOW_SUBMIT, submit, queue="workflow")


async def start_consensus(scene: Scene) -> ConsensusService:
    """Start consensus with an epoch of everybody who is enrolled."""
    world, cli = scene.world, scene.cli
    assert cli is not None
    bus = await world.service(ServiceName.CONSENSUS)
    settings = world.settings().model_dump() | {"state_dir": world.folder / "consensus"}
    service = ConsensusService(bus, ConsensusSettings(**settings))
    await service.start()
    roster = await cli.request(FLEET_ROSTER, RosterRequest(), timeout_s=5)
    key = bus.credentials.key
    epoch = make_epoch(
        number=0,
        trust_domain=DOMAIN,
        participants=[
            (agent_id(one.agent.role, one.agent.name), one.agent.key_id, int(Algorithm.ML_DSA_65))
            for one in roster.entries
        ],
        instances=[(bus.id, key.signer.key_id, int(key.algorithm))],
        created_ns=time.time_ns(),
    )
    root = world.authority
    content = make_content(
        type_name=CONSENSUS_EPOCH.request_type.name,
        sender=str(root.id),
        audience="service.consensus",
        body=encode_body(epoch),
        now_ns=time.time_ns(),
        ttl_ms=0,
    )
    raw = encode_content(content)
    (proof,) = sign_batch(root.signer, [raw])
    data = encode_envelope(raw, root.signer.key_id, proof)
    sent = Sent(content.id, decode_envelope(data, max_bytes=len(data)).leaf, data, content.issued_at)
    await cli.ask_with(CONSENSUS_EPOCH, sent, root.id, timeout_s=5)
    await eventually(lambda: all(host.epoch is not None for host in scene.hosts))
    return service


async def knock(port: int, says: bytes = b"", *, source: str) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
    if says:
        writer.write(says)
        await reader.read(200)
    writer.close()


async def test_an_attack_on_honeypots_becomes_one_response_that_guardians_verified(world: World) -> None:
    attacker = "127.0.0.66"
    command = Command(action=Action.CONTAIN, address=attacker, duration_s=3600)
    async with scene_in(world) as scene:
        await start_workflow(scene, command)
        consensus = await start_consensus(scene)
        begun_s = time.monotonic()
        for sensor in scene.sensors:
            if sensor.imitates != "canary":
                await knock(sensor.port, source=attacker)
        await eventually(lambda: bool(scene.alerts))
        assert time.monotonic() - begun_s < 2, "alerted while it goes on"
        await eventually(lambda: len(scene.actuations) == 2, within_s=20)
        await consensus.stop()
        assert (FindingKind.SCAN, attacker) in scene.findings()
        assert [one.incident.primary.subject for one in scene.requests] == [attacker]
        orders = [one.order for one in scene.alerts if one.order]
        assert [order.command for order in orders] == [command]
        assert {one.severity for one in scene.alerts} <= {Severity.HIGH, Severity.MEDIUM, Severity.CRITICAL}
        for actuation in scene.actuations:
            assert (actuation.outcome, actuation.decision) == (ActuationOutcome.WOULD_DO, orders[0].decision)
            assert actuation.ballots_verified >= actuation.quorum == 9
        data = await scene.hosts[0].certificate(orders[0].decision.hex())
        assert verify(data, world.authority.certificate_pem).command == command
        for host in scene.hosts:
            (line,) = (host.state_dir / "actuations.jsonl").read_text().splitlines()
            named = {"command_id": orders[0].decision.hex()[:32]}
            assert json.loads(line)["command"] == command.openc2() | named


async def test_password_guessing_is_alerted_and_ordinary_visits_are_not(world: World) -> None:
    async with scene_in(world) as scene:
        port = scene.ports("ftp")[0]
        for number in range(25):
            await knock(
                scene.ports("http")[number % 2], b"GET / HTTP/1.0\r\n\r\n", source=f"127.0.0.{100 + number}"
            )
            await knock(port, b"USER root\r\nPASS %d\r\n" % number, source="127.0.0.77")
        await eventually(lambda: bool(scene.findings()))
        assert scene.findings() == {(FindingKind.BRUTE_FORCE, "127.0.0.77")}


async def test_a_capture_is_read_in_order_and_makes_one_incident(world: World) -> None:
    async with scene_in(world) as scene:
        await start_workflow(scene, Command(action=Action.DENY, address="203.0.113.9", duration_s=60))
        assert await scene.observe(0, probes=20) == 0
        with pytest.raises(ConflictError, match="expected is 1"):
            await scene.observe(2)
        assert await scene.observe(1, final=True) == 1
        await eventually(lambda: len(scene.requests) == 1)
        assert scene.requests[0].incident.primary.subject == "203.0.113.9"
        assert await scene.observe(1, final=True) == 1, "answered again"
        assert len(scene.alerts) == 1


async def test_a_canary_that_is_touched_or_whose_file_is_changed_sings(world: World) -> None:
    async with scene_in(world) as scene:
        await knock(scene.ports("canary")[0], source="127.0.0.88")
        await eventually(lambda: (FindingKind.SCAN, "127.0.0.88") in scene.findings())
        token = scene.hosts[1].state_dir / "canary-01.canary"
        token.write_text("mine now")
        await eventually(lambda: any("token file of canary canary-01" in one.summary for one in scene.alerts))
        assert {one.severity for one in scene.alerts} == {Severity.HIGH}


async def test_an_operators_wish_is_decided_and_a_webhook_that_fails_half_way_is_undone(world: World) -> None:
    heard: list[dict[str, object]] = []

    async def receive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.partition(b"content-length: ")[2].split(b"\r\n")[0])
        command = json.loads(await reader.readexactly(length))
        heard.append(command)
        # It has done it, and cannot say so; its undoing it can.
        body = b'{"status":200}' if command["action"] == "cancel" else b"<html>oops</html>"
        writer.write(
            b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
        )
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(receive, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"

    def made(role: Role, name: str) -> Agent:
        options = {"actuator": WebhookActuator(url, b"k" * 32)} if name == "guardian-01" else {}
        return make(role, name, **options)

    command = Command(action=Action.DENY, address="203.0.113.9", duration_s=1)
    async with scene_in(world, made) as scene:
        consensus = await start_consensus(scene)
        assert scene.cli is not None
        answer = await Asker(scene.cli, command, "it sends spam").ask(within_s=30)
        # The other guardian's dry run, whose second is over, is undone in its time.
        undone = ActuationOutcome.UNDONE
        await eventually(lambda: [one.outcome for one in scene.actuations].count(undone) == 2)
        await consensus.stop()
    server.close()
    await server.wait_closed()
    assert answer.decided
    assert not answer.complete
    assert {name: one.outcome for name, one in answer.actuations.items()} == {
        "guardian-01": ActuationOutcome.FAILED,
        "guardian-02": ActuationOutcome.WOULD_DO,
    }
    assert answer.actuations["guardian-01"].detail.startswith("webhook_garbage: ")
    assert heard == [
        command.openc2() | {"command_id": answer.decision.hex()[:32]},
        {"action": "cancel", "target": {"command": answer.decision.hex()[:32]}},
    ]


async def test_a_counter_proposal_that_is_decided_is_ordered_and_carried_out(world: World) -> None:
    proposed = Command(action=Action.DENY, address="203.0.113.9", duration_s=3600)
    shorter = Option(name="shorter", command=proposed.model_copy(update={"duration_s": 60}), text="A minute")

    async def choose(proposal: Proposal, _: Context) -> BallotChoice:
        for index, option in enumerate(proposal.options):
            if option == shorter:
                return BallotChoice(index, "that is enough")
        return BallotChoice(None, "an hour is too long", counter=shorter)

    def made(role: Role, name: str) -> Agent:
        agent = make(role, name)
        agent.on_proposal = choose  # type: ignore[method-assign,assignment]  # all say the same
        return agent

    wish = QuestionWish(
        subject="block it?",
        options=(
            Option(name="deny", command=proposed, text="An hour"),
            Option(name="wait", command=None, text="Not at all"),
        ),
        deadline_ms=10_000,
        rounds=3,
    )
    async with scene_in(world, made) as scene:
        consensus = await start_consensus(scene)
        assert scene.cli is not None
        ended = await Question(scene.cli, wish).ask(within_s=30)
        await eventually(lambda: len(scene.actuations) == 2, within_s=20)
        await consensus.stop()
    assert (ended.announced.outcome, ended.announced.round, ended.announced.option) == (
        Outcome.DECIDED,
        2,
        shorter,
    )
    (order,) = (one.order for one in scene.alerts if one.order)
    assert order.command == shorter.command
    assert {one.outcome for one in scene.actuations} == {ActuationOutcome.WOULD_DO}
