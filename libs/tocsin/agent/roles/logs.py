"""A log that a sentinel follows: read as it grows, judged while its windows are open, gone on with after a restart.

What is kept, in one small file that is replaced as a whole: a position, the findings that were told, and the header
lines of a tab-separated log. The position is not where reading ended but where the oldest short window (five minutes)
may have begun, so that a restart reads the open windows again; what they showed before is not told again. The long
windows (a day) begin anew: of a scan that is so slow that only a day shows it, a restart hides what came before.
Who is killed between an alert and the writing of this file alerts again; nothing is passed over. Alerts themselves are
written down before they are sent (``alerts.jsonl``), since whoever should hear them may be away at that moment.

Time is the log's own: its latest record's, plus what has gone by since that was read. A log that is read days late is
judged as it would have been then.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tocsin.agent.roles.sources import LiveSource
from tocsin.analysis.following import Follower, Position
from tocsin.analysis.ingest import SNIFFED_LINES, LineParser, Record, sniff
from tocsin.analysis.lines import Line
from tocsin.analysis.windows import WINDOW_S
from tocsin.contracts.errors import InvalidInputError
from tocsin.contracts.observations import MAX_FLOWS_PER_BATCH, Finding, Observations
from tocsin.telemetry import get_logger

REPORTER = "log"
POINT_S = 10.0
"""Log time between two positions that a restart can begin at."""
MAX_STATE_BYTES = 4 * 1024 * 1024
MAX_HEADER_BYTES = 64 * 1024
ALERTS_BYTES = 64 * 1024 * 1024

log = get_logger(__name__)


class SentinelLog:
    """One log. Every method blocks; the caller lets one at a time in, in a worker thread.

    Args:
        path: Suricata EVE JSON, or a Zeek conn log (JSON lines or tab-separated).
        folder: where its state is kept.
        clock: seconds that only go forward.
    """

    def __init__(self, path: Path, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        name = hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:16]
        self._state = folder / f"log-{name}.json"
        self._alerts = folder / "alerts.jsonl"
        self._source = LiveSource(path.name[:256])
        self._clock = clock
        self._parser = LineParser()
        self._unsure: list[Line] = []
        """First lines of a file whose format they have not told yet."""
        self._headers: list[str] = []
        self._sequence = 0
        self._latest_s: float | None = None
        self._read_at_s = 0.0
        self._points: deque[tuple[float, Position | None, tuple[str, ...]]] = deque()
        self._follower = Follower(path, self._restore())

    @property
    def counts(self) -> dict[str, int]:
        """What was read and what happened to the file, by name."""
        seen = self._parser.statistics()
        read = {"lines": seen.lines, "flows": seen.flows, "ids_alerts": seen.ids_alerts, "bad": seen.bad}
        return read | dict(self._follower.counts)

    def read(self) -> tuple[list[Finding], bool]:
        """Take the next lines; return what they showed at once, and whether there are more to read now.

        Raises:
            OSError: the log is there and cannot be read.
        """
        got = self._follower.read()
        if got.first:
            self._begin_file()
        records = self._parse(got.lines)
        found: list[Finding] = []
        for start in range(0, len(records), MAX_FLOWS_PER_BATCH):
            found += self._take(records[start : start + MAX_FLOWS_PER_BATCH])
        if got.position is not None:
            self._remember(got.position)
        return found, got.behind

    def look(self) -> list[Finding]:
        """Judge the open windows as they are now; return what is news."""
        if self._latest_s is None:
            return []
        return self._source.look(self._latest_s + self._clock() - self._read_at_s)

    def write_down(self, alerts: Iterable[str]) -> None:
        """Append alerts, a line each, to the file that outlives whoever listens now. On the disk when it returns.

        At ALERTS_BYTES the file is renamed, over the one before it.
        """
        with self._alerts.open("a", encoding="utf-8") as file:
            file.writelines(f"{alert}\n" for alert in alerts)
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
        if size > ALERTS_BYTES:
            self._alerts.replace(self._alerts.with_suffix(".1.jsonl"))

    def keep(self) -> None:
        """Write down what a restart goes on with: after the findings were told."""
        if not self._points:
            return
        _, position, headers = self._points[0]
        state = {
            "position": None if position is None else asdict(position),
            "headers": headers,
            "told": self._source.told(),
        }
        fresh = self._state.with_suffix(".new")
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(state, file)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._state)

    def close(self) -> None:
        """Close the log."""
        self._follower.close()

    # --- Inside --------------------------------------------------------------------------------

    def _restore(self) -> Position | None:
        try:
            with self._state.open("rb") as file:
                state: Any = json.loads(file.read(MAX_STATE_BYTES))
            position = None if state["position"] is None else Position(**state["position"])
            headers = [str(line) for line in state["headers"]]
            self._source.remember(
                [(str(kind), str(subject), float(score)) for kind, subject, score in state["told"]]
            )
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, InvalidInputError) as error:
            # Read again from its start, and say so: an alert too many is better than one too few.
            log.warning("log_state_unreadable", file=self._state.name, detail=str(error)[:200])
            return None
        self._headers = headers
        if headers:
            self._offer([Line(number, line.encode()) for number, line in enumerate(headers, 1)])
        return position

    def _begin_file(self) -> None:
        """Another file has headers of its own; JSON lines do not care."""
        self._headers = []
        self._unsure = []
        if self._parser.format is not None:
            self._parser.choose(self._parser.format)

    def _parse(self, lines: tuple[bytes, ...]) -> list[Record]:
        numbered = [Line(self._sequence + index, data) for index, data in enumerate(lines, 1)]
        for line in lines:
            if line.startswith(b"#") and sum(map(len, self._headers)) + len(line) < MAX_HEADER_BYTES:
                self._headers.append(line.decode(errors="replace"))
        return self._offer(numbered)

    def _offer(self, lines: list[Line]) -> list[Record]:
        if self._parser.format is None:
            self._unsure += lines
            try:
                self._parser.choose(sniff([line.data for line in self._unsure[:SNIFFED_LINES]]))
            except InvalidInputError:
                if len(self._unsure) < SNIFFED_LINES:
                    return []
            lines, self._unsure = self._unsure, []
        return [record for line in lines if (record := self._parser.take(line)) is not None]

    def _take(self, records: list[Record]) -> list[Finding]:
        flows = tuple(record.flow for record in records if record.flow is not None)
        alerts = tuple(record.ids_alert for record in records if record.ids_alert is not None)
        times = [flow.at_s for flow in flows] + [alert.at_s for alert in alerts]
        if not times:
            return []
        self._latest_s = max([*times, self._latest_s or 0.0])
        self._read_at_s = self._clock()
        self._sequence += 1
        batch = Observations(
            source=self._source.source, sequence=self._sequence, flows=flows, ids_alerts=alerts
        )
        return self._source.take(REPORTER, batch)

    def _remember(self, position: Position) -> None:
        """Note a position that a restart may begin at; forget those that no short window needs any more."""
        latest_s = self._latest_s or 0.0
        if not self._points or latest_s - self._points[-1][0] >= POINT_S:
            self._points.append((latest_s, position, tuple(self._headers)))
        while len(self._points) > 1 and self._points[1][0] < latest_s - WINDOW_S:
            self._points.popleft()
