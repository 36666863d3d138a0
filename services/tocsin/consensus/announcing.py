"""The end of a decision in public: its certificate, its announcement, and whether another's announcement holds."""

from __future__ import annotations

from tocsin.bus import Bus
from tocsin.consensus.effects import End
from tocsin.contracts.decisions import MAX_MISSING, DecisionAnnounced
from tocsin.contracts.errors import InvalidInputError, InvariantBrokenError, TocsinError
from tocsin.contracts.identifiers import SpiffeId
from tocsin.crypto import Verifier
from tocsin.evidence.certificate import DecisionCertificate
from tocsin.evidence.epochs import InstalledEpoch
from tocsin.evidence.verification import verify_within
from tocsin.evidence.votes import KeyOf


def certificate_of(end: End, key_of: KeyOf) -> bytes:
    """Put the certificate of a decision together; one that has decided nothing has none."""
    if end.ballots is None:
        return b""
    ballots = end.ballots.ballots
    key_ids = {received.key_id for received in ballots} | {end.proposal.key_id}
    key_ids |= {end.epoch.instances[who].key_id for who in end.commit.votes} | end.opening.signers
    keys = [key for one in sorted(key_ids) if (key := key_of(one)) is not None]
    return DecisionCertificate(
        epoch=end.epoch.data,
        chain=end.epoch.chain,
        proposal=end.proposal.data,
        options=end.opening.encoded_options,
        before=end.opening.before,
        ballots=tuple(received.data for received in ballots),
        votes=tuple(data for _, data in sorted(end.commit.votes.items())),
        keys=tuple(keys),
    ).encode()


def check_certificate(end: End, certificate: bytes, bus: Bus) -> bytes:
    """Verify our own certificate as anyone would, and return its digest: one that nobody would accept is not announced.

    Raises:
        InvariantBrokenError: it does not verify.
    """
    try:
        verified = verify_within(
            certificate,
            end.epoch,
            backend=bus.backend,
            batches=bus.opener.batches,
            verifier_of=lambda key_id: _verifier_of(bus, key_id),
            was_read=[one.evidence for one in end.ballots.ballots] if end.ballots else (),
        )
    except TocsinError as error:
        raise InvariantBrokenError(f"our own certificate does not verify: {error}") from error
    if verified.decision != end.decision:
        raise InvariantBrokenError("our own certificate is of another decision")
    return verified.certificate_digest


def _verifier_of(bus: Bus, key_id: bytes) -> Verifier | None:
    identity = bus.trust.identity(key_id)
    return None if identity is None else identity.verifier


def announcement(
    end: End, certificate: bytes, digest: bytes, now_ns: int, me: str, key_of: KeyOf
) -> DecisionAnnounced:
    """Return what instance ``me`` publishes of a decision, with its certificate and the SHA-256, or both empty."""
    key_ids = {end.epoch.instances[who].key_id for who in (*end.commit.votes, me)} | {end.proposal.key_id}
    quorum = end.committee.quorum
    elapsed_ns = now_ns - end.proposal.envelope.content.issued_at
    return DecisionAnnounced(
        decision=end.decision,
        epoch=end.epoch.digest,
        outcome=end.outcome,
        why=end.why,
        option=None if end.ballots is None else end.opening.question.options[end.ballots.option],
        certificate=digest or None,
        certificate_bytes=len(certificate),
        object_name=end.decision.hex() if certificate else None,
        round=end.opening.question.round,
        options=end.opening.question.options if end.opening.before else (),
        scope=end.committee.label,
        participants=quorum.participants,
        quorum=quorum.needed,
        ballots_for=end.ballots_for,
        ballots_received=end.ballots_received,
        agreement=end.ballots_for / end.ballots_received if end.ballots_received else 0.0,
        missing=tuple(SpiffeId.parse(who).name for who in end.missing[:MAX_MISSING]),
        elapsed_ms=max(0.0, elapsed_ns / 1e6),
        commit=tuple(data for _, data in sorted(end.commit.votes.items())),
        keys=tuple(key for one in sorted(key_ids) if (key := key_of(one)) is not None),
        proposal=end.proposal.data,
    )


def check_announced(
    announced: DecisionAnnounced, certificate: bytes, decision: bytes, epoch: InstalledEpoch, bus: Bus
) -> None:
    """Check the certificate of what another instance has announced, whoever it is.

    It need not be the very one that was announced: two instances may have made one each, of different ballots.

    Raises:
        TocsinError: it does not verify, or is of something else.
    """
    verified = verify_within(certificate, epoch, backend=bus.backend, batches=bus.opener.batches)
    if verified.decision != decision or verified.option != announced.option:
        raise InvalidInputError("the certificate is of something else", reason="wrong_certificate")
