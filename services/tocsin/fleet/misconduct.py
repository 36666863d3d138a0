"""What is held against agents, by whom, and how that becomes a score. Pure: moments in nanoseconds come in.

A score is 100 less what is held against the agent:

* **proven** claims carry their proof with them, and fleet has verified it: two ballots of one agent for one round.
* **witnessed** claims are about messages whose signature the reporter has verified, so it knows whose they were. Nobody
  else can check that. So for each class of reporters (routers, hosts, ...) the claim counts that more than a third of
  the class have made: of ``n`` reporters the ``(n // 3 + 1)``-th largest sum. Fewer than a third can neither talk an
  honest agent down nor, by silence of their own, hide what the others saw. A reporter has at most
  :data:`MOST_BY_ONE` points against an agent, whatever it reports.
* **unattributed** claims prove nothing about the agent that they name: a bad signature can be made by anybody in
  anybody's name, and so can a flood on its subject. They cost at most :data:`MOST_UNATTRIBUTED` points together,
  which alone makes nobody suspect.

What is held against an agent halves every :data:`HALF_LIFE_S` seconds. A score below :data:`DOUBTFUL` makes suspect
until it is above :data:`RECOVERED` again; below :data:`THRESHOLD` it quarantines, until an operator releases.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

NS_PER_S = 1_000_000_000
HALF_LIFE_S = 1_800.0
DOUBTFUL = 70.0
RECOVERED = 80.0
THRESHOLD = 40.0
MOST_BY_ONE = 70.0
"""More than ``100 - THRESHOLD``: where there is one router, its word is enough."""
MOST_UNATTRIBUTED = 20.0
"""Less than ``100 - DOUBTFUL``."""
FORGOTTEN = 0.5
"""Points below which an entry is dropped."""
MAX_ENTRIES = 65_536
"""Entries of all agents together; claims beyond are counted and left out."""
HOSTS = "host"
"""The class of reporters that agents' hosts are."""


class Worth(StrEnum):
    """How far a claim can be believed."""

    PROVEN = "proven"
    WITNESSED = "witnessed"
    UNATTRIBUTED = "unattributed"


@dataclass(frozen=True, slots=True)
class Weight:
    """What one claim costs."""

    worth: Worth
    points: float
    meaning: str


WEIGHTS: Mapping[str, Weight] = MappingProxyType(
    {
        "equivocation": Weight(Worth.PROVEN, 100.0, "two different ballots for one round"),
        "order_not_allowed": Weight(Worth.WITNESSED, 20.0, "an order to guardians that it may not give"),
        "sender_not_allowed": Weight(Worth.WITNESSED, 10.0, "a type of message that its role may not send"),
        "not_itself": Weight(Worth.WITNESSED, 10.0, "a discovery that describes another"),
        "content_not_allowed": Weight(Worth.WITNESSED, 10.0, "work that its role does not produce"),
        "no_need_to_know": Weight(Worth.WITNESSED, 10.0, "intelligence to those who must not read it"),
        "recipient_not_cleared": Weight(
            Worth.WITNESSED, 10.0, "intelligence sealed to those who must not read it"
        ),
        "not_sealed": Weight(Worth.WITNESSED, 10.0, "intelligence in the clear"),
        "bad_body": Weight(Worth.WITNESSED, 10.0, "a signed body that is none of its type"),
        "audience_not_allowed": Weight(Worth.WITNESSED, 5.0, "an audience that the type may not have"),
        "priority_not_allowed": Weight(Worth.WITNESSED, 5.0, "a priority that the type may not have"),
        "severity_mismatch": Weight(Worth.WITNESSED, 5.0, "a severity that does not fit the priority"),
        "rate_exceeded": Weight(Worth.WITNESSED, 5.0, "a second of signed messages at twice its allowance"),
        "bad_signature": Weight(Worth.UNATTRIBUTED, 1.0, "a signature that does not verify"),
        "bad_inclusion_proof": Weight(Worth.UNATTRIBUTED, 1.0, "a message that is not in the signed batch"),
        "rate_limited": Weight(Worth.UNATTRIBUTED, 1.0, "messages on its subject beyond its allowance"),
        "malformed": Weight(Worth.UNATTRIBUTED, 1.0, "bytes on its subject that are no envelope"),
    }
)
"""Every reason that costs something; all others cost nothing."""


@dataclass(frozen=True, slots=True)
class Reporter:
    """Who claims: a token, and its class: ``host``, or the service's name."""

    token: str
    group: str


