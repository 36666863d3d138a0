"""The account of an emergency, from who was due and what was confirmed.

Pure, and a function of what the streams hold: the alert, fleet's records and the receipts. Two routers that have
read the same give the same account.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from tocsin.contracts.fleet import AgentRecord
from tocsin.contracts.policy import Audience, Reach
from tocsin.contracts.routing import MAX_LISTED_BYTES, Confirmed, Delivery, Receipt

NS_PER_MS = 1e6
NAME_OVERHEAD_BYTES = 2
"""Of a name in msgpack."""
GROUP_BYTES = 120
"""Of a group besides its agents' names: field names, the host's name, two numbers."""


def is_due(record: AgentRecord, audience: Audience, issued_at_ns: int) -> bool:
    """Tell whether the audience includes an agent that was enrolled by then. Missions and groups have no roster yet."""
    return record.enrolled_ns <= issued_at_ns and (
        audience.reach is Reach.ALL
        or (audience.reach is Reach.AGENT and audience.name == record.name)
        or (audience.reach is Reach.ROLE and audience.name == record.role)
    )


def who_is_due(audience: Audience, roster: Iterable[AgentRecord], *, issued_at_ns: int) -> dict[str, str]:
    """Return the host of each agent that an emergency is due to."""
    return {record.name: record.host for record in roster if is_due(record, audience, issued_at_ns)}


def account(
    message: bytes, leaf: bytes, issued_at_ns: int, due: Mapping[str, str], confirmed: Mapping[str, Receipt]
) -> Delivery:
    """Return an account.

    Args:
        message: the alert's id.
        leaf: its leaf hash.
        issued_at_ns: when it was issued.
        due: host by agent.
        confirmed: the first receipt of each agent, all of them due.
    """
    channels = Counter(receipt.channel for receipt in confirmed.values())
    delays_ms = [(receipt.taken_ns - issued_at_ns) / NS_PER_MS for receipt in confirmed.values()]
    missing, groups = _listed(sorted(due.keys() - confirmed.keys()), _groups(issued_at_ns, due, confirmed))
    named = len(missing) + sum(len(group.agents) for group in groups)
    return Delivery(
        message=message,
        leaf=leaf,
        due=len(due),
        delivered=len(confirmed),
        by_core=channels["core"],
        by_stream=channels["stream"],
        undelivered=tuple(missing),
        confirmed=tuple(groups),
        unlisted=len(due) - named,
        first_ms=min(delays_ms, default=None),
        last_ms=max(delays_ms, default=None),
        complete=bool(due) and len(confirmed) == len(due),
    )


def _groups(issued_at_ns: int, due: Mapping[str, str], confirmed: Mapping[str, Receipt]) -> list[Confirmed]:
    """Return who confirmed by host, channel and time: agents of one host mostly confirm together."""
    together: dict[tuple[int, str, str], list[str]] = {}
    for agent, receipt in confirmed.items():
        together.setdefault((receipt.taken_ns, due[agent], receipt.channel), []).append(agent)
    return [
        Confirmed(
            host=host, channel=channel, ms=(taken_ns - issued_at_ns) / NS_PER_MS, agents=tuple(sorted(agents))
        )
        for (taken_ns, host, channel), agents in sorted(together.items())
    ]


def _listed(missing: list[str], groups: list[Confirmed]) -> tuple[list[str], list[Confirmed]]:
    """Name as many as the account has room for, those missing first."""
    room = MAX_LISTED_BYTES
    names, room = _fitting(missing, room)
    listed = []
    for group in groups:
        agents, room = _fitting(group.agents, room - GROUP_BYTES)
        if agents:
            listed.append(group.model_copy(update={"agents": tuple(agents)}))
    return names, listed


def _fitting(names: Iterable[str], room: int) -> tuple[list[str], int]:
    listed = []
    for name in names:
        room -= len(name) + NAME_OVERHEAD_BYTES
        if room < 0:
            break
        listed.append(name)
    return listed, room
