"""The shell of a consensus instance: messages to the protocol, its effects to the disk and the bus.

Handlers only feed the protocol, so the line of ballots never waits for a disk; each list of effects is carried
out by a task: sign, persist in one fsync, send, and only then end the decision.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import chain, repeat

from tocsin.bus import Bus, Context, Sent, Service, handles, subscribes
from tocsin.consensus.protocol import Accuse, CastVote, Effect, End, Limits, Protocol, good_until_ns
from tocsin.consensus.settings import ConsensusSettings
from tocsin.consensus.store import Recovered, VoteLog
from tocsin.consensus.tally import Received
from tocsin.contracts.base import Message
from tocsin.contracts.catalogue import (
    AUDIT,
    AUDIT_EQUIVOCATION,
    CONSENSUS_BALLOT,
    CONSENSUS_DECISION,
    CONSENSUS_EPOCH,
    CONSENSUS_EPOCHS,
    CONSENSUS_PROPOSAL,
    CONSENSUS_VOTE,
    DECISION,
    DELIVER_ALL,
    VOTE,
)
from tocsin.contracts.decisions import (
    MAX_MISSING,
    Ballot,
    DecisionAnnounced,
    Epoch,
    EpochInstalled,
    Outcome,
    Proposal,
    Step,
)
from tocsin.contracts.errors import ExhaustedError, InvariantBrokenError, TocsinError, UnavailableError
from tocsin.contracts.identifiers import ServiceName, SpiffeId
from tocsin.evidence.certificate import DecisionCertificate, certificate_digest
from tocsin.evidence.epochs import InstalledEpoch, open_epoch
from tocsin.evidence.reading import read
from tocsin.evidence.verification import CONSENSUS_AUDIENCE, verify
from tocsin.telemetry import get_logger

RETRY_S = (0.1, 0.5, 2.0, 5.0)
"""Pauses while the broker refuses what must reach it; the last one repeats."""

log = get_logger(__name__)


class ConsensusService(Service[ConsensusSettings]):
    """Commits the outcomes of the agents' ballots and makes their certificates."""

    name = ServiceName.CONSENSUS

    def __init__(self, bus: Bus, settings: ConsensusSettings) -> None:
        super().__init__(bus, settings)
        self.protocol = Protocol(
            str(bus.id),
            Limits(settings.max_open_decisions, settings.max_open_per_proposer, settings.max_held_per_agent),
        )
        self._own_key = bus.credentials.key.signer
        self._keys = {self._own_key.key_id: self._own_key.public_key}
        self._votes: VoteLog | None = None
        self._log_failed = False
        self._to_go_on: list[Effect] = []

    @property
    def ready(self) -> bool:
        """Whether it can decide: not without its log."""
        return super().ready and not self._log_failed

    # --- Life ---------------------------------------------------------------------------------

    async def prepare(self) -> None:
        """Read the log, and take up what a former process had begun."""
        path = self.settings.state_dir / f"consensus-{self.settings.instance}.votes"
        self._votes, recovered = await VoteLog.open(path, self.bus.trust)
        self._keys |= recovered.keys
        for decision, until_ns in recovered.ended.items():
            self.protocol.remember_ended(decision, until_ns)
        for epoch in sorted(recovered.epochs.values(), key=lambda e: e.epoch.number):
            if self._speaks_in(epoch):
                self.protocol.install(epoch)
            else:
                self.protocol.abstain_until_after(epoch.epoch.number)
        await self._compare_epochs(recovered)
        for decision, rest in recovered.unfinished.items():
            epoch = recovered.epochs[rest.proposal.body.epoch]
            log.info("decision_resumed", decision=decision.hex(), possible=self._speaks_in(epoch))
            if self._speaks_in(epoch):
                self._to_go_on += self.protocol.restore(epoch, rest.proposal, rest.ballots, rest.votes)

    async def started(self) -> None:
        """Carry out what the log left to do, and watch the deadlines."""
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
        """Publish the epoch if the stream lacks it; abstain in one that the log does not know."""
        try:
            last = await self.bus.last(CONSENSUS_EPOCHS)
        except UnavailableError:
            raise
        except TocsinError as error:
            # Whoever can write to the broker can put anything there; it counts for nothing.
            log.warning("epoch_in_stream_refused", reason=error.reason)
            last = None
        if last is not None and last[1].leaf not in recovered.epochs:
            number = int(getattr(last[0], "number", 0))
            log.error("vote_log_lost", epoch=number, advice="install a new epoch")
            self.protocol.abstain_until_after(number)
        elif self.protocol.epoch is not None:
            await self._publish_epoch(self.protocol.epoch)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(self.settings.tick_s)
            self._do(self.protocol.tick(time.time_ns()))

    # --- In -----------------------------------------------------------------------------------

    @handles(CONSENSUS_EPOCH, concurrency=1)
    async def install_epoch(self, _: Epoch, context: Context) -> EpochInstalled:
        """Install an epoch that the root signed, and publish the same bytes.

        Raises:
            ConflictError: ``stale_epoch``.
            InvalidInputError: ``not_an_instance``, ``too_many_instances`` or a rule that the record breaks.
            UntrustedError: ``not_an_instance`` or ``wrong_key``: it binds another key to this instance.
        """
        epoch = await asyncio.to_thread(open_epoch, context.data, self.bus.trust, self.bus.opener.batches)
        epoch.instance(self.bus.id, self._own_key.key_id)
        if self.protocol.install(epoch):
            await self._persist(self._log.keep_epoch(epoch))
            log.info(
                "epoch_installed",
                epoch=epoch.epoch.number,
                participants=epoch.quorum.participants,
                quorum=epoch.quorum.needed,
                byzantine_tolerant=epoch.byzantine_tolerant,
            )
        await self._publish_epoch(epoch)
        return EpochInstalled(
            epoch=epoch.digest,
            participants=epoch.quorum.participants,
            quorum=epoch.quorum.needed,
            byzantine_tolerant=epoch.byzantine_tolerant,
            why_not=epoch.why_not,
        )

    @subscribes(DELIVER_ALL)
    async def on_delivery(self, body: Message, context: Context) -> None:
        """Open a decision for a proposal; whatever else is for all is not for this service."""
        if not isinstance(body, Proposal):
            return
        self._learn_key(context, self.protocol.epoch)
        proposal = read(context.data, CONSENSUS_PROPOSAL, audience="all")
        self._do(self.protocol.open(proposal, context.now_ns))

    @subscribes(CONSENSUS_BALLOT)
    async def on_ballot(self, ballot: Ballot, context: Context) -> None:
        """Count a ballot."""
        self._learn_key(context, self.protocol.epoch_of(ballot.decision))
        received = Received(ballot, context.sender, context.key_id, context.data)
        self._do(self.protocol.ballot(received, context.now_ns))
        self.metrics.count("ballots_taken")

    def _learn_key(self, context: Context, epoch: InstalledEpoch | None) -> None:
        """Remember the public key of who has a seat there: a certificate may be renewed while we decide."""
        seat = None if epoch is None else epoch.seats.get(str(context.sender))
        if seat is None or seat.key_id != context.key_id or context.key_id in self._keys:
            return
        identity = self.bus.trust.identity(context.key_id)
        if identity is not None:
            self._keys[context.key_id] = identity.public_key

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
                effects += self.protocol.signed(effect.vote, self.bus.id, self._own_key.key_id, sent.data)
        if cast:
            await self._persist(self._keep(cast))
        for effect, sent in cast:
            subject = CONSENSUS_VOTE.at(decision=effect.vote.decision.hex())
            await self._until_taken(partial(self.bus.send, subject, sent))
        for other in others:
            if isinstance(other, Accuse):
                await self._accuse(other)
            elif isinstance(other, End):
                await self._finish(other)

    async def _sign(self, effect: CastVote) -> Sent:
        return await self.bus.make(VOTE, effect.vote, audience=CONSENSUS_AUDIENCE)

    async def _keep(self, cast: list[tuple[CastVote, Sent]]) -> None:
        """Keep the votes; a VOTE1 brings its proposal and ballots, which the steps after it rest on too."""
        based = [effect for effect, _ in cast if effect.vote.step is Step.VOTE1]
        ballots = [r for effect in based if effect.ballots for r in effect.ballots.ballots]
        key_ids = {r.key_id for r in ballots} | {effect.proposal.key_id for effect in based}
        await self._log.keep_votes(
            [effect.proposal.data for effect in based],
            [self._keys[key_id] for key_id in sorted(key_ids)],
            [received.data for received in ballots],
            [sent.data for _, sent in cast],
        )

    async def _accuse(self, accused: Accuse) -> None:
        proof = accused.proof
        log.warning("equivocation", accused=proof.accused, decision=proof.decision.hex())
        self.metrics.count("equivocations")

        async def publish() -> None:
            await self.bus.publish(AUDIT, AUDIT_EQUIVOCATION, proof, durable=True, at={"kind": "equivocation"})

        await self._until_taken(publish)

    async def _finish(self, end: End) -> None:
        """Make the certificate, check it as anyone would, keep it, announce the decision."""
        certificate = b""
        if end.outcome is Outcome.DECIDED:
            certificate = await asyncio.to_thread(self._certify, end)
            await self._until_taken(lambda: self.bus.put_certificate(end.decision.hex(), certificate))
        announced = self._announcement(end, certificate)

        async def announce() -> None:
            at = {"decision": end.decision.hex()}
            await self.bus.publish(CONSENSUS_DECISION, DECISION, announced, durable=True, at=at)

        await self._until_taken(announce)
        await self._persist(self._log.keep_end(end.decision, good_until_ns(end.proposal)))
        self.metrics.count(f"decisions.{end.outcome.value}")
        self.metrics.observe_ms("decision", announced.elapsed_ms)
        log.info(
            "decision_ended",
            decision=end.decision.hex(),
            outcome=end.outcome.value,
            ballots=end.ballots_received,
            elapsed_ms=round(announced.elapsed_ms, 1),
        )

    def _certify(self, end: End) -> bytes:
        """Put the certificate together and verify it: one that nobody would accept is not announced."""
        assert end.ballots is not None  # noqa: S101 - a decision has its ballots
        ballots = end.ballots.ballots
        key_ids = {r.key_id for r in ballots} | {end.proposal.key_id}
        key_ids |= {end.epoch.instances[who].key_id for who in end.commit.votes}
        certificate = DecisionCertificate(
            epoch=end.epoch.data,
            proposal=end.proposal.data,
            ballots=tuple(received.data for received in ballots),
            votes=tuple(data for _, data in sorted(end.commit.votes.items())),
            keys=tuple(self._keys[key_id] for key_id in sorted(key_ids)),
        ).encode()
        try:
            verified = verify(
                certificate,
                self.bus.credentials.root_pem,
                backend=self.bus.backend,
                batches=self.bus.opener.batches,
            )
        except TocsinError as error:
            raise InvariantBrokenError(f"our own certificate does not verify: {error}") from error
        if verified.decision != end.decision:
            raise InvariantBrokenError("our own certificate is of another decision")
        return certificate

    def _announcement(self, end: End, certificate: bytes) -> DecisionAnnounced:
        quorum = end.epoch.quorum
        elapsed_ns = time.time_ns() - end.proposal.envelope.content.issued_at
        return DecisionAnnounced(
            decision=end.decision,
            epoch=end.epoch.digest,
            outcome=end.outcome,
            why=end.why,
            option=None if end.ballots is None else end.proposal.body.options[end.ballots.option],
            certificate=certificate_digest(certificate) if certificate else None,
            certificate_bytes=len(certificate),
            object_name=end.decision.hex() if certificate else None,
            round=1,
            participants=quorum.participants,
            quorum=quorum.needed,
            ballots_for=end.ballots_for,
            ballots_received=end.ballots_received,
            missing=tuple(SpiffeId.parse(who).name for who in end.missing[:MAX_MISSING]),
            elapsed_ms=max(0.0, elapsed_ns / 1e6),
        )

    async def _publish_epoch(self, epoch: InstalledEpoch) -> None:
        record = read(epoch.data, CONSENSUS_EPOCH.request_type, audience=CONSENSUS_AUDIENCE)
        content = record.envelope.content
        sent = Sent(content.id, record.leaf, epoch.data, content.issued_at)
        subject = CONSENSUS_EPOCHS.at(number=str(epoch.epoch.number))
        await self.bus.send(subject, sent, stream=CONSENSUS_EPOCHS.stream)

    # --- Inside -------------------------------------------------------------------------------

    @property
    def _log(self) -> VoteLog:
        if self._votes is None:
            raise InvariantBrokenError("the log is opened before the first message")
        return self._votes

    async def _persist(self, write: Awaitable[None]) -> None:
        """Write to the log; once that fails this instance decides nothing more, and says so in its readiness."""
        try:
            await write
        except TocsinError:
            self._log_failed = True
            raise

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
