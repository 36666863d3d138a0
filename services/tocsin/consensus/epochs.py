"""Epochs at a consensus instance: what a decision makes, what a proposal may ask for, and where the stream says so."""

from __future__ import annotations

from tocsin.bus import Bus, Sent
from tocsin.consensus.effects import End
from tocsin.contracts.catalogue import CONSENSUS_EPOCH, CONSENSUS_EPOCHS, CONSENSUS_PROPOSAL, EPOCH_DECIDED
from tocsin.contracts.decisions import DecisionAnnounced, EpochDecided, Outcome, Proposal
from tocsin.contracts.errors import InvariantBrokenError
from tocsin.crypto import SignatureBackend
from tocsin.evidence.certificate import DecisionCertificate
from tocsin.evidence.epochs import InstalledEpoch
from tocsin.evidence.reading import Evidence, read
from tocsin.evidence.succession import INSTALL, asks_for_epoch, succession_of
from tocsin.evidence.verification import CONSENSUS_AUDIENCE, check_proposal, follow


def check_change(proposal: Evidence[Proposal], epoch: InstalledEpoch | None, backend: SignatureBackend) -> None:
    """Refuse a proposal whose change breaks the rule: no decision is opened on it. CPU-bound where it brings proofs.

    Raises:
        TocsinError: as :func:`check_proposal`, which costs nothing, and :func:`succession_of`.
    """
    if epoch is not None and proposal.body.epoch == epoch.digest:
        check_proposal(proposal, epoch)
        succession_of(proposal.body, proposal.leaf, epoch, backend)


def made_by(end: End, backend: SignatureBackend) -> InstalledEpoch | None:
    """Return the epoch that a decision has made, if it was about that.

    Raises:
        TocsinError: its change breaks a rule; then no honest instance had opened it.
    """
    if end.ballots is None or end.ballots.option != INSTALL:
        return None
    following = succession_of(end.proposal.body, end.decision, end.epoch, backend)
    return None if following is None else following.epoch


def made_by_other(
    announced: DecisionAnnounced, certificate: bytes, epoch: InstalledEpoch, backend: SignatureBackend
) -> InstalledEpoch | None:
    """Return the epoch that a decision has made which another instance has announced. CPU-bound.

    Raises:
        TocsinError: as :func:`follow`.
    """
    if announced.outcome is not Outcome.DECIDED or announced.option is None or announced.option.epoch is None:
        return None
    proposal = read(DecisionCertificate.decode(certificate).proposal, CONSENSUS_PROPOSAL, audience="all")
    return follow(epoch, certificate, backend) if asks_for_epoch(proposal.body) else None


async def publish_epoch(bus: Bus, epoch: InstalledEpoch) -> None:
    """Say in the stream which epoch holds: in the root's own bytes, or where the proof of the decision is.

    Raises:
        TocsinError: the broker refuses.
    """
    subject = CONSENSUS_EPOCHS.at(number=str(epoch.epoch.number))
    if epoch.is_checkpoint:
        record = read(epoch.data, CONSENSUS_EPOCH.request_type, audience=CONSENSUS_AUDIENCE)
        content = record.envelope.content
        sent = Sent(content.id, record.leaf, epoch.data, content.issued_at)
    else:
        if (previous := epoch.epoch.previous) is None:
            raise InvariantBrokenError("a decided epoch names the one before it")
        told = EpochDecided(
            number=epoch.epoch.number, epoch=epoch.digest, previous=previous, decision=epoch.chain[-1]
        )
        sent = await bus.make(EPOCH_DECIDED, told, audience=CONSENSUS_AUDIENCE)
    await bus.send(subject, sent, stream=CONSENSUS_EPOCHS.stream)
