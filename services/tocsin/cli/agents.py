"""``tocsin agents``: who is enrolled, how they are, and what an operator can do about it. The work, without printing.

The roster comes in pages; what is printed is bounded, however many agents there are.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterable, Sequence

from tocsin.agent.measurement import code_digest, floor_files
from tocsin.bus import Bus
from tocsin.bus.roster import read_roster
from tocsin.contracts.catalogue import FLEET_AGENT, FLEET_APPROVE, FLEET_ROSTER, FLEET_STANDING
from tocsin.contracts.errors import InvalidInputError
from tocsin.contracts.fleet import MAX_PAGE, AgentState, Roster, RosterEntry, RosterRequest
from tocsin.contracts.health import (
    MAX_ORDERED,
    AgentDetail,
    AgentQuestion,
    Approval,
    MeasuredAgent,
    Measurement,
    StandingAction,
    StandingDone,
    StandingOrder,
)

TIMEOUT_S = 10.0
AT_ONCE = 32
SHOWN = 40
"""Agents that are printed unless somebody asks for more."""
NS_PER_S = 1_000_000_000
COLUMNS = "{:<28} {:<11} {:<16} {:<12} {:>5}  {}"


async def read(bus: Bus, question: RosterRequest, *, limit: int | None) -> Roster:
    """Read the roster: ``limit`` agents, or all."""
    if limit is None:
        return await read_roster(bus, timeout_s=TIMEOUT_S, question=question)
    if limit <= MAX_PAGE:
        return await bus.request(
            FLEET_ROSTER, question.model_copy(update={"limit": max(1, limit)}), timeout_s=TIMEOUT_S
        )
    whole = await read_roster(bus, timeout_s=TIMEOUT_S, question=question)
    return whole.model_copy(update={"entries": whole.entries[:limit], "more": len(whole.entries) > limit})


async def detail(bus: Bus, name: str) -> AgentDetail:
    """Ask for one agent.

    Raises:
        InvalidInputError: ``no_such_agent``.
    """
    return await bus.request(FLEET_AGENT, AgentQuestion(agent=name), timeout_s=TIMEOUT_S)


async def order(bus: Bus, action: StandingAction, names: Sequence[str], why: str) -> StandingDone:
    """Quarantine or release agents, all of them or, where one is unknown, none of its thousand."""
    changed: list[str] = []
    unchanged: list[str] = []
    for start in range(0, len(names), MAX_ORDERED):
        wanted = StandingOrder(action=action, agents=tuple(names[start : start + MAX_ORDERED]), why=why)
        done = await bus.request(FLEET_STANDING, wanted, timeout_s=TIMEOUT_S)
        changed += done.changed
        unchanged += done.unchanged
    return StandingDone.model_construct(changed=tuple(changed), unchanged=tuple(unchanged))


async def unapproved(bus: Bus, names: Sequence[str] | None) -> list[MeasuredAgent]:
    """Return what agents present that is not allowed: of those named, or of all that are suspect.

    Raises:
        InvalidInputError: ``no_such_agent``.
    """
    if names is None:
        roster = await read(bus, RosterRequest(state=AgentState.SUSPECT), limit=None)
        names = [entry.agent.name for entry in roster.entries]
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(name: str) -> AgentDetail:
        async with slots:
            return await detail(bus, name)

    details = await asyncio.gather(*map(one, names))
    return [
        MeasuredAgent(agent=found.entry.agent.name, measurement=found.presented)
        for found in details
        if found.presented is not None and found.presented not in found.allowed
    ]


async def approve(bus: Bus, wanted: Sequence[MeasuredAgent]) -> list[str]:
    """Allow agents what was seen; return for whom that was new."""
    changed: list[str] = []
    for start in range(0, len(wanted), MAX_ORDERED):
        approval = Approval(agents=tuple(wanted[start : start + MAX_ORDERED]))
        changed += (await bus.request(FLEET_APPROVE, approval, timeout_s=TIMEOUT_S)).changed
    return changed


def own_code() -> bytes:
    """Return the code's digest of the roles that come with this very installation."""
    return code_digest(floor_files(), ())


