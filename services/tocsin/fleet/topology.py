"""The graph over a mission's agents: connected, and still so without any one of them, with short paths. Pure.

A circulant graph (Bermond, Comellas and Hsu, "Distributed loop computer networks: a survey", 1995): the members stand
on a ring, and each is linked with those ``offsets`` places further, both ways. Offset 1 is the ring, so the graph
has a Hamiltonian cycle and stays connected without any one member. The others are the powers of ``base = ceil(n **
(1/k))`` for ``k`` offsets: each distance below n is a number of k digits to that base, so a path has at most ``k *
(base - 1)`` links; the true longest one is found by a search from one member, since all look alike from everywhere.

Links cost something (each is a channel), so as few offsets as meet the wanted path length are taken; without one, three
links for each agent. What cannot be is said before anything starts. networkx checks each graph that is made.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

from tocsin.contracts.errors import InvalidInputError, InvariantBrokenError
from tocsin.contracts.missions import MAX_MEMBERS, Topology

USUAL_OFFSETS = 3
"""Without a wanted path length: for 847 agents 2,541 links and paths of at most 11."""
KEPT = 64
"""Graphs kept; one depends on the number of members and its offsets alone."""


def make_topology(members: Sequence[str], *, links: int | None = None, hops: int | None = None) -> Topology:
    """Return the graph over some agents.

    Args:
        members: in the order in which they stand on the ring; neighbours there are linked.
        links: that there may be at most; None: three for each member.
        hops: that a path may have at most; None: whatever the links allow.

    Raises:
        InvalidInputError: ``impossible_topology``; ``too_many_members``.
    """
    n = len(members)
    if not 1 <= n <= MAX_MEMBERS:
        raise InvalidInputError(f"{n} members, at most {MAX_MEMBERS}", reason="too_many_members")
    needed = least_links(n)
    budget = max(USUAL_OFFSETS * n, needed) if links is None else links
    if budget < needed:
        raise InvalidInputError(
            f"{n} agents that stay connected without any one of them need {needed} links, not {budget}",
            reason="impossible_topology",
            advice=f"allow {needed} links or more",
        )
    best: tuple[int, ...] | None = None
    for count in range(1, most_offsets(n) + 1):
        offsets = offsets_for(n, count)
        if count_links(n, offsets) > budget or (links is None and hops is None and count > USUAL_OFFSETS):
            break
        best = offsets
        if hops is not None and diameter(n, offsets) <= hops:
            break
    offsets = best or ()
    found = diameter(n, offsets)
    if hops is not None and found > hops:
        raise InvalidInputError(
            f"no path longer than {hops} among {n} agents needs more than {budget} links: with these it is {found}",
            reason="impossible_topology",
            advice="allow more links, or longer paths",
        )
    return Topology(
        members=tuple(members),
        offsets=offsets,
        links=count_links(n, offsets),
        hops=found,
        cell=cell_size(n),
    )


def least_links(n: int) -> int:
    """Return how many links the condition needs: two for each end, or all that there are."""
    return n if n >= 3 else n - 1


def most_offsets(n: int) -> int:
    """Return how many offsets are tried: with so many, base 2, a path is no longer than log2(n)."""
    return max(1, math.ceil(math.log2(n))) if n > 1 else 1


@lru_cache(maxsize=KEPT)
def offsets_for(n: int, count: int) -> tuple[int, ...]:
    """Return the offsets: powers of ``ceil(n ** (1/count))``, each taken the shorter way round."""
    if n < 2:
        return ()
    base = 2
    while base**count < n:
        base += 1
    found = {min(base**power % n, -(base**power) % n) for power in range(count)}
    return tuple(sorted(found - {0}))


def count_links(n: int, offsets: Sequence[int]) -> int:
    """Return how many links there are; an offset of half the ring links every pair once."""
    return sum(n // 2 if 2 * offset == n else n for offset in offsets)


@lru_cache(maxsize=KEPT)
def diameter(n: int, offsets: tuple[int, ...]) -> int:
    """Return the longest shortest path, after networkx has agreed that the graph is sound. O(links)."""
    if n < 2:
        return 0
    import networkx as nx  # noqa: PLC0415 - only what plans missions needs it

    graph = nx.circulant_graph(n, list(offsets))
    if not (nx.is_biconnected(graph) if n > 2 else nx.is_connected(graph)):
        raise InvariantBrokenError(f"offsets {offsets} of {n} do not hold together", reason="bad_topology")
    return int(max(nx.single_source_shortest_path_length(graph, 0).values()))


def cell_size(n: int) -> int:
    """Return how many consecutive members make a group: about the root of their number, and three at least."""
    return max(1, min(n, max(3, math.isqrt(n))))
