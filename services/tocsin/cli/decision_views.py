"""Decisions for people and for auditors: a line of a list, all of one, JSON. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from tocsin.contracts.catalogue import CONSENSUS_PROPOSAL
from tocsin.contracts.decisions import DecisionAnnounced, Proposal
from tocsin.contracts.errors import TocsinError
from tocsin.contracts.routing import Delivery
from tocsin.evidence.closure import VerifiedClosure
from tocsin.evidence.reading import Evidence, read
from tocsin.evidence.verification import VerifiedDecision

SHORT = 16
"""Digits of an id in a list."""
MAX_NAMED = 8
MAX_TEXT = 60


class Ended(NamedTuple):
    """One decision as it was announced."""

    announced: DecisionAnnounced
    ended_ns: int
    announcer: str
    data: bytes = b""
    """The announcement's envelope, where it was read from the stream."""

    @property
    def proposal(self) -> Evidence[Proposal] | None:
        """The proposal that the announcement brings, if it is of this decision; its signature is not looked at."""
        if not self.announced.proposal:
            return None
        try:
            found = read(self.announced.proposal, CONSENSUS_PROPOSAL, audience="all")
        except TocsinError:
            return None
        return found if found.leaf == self.announced.decision else None


def outcome_of(announced: DecisionAnnounced) -> str:
    """Return an outcome in words."""
    if announced.option is not None:
        return f"{announced.outcome.value}: {announced.option.name}"
    return announced.outcome.value.replace("_", " ")


def list_lines(found: Sequence[Ended], *, before: int | None = None, refused: int = 0) -> list[str]:
    """Return decisions, a line each; and what is not shown."""
    more = [] if before is None else [f"... there are older ones: --before {before} shows them"]
    if refused:
        more.append(f"{refused} announcements prove nothing, and are left out")
    if not found:
        return ["no decisions", *more]
    lines = [
        f"{'decision':<{SHORT}}  {'ended (UTC)':<19}  {'outcome':<28}  {'ballots':>11}  {'ms':>7}  subject"
    ]
    for one in found:
        announced, proposal = one.announced, one.proposal
        subject = proposal.body.subject if proposal is not None else announced.why
        counted = f"{announced.ballots_for}/{announced.quorum} of {announced.participants}"
        lines.append(
            f"{announced.decision.hex()[:SHORT]}  {_moment(one.ended_ns):%Y-%m-%d %H:%M:%S}  "
            f"{outcome_of(announced)[:28]:<28}  {counted:>11}  {announced.elapsed_ms:>7.0f}  {_cut(subject)}"
        )
    return lines + more


def lines_of(one: Ended, delivery: Delivery | None) -> list[str]:
    """Return all of one decision, for a person."""
    announced, proposal = one.announced, one.proposal
    said = [f"{'decision':<13}{announced.decision.hex()}"]
    if proposal is not None:
        said.append(f"{'proposed':<13}by {proposal.sender.name}: {proposal.body.subject}")
        said += [f"{'option':<13}{option.name}: {option.text}" for option in proposal.body.options]
        said += [f"{'evidence':<13}{line}" for line in proposal.body.evidence]
    said += [
        f"{'outcome':<13}{outcome_of(announced)}, {announced.why}",
        f"{'asked':<13}{announced.scope}: {announced.participants} participants, quorum {announced.quorum}",
        f"{'ballots':<13}{announced.ballots_for} of {announced.ballots_received} for what most were for: "
        f"agreement {100 * announced.agreement:.0f} %",
        f"{'ended':<13}in round {announced.round}, after {announced.elapsed_ms:.0f} ms, announced by {one.announcer}",
    ]
    if announced.missing:
        more = f" and {len(announced.missing) - MAX_NAMED} more" if len(announced.missing) > MAX_NAMED else ""
        said.append(f"{'no ballot':<13}{', '.join(announced.missing[:MAX_NAMED])}{more}")
    if announced.certificate is not None:
        said.append(
            f"{'certificate':<13}{announced.certificate_bytes} bytes, SHA-256 {announced.certificate.hex()}"
        )
    said.append(f"{'delivered':<13}{_delivered(delivery)}")
    return said


