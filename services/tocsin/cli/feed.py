"""Read an input file and hand its records to a sentinel, batch by batch."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from tocsin.analysis.ingest import IngestStatistics, Record, RecordReader
from tocsin.analysis.records import Label
from tocsin.bus import Bus
from tocsin.cli.exits import NoInputError
from tocsin.contracts.catalogue import OBSERVE
from tocsin.contracts.observations import MAX_FLOWS_PER_BATCH, Flow, IdsAlert, Observations, ObservationsTaken

BATCH = MAX_FLOWS_PER_BATCH // 2
BATCHES_AHEAD = 4
ANSWER_TIMEOUT_S = 15.0
STANDARD_INPUT = "-"


@dataclass(slots=True)
class Fed:
    """What was read and handed over. Labels stay here: no detector sees them."""

    source: str
    statistics: IngestStatistics | None = None
    taken: ObservationsTaken | None = None
    labelled: list[tuple[Flow, Label]] = field(default_factory=list)

    @property
    def unreadable(self) -> bool:
        """Whether there were lines, and not one of them could be read: that nothing was found says nothing."""
        seen = self.statistics
        return seen is not None and seen.bad > 0 and seen.flows == seen.ids_alerts == 0


def open_input(name: str) -> BinaryIO:
    """Open a file, or standard input for ``-``; a pipe blocks until somebody writes to it.

    Raises:
        NoInputError: it does not exist, is a folder, or may not be read.
    """
    try:
        if name == STANDARD_INPUT:
            # Not sys.stdin: a thread that waits in its lock would make the process die badly at its end.
            return open(sys.stdin.fileno(), "rb", closefd=False)
        return Path(name).open("rb")
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is closed"
        raise NoInputError(
            f"cannot read {name}: {why}",
            advice="give a Suricata EVE file, a Zeek conn.log, or - for standard input",
        ) from error


def check_input(name: str) -> None:
    """Fail before anything is started: the file must be there and in a known format.

    Standard input and pipes are not looked at: what is read from them cannot be put back.

    Raises:
        NoInputError: it cannot be read.
        InvalidInputError: ``unknown_format``.
    """
    if name == STANDARD_INPUT and sys.stdin is None:
        raise NoInputError("standard input is closed")
    if name == STANDARD_INPUT or Path(name).is_fifo():
        return
    with open_input(name) as stream:
        next(iter(RecordReader(stream)), None)


async def feed(bus: Bus, sentinel: str, name: str) -> Fed:
    """Hand every record of an input to ``sentinel``; return what was read and what it found.

    Raises:
        NoInputError: it cannot be read.
        InvalidInputError: ``unknown_format``.
        UnavailableError: the sentinel does not answer.
    """
    source = "standard input" if name == STANDARD_INPUT else Path(name).name
    fed = Fed(source)
    sequence = 0
    async for batch in _read_beside(name, fed):
        await _hand_over(bus, sentinel, batch, source, sequence)
        sequence += 1
    fed.taken = await _hand_over(bus, sentinel, [], source, sequence, final=True)
    return fed


async def _read_beside(name: str, fed: Fed) -> AsyncIterator[list[Record]]:
    """Read batches in a daemon thread, a few ahead: a pipe that nobody writes to must not keep the process."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Queue[list[Record] | Exception | None] = asyncio.Queue()
    room = threading.Semaphore(BATCHES_AHEAD)

    def put(item: list[Record] | Exception | None) -> None:
        try:
            loop.call_soon_threadsafe(ready.put_nowait, item)
        except RuntimeError:  # the loop is closed: nobody listens any more
            room.release()

    def read() -> None:
        try:
            with open_input(name) as stream:
                reader = RecordReader(stream)
                for batch in _batches(iter(reader), fed):
                    room.acquire()
                    put(batch)
                fed.statistics = reader.statistics()
        except OSError as error:
            put(NoInputError(f"cannot read {name}: {error.strerror}"))
        except Exception as error:  # noqa: BLE001 - raised again where batches are waited for
            put(error)
        else:
            put(None)

    threading.Thread(target=read, name="input", daemon=True).start()
    while (item := await ready.get()) is not None:
        if isinstance(item, Exception):
            raise item
        room.release()
        yield item


async def _hand_over(
    bus: Bus, sentinel: str, batch: list[Record], source: str, sequence: int, *, final: bool = False
) -> ObservationsTaken:
    flows: list[Flow] = [record.flow for record in batch if record.flow is not None]
    alerts: list[IdsAlert] = [record.ids_alert for record in batch if record.ids_alert is not None]
    body = Observations(
        source=source, sequence=sequence, flows=tuple(flows), ids_alerts=tuple(alerts), final=final
    )
    return await bus.request(OBSERVE, body, timeout_s=ANSWER_TIMEOUT_S, at={"agent": sentinel})


def _batches(records: Iterator[Record], fed: Fed) -> Iterator[list[Record]]:
    batch: list[Record] = []
    for record in records:
        if record.flow is not None and record.label is not None:
            fed.labelled.append((record.flow, record.label))
        batch.append(record)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
