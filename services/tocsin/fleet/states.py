"""The states of an agent and what leads from one to the next: one table, :data:`TRANSITIONS`. Pure.

``docs/reference/agent-states.md`` is made from this table. What is not in it changes nothing: an agent that is
quarantined does not become healthy by a heartbeat, and nobody leaves ``revoked`` but by a new key.

A doubted agent that falls silent or is gone is shown as that, and is doubted again as soon as it is heard, unless the
doubt has been answered meanwhile: :class:`tocsin.fleet.health.HealthBook` sees to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

from tocsin.contracts.fleet import AgentState

_S = AgentState


class Happening(StrEnum):
    """What can happen to an agent, as fleet learns of it."""

    HEARD = "heard"
    QUIET = "quiet"
    LOST = "lost"
    DOUBTED = "doubted"
    CLEARED = "cleared"
    CONDEMNED = "condemned"
    RELEASED = "released"
    REVOKED = "revoked"
    ENROLLED = "enrolled"


MEANING: Mapping[Happening, str] = MappingProxyType(
    {
        Happening.HEARD: "its own host's heartbeat names it",
        Happening.QUIET: "no heartbeat has named it for the period (30 s)",
        Happening.LOST: "its host's connection has ended, and the host does not answer",
        Happening.DOUBTED: "its attestation failed, or its score is below the doubtful mark",
        Happening.CLEARED: "its attestation holds again, and its score has recovered",
        Happening.CONDEMNED: "an operator quarantines it, or its score is below the threshold",
        Happening.RELEASED: "an operator releases it",
        Happening.REVOKED: "its key was revoked",
        Happening.ENROLLED: "it was enrolled with another key, or on another host",
    }
)

STATES: Mapping[AgentState, str] = MappingProxyType(
    {
        _S.ENROLLED: "enrolled, and not heard yet by this fleet",
        _S.HEALTHY: "heard within the period, and nothing speaks against it",
        _S.SILENT: "not heard within the period",
        _S.GONE: "its host's process has ended",
        _S.SUSPECT: "lives, and something speaks against it: it is given no new work",
        _S.QUARANTINED: "told nothing sensitive; what it says is refused; not counted in the next epoch",
        _S.REVOKED: "its key counts no more, for anybody",
    }
)

_LIVING = (_S.ENROLLED, _S.HEALTHY, _S.SILENT, _S.GONE, _S.SUSPECT)

TRANSITIONS: Mapping[tuple[AgentState, Happening], AgentState] = MappingProxyType(
    {
        **{(one, Happening.HEARD): _S.HEALTHY for one in (_S.ENROLLED, _S.SILENT, _S.GONE)},
        **{(one, Happening.QUIET): _S.SILENT for one in (_S.HEALTHY, _S.SUSPECT)},
        **{(one, Happening.LOST): _S.GONE for one in (_S.ENROLLED, _S.HEALTHY, _S.SILENT, _S.SUSPECT)},
        **{(one, Happening.DOUBTED): _S.SUSPECT for one in (_S.ENROLLED, _S.HEALTHY)},
        (_S.SUSPECT, Happening.CLEARED): _S.HEALTHY,
        **{(one, Happening.CONDEMNED): _S.QUARANTINED for one in _LIVING},
        (_S.QUARANTINED, Happening.RELEASED): _S.ENROLLED,
        **{(one, Happening.REVOKED): _S.REVOKED for one in (*_LIVING, _S.QUARANTINED)},
        **{(one, Happening.ENROLLED): _S.ENROLLED for one in (*_LIVING, _S.REVOKED)},
    }
)
"""The next state; a pair that is missing changes nothing."""

UNFIT = frozenset({_S.SILENT, _S.GONE, _S.QUARANTINED, _S.REVOKED})
"""States in which an agent does no work: what it has in hand is another's from then on."""


def after(state: AgentState, happening: Happening) -> AgentState:
    """Return the state that follows. O(1)."""
    return TRANSITIONS.get((state, happening), state)