def view_of(one: Ended) -> dict[str, object]:
    """Return one decision as plain values."""
    announced, proposal = one.announced, one.proposal
    return {
        "decision": announced.decision.hex(),
        "epoch": announced.epoch.hex(),
        "subject": None if proposal is None else proposal.body.subject,
        "proposer": None if proposal is None else str(proposal.sender),
        "options": [] if proposal is None else [option.name for option in proposal.body.options],
        "outcome": announced.outcome.value,
        "option": None if announced.option is None else announced.option.name,
        "why": announced.why,
        "scope": announced.scope,
        "round": announced.round,
        "elapsed_ms": announced.elapsed_ms,
        "ended": _moment(one.ended_ns).isoformat(),
        "participants": announced.participants,
        "quorum": announced.quorum,
        "ballots_for": announced.ballots_for,
        "ballots_received": announced.ballots_received,
        "agreement": announced.agreement,
        "no_ballot": list(announced.missing),
        "announced_by": one.announcer,
        "certificate_sha256": None if announced.certificate is None else announced.certificate.hex(),
        "certificate_bytes": announced.certificate_bytes,
    }


def delivery_view(delivery: Delivery | None) -> dict[str, object] | None:
    """Return who has the result, as plain values."""
    if delivery is None:
        return None
    return {
        "due": delivery.due,
        "delivered": delivery.delivered,
        "undelivered": list(delivery.undelivered),
        "complete": delivery.complete,
        "last_ms": delivery.last_ms,
    }


def verified_lines(verified: VerifiedDecision, domain: str) -> list[str]:
    """Return what a certificate proves, for a person."""
    counted = f"quorum {verified.quorum} of {verified.participants}"
    if verified.scope != "all":
        counted += f", asked: {verified.scope}"
    tolerant = "yes" if verified.byzantine_tolerant else f"no: {verified.why_not}"
    chain = (
        f", decided by a chain of {verified.chain} from the root's"
        if verified.chain
        else ", signed by the root"
    )
    return [
        f"valid      {verified.option.text}",
        f"decision   {verified.decision.hex()}",
        f"proposed   by {verified.proposer}",
        f"ballots    {verified.ballots_verified} by distinct participants; {counted}",
        f"committed  by {len(verified.instances)} of {verified.instances_total} consensus instances",
        f"epoch      {verified.epoch} of trust domain {domain}{chain}",
        f"tolerates  {verified.tolerated_faults} hostile agents; Byzantine-tolerant: {tolerant}",
        f"signatures {verified.signatures_verified} verified in full",
        f"revoked    {_revoked(verified)}",
    ]


def _revoked(verified: VerifiedDecision) -> str:
    if verified.revocation == "unknown":
        return "no list was given"
    if not verified.revoked:
        return "nobody who speaks in it"
    return f"since or before, which changes nothing here: {', '.join(verified.revoked)}"


def closed_lines(closed: VerifiedClosure) -> list[str]:
    """Return what a closure proves, for a person."""
    ended, epoch = closed.ended, closed.epoch
    chain = (
        f", decided by a chain of {len(epoch.chain)} from the root's" if epoch.chain else ", signed by the root"
    )
    return [
        f"valid      {outcome_of(ended)} in round {ended.round}: nothing was decided",
        f"decision   {ended.decision.hex()}",
        f"proposed   by {closed.proposer}: {closed.proposal.subject}",
        f"committed  by {len(ended.commit)} of {len(epoch.instances)} consensus instances",
        f"epoch      {epoch.epoch.number} of trust domain {closed.proposer.domain}{chain}",
        f"why        {ended.why}, says {closed.announcer.name}",
    ]


def _delivered(delivery: Delivery | None) -> str:
    if delivery is None:
        return "not accounted for"
    said = f"{delivery.delivered} of {delivery.due} agents have confirmed the result"
    if delivery.last_ms is not None:
        said += f", the last one {delivery.last_ms:.0f} ms after it was sent"
    if delivery.undelivered:
        said += f"; not {', '.join(delivery.undelivered[:MAX_NAMED])}"
    return said


def _moment(ns: int) -> datetime:
    return datetime.fromtimestamp(ns / 1e9, UTC)


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"
