"""One log under watch: the tail, the parser, the rules, and what of them survives.

Every finding that is news is first a line of the sentinel's alert file, synced, and then everything else. Every
CHECKPOINT_S the position in the log and all that was gathered up to it (open windows, what was said) are saved as one
state. Killed at any moment, a watch goes on from its last state: it reads the lines behind it once more, finds what it
found, and is told by the alert file what was said already. So no line is lost, and nothing is said twice.

What cannot be read any more (:class:`~tocsin.agent.roles.tail.Loss`) is a line of the alert file too.

Blocking, for one thread at a time.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from tocsin.agent import statefile
from tocsin.agent.roles.alerting import News, severity_of, summary_of
from tocsin.agent.roles.linefile import Line, LineFile
from tocsin.agent.roles.tail import GRACE_S, Loss, Read, Tail
from tocsin.analysis.following import Mark
from tocsin.analysis.logs import LogParser, ParserState
from tocsin.analysis.watching import Watch
from tocsin.contracts.errors import InvalidInputError, TocsinError
from tocsin.contracts.observations import Finding
from tocsin.telemetry import get_logger

CHECKPOINT_S = 10.0
"""So much of a log, in time, is read again after a crash, at most."""
MAX_SHARE = 0.1
"""Of the time that may go into looking at open windows, and as much into states: both grow with what is gathered."""
LOOK_S = 0.25

_FINDINGS = TypeAdapter(list[Finding])

log = get_logger(__name__)


def alert_id(finding: Finding) -> str:
    """Return what an alert about a finding is called, in hex: the same finding has the same, whoever says it again."""
    digest = hashlib.sha256(b"tocsin/alert/1")
    for part in (
        finding.source,
        finding.kind.value,
        finding.subject,
        repr(finding.first_s),
        repr(finding.score),
    ):
        raw = part.encode()
        digest.update(len(raw).to_bytes(8, "big") + raw)
    return digest.hexdigest()[:32]


def alert_line(finding: Finding) -> Line:
    """Return the line of an alert; its time is that of the last thing seen."""
    return {
        "alert": alert_id(finding),
        "at": datetime.fromtimestamp(max(0.0, min(finding.last_s, 2.5e11)), UTC).isoformat(timespec="seconds"),
        "severity": severity_of(finding.score).value,
        "summary": summary_of(finding),
        "finding": finding.model_dump(mode="json"),
    }


def finding_of(line: Line) -> Finding | None:
    """Return the finding of an alert's line; None of any other."""
    try:
        return Finding.model_validate(line.get("finding"))
    except ValidationError:
        return None


@dataclass(slots=True)
class Progress:
    """What one step brought."""

    news: list[Finding] = field(default_factory=list)
    lines: int = 0
    losses: list[Loss] = field(default_factory=list)
    more: bool = False
    absent: str = ""