@dataclass(slots=True)
class _Sum:
    points: float
    at_ns: int

    def now(self, now_ns: int) -> float:
        return self.points * math.pow(0.5, max(0, now_ns - self.at_ns) / (HALF_LIFE_S * NS_PER_S))


class Ledger:
    """What is held against agents. Bounded by :data:`MAX_ENTRIES`."""

    def __init__(self) -> None:
        self._against: dict[str, dict[tuple[Worth, Reporter, str], _Sum]] = {}
        self._entries = 0
        self.left_out = 0
        """Claims that found no room."""

    def claim(self, agent: str, reason: str, reporter: Reporter, *, count: int = 1, at_ns: int) -> bool:
        """Take a claim; return whether it is one that costs something."""
        weight = WEIGHTS.get(reason)
        if weight is None:
            return False
        return self._add(agent, weight.worth, reporter, reason, weight.points * min(count, 100), at_ns)

    def carry(self, agent: str, points: float, *, at_ns: int) -> None:
        """Take up what a former process had against an agent."""
        self._add(agent, Worth.PROVEN, Reporter("fleet", "fleet"), "before", points, at_ns)

    def forgive(self, agent: str) -> None:
        """Hold nothing against an agent any more."""
        self._entries -= len(self._against.pop(agent, {}))

    def holds(self, agent: str) -> bool:
        """Tell whether anything is held against an agent. O(1)."""
        return agent in self._against

    def agents(self) -> tuple[str, ...]:
        """Return the agents that something is held against."""
        return tuple(self._against)

    def tidy(self, *, now_ns: int) -> None:
        """Drop what has faded."""
        for agent in list(self._against):
            held = self._against[agent]
            for key in [key for key, one in held.items() if one.now(now_ns) < FORGOTTEN]:
                del held[key]
                self._entries -= 1
            if not held:
                del self._against[agent]

    def score(self, agent: str, population: Mapping[str, int], *, now_ns: int) -> float:
        """Return an agent's score, 0 to 100.

        Args:
            agent: its name.
            population: how many reporters of each class there are; at least those that claim something are.
            now_ns: now.
        """
        held = self._against.get(agent)
        if not held:
            return 100.0
        proven = sum(one.now(now_ns) for (worth, _, _), one in held.items() if worth is Worth.PROVEN)
        witnessed = _agreed(held, Worth.WITNESSED, MOST_BY_ONE, population, now_ns)
        unattributed = _agreed(held, Worth.UNATTRIBUTED, MOST_UNATTRIBUTED, population, now_ns)
        lost = proven + witnessed + min(unattributed, MOST_UNATTRIBUTED)
        return max(0.0, 100.0 - lost)

    def held_against(self, agent: str, *, now_ns: int) -> dict[str, float]:
        """Return the points that are held against an agent, by ``<reason> <reporter>``: for people."""
        return {
            f"{reason} {reporter.token}"[:128]: round(one.now(now_ns), 2)
            for (_, reporter, reason), one in self._against.get(agent, {}).items()
        }

    def _add(
        self, agent: str, worth: Worth, reporter: Reporter, reason: str, points: float, at_ns: int
    ) -> bool:
        held = self._against.setdefault(agent, {})
        key = (worth, reporter, reason)
        if key not in held:
            if self._entries >= MAX_ENTRIES:
                self.left_out += 1
                if not held:
                    del self._against[agent]
                return False
            held[key] = _Sum(0.0, at_ns)
            self._entries += 1
        total = held[key].now(at_ns) + points
        held[key] = _Sum(min(total, 100.0 if worth is Worth.PROVEN else MOST_BY_ONE), at_ns)
        return True


def _agreed(
    held: Mapping[tuple[Worth, Reporter, str], _Sum],
    worth: Worth,
    most: float,
    population: Mapping[str, int],
    now_ns: int,
) -> float:
    """Return the points that more than a third of each class agree on, summed over the classes."""
    by_group: dict[str, dict[str, float]] = {}
    for (one_worth, reporter, _), total in held.items():
        if one_worth is worth:
            group = by_group.setdefault(reporter.group, {})
            group[reporter.token] = min(most, group.get(reporter.token, 0.0) + total.now(now_ns))
    points = 0.0
    for name, sums in by_group.items():
        needed = max(population.get(name, 0), len(sums)) // 3 + 1
        largest = sorted(sums.values(), reverse=True)
        points += largest[needed - 1] if len(largest) >= needed else 0.0
    return points
