"""The command line: thin functions over the modules beside this one.

An error is one line on standard error that says what went wrong and what to do; its code is in
:mod:`tocsin.cli.exits`. A defect of ours shows its trace only with ``TOCSIN_TRACEBACK=1``.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tocsin.bus import stop_on_signal
from tocsin.bus.service import VERSION
from tocsin.cli import (
    authority,
    decision,
    doctor,
    epoch,
    fleet_commands,
    incident,
    ingest,
    qkd,
    respond,
    tail,
    traps,
)
from tocsin.cli.agents_app import app as agents_app
from tocsin.cli.exits import Exit
from tocsin.cli.inspect import INVALID, inspect, parse
from tocsin.cli.installation import Installation
from tocsin.cli.inventory import inventory_command
from tocsin.cli.mission import mission_app
from tocsin.cli.reach import DEFAULT_STATE, RemoteOption, StateOption
from tocsin.cli.reach import address as _address
from tocsin.cli.reach import bus as _bus
from tocsin.cli.reach import read as _read
from tocsin.cli.reach import run as _run
from tocsin.cli.reach import show as _show
from tocsin.contracts.errors import ConflictError, InvalidInputError, TocsinError
from tocsin.contracts.identifiers import ServiceName, Severity
from tocsin.contracts.revocations import RevocationReason
from tocsin.contracts.routing import MAX_DEADLINE_S, ThreatAlert
from tocsin.crypto import Authority, TrustStore
from tocsin.telemetry import configure_logging

app = typer.Typer(
    help="Coordinate fleets of security agents: signed, decided by vote, provably delivered.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
envelope_app = typer.Typer(help="Envelopes: what travels on the bus.", no_args_is_help=True)
ca_app = typer.Typer(help="The certificate authority of an installation.", no_args_is_help=True)
app.add_typer(decision.app, name="decision")
app.add_typer(envelope_app, name="envelope")
app.add_typer(ca_app, name="ca")
agent_app = typer.Typer(help="Agents of one's own.", no_args_is_help=True)
app.add_typer(agent_app, name="agent")
alert_app = typer.Typer(help="Alerts, and the proof of their delivery.", no_args_is_help=True)
app.add_typer(alert_app, name="alert")
app.command("inventory")(inventory_command)
ingest.register(app)
app.add_typer(incident.app, name="incident")

app.add_typer(agents_app, name="agents")
app.add_typer(qkd.app, name="qkd")
respond.register(app)
traps.register(app)

app.add_typer(mission_app, name="mission")
app.add_typer(epoch.app, name="epoch")
DEFAULT_STACK = Path("deploy/stack")
StackOption = Annotated[
    Path, typer.Option(envvar="TOCSIN_DIR", help="Folder that `tocsin init` made, of the stack to reach.")
]
AgentsOption = Annotated[int, typer.Option(help="How many agents, of all eight roles.")]
HostsOption = Annotated[int, typer.Option(help="How many agent hosts (processes) carry them.")]
ConsensusOption = Annotated[
    int, typer.Option(min=1, max=16, help="How many consensus instances; 3g + 1 tolerate g hostile ones.")
]
PortOption = Annotated[
    int, typer.Option(min=-1, max=65535, help="Port of the embedded broker; -1 takes a free one.")
]
fleet_commands.register(agent_app, ca_app)
MAX_TEXT = 512
"""Characters of an alert's summary."""


@app.command()
def demo(
    source: Annotated[
        str | None,
        typer.Option(
            "--input", help="Suricata EVE or Zeek conn.log, or - for standard input; without it, live fire."
        ),
    ] = None,
    agents: AgentsOption = 40,
    hosts: HostsOption = 4,
    runs: Annotated[Path, typer.Option(help="Where the folder of this run is made.")] = Path("runs"),
    port: PortOption = -1,
    keep_state: Annotated[bool, typer.Option(help="Keep the keys and the broker's files of the run.")] = False,
    consensus: ConsensusOption = 4,
    remote: RemoteOption = None,
    state: StackOption = DEFAULT_STACK,
) -> None:
    """Run the main job: one real attack becomes one decided, delivered, verifiable response.

    It starts a system of its own; with --remote it uses the one that runs there, and --agents, --hosts, --consensus,
    --port and --keep-state mean nothing.
    """
    from tocsin.cli.demo import (  # what it starts is imported when it is needed
        DemoOptions,
        run_demo,
        run_folder,
    )
    from tocsin.cli.feed import check_input
    from tocsin.cli.system import Remote

    there = Remote.at(remote, state.absolute()) if remote else None
    if source is not None:
        check_input(source)
    folder = run_folder(runs)
    configure_logging("demo", level="error")
    options = DemoOptions(folder, source, there, agents, hosts, port, keep_state, consensus)
    raise typer.Exit(_run(run_demo(options, Console())))


