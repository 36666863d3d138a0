"""Who is quarantined, from fleet's signed records: what every process refuses, and whom it seals to nobody.

A quarantined agent is told nothing sensitive, and what it says is refused with reason ``quarantined``, counted and
audited, but for what shows that it lives and what it runs (``FROM_QUARANTINE``). What was said before is refused too
where it comes late: an agent is rarely found out at once.

Does not protect against who deletes records in the broker: whoever knew of a quarantine still does, and a process that
starts afterwards does not learn of it before fleet writes it anew.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tocsin.contracts.catalogue import FROM_QUARANTINE, STANDINGS
from tocsin.contracts.errors import DeniedError
from tocsin.contracts.health import Standing
from tocsin.contracts.identifiers import Kind, SpiffeId
from tocsin.contracts.subjects import MessageClass, MessageType
from tocsin.telemetry import get_logger

if TYPE_CHECKING:
    from tocsin.bus.client import Bus
    from tocsin.contracts.base import Message

JUDGED = frozenset({MessageClass.LIVE, MessageClass.STORED, MessageClass.EVIDENCE})
"""Records stand under their writer's key for others to judge, and who enrols is fleet's business."""

log = get_logger(__name__)


class Standings:
    """The agents that are quarantined, as one process knows it."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._quarantined: dict[str, Standing] = {}
        self._told: list[Callable[[Standing], None]] = []

    async def follow(self) -> None:
        """Know who is quarantined now, and go on learning.

        Raises:
            UnavailableError: the broker has no such bucket.
        """
        await self._bus.records(STANDINGS).follow(self._learn)
        self._bus.opener.standings = self

    def on_standing(self, told: Callable[[Standing], None]) -> None:
        """Call ``told`` with every record that holds: now with those of the quarantined that are known."""
        for standing in self._quarantined.values():
            told(standing)
        self._told.append(told)

    def is_quarantined(self, name: str) -> bool:
        """Tell whether an agent is quarantined, by its name. O(1)."""
        return name in self._quarantined

    def speaks_for_quarantined(self, ids: frozenset[str]) -> bool:
        """Tell whether a key that names these ids is one that a quarantined agent can use.

        Agents that share a key share their process's memory: a secret that one of them can open is all theirs.
        """
        return bool(self._quarantined) and any(
            one.rpartition("/")[2] in self._quarantined for one in ids if f"/{Kind.AGENT.value}/" in one
        )

    def require_fit(self, kind: MessageType[Message], sender: SpiffeId) -> None:
        """Refuse what a quarantined agent says.

        Raises:
            DeniedError: ``quarantined``.
        """
        if not self._quarantined or sender.kind is not Kind.AGENT or sender.name not in self._quarantined:
            return
        if kind.message_class in JUDGED and kind.name not in FROM_QUARANTINE:
            raise DeniedError(f"{sender} is quarantined", reason="quarantined")

    def _learn(self, key: str, standing: Standing) -> None:
        if key != standing.agent:
            return
        if standing.quarantined and key not in self._quarantined:
            log.warning("agent_quarantined", agent=key, why=standing.why, by=standing.by)
        if standing.quarantined:
            self._quarantined[key] = standing
        else:
            self._quarantined.pop(key, None)
        self._bus.metrics.gauge("agents_quarantined", len(self._quarantined))
        for told in self._told:
            told(standing)