class LogWatch:
    """Watches one log.

    Args:
        path: the log.
        state: file of the state.
        alerts: where news are written, shared with the sentinel's other watches.
        said: findings that the alert file holds, the oldest first.
        from_end: the first time, leave out what the log holds already.
        grace_s: see :class:`Tail`.
    """

    def __init__(
        self,
        path: Path,
        state: Path,
        alerts: LineFile,
        *,
        said: Iterable[Finding] = (),
        from_end: bool = False,
        grace_s: float = GRACE_S,
    ) -> None:
        self.path = path
        self.source = str(path)[-512:]
        self._state = state
        self._alerts = alerts
        self._watch = Watch(self.source)
        self._parser = LogParser()
        self._before: list[Finding] = []
        mark = self._restore()
        self._said = [*self._before, *(one for one in said if one.source == self.source)]
        self._news = News(self._said)
        self._tail = Tail(path, mark, from_end=from_end, grace_s=grace_s)
        self._mark = mark
        self._unwritten: list[Line] = []
        self._unsaid = Progress()
        self._changed = self._unlooked = False
        self._saved_s = self._looked_s = time.monotonic()
        self._pause_save_s, self._pause_look_s = CHECKPOINT_S, 0.0

    @property
    def parser(self) -> LogParser:
        """Its counts of lines."""
        return self._parser

    def step(self, *, now_s: float) -> Progress:
        """Read what there is, at most a batch; write what is news.

        Args:
            now_s: seconds since the epoch.

        Raises:
            UnavailableError: ``lines_failed`` or ``state_failed``: the disk. The next step tries again, and nothing
                more is read before it has succeeded.
        """
        if not self._unwritten:
            self._read(now_s)
        progress = self._unsaid
        self._alerts.append(self._unwritten)
        self._unwritten, self._unsaid = [], Progress()
        if progress.losses or self._is_due():
            self.checkpoint()
        return progress

    def checkpoint(self) -> None:
        """Save the state, if anything has changed.

        Raises:
            UnavailableError: ``state_failed``.
        """
        if not self._changed or self._mark is None or self._unwritten:
            return
        begun_s = time.monotonic()
        statefile.save(
            self._state,
            {
                "mark": self._mark.model_dump(mode="json"),
                "parser": self._parser.dump().model_dump(mode="json"),
                "watch": self._watch.dump(),
                "said": _FINDINGS.dump_python(self._news.said(), mode="json"),
            },
        )
        self._changed = False
        self._saved_s = time.monotonic()
        self._pause_save_s = max(CHECKPOINT_S, (self._saved_s - begun_s) / MAX_SHARE)

    def close(self) -> None:
        """Save the state and close the log.

        Raises:
            UnavailableError: ``state_failed``.
        """
        try:
            self.checkpoint()
        finally:
            self._tail.close()

    def _read(self, now_s: float) -> None:
        read = self._tail.poll(now_s=now_s)
        found = self._take(read, now_s)
        found += self._look(idle=not read.more)
        news = self._news.among(found)
        self._changed = self._changed or read.mark != self._mark or bool(news)
        self._mark = read.mark
        self._unsaid = Progress(news, len(read.lines), read.losses, read.more, read.absent)
        self._unwritten = [alert_line(finding) for finding in news]
        self._unwritten += [self._loss_line(loss, now_s) for loss in read.losses]

    def _take(self, read: Read, now_s: float) -> list[Finding]:
        if read.begun:
            self._parser.begin()
        entries = [self._parser.take(line, now_s=now_s) for line in read.lines]
        self._unlooked = self._unlooked or bool(read.lines)
        return self._watch.take([entry for entry in entries if entry is not None], now_s=now_s)

    def _look(self, *, idle: bool) -> list[Finding]:
        """Judge the open windows, when there is something new and they have not taken too much time lately."""
        begun_s = time.monotonic()
        if not self._unlooked or begun_s < self._looked_s + self._pause_look_s:
            return []
        found = self._watch.look()
        self._looked_s = time.monotonic()
        self._pause_look_s = max(LOOK_S, (self._looked_s - begun_s) / MAX_SHARE)
        self._unlooked = not idle
        return found

    def _is_due(self) -> bool:
        return time.monotonic() >= self._saved_s + self._pause_save_s

    def _loss_line(self, loss: Loss, now_s: float) -> Line:
        known = f"at least {loss.octets} bytes" if loss.octets else "nobody knows how much"
        return {
            "loss": loss.kind.value,
            "at": datetime.fromtimestamp(now_s, UTC).isoformat(timespec="seconds"),
            "source": self.source,
            "octets": loss.octets,
            "summary": f"{self.path.name}: something was not read ({loss.kind.value}, {known})",
        }

    def _restore(self) -> Mark | None:
        """Go on from the saved state; from the log's beginning if it is damaged, which is said."""
        try:
            kept = statefile.load(self._state)
            if kept is None:
                return None
            if not isinstance(kept, Mapping) or not isinstance(kept.get("watch"), Mapping):
                raise InvalidInputError("no state of a watch", reason="bad_state")  # noqa: TRY301 - handled as what decode raises
            mark = Mark.model_validate(kept.get("mark"))
            parser = LogParser(ParserState.model_validate(kept.get("parser")))
            before = _FINDINGS.validate_python(kept.get("said"))
            self._watch.load(kept["watch"])
        except (InvalidInputError, ValidationError) as error:
            reason = error.reason if isinstance(error, TocsinError) else "bad_state"
            log.error("watch_state_damaged", source=self.source, reason=reason)  # noqa: TRY400 - the message says it all
            self._watch = Watch(self.source)
            return None
        self._parser, self._before = parser, before
        return mark
