"""``tocsin mission``: start missions, follow them to their end, list them."""

from __future__ import annotations

import asyncio
import json
import time
import tomllib
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from pydantic import ValidationError

from tocsin.bus import Bus, Context
from tocsin.cli import reach
from tocsin.cli.exits import Exit
from tocsin.cli.reach import DEFAULT_STATE, RemoteOption, StateOption
from tocsin.contracts.base import Message
from tocsin.contracts.catalogue import EVENT, EVENT_MISSION, FLEET_COORDINATE, FLEET_MISSION, FLEET_MISSIONS
from tocsin.contracts.errors import InvalidInputError, UnavailableError
from tocsin.contracts.identifiers import Role
from tocsin.contracts.missions import (
    MAX_DEADLINE_S,
    MAX_OBJECTIVES,
    MissionEvent,
    MissionList,
    MissionListRequest,
    MissionQuestion,
    MissionRecord,
    MissionRequest,
    MissionState,
    MissionView,
    Objective,
    ObjectiveState,
)
from tocsin.telemetry import configure_logging

M = TypeVar("M", bound=Message)

mission_app = typer.Typer(help="Missions: objectives that agents reach together.", no_args_is_help=True)

ASK_S = 10.0
LOOK_S = 1.0
"""How often fleet is asked, should no news come."""
PATIENCE_S = 60.0
"""For how long fleet may be away while a mission is watched."""
MAX_SHOWN = 40
"""Objectives that are printed; ``--json`` has all."""
NS_PER_S = 1e9
_, _SERVICE, _KIND = EVENT_MISSION.name.split(".")

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Say = Callable[[str], None]


@mission_app.command("start")
def mission_start(
    file: Annotated[
        Path | None, typer.Argument(help="The mission, as JSON or TOML; without it, the options describe one.")
    ] = None,
    title: Annotated[str, typer.Option(help="What it is for, in a line.")] = "",
    name: Annotated[str | None, typer.Option(help="Its name; fleet makes one if not given.")] = None,
    task: Annotated[str, typer.Option(help="What each agent is to do; every agent knows `watch`.")] = "watch",
    subject: Annotated[str, typer.Option(help="What about, e.g. an address.")] = "",
    role: Annotated[Role | None, typer.Option(help="Only agents of this role.")] = None,
    count: Annotated[int, typer.Option(min=1, max=MAX_OBJECTIVES, help="How many objectives.")] = 1,
    work: Annotated[float, typer.Option(min=0.001, max=MAX_DEADLINE_S, help="Seconds that each takes.")] = 5.0,
    deadline: Annotated[
        float,
        typer.Option(min=0.001, max=MAX_DEADLINE_S, help="Seconds after which it ends, whatever is open."),
    ] = 3_600.0,
    links: Annotated[int | None, typer.Option(min=0, help="Links that the topology may have at most.")] = None,
    hops: Annotated[int | None, typer.Option(min=1, help="Longest path that it may have.")] = None,
    channels: Annotated[
        bool, typer.Option(help="Open the channels along the topology beforehand, or each on its first use.")
    ] = True,
    watch: Annotated[bool, typer.Option("--watch", help="Follow it to its end, and print the result.")] = False,
    as_json: JsonOption = False,
    state: StateOption = DEFAULT_STATE,
    remote: RemoteOption = None,
) -> None:
    """Start a mission: what cannot be done is said before anything starts."""
    if file is not None:
        request = read_mission(file)
    else:
        request = MissionRequest(
            title=title[:512],
            mission=name,
            objectives=tuple(
                _valid(
                    Objective,
                    {
                        "name": f"{task}-{number + 1}",
                        "task": task,
                        "subject": subject,
                        "role": role,
                        "work": work,
                        "deadline_s": min(max(60.0, 2 * work), MAX_DEADLINE_S),
                    },
                )
                for number in range(count)
            ),
            links=links,
            hops=hops,
            channels=channels,
            deadline_s=deadline,
        )

    async def run(bus: Bus, say: Say) -> Exit:
        mission = (await bus.request(FLEET_COORDINATE, request, timeout_s=ASK_S)).mission
        if watch:
            if not as_json:
                say(f"started    {mission}: {len(request.objectives)} objectives")
            return _told(await follow(bus, mission, _nothing if as_json else say), say, as_json=as_json)
        say(json.dumps({"mission": mission}) if as_json else mission)
        return Exit.OK

    _with_bus(run, state, remote)


@mission_app.command("watch")
def mission_watch(
    mission: Annotated[str, typer.Argument(help="Its name.")],
    as_json: JsonOption = False,
    state: StateOption = DEFAULT_STATE,
    remote: RemoteOption = None,
) -> None:
    """Follow a mission to its end, and print the result. Exits with 4 if it ends incomplete."""

    async def run(bus: Bus, say: Say) -> Exit:
        return _told(await follow(bus, mission, _nothing if as_json else say), say, as_json=as_json)

    _with_bus(run, state, remote)


