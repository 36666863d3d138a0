"""The bounds of a fleet: what is used of each, and which comes first."""

from __future__ import annotations

from functools import partial

import pytest
from _enrolled import Usage, plan
from _limits import first, limits


def _usage(files: int) -> Usage:
    return Usage(cpu_s=1.0, rss_mib=2.0, uss_mib=1.0, files=files, files_most=1000, threads=3)


def test_the_first_limit_is_the_one_of_which_most_is_used() -> None:
    measured = partial(limits, agents=500, hosts=2, keys=2, cores=2, uss_mib=100.0, memory_mib=1000.0)
    found = measured(cpu_cores=0.1, usage={"hosts": _usage(250)})
    assert [one.share for one in found] == sorted((one.share for one in found), reverse=True)
    assert first(found).what == "open files, hosts"
    assert first(found).told()["agents_there"] == 2000
    busy = first(measured(cpu_cores=1.0, usage={"hosts": _usage(250)}))
    assert busy.what == "cores, idle"
    assert busy.share == pytest.approx(0.5)


def test_what_is_not_used_has_no_number_of_agents() -> None:
    idle = limits(
        agents=5,
        hosts=1,
        keys=1,
        cpu_cores=0.0,
        cores=1,
        uss_mib=1.0,
        memory_mib=9.0,
        usage={"hosts": _usage(1)},
    )
    assert idle[-1].told()["agents_there"] == 0


def test_agents_are_spread_over_hosts_and_roles() -> None:
    planned = plan(15, 4)
    assert len({agent.name for agent in planned}) == 15
    assert len({agent.host for agent in planned}) == 4
    assert len({agent.role for agent in planned}) == 7
