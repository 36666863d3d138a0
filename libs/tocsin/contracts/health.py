"""How agents are: changes of state that fleet publishes."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tocsin.contracts.base import Message, Name, Text
from tocsin.contracts.fleet import AgentState

MAX_CHANGES = 512
"""In one event: with names and hosts of 63 characters 100 kB."""


class StateChange(Message):
    """One agent's change of state."""

    agent: Name
    host: Name
    before: AgentState
    after: AgentState


class AgentStates(Message):
    """Agents whose state has changed together, and why: event ``fleet.agent_state``."""

    why: Text
    changes: Annotated[tuple[StateChange, ...], Field(min_length=1, max_length=MAX_CHANGES)]