@app.command()
def up(
    state: StateOption = DEFAULT_STATE,
    agents: AgentsOption = 40,
    hosts: HostsOption = 4,
    consensus: ConsensusOption = 4,
    port: PortOption = -1,
    domain: Annotated[str, typer.Option(help="Trust domain of the installation.")] = "tocsin.local",
    key_scope: Annotated[
        str, typer.Option(help="host: agents share their host's key; agent: a key each.")
    ] = "host",
    named: Annotated[
        list[str] | None,
        typer.Option("--agent", metavar="NAME:ROLE", help="This agent, in place of --agents; again for more."),
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="A setting of the agent hosts, see docs/reference/settings.md."
        ),
    ] = None,
) -> None:
    """Start everything on this machine, until Ctrl-C."""
    from tocsin.cli.fleetplan import name_agents
    from tocsin.cli.stack import StackOptions, host_settings
    from tocsin.cli.up import run_up

    if key_scope not in {"host", "agent"}:
        raise InvalidInputError(f"--key-scope is host or agent, not {key_scope!r}", reason="bad_key_scope")
    configure_logging("up", level="error")
    options = StackOptions(
        state.absolute(),
        state.absolute() / "logs",
        domain=domain,
        agents=agents,
        hosts=hosts,
        consensus=consensus,
        port=port,
        key_scope=key_scope,
        sync_always=True,
        named=name_agents(named or [], hosts),
        host_settings=host_settings(setting or []),
    )
    raise typer.Exit(_run(run_up(options, Console())))


@app.command()
def init(
    folder: Annotated[
        Path, typer.Argument(help="Where the installation's folder is, or is made.")
    ] = DEFAULT_STACK,
    domain: Annotated[str, typer.Option(help="Trust domain of the installation.")] = "tocsin.local",
    agents: AgentsOption = 40,
    hosts: Annotated[int, typer.Option(help="How many agent hosts; compose.yaml has two.")] = 2,
    copies: Annotated[int, typer.Option(min=1, max=64, help="Identities of each service that scales.")] = 8,
) -> None:
    """Make what a stack in containers mounts: authority, certificates, accounts, tokens. Again: renew certificates."""
    from tocsin.cli.containers import initialise

    installation = initialise(folder.absolute(), domain, agents=agents, hosts=hosts, copies=copies)
    _show(f"{folder}  {installation.domain}  root {installation.fingerprint}")
    where = "" if folder == DEFAULT_STACK else f"TOCSIN_DIR={folder.absolute()} "
    _show(f"start it:   {where}docker compose -f deploy/compose.yaml up --build --detach")
    _show(f"keep safe:  {folder / 'ca' / 'root.key'} certifies services, signs who decides and revokes keys")


@app.command("tail")
def tail_command(
    subject: Annotated[str, typer.Argument(help="Subject or pattern, e.g. 'event.>' or 'deliver.all'.")] = ">",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a message.")] = False,
    state: StateOption = DEFAULT_STATE,
    remote: RemoteOption = None,
) -> None:
    """Print verified messages as they travel, until Ctrl-C."""
    tail.matching(subject)

    async def run() -> Exit:
        configure_logging("tail", level="error")
        async with _bus(state, remote) as bus:
            try:
                await tail.tail(bus, subject, as_json=as_json, show=_show, until=stop_on_signal())
            except BrokenPipeError:  # `tocsin tail | head`: the reader has had enough
                _discard_output()
        return Exit.OK

    raise typer.Exit(_run(run()))


