"""``tocsin demo``: one real attack runs its course and is written down; what was started for it is ended.

It starts a system of its own, or runs against one that is there (``--remote``).
"""

from __future__ import annotations

import asyncio
import shutil
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from tocsin.agent.epochs import fetch_proof
from tocsin.analysis.labels import compare
from tocsin.bus import Bus, StoppedError, stop_on_signal, unless_stopped
from tocsin.cli import report
from tocsin.cli.exits import Exit
from tocsin.cli.feed import Fed, feed
from tocsin.cli.installation import CONSENSUS_INSTANCES
from tocsin.cli.job import Job
from tocsin.cli.livefire import CANARY, Traffic, drive, standing_sensors
from tocsin.cli.screen import Screen
from tocsin.cli.stack import Stack, StackOptions
from tocsin.cli.story import JobOutcome, Story
from tocsin.cli.summary import response_of, shown_path, summarise
from tocsin.cli.sweep import Swept, sweep
from tocsin.cli.system import Remote, System, instances_in_words
from tocsin.contracts.catalogue import MONITOR_FIGURES
from tocsin.contracts.errors import TocsinError, UnavailableError
from tocsin.contracts.identifiers import Role
from tocsin.contracts.operations import Figures, FiguresRequest
from tocsin.evidence.verification import VerifiedDecision, verify
from tocsin.telemetry import Metrics

FIGURES_INTERVAL_S = 1.0
REPORT_FIGURES_WITHIN_S = 15.0
"""The job is done by then, so its report waits for a monitor that is starved of its core."""
LAST_FIGURES_S = 1.2
"""Every process publishes its figures each second: wait for those that include the end of the story."""
SENSORS_TIMEOUT_S = 10.0
SEEN_BEFORE = (
    "agents act once on an attack: did they see this one within the last hour? Another input is new to them"
)
OUTCOMES = {
    JobOutcome.RESPONDED: Exit.OK,
    JobOutcome.NO_ANOMALIES: Exit.OK,
    JobOutcome.BENIGN: Exit.OK,
    JobOutcome.NOT_DECIDED: Exit.NOT_DECIDED,
    JobOutcome.INCOMPLETE: Exit.INCOMPLETE,
    JobOutcome.NOT_ASSESSED: Exit.NOT_DECIDED,
}


