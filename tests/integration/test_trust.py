"""Trust is never in the broker: who can write anything there, and read everything, forges nothing.

Each test is one lie: an announcement, an answer, a record or an object that was made by whoever has the
broker's token and perhaps a certified key of their own, but not the key that the lie would need.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

import pytest
from council import Council
from ends_support import closed_by
from fleet_support import FleetWorld, Recorder, tokens_for
from nats.aio.msg import Msg
from support import DOMAIN, World, eventually

from tocsin.agent import AgentHost
from tocsin.agent.roles.guardian import check
from tocsin.bus import Bus, Context
from tocsin.bus.envelope import decode_envelope, encode_body, encode_content, encode_envelope, make_content
from tocsin.contracts.analysis import AssessmentMade
from tocsin.contracts.base import Message
from tocsin.contracts.catalogue import (
    AGENTS,
    CONSENSUS_DECISION,
    CONSENSUS_EPOCH,
    CONSENSUS_EPOCHS,
    DECISION,
    ENROLMENTS,
    EVENT,
    EVENT_ASSESSMENT,
    FLEET_ENROL,
    FLEET_ROSTER,
    RESERVATIONS,
)
from tocsin.contracts.decisions import DecisionAnnounced, Outcome
from tocsin.contracts.errors import ConflictError, TocsinError, UnavailableError, UntrustedError
from tocsin.contracts.fleet import AgentRecord, Enrolled, EnrolRequest, Roster, RosterRequest
from tocsin.contracts.identifiers import Role, ServiceName, SpiffeId
from tocsin.contracts.quantum import QpuReservations
from tocsin.contracts.response import ResponseOrder
from tocsin.contracts.subjects import MessageType, Request
from tocsin.crypto import Algorithm, Authority, LocalKey, sign_batch
from tocsin.evidence.certificate import certificate_digest
from tocsin.evidence.epochs import make_epoch
from tocsin.evidence.verification import verify
from tocsin.router.roster import Roster as RouterRoster

ONE = [("hunter-01", Role.HUNTER), ("sentinel-01", Role.SENTINEL)]
ANNOUNCED = DecisionAnnounced(
    decision=bytes(32),
    epoch=bytes(32),
    outcome=Outcome.CLOSED,
    why="the true one",
    option=None,
    certificate=None,
    certificate_bytes=0,
    object_name=None,
    round=1,
    participants=3,
    quorum=3,
    ballots_for=0,
    ballots_received=0,
    missing=(),
    elapsed_ms=1.0,
)
MADE = AssessmentMade(workflow=bytes(16), incident=bytes(16), requester="the true one")
CONSENSUS = SpiffeId.service(DOMAIN, ServiceName.CONSENSUS, "0")
WORKFLOW = SpiffeId.service(DOMAIN, ServiceName.WORKFLOW, "0")


def forge(
    key: LocalKey,
    kind: MessageType[Message],
    body: Message,
    *,
    sender: SpiffeId,
    audience: str = "event",
    correlation: bytes | None = None,
) -> bytes:
    """Sign anything as anybody: what the bus of an honest process would not make."""
    content = encode_content(
        make_content(
            type_name=kind.name,
            sender=str(sender),
            audience=audience,
            body=encode_body(body),
            now_ns=time.time_ns(),
            ttl_ms=kind.ttl_ms,
            correlation=correlation,
        )
    )
    (proof,) = sign_batch(key.signer, [content])
    return encode_envelope(content, key.signer.key_id, proof)


def flip(data: bytes, position: int = -1) -> bytes:
    """Return the bytes with one bit changed: by default in the signature or what follows it."""
    flipped = bytearray(data)
    flipped[position] ^= 1
    return bytes(flipped)


def heard(host: AgentHost, name: str) -> Recorder:
    found = host.agents[name]
    assert isinstance(found, Recorder)
    return found


# --- Announcements ------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["decision", "assessment"])
async def test_a_forged_announcement_reaches_no_agent(world: World, what: str) -> None:
    async with FleetWorld(world, tokens_for("h1", ONE), world.folder) as fleet:
        await fleet.start_fleet()
        host = await fleet.start_host("h1", ONE)
        router = await world.service(ServiceName.ROUTER)
        if what == "decision":
            announcer, kind = await world.bus(CONSENSUS), DECISION
            body: Message = await closed_by(world, announcer, why="the true one")
            subject, told = CONSENSUS_DECISION.at(decision=bytes(32).hex()), "decisions"
            lie: Message = body.model_copy(update={"why": "a lie"})
        else:
            announcer, kind, body = await world.bus(WORKFLOW), EVENT_ASSESSMENT, MADE  # type: ignore[assignment]  # the other pair
            subject, told = EVENT.at(service="workflow", kind="assessment"), "assessments"
            lie = MADE.model_copy(update={"requester": "a lie"})
        key, stranger = router.credentials.key, LocalKey.generate(world.backend, Algorithm.ML_DSA_44)
        sent = await announcer.make(kind, body, audience="event")
        forgeries = {
            "sender_not_allowed": forge(key, kind, lie, sender=router.id),
            "wrong_sender": forge(key, kind, lie, sender=announcer.id),
            "unknown_key": forge(stranger, kind, lie, sender=announcer.id),
            "bad_signature": flip(sent.data, sent.data.index(b"the true one")),
        }
        js = router.connection.js
        for data in forgeries.values():
            await js.publish(subject, data)
        for reason in forgeries:
            await eventually(lambda reason=reason: host.metrics.counter(f"rejected.{reason}") >= 1)  # type: ignore[misc]  # bound now
        await js.publish(subject, sent.data)
        for name, _ in ONE:
            await eventually(lambda name=name: getattr(heard(host, name), told) == [body])  # type: ignore[misc]  # bound now


# --- Answers ------------------------------------------------------------------------------------


async def answer_with(
    liar: Bus, request: Request[Message, Message], body: Message, *, sender: SpiffeId, old: Sequence[bytes] = ()
) -> None:
    """Answer a request before its service can: it is on the broker for everyone to read."""

    async def on_question(message: Msg) -> None:
        content = decode_envelope(message.data, max_bytes=1 << 20).content
        audience = f"reply.{SpiffeId.parse(content.sender).token}"
        forged = forge(
            liar.credentials.key,
            request.reply_type,
            body,
            sender=sender,
            audience=audience,
            correlation=content.id,
        )
        for data in [forged, *old]:
            await liar.connection.publish(message.reply, data)

    await liar.connection.subscribe(request.subject.at(), on_question)
    await liar.flush()


async def test_only_fleet_answers_for_the_roster(world: World) -> None:
    async with FleetWorld(world, tokens_for("h1", ONE), world.folder) as fleet:
        await fleet.start_fleet()
        cli = await world.service(ServiceName.CLI)
        replies: list[bytes] = []

        async def overhear(message: Msg) -> None:
            replies.append(message.data)

        overheard = await cli.connection.subscribe("tocsin.v1.reply.>", overhear)
        assert (await cli.request(FLEET_ROSTER, RosterRequest(), timeout_s=5)).entries == ()
        await eventually(lambda: len(replies) == 1)
        await overheard.unsubscribe()
        await fleet.start_host("h1", ONE)
        liar = await world.service(ServiceName.ROUTER)
        fleet_id = SpiffeId.service(DOMAIN, ServiceName.FLEET, "0")
        await answer_with(liar, FLEET_ROSTER, Roster(entries=()), sender=liar.id, old=replies)
        await answer_with(liar, FLEET_ROSTER, Roster(entries=()), sender=fleet_id)
        roster = await cli.request(FLEET_ROSTER, RosterRequest(), timeout_s=5)
        assert [entry.agent.name for entry in roster.entries] == ["hunter-01", "sentinel-01"]
        for reason in ("sender_not_allowed", "wrong_sender", "wrong_correlation"):
            assert cli.metrics.counter(f"rejected.{reason}") == 1


async def test_a_host_takes_its_certificate_from_fleet_alone_and_checks_it(world: World) -> None:
    async with FleetWorld(world, tokens_for("h1", ONE), world.folder) as fleet:
        service = await fleet.start_fleet()
        liar = await world.service(ServiceName.ROUTER)
        other = world.credentials(SpiffeId.host(DOMAIN, "h1"))
        await answer_with(liar, FLEET_ENROL, Enrolled(chain=other.chain), sender=liar.id)
        host = await fleet.start_host("h1", ONE)
        assert host.metrics.counter("rejected.sender_not_allowed") == 1
        await service.stop()
        await service.bus.__aexit__(None, None, None)
        # A fleet that lies itself can keep a host out, and no more.
        false_fleet = await world.service(ServiceName.FLEET, "1")

        async def lie(_: EnrolRequest, __: Context) -> Enrolled:
            return Enrolled(chain=other.chain)

        await false_fleet.serve(FLEET_ENROL, lie, queue="fleet")
        second = fleet.make_host("h1", ONE, state_dir=world.folder / "elsewhere")
        with pytest.raises(UntrustedError) as caught:
            await second.__aenter__()
        assert caught.value.reason == "wrong_certificate"


# --- Records ------------------------------------------------------------------------------------


async def put(bus: Bus, bucket: str, key: str, data: bytes) -> None:
    """Write to a bucket as somebody who has the broker's token and no key."""
    await (await bus.connection.js.key_value(bucket)).put(key, data)


