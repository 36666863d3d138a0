"""The steps of consensus instances as evidence: what a step may bring, QC1 and commits, checked by anyone.

Cheap things first: a step's shape, the place, distinct instances with the keys that the epoch binds, and only
then signatures, which :func:`verify_steps` computes; call that in a worker thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tocsin.contracts.catalogue import VOTE
from tocsin.contracts.decisions import Step, Vote
from tocsin.contracts.errors import InvalidInputError, UntrustedError
from tocsin.crypto import Algorithm, BatchVerifier, SignatureBackend
from tocsin.evidence.epochs import EPOCH_AUDIENCE, InstalledEpoch
from tocsin.evidence.reading import Evidence, read

KeyOf = Callable[[bytes], bytes | None]
"""A public key by its id; None where it is not known."""


def check_shape(vote: Vote) -> None:
    """Check that a step brings what its kind brings, and nothing else.

    Raises:
        InvalidInputError: ``bad_vote``.
    """
    named = vote.high_view is not None
    brings = vote.step in {Step.PROPOSE, Step.TIMEOUT}
    holds = (
        (vote.value is None) == (vote.step is Step.TIMEOUT)
        and named == (vote.high_value is not None)
        and bool(vote.certificate) == (named and brings)
        and not (named and vote.step is Step.VOTE2)
        and not (vote.counted is not None and (vote.step is not Step.PROPOSE or named))
        # A QC1 of its own view can be the reason to leave it, but not to propose in it.
        and (vote.high_view is None or vote.high_view < vote.view + (vote.step is Step.TIMEOUT))
    )
    if not holds:
        raise InvalidInputError(f"a {vote.step.value} with other fields than its own", reason="bad_vote")


def open_certificate(vote: Vote, epoch: InstalledEpoch) -> list[Evidence[Vote]]:
    """Return the VOTE1 of the QC1 that a step brings, none of them verified yet; none if it brings none.

    Raises:
        InvalidInputError: ``bad_vote`` or ``bad_quorum_cert``, or no envelopes of votes.
        UntrustedError: ``no_quorum_cert``, ``duplicate_instance``, ``not_an_instance`` or ``wrong_key``.
    """
    check_shape(vote)
    if not vote.certificate:
        return []
    return _open(
        vote.certificate,
        epoch,
        Vote(
            step=Step.VOTE1,
            epoch=vote.epoch,
            decision=vote.decision,
            round=vote.round,
            view=vote.high_view or 1,
            value=vote.high_value,
        ),
    )


def open_commit(
    envelopes: Sequence[bytes], epoch: InstalledEpoch, decision: bytes, round_number: int
) -> list[Evidence[Vote]]:
    """Return the VOTE2 that commit an outcome: Q distinct instances on one view and value; none verified yet.

    Raises:
        TocsinError: as :func:`open_certificate`.
    """
    if not envelopes:
        raise UntrustedError("no votes commit nothing", reason="no_quorum_cert")
    first = read(envelopes[0], VOTE, audience=EPOCH_AUDIENCE).body
    expected = Vote(
        step=Step.VOTE2,
        epoch=epoch.digest,
        decision=decision,
        round=round_number,
        view=first.view,
        value=first.value,
    )
    return _open(envelopes, epoch, expected)


def verify_steps(
    steps: Sequence[Evidence[Vote]],
    epoch: InstalledEpoch,
    key_of: KeyOf,
    backend: SignatureBackend,
    batches: BatchVerifier,
) -> None:
    """Verify every signature, with the keys that the epoch binds.

    Raises:
        UntrustedError: ``unknown_key``, ``bad_inclusion_proof``, ``wrong_algorithm`` or ``bad_signature``.
    """
    for step in steps:
        seat = epoch.instance(step.sender, step.key_id)
        public_key = key_of(seat.key_id)
        if public_key is None:
            raise UntrustedError(f"the key of {step.sender} is not known", reason="unknown_key")
        step.verify(backend.verifier(Algorithm(seat.algorithm), public_key), batches)


def _open(envelopes: Sequence[bytes], epoch: InstalledEpoch, expected: Vote) -> list[Evidence[Vote]]:
    needed = epoch.instance_quorum
    if len(envelopes) < needed:
        raise UntrustedError(f"{len(envelopes)} votes, the quorum is {needed}", reason="no_quorum_cert")
    if len(envelopes) > len(epoch.instances):
        raise InvalidInputError(f"{len(envelopes)} votes of {len(epoch.instances)}", reason="bad_quorum_cert")
    steps = [read(data, VOTE, audience=EPOCH_AUDIENCE) for data in envelopes]
    for step in steps:
        check_shape(step.body)
        if _about(step.body) != _about(expected):
            raise InvalidInputError("a vote of another place, step or value", reason="bad_quorum_cert")
        epoch.instance(step.sender, step.key_id)
    if len({str(step.sender) for step in steps}) != len(steps):
        raise UntrustedError("an instance votes twice in a certificate", reason="duplicate_instance")
    return steps


def _about(vote: Vote) -> tuple[object, ...]:
    return vote.step, vote.epoch, vote.decision, vote.round, vote.view, vote.value
