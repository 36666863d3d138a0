"""Sort what arrives under one subject into a line for each priority, so that none fills another's.

Emergencies come by a connection of their own: what waits in the socket of the others delays them no more than what
waits in their lines. Everything else under the subject's beginning is heard, so what names no priority, or is no such
subject at all, is refused, counted and audited, where with a subscription for each priority it would vanish.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tocsin.bus.intake import Intake, Reject
from tocsin.bus.opener import Arrival
from tocsin.contracts.errors import InvalidInputError, TocsinError
from tocsin.contracts.identifiers import Priority
from tocsin.contracts.subjects import Subject

Admit = Callable[[Arrival], None]
"""Sees where a message arrived, before anything is spent on its bytes; raises one of our errors to refuse it."""

URGENT = Priority.CRITICAL.token


class PriorityLines:
    """Takes the messages of a subject that names their priority."""

    def __init__(self, subject: Subject, lines: Mapping[str, Intake], *, admit: Admit, reject: Reject) -> None:
        self._subject = subject
        self._lines = lines
        self._admit = admit
        self._reject = reject

    def take(self, data: bytes, concrete: str, reply: str) -> None:
        """Take what arrived on the main connection; emergencies among it are the other connection's."""
        try:
            arrival = Arrival.on(self._subject, concrete)
            if arrival.priority != URGENT:
                self._put(data, arrival, reply)
        except TocsinError as error:
            self._reject(error, concrete, data)

    def take_urgent(self, data: bytes, concrete: str, reply: str) -> None:
        """Take an emergency."""
        try:
            self._put(data, Arrival.on(self._subject, concrete), reply)
        except TocsinError as error:
            self._reject(error, concrete, data)

    def _put(self, data: bytes, arrival: Arrival, reply: str) -> None:
        line = self._lines.get(arrival.priority or "")
        if line is None:
            raise InvalidInputError(f"{(arrival.priority or '')[:64]!r} is no priority", reason="bad_priority")
        self._admit(arrival)
        line.put(data, arrival, reply or None)
