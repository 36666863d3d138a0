"""Keep what each instance has said in one slot, and prove it if two of its steps contradict each other.

Bounded: :data:`STEPS` steps of an instance are remembered, the first ones. An honest instance takes four in a view.
"""

from __future__ import annotations

from tocsin.contracts.decisions import Equivocation, Step, Vote
from tocsin.evidence.misbehaviour import contradicts

STEPS = 64


class Watch:
    """The steps of all instances in one slot."""

    def __init__(self) -> None:
        self._said: dict[str, dict[tuple[Step, int], tuple[Vote, bytes]]] = {}
        self._accused: set[str] = set()

    def see(self, sender: str, vote: Vote, data: bytes) -> Equivocation | None:
        """Remember a verified step; return the proof against its sender, once."""
        said = self._said.setdefault(sender, {})
        first = said.get((vote.step, vote.view))
        if vote.step is Step.TIMEOUT or (first is not None and first[0].value == vote.value):
            return None
        if sender not in self._accused:
            for other, other_data in said.values():
                if contradicts(other, vote):
                    self._accused.add(sender)
                    return Equivocation(
                        epoch=vote.epoch,
                        decision=vote.decision,
                        round=vote.round,
                        accused=sender,
                        first=other_data,
                        second=data,
                    )
        if first is None and len(said) < STEPS:
            said[vote.step, vote.view] = (vote, data)
        return None
