"""Who does what: at the least cost, and only who may."""

from __future__ import annotations

from itertools import pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tocsin.contracts.errors import InvalidInputError
from tocsin.contracts.identifiers import Role
from tocsin.contracts.missions import MissionRequest, Objective
from tocsin.fleet.assignment import LOAD, MAX_QUEUE, Candidate, assign, bound_s, cheapest, cost, eligible
from tocsin.fleet.planning import plan, sort_objectives, spread

ROLES = [Role.HUNTER, Role.SENTINEL]
ZONES = ["north", "south"]


def agent(
    name: str, role: Role = Role.HUNTER, host: str = "h1", zone: str = "north", **more: object
) -> Candidate:
    return Candidate(name, role, host, zone, frozenset(), **more)  # type: ignore[arg-type]  # a test's own


agents = st.lists(
    st.builds(
        Candidate,
        name=st.just(""),
        role=st.sampled_from(ROLES),
        host=st.sampled_from(["h1", "h2", "h3"]),
        zone=st.sampled_from(ZONES),
        capabilities=st.frozensets(st.sampled_from(["dig", "fly"])),
        load=st.floats(0, 10),
    ),
    min_size=1,
    max_size=6,
).map(lambda some: [Candidate(f"a-{n}", *_rest(one)) for n, one in enumerate(some)])
wishes = st.lists(
    st.builds(
        Objective,
        name=st.just("x"),
        role=st.none() | st.sampled_from(ROLES),
        capabilities=st.sampled_from([(), ("dig",), ("dig", "fly")]),
        zone=st.none() | st.sampled_from(ZONES),
        work=st.floats(0.1, 10),
        weight=st.floats(0.1, 10),
    ),
    min_size=1,
    max_size=4,
).map(lambda some: [one.model_copy(update={"name": f"o-{n}"}) for n, one in enumerate(some)])


def _rest(one: Candidate) -> tuple[Role, str, str, frozenset[str], float]:
    return one.role, one.host, one.zone, one.capabilities, one.load


def total(objectives: list[Objective], chosen: list[Candidate]) -> float:
    """Return what an assignment costs: the dearest first at each agent, which is best for later places."""
    mean = sum(one.work for one in objectives) / len(objectives)
    found = sum(cost(one, by, mean=mean) for one, by in zip(objectives, chosen, strict=True))
    for by in {one.name for one in chosen}:
        weights = sorted(
            (one.weight for one, c in zip(objectives, chosen, strict=True) if c.name == by), reverse=True
        )
        found += sum(LOAD * weight * place for place, weight in enumerate(weights))
    return found


