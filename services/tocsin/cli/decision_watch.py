"""Votes as they happen, a line for each thing that people want to see."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from tocsin.bus import Bus, Context
from tocsin.cli.decision_views import SHORT, outcome_of
from tocsin.contracts.base import Message
from tocsin.contracts.catalogue import (
    CONSENSUS_BALLOT,
    CONSENSUS_DECISION,
    CONSENSUS_ROUND,
    CONSENSUS_VOTE,
    DELIVER_ALL,
)
from tocsin.contracts.decisions import Ballot, DecisionAnnounced, Proposal, RoundOpened, Step, Vote

GATHER_S = 0.3
"""How often ballots are summed up in a line."""
MAX_OPEN = 1024
"""Decisions followed at a time; the oldest is forgotten."""

Say = Callable[[str], None]


@dataclass(slots=True)
class _Seen:
    options: tuple[str, ...] = ()
    round: int = 1
    ballots: dict[str, str] = field(default_factory=dict)
    """By agent, of this round."""
    views: set[tuple[int, int]] = field(default_factory=set)
    changed: bool = False


class Watcher:
    """Turns what is heard into lines."""

    def __init__(self, prefix: str, say: Say) -> None:
        self._prefix = prefix
        self._say = say
        self._seen: OrderedDict[bytes, _Seen] = OrderedDict()

    def proposed(self, body: Message, context: Context) -> None:
        """Hear of a proposal."""
        if not isinstance(body, Proposal) or (seen := self._of(context.leaf)) is None:
            return
        seen.options = tuple(option.name for option in body.options)
        asked = f"{', '.join(seen.options)}; asked: {body.scope.label}"
        self._line(context.leaf, "proposed", f"by {context.sender.name}: {body.subject} ({asked})")

    def balloted(self, ballot: Ballot, context: Context) -> None:
        """Hear a ballot; what was cast is summed up later."""
        seen = self._of(ballot.decision)
        if seen is None or ballot.round != seen.round:
            return
        known = ballot.option is not None and ballot.option < len(seen.options)
        choice = seen.options[ballot.option] if known and ballot.option is not None else ballot.choice.value
        seen.ballots[context.sender.name] = choice
        seen.changed = True

    def voted(self, vote: Vote, context: Context) -> None:
        """Hear an instance's step: only what is out of the ordinary is a line."""
        seen = self._of(vote.decision)
        if seen is None or vote.step is not Step.TIMEOUT or (vote.round, vote.view) in seen.views:
            return
        seen.views.add((vote.round, vote.view))
        self._line(
            vote.decision, "view", f"{vote.view} of round {vote.round} timed out, says {context.sender.name}"
        )

    def opened(self, body: RoundOpened, _: Context) -> None:
        """Hear that a further round has begun."""
        seen = self._of(body.decision)
        if seen is None or body.round <= seen.round:
            return
        self.sum_up()
        seen.round, seen.ballots = body.round, {}
        seen.options = tuple(option.name for option in body.options)
        self._line(body.decision, "round", f"{body.round}: {', '.join(seen.options)}")

    def ended(self, announced: DecisionAnnounced, _: Context) -> None:
        """Hear how a decision ended."""
        if self._of(announced.decision) is None:
            return
        self.sum_up()
        counted = f"{announced.ballots_for} of {announced.participants}, quorum {announced.quorum}"
        took = f"round {announced.round}, {announced.elapsed_ms:.0f} ms"
        self._line(announced.decision, "ended", f"{outcome_of(announced)}; {counted}; {took}")
        self._seen.pop(announced.decision, None)

    def sum_up(self) -> None:
        """Say what ballots have come since it was said last."""
        for decision, seen in self._seen.items():
            if seen.changed:
                seen.changed = False
                counts = Counter(seen.ballots.values())
                said = ", ".join(f"{count} {choice}" for choice, count in counts.most_common())
                self._line(decision, "ballots", f"{len(seen.ballots)} in round {seen.round}: {said}")

    def _of(self, decision: bytes) -> _Seen | None:
        if not decision.hex().startswith(self._prefix):
            return None
        if decision not in self._seen:
            self._seen[decision] = _Seen()
            if len(self._seen) > MAX_OPEN:
                self._seen.popitem(last=False)
        return self._seen[decision]

    def _line(self, decision: bytes, what: str, text: str) -> None:
        self._say(f"{decision.hex()[:SHORT]}  {what:<9} {text}")


async def watch(bus: Bus, prefix: str, say: Say, until: asyncio.Event) -> None:
    """Say what happens until the event is set."""
    watcher = Watcher(prefix, say)
    await bus.subscribe(DELIVER_ALL, watcher.proposed)
    await bus.subscribe(CONSENSUS_BALLOT, watcher.balloted)
    await bus.subscribe(CONSENSUS_VOTE, watcher.voted, again=True)
    await bus.subscribe(CONSENSUS_ROUND, watcher.opened)
    await bus.subscribe(CONSENSUS_DECISION, watcher.ended)
    say("watching; Ctrl-C ends it")
    while not until.is_set():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GATHER_S):
                await until.wait()
        watcher.sum_up()
