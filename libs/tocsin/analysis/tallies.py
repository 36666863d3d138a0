"""Rules over log lines that are no connections: log-ins, names, certificates, notices; counted, not kept.

A tally counts by subject (or subject and group) in a window that begins with the first event, and judges the count when
the window ends, when its place is needed, or when somebody looks. What is counted is small and bounded, so that a day's
window over a busy resolver costs kilobytes and can be written down (:meth:`Tally.dump`).

Late events are counted in the window that is open. Scores are on the scale of :mod:`tocsin.analysis.detectors`: 0.5
where a rule just holds.

Bounds: MAX_CELLS windows of a tally (the one that was not touched for longest is judged and closed), MAX_VALUES values
of a window and MAX_VALUE_BYTES of text (what comes beyond is counted and not told apart).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

from pydantic import TypeAdapter, ValidationError

from tocsin.contracts.errors import InvalidInputError
from tocsin.contracts.observations import Finding

MAX_CELLS = 4096
MAX_VALUES = 512
MAX_VALUE_BYTES = 32 * 1024
MAX_TARGETS = 16


@dataclass(slots=True)
class Cell:
    """What was counted of one subject in one window."""

    start_s: float
    first_s: float
    last_s: float
    count: int = 0
    hits: int = 0
    """Events of the kind that makes the others worse, e.g. a log-in that succeeded."""
    octets: int = 0
    values: dict[str, int] = field(default_factory=dict)
    targets: list[str] = field(default_factory=list)

    def add(self, at_s: float, value: str, target: str, *, hit: bool) -> None:
        """Count one event."""
        self.first_s, self.last_s = min(self.first_s, at_s), max(self.last_s, at_s)
        self.count += 1
        self.hits += hit
        if value in self.values:
            self.values[value] += 1
        elif len(self.values) < MAX_VALUES and self.octets + len(value) <= MAX_VALUE_BYTES:
            self.values[value] = 1
            self.octets += len(value)
        if target and target not in self.targets and len(self.targets) < MAX_TARGETS:
            self.targets.append(target)


Key: TypeAlias = tuple[str, str]
"""Subject, and group (which may be empty)."""

Rule: TypeAlias = Callable[[Key, Cell], Finding | None]

_CELLS = TypeAdapter(list[tuple[str, str, Cell]])


class Tally:
    """Counts events of one kind."""

    def __init__(self, rule: Rule, *, window_s: float) -> None:
        self._rule = rule
        self._window_s = window_s
        self._cells: OrderedDict[Key, Cell] = OrderedDict()

    def add(self, key: Key, at_s: float, value: str, *, target: str = "", hit: bool = False) -> list[Finding]:
        """Count one event; return what was found in windows that had to close."""
        closed: list[Finding] = []
        cell = self._cells.get(key)
        if cell is not None and at_s >= cell.start_s + self._window_s:
            closed += self._close([key])
            cell = None
        if cell is None:
            cell = self._cells[key] = Cell(at_s, at_s, at_s)
            if len(self._cells) > MAX_CELLS:
                closed += self._close([next(iter(self._cells))])
        self._cells.move_to_end(key)
        cell.add(at_s, value, target, hit=hit)
        return closed

    def peek(self) -> list[Finding]:
        """Judge the open windows as they are."""
        return self._judge(self._cells.items())

    def advance(self, now_s: float) -> list[Finding]:
        """Close the windows that ended by ``now_s``; return what was found in them."""
        return self._close([key for key, cell in self._cells.items() if cell.start_s + self._window_s <= now_s])

    def dump(self) -> object:
        """Return the open windows as JSON has it."""
        cells = [(subject, group, cell) for (subject, group), cell in self._cells.items()]
        return _CELLS.dump_python(cells, mode="json")

    def load(self, dumped: object) -> None:
        """Go on with windows that were dumped.

        Raises:
            InvalidInputError: ``bad_state``.
        """
        try:
            cells = _CELLS.validate_python(dumped)
        except ValidationError as error:
            raise InvalidInputError(f"no windows: {error.error_count()} errors", reason="bad_state") from error
        self._cells = OrderedDict(((subject, group), cell) for subject, group, cell in cells[:MAX_CELLS])

    def _close(self, keys: Iterable[Key]) -> list[Finding]:
        return self._judge([(key, self._cells.pop(key)) for key in keys])

    def _judge(self, cells: Iterable[tuple[Key, Cell]]) -> list[Finding]:
        return [finding for key, cell in cells if (finding := self._rule(key, cell)) is not None]