async def held(bus: Bus, bucket: str, key: str) -> bytes:
    return (await (await bus.connection.js.key_value(bucket)).get(key)).value or b""


@pytest.mark.parametrize("tampering", ["garbage", "flipped", "moved", "deleted"])
async def test_a_tampered_enrolment_frees_no_token(world: World, tampering: str) -> None:
    """Whoever has read a used token, and can write to the broker, still cannot be the host."""
    tokens = [*tokens_for("h1", ONE), *tokens_for("h2", [("hunter-02", Role.HUNTER)])]
    async with FleetWorld(world, tokens, world.folder) as fleet:
        await fleet.start_fleet()
        await fleet.start_host("h1", ONE)
        await fleet.start_host("h2", [("hunter-02", Role.HUNTER)])
        enemy = await world.service(ServiceName.ROUTER, "enemy")
        kv = await enemy.connection.js.key_value(ENROLMENTS.name)
        for key in ("host.h1", "agent.hunter-01", "agent.sentinel-01"):
            if tampering == "deleted":
                await kv.delete(key)
            else:
                genuine = await held(enemy, ENROLMENTS.name, key)
                moved = await held(enemy, ENROLMENTS.name, "host.h2")
                await kv.put(key, {"garbage": b"x", "flipped": flip(genuine), "moved": moved}[tampering])
        thief = fleet.make_host("h1", ONE, state_dir=world.folder / "thief", enrol_timeout_s=1)
        with pytest.raises(TocsinError) as caught:
            await thief.__aenter__()
        assert not isinstance(caught.value, UnavailableError | ConflictError), caught.value


