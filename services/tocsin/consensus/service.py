"""The shell of a consensus instance: messages to the protocol, its effects to the disk and the bus.

Handlers only feed the protocol, so the line of ballots never waits for a disk; each list of effects is carried
out by a task: sign, persist in one fsync, send, and only then end the decision. What the steps of other instances
bring along is verified before the protocol sees it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import chain, repeat

from tocsin.agent.epochs import SEEK_EVERY_S, EpochReader, age, is_news
from tocsin.bus import Bus, Context, Sent, Service, handles, subscribes
from tocsin.consensus.announcing import announcement, certificate_of, check_certificate, holds
from tocsin.consensus.deciding import Pace
from tocsin.consensus.effects import (
    Accuse,
    Ask,
    CastVote,
    Effect,
    End,
    Forget,
    LookUp,
    SendAgain,
    Show,
    Voted,
)
from tocsin.consensus.epochs import check_change, made_by, made_by_other, publish_epoch
from tocsin.consensus.passing import OpenPage, as_voted, open_page, pages
from tocsin.consensus.protocol import Limits, Protocol, good_until_ns
from tocsin.consensus.settings import ConsensusSettings
from tocsin.consensus.store import Keeping, Recovered, VoteLog
from tocsin.consensus.tally import Received
from tocsin.contracts.base import Message
from tocsin.contracts.catalogue import (
    AUDIT,
    AUDIT_EQUIVOCATION,
    CONSENSUS_BALLOT,
    CONSENSUS_DECISION,
    CONSENSUS_EPOCH,
    CONSENSUS_EPOCHS,
    CONSENSUS_LACKING,
    CONSENSUS_PROPOSAL,
    CONSENSUS_SHOWN,
    CONSENSUS_VOTE,
    DECISION,
    DELIVER_ALL,
    LACKING,
    SHOWN,
    VOTE,
)
from tocsin.contracts.decisions import (
    Ballot,
    DecisionAnnounced,
    Epoch,
    EpochInstalled,
    Lacking,
    Outcome,
    Proposal,
    Shown,
    Vote,
)
from tocsin.contracts.errors import (
    ConflictError,
    ExhaustedError,
    InvalidInputError,
    InvariantBrokenError,
    TocsinError,
    UnavailableError,
)
from tocsin.contracts.identifiers import ServiceName, SpiffeId
from tocsin.evidence.epochs import InstalledEpoch, open_epoch
from tocsin.evidence.reading import read
from tocsin.evidence.succession import asks_for_epoch
from tocsin.evidence.verification import CONSENSUS_AUDIENCE
from tocsin.evidence.votes import open_certificate, verify_steps
from tocsin.telemetry import get_logger

RETRY_S = (0.1, 0.5, 2.0, 5.0)
"""Pauses while the broker refuses what must reach it; the last one repeats."""
IDLE_TICK_S = 0.02
"""How often the clock is looked at while no decision is open."""
NS_PER_S = 1_000_000_000

log = get_logger(__name__)


class ConsensusService(Service[ConsensusSettings]):
    """Commits the outcomes of the agents' ballots and makes their certificates."""

    name = ServiceName.CONSENSUS

    def __init__(self, bus: Bus, settings: ConsensusSettings) -> None:
        super().__init__(bus, settings)
        self.protocol = Protocol(
            str(bus.id),
            Limits(settings.max_open_decisions, settings.max_open_per_proposer, settings.max_held_per_agent),
            Pace(
                first_view_ns=int(settings.view_timeout_s * NS_PER_S),
                longest_view_ns=int(settings.view_timeout_max_s * NS_PER_S),
                step_in_ns=int(settings.step_in_s * NS_PER_S),
            ),
        )
        self._own_key = bus.credentials.key.signer
        self._keys = {self._own_key.key_id: self._own_key.public_key}
        self._votes: VoteLog | None = None
        self._log_failed = False
        self._to_go_on: list[Effect] = []
        self._writing: set[asyncio.Future[None]] = set()
        self._keeping = Keeping()
        self._epochs = EpochReader(bus)
        self._seek_from = 0.0

    @property
    def ready(self) -> bool:
        """Whether it can decide: not without its log."""
        return super().ready and not self._log_failed

    # --- Life ---------------------------------------------------------------------------------

    async def prepare(self) -> None:
        """Read the log, and take up what a former process had begun."""
        path = self.settings.state_dir / f"consensus-{self.settings.instance}.votes"
        self._votes, recovered = await VoteLog.open(path, self.bus.trust, time.time_ns())
        self._keys |= recovered.keys
        for decision, until_ns in recovered.ended.items():
            self.protocol.remember_ended(decision, until_ns)
        for epoch in sorted(recovered.epochs.values(), key=age):
            self._epochs.keep(epoch)
            if self._speaks_in(epoch):
                self.protocol.install(epoch)
            else:
                self.protocol.abstain_until_after(epoch.epoch.number)
        await self._compare_epochs(recovered)
        for decision, rest in recovered.unfinished.items():
            epoch = recovered.epochs[rest.proposal.body.epoch]
            log.info("decision_resumed", decision=decision.hex(), possible=self._speaks_in(epoch))
            if self._speaks_in(epoch):
                self._keeping.resume(decision, len(rest.ballots))
                self._to_go_on += self.protocol.restore(
                    epoch, rest.proposal, rest.ballots, rest.own, time.time_ns()
                )

    async def started(self) -> None:
        """Listen to the other instances, carry out what the log left to do, and watch the clock."""
        own = {"instance": self.bus.id.name}
        await self.bus.subscribe(CONSENSUS_BALLOT, self.on_ballot, needed=self._is_ballot_needed)
        await self.bus.subscribe(CONSENSUS_LACKING, self.on_lacking, at=own)
        await self.bus.subscribe(CONSENSUS_SHOWN, self.on_shown, at=own)
        self.bus.connection.on_reconnect(self._reconnected)
        self._do(self._to_go_on)
        self.bus.spawn(self._tick(), "deadlines")

    async def stopping(self) -> None:
        """Close the log: a vote that is not in it is not sent."""
        if self._votes is not None:
            await self._votes.close()

    def _speaks_in(self, epoch: InstalledEpoch) -> bool:
        """Tell whether the epoch binds this process's key: it may have been given a new one since."""
        seat = epoch.instances.get(str(self.bus.id))
        return seat is not None and seat.key_id == self._own_key.key_id

    async def _compare_epochs(self, recovered: Recovered) -> None:
        """Publish the epoch if the stream lacks it; abstain in one in which this log cannot have its votes.

        An epoch that is made after the log was begun was missed, and is taken: whatever this instance has cast
        in it would be in the log. In one that is older than the log it may have voted, into a log that is lost.
        """
        latest = await self._epochs.latest()
        if latest is not None and latest.digest not in recovered.epochs:
            begun_ns = recovered.begun_ns
            if begun_ns is not None and begun_ns < latest.epoch.created_ns:
                await self._adopt(latest)
            else:
                log.error("vote_log_lost", epoch=latest.epoch.number, advice="install a new epoch")
                self.protocol.abstain_until_after(latest.epoch.number)
        elif self.protocol.epoch is not None:
            await publish_epoch(self.bus, self.protocol.epoch)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(self.settings.tick_s if self.protocol.busy else IDLE_TICK_S)
            self._do(self.protocol.tick(time.time_ns()))

    # --- In -----------------------------------------------------------------------------------

    @handles(CONSENSUS_EPOCH, concurrency=1)
    async def install_epoch(self, _: Epoch, context: Context) -> EpochInstalled:
        """Install an epoch that the root signed, and publish the same bytes.

        Raises:
            ConflictError: ``stale_epoch``.
            InvalidInputError: a rule that the record breaks.
            UntrustedError: ``not_an_instance`` or ``wrong_key``: it binds another key to this instance.
        """
        epoch = await asyncio.to_thread(open_epoch, context.data, self.bus.trust, self.bus.opener.batches)
        epoch.instance(self.bus.id, self._own_key.key_id)
        await self._install(epoch)
        await publish_epoch(self.bus, epoch)
        return epoch.installed()

    @subscribes(CONSENSUS_EPOCHS)
    async def on_epoch(self, told: Message, context: Context) -> None:
        """Take an epoch that was given to another instance, or decided."""
        if is_news(told, self.protocol.epoch):
            await self._adopt(await self._epochs.read(told, context))

    def _reconnected(self) -> None:
        self.bus.spawn(self._catch_up(), "epochs")

    async def _seek_epoch(self) -> None:
        """Look for an epoch that somebody speaks of: it may have been lost on the way here."""
        now = asyncio.get_running_loop().time()
        if now >= self._seek_from:
            self._seek_from = now + SEEK_EVERY_S
            await self._catch_up()

    async def _catch_up(self) -> None:
        """Take an epoch that came while the broker was away."""
        current = self.protocol.epoch
        latest = await self._epochs.latest(0 if current is None else current.epoch.created_ns)
        if latest is not None:
            await self._adopt(latest)

    async def _adopt(self, epoch: InstalledEpoch) -> None:
        """Install an epoch that is believed, if this instance has a seat in it and it is later than its own.

        Raises:
            UntrustedError: ``wrong_key``.
        """
        if str(self.bus.id) not in epoch.instances:
            self.metrics.count("epochs_of_others")
            return
        epoch.instance(self.bus.id, self._own_key.key_id)
        try:
            await self._install(epoch)
        except ConflictError as error:
            # An older record, or one that came back to where it was published.
            self.metrics.count(f"epochs_not_taken.{error.reason}")

    async def _install(self, epoch: InstalledEpoch) -> None:
        if not self.protocol.install(epoch):
            return
        self._epochs.keep(epoch)
        await self._persist(self._log.keep_epoch(epoch))
        log.info(
            "epoch_installed",
            epoch=epoch.epoch.number,
            participants=epoch.quorum.participants,
            quorum=epoch.quorum.needed,
            byzantine_tolerant=epoch.byzantine_tolerant,
            instances=len(epoch.instances),
            instance_faults=epoch.instance_faults,
        )

    @subscribes(DELIVER_ALL)
    async def on_delivery(self, body: Message, context: Context) -> None:
        """Open a decision for a proposal; whatever else is for all is not for this service."""
        if not isinstance(body, Proposal):
            return
        if self.protocol.known_epoch(body.epoch) is None:
            await self._seek_epoch()
        self._learn_key(context, self.protocol.epoch)
        proposal = read(context.data, CONSENSUS_PROPOSAL, audience="all")
        if asks_for_epoch(body):
            await asyncio.to_thread(check_change, proposal, self.protocol.epoch, self.bus.backend)
        self._do(self.protocol.open(proposal, context.now_ns))

    def on_ballot(self, ballot: Ballot, context: Context) -> None:
        """Count a ballot."""
        self._learn_key(context, self.protocol.epoch_of(ballot.decision))
        received = Received(ballot, context.sender, context.key_id, context.data)
        self._do(self.protocol.ballot(received, context.now_ns))
        self.metrics.count("ballots_taken")

    def _is_ballot_needed(self, subject: str) -> bool:
        """Tell by its subject whether a ballot is worth a verification: these are what a decision costs."""
        try:
            decision = bytes.fromhex(CONSENSUS_BALLOT.parse(subject)["decision"])
        except (InvalidInputError, ValueError):
            return True  # it is refused for what it is
        return self.protocol.needs_ballots(decision)

    @subscribes(CONSENSUS_VOTE, concurrency=8, again=True)
    async def on_vote(self, vote: Vote, context: Context) -> None:
        """Take another instance's step, once the certificate that it brings is verified.

        Raises:
            TocsinError: ``unknown_epoch``, or what is wrong with the step.
        """
        if context.sender == self.bus.id:
            return
        epoch = self._known(vote.epoch)
        epoch.instance(context.sender, context.key_id)
        votes = open_certificate(vote, epoch)
        if votes:
            await asyncio.to_thread(
                verify_steps, votes, epoch, self._key_of, self.bus.backend, self.bus.opener.batches
            )
        voted = Voted(vote, context.sender, context.key_id, context.data, as_voted(votes))
        self.metrics.count(f"steps_taken.{vote.step.value}")
        self._do(self.protocol.signed(voted, time.time_ns()))

    async def on_lacking(self, lacking: Lacking, context: Context) -> None:
        """Show another instance what it lacks."""
        epoch = self.protocol.epoch_of(lacking.decision)
        if epoch is not None:
            epoch.instance(context.sender, context.key_id)
            self._do(self.protocol.asked(lacking.decision, str(context.sender), context.now_ns))

    async def on_shown(self, page: Shown, context: Context) -> None:
        """Take what another instance shows; it was verified by no one but who signed it.

        Raises:
            TocsinError: what is wrong with the page.
        """
        if not self.protocol.awaits(page.decision):
            self.metrics.count("pages_not_awaited")
            return
        shown = await asyncio.to_thread(self._open_page, page)
        shown.epoch.instance(context.sender, context.key_id)
        self._keys |= {one: key for one, key in shown.keys.items() if one not in self._keys}
        effects: list[Effect] = []
        if shown.proposal is not None:
            await asyncio.to_thread(check_change, shown.proposal, shown.epoch, self.bus.backend)
            effects += self.protocol.open(shown.proposal, context.now_ns, shown=True)
        for received in shown.ballots:
            try:
                effects += self.protocol.ballot(received, context.now_ns)
            except InvalidInputError as error:
                self.metrics.count(f"shown_refused.{error.reason}")
        if shown.commit:
            effects += self.protocol.settle(shown.commit, context.now_ns)
        self._do(effects)

    def _open_page(self, page: Shown) -> OpenPage:
        def epoch_of(digest: bytes | None) -> InstalledEpoch | None:
            return (
                self.protocol.epoch_of(page.decision) if digest is None else self.protocol.known_epoch(digest)
            )

        return open_page(page, epoch_of, self._key_of, self.bus.backend, self.bus.opener.batches)

    def _known(self, digest: bytes) -> InstalledEpoch:
        epoch = self.protocol.known_epoch(digest)
        if epoch is None:
            raise InvalidInputError("of an epoch that is not installed here", reason="unknown_epoch")
        return epoch

    def _key_of(self, key_id: bytes) -> bytes | None:
        """Return a public key by its id. It is what it says: an id is the key's digest."""
        if (key := self._keys.get(key_id)) is not None:
            return key
        identity = self.bus.trust.identity(key_id)
        return None if identity is None else identity.public_key

    def _learn_key(self, context: Context, epoch: InstalledEpoch | None) -> None:
        """Remember the public key of who has a seat there: a certificate may be renewed while we decide."""
        seat = None if epoch is None else epoch.seats.get(str(context.sender))
        if seat is None or seat.key_id != context.key_id or context.key_id in self._keys:
            return
        if (key := self._key_of(context.key_id)) is not None:
            self._keys[context.key_id] = key

    # --- Effects ------------------------------------------------------------------------------

    def _do(self, effects: list[Effect]) -> None:
        if effects:
            self.bus.spawn(self._carry_out(effects), "decision")

    async def _carry_out(self, effects: list[Effect]) -> None:
        """Sign what is to be cast and what follows from that, persist all of it, then let it out."""
        cast: list[tuple[CastVote, Sent]] = []
        others: list[Effect] = []
        while effects:
            casts = [effect for effect in effects if isinstance(effect, CastVote)]
            others += [effect for effect in effects if not isinstance(effect, CastVote)]
            signed = await asyncio.gather(*(self._sign(effect) for effect in casts))
            cast += zip(casts, signed, strict=True)
            effects = []
            for effect, sent in zip(casts, signed, strict=True):
                voted = Voted(effect.vote, self.bus.id, self._own_key.key_id, sent.data)
                effects += self.protocol.signed(voted, time.time_ns())
        if cast:
            kept = self._keeping.entries([(effect, sent.data) for effect, sent in cast], self._key_of)
            await self._persist(self._log.keep_steps(kept))
        for effect, sent in cast:
            await self._send_step(effect.vote.decision, sent)
        for other in others:
            await self._let_out(other)

    async def _let_out(self, effect: Effect) -> None:
        if isinstance(effect, Accuse):
            await self._accuse(effect)
        elif isinstance(effect, SendAgain):
            self.metrics.count("steps_sent_again")
            await self._send_step(effect.decision, _as_sent(effect.data))
        elif isinstance(effect, Ask):
            await self._ask(effect)
        elif isinstance(effect, Show):
            await self._show(effect)
        elif isinstance(effect, LookUp):
            self.bus.spawn(self._look_up(effect.decision), "look up")
        elif isinstance(effect, Forget):
            self._keeping.forget(effect.decision)
            await self._persist(self._log.keep_end(effect.decision, effect.until_ns))
        elif isinstance(effect, End):
            await self._finish(effect)

    async def _sign(self, effect: CastVote) -> Sent:
        return await self.bus.make(VOTE, effect.vote, audience=CONSENSUS_AUDIENCE)

    async def _send_step(self, decision: bytes, sent: Sent) -> None:
        subject = CONSENSUS_VOTE.at(decision=decision.hex())
        await self._until_taken(partial(self.bus.send, subject, sent))

    async def _ask(self, ask: Ask) -> None:
        log.info("asking", decision=ask.decision.hex(), whom=ask.instance, proposal=ask.proposal)
        self.metrics.count("asked")
        lacking = Lacking(decision=ask.decision, proposal=ask.proposal)
        at = {"instance": SpiffeId.parse(ask.instance).name}
        await self.bus.publish(CONSENSUS_LACKING, LACKING, lacking, at=at)

    async def _show(self, show: Show) -> None:
        self.metrics.count("shown")
        at = {"instance": SpiffeId.parse(show.instance).name}
        for page in await asyncio.to_thread(lambda: list(pages(show, self._key_of))):
            await self.bus.publish(CONSENSUS_SHOWN, SHOWN, page, at=at)

    async def _look_up(self, decision: bytes) -> None:
        """See whether the decision is announced; an announcement that does not hold is none."""
        epoch = self.protocol.epoch_of(decision)
        stands = False
        made: InstalledEpoch | None = None

        async def look() -> None:
            nonlocal stands, made
            last = await self.bus.last(CONSENSUS_DECISION, at={"decision": decision.hex()})
            if last is None or not isinstance(last[0], DecisionAnnounced) or epoch is None:
                return
            announced, certificate = last[0], b""
            if announced.outcome is Outcome.DECIDED:
                certificate = await self.bus.get_certificate(decision.hex())
            await asyncio.to_thread(holds, announced, certificate, decision, epoch, self.bus, self._key_of)
            made = await asyncio.to_thread(made_by_other, announced, certificate, epoch, self.bus.backend)
            stands = True

        try:
            await self._until_taken(look)
        except TocsinError as error:
            log.warning("announcement_refused", decision=decision.hex(), reason=error.reason, detail=str(error))
            self.metrics.count(f"announcements_refused.{error.reason}")
        if made is not None:
            await self._adopt(made)
        elif stands:
            self.protocol.changes.closed(decision)
        if stands:
            self._do(self.protocol.announced(decision))
        else:
            self._do(self.protocol.step_in(decision, time.time_ns()))

    async def _accuse(self, accused: Accuse) -> None:
        proof = accused.proof
        log.warning("equivocation", accused=proof.accused, decision=proof.decision.hex())
        self.metrics.count("equivocations")

        async def publish() -> None:
            await self.bus.publish(AUDIT, AUDIT_EQUIVOCATION, proof, durable=True, at={"kind": "equivocation"})

        await self._until_taken(publish)

    async def _finish(self, end: End) -> None:
        """Make the certificate, check it as anyone would, keep it, announce the decision."""
        certificate = certificate_of(end, self._key_of) if end.outcome is Outcome.DECIDED else b""
        # It is verified while what it holds is written down and stored, and announced once all of that has succeeded.
        await asyncio.gather(self._store(end, certificate), self._verify(end, certificate))
        await self._go_on_from(end)
        announced = announcement(end, certificate, time.time_ns())

        async def announce() -> None:
            at = {"decision": end.decision.hex()}
            await self.bus.publish(CONSENSUS_DECISION, DECISION, announced, durable=True, at=at)

        await self._until_taken(announce)
        self._keeping.forget(end.decision)
        await self._persist(self._log.keep_end(end.decision, good_until_ns(end.proposal)))
        self.metrics.count(f"decisions.{end.outcome.value}")
        self.metrics.observe_ms("decision", announced.elapsed_ms)
        log.info(
            "decision_ended",
            decision=end.decision.hex(),
            outcome=end.outcome.value,
            ballots=end.ballots_received,
            view=end.commit.view,
            elapsed_ms=round(announced.elapsed_ms, 1),
        )

    async def _store(self, end: End, certificate: bytes) -> None:
        # The commit may count an own step that another task is still writing: it must not be known before it is kept.
        await asyncio.gather(*self._writing)
        if certificate:
            await self._until_taken(lambda: self.bus.put_certificate(end.decision.hex(), certificate))

    async def _verify(self, end: End, certificate: bytes) -> None:
        if certificate:
            await asyncio.to_thread(check_certificate, end, certificate, self.bus)

    async def _go_on_from(self, end: End) -> None:
        """Install and publish the epoch that was decided, if one was.

        Before the end is kept: who has forgotten this decision must go by what it has made.
        """
        made = None
        if asks_for_epoch(end.proposal.body):
            made = await asyncio.to_thread(made_by, end, self.bus.backend)
        if made is None:
            self.protocol.changes.closed(end.decision)
            return
        await self._adopt(made)
        await self._until_taken(partial(publish_epoch, self.bus, made))

    # --- Inside -------------------------------------------------------------------------------

    @property
    def _log(self) -> VoteLog:
        if self._votes is None:
            raise InvariantBrokenError("the log is opened before the first message")
        return self._votes

    async def _persist(self, write: Awaitable[None]) -> None:
        """Write to the log; once that fails this instance decides nothing more, and says so in its readiness."""
        writing = asyncio.ensure_future(write)
        self._writing.add(writing)
        try:
            await writing
        except TocsinError:
            self._log_failed = True
            raise
        finally:
            self._writing.discard(writing)

    async def _until_taken(self, act: Callable[[], Awaitable[None]]) -> None:
        """Repeat what the broker refuses for now, with pauses. A restart takes it up from the log."""
        for pause_s in chain(RETRY_S, repeat(RETRY_S[-1])):
            try:
                await act()
            except (UnavailableError, ExhaustedError) as error:
                self.metrics.count(f"broker_refusals.{error.reason}")
                await asyncio.sleep(pause_s)
            else:
                return


def _as_sent(data: bytes) -> Sent:
    vote = read(data, VOTE, audience=CONSENSUS_AUDIENCE)
    return Sent(vote.envelope.content.id, vote.leaf, data, vote.envelope.content.issued_at)