@settings(max_examples=80, deadline=None)
@given(objectives=wishes, some=agents)
def test_no_other_assignment_costs_less(objectives: list[Objective], some: list[Candidate]) -> None:
    everyone = [[one for one in some if eligible(objective, one)] for objective in objectives]
    if not all(everyone):
        with pytest.raises(InvalidInputError) as caught:
            assign(objectives, some)
        assert caught.value.reason == "no_eligible_agent"
        return
    found = assign(objectives, some)
    by_name = {one.name: one for one in some}
    mine = [by_name[one.agent] for one in found]
    queue = -(-len(objectives) // len(some))
    best = min(
        total(objectives, list(chosen))
        for chosen in product(*everyone)
        # The least number of places for each that suffices is enough to be best among.
        if max(sum(c is one for c in chosen) for one in some) <= max(queue, _longest(mine))
    )
    assert total(objectives, mine) == pytest.approx(best)
    for objective, one in zip(objectives, found, strict=True):
        assert eligible(objective, by_name[one.agent])
        for standby in one.standbys:
            assert eligible(objective, by_name[standby])
            assert by_name[standby].host != by_name[one.agent].host
        assert len({one.agent, *one.standbys}) == 1 + len(one.standbys)


def _longest(chosen: list[Candidate]) -> int:
    return max(sum(c is one for c in chosen) for one in chosen)


def test_who_is_busy_elsewhere_or_versatile_is_spared() -> None:
    free, busy = agent("a-1", load=0.0), agent("a-2", load=5.0)
    (one,) = assign([Objective(name="x", work=1.0)], [busy, free])
    assert one.agent == "a-1"
    far = agent("a-3", zone="south")
    (one,) = assign([Objective(name="x", zone="south")], [free, far])
    assert one.agent == "a-3"
    able = Candidate("a-0", Role.HUNTER, "h1", "north", frozenset({"fly"}))
    (one,) = assign([Objective(name="x")], [able, free])
    assert one.agent == "a-1"


def test_several_objectives_of_one_agent_and_one_too_many() -> None:
    one = agent("a-1")
    found = assign([Objective(name=f"o-{n}") for n in range(MAX_QUEUE)], [one])
    assert {entry.agent for entry in found} == {"a-1"}
    assert {entry.standbys for entry in found} == {()}
    crowd = [agent(f"a-{n}", Role.SENTINEL) for n in range(2, 40)]
    with pytest.raises(InvalidInputError) as caught:
        assign([Objective(name=f"o-{n}", role=Role.HUNTER) for n in range(MAX_QUEUE + 1)], [one, *crowd])
    assert caught.value.reason == "too_few_agents"
    with pytest.raises(InvalidInputError) as huge:
        assign([Objective(name=f"o-{n}") for n in range(1024)], [agent(f"a-{n}") for n in range(9000)])
    assert huge.value.reason == "too_large"


def test_standbys_are_spread() -> None:
    primary = [agent("a-0", host="h1"), agent("a-1", host="h1")]
    spare = [agent(f"b-{n}", host="h2", load=9.0) for n in range(4)]
    found = assign([Objective(name="x"), Objective(name="y")], [*primary, *spare])
    assert {one.agent for one in found} == {"a-0", "a-1"}
    assert len({name for one in found for name in one.standbys}) == 4


def test_the_cheapest_among_equals_is_the_first_by_name() -> None:
    some = [agent("a-2"), agent("a-1")]
    found = cheapest(Objective(name="x"), some, mean=1.0)
    assert found is not None
    assert found.name == "a-1"
    assert cheapest(Objective(name="x", role=Role.ADMIN), some, mean=1.0) is None


def test_the_bound_is_the_largest_of_three() -> None:
    chain = [Objective(name="a", work=2), Objective(name="b", work=3, after=("a",))]
    assert bound_s(chain, 10) == 5
    assert bound_s([Objective(name=f"o-{n}", work=1) for n in range(10)], 2) == 5
    assert bound_s([Objective(name="a", work=4), Objective(name="b", work=1)], 2) == 4


def test_an_order_is_found_or_the_circle_is_named() -> None:
    chain = [Objective(name="b", after=("a",)), Objective(name="a")]
    assert [one.name for one in sort_objectives(chain)] == ["a", "b"]
    with pytest.raises(InvalidInputError, match="wait for one another") as caught:
        sort_objectives([Objective(name="a", after=("b",)), Objective(name="b", after=("a",))])
    assert caught.value.reason == "cyclic_objectives"


def test_neighbours_on_the_ring_are_on_different_hosts() -> None:
    some = {f"a-{n}": agent(f"a-{n}", host=f"h{n // 3}") for n in range(9)}
    ring = spread(sorted(some), some)
    assert sorted(ring) == sorted(some)
    assert all(some[x].host != some[y].host for x, y in pairwise(ring))


def test_a_plan_keeps_to_whom_the_request_names() -> None:
    some = [agent("a-1"), agent("a-2", zone="south"), agent("a-3", Role.SENTINEL)]

    def planned(**more: object) -> set[str]:
        request = MissionRequest(objectives=(Objective(name="x"),), **more)
        record = plan(request, some, mission="m", by="b", runner="r", proposed_ns=1, now_ns=2)
        return {record.objectives[0].agent}

    assert planned(agents=("a-2",)) == {"a-2"}
    assert planned(zones=("south",)) == {"a-2"}
    assert planned(roles=(Role.SENTINEL,)) == {"a-3"}
    with pytest.raises(InvalidInputError) as caught:
        planned(agents=("a-1",), roles=(Role.SENTINEL,))
    assert caught.value.reason == "no_eligible_agent"
    with pytest.raises(InvalidInputError) as unknown:
        planned(agents=("a-9",))
    assert unknown.value.reason == "no_such_agent"