@mission_app.command("list")
def mission_list(
    which: Annotated[MissionState | None, typer.Option("--only", help="Only missions that are so.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1024, help="How many at most, the youngest first.")] = 20,
    as_json: JsonOption = False,
    state: StateOption = DEFAULT_STATE,
    remote: RemoteOption = None,
) -> None:
    """List missions, the youngest first."""

    async def run(bus: Bus, say: Say) -> Exit:
        found = await bus.request(FLEET_MISSIONS, MissionListRequest(state=which, limit=limit), timeout_s=ASK_S)
        say(found.model_dump_json(indent=2) if as_json else "\n".join(list_lines(found)))
        return Exit.OK

    _with_bus(run, state, remote)


def read_mission(path: Path) -> MissionRequest:
    """Read a mission from a file: TOML if its name ends so, else JSON.

    Raises:
        InvalidInputError: ``malformed``, or ``bad_body``, which names the fields that are wrong.
    """
    data = reach.read(path)
    try:
        fields = tomllib.loads(data.decode()) if path.suffix == ".toml" else json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"{path}: {error}", reason="malformed") from error
    return _valid(MissionRequest, fields, where=f"{path}: ")


async def follow(bus: Bus, mission: str, say: Say) -> MissionView:
    """Say what happens to a mission until it has ended; return all of it.

    Raises:
        InvalidInputError: ``no_such_mission``.
        UnavailableError: ``no_answer``: fleet is away for too long.
    """
    news = asyncio.Event()

    async def on_news(event: MissionEvent, _: Context) -> None:
        if event.mission == mission:
            say(news_line(event))
            news.set()

    await bus.subscribe(EVENT, on_news, at={"service": _SERVICE, "kind": _KIND})
    heard_s = time.monotonic()
    last = ""
    while True:
        try:
            view = await bus.request(FLEET_MISSION, MissionQuestion(mission=mission), timeout_s=ASK_S)
            heard_s = time.monotonic()
        except UnavailableError:
            # A fleet that restarts goes on with its missions.
            if time.monotonic() - heard_s > PATIENCE_S:
                raise
            continue
        if view.record.state is not MissionState.RUNNING:
            return view
        if (line := progress_line(view)) != last:
            say(line)
            last = line
        news.clear()
        try:
            async with asyncio.timeout(LOOK_S):
                await news.wait()
        except TimeoutError:
            continue


def news_line(event: MissionEvent) -> str:
    """Return what has happened, in a line."""
    took = f" after {event.ms:.1f} ms" if event.ms is not None else ""
    about = (
        f": {', '.join(event.concerns[:5])}{' …' if len(event.concerns) > 5 else ''}" if event.concerns else ""
    )
    return f"{event.news.value:<12}{took.strip()}{about if not event.text else f' {event.text}'}".rstrip()


def progress_line(view: MissionView) -> str:
    """Return how far a mission is, in a line."""
    states = Counter(one.state for one in view.record.objectives)
    shares = sum(view.progress.values()) + states[ObjectiveState.DONE]
    counted = ", ".join(f"{count} {state.value}" for state in ObjectiveState if (count := states[state]))
    return f"{'progress':<12}{100 * shares / len(view.record.objectives):.0f} %: {counted}{_links(view)}"


def _links(view: MissionView) -> str:
    if view.links is None or not view.links.wanted:
        return ""
    failed = view.links.failed
    why = f", {failed[0].agent} to {failed[0].peer}: {failed[0].reason}" if failed else ""
    return f"; {view.links.open} of {view.record.topology.links} channels open{why}"


def result_lines(record: MissionRecord) -> list[str]:
    """Return a mission's result, in lines for a person."""
    done = sum(one.state is ObjectiveState.DONE for one in record.objectives)
    took_s = (record.ended_ns - record.proposed_ns) / NS_PER_S
    lines = [
        f"{record.state.value:<12}{record.mission}: {done} of {len(record.objectives)} objectives in {took_s:.1f} s"
    ]
    if record.coordinated_ns:
        took_ms = (record.coordinated_ns - record.proposed_ns) / 1e6
        lines.append(f"{'coordinated':<12}after {took_ms:.1f} ms, {record.taken_over} taken over")
    topology = record.topology
    lines.append(
        f"{'topology':<12}{len(topology.members)} agents, {topology.links} links, paths of at most {topology.hops}"
    )
    if record.efficiency is not None:
        lines.append(
            f"{'efficiency':<12}{100 * record.efficiency:.1f} %, utilisation {100 * (record.utilisation or 0):.1f} %"
        )
    for one in record.objectives[:MAX_SHOWN]:
        what = one.summary if one.state is ObjectiveState.DONE else one.reason
        lines.append(f"  {one.state.value:<10}  {one.objective.name:<16}  {one.agent:<16}  {what}")
    if len(record.objectives) > MAX_SHOWN:
        lines.append(f"  ... and {len(record.objectives) - MAX_SHOWN} more objectives; --json shows all")
    return lines


def list_lines(found: MissionList) -> list[str]:
    """Return some missions, a line each."""
    if not found.missions:
        return ["no missions"]
    lines = [f"{'mission':<16}  {'state':<10}  {'done':>9}  {'agents':>6}  title"]
    lines += [
        f"{one.mission:<16}  {one.state.value:<10}  {one.done:>4}/{one.objectives:<4}  {one.agents:>6}  {one.title}"
        for one in found.missions
    ]
    if found.total > len(found.missions):
        lines.append(f"... and {found.total - len(found.missions)} more; --limit shows them")
    return lines


def _told(view: MissionView, say: Say, *, as_json: bool) -> Exit:
    record = view.record
    say(record.model_dump_json(indent=2) if as_json else "\n".join(result_lines(record)))
    return Exit.OK if record.state is MissionState.COMPLETE else Exit.INCOMPLETE


def _valid(model: type[M], fields: object, *, where: str = "") -> M:
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        wrong = [
            f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors(include_input=False)[:3]
        ]
        raise InvalidInputError(f"{where}{'; '.join(wrong)}"[:400], reason="bad_body") from error


def _with_bus(work: Callable[[Bus, Say], Awaitable[Exit]], state: Path, remote: str | None) -> None:
    async def run() -> Exit:
        configure_logging("mission", level="error")
        async with reach.bus(state, remote) as bus:
            return await work(bus, reach.show)

    raise typer.Exit(reach.run(run()))


def _nothing(_: str) -> None:
    """Say nothing: what is printed is one JSON object."""
