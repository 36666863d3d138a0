"""Which handler of an agent a message is for, and that a decision's end is handed over once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from tocsin.agent.agent import Agent
from tocsin.bus import Context
from tocsin.contracts.analysis import AssessmentMade
from tocsin.contracts.base import Message
from tocsin.contracts.decisions import DecisionAnnounced, MembershipWish
from tocsin.contracts.errors import InvariantBrokenError
from tocsin.contracts.routing import Coordination, Discovery, Intelligence, ThreatAlert

Call: TypeAlias = Callable[[Agent, Message, Context], Awaitable[None]]
MAX_ENDS = 65_536
"""Agents and decisions whose end was handed over, remembered: 64 decisions of a host with 1,024 agents."""


class Handlers:
    """Calls the handlers of one host's agents.

    A decision's end comes as the announcement in stream DECISIONS and, with proof of delivery, as its result: an agent
    hears the first. What is remembered of that does not outlive the process.
    """

    def __init__(self) -> None:
        self._ends: OrderedDict[tuple[str, bytes], None] = OrderedDict()

    async def call(self, agent: Agent, body: Message, context: Context) -> None:
        """Call the handler that a message is for, unless it is an end that the agent has heard."""
        if isinstance(body, DecisionAnnounced):
            end = (agent.name, body.decision)
            if end in self._ends:
                return
            self._ends[end] = None
            if len(self._ends) > MAX_ENDS:
                self._ends.popitem(last=False)
        await call_handler(agent, body, context)


async def call_handler(agent: Agent, body: Message, context: Context) -> None:
    """Call the handler that the message's model belongs to."""
    if isinstance(body, ThreatAlert):
        await agent.on_alert(body, context)
    elif isinstance(body, Coordination):
        await agent.on_task(body.content, context)
    elif isinstance(body, Discovery):
        await agent.on_discovery(body, context)
    elif isinstance(body, Intelligence):
        await agent.on_intelligence(body, context)
    elif isinstance(body, DecisionAnnounced):
        await agent.on_decision(body, context)
    elif isinstance(body, MembershipWish):
        await agent.on_membership(body, context)
    elif isinstance(body, AssessmentMade):
        await agent.on_assessment(body, context)
    else:
        raise InvariantBrokenError(f"no handler for {context.kind.name}", reason="no_handler")
