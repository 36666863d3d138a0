"""The small parts of channels: payloads, allowances, networks."""

from __future__ import annotations

from itertools import combinations

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tocsin.agent.channels import payload as payloads
from tocsin.agent.channels.limits import MAX_BUCKETS, PAIR, Allowance, Buckets, Rate
from tocsin.agent.channels.network import MAX_AGENTS, pairs_of, routing_table
from tocsin.contracts.errors import ExhaustedError, InvalidInputError, TocsinError
from tocsin.contracts.operations import PingRequest
from tocsin.contracts.routing import Intelligence

NAMES = [f"agent-{n}" for n in range(7)]
LINKS = st.lists(st.sampled_from(list(combinations(NAMES, 2))), unique=True)


@given(st.binary(max_size=100))
def test_bytes_come_out_as_they_went_in(data: bytes) -> None:
    assert payloads.decode(payloads.encode(data)) == (payloads.Kind.BYTES, data, None)


@given(st.text(max_size=100))
def test_a_message_comes_out_as_it_went_in(text: str) -> None:
    known = Intelligence(summary=text)
    read = payloads.decode(payloads.encode(known))
    assert (read.kind, read.data) == (payloads.Kind.MESSAGE, known)


@given(st.binary(max_size=80) | st.binary(max_size=80).map(lambda tail: b"\x02\x0cintelligence" + tail))
def test_any_bytes_are_a_payload_or_one_of_our_errors(data: bytes) -> None:
    try:
        payloads.decode(data)
    except TocsinError as error:
        assert error.reason in {"bad_payload", "bad_body"}  # noqa: PT017 - it may pass


def test_what_agents_do_not_send_one_another_does_not_travel() -> None:
    with pytest.raises(InvalidInputError) as refused:
        payloads.encode(PingRequest())
    assert refused.value.reason == "bad_body"


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(0, 2)), max_size=80))
def test_nobody_takes_more_than_the_rate_allows(steps: list[tuple[float, int]]) -> None:
    buckets, now_s, taken = Buckets(Rate(2.0, 4.0)), 0.0, [0, 0, 0]
    for pause_s, who in steps:
        now_s += pause_s
        taken[who] += buckets.take(str(who), now_s)
    assert all(count <= 4 + 2 * now_s + 1e-6 for count in taken)
    assert len(steps) == 0 or sum(taken) > 0


def test_one_peer_s_flood_leaves_others_their_answers() -> None:
    allowance = Allowance()
    for _ in range(int(PAIR.burst)):
        allowance.require("loud", "agent", 1.0)
    with pytest.raises(ExhaustedError) as refused:
        allowance.require("loud", "agent", 1.0)
    assert refused.value.reason == "handshake_flood"
    allowance.require("quiet", "agent", 1.0)
    allowance.require("loud", "agent", 2.0)


def test_the_number_of_buckets_is_bounded() -> None:
    buckets = Buckets(PAIR)
    for number in range(MAX_BUCKETS + 5):
        buckets.take(str(number), 0.0)
    assert len(buckets) == MAX_BUCKETS


@given(LINKS)
def test_routes_are_shortest_paths(links: list[tuple[str, str]]) -> None:
    graph = nx.Graph(links)
    graph.add_nodes_from(NAMES)
    table = routing_table(NAMES, links)
    for one in NAMES:
        reachable = nx.single_source_shortest_path_length(graph, one)
        assert set(table[one]) == set(reachable) - {one}
        for other, hop in table[one].items():
            assert graph.has_edge(one, hop)
            assert nx.shortest_path_length(graph, hop, other) == reachable[other] - 1


@given(LINKS)
def test_links_are_taken_once_whichever_way_they_are_named(links: list[tuple[str, str]]) -> None:
    turned = [(other, one) for one, other in links]
    assert pairs_of(NAMES, [*links, *turned]) == tuple(sorted(links))


@pytest.mark.parametrize(
    ("agents", "links", "reason"),
    [
        (["a"], None, "too_few_agents"),
        (["a", "a"], None, "too_few_agents"),
        ([f"n{n}" for n in range(MAX_AGENTS + 1)], None, "too_many_agents"),
        (["a", "b"], [("a", "a")], "bad_link"),
        (["a", "b"], [("a", "c")], "bad_link"),
    ],
)
def test_no_such_network(agents: list[str], links: list[tuple[str, str]] | None, reason: str) -> None:
    with pytest.raises(InvalidInputError) as refused:
        pairs_of(agents, links)
    assert refused.value.reason == reason


def test_all_pairs_of_a_hundred_agents_are_4950() -> None:
    assert len(pairs_of([f"n{n}" for n in range(100)])) == 4950
