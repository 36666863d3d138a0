"""What tests of chains of epochs share: a council that goes from one epoch to the next by decisions."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field

from council import DOMAIN, NOW_NS, Council

from tocsin.agent.roles.admin import proposal_of_epoch
from tocsin.contracts.decisions import EpochChange, Misconduct, Participant, Proposal, Removal, RemovalCause
from tocsin.contracts.identifiers import Role, SpiffeId
from tocsin.evidence.bundle import Bundle
from tocsin.evidence.certificate import DecisionCertificate
from tocsin.evidence.epochs import InstalledEpoch
from tocsin.evidence.verification import follow

SECOND_NS = 1_000_000_000


@dataclass
class Line:
    """A council and the epochs that it has decided."""

    council: Council = field(default_factory=lambda: Council(agents=21, instances=4))
    links: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.epoch = self.council.epoch
        self._newcomers = 0

    def sitting(self) -> Council:
        """Return the council as it sits in the epoch of now."""
        council = copy(self.council)
        council.__dict__["epoch"] = self.epoch
        council.voters = [one for one in council.voters if str(one) in self.epoch.seats]
        return council

    def newcomer(self) -> Participant:
        """Return the seat of an agent that has not been there, with a key of its own."""
        self._newcomers += 1
        who = SpiffeId.agent(DOMAIN, Role.SENTINEL, f"new-{self._newcomers}")
        self.council.keys[str(who)] = self.council.new_key()
        self.council.voters.append(who)
        return self.seat(who)

    def seat(self, who: SpiffeId) -> Participant:
        sender, key_id, algorithm = self.council.seat(who)
        return Participant(sender=str(sender), key_id=key_id, algorithm=int(algorithm))

    def change(
        self,
        joined: Sequence[Participant] = (),
        removed: Sequence[tuple[SpiffeId, RemovalCause]] = (),
        misconduct: Sequence[Misconduct] = (),
        *,
        after_s: int = 60,
    ) -> EpochChange:
        return EpochChange(
            number=self.epoch.epoch.number + 1,
            created_ns=self.epoch.epoch.created_ns + after_s * SECOND_NS,
            joined=tuple(sorted(joined, key=lambda one: one.sender)),
            removed=tuple(
                Removal(sender=str(who), cause=cause)
                for who, cause in sorted(removed, key=lambda one: str(one[0]))
            ),
            misconduct=tuple(misconduct),
        )

    def proposal(self, change: EpochChange) -> Proposal:
        return proposal_of_epoch(change, self.epoch, deadline_ms=5_000)

    def link(self, body: Proposal, option: int = 0) -> bytes:
        """Return the certificate of a decision in the epoch of now."""
        return self.sitting().certificate(option, body=body).encode()

    def go_on(self, change: EpochChange | None = None) -> InstalledEpoch:
        """Decide the next epoch; by default somebody joins."""
        link = self.link(self.proposal(change or self.change([self.newcomer()])))
        self.epoch = follow(self.epoch, link, self.council.backend)
        self.links.append(link)
        return self.epoch

    def certificate(self) -> DecisionCertificate:
        """Return that of an ordinary decision in the epoch of now."""
        return self.sitting().certificate()

    def bundle(self) -> Bundle:
        return Bundle(self.certificate().encode(), tuple(self.links))


__all__ = ["NOW_NS", "SECOND_NS", "Line"]
