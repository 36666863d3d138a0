"""Hosts ballot: with grounds of their own, once, in the epoch that the root signed."""

from __future__ import annotations

import time

from fleet_support import FleetWorld, agent_id, tokens_for
from support import DOMAIN, World, eventually

from tocsin.agent import AgentHost
from tocsin.bus import Bus, Context, Sent
from tocsin.bus.envelope import encode_body, encode_content, encode_envelope, make_content
from tocsin.contracts.catalogue import (
    CONSENSUS_BALLOT,
    CONSENSUS_EPOCH,
    CONSENSUS_EPOCHS,
    CONSENSUS_PROPOSAL,
    CONSENSUS_ROUND,
    DELIVER_ALL,
    ROUND_OPENED,
    THREAT_ALERT,
    VOTE,
)
from tocsin.contracts.decisions import Ballot, Option, Proposal, RoundOpened, Step, Vote
from tocsin.contracts.identifiers import Role, ServiceName, Severity
from tocsin.contracts.observations import Finding, FindingKind, Technique
from tocsin.contracts.response import Action, Command
from tocsin.contracts.routing import ThreatAlert
from tocsin.crypto import Authority, leaf_hash, sign_batch
from tocsin.evidence.choices import Question
from tocsin.evidence.epochs import make_epoch

AGENTS = [
    ("hunter-01", Role.HUNTER),
    ("sentinel-01", Role.SENTINEL),
    ("sentinel-02", Role.SENTINEL),
    ("admin-01", Role.ADMIN),
]
SEATED = [name for name, _ in AGENTS if name != "sentinel-02"]
BAD = "10.0.0.66"


def alert_about(subject: str) -> ThreatAlert:
    finding = Finding(
        kind=FindingKind.SCAN,
        subject=subject,
        internal=True,
        targets=(),
        score=1.0,
        technique=Technique(id="T1046", name="Network Service Discovery"),
        evidence=(),
        source="s",
        first_s=0,
        last_s=1,
        connections=5,
    )
    return ThreatAlert(severity=Severity.HIGH, summary="a scan", finding=finding)


def proposal(epoch: bytes, address: str) -> Proposal:
    command = Command(action=Action.CONTAIN, address=address, duration_s=60)
    return Proposal(
        epoch=epoch,
        workflow=bytes(16),
        subject=address,
        evidence=(),
        assessment=bytes(32),
        options=(
            Option(name="contain", command=command, text=""),
            Option(name="nothing", command=None, text=""),
        ),
        deadline_ms=10_000,
    )


