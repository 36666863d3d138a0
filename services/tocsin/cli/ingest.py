"""``tocsin ingest``: one sentinel beside a Suricata or Zeek that is there already, with nothing but what it needs.

The broker, fleet and a router run for it, and one agent host; a decision needs more agents, so none is made. Where the
sentinel has read to is kept in the state folder: the same command goes on from there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from tocsin.bus import Bus, Context, StoppedError, stop_on_signal, unless_stopped
from tocsin.cli.exits import Exit
from tocsin.cli.feed import check_input
from tocsin.cli.fleetplan import PlannedAgent
from tocsin.cli.stack import Stack, StackOptions
from tocsin.cli.up import keep_running
from tocsin.contracts.base import Message
from tocsin.contracts.catalogue import DELIVER_ALL
from tocsin.contracts.errors import InvalidInputError
from tocsin.contracts.identifiers import Role, ServiceName
from tocsin.contracts.routing import ThreatAlert
from tocsin.telemetry import Metrics

SENTINEL = "sentinel-01"
NEEDED = (ServiceName.FLEET, ServiceName.ROUTER)
MAX_LOGS = 16

Show = Callable[[str], None]


def options_of(logs: Sequence[Path], state: Path, *, port: int) -> StackOptions:
    """Return what to start for some logs.

    Raises:
        InvalidInputError: ``bad_logs``: too many, or a comma in a name; ``unknown_format``: a log that is there holds
            no connection records.
        NoInputError: one may not be read.
    """
    if len(logs) > MAX_LOGS or any("," in str(path) for path in logs):
        raise InvalidInputError(f"at most {MAX_LOGS} logs, without commas in their names", reason="bad_logs")
    for path in logs:
        # One that is not there yet may come; one that is there and is something else is a mistake.
        if path.exists() and path.stat().st_size:
            check_input(str(path))
    return StackOptions(
        state.absolute(),
        state.absolute() / "logs",
        port=port,
        named=(PlannedAgent(SENTINEL, Role.SENTINEL, "host-1"),),
        host_settings={"sentinel_logs": ",".join(str(path.absolute()) for path in logs)},
        services=NEEDED,
        sync_always=True,
    )


async def run_ingest(options: StackOptions, *, as_json: bool, show: Show, tell: Show) -> Exit:
    """Watch until Ctrl-C.

    Args:
        options: of :func:`options_of`.
        as_json: each alert as one line of JSON.
        show: prints an alert.
        tell: says how the installation itself is.

    Raises:
        TocsinError: it did not come up, or a process keeps ending; everything has been ended by then.
    """
    stop = stop_on_signal()
    stack = await Stack.prepare(options)
    try:
        async with Bus(stack.bus_settings(), stack.installation.cli_credentials(), Metrics()) as bus:

            async def on_delivered(body: Message, context: Context) -> None:
                if isinstance(body, ThreatAlert):
                    show(_json(body, context) if as_json else _line(body, context))

            await bus.subscribe(DELIVER_ALL, on_delivered)
            try:
                await unless_stopped(stop, _start(stack, bus))
            except StoppedError:
                return Exit.OK
            tell(f"watching {options.host_settings['sentinel_logs']}; Ctrl-C ends it")
            await keep_running(stack, stop, lambda name: tell(f"{name} had ended and was started again"))
    finally:
        await stack.stop()
    return Exit.OK


async def _start(stack: Stack, bus: Bus) -> None:
    stack.start()
    await stack.wait_services(bus, lambda _, __: None)
    await stack.wait_agents(bus, lambda _, __: None)


def _line(alert: ThreatAlert, context: Context) -> str:
    at = datetime.fromtimestamp(context.content.issued_at / 1e9, UTC)
    return f"{at:%Y-%m-%dT%H:%M:%SZ} {alert.severity.value.upper():8} {alert.summary}"


def _json(alert: ThreatAlert, context: Context) -> str:
    record = {
        "at_ns": context.content.issued_at,
        "id": context.content.id.hex(),
        "sender": str(context.sender),
        **alert.model_dump(mode="json", exclude_none=True),
    }
    return json.dumps(record, separators=(",", ":"))
