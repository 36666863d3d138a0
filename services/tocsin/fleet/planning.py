"""From a request to a plan: checked, assigned and connected, before anything starts. Pure.

The order of checks is the order in which a person mends: names, then dependencies, then agents, then the topology.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from itertools import zip_longest

from tocsin.contracts.errors import InvalidInputError
from tocsin.contracts.missions import (
    MissionRecord,
    MissionRequest,
    MissionState,
    Objective,
    ObjectiveRecord,
    ObjectiveState,
)
from tocsin.fleet.assignment import Assigned, Candidate, assign, bound_s
from tocsin.fleet.topology import make_topology


def plan(
    request: MissionRequest,
    candidates: Sequence[Candidate],
    *,
    mission: str,
    by: str,
    runner: str,
    proposed_ns: int,
    now_ns: int,
) -> MissionRecord:
    """Plan a mission.

    Args:
        request: what is wanted.
        candidates: the healthy agents that take objectives.
        mission: its name.
        by: who asked.
        runner: the fleet instance that runs it.
        proposed_ns: when the request was made.
        now_ns: now.

    Raises:
        InvalidInputError: ``duplicate_objective``, ``unknown_dependency``, ``cyclic_objectives``,
            ``no_such_agent``, ``no_eligible_agent``, ``too_few_agents``, ``too_large``, ``impossible_topology``,
            ``too_many_members``.
    """
    objectives = request.objectives
    in_order = sort_objectives(objectives)
    agents = select(request, candidates)
    if not agents:
        raise InvalidInputError(
            f"no agent is eligible for {objectives[0].name}: nobody who is healthy is among those named",
            reason="no_eligible_agent",
        )
    assigned = assign(objectives, agents)
    by_name = {agent.name: agent for agent in agents}
    members = spread(
        sorted({one.agent for one in assigned} | {s for one in assigned for s in one.standbys}), by_name
    )
    topology = make_topology(members, links=request.links, hops=request.hops)
    slots = sum(by_name[name].slots for name in {one.agent for one in assigned})
    return MissionRecord(
        mission=mission,
        title=request.title,
        by=by,
        runner=runner,
        state=MissionState.RUNNING,
        proposed_ns=proposed_ns,
        deadline_s=request.deadline_s,
        topology=topology,
        channels=request.channels,
        objectives=tuple(
            _record(objective, one, now_ns) for objective, one in zip(objectives, assigned, strict=True)
        ),
        bound_s=bound_s(in_order, slots),
    )


def sort_objectives(objectives: Sequence[Objective]) -> list[Objective]:
    """Return them so that each comes after those that it waits for.

    Raises:
        InvalidInputError: ``duplicate_objective``, ``unknown_dependency``, ``cyclic_objectives``.
    """
    by_name: dict[str, Objective] = {}
    for objective in objectives:
        if objective.name in by_name:
            raise InvalidInputError(f"{objective.name} is there twice", reason="duplicate_objective")
        by_name[objective.name] = objective
    for objective in objectives:
        if unknown := [name for name in objective.after if name not in by_name]:
            raise InvalidInputError(
                f"{objective.name} comes after {min(unknown)}, which is no objective of this mission",
                reason="unknown_dependency",
            )
    if not any(objective.after for objective in objectives):
        return list(objectives)
    try:
        order = list(TopologicalSorter({one.name: one.after for one in objectives}).static_order())
    except CycleError as error:
        raise InvalidInputError(
            f"these wait for one another: {' after '.join(error.args[1][:16])}", reason="cyclic_objectives"
        ) from error
    return [by_name[name] for name in order]


def select(request: MissionRequest, candidates: Iterable[Candidate]) -> list[Candidate]:
    """Return those of the candidates that the request allows.

    Raises:
        InvalidInputError: ``no_such_agent``: one is named that is not there, not healthy, or takes no objectives.
    """
    by_name = {agent.name: agent for agent in candidates}
    missing = sorted(set(request.agents) - set(by_name))
    if missing:
        raise InvalidInputError(
            f"{missing[0]} is not enrolled, not healthy, or takes no objectives", reason="no_such_agent"
        )
    return [
        by_name[name]
        for name in sorted(set(request.agents) or by_name)
        if (not request.roles or by_name[name].role in request.roles)
        and (not request.zones or by_name[name].zone in request.zones)
    ]


def spread(names: Iterable[str], by_name: Mapping[str, Candidate]) -> list[str]:
    """Return the names so that neighbours are on different hosts, as far as that is possible."""
    by_host: dict[str, list[str]] = {}
    for name in names:
        by_host.setdefault(by_name[name].host, []).append(name)
    rounds = zip_longest(*(by_host[host] for host in sorted(by_host)))
    return [name for one in rounds for name in one if name is not None]


def _record(objective: Objective, assigned: Assigned, now_ns: int) -> ObjectiveRecord:
    waits = bool(objective.after)
    # Of what was validated already: for a thousand of them it would cost as much as the assignment itself.
    return ObjectiveRecord.model_construct(
        objective=objective,
        state=ObjectiveState.WAITING if waits else ObjectiveState.ASSIGNED,
        agent=assigned.agent,
        epoch=1,
        accepted_ns=0,
        standbys=assigned.standbys,
        tried=(),
        since_ns=0 if waits else now_ns,
        ended_ns=0,
        summary="",
        reason="",
    )