class Decider:
    """Installs epochs, proposes and collects ballots, as the CLI, an admin and consensus do."""

    def __init__(self, host: AgentHost, consensus: Bus, root: Authority) -> None:
        self.host, self.consensus, self.root = host, consensus, root
        self.ballots: list[tuple[Ballot, Context]] = []

    async def collect(self) -> None:
        async def on_ballot(ballot: Ballot, context: Context) -> None:
            self.ballots.append((ballot, context))

        await self.consensus.subscribe(CONSENSUS_BALLOT, on_ballot)

    async def install(self, *, created_ns: int, root: Authority | None = None, number: int = 0) -> bytes:
        root = root or self.root
        keys = self.consensus.credentials.key
        roles = dict(AGENTS)
        epoch = make_epoch(
            number=number,
            trust_domain=DOMAIN,
            participants=[
                (agent_id(roles[n], n), self.host._membership.key_id(agent_id(roles[n], n)), 2) for n in SEATED
            ],
            instances=[(self.consensus.id, keys.signer.key_id, int(keys.algorithm))],
            created_ns=created_ns,
        )
        content = encode_content(
            make_content(
                type_name=CONSENSUS_EPOCH.request_type.name,
                sender=str(root.id),
                audience="service.consensus",
                body=encode_body(epoch),
                now_ns=created_ns,
                ttl_ms=0,
            )
        )
        data = encode_envelope(content, root.signer.key_id, sign_batch(root.signer, [content])[0])
        sent = Sent(bytes(16), leaf_hash(content), data, created_ns)
        await self.consensus.send(CONSENSUS_EPOCHS.at(number=str(number)), sent, stream="DECISIONS")
        return sent.leaf

    async def say(self, sent: Sent) -> None:
        await self.consensus.send(DELIVER_ALL.at(), sent)

    async def propose(self, body: Proposal) -> Sent:
        admin = self.host.agents["admin-01"].id
        sent = await self.host._bus.make(CONSENSUS_PROPOSAL, body, audience="all", sender=admin)
        await self.say(sent)
        return sent

    def chosen(self, decision: bytes, round_number: int = 1) -> dict[str, int | None]:
        there = (decision, round_number)
        return {c.sender.name: b.option for b, c in self.ballots if (b.decision, b.round) == there}

    async def tell(
        self, first: Question, epoch: bytes, options: tuple[Option, ...], committed: tuple[Option, ...]
    ) -> None:
        """Tell of the second round, with a commit of the only instance."""
        vote = Vote(
            step=Step.VOTE2,
            epoch=epoch,
            decision=first.decision,
            round=1,
            view=1,
            value=first.next(committed),
        )
        sent = await self.consensus.make(VOTE, vote, audience="service.consensus")
        opened = RoundOpened(
            epoch=epoch,
            decision=first.decision,
            round=2,
            options=options,
            commit=(sent.data,),
            keys=(self.consensus.credentials.key.signer.public_key,),
        )
        at = {"decision": first.decision.hex()}
        await self.consensus.publish(CONSENSUS_ROUND, ROUND_OPENED, opened, audience="all", at=at)


async def decider(world: World, fleet: FleetWorld) -> Decider:
    await fleet.start_fleet()
    host = await fleet.start_host("h1", AGENTS)
    made = Decider(host, await world.service(ServiceName.CONSENSUS), world.authority)
    await made.collect()
    return made


async def test_agents_support_what_another_agent_has_warned_about(world: World) -> None:
    async with FleetWorld(world, tokens_for("h1", AGENTS), world.folder) as fleet:
        d = await decider(world, fleet)
        epoch = await d.install(created_ns=time.time_ns())
        await eventually(lambda: d.host.epoch is not None and d.host.epoch.digest == epoch)
        sentinel = d.host.agents["sentinel-01"].id
        await d.say(await d.host._bus.make(THREAT_ALERT, alert_about(BAD), audience="all", sender=sentinel))
        known = await d.propose(proposal(epoch, BAD))
        unknown = await d.propose(proposal(epoch, "10.0.0.1"))
        await eventually(lambda: len(d.ballots) == 2 * len(SEATED))
        assert d.chosen(known.leaf) == dict.fromkeys(SEATED, 0)
        assert d.chosen(unknown.leaf) == dict.fromkeys(SEATED, 1)
        assert d.host.metrics.counter("ballots_withheld.not_a_participant") == 2


async def test_a_ballot_is_the_same_bytes_for_ever(world: World) -> None:
    """Also after a restart of the host, and although the agent would choose otherwise by then."""
    async with FleetWorld(world, tokens_for("h1", AGENTS), world.folder) as fleet:
        await fleet.start_fleet()
        consensus = await world.service(ServiceName.CONSENSUS)
        async with fleet.make_host("h1", AGENTS) as host:
            d = Decider(host, consensus, world.authority)
            await d.collect()
            epoch = await d.install(created_ns=time.time_ns())
            await eventually(lambda: host.epoch is not None)
            sent = await d.propose(proposal(epoch, BAD))
            await eventually(lambda: len(d.ballots) == len(SEATED))
        again = await fleet.start_host("h1", AGENTS)
        assert again.epoch is not None
        sentinel = again.agents["sentinel-01"].id
        await d.say(await again._bus.make(THREAT_ALERT, alert_about(BAD), audience="all", sender=sentinel))
        await d.say(sent)
        await eventually(lambda: len(d.ballots) == 2 * len(SEATED))
        first, second = d.ballots[: len(SEATED)], d.ballots[len(SEATED) :]
        assert {c.data for _, c in first} == {c.data for _, c in second}


