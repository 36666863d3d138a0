"""Topologies: whatever the number of agents, both promises hold."""

from __future__ import annotations

import math

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tocsin.contracts.errors import InvalidInputError
from tocsin.contracts.missions import Topology
from tocsin.fleet.topology import (
    USUAL_OFFSETS,
    cell_size,
    least_links,
    make_topology,
    offsets_for,
)


def names(n: int) -> list[str]:
    return [f"a-{number:04d}" for number in range(n)]


def graph_of(topology: Topology) -> nx.Graph[int]:
    """Build the graph from what the topology says, link by link, and not as it was made."""
    n = len(topology.members)
    graph: nx.Graph[int] = nx.Graph()
    graph.add_nodes_from(range(n))
    graph.add_edges_from((at, (at + offset) % n) for at in range(n) for offset in topology.offsets)
    return graph


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 320), factor=st.none() | st.floats(1.0, 6.0))
def test_it_is_connected_without_any_one_agent_with_short_paths_within_its_budget(
    n: int, factor: float | None
) -> None:
    links = None if factor is None else math.ceil(factor * n)
    topology = make_topology(names(n), links=links)
    graph = graph_of(topology)
    assert graph.number_of_edges() == topology.links
    assert nx.is_connected(graph)
    if n >= 3:
        assert nx.node_connectivity(graph) >= 2 if n < 60 else nx.is_biconnected(graph)
    assert topology.links <= (links if links is not None else max(USUAL_OFFSETS * n, least_links(n)))
    assert topology.hops == (nx.diameter(graph) if n > 1 else 0)
    if topology.offsets:
        count = len(topology.offsets)
        base = next(b for b in range(2, n + 2) if b**count >= n)
        # As many digits as there are offsets; where two fall together, one more may have been tried.
        assert topology.hops <= (count + 1) * base


@pytest.mark.parametrize(("n", "links"), [(3, 2), (100, 99), (2, 0)])
def test_a_budget_that_no_such_graph_has_is_refused(n: int, links: int) -> None:
    with pytest.raises(InvalidInputError, match="links") as caught:
        make_topology(names(n), links=links)
    assert caught.value.reason == "impossible_topology"


def test_paths_that_the_links_do_not_allow_are_refused_and_others_cost_no_more_than_they_must() -> None:
    with pytest.raises(InvalidInputError) as caught:
        make_topology(names(100), links=100, hops=10)
    assert caught.value.reason == "impossible_topology"
    assert make_topology(names(100), links=100).hops == 50
    short = make_topology(names(100), hops=10)
    assert (short.hops, short.links) == (9, 200)
    assert make_topology(names(847)).hops == 11


def test_too_many_members_are_refused() -> None:
    with pytest.raises(InvalidInputError) as caught:
        make_topology(names(4097))
    assert caught.value.reason == "too_many_members"


def test_the_small_cases() -> None:
    assert make_topology(names(1)).links == 0
    assert make_topology(names(2)).links == 1
    assert make_topology(names(3)).links == 3
    assert offsets_for(4, 2) == (1, 2)
    assert [cell_size(n) for n in (1, 2, 3, 9, 847)] == [1, 2, 3, 3, 29]
