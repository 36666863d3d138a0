"""A mission's topology as its members see it: links, neighbours, routes. Pure.

Members stand on a ring and are linked with those ``offsets`` places further, both ways. The graph looks the same from
every member, so one table of first steps serves them all (how such a graph is chosen: :mod:`tocsin.fleet.topology`).
"""

from __future__ import annotations

from functools import lru_cache

from tocsin.contracts.errors import InvalidInputError
from tocsin.contracts.missions import Topology

KEPT = 64
"""Tables kept; one depends on the number of members and the offsets alone."""

Pair = tuple[str, str]
"""Two agents' names, the lesser first."""


def neighbours(topology: Topology, name: str) -> tuple[str, ...]:
    """Return the members that one is linked with, in the ring's order.

    Raises:
        InvalidInputError: ``not_a_member``.
    """
    members, at = topology.members, place_of(topology, name)
    places = {(at + way * offset) % len(members) for offset in topology.offsets for way in (1, -1)}
    return tuple(members[place] for place in sorted(places - {at}))


def links(topology: Topology) -> tuple[Pair, ...]:
    """Return all links, each once, in order."""
    members = topology.members
    pairs = (
        (members[at], members[(at + offset) % len(members)])
        for at in range(len(members))
        for offset in topology.offsets
    )
    return tuple(sorted({(min(pair), max(pair)) for pair in pairs if pair[0] != pair[1]}))


def next_hop(topology: Topology, name: str, member: str) -> str:
    """Return the neighbour by which ``name`` reaches ``member`` in the fewest links: the member itself if it is one.

    Raises:
        InvalidInputError: ``not_a_member``.
    """
    n, at, to = len(topology.members), place_of(topology, name), place_of(topology, member)
    return topology.members[(at + steps(n, topology.offsets)[(to - at) % n]) % n]


def place_of(topology: Topology, name: str) -> int:
    """Return a member's place on the ring.

    Raises:
        InvalidInputError: ``not_a_member``.
    """
    try:
        return topology.members.index(name)
    except ValueError:
        raise InvalidInputError(f"{name[:64]} is no member of the mission", reason="not_a_member") from None


@lru_cache(maxsize=KEPT)
def steps(n: int, offsets: tuple[int, ...]) -> tuple[int, ...]:
    """Return the first step, in places, of a shortest path over each distance round the ring. O(links)."""
    first = [0] * n
    seen = {0}
    front = [0]
    while front:
        reached = []
        for at in front:
            for step in (*offsets, *(-one for one in offsets)):
                to = (at + step) % n
                if to not in seen:
                    seen.add(to)
                    first[to] = step if at == 0 else first[at]
                    reached.append(to)
        front = reached
    return tuple(first)
