"""``tocsin ingest``: one sentinel beside a log that is there, with a hunter and an analyst; until Ctrl-C."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import platformdirs
import typer
import uvloop

from tocsin.agent.roles.tail import MAX_LINES, POLL_S, Tail
from tocsin.analysis.logs import LogParser
from tocsin.bus import Bus, StoppedError, stop_on_signal, unless_stopped
from tocsin.cli.exits import Exit, NoInputError
from tocsin.cli.outputs import Outputs, shown
from tocsin.cli.sidecar import Guest, Sidecar, agents_of, log_settings
from tocsin.cli.stack import StackOptions
from tocsin.contracts.errors import InvalidInputError, UnavailableError
from tocsin.contracts.identifiers import Severity
from tocsin.telemetry import Metrics, configure_logging

DEFAULT_STATE = Path(platformdirs.user_state_dir("tocsin")) / "ingest"
SNIFFED_LINES = 64


@dataclass(frozen=True, slots=True)
class IngestOptions:
    """What to watch, where the state is, and what is printed."""

    logs: tuple[Path, ...]
    state: Path
    least: Severity
    as_json: bool = False
    from_end: bool = False
    sentinel_only: bool = False
    remote: str | None = None
    """Broker of a fleet to join; ``state`` is then the invited host's folder."""


def ingest_command(
    logs: Annotated[
        list[Path],
        typer.Argument(help="Logs to follow: Suricata EVE, Zeek logs, syslog. They may appear later."),
    ],
    state: Annotated[
        Path, typer.Option(help="State folder; with --remote, the one that `tocsin agent invite` made.")
    ] = DEFAULT_STATE,
    severity: Annotated[
        Severity, typer.Option(help="Least severity of alerts that are printed.")
    ] = Severity.MEDIUM,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines.")] = False,
    from_end: Annotated[
        bool, typer.Option("--from-end", help="The first time, leave out what the logs hold already.")
    ] = False,
    sentinel_only: Annotated[
        bool, typer.Option("--sentinel-only", help="Alerts alone: no hunter, no analyst.")
    ] = False,
    remote: Annotated[
        str | None,
        typer.Option("--remote", metavar="URL", help="Join the fleet at this broker, as the host of --state."),
    ] = None,
) -> None:
    """Watch logs until Ctrl-C: alerts, incidents and reports, without anything else running.

    It may be killed at any moment and started again: no line is lost, and nothing is alerted twice.
    """
    options = IngestOptions(
        tuple(dict.fromkeys(path.absolute() for path in logs)),
        state.absolute(),
        severity,
        as_json,
        from_end,
        sentinel_only,
        remote,
    )
    for path in options.logs:
        check_log(path)
    configure_logging("ingest", level="error")
    raise typer.Exit(uvloop.run(run_ingest(options)))


def check_log(path: Path) -> None:
    """Fail before anything is started, if a log is there and cannot be followed.

    Raises:
        NoInputError: it cannot be read, or is no file.
        InvalidInputError: ``unknown_format``: none of its first lines is of a known format.
    """
    if not path.exists():
        return
    tail = Tail(path)
    try:
        read = tail.poll(now_s=time.time())
    finally:
        tail.close()
    if read.absent:
        raise NoInputError(f"cannot read {path}: {read.absent}")
    parser = LogParser()
    for line in read.lines[:SNIFFED_LINES]:
        parser.take(line, now_s=time.time())
    if parser.format is None and len(read.lines) in range(1, MAX_LINES + 1):
        raise InvalidInputError(
            f"{path}: none of its first lines is of a known format",
            reason="unknown_format",
            advice="follow a Suricata EVE file (eve.json), a Zeek log (JSON or tab-separated) or a syslog file",
        )


async def run_ingest(options: IngestOptions) -> Exit:
    """Start what is needed, and print what comes.

    Raises:
        TocsinError: it did not come up, or a process keeps ending; everything has been ended by then.
    """
    stop = stop_on_signal()
    settings = log_settings(options.logs, from_end=options.from_end)
    async with AsyncExitStack() as stack:
        try:
            if options.remote is not None:
                await unless_stopped(stop, _follow_as_guest(options, settings, stop, stack))
            else:
                await unless_stopped(stop, _follow(options, settings, stop, stack))
        except StoppedError:
            return Exit.OK
    return Exit.OK


async def _follow(
    options: IngestOptions, settings: dict[str, str], stop: asyncio.Event, stack: AsyncExitStack
) -> None:
    where = StackOptions(options.state, options.state / "logs", log_level="warning")
    agents = agents_of(sentinel_only=options.sentinel_only)
    sidecar = await Sidecar.begin(where, agents, {**settings, "analyst_mode": "alone"})
    stack.push_async_callback(sidecar.stop)
    outputs = Outputs(sidecar.host_state, options.state / "printed.state")
    stack.push_async_callback(_print_last, outputs, options)
    sidecar.start()
    _say(f"following {', '.join(map(str, options.logs))}")
    async with Bus(sidecar.bus_settings(), sidecar.installation.cli_credentials(), Metrics()) as bus:
        await sidecar.wait_ready(bus)
    _say(f"{len(sidecar.agents)} agents watch; they write into {sidecar.host_state}; Ctrl-C ends it")

    def check() -> None:
        code = sidecar.broker.process.poll()
        if code is not None:
            raise UnavailableError(
                f"the broker ended with code {code}",
                reason="broker_ended",
                advice=f"see {sidecar.broker.folder / 'nats.log'}; the same command continues",
            )
        for name in sidecar.supervisor.restart_ended():
            _say(f"{name} had ended and was started again")

    await _print_all(outputs, options, stop, check)


async def _follow_as_guest(
    options: IngestOptions, settings: dict[str, str], stop: asyncio.Event, stack: AsyncExitStack
) -> None:
    assert options.remote is not None  # noqa: S101 - the caller's
    guest = Guest(options.state, options.remote, settings)
    stack.push_async_callback(guest.stop)
    outputs = Outputs(guest.host_state, options.state / "printed.state")
    stack.push_async_callback(_print_last, outputs, options)
    guest.start()
    _say(f"following {', '.join(map(str, options.logs))} for the fleet at {options.remote}; Ctrl-C ends it")

    def check() -> None:
        for name in guest.supervisor.restart_ended():
            _say(f"{name} had ended and was started again; see {guest.supervisor.logs}")

    await _print_all(outputs, options, stop, check)


async def _print_all(
    outputs: Outputs, options: IngestOptions, stop: asyncio.Event, check: Callable[[], None]
) -> None:
    while not stop.is_set():
        check()
        if not await _print_once(outputs, options):
            stop.set()
        await asyncio.sleep(POLL_S)


async def _print_once(outputs: Outputs, options: IngestOptions) -> bool:
    """Print what came; return False if nobody reads it any more."""
    lines = await asyncio.to_thread(outputs.poll, now_s=time.time())
    if not lines:
        return True
    try:
        for raw in lines:
            text = shown(raw, least=options.least, as_json=options.as_json)
            if text is not None:
                sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    await asyncio.to_thread(outputs.printed)
    return True


async def _print_last(outputs: Outputs, options: IngestOptions) -> None:
    await _print_once(outputs, options)
    outputs.close()


def _say(text: str) -> None:
    sys.stderr.write(f"tocsin: {text}\n")
    sys.stderr.flush()


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("ingest")(ingest_command)
