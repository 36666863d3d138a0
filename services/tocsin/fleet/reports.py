"""What others report, made into claims about agents: who can know what. Pure.

* ``event.router.refusal`` is a router's word about an agent whose message it has verified and refused by the policy.
* ``audit.rejected`` is a process's word about bytes that it refused: the key that they claim, and on a route the
  agent that the subject names. Only who hears agents is listened to (:data:`HEARERS`), and no host about agents of
  its own: they share its fate anyhow. What a router refuses by the policy it reports by the other way.
* ``audit.equivocation`` proves itself: see :func:`equivocator`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tocsin.contracts.catalogue import ROUTE
from tocsin.contracts.decisions import Ballot, Equivocation
from tocsin.contracts.errors import InvalidInputError, UntrustedError
from tocsin.contracts.fleet import AgentRecord
from tocsin.contracts.identifiers import Kind, ServiceName, SpiffeId
from tocsin.contracts.operations import RejectedEnvelope
from tocsin.fleet.misconduct import HOSTS, WEIGHTS, Reporter, Worth

HEARERS = frozenset({ServiceName.ROUTER, ServiceName.CONSENSUS, ServiceName.WORKFLOW, ServiceName.FLEET})
"""Services that agents speak to."""
BY_OPENER = frozenset({"sender_not_allowed", "bad_body", "not_sealed"})
"""Witnessed by the bus itself, before any policy."""


def reporter_of(sender: SpiffeId) -> Reporter | None:
    """Return who reports; None for one that cannot know."""
    if sender.kind is Kind.HOST:
        return Reporter(sender.token, HOSTS)
    if sender.service_name in HEARERS:
        return Reporter(sender.token, sender.group)
    return None


def accused_by(
    rejected: RejectedEnvelope, reporter: Reporter, speaks: Callable[[bytes], Iterable[AgentRecord]]
) -> tuple[str, ...]:
    """Return the agents that a rejection is held against.

    Args:
        rejected: the report.
        reporter: who has signed it.
        speaks: returns the agents that a key speaks for, by its id.
    """
    weight = WEIGHTS.get(rejected.reason)
    if weight is None or weight.worth is Worth.PROVEN or rejected.claimed_key_id is None:
        return ()
    if (
        reporter.group == ServiceName.ROUTER
        and weight.worth is Worth.WITNESSED
        and rejected.reason not in BY_OPENER
    ):
        return ()
    named = _named(rejected.subject)
    accused = [one for one in speaks(rejected.claimed_key_id) if named in {None, one.name}]
    if weight.worth is Worth.UNATTRIBUTED and len(accused) > 1:
        return ()  # it says next to nothing about one, and nothing about a thousand
    if reporter.group == HOSTS:
        accused = [one for one in accused if f"{Kind.HOST.value}.{one.host}" != reporter.token]
    return tuple(one.name for one in accused)


def _named(subject: str) -> str | None:
    """Return the agent that a routed message's subject names; None for any other subject."""
    try:
        return ROUTE.parse(subject)["agent"]
    except InvalidInputError:
        return None


def equivocator(
    proof: Equivocation, opened: tuple[tuple[Ballot, SpiffeId], tuple[Ballot, SpiffeId]]
) -> SpiffeId:
    """Return whom a proof convicts.

    Args:
        proof: what was published.
        opened: its two envelopes, each verified: the ballot and who signed it.

    Raises:
        UntrustedError: ``no_equivocation``: they are not two different ballots of the accused for one round.
    """
    (first, one), (second, other) = opened
    here = (proof.epoch, proof.decision, proof.round)
    same_round = all((b.epoch, b.decision, b.round) == here for b in (first, second))
    if one != other or str(one) != proof.accused or not same_round or first.value == second.value:
        raise UntrustedError("these are no two ballots of one agent for one round", reason="no_equivocation")
    return one
