"""Who does what, at the least cost. Pure; scipy's solver, and a cost of our own.

The cost of giving an objective to an agent, as the q-th that it gets in this mission (q from 0), is

    weight * (LOAD * (load / mean + q) + ZONE * elsewhere + SPARE * surplus)

*load* is the work that the agent has in hand, in units, and *mean* the mean work of this mission's objectives, so an
agent that is busy with one usual objective costs as much as one that gets a second. *elsewhere* is 1 if the objective
prefers another zone; a zone is a wish, and a role or a capability is not: who lacks one is not eligible. *surplus* is
the share of the agent's capabilities that the objective does not need: the versatile are left for what needs them.

Each agent has as many columns of the matrix as objectives may wait for it; the sum of the costs is least over all
assignments (scipy.optimize.linear_sum_assignment: Crouse, "On implementing 2D rectangular assignment algorithms",
2016). An objective's standbys are the next cheapest eligible agents on other hosts, so that a host's end takes no
objective together with those who would take it over; each duty as a standby counts as ``DUTY`` of load.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from tocsin.contracts.errors import InvalidInputError
from tocsin.contracts.identifiers import Role
from tocsin.contracts.missions import MAX_STANDBYS, Objective

if TYPE_CHECKING:
    import numpy as np

    Costs: TypeAlias = np.ndarray[tuple[int, int], np.dtype[np.float64]]

LOAD, ZONE, SPARE = 1.0, 0.5, 0.1
"""What one usual objective in hand costs, another zone, and all capabilities to spare."""
DUTY = 0.25
"""What a duty as standby counts as: it is rarely called."""
MAX_QUEUE = 64
"""Objectives of one mission that wait for one agent at most."""
MAX_CELLS = 8_000_000
"""Of the matrix, 64 MB: the solver needs a few seconds at most."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """An agent that could be given something."""

    name: str
    role: Role
    host: str
    zone: str
    capabilities: frozenset[str]
    load: float = 0.0
    """Units of work in hand."""
    slots: int = 1
    """Objectives that it works at at once."""


@dataclass(frozen=True, slots=True)
class Assigned:
    """Who has an objective, and who stands by."""

    agent: str
    standbys: tuple[str, ...]


def eligible(objective: Objective, agent: Candidate) -> bool:
    """Tell whether an agent may do it: by role and capabilities."""
    return objective.role in {None, agent.role} and agent.capabilities.issuperset(objective.capabilities)


def cost(objective: Objective, agent: Candidate, *, mean: float, queued: float = 0.0) -> float:
    """Return what it costs; see the formula above."""
    elsewhere = objective.zone is not None and objective.zone != agent.zone
    needless = len(agent.capabilities) - len(objective.capabilities)
    surplus = max(0, needless) / len(agent.capabilities) if agent.capabilities else 0.0
    return objective.weight * (LOAD * (agent.load / mean + queued) + ZONE * elsewhere + SPARE * surplus)


def assign(objectives: Sequence[Objective], agents: Sequence[Candidate]) -> list[Assigned]:
    """Give each objective to an agent, at the least cost. O(n^3) at worst for n objectives and columns.

    Raises:
        InvalidInputError: ``no_eligible_agent``, which names the objective; ``too_few_agents``; ``too_large``.
    """
    import numpy as np  # noqa: PLC0415 - only what plans missions needs it
    from scipy.optimize import linear_sum_assignment  # noqa: PLC0415 - only what plans missions needs it

    mean = sum(objective.work for objective in objectives) / len(objectives)
    costs = _costs(objectives, agents, mean)
    nobody = np.flatnonzero(~np.isfinite(costs).any(axis=1))
    if len(nobody):
        objective = objectives[int(nobody[0])]
        raise InvalidInputError(
            f"no agent is eligible for {objective.name}: {_wanted(objective)}", reason="no_eligible_agent"
        )
    weights = np.array([objective.weight for objective in objectives])
    queue = -(-len(objectives) // len(agents))
    while True:
        if queue > MAX_QUEUE:
            raise InvalidInputError(
                f"more than {MAX_QUEUE} objectives would wait for one agent", reason="too_few_agents"
            )
        if len(objectives) * len(agents) * queue > MAX_CELLS:
            raise InvalidInputError(
                f"{len(objectives)} objectives for {len(agents)} agents are too many at once",
                reason="too_large",
                advice="name fewer agents, or make several missions of it",
            )
        # Agent by agent; its later places cost more.
        places = np.tile(np.arange(queue), len(agents))
        matrix = costs
        if queue > 1:
            matrix = np.repeat(costs, queue, axis=1) + LOAD * weights[:, None] * places[None, :]
        try:
            _, columns = linear_sum_assignment(matrix)
        except ValueError:  # no assignment gives everybody a place: the eligible ones have too few
            queue *= 2
            continue
        chosen = columns // queue
        return _with_standbys(costs, weights, chosen, agents)


def cheapest(objective: Objective, agents: Iterable[Candidate], *, mean: float) -> Candidate | None:
    """Return the cheapest eligible agent, the first by name among equals; None if there is none."""
    fit = [agent for agent in agents if eligible(objective, agent)]
    return min(fit, key=lambda agent: (cost(objective, agent, mean=mean), agent.name), default=None)


def bound_s(objectives: Sequence[Objective], slots: int) -> float:
    """Return a time that no schedule is faster than, in seconds.

    The largest of: all work over all slots of the agents that take part; the longest objective; the longest chain of
    objectives that wait for one another (Graham, "Bounds on multiprocessing timing anomalies", 1969).

    Args:
        objectives: in an order in which each comes after those that it waits for.
        slots: objectives that the agents work at at once, all together.
    """
    ends: dict[str, float] = {}
    for objective in objectives:
        ends[objective.name] = objective.work + max((ends[name] for name in objective.after), default=0.0)
    return max(sum(objective.work for objective in objectives) / max(slots, 1), *ends.values())


def _costs(objectives: Sequence[Objective], agents: Sequence[Candidate], mean: float) -> Costs:
    """Return the cost of each objective (row) for each agent (column); infinite where it is not eligible."""
    import numpy as np  # noqa: PLC0415 - only what plans missions needs it

    # Many objectives are alike but for their names, and so are many agents: each kind is looked at once.
    rows: dict[tuple[object, ...], int] = {}
    kinds: list[Objective] = []
    which = []
    for one in objectives:
        key = (one.role, one.capabilities, one.zone)
        if key not in rows:
            rows[key] = len(kinds)
            kinds.append(one.model_copy(update={"weight": 1.0}))
        which.append(rows[key])
    alike: dict[tuple[object, ...], int] = {}
    models: list[Candidate] = []
    columns = []
    for agent in agents:
        kind = (agent.role, agent.zone, agent.capabilities, agent.load)
        if kind not in alike:
            alike[kind] = len(models)
            models.append(agent)
        columns.append(alike[kind])
    table = np.array(
        [[cost(one, a, mean=mean) if eligible(one, a) else np.inf for a in models] for one in kinds]
    )
    weights = np.array([objective.weight for objective in objectives])
    costs: Costs = table[np.ix_(which, columns)] * weights[:, None]
    return costs


def _with_standbys(
    costs: Costs, weights: object, chosen: object, agents: Sequence[Candidate]
) -> list[Assigned]:
    import numpy as np  # noqa: PLC0415 - only what plans missions needs it

    hosts = np.unique([agent.host for agent in agents], return_inverse=True)[1]
    # Added to the costs of those on the same host: they are no standbys.
    apart = {host: np.where(hosts == host, np.inf, 0.0) for host in set(hosts.tolist())}
    primary = np.asarray(chosen)
    busy = np.bincount(primary, minlength=len(agents)) * LOAD
    found = []
    for row, (agent, weight) in enumerate(zip(primary.tolist(), np.asarray(weights).tolist(), strict=True)):
        spare = costs[row] + weight * busy + apart[int(hosts[agent])]
        standbys = []
        for _ in range(min(MAX_STANDBYS, len(agents))):
            best = int(spare.argmin())
            if spare[best] == np.inf:
                break
            standbys.append(agents[best].name)
            busy[best] += DUTY
            spare[best] = np.inf
        found.append(Assigned(agents[agent].name, tuple(standbys)))
    return found


def _wanted(objective: Objective) -> str:
    role = objective.role.value if objective.role else "any role"
    able = f" with {', '.join(objective.capabilities)}" if objective.capabilities else ""
    return f"{role}{able}, healthy, and among those named"


@dataclass(frozen=True, slots=True)
class Spare:
    """Who could take an objective over, now."""

    candidates: Callable[[], Mapping[str, Candidate]]
    """The agents that are fit now, by name."""

    def is_fit(self, name: str) -> bool:
        """Tell whether an agent is fit."""
        return name in self.candidates()

    def cheapest(self, objective: Objective, but: frozenset[str], mean: float) -> str | None:
        """Return the cheapest agent that is fit and eligible, but for those that have had it. O(agents)."""
        others = (agent for name, agent in self.candidates().items() if name not in but)
        found = cheapest(objective, others, mean=mean)
        return found.name if found is not None else None