async def test_a_tampered_agents_record_takes_nobody_off_the_list_of_who_is_due(world: World) -> None:
    fleet, router = await world.service(ServiceName.FLEET), await world.service(ServiceName.ROUTER)
    for name in ("a", "b"):
        record = AgentRecord(name=name, role=Role.CANARY, host="h1", key_id=bytes(32), enrolled_ns=1)
        await fleet.records(AGENTS).put(name, record)
    roster = RouterRoster(router, lambda _: None)
    await roster.follow()
    await put(fleet, AGENTS.name, "a", b"garbage")
    await eventually(lambda: router.metrics.counter("rejected.malformed") == 1)
    assert sorted(record.name for record in roster.agents) == ["a", "b"]


async def test_a_key_that_no_client_would_write_hides_no_record(world: World) -> None:
    """The client library refuses to read such a key, the broker takes it."""
    fleet = await world.service(ServiceName.FLEET)
    record = AgentRecord(name="a", role=Role.CANARY, host="h1", key_id=bytes(32), enrolled_ns=1)
    await fleet.records(AGENTS).put("a", record)
    for key in ("a:b", "x$y", "\u00e9"):
        await fleet.connection.publish(f"$KV.{AGENTS.name}.{key}", b"garbage")
    await fleet.flush()
    assert await fleet.records(AGENTS).all() == {"a": record}
    assert await fleet.records(AGENTS).keys() >= {"a"}


async def test_a_tampered_reservations_record_promises_nothing(world: World) -> None:
    manager = await world.service(ServiceName.QPU_MANAGER)
    book = QpuReservations(qpu="manila")
    await manager.records(RESERVATIONS).put("manila", book)
    first = await held(manager, RESERVATIONS.name, "manila")
    await manager.records(RESERVATIONS).put("manila", book)
    reader = manager.records(RESERVATIONS)
    assert await reader.get("manila") == book
    lies = {
        ("manila", "rolled_back"): first,
        ("boston", "moved_record"): first,
        ("manila", "malformed"): b"\x00",
    }
    for (key, reason), data in lies.items():
        await put(manager, RESERVATIONS.name, key, data)
        with pytest.raises(TocsinError) as caught:
            await reader.get(key)
        assert caught.value.reason == reason
    await (await manager.connection.js.key_value(RESERVATIONS.name)).delete("manila")
    with pytest.raises(UntrustedError) as gone:
        await reader.get("manila")
    assert gone.value.reason == "rolled_back"
    await reader.put("manila", book)
    assert await reader.get("manila") == book, "and the true writer goes on beyond it"


