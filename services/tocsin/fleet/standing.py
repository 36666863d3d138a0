"""Keeps agents' standing: takes claims, quarantines below the threshold, and does what operators order.

The record in bucket ``standings`` is what counts: this process, like every other, follows it, so that what another
instance or a former process has written holds here too. A quarantine stays until an operator ends it.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Sequence

from tocsin.bus import Bus, Context
from tocsin.contracts.catalogue import AUDIT, AUDIT_STANDING, CONSENSUS_BALLOT, STANDINGS
from tocsin.contracts.decisions import Ballot, Equivocation
from tocsin.contracts.errors import InvalidInputError, TocsinError, UntrustedError
from tocsin.contracts.fleet import AgentState
from tocsin.contracts.health import Standing, StandingAction, StandingChanged, StandingDone
from tocsin.contracts.identifiers import ServiceName, SpiffeId
from tocsin.contracts.operations import RejectedEnvelope
from tocsin.contracts.routing import Refusal
from tocsin.fleet.health import HealthBook
from tocsin.fleet.liveness import Liveness
from tocsin.fleet.misconduct import DOUBTFUL, RECOVERED, THRESHOLD, Ledger, Reporter
from tocsin.fleet.population import Population
from tocsin.fleet.reports import accused_by, equivocator, reporter_of
from tocsin.fleet.states import Happening
from tocsin.telemetry import get_logger

SCORE = "score"
"""Who doubts, in the health book."""
LOOK_S = 5.0
"""How often it is looked whose score has recovered, and whose has to be written."""
WRITTEN_BY = 5.0
"""Points by which a score has to differ from the written one to be written again."""
CLAIMS_PER_S = 2_048
"""Claims of one reporter that are weighed each second: two hosts full of agents. Those beyond are counted only."""
NS_PER_S = 1_000_000_000
AT_ONCE = 32

log = get_logger(__name__)


class StandingKeeper:
    """The standings, as one fleet instance keeps them."""

    def __init__(self, bus: Bus, book: HealthBook, liveness: Liveness) -> None:
        self._bus = bus
        self._book = book
        self._liveness = liveness
        self._records = bus.records(STANDINGS)
        self._held: dict[str, Standing] = {}
        self._condemning: set[str] = set()
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._second = 0
        self._claimed: Counter[Reporter] = Counter()
        self.ledger = Ledger()
        self.population = Population()
        bus.standings.on_standing(self._learn)

    def start(self) -> None:
        """Begin to look after the scores."""
        self._bus.spawn(self._look(), "scores")

    # --- What is known ------------------------------------------------------------------------

    def of(self, agent: str) -> Standing | None:
        """Return an agent's record; None if nothing was ever held against it."""
        return self._held.get(agent)

    def score(self, agent: str) -> float:
        """Return an agent's score now."""
        if not self.ledger.holds(agent):
            return 100.0
        now_ns = time.time_ns()
        return round(self.ledger.score(agent, self.population.sizes(now_ns=now_ns), now_ns=now_ns), 1)

    # --- Claims -------------------------------------------------------------------------------

    def on_refusal(self, refusal: Refusal, context: Context) -> None:
        """A router has refused what an agent signed."""
        reporter = Reporter(context.sender.token, ServiceName.ROUTER.value)
        if self._book.record(refusal.agent) is not None:
            self._claim([refusal.agent], refusal.reason, reporter, 1, context.now_ns)

    def on_rejected(self, rejected: RejectedEnvelope, context: Context) -> None:
        """A process has refused bytes."""
        reporter = reporter_of(context.sender)
        if reporter is not None and rejected.by == context.sender.token:
            accused = accused_by(rejected, reporter, self._book.speaking)
            self._claim(accused, rejected.reason, reporter, rejected.count, context.now_ns)

    async def on_equivocation(self, proof: Equivocation, context: Context) -> None:
        """Consensus has two ballots of one agent; they are verified here once more.

        Raises:
            UntrustedError: ``no_equivocation``, or what does not hold of the ballots.
        """
        accused = SpiffeId.parse(proof.accused)
        if self._bus.standings.is_quarantined(accused.name):
            return
        where = CONSENSUS_BALLOT.at(decision=proof.decision.hex(), agent=accused.name)
        opened = []
        for data in (proof.first, proof.second):
            ballot, one = await self._bus.reopen(CONSENSUS_BALLOT, where, data)
            if not isinstance(ballot, Ballot):
                raise UntrustedError("no ballot", reason="no_equivocation")
            opened.append((ballot, one.sender))
        guilty = equivocator(proof, (opened[0], opened[1]))
        reporter = Reporter(context.sender.token, ServiceName.CONSENSUS.value)
        self._claim([guilty.name], "equivocation", reporter, 1, context.now_ns)

    def _claim(self, agents: Sequence[str], reason: str, reporter: Reporter, count: int, at_ns: int) -> None:
        if at_ns // NS_PER_S != self._second:
            self._second = at_ns // NS_PER_S
            self._claimed.clear()
        self._claimed[reporter] += len(agents)
        if self._claimed[reporter] > CLAIMS_PER_S:
            self._bus.metrics.count("claims_beyond_rate", len(agents))
            return
        for agent in agents:
            if self.ledger.claim(agent, reason, reporter, count=count, at_ns=at_ns):
                self._bus.metrics.count(f"claims.{reason}")
                self._weigh(agent, reason)
        self._bus.metrics.gauge("claims_left_out", self.ledger.left_out)

    def _weigh(self, agent: str, reason: str = "") -> None:
        """Draw the conclusions from an agent's score."""
        score = self.score(agent)
        if (
            score < THRESHOLD
            and agent not in self._condemning
            and not self._bus.standings.is_quarantined(agent)
        ):
            self._condemning.add(agent)
            self._bus.spawn(
                self._condemn_one(agent, f"score {score:g}, at last for {reason or 'what it did'}"),
                "quarantine",
            )
        elif score < DOUBTFUL and SCORE not in self._book.doubts(agent):
            self._liveness.changed(self._book.doubt(SCORE, {agent: SCORE}), f"score {score:g}")
        elif score > RECOVERED:
            self._liveness.changed(self._book.clear(SCORE, [agent]), f"score {score:g}")

    async def _condemn_one(self, agent: str, why: str) -> None:
        try:
            await self.quarantine([agent], why)
        except TocsinError as error:
            self._bus.metrics.count(f"quarantine_failures.{error.reason}")
            log.warning("quarantine_failed", agent=agent, reason=error.reason)
        finally:
            self._condemning.discard(agent)

    # --- Orders -------------------------------------------------------------------------------

    async def quarantine(self, agents: Iterable[str], why: str, *, by: str = "") -> StandingDone:
        """Quarantine agents: fleet by itself, or an operator.

        Raises:
            InvalidInputError: ``no_such_agent``; nobody is quarantined then.
        """
        return await self._order(StandingAction.QUARANTINE, agents, why, by or self._bus.id.token)

    async def release(self, agents: Iterable[str], why: str, *, by: str) -> StandingDone:
        """Release agents, and hold nothing against them any more.

        Raises:
            InvalidInputError: ``no_such_agent``; nobody is released then.
        """
        return await self._order(StandingAction.RELEASE, agents, why, by)

    async def approved(self, agents: Sequence[str], *, by: str) -> None:
        """Have it audited that an operator has approved what agents run."""
        if agents:
            await self._audit(StandingAction.APPROVE, agents, by, "what it runs was approved")

    async def _audit(self, action: StandingAction, agents: Sequence[str], by: str, why: str) -> None:
        body = StandingChanged(action=action, agents=tuple(agents), by=by, why=why[:512])
        await self._bus.publish(AUDIT, AUDIT_STANDING, body, durable=True, at={"kind": "standing"})

    async def _order(self, action: StandingAction, agents: Iterable[str], why: str, by: str) -> StandingDone:
        names = sorted(set(agents))
        if unknown := [name for name in names if self._book.record(name) is None]:
            raise InvalidInputError(f"no agent {', '.join(unknown[:5])} is enrolled", reason="no_such_agent")
        quarantined = action is StandingAction.QUARANTINE

        async def one(name: str) -> bool:
            now_ns = time.time_ns()
            score = self.score(name) if quarantined else 100.0

            def change(held: Standing | None) -> Standing | None:
                if (held is not None and held.quarantined) is quarantined and (quarantined or held is None):
                    return None
                return Standing(
                    agent=name,
                    quarantined=quarantined,
                    why=why[:512],
                    by=by,
                    since_ns=now_ns,
                    score=score,
                    score_ns=now_ns,
                )

            async with self._slots:
                written = await self._records.change(name, change)
            return written is not None

        changed = [
            name for name, done in zip(names, await asyncio.gather(*map(one, names)), strict=True) if done
        ]
        if changed:
            self._bus.metrics.count(f"standings.{action.value}", len(changed))
            await self._audit(action, changed, by, why)
        return StandingDone(changed=tuple(changed), unchanged=tuple(sorted(set(names) - set(changed))))

    # --- Inside -------------------------------------------------------------------------------

    def _learn(self, record: Standing) -> None:
        """Take a record, of whichever process; they come in the order in which they were written."""
        held = self._held.get(record.agent)
        self._held[record.agent] = record
        if held is None and record.score < 100:
            # What a former process had against it, faded since.
            self.ledger.carry(record.agent, 100 - record.score, at_ns=record.score_ns)
        if held is not None and held.quarantined and not record.quarantined:
            self.ledger.forgive(record.agent)
        self.apply(record.agent)

    def apply(self, agent: str) -> None:
        """Let a record take effect in the health book."""
        record = self._held.get(agent)
        state = self._book.state(agent, now_ns=time.time_ns())
        if record is None or (not record.quarantined and state is not AgentState.QUARANTINED):
            return
        happening = Happening.CONDEMNED if record.quarantined else Happening.RELEASED
        self._liveness.changed(self._book.happen(happening, [agent]), record.why or happening.value)

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            now_ns = time.time_ns()
            self.ledger.tidy(now_ns=now_ns)
            for agent in {*self.ledger.agents(), *self._book.doubted(SCORE)}:
                self._weigh(agent)
                await self._write_score(agent, now_ns)

    async def _write_score(self, agent: str, now_ns: int) -> None:
        """Write a score that has fallen, so that a restart keeps it; what has recovered is computed."""
        held, score = self._held.get(agent), self.score(agent)
        if score > (held.score if held is not None else 100.0) - WRITTEN_BY:
            return

        def change(present: Standing | None) -> Standing:
            return Standing(
                agent=agent,
                quarantined=present is not None and present.quarantined,
                why=present.why if present is not None else "",
                by=present.by if present is not None else self._bus.id.token,
                since_ns=present.since_ns if present is not None else now_ns,
                score=score,
                score_ns=now_ns,
            )

        try:
            await self._records.change(agent, change)
        except TocsinError as error:
            self._bus.metrics.count(f"score_failures.{error.reason}")
