"""The commands ``tocsin agents ...``: thin functions over :mod:`tocsin.cli.agents`."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated

import typer

from tocsin.bus import Bus
from tocsin.cli import agents
from tocsin.cli.exits import Exit
from tocsin.cli.reach import DEFAULT_STATE, RemoteOption, StateOption, bus, run, show
from tocsin.contracts.errors import InvalidInputError
from tocsin.contracts.fleet import AgentState, RosterRequest
from tocsin.contracts.health import StandingAction, StandingDone
from tocsin.contracts.identifiers import Role, SpiffeId
from tocsin.telemetry import configure_logging

app = typer.Typer(help="The enrolled agents: how they are, and who is quarantined.", no_args_is_help=True)

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
NamesArgument = Annotated[list[str], typer.Argument(help="Names of agents.")]
WhyOption = Annotated[str, typer.Option(help="Why, in a line; it is audited.")]
MAX_TEXT = 512


@app.command("list")
def list_command(
    role: Annotated[Role | None, typer.Option(help="Only agents of this role.")] = None,
    of_state: Annotated[AgentState | None, typer.Option("--is", help="Only agents in this state.")] = None,
    host: Annotated[str | None, typer.Option(help="Only agents of this host.")] = None,
    after: Annotated[str | None, typer.Option(help="Only agents after this name.")] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help=f"Agents that are shown: {agents.SHOWN}, or with --json all.")
    ] = None,
    as_json: JsonOption = False,
    state: StateOption = DEFAULT_STATE,
    remote: RemoteOption = None,
) -> None:
    """Say how the agents are: how many in which state, then each by name."""
    for name in filter(None, (host, after)):
        _check_name(name)
    question = RosterRequest(role=role, state=of_state, host=host, after=after)
    wanted = limit if limit is not None or as_json else agents.SHOWN

    async def work(opened: Bus) -> Exit:
        roster = await agents.read(opened, question, limit=wanted)
        if as_json:
            show(agents.list_json(roster))
        else:
            show("\n".join(agents.list_text(roster, now_ns=agents.now_ns())))
        return Exit.OK

    _do(work, state, remote)


@app.command("show")
def show_command(
    name: Annotated[str, typer.Argument(help="Name of an agent.")],
    as_json: JsonOption = False,
    state: StateOption = DEFAULT_STATE,
    remote: RemoteOption = None,
) -> None:
    """Say all that fleet knows of one agent: what it runs, what is held against it and by whom."""
    _check_name(name)

    async def work(opened: Bus) -> Exit:
        found = await agents.detail(opened, name)
        if as_json:
            show(agents.detail_json(found))
        else:
            show("\n".join(agents.detail_text(found, now_ns=agents.now_ns(), own=agents.own_code())))
        return Exit.OK

    _do(work, state, remote)


@app.command("quarantine")
def quarantine_command(
    names: NamesArgument,
    why: WhyOption,
    as_json: JsonOption = False,
    state: StateOption = DEFAULT_STATE,
    remote: RemoteOption = None,
) -> None:
    """Tell agents nothing sensitive any more, and refuse what they say, until they are released."""
    _order(StandingAction.QUARANTINE, names, why, as_json=as_json, state=state, remote=remote)


@app.command("release")
def release_command(
    names: NamesArgument,
    why: WhyOption = "",
    as_json: JsonOption = False,
    state: StateOption = DEFAULT_STATE,
    remote: RemoteOption = None,
) -> None:
    """End a quarantine; nothing is held against the agents any more, and they are challenged anew."""
    _order(StandingAction.RELEASE, names, why, as_json=as_json, state=state, remote=remote)


@app.command("approve")
def approve_command(
    names: Annotated[
        list[str] | None, typer.Argument(help="Names of agents; none: all that are suspect.")
    ] = None,
    code: Annotated[
        str | None,
        typer.Option(metavar="HEX", help="Only those that run code of this digest (8 digits or more)."),
    ] = None,
    this_version: Annotated[
        bool, typer.Option("--this-version", help="Only those that run the code that this command comes with.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Approve; without it the agents are only listed.")] = False,
    state: StateOption = DEFAULT_STATE,
    remote: RemoteOption = None,
) -> None:
    """Allow agents what they run now, after an upgrade: what this command has shown, not what they run by then."""
    for name in names or ():
        _check_name(name)

    async def work(opened: Bus) -> Exit:
        own = agents.own_code()
        wanted = await agents.unapproved(opened, names or None)
        if this_version:
            wanted = [one for one in wanted if one.measurement.code == own]
        if code is not None:
            wanted = agents.with_code(wanted, code)
        if not wanted:
            show("nothing to approve")
            return Exit.OK
        show("\n".join(agents.approval_text(wanted, own)))
        if not yes:
            show("not approved yet: add --yes")
            return Exit.OK
        changed = await agents.approve(opened, wanted)
        show(f"approved   {len(changed)} agents: {_some(tuple(changed))}")
        return Exit.OK

    _do(work, state, remote)


def _order(
    action: StandingAction, names: list[str], why: str, *, as_json: bool, state: Path, remote: str | None
) -> None:
    if len(why) > MAX_TEXT:
        raise InvalidInputError(f"--why has more than {MAX_TEXT} characters", reason="too_large")
    for name in names:
        _check_name(name)

    async def work(opened: Bus) -> Exit:
        done = await agents.order(opened, action, sorted(set(names)), why)
        show(json.dumps(done.model_dump(mode="json")) if as_json else "\n".join(_done(action, done)))
        return Exit.OK

    _do(work, state, remote)


def _done(action: StandingAction, done: StandingDone) -> list[str]:
    lines = [f"{action.value:<10} {_some(done.changed)}"] if done.changed else []
    return lines + ([f"unchanged  {_some(done.unchanged)}"] if done.unchanged else [])


def _some(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - agents.SHOWN} more" if len(names) > agents.SHOWN else ""
    return ", ".join(names[: agents.SHOWN]) + more


def _check_name(name: str) -> None:
    """Refuse what nobody can be called, before anything is asked.

    Raises:
        InvalidInputError: ``bad_identity``.
    """
    SpiffeId.host("any", name)


def _do(work: Callable[[Bus], Awaitable[Exit]], state: Path, remote: str | None) -> None:
    folder = state.absolute()

    async def whole() -> Exit:
        configure_logging("agents", level="error")
        async with bus(folder, remote) as opened:
            return await work(opened)

    raise typer.Exit(run(whole()))