@agent_app.command("invite")
def agent_invite(
    host: Annotated[str, typer.Argument(help="Name of the new host.")],
    agents: Annotated[list[str], typer.Argument(help="Its agents, name:role each.")],
    out: Annotated[Path, typer.Option(help="Folder to make, with all that the host needs.")],
    expires: Annotated[str, typer.Option(help="How long it can enrol, e.g. 30m, 1h or 2d.")] = "1h",
    state: StateOption = DEFAULT_STATE,
    remote: RemoteOption = None,
) -> None:
    """Let a host on this machine join an installation: one-time tokens, and its settings."""
    from tocsin.cli.invite import issue_ticket, parse_agents, parse_duration, unpack

    installation = Installation.find(state.absolute())
    url = _address(installation, remote)
    if out.exists():
        raise ConflictError(f"{out} exists already", reason="file_exists", advice="choose another --out")
    ticket = issue_ticket(
        installation,
        url,
        host,
        parse_agents(agents, host),
        expires_s=parse_duration(expires),
        now_ns=time.time_ns(),
    )
    _show(f"{unpack(ticket, out.absolute())}")


@alert_app.command("send")
def alert_send(
    summary: Annotated[str, typer.Option(help="What is wrong, in a line.")],
    severity: Annotated[
        Severity, typer.Option(help="Only critical alerts take both channels and are confirmed.")
    ] = Severity.CRITICAL,
    to: Annotated[str, typer.Option(help="all, role.<role> or agent.<name>.")] = "all",
    wait: Annotated[bool, typer.Option("--wait", help="Wait until every agent is accounted for.")] = False,
    deadline: Annotated[
        float,
        typer.Option(min=0.05, max=MAX_DEADLINE_S, help="For how long agents are tried again, in seconds."),
    ] = 10.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print what became of it as JSON.")] = False,
    state: StateOption = DEFAULT_STATE,
    remote: RemoteOption = None,
) -> None:
    """Raise an alert. With --wait, say which agents have it, by which channel and when, and who does not."""
    from tocsin.cli import alert

    if len(summary) > MAX_TEXT:
        raise InvalidInputError(f"--summary has more than {MAX_TEXT} characters", reason="too_large")
    if wait and severity is not Severity.CRITICAL:
        raise InvalidInputError(
            f"--wait: an alert of severity {severity.value} is not confirmed", reason="not_confirmed"
        )
    message = ThreatAlert(
        severity=severity,
        summary=summary,
        deadline_s=deadline if severity is Severity.CRITICAL else None,
    )

    async def run() -> Exit:
        configure_logging("alert", level="error")
        async with _bus(state, remote) as bus:
            raised = await alert.raise_alert(bus, message, to, wait=wait)
        _show(alert.as_json(raised) if as_json else "\n".join(alert.as_text(raised)))
        return Exit.INCOMPLETE if raised.account is not None and not raised.account.complete else Exit.OK

    raise typer.Exit(_run(run()))


@envelope_app.command("inspect")
def envelope_inspect(
    file: Annotated[Path, typer.Argument(help="The envelope's bytes, or their hexadecimal text.")],
    root: Annotated[Path | None, typer.Option(help="The root's certificate, PEM.")] = None,
    chain: Annotated[Path | None, typer.Option(help="The sender's certificate chain (.chain).")] = None,
) -> None:
    """Show what is in an envelope and, given the sender's chain, whether its signature holds."""
    from tocsin.bus.credentials import decode_chain

    if chain and not root:
        raise InvalidInputError("--chain proves nothing without --root", reason="no_root")
    trust = TrustStore(_read(root)) if root else None
    if trust is not None and chain:
        trust.add_chain(decode_chain(_read(chain)))
    shown = inspect(parse(_read(file)), trust)
    _show(json.dumps(shown, indent=2))
    if str(shown["signature"]).startswith(INVALID):
        raise typer.Exit(Exit.UNTRUSTED)


@ca_app.command("init")
def ca_init(
    folder: Annotated[Path, typer.Argument(help="Where the authority is made.")],
    domain: Annotated[str, typer.Option(help="Trust domain.")] = "tocsin.local",
) -> None:
    """Make a root and the intermediate that may certify agents and hosts only."""
    root = authority.create(folder, domain)
    fingerprint = TrustStore(root.certificate_pem).root_fingerprint
    _show(f"{folder / 'root.pem'}  {root.id}  SHA-256 {fingerprint}")
    _show(
        f"keep {folder / 'root.key'} offline: it is needed to certify services, to sign epochs and to revoke keys"
    )


