"""Who decides, to measure: instances of consensus that are the real service, workers that ballot, and an admin."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from _agents import DOMAIN, host_names
from _embedded import Embedded
from _fleet import READY_TIMEOUT_S
from _processes import Worker, cpu_s
from _voting import Ahead, Conduct, VotingPlan
from _worker import Said

from tocsin.bus import Bus, BusSettings, Context, Credentials, Sent
from tocsin.cli.authority import issue_service, sign_as_root
from tocsin.cli.supervisor import Supervisor
from tocsin.contracts.base import Message
from tocsin.contracts.catalogue import (
    AUDIT,
    CONSENSUS_DECISION,
    CONSENSUS_EPOCH,
    CONSENSUS_PROPOSAL,
    CONSENSUS_VOTE,
    DELIVER_ALL,
    PING,
)
from tocsin.contracts.decisions import DecisionAnnounced, Equivocation, Option, Proposal, Step, Vote
from tocsin.contracts.errors import UnavailableError
from tocsin.contracts.identifiers import ServiceName, SpiffeId
from tocsin.contracts.operations import PingRequest
from tocsin.evidence.epochs import make_epoch
from tocsin.evidence.quorum import instance_quorum
from tocsin.telemetry import Metrics

DEADLINE_MS = 600_000
"""Long: proposals are made before their ballots are signed, and no decision is to end by its deadline."""
OPTIONS = (Option(name="yes", command=None, text="Do it"), Option(name="no", command=None, text="Leave it"))
SIGN_TIMEOUT_S = 300.0
ADMIN = "admin"


@dataclass
class Council:
    """The running system. Make it with :func:`council`."""

    system: Embedded
    admin: Bus
    instances: tuple[SpiffeId, ...]
    supervisor: Supervisor
    workers: list[Worker]
    epoch: bytes = b""
    announced: dict[bytes, list[tuple[int, DecisionAnnounced]]] = field(default_factory=dict)
    """By decision: when it was heard, by the monotonic clock, in nanoseconds, and what was said."""
    committing: dict[bytes, dict[tuple[int, bytes], set[str]]] = field(default_factory=dict)
    """By decision, round and value: the instances that have signed VOTE2 for it, in any view."""
    cast: dict[tuple[str, bytes, int, int, Step], set[bytes | None]] = field(default_factory=dict)
    """What each instance has signed in one step: more than one value is an equivocation."""
    accused: Counter[str] = field(default_factory=Counter)
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    # --- Deciding -----------------------------------------------------------------------------

    async def make(self, number: int) -> Sent:
        """Make a proposal; it is not sent."""
        proposal = Proposal(
            epoch=self.epoch,
            workflow=number.to_bytes(16, "big"),
            subject=f"question {number}",
            evidence=(),
            assessment=bytes(32),
            options=OPTIONS,
            deadline_ms=DEADLINE_MS,
        )
        return await self.admin.make(CONSENSUS_PROPOSAL, proposal, audience="all")

    async def sign_ahead(self, decisions: Sequence[bytes]) -> None:
        """Have the workers sign ballots for decisions whose proposals are made."""
        for worker in self.workers:
            worker.said = Said(state="running")  # it has said "signed" of those before
            worker.tell(Ahead(epoch=self.epoch, decisions=tuple(decisions)))
        await asyncio.gather(*(worker.signed(SIGN_TIMEOUT_S) for worker in self.workers))

    async def send(self, proposal: Sent) -> int:
        """Send a proposal as a router hands it on; return when that began, in nanoseconds."""
        begun_ns = time.monotonic_ns()
        await self.admin.send(DELIVER_ALL.at(), proposal)
        return begun_ns

    async def until_announced(self, decisions: Sequence[bytes], *, within_s: float) -> None:
        """Wait until all of these decisions were announced.

        Raises:
            UnavailableError: ``not_decided``, or ``child_ended``.
        """
        try:
            async with asyncio.timeout(within_s):
                while not all(decision in self.announced for decision in decisions):
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError as error:
            self.supervisor.check()
            for worker in self.workers:
                worker.check()
            open_still = sum(decision not in self.announced for decision in decisions)
            raise UnavailableError(
                f"{open_still} of {len(decisions)} decisions have not ended within {within_s:g} s",
                reason="not_decided",
            ) from error

    # --- Instances ----------------------------------------------------------------------------

    def leader(self, decision: bytes) -> SpiffeId:
        """Return who leads the first view: the design's rotation, over the epoch's order."""
        return self.instances[int.from_bytes(decision[:4], "big") % len(self.instances)]

    def kill(self, instance: SpiffeId) -> None:
        """Kill an instance at once."""
        process = self.supervisor.children[f"consensus-{instance.name}"].process
        if process is not None:
            process.kill()
            process.wait()

    async def restart(self, instance: SpiffeId) -> None:
        """Start an instance again, and wait until it answers."""
        self.supervisor.children[f"consensus-{instance.name}"].start()
        await self.answering({instance.name})

    async def answering(self, names: set[str]) -> None:
        """Wait until these instances have answered a ping.

        Raises:
            UnavailableError: ``child_ended``, or ``not_ready`` in time.
        """
        missing, deadline = set(names), time.monotonic() + READY_TIMEOUT_S
        while missing:
            self.supervisor.check()
            if time.monotonic() > deadline:
                raise UnavailableError(
                    f"no answer of instance {', '.join(sorted(missing))}", reason="not_ready"
                )
            try:
                pong = await self.system.fleet.bus.request(
                    PING[ServiceName.CONSENSUS], PingRequest(), timeout_s=1.0
                )
                missing.discard(pong.name)
            except UnavailableError:
                await asyncio.sleep(0.05)

    def cpu_s(self) -> dict[str, float]:
        """Return the CPU time that each group of processes has used so far, in seconds."""
        children = [one.process for one in self.supervisor.children.values()]
        return {
            "instances": cpu_s([one.pid for one in children if one is not None and one.poll() is None]),
            "broker": cpu_s([self.system.broker.process.pid]),
            "agents": cpu_s([worker.pid for worker in self.workers]),
        }

    # --- What is heard ------------------------------------------------------------------------

    async def listen(self) -> None:
        """Hear announcements, the instances' steps and accusations."""
        bus = self.system.fleet.bus
        await bus.subscribe(CONSENSUS_DECISION, self._on_decision)
        await bus.subscribe(CONSENSUS_VOTE, self._on_vote)
        await bus.subscribe(AUDIT, self._on_audit)

    async def _on_decision(self, body: DecisionAnnounced, _: Context) -> None:
        self.announced.setdefault(body.decision, []).append((time.monotonic_ns(), body))
        self._news.set()

    async def _on_vote(self, vote: Vote, context: Context) -> None:
        where = (str(context.sender), vote.decision, vote.round, vote.view, vote.step)
        self.cast.setdefault(where, set()).add(vote.value)
        if vote.step is Step.VOTE2 and vote.value is not None:
            values = self.committing.setdefault(vote.decision, {})
            values.setdefault((vote.round, vote.value), set()).add(str(context.sender))

    async def _on_audit(self, body: Message, _: Context) -> None:
        if isinstance(body, Equivocation):
            self.accused[body.accused] += 1

    def violations(self) -> int:
        """Return how many decisions were committed or announced in two ways.

        Two values of one round that a quorum of instances has signed VOTE2 for, whatever the views, or two
        announcements that differ in outcome, option or round.
        """
        quorum = instance_quorum(len(self.instances))
        forked = 0
        for decision, heard in self.announced.items():
            ends = {(one.outcome, one.option and one.option.name, one.round) for _, one in heard}
            rounds = Counter(
                of for (of, _), who in self.committing.get(decision, {}).items() if len(who) >= quorum
            )
            forked += len(ends) > 1 or any(count > 1 for count in rounds.values())
        return forked

    @property
    def instances_that_contradict(self) -> int:
        """How many steps an instance has signed twice with different values."""
        return sum(len(values) > 1 for values in self.cast.values())