class InterruptedRunError(TocsinError):
    """A person or the system ended the run."""

    reason = "interrupted"
    exit_code = Exit.INTERRUPTED


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What to demonstrate, and where to write."""

    folder: Path
    """``runs/<time>``: the report, the logs and, while it runs, the state."""
    source: str | None
    """Input file, ``-``, or None for live fire."""
    remote: Remote | None = None
    """Runs already; else a system of these sizes is started."""
    agents: int = 40
    hosts: int = 4
    port: int = -1
    keep_state: bool = False
    consensus: int = CONSENSUS_INSTANCES

    async def system(self) -> System:
        """Return the system to demonstrate, its broker running.

        Raises:
            TocsinError: as :meth:`Stack.prepare`.
        """
        if self.remote is not None:
            return self.remote
        return await Stack.prepare(
            StackOptions(
                self.folder / "state",
                self.folder / "logs",
                domain="demo.tocsin",
                agents=self.agents,
                hosts=self.hosts,
                consensus=self.consensus,
                port=self.port,
                log_level="warning",
            )
        )


def run_folder(runs: Path) -> Path:
    """Make a folder named after the present; a second run in the same second gets a suffix.

    Raises:
        UnavailableError: ``not_writable``.
    """
    stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%SZ")
    for suffix in ("", *(f"-{number}" for number in range(2, 100))):
        folder = (runs / f"{stamp}{suffix}").absolute()
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise UnavailableError(
                f"cannot write to {runs}: {error.strerror}",
                reason="not_writable",
                advice="choose another with --runs",
            ) from error
        return folder
    time.sleep(1)
    return run_folder(runs)


async def run_demo(options: DemoOptions, console: Console) -> Exit:
    """Run the whole demonstration.

    Raises:
        TocsinError: what failed; everything that was started has been ended by then.
    """
    interrupted = stop_on_signal()
    system: System | None = None
    where = "live fire on loopback" if options.remote is None else f"live fire at {options.remote.nats_url}"
    agents = options.agents if options.remote is None else len(options.remote.agents)
    title = f"Tocsin: {options.source or where}, {agents} agents"
    try:
        with Screen(console, title=title) as screen:
            screen.begin("start", "the broker")
            system = await unless_stopped(interrupted, options.system())
            async with AsyncExitStack() as opened:
                connecting = Bus(system.bus_settings(), system.installation.cli_credentials(), Metrics())
                bus = await unless_stopped(interrupted, opened.enter_async_context(connecting))
                run = await unless_stopped(interrupted, _perform(options, system, bus, screen))
        files = report.write(run, options.folder, system.installation.root_pem)
        summarise(console, run, files)
        return Exit.BAD_INPUT if run.fed is not None and run.fed.unreadable else OUTCOMES[run.outcome]
    except StoppedError as error:
        raise InterruptedRunError("interrupted; everything that was started has been ended") from error
    finally:
        if system is not None:
            await system.stop()
        if not options.keep_state:
            shutil.rmtree(options.folder / "state", ignore_errors=True)


async def _perform(options: DemoOptions, system: System, bus: Bus, screen: Screen) -> report.Run:
    """Start the services and agents, make the attack happen, follow the story, gather what is known."""
    guardians = sum(agent.role is Role.GUARDIAN for agent in system.agents)
    advice = None if options.remote is None else SEEN_BEFORE
    job = Job(bus, guardians=guardians, tell=screen.tell, advice=advice)
    await job.watch()
    system.start()
    begun = time.monotonic()
    await system.wait_services(bus, screen.process)
    roster = await system.wait_agents(bus, screen.process)
    epoch = await system.install_epoch(bus, roster)
    system.timings_s["ready"] = time.monotonic() - begun
    weak = "" if epoch.byzantine_tolerant else f" (not Byzantine-tolerant: {epoch.why_not})"
    job.note(
        "start",
        f"{system.what}, {epoch.participants} agents, quorum {epoch.quorum}{weak}; {instances_in_words(epoch)}",
        headline=True,
    )
    screen.done("start")
    figures = bus.spawn(_show_figures(bus, screen), "figures")
    fed, traffic = await _attack(options, system, bus, job, screen)
    expected = traffic is not None or bool(fed and fed.taken and fed.taken.findings)
    outcome = await job.follow(expected=expected)
    for case in job.story.cases.values():
        if case.actuations:
            job.note("response", response_of(case), headline=True)
    swept = await _sweep(system, bus, job) if outcome is JobOutcome.RESPONDED else None
    screen.begin("report", "gathering the last figures")
    certificates = await _certificates(bus, job.story, system.installation.root_pem)
    await asyncio.sleep(LAST_FIGURES_S)
    figures.cancel()
    run = report.Run(
        outcome=outcome,
        story=job.story,
        source=options.source or "live fire",
        fed=fed,
        traffic=traffic,
        comparison=compare(job.story.findings, fed.labelled) if fed and fed.labelled else None,
        figures=await _figures(bus),
        epoch=epoch,
        certificates=certificates,
        swept=swept,
        timings_s=system.timings_s,
        ended_ns=time.time_ns(),
    )
    screen.done("report", shown_path(options.folder))
    return run


async def _attack(
    options: DemoOptions, system: System, bus: Bus, job: Job, screen: Screen
) -> tuple[Fed | None, Traffic | None]:
    """Feed the input, or make traffic."""
    if options.source is None:
        await _sensors(system, bus, job)
        targets = [sensor for sensor in job.story.sensors if sensor.imitates != CANARY]
        screen.begin("input", f"traffic against {len(targets)} honeypots")
        job.attack_begins()
        traffic = await drive(job.story.sensors)
        job.note(
            "input",
            f"{traffic.ordinary} ordinary connections, a scan of {traffic.scan} ports, "
            f"{traffic.brute_force} log-in attempts",
        )
        return None, traffic
    sentinel = next(agent.name for agent in system.agents if agent.role is Role.SENTINEL)
    screen.begin("input", f"reading {options.source}")
    job.attack_begins()
    fed = await feed(bus, sentinel, options.source)
    if fed.statistics:
        job.note(
            "input",
            f"{fed.statistics.flows:,} connections, {fed.statistics.ids_alerts:,} IDS alerts, "
            f"{fed.statistics.bad:,} bad lines",
        )
    return fed, None


async def _sweep(system: System, bus: Bus, job: Job) -> Swept | None:
    """Have the hunters watch for what was found."""
    main = job.story.main
    if main is None or main.assessment is None:
        return None
    return await sweep(system, bus, job, main.assessment.subject)


async def _sensors(system: System, bus: Bus, job: Job) -> None:
    """Wait until every deception agent has announced a honeypot, now or before this command came.

    Raises:
        UnavailableError: ``no_honeypots``.
    """
    expected = {agent.name for agent in system.agents if agent.role is Role.DECEPTION}
    deadline = time.monotonic() + SENSORS_TIMEOUT_S
    while True:
        job.story.sensors[:] = await standing_sensors(bus)
        if expected <= {sensor.agent for sensor in job.story.sensors}:
            return
        if time.monotonic() > deadline:
            raise UnavailableError("the deception agents opened no honeypots", reason="no_honeypots")
        await asyncio.sleep(0.25)


async def _certificates(bus: Bus, story: Story, root_pem: bytes) -> dict[bytes, tuple[bytes, VerifiedDecision]]:
    """Fetch each decision's certificate and verify it as anyone would: with the root alone."""
    held = {}
    for case in story.cases.values():
        if case.decision is not None and case.decision.object_name is not None:
            data = await fetch_proof(bus, case.decision.decision)
            verified = await asyncio.to_thread(verify, data, root_pem)
            held[case.decision.decision] = (data, verified)
    return held


async def _figures(bus: Bus) -> Figures:
    return await bus.request(MONITOR_FIGURES, FiguresRequest(), timeout_s=REPORT_FIGURES_WITHIN_S)


async def _show_figures(bus: Bus, screen: Screen) -> None:
    while True:
        await asyncio.sleep(FIGURES_INTERVAL_S)
        try:
            screen.figures(await bus.request(MONITOR_FIGURES, FiguresRequest(), timeout_s=3.0))
        except UnavailableError:
            continue  # a busy second; the next one shows it