def with_code(wanted: Iterable[MeasuredAgent], prefix: str) -> list[MeasuredAgent]:
    """Return those whose code's digest begins with some hexadecimal digits, at least eight.

    Raises:
        InvalidInputError: ``bad_digest``.
    """
    if len(prefix) < 8 or not set(prefix) <= set("0123456789abcdef"):
        raise InvalidInputError(
            f"{prefix[:80]!r} is no digest: at least 8 hexadecimal digits", reason="bad_digest"
        )
    return [one for one in wanted if one.measurement.code.hex().startswith(prefix)]


# --- For people and for programs ----------------------------------------------------------------


def list_text(roster: Roster, *, now_ns: int) -> list[str]:
    """Return a roster in lines: a summary first."""
    lines = [summary(roster)]
    if roster.entries:
        lines.append(COLUMNS.format("agent", "role", "host", "state", "score", "heard"))
    lines += [_row(entry, now_ns) for entry in roster.entries]
    if roster.more:
        last = roster.entries[-1].agent.name
        lines.append(f"... more: --after {last}, --limit, --is, --role or --host; --json has all")
    return lines


def summary(roster: Roster) -> str:
    """Return how many agents there are, and in which states."""
    counted = ", ".join(
        f"{roster.states[state]} {state.value}" for state in AgentState if state in roster.states
    )
    return f"{roster.total} agents: {counted}" if roster.total else "no agents"


def list_json(roster: Roster) -> str:
    """Return a roster as one JSON object."""
    return json.dumps(
        {
            "total": roster.total,
            "states": {state.value: count for state, count in roster.states.items()},
            "more": roster.more,
            "agents": [_entry(entry) for entry in roster.entries],
        }
    )


def detail_text(found: AgentDetail, *, now_ns: int, own: bytes) -> list[str]:
    """Return one agent in lines."""
    agent = found.entry.agent
    lines = [
        f"{agent.name}  {agent.role.value} on {agent.host}: {found.entry.state.value}, score {found.entry.score:g}",
        f"heard      {_ago(found.entry.last_seen_ns, now_ns)}",
        f"key        {agent.key_id.hex()}, enrolled {_ago(agent.enrolled_ns, now_ns)}",
        f"attested   {_ago(found.attested_ns, now_ns)}",
    ]
    if found.presented is not None:
        lines.append(f"runs       {_measured(found.presented, own)}")
    lines += [f"allowed    {_measured(one, own)}" for one in found.allowed]
    lines += [f"doubt      {doubt}" for doubt in found.doubts]
    standing = found.standing
    if standing is not None and standing.quarantined:
        since = _ago(standing.since_ns, now_ns)
        lines.append(f"quarantine by {standing.by}, {since}: {standing.why}")
    worst = sorted(found.held_against.items(), key=lambda item: -item[1])
    lines += [f"against    {points:6.1f}  {what}" for what, points in worst[:SHOWN]]
    return lines


def detail_json(found: AgentDetail) -> str:
    """Return one agent as one JSON object."""
    return json.dumps(found.model_dump(mode="json"))


def approval_text(wanted: Sequence[MeasuredAgent], own: bytes) -> list[str]:
    """Return in lines what is presented, by code."""
    counted = Counter(one.measurement.code for one in wanted)
    return [
        f"code {code.hex()}{'  (this installation)' if code == own else ''}: {count} agents"
        for code, count in counted.most_common()
    ]


def _row(entry: RosterEntry, now_ns: int) -> str:
    agent = entry.agent
    heard = _ago(entry.last_seen_ns, now_ns)
    return COLUMNS.format(
        agent.name, agent.role.value, agent.host, entry.state.value, f"{entry.score:.0f}", heard
    )


def _entry(entry: RosterEntry) -> dict[str, object]:
    agent = entry.agent
    return {
        "agent": agent.name,
        "role": agent.role.value,
        "host": agent.host,
        "state": entry.state.value,
        "score": entry.score,
        "last_seen_ns": entry.last_seen_ns,
        "key_id": agent.key_id.hex(),
    }


def _measured(one: Measurement, own: bytes) -> str:
    same = "  (this installation)" if one.code == own else ""
    return f"code {one.code.hex()[:16]}{same}  configuration {one.configuration.hex()[:16]}"


def _ago(at_ns: int | None, now_ns: int) -> str:
    if not at_ns:
        return "never"
    return f"{max(0, now_ns - at_ns) / NS_PER_S:.0f} s ago"


def now_ns() -> int:
    """Return now, in nanoseconds since the epoch."""
    return time.time_ns()
