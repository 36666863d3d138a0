"""``tocsin up``: everything on this machine, until a signal; what ends meanwhile is started again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from rich.console import Console

from tocsin.bus import Bus, Context, StoppedError, stop_on_signal, unless_stopped
from tocsin.cli.exits import Exit
from tocsin.cli.livefire import CANARY
from tocsin.cli.stack import Stack, StackOptions
from tocsin.cli.system import instances_in_words
from tocsin.contracts.catalogue import AUDIT, EVENT
from tocsin.contracts.decisions import MIN_PARTICIPANTS
from tocsin.contracts.errors import UnavailableError
from tocsin.contracts.health import AttestationRefused
from tocsin.contracts.observations import SensorReady
from tocsin.telemetry import Metrics

CHECK_INTERVAL_S = 0.5


async def run_up(options: StackOptions, console: Console) -> Exit:
    """Start the stack and keep it running.

    Raises:
        TocsinError: it did not come up, or a process keeps ending; everything has been ended by then.
    """
    stop = stop_on_signal()
    stack = await Stack.prepare(options)
    try:
        async with Bus(stack.bus_settings(), stack.installation.cli_credentials(), Metrics()) as bus:
            try:
                await unless_stopped(stop, _start(stack, bus, console))
            except StoppedError:
                return Exit.OK
            await keep_running(
                stack, stop, lambda name: console.print(f"{name} had ended and was started again")
            )
    finally:
        console.print("stopping …")
        await stack.stop()
    return Exit.OK


async def keep_running(stack: Stack, stop: asyncio.Event, tell: Callable[[str], None]) -> None:
    """Start again what ends, until ``stop``.

    Raises:
        UnavailableError: ``broker_ended`` or ``restart_loop``.
    """
    while not stop.is_set():
        _check_broker(stack)
        for name in stack.supervisor.restart_ended():
            tell(name)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CHECK_INTERVAL_S):
                await stop.wait()


def _check_broker(stack: Stack) -> None:
    """Fail if the broker has ended: nobody can hear anybody, and its port may be another's by now.

    Raises:
        UnavailableError: ``broker_ended``.
    """
    code = stack.broker.process.poll()
    if code is not None:
        raise UnavailableError(
            f"the broker ended with code {code}; everything else has been ended too",
            reason="broker_ended",
            advice=f"see {stack.broker.folder / 'nats.log'}; the same command continues from the state folder",
        )


async def _start(stack: Stack, bus: Bus, console: Console) -> None:
    def progress(what: str, state: str) -> None:
        if state == "ready":
            console.print(f"  {what} ready")

    honeypots: list[SensorReady] = []
    up = False

    async def on_sensor(sensor: SensorReady, _: Context) -> None:
        if sensor.imitates == CANARY:
            return
        honeypots.append(sensor)
        if up:  # a host was started again, and its honeypots have other ports now
            console.print(f"  {sensor.agent} opened a honeypot on port {sensor.port}", highlight=False)

    asked_for_approval = False

    async def on_refused(refused: AttestationRefused, _: Context) -> None:
        nonlocal asked_for_approval
        if refused.reason == "wrong_measurement" and not asked_for_approval:
            asked_for_approval = True
            console.print(
                "Agents run other code or settings than they were enrolled with, and are suspect. If that is your "
                f"upgrade: tocsin agents approve --this-version --yes --state {stack.options.state}",
                soft_wrap=True,
            )

    await bus.subscribe(AUDIT, on_refused, at={"kind": "attestation"})
    sensor_tokens = {"service": "agent", "kind": "sensor"}
    await bus.subscribe(EVENT, on_sensor, at=sensor_tokens)
    stack.start()
    await stack.wait_services(bus, progress)
    roster = await stack.wait_agents(bus, progress)
    hosts = len({agent.host for agent in stack.agents})
    if len(stack.agents) >= MIN_PARTICIPANTS:
        epoch = await stack.install_epoch(bus, roster)
        quorum = f"quorum {epoch.quorum}; {instances_in_words(epoch)}"
    else:
        quorum = f"too few to decide anything: that takes {MIN_PARTICIPANTS}"
    url_file, token = stack.api_url_file, stack.installation.api_token
    console.print(f"[bold]Tocsin is up[/bold]: {len(stack.agents)} agents on {hosts} hosts, {quorum}")
    for label, value in (
        ("broker", f"{stack.broker.url}  (token in {stack.broker.token_file})"),
        (
            "REST",
            f"{url_file.read_text().strip()}  (token in {token})" if url_file.exists() else "-",
        ),
        ("root", str(stack.options.state / "ca" / "root.pem")),
        ("logs", str(stack.options.logs)),
        ("traps", f"honeypots on 127.0.0.1, ports {' '.join(str(h.port) for h in honeypots) or '-'}"),
    ):
        console.print(f"  {label:7} {value}", soft_wrap=True, highlight=False)
    console.print(
        "Ctrl-C ends it. Try: tocsin tail 'event.>' --state " + str(stack.options.state), soft_wrap=True
    )
    up = True
