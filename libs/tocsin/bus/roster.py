"""Read the whole roster from fleet, page after page: an answer stays below the broker's largest payload."""

from __future__ import annotations

import time

from tocsin.bus.client import Bus
from tocsin.contracts.catalogue import FLEET_ROSTER
from tocsin.contracts.fleet import Roster, RosterEntry, RosterRequest


async def read_roster(bus: Bus, *, timeout_s: float, question: RosterRequest | None = None) -> Roster:
    """Return all agents that a question asks for; its ``limit`` is that of one page.

    An agent that is enrolled while this reads may be missing.

    Raises:
        UnavailableError: ``no_answer``: not all pages came in time.
    """
    deadline = time.monotonic() + timeout_s
    question = question or RosterRequest()
    entries: list[RosterEntry] = []
    while True:
        left_s = max(0.01, deadline - time.monotonic())
        page = await bus.request(FLEET_ROSTER, question, timeout_s=left_s)
        entries += page.entries
        if not page.more or not page.entries:
            return page.model_copy(update={"entries": tuple(entries), "more": False})
        question = question.model_copy(update={"after": page.entries[-1].agent.name})