async def test_only_the_root_makes_epochs_and_an_older_one_changes_nothing(world: World) -> None:
    async with FleetWorld(world, tokens_for("h1", AGENTS), world.folder) as fleet:
        d = await decider(world, fleet)
        now_ns = time.time_ns()
        other_root = Authority.create_root(DOMAIN, now=d.root.certificate.certificate.not_valid_before_utc)
        await d.install(created_ns=now_ns, root=other_root, number=5)
        epoch = await d.install(created_ns=now_ns)
        await eventually(lambda: d.host.epoch is not None)
        await d.install(created_ns=now_ns - 1)
        marker = await d.install(created_ns=now_ns + 1)
        await eventually(lambda: d.host.epoch is not None and d.host.epoch.digest == marker)
        await eventually(lambda: d.host.metrics.counter("rejected.unknown_key") == 1)
        assert d.host.epoch is not None
        assert d.host.epoch.digest == marker != epoch


async def test_a_proposal_of_another_epoch_gets_no_ballot(world: World) -> None:
    async with FleetWorld(world, tokens_for("h1", AGENTS), world.folder) as fleet:
        d = await decider(world, fleet)
        await d.propose(proposal(bytes(32), BAD))
        await eventually(lambda: d.host.metrics.counter("ballots_withheld.by_choice") == len(AGENTS))
        assert d.ballots == []


async def test_agents_ballot_again_when_a_further_round_is_committed_and_not_before(world: World) -> None:
    """They have been warned since, and choose anew; told once more, they send the same bytes."""
    async with FleetWorld(world, tokens_for("h1", AGENTS), world.folder) as fleet:
        d = await decider(world, fleet)
        epoch = await d.install(created_ns=time.time_ns())
        await eventually(lambda: d.host.epoch is not None)
        body = proposal(epoch, BAD).model_copy(update={"rounds": 2})
        decision = (await d.propose(body)).leaf
        await eventually(lambda: d.chosen(decision) == dict.fromkeys(SEATED, 1))
        first = Question.first(decision, body)
        sentinel = d.host.agents["sentinel-01"].id
        await d.say(await d.host._bus.make(THREAT_ALERT, alert_about(BAD), audience="all", sender=sentinel))
        turned = body.options[::-1]
        await d.tell(first, epoch, body.options, committed=turned)
        await eventually(lambda: d.host.metrics.counter("handler_refusals.wrong_options") == 1)
        assert d.chosen(decision, 2) == {}
        await d.tell(first, epoch, turned, committed=turned)
        await eventually(lambda: d.chosen(decision, 2) == dict.fromkeys(SEATED, 1))
        await d.tell(first, epoch, turned, committed=turned)
        await eventually(lambda: sum(b.round == 2 for b, _ in d.ballots) == 2 * len(SEATED))
        assert len({c.data for b, c in d.ballots if b.round == 2}) == len(SEATED)


async def test_a_round_of_a_decision_that_a_host_does_not_know_asks_nobody(world: World) -> None:
    async with FleetWorld(world, tokens_for("h1", AGENTS), world.folder) as fleet:
        d = await decider(world, fleet)
        epoch = await d.install(created_ns=time.time_ns())
        await eventually(lambda: d.host.epoch is not None)
        options = proposal(epoch, BAD).options
        await d.tell(Question(bytes(32), 1, options), epoch, options, committed=options)
        await eventually(lambda: d.host.metrics.counter("rounds_of_unknown_decisions") == 1)
        assert d.ballots == []
