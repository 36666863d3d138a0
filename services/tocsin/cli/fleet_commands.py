"""The commands about who belongs to the fleet: enrolment, tokens, and the authority's rotation."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from tocsin.cli import rotate, tokens
from tocsin.cli.enroll import enroll
from tocsin.cli.exits import Exit
from tocsin.cli.installation import Installation
from tocsin.cli.invite import issue_ticket, parse_agents, parse_duration, write_ticket
from tocsin.cli.reach import DEFAULT_STATE, address
from tocsin.cli.reach import bus as open_bus
from tocsin.contracts.errors import InvalidInputError
from tocsin.telemetry import configure_logging

RemoteOption = Annotated[
    str | None,
    typer.Option("--remote", metavar="URL", help="Broker of a stack that runs, e.g. nats://127.0.0.1:4222."),
]
StateOption = Annotated[Path, typer.Option(help="State folder of `tocsin up`, or the one of `tocsin init`.")]


def register(agent_app: typer.Typer, ca_app: typer.Typer) -> None:
    """Add the commands."""
    agent_app.command("enroll")(agent_enroll)
    agent_app.command("tokens")(agent_tokens)
    ca_app.command("rotate")(ca_rotate)


def agent_enroll(
    host: Annotated[str | None, typer.Argument(help="With --issue: name of the new host.")] = None,
    agents: Annotated[
        list[str] | None, typer.Argument(help="With --issue: its agents, name:role each.")
    ] = None,
    issue: Annotated[
        Path | None,
        typer.Option(help="Write a ticket for the new host, with one-time tokens, into this file."),
    ] = None,
    token: Annotated[
        Path | None, typer.Option(help="On the new host: redeem this ticket, and be certified at once.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="With --token: the host's folder, to be made.")] = None,
    expires: Annotated[
        str, typer.Option(help="With --issue: how long it can be redeemed, e.g. 30m, 1h or 2d.")
    ] = "1h",
    timeout: Annotated[
        float, typer.Option(min=1, max=3600, help="With --token: seconds to wait for the broker and fleet.")
    ] = 30.0,
    state: StateOption = DEFAULT_STATE,
    remote: RemoteOption = None,
) -> None:
    """Enrol a host with its agents: --issue makes its ticket, --token redeems it on the new host."""
    if (issue is None) == (token is None):
        raise InvalidInputError("say either --issue FILE or --token FILE", reason="bad_options")
    if issue is not None:
        if host is None or not agents:
            raise InvalidInputError("--issue needs a host and its agents", reason="bad_options")
        installation = Installation.find(state.absolute())
        ticket = issue_ticket(
            installation,
            address(installation, remote),
            host,
            parse_agents(agents, host),
            expires_s=parse_duration(expires),
            now_ns=time.time_ns(),
        )
        write_ticket(ticket, issue)
        _show(f"{issue}  for host {host} with {len(agents)} agents, good for {expires}")
        _show("it holds secrets: give it to that host alone, and delete it afterwards")
        return
    assert token is not None  # noqa: S101 - one of the two is there
    if out is None or host is not None:
        raise InvalidInputError(
            "--token needs --out FOLDER, and no names: the ticket has them", reason="bad_options"
        )
    configure_logging("enroll", level="error")
    env, settings = uvloop.run(enroll(token, out.absolute(), remote=remote, timeout_s=timeout))
    _show(f"enrolled   host {settings.host_name} with {settings.host_agents}")
    _show(f"start it   TOCSIN_SETTINGS_FILE={env} {sys.executable} -m tocsin.agent")


def agent_tokens(
    withdraw: Annotated[
        list[str] | None, typer.Option(help="Take this token back: it enrols no further key.")
    ] = None,
    clean: Annotated[
        bool, typer.Option("--clean", help="Forget tokens that have ended and were never used.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print them as JSON.")] = False,
    state: StateOption = DEFAULT_STATE,
    remote: RemoteOption = None,
) -> None:
    """List the enrolment tokens and what became of them, or take some back."""
    installation = Installation.find(state.absolute())
    if withdraw:
        tokens.withdraw(installation, withdraw, now_ns=time.time_ns())
        for one in withdraw:
            _show(
                f"withdrawn  {one}; a key that was enrolled with it before goes on (`tocsin ca revoke` ends it)"
            )
        return

    async def run() -> Exit:
        configure_logging("tokens", level="error")
        async with open_bus(state.absolute(), remote) as bus:
            found = await tokens.views(bus, installation, now_ns=time.time_ns())
        if clean:
            _show(f"forgotten  {tokens.clean(installation, found)} tokens")
        elif as_json:
            _show(json.dumps([asdict(one) for one in found], indent=2))
        else:
            _show("\n".join(tokens.as_text(found)))
        return Exit.OK

    raise typer.Exit(_run(run()))


def ca_rotate(
    wait: Annotated[
        float, typer.Option(min=0, max=7 * 86_400, help="Seconds to wait until all have renewed.")
    ] = 120.0,
    finish: Annotated[
        bool,
        typer.Option(
            "--finish", help="Retire the old authority though some have not renewed: they enrol again."
        ),
    ] = False,
    state: StateOption = DEFAULT_STATE,
    remote: RemoteOption = None,
) -> None:
    """Replace the authority that fleet holds, while everything runs. Needs the root's key."""

    async def run() -> Exit:
        configure_logging("rotate", level="error")
        installation = Installation.find(state.absolute())
        async with open_bus(state.absolute(), remote) as bus:
            rotation = await asyncio.to_thread(rotate.begin, installation)
            _show(f"old        {rotation.old.hex()}")
            _show(f"new        {rotation.new.hex()}")
            pending = await rotate.renewed(
                bus, rotation, timeout_s=wait, progress=lambda what: _show(f"overlap    {what}")
            )
            if pending and not finish:
                _show(f"pending    {len(pending)}: {', '.join(pending[:5])}")
                _show("both count; run the command again to go on, or with --finish to retire the old one now")
                return Exit.INCOMPLETE
            done = await rotate.finish(bus, installation, rotation)
        _show(f"retired    {rotation.old.hex()}; list {done.number} of revoked keys is in force")
        return Exit.OK

    raise typer.Exit(_run(run()))


def _run(work: Awaitable[Exit]) -> Exit:
    async def run() -> Exit:
        return await work

    return uvloop.run(run())


def _show(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