@asynccontextmanager
async def council(
    system: Embedded, *, instances: int, live: bool, hostile: dict[str, Conduct], concurrent: int
) -> AsyncIterator[Council]:
    """Start instances, workers and the admin, and install the epoch; end them all afterwards."""
    fleet, names = system.fleet, [str(number) for number in range(instances)]
    folder = fleet.folder / "consensus"
    supervisor = Supervisor(fleet.folder / "logs")
    seats = []
    for name in names:
        credentials = issue_service(
            fleet.root, ServiceName.CONSENSUS, name, folder / name, backend=fleet.options.backend
        )
        seats.append((credentials.id, credentials.key.signer.key_id, int(credentials.key.algorithm)))
    async with AsyncExitStack() as stack:
        try:
            workers = [
                await stack.enter_async_context(
                    Worker(plan.own.name, "_voting.py", plan, fleet.folder / f"{plan.own.name}.log")
                )
                for plan in _plans(system, live=live, hostile=hostile)
            ]
            admin = await stack.enter_async_context(_admin(system))
            for name in names:
                supervisor.start(
                    f"consensus-{name}",
                    "tocsin.consensus",
                    nats_url=system.broker.url,
                    nats_token_file=str(system.broker.token_file),
                    credentials_dir=str(folder / name),
                    state_dir=str(folder / name / "state"),
                    instance=name,
                    signature_backend=fleet.options.backend.name,
                    max_open_decisions=str(max(256, concurrent)),
                    max_open_per_proposer=str(max(64, concurrent)),
                    log_level="warning",
                )
            found = Council(
                system, admin, tuple(sorted((one for one, _, _ in seats), key=str)), supervisor, workers
            )
            await found.answering(set(names))
            for worker in workers:
                await worker.ready()
            await found.listen()
            # Results go out through it, as they do in a system; nobody here is due to confirm them.
            await stack.enter_async_context(system.routers(1))
            found.epoch = await _install_epoch(system, seats)
            yield found
            await supervisor.stop()
        finally:
            supervisor.kill()