# --- Certificates and epochs --------------------------------------------------------------------


async def test_a_tampered_certificate_permits_nothing(world: World) -> None:
    council = Council()
    certificate = council.certificate()
    data = certificate.encode()
    decided = verify(data, council.root.certificate_pem)
    assert decided.command is not None
    order = ResponseOrder(
        decision=decided.decision, certificate=certificate_digest(data), command=decided.command
    )
    consensus = await world.bus(CONSENSUS)
    guardian = await world.agent(Role.GUARDIAN, "g1")
    enemy = await world.service(ServiceName.ROUTER)
    name = order.decision.hex()
    await consensus.put_certificate(name, data)
    root = council.root.certificate_pem
    assert check(order, await guardian.get_certificate(name), root).command == order.command
    few = dataclasses.replace(certificate, ballots=certificate.ballots[:-1]).encode()
    for lie in (flip(data), few, Council().certificate().encode()):
        await enemy.put_certificate(name, lie)
        fetched = await guardian.get_certificate(name)
        with pytest.raises(TocsinError):
            check(order, fetched, root)


def epoch_of(world: World, fleet_hosts: Sequence[AgentHost], number: int, key: Authority | LocalKey) -> bytes:
    """Sign an epoch of all agents of these hosts, by the root or by somebody else in its name."""
    seats = [
        (one.id, host._membership.key_id(one.id), 1) for host in fleet_hosts for one in host.agents.values()
    ]
    record = make_epoch(
        number=number,
        trust_domain=DOMAIN,
        participants=seats,
        instances=[(CONSENSUS, bytes(32), 1)],
        created_ns=time.time_ns(),
    )
    kind = CONSENSUS_EPOCH.request_type
    return forge(key, kind, record, sender=world.authority.id, audience="service.consensus")  # type: ignore[arg-type]  # both sign


async def test_a_forged_epoch_neither_replaces_nor_hides_the_true_one(world: World) -> None:
    three = [*ONE, ("canary-01", Role.CANARY)]
    async with FleetWorld(world, tokens_for("h1", three), world.folder) as fleet:
        await fleet.start_fleet()
        enemy = await world.service(ServiceName.ROUTER)
        js = enemy.connection.js
        async with fleet.make_host("h1", three) as host:
            true = epoch_of(world, [host], 1, world.authority)
            await js.publish(CONSENSUS_EPOCHS.at(number="1"), true)
            await eventually(lambda: host.epoch is not None)
            assert host.epoch is not None
            digest = host.epoch.digest
            later = epoch_of(world, [host], 2, world.authority)
            lies = [
                epoch_of(world, [host], 3, enemy.credentials.key),
                epoch_of(world, [host], 4, LocalKey.generate(world.backend, Algorithm.ML_DSA_44)),
                flip(later),
                b"garbage",
            ]
            for lie in lies:
                await js.publish(CONSENSUS_EPOCHS.at(number="9"), lie)
            for reason in ("wrong_sender", "unknown_key", "malformed"):
                await eventually(lambda reason=reason: host.metrics.counter(f"rejected.{reason}") >= 1)  # type: ignore[misc]  # bound now
            assert host.epoch.digest == digest
        # The lies are the last that the stream has: who starts now must not be left without an epoch.
        again = await fleet.start_host("h1", three)
        assert again.epoch is not None
        assert again.epoch.digest == digest
        await js.publish(CONSENSUS_EPOCHS.at(number="2"), later)
        await eventually(lambda: again.epoch is not None and again.epoch.epoch.number == 2)


async def test_a_guessed_message_id_swallows_nothing(world: World) -> None:
    """The broker drops a second message with the same id: whoever knows an envelope's leaf can come first."""
    consensus = await world.bus(CONSENSUS)
    sent = await consensus.make(DECISION, ANNOUNCED, audience="event")
    enemy = await world.service(ServiceName.ROUTER)
    at = {"decision": bytes(32).hex()}
    await enemy.connection.js.publish(
        CONSENSUS_DECISION.at(decision="ff"), b"garbage", headers={"Nats-Msg-Id": sent.leaf.hex()}
    )
    await consensus.send(CONSENSUS_DECISION.at(**at), sent, stream=CONSENSUS_DECISION.stream)
    last = await enemy.last(CONSENSUS_DECISION, at=at)
    assert last is not None
    assert last[0] == ANNOUNCED