@ca_app.command("issue")
def ca_issue(
    folder: Annotated[Path, typer.Argument(help="Folder of the authority.")],
    service: Annotated[ServiceName, typer.Option(help="The service to certify.")],
    out: Annotated[Path, typer.Option(help="Where key, chain and ca.pem are written.")],
    instance: Annotated[str, typer.Option(help="Name of the instance.")] = "0",
) -> None:
    """Certify one instance of a service."""
    root = Authority.load(folder, authority.ROOT)
    credentials = authority.issue_service(root, service, instance, out)
    _show(f"{out / f'{service.value}-{instance}.chain'}  {credentials.id}")


@ca_app.command("revoke")
def ca_revoke(
    who: Annotated[
        str,
        typer.Argument(help="Agent, host, service.<service>.<instance>, SPIFFE id, or key id in hex."),
    ],
    reason: Annotated[
        RevocationReason,
        typer.Option(help="compromised: nothing it signed counts; retired: what it signed before still does."),
    ],
    state: StateOption = DEFAULT_STATE,
    remote: RemoteOption = None,
) -> None:
    """Revoke the keys that speak for somebody, everywhere, within a second. Needs the root's key."""
    from tocsin.cli.revoke import revoke

    async def run() -> Exit:
        configure_logging("revoke", level="error")
        async with _bus(state.absolute(), remote) as bus:
            revoked = await revoke(bus, Installation.find(state.absolute()), who, reason)
        for target in revoked.targets:
            names = ", ".join(target.names) or "nobody known here"
            _show(f"revoked    {target.key_id.hex()}  as {reason.value}; it spoke for {names}")
        _show(
            f"list       {revoked.number}, in force; fleet stated it after {revoked.confirmed_s * 1e3:.0f} ms"
        )
        return Exit.OK

    raise typer.Exit(_run(run()))


@app.command("doctor")
def doctor_command(
    state: StateOption = DEFAULT_STATE,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
) -> None:
    """Say what is here, what is missing, and which versions."""
    findings = doctor.examine(state)
    if as_json:
        _show(json.dumps([{"what": f.what, "ok": f.ok, "detail": f.detail} for f in findings], indent=2))
    else:
        for finding in findings:
            mark = {True: "ok     ", False: "MISSING", None: "note   "}[finding.ok]
            _show(f"{mark} {finding.what:20} {finding.detail}")
    if any(finding.ok is False for finding in findings):
        raise typer.Exit(Exit.UNAVAILABLE)


@app.command("version")
def version_command() -> None:
    """Print the version."""
    _show(VERSION)


def main() -> None:
    """Run the command; errors become one line and a documented exit code."""
    sys.exit(_guarded(lambda: app(standalone_mode=False)))


def _guarded(command: Callable[[], object]) -> int:  # noqa: PLR0911 - one return for each way to end
    try:
        code = command()
    except TocsinError as error:
        advice = error.advice()
        sys.stderr.write(f"tocsin: {error}{f' ({advice})' if advice else ''}\n")
        return error.exit_code
    except typer.Exit as done:
        return done.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return Exit.INTERRUPTED
    except OSError as error:  # a full disk, no file handles left: not ours, and the message says what
        sys.stderr.write(f"tocsin: {error}\n")
        if os.environ.get("TOCSIN_TRACEBACK"):
            traceback.print_exc()
        _discard_output()  # it may be what failed
        return Exit.FAILED
    except Exception as error:  # noqa: BLE001 - the last line of defence: a defect is said, in one line
        if hasattr(error, "exit_code") and hasattr(error, "show"):  # the command line's own complaints
            error.show()
            return int(error.exit_code)
        sys.stderr.write(f"tocsin: a defect of Tocsin: {type(error).__name__}: {error}\n")
        if os.environ.get("TOCSIN_TRACEBACK"):
            traceback.print_exc()
        return Exit.BUG
    return code if isinstance(code, int) else Exit.OK


def _discard_output() -> None:
    """Let what is buffered go nowhere: Python writes it at its end, and would fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