def _plans(system: Embedded, *, live: bool, hostile: dict[str, Conduct]) -> list[VotingPlan]:
    """Certify the workers' keys; whoever is no admin ballots."""
    fleet = system.fleet
    voters = [agent for agent in fleet.agents if agent.id.role is None or agent.id.role.value != ADMIN]
    shared = fleet.options.key_scope == "host"
    plans = []
    for host in host_names(voters):
        mine = [agent.id for agent in voters if agent.host == host]
        others = [agent.id for agent in voters if agent.host != host and str(agent.id) not in hostile]
        folder = fleet.folder / "credentials" / host
        own_id = SpiffeId.host(DOMAIN, host)
        own = fleet.certify(folder, host, host, [own_id, *(mine if shared else [])])
        keys = [] if shared else [fleet.certify(folder, host, one.name, [one]) for one in mine]
        fleet.keys += len(keys) or 1
        plans.append(
            VotingPlan(
                nats_url=fleet.nats_url,
                nats_token_file=str(fleet.token_file),
                signature_backend=fleet.options.backend.name,
                credentials_dir=str(folder),
                state_dir=str(folder),
                own=own,
                keys=tuple(keys),
                agents=tuple(map(str, mine)),
                hostile={who: conduct for who, conduct in hostile.items() if who in set(map(str, mine))},
                victim=str(others[0] if others else mine[0]),
                live=live,
            )
        )
    return plans


@asynccontextmanager
async def _admin(system: Embedded) -> AsyncIterator[Bus]:
    """Open a bus for the admin, who proposes and does not ballot."""
    fleet = system.fleet
    who = next(agent.id for agent in fleet.agents if agent.id.role is not None and agent.id.role.value == ADMIN)
    folder = fleet.folder / "credentials" / ADMIN
    fleet.certify(folder, ADMIN, ADMIN, [who])
    settings = BusSettings(
        nats_url=fleet.nats_url,
        nats_token_file=Path(fleet.token_file),
        credentials_dir=folder,
        signature_backend=fleet.options.backend.name,
    )
    async with Bus(settings, Credentials.load(folder, who, ADMIN, fleet.options.backend), Metrics()) as bus:
        yield bus


async def _install_epoch(system: Embedded, instances: Sequence[tuple[SpiffeId, bytes, int]]) -> bytes:
    """Have the root sign who decides; return the epoch's digest."""
    fleet = system.fleet
    key_ids = {record.name: record.key_id for record in fleet.records}
    epoch = make_epoch(
        number=0,
        trust_domain=DOMAIN,
        participants=[(one.id, key_ids[one.name], int(fleet.options.algorithm)) for one in fleet.agents],
        instances=instances,
        created_ns=time.time_ns(),
    )
    sent = sign_as_root(
        fleet.root, CONSENSUS_EPOCH.request_type, epoch, audience=CONSENSUS_EPOCH.subject.audience
    )
    installed = await fleet.bus.ask_with(CONSENSUS_EPOCH, sent, fleet.root.id, timeout_s=10.0)
    return installed.epoch
