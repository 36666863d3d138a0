"""What the agents of a host have written, as it comes: alerts, incidents, reports; printed once, over restarts.

The agents' files are followed like any log, and how far they were printed is saved after each print. A process that is
killed between the two prints those lines once more: each has its id.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from pydantic import ValidationError

from tocsin.agent import statefile
from tocsin.agent.roles.tail import Tail
from tocsin.analysis.following import Mark
from tocsin.contracts.errors import InvalidInputError
from tocsin.contracts.identifiers import Severity

PATTERNS = ("*.alerts.jsonl", "*.incidents.jsonl", "*.reports.jsonl")
ORDER = (Severity.INFO, Severity.LOW, Severity.MEDIUM, Severity.HIGH, Severity.CRITICAL)

Show = Callable[[str], None]


class Outputs:
    """The files of one host's state folder. Blocking; for one thread."""

    def __init__(self, folder: Path, state: Path) -> None:
        self._folder = folder
        self._state = state
        self._tails: dict[str, Tail] = {}
        self._marks: dict[str, Mark] = {}
        try:
            kept = statefile.load(state)
            if isinstance(kept, Mapping):
                self._marks = {str(name): Mark.model_validate(mark) for name, mark in kept.items()}
        except (InvalidInputError, ValidationError):
            self._marks = {}  # damaged: everything is printed again

    def poll(self, *, now_s: float) -> list[bytes]:
        """Return the lines that came."""
        for pattern in PATTERNS:
            for path in sorted(self._folder.glob(pattern)):
                if path.name not in self._tails:
                    self._tails[path.name] = Tail(path, self._marks.get(path.name))
        lines: list[bytes] = []
        for name, tail in self._tails.items():
            while True:
                read = tail.poll(now_s=now_s)
                lines += [line for line in read.lines if line]
                if read.mark is not None:
                    self._marks[name] = read.mark
                if not read.more:
                    break
        return lines

    def printed(self) -> None:
        """Save that everything which was returned is printed.

        Raises:
            UnavailableError: ``state_failed``.
        """
        statefile.save(self._state, {name: mark.model_dump(mode="json") for name, mark in self._marks.items()})

    def close(self) -> None:
        """Close the files."""
        for tail in self._tails.values():
            tail.close()


def shown(raw: bytes, *, least: Severity, as_json: bool) -> str | None:
    """Return a line as it is printed; None for an alert below ``least``, or what is no line of an agent's."""
    try:
        line = json.loads(raw)
    except ValueError:
        return None
    if not isinstance(line, dict):
        return None
    severity = line.get("severity")
    if "alert" in line and severity in set(Severity) and ORDER.index(Severity(severity)) < ORDER.index(least):
        return None
    if as_json:
        return json.dumps({name: value for name, value in line.items() if name != "content"})
    return _readable(line)


def _readable(line: Mapping[str, object]) -> str:
    kind = next((name for name in ("alert", "incident", "report", "loss") if name in line), "")
    level = str(line.get("severity") or line.get("verdict") or "")
    head = f"{line.get('at')}  {kind:8}  {level:10}  {line.get('summary')}"
    story = line.get("story")
    told = [f"    {text}" for text in story] if isinstance(story, list) and len(story) > 1 else []
    stix = [f"    STIX 2.1 in {line['stix']}"] if line.get("stix") else []
    return "\n".join([head, *told, *stix])
