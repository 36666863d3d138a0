from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tocsin.cli.fleetplan import ESSENTIAL, SHARES, enrolment_tokens, plan_agents
from tocsin.contracts.errors import InvalidInputError
from tocsin.contracts.identifiers import Role


def test_forty_agents_have_the_documented_shares_of_all_eight_roles() -> None:
    assert Counter(agent.role for agent in plan_agents(40, 4)) == Counter(SHARES)


@given(st.integers(len(ESSENTIAL), 300), st.integers(1, 6))
def test_every_fleet_is_complete_distinct_and_even(count: int, hosts: int) -> None:
    agents = plan_agents(count, min(hosts, count))
    assert len({agent.name for agent in agents}) == count
    assert set(ESSENTIAL) <= {agent.role for agent in agents}
    carried = Counter(agent.host for agent in agents)
    assert max(carried.values()) - min(carried.values()) <= 1


@pytest.mark.parametrize(
    ("count", "hosts", "reason"),
    [
        (2, 1, "too_few_participants"),
        (0, 1, "too_few_participants"),
        (5, 1, "too_few_agents"),
        (1001, 4, "too_many_agents"),
        (40, 0, "bad_hosts"),
        (10, 11, "bad_hosts"),
    ],
)
def test_a_fleet_that_cannot_do_the_job_is_refused_before_anything_starts(
    count: int, hosts: int, reason: str
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        plan_agents(count, hosts)
    assert caught.value.reason == reason


def test_tokens_cover_each_agent_once_and_an_admin_never_shares() -> None:
    agents = plan_agents(40, 4)
    names: list[str] = []
    for host in {agent.host for agent in agents}:
        for token in enrolment_tokens(agents, host, bytes(32)):
            roles = {member.role for member in token.agents}
            assert Role.ADMIN not in roles or (len(token.agents) == 1 and not token.names_host)
            names += [member.name for member in token.agents]
    assert sorted(names) == sorted(agent.name for agent in agents)


def test_tokens_of_another_fleet_have_other_secrets_and_ids() -> None:
    agents = plan_agents(6, 1)
    one, other = (enrolment_tokens(agents, "host-1", bytes([seed]) * 32) for seed in (1, 2))
    assert {t.token_id for t in one}.isdisjoint({t.token_id for t in other})
    assert {t.secret_hex for t in one}.isdisjoint({t.secret_hex for t in other})
