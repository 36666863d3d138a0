"""A mission's topology as its members see it."""

from __future__ import annotations

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tocsin.agent.mesh import links, neighbours, next_hop, steps
from tocsin.contracts.errors import InvalidInputError
from tocsin.fleet.topology import make_topology


def names(n: int) -> list[str]:
    return [f"a-{number:04}" for number in range(n)]


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 200), data=st.data())
def test_the_links_are_the_graphs_edges_and_a_neighbour_is_one_of_theirs(n: int, data: st.DataObject) -> None:
    topology = make_topology(names(n))
    found = links(topology)
    assert len(found) == len(set(found)) == topology.links
    assert all(one < other for one, other in found)
    name = data.draw(st.sampled_from(topology.members))
    ends = [set(pair) - {name} for pair in found if name in pair]
    assert set(neighbours(topology, name)) == {one for (one,) in ends}


@settings(max_examples=25, deadline=None)
@given(n=st.integers(2, 200), data=st.data())
def test_a_message_that_follows_the_table_comes_by_a_shortest_path(n: int, data: st.DataObject) -> None:
    topology = make_topology(names(n))
    graph = nx.Graph(links(topology))
    start, end = data.draw(st.sampled_from(topology.members)), data.draw(st.sampled_from(topology.members))
    at, hops = start, 0
    while at != end:
        onward = next_hop(topology, at, end)
        assert onward in neighbours(topology, at)
        at, hops = onward, hops + 1
        assert hops <= topology.hops
    assert hops == nx.shortest_path_length(graph, start, end)
    assert len(steps(n, topology.offsets)) == n


def test_who_is_no_member_has_no_way() -> None:
    topology = make_topology(names(5))
    for one, other in (("a-0000", "nobody"), ("nobody", "a-0000")):
        with pytest.raises(InvalidInputError) as caught:
            next_hop(topology, one, other)
        assert caught.value.reason == "not_a_member"
