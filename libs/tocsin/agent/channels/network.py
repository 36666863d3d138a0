"""A group's channels opened beforehand: between all pairs, or along the links of a topology.

Whoever establishes a network asks each agent to open the channels of which it is the initiator (of each pair the one
with the lesser name, so nobody begins one twice) and puts their answers together. Agents of one host sign their
offers in batches, so a network of many agents on few hosts costs few signatures.

The routing table says for each agent by which neighbour each other agent is reached in the fewest hops: with all
pairs linked that is the agent itself. Channels are from end to end of one link; who relays reads what it relays.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypeAlias

from tocsin.contracts.channels import MAX_PEERS, ChannelsOpened, OpenChannels
from tocsin.contracts.errors import InvalidInputError, TocsinError
from tocsin.crypto.channels import Limits

Pair: TypeAlias = tuple[str, str]
"""Two agents' names, the lesser first."""
Ask: TypeAlias = Callable[[str, OpenChannels], Awaitable[ChannelsOpened]]
"""Asks one agent to open channels."""

ASKED_AT_ONCE = 32
MAX_AGENTS = 1024
PEERS_AT_ONCE = 256
"""Channels that an agent is asked for in one request: they must be there within its time to live."""


@dataclass(frozen=True, slots=True)
class SecurityParameters:
    """What holds for every channel of a network."""

    suite: str
    max_messages: int
    """In one direction, under one key."""
    max_age_s: int
    qkd_links: int
    """Links that a QKD key is mixed into."""


@dataclass(frozen=True, slots=True)
class Network:
    """What was established."""

    agents: tuple[str, ...]
    links: Mapping[Pair, bool]
    """Channels that are open, and whether a QKD key is mixed in."""
    failed: Mapping[Pair, str]
    """Channels that are not, and why."""
    routes: Mapping[str, Mapping[str, str]]
    """By agent: the next hop to every agent that it can reach."""
    parameters: SecurityParameters

    @property
    def complete(self) -> bool:
        """Whether every link that was asked for is there."""
        return not self.failed


SUITE = "ML-KEM-768 + X25519, ML-DSA identities, HKDF-SHA-256, AES-256-GCM"


def pairs_of(agents: Sequence[str], links: Iterable[tuple[str, str]] | None = None) -> tuple[Pair, ...]:
    """Return the channels to open.

    Args:
        agents: names; twice counts once.
        links: of a topology, in any order; None for all pairs.

    Raises:
        InvalidInputError: ``too_few_agents``, ``too_many_agents``; ``bad_link``: one that leads out of the group, or
            from an agent to itself.
    """
    group = sorted(set(agents))
    if len(group) < 2:
        raise InvalidInputError("a network has two agents at least", reason="too_few_agents")
    if len(group) > MAX_AGENTS:
        raise InvalidInputError(f"{len(group)} agents, at most {MAX_AGENTS}", reason="too_many_agents")
    if links is None:
        return tuple(combinations(group, 2))
    found = set()
    for one, other in links:
        if one == other or one not in group or other not in group:
            raise InvalidInputError(f"no link of this group: {one} to {other}", reason="bad_link")
        found.add((min(one, other), max(one, other)))
    return tuple(sorted(found))


def routing_table(agents: Iterable[str], links: Iterable[Pair]) -> dict[str, dict[str, str]]:
    """Return each agent's next hop to each other one, by breadth-first search; of equal ones the lesser name.

    O(agents * links). Written out: hosts of agents do without the graph library, which is half of their memory.
    """
    neighbours: dict[str, list[str]] = defaultdict(list)
    for one, other in links:
        neighbours[one].append(other)
        neighbours[other].append(one)
    for found in neighbours.values():
        found.sort()
    return {agent: _hops(agent, neighbours) for agent in agents}


def _hops(start: str, neighbours: Mapping[str, Sequence[str]]) -> dict[str, str]:
    hops = {one: one for one in neighbours.get(start, ())}
    waiting = deque(hops)
    while waiting:
        at = waiting.popleft()
        for further in neighbours.get(at, ()):
            if further != start and further not in hops:
                hops[further] = hops[at]
                waiting.append(further)
    return hops


async def establish(
    agents: Sequence[str],
    ask: Ask,
    *,
    links: Iterable[tuple[str, str]] | None,
    limits: Limits,
    timeout_s: float,
) -> Network:
    """Open the channels of a group and return the network.

    A link that could not be opened is listed with its reason; the others stay.

    Raises:
        InvalidInputError: as :func:`pairs_of`.
    """
    wanted = pairs_of(agents, links)
    by_initiator: dict[str, list[str]] = defaultdict(list)
    for one, other in wanted:
        by_initiator[one].append(other)
    turn = asyncio.Semaphore(ASKED_AT_ONCE)
    made: dict[Pair, bool] = {}
    failed: dict[Pair, str] = {}

    async def ask_one(agent: str, peers: Sequence[str]) -> None:
        async with turn:
            try:
                opened = await ask(agent, OpenChannels(peers=tuple(peers), timeout_s=timeout_s))
            except TocsinError as error:
                failed.update({(agent, peer): error.reason for peer in peers})
                return
        for one in opened.channels:
            if (agent, one.peer) not in wanted_set:
                continue
            if one.reason:
                failed[agent, one.peer] = one.reason
            else:
                made[agent, one.peer] = one.qkd

    wanted_set = set(wanted)
    step = min(PEERS_AT_ONCE, MAX_PEERS)
    await asyncio.gather(
        *(
            ask_one(agent, peers[at : at + step])
            for agent, peers in by_initiator.items()
            for at in range(0, len(peers), step)
        )
    )
    failed |= {pair: "no_answer" for pair in wanted if pair not in made and pair not in failed}
    group = tuple(sorted(set(agents)))
    return Network(
        group,
        dict(sorted(made.items())),
        dict(sorted(failed.items())),
        routing_table(group, made),
        SecurityParameters(SUITE, limits.messages, limits.age_s, sum(made.values())),
    )
