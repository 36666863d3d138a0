"""A worker that is a whole agent host with stock agents: they take missions' objectives, and watch as they are told."""

from __future__ import annotations

import sys
from typing import Any

import uvloop
from _worker import Said, hear, say
from pydantic import BaseModel, ConfigDict

from tocsin.agent import Agent, AgentHost, HostSettings
from tocsin.contracts.identifiers import Role
from tocsin.telemetry import Metrics, configure_logging, set_aside


class CarryingPlan(BaseModel):
    """What a host is told."""

    model_config = ConfigDict(frozen=True)

    settings: dict[str, Any]
    """Of the agent host (:class:`HostSettings`), as JSON has them."""


def make(role: Role, name: str) -> Agent:
    """Make an agent that does what every agent can do."""
    watcher: type[Agent] = type(f"{role.value.title()}Watcher", (Agent,), {"role": role})
    return watcher(name)


async def carry(plan: CarryingPlan) -> None:
    """Carry the agents until the program says that it is over, or kills this process."""
    configure_logging("carrying", level="warning")
    async with AgentHost(HostSettings(**plan.settings), make, Metrics()):
        say(Said(state="ready"))
        await hear()
    say(Said(state="done"))


if __name__ == "__main__":
    set_aside()  # as a host does
    uvloop.run(carry(CarryingPlan.model_validate_json(sys.stdin.readline())))
