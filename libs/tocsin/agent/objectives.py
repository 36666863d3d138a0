"""What an agent is told beside an objective, and what every agent can do: watch.

    class Prober(Agent):
        role = Role.SPECIALIST
        capabilities = ("tls",)

        async def on_objective(self, objective: Objective, context: ObjectiveContext) -> str:
            context.progress(0.5, "half of the hosts")
            return "3 of 12 hosts offer RSA key exchange"

What is returned is the objective's result, a line of at most 256 characters. An agent that raises has failed, and the
objective goes to another. The call is cancelled when the objective is another's by now, or the mission has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tocsin.agent import mesh
from tocsin.contracts.errors import InvalidInputError
from tocsin.contracts.missions import Objective, Topology

if TYPE_CHECKING:
    from tocsin.agent.agent import Agent

WATCH = "watch"
STEP_S = 1.0
"""How often a watch says how far it is."""
MAX_NAMED = 5


@dataclass(frozen=True, slots=True)
class ObjectiveContext:
    """What an agent knows of an objective besides itself."""

    mission: str
    epoch: int
    """Which agent in turn this is for the objective, from 1."""
    agent: str
    topology: Topology
    report: Callable[[float, str], None]

    def progress(self, share: float, text: str = "") -> None:
        """Say how far it is: the share of the work that is done, from 0 to 1. What is said too often is gathered."""
        self.report(min(max(share, 0.0), 1.0), text)

    @property
    def audience(self) -> str:
        """Whom to send to for all members of the mission: ``mission.<mission>``."""
        return f"mission.{self.mission}"

    @property
    def group(self) -> str:
        """Whom to send to for this agent's group of the topology: ``group.<mission>-<number>``."""
        return f"group.{group_name(self.mission, self.place // self.topology.cell)}"

    @property
    def place(self) -> int:
        """This agent's place on the ring."""
        return mesh.place_of(self.topology, self.agent)

    @property
    def neighbours(self) -> tuple[str, ...]:
        """The agents that the topology links this one with, standbys among them: channels to them are opened."""
        return mesh.neighbours(self.topology, self.agent)

    def next_hop(self, member: str) -> str:
        """Return the neighbour by which another member is reached in the fewest links.

        Raises:
            InvalidInputError: ``not_a_member``.
        """
        return mesh.next_hop(self.topology, self.agent, member)


def group_name(mission: str, number: int) -> str:
    """Return the name of one of a mission's groups."""
    return f"{mission}-{number}"


def groups_of(mission: str, topology: Topology) -> dict[str, tuple[str, ...]]:
    """Return the groups and their members: so many consecutive places of the ring each."""
    members, cell = topology.members, topology.cell
    return {
        group_name(mission, start // cell): members[start : start + cell]
        for start in range(0, len(members), cell)
    }


async def watch(agent: Agent, objective: Objective, context: ObjectiveContext) -> str:
    """Watch for as many seconds as the objective has units of work; say who has warned about its subject.

    Raises:
        InvalidInputError: ``unknown_task``: the objective asks for something else.
    """
    if objective.task != WATCH:
        raise InvalidInputError(f"{agent.name} does not know how to {objective.task}", reason="unknown_task")
    left_s = objective.work
    while left_s > 0:
        pause_s = min(STEP_S, left_s)
        await asyncio.sleep(pause_s)
        left_s -= pause_s
        if left_s > 0:
            context.progress(1 - left_s / objective.work)
    if not objective.subject:
        return f"watched for {objective.work:g} s"
    warned = sorted(agent.support.witnesses(objective.subject))
    if not warned:
        return f"{objective.subject}: no warning"
    more = f" and {len(warned) - MAX_NAMED} more" if len(warned) > MAX_NAMED else ""
    return f"{objective.subject}: warned about by {', '.join(warned[:MAX_NAMED])}{more}"
