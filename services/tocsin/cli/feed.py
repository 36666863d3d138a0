"""Read an input file and hand its records to a sentinel, batch by batch."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from tocsin.analysis.ingest import IngestStatistics, Record, RecordReader
from tocsin.analysis.records import Label
from tocsin.bus import Bus
from tocsin.cli.exits import Exit
from tocsin.contracts.catalogue import OBSERVE
from tocsin.contracts.errors import TocsinError
from tocsin.contracts.observations import MAX_FLOWS_PER_BATCH, Flow, IdsAlert, Observations, ObservationsTaken

BATCH = MAX_FLOWS_PER_BATCH // 2
ANSWER_TIMEOUT_S = 15.0
STANDARD_INPUT = "-"


class NoInputError(TocsinError):
    """The input file is missing or cannot be read."""

    reason = "no_input"
    exit_code = Exit.NO_INPUT


@dataclass(slots=True)
class Fed:
    """What was read and handed over. Labels stay here: no detector sees them."""

    source: str
    statistics: IngestStatistics | None = None
    taken: ObservationsTaken | None = None
    labelled: list[tuple[Flow, Label]] = field(default_factory=list)


def open_input(name: str) -> BinaryIO:
    """Open a file, or standard input for ``-``.

    Raises:
        NoInputError: it does not exist, is a folder, or may not be read.
    """
    if name == STANDARD_INPUT:
        return sys.stdin.buffer
    try:
        return Path(name).open("rb")
    except OSError as error:
        raise NoInputError(
            f"cannot read {name}: {error.strerror}",
            advice="give a Suricata EVE file, a Zeek conn.log, or - for standard input",
        ) from error


def check_input(name: str) -> None:
    """Fail before anything is started: the file must be there and in a known format.

    Standard input is not looked at: what is read cannot be put back.

    Raises:
        NoInputError: it cannot be read.
        InvalidInputError: ``unknown_format``.
    """
    if name == STANDARD_INPUT:
        return
    with open_input(name) as stream:
        next(iter(RecordReader(stream)), None)


async def feed(bus: Bus, sentinel: str, stream: BinaryIO, source: str) -> Fed:
    """Hand every record of ``stream`` to ``sentinel``; return what was read and what it found.

    Raises:
        InvalidInputError: ``unknown_format``.
        UnavailableError: the sentinel does not answer.
    """
    fed = Fed(source)
    reader = RecordReader(stream)
    batches = _batches(iter(reader), fed)
    sequence = 0
    while (batch := await asyncio.to_thread(next, batches, None)) is not None:
        await _hand_over(bus, sentinel, batch, source, sequence)
        sequence += 1
    fed.statistics = reader.statistics()
    fed.taken = await _hand_over(bus, sentinel, [], source, sequence, final=True)
    return fed


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
