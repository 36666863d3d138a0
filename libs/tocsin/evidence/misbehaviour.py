"""Check a proof of misbehaviour (``audit.equivocation``) without believing who sent it.

What it takes for a proof to hold (consensus.md, "The certificate"): two envelopes of one sender, signed by the one
key that the epoch binds to it, about one decision and round of that epoch, that are either

* two ballots with different choices;
* two PROPOSE, VOTE1 or VOTE2 of one view with different values;
* a VOTE2 for x in view w and a VOTE1 for y in a later view, that names no QC1 for y from view w or above.

An honest participant keeps what it casts before it sends it and casts nothing twice, so nothing that it signed makes a
proof; nor does what another seat signed with a key that it shares: both envelopes must name the accused. A TIMEOUT
says nothing that another one could contradict.

Does not catch an instance that names a QC1 in its VOTE1 which does not exist: the certificate is in the proposal, and
who votes for a proposal without one is not believed either.
"""

from __future__ import annotations

from tocsin.contracts.catalogue import BALLOT, VOTE
from tocsin.contracts.decisions import Ballot, Equivocation, Participant, Step, Vote
from tocsin.contracts.errors import InvalidInputError, UntrustedError
from tocsin.contracts.identifiers import SpiffeId
from tocsin.crypto import Algorithm, BatchVerifier, SignatureBackend
from tocsin.evidence.epochs import EPOCH_AUDIENCE, InstalledEpoch
from tocsin.evidence.reading import Evidence, read


def contradicts(one: Vote, other: Vote) -> bool:
    """Tell whether no honest instance casts both of these steps; they are about one decision and round."""
    if one.step is other.step:
        return one.view == other.view and one.value != other.value
    if (one.step, other.step) == (Step.VOTE1, Step.VOTE2):
        one, other = other, one
    if (one.step, other.step) != (Step.VOTE2, Step.VOTE1) or other.view <= one.view or one.value == other.value:
        return False
    opens = other.high_value == other.value and other.high_view is not None and other.high_view >= one.view
    return not opens


def verify_misbehaviour(
    proof: Equivocation, epoch: InstalledEpoch, public_key: bytes, backend: SignatureBackend
) -> Participant:
    """Return the seat of who misbehaved, if the proof holds.

    Args:
        proof: what was published.
        epoch: the epoch that it names.
        public_key: of the accused; it counts only as far as the epoch names it.
        backend: who computes signatures.

    Raises:
        InvalidInputError: ``no_contradiction``, ``wrong_epoch``, or no envelopes of ballots or votes.
        UntrustedError: ``not_a_participant``, ``not_an_instance``, ``wrong_key`` or ``bad_signature``.
    """
    if proof.epoch != epoch.digest:
        raise InvalidInputError("the proof is of another epoch", reason="wrong_epoch")
    accused = SpiffeId.parse(proof.accused)
    instance = str(accused) in epoch.instances
    signed: list[Evidence[Ballot] | Evidence[Vote]] = [
        read(data, VOTE, audience=EPOCH_AUDIENCE) if instance else read(data, BALLOT, audience=EPOCH_AUDIENCE)
        for data in (proof.first, proof.second)
    ]
    place = (proof.epoch, proof.decision, proof.round)
    if any(e.sender != accused or (e.body.epoch, e.body.decision, e.body.round) != place for e in signed):
        raise InvalidInputError("the two are not of the accused in one round", reason="no_contradiction")
    first, second = (e.body for e in signed)
    if isinstance(first, Vote) and isinstance(second, Vote):
        holds = contradicts(first, second)
    else:
        holds = first.value != second.value
    if not holds:
        raise InvalidInputError("the two do not contradict each other", reason="no_contradiction")
    seats = [(epoch.instance if instance else epoch.seat)(e.sender, e.key_id) for e in signed]
    verifier = backend.verifier(Algorithm(seats[0].algorithm), public_key)
    if verifier.key_id != seats[0].key_id:
        raise UntrustedError("not the key that the epoch binds", reason="wrong_key")
    for evidence in signed:
        evidence.verify(verifier, BatchVerifier(2))
    return seats[0]
