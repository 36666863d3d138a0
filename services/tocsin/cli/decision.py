"""``tocsin decision``: ask the agents, follow a vote, list and show what was decided, keep and check certificates."""

from __future__ import annotations

import asyncio
import json
import time
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from tocsin.agent.epochs import fetch_proof
from tocsin.bus import Bus, stop_on_signal
from tocsin.cli import reach
from tocsin.cli.decision_archive import Archive
from tocsin.cli.decision_arguments import members_of, options_from, question, scope_from
from tocsin.cli.decision_asking import Question
from tocsin.cli.decision_views import (
    Ended,
    closed_lines,
    delivery_view,
    lines_of,
    list_lines,
    verified_lines,
    view_of,
)
from tocsin.cli.decision_watch import watch
from tocsin.cli.exits import Exit
from tocsin.cli.reach import DEFAULT_STATE, RemoteOption, StateOption
from tocsin.cli.respond import parse_duration
from tocsin.cli.results import delivery_of
from tocsin.cli.revoke import open_list
from tocsin.contracts.decisions import Outcome, Scope
from tocsin.contracts.errors import ConflictError, InvalidInputError
from tocsin.contracts.identifiers import SpiffeId
from tocsin.contracts.routing import Delivery
from tocsin.crypto import TrustStore, select_backend
from tocsin.evidence.bundle import MAX_BUNDLE_BYTES
from tocsin.evidence.closure import is_closure, verify_closure
from tocsin.evidence.verification import verify
from tocsin.telemetry import configure_logging

NS_PER_S = 1_000_000_000
ACCOUNTED_WITHIN_S = 15.0
"""A router closes an account after some seconds where somebody is missing."""
LOOK_S = 0.1
BEFORE_NS = 60 * NS_PER_S
"""A result can be told so long before the announcement by the broker's clock."""

app = typer.Typer(help="Decisions and their certificates.", no_args_is_help=True)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DecisionArgument = Annotated[str, typer.Argument(help="The decision's id, or the beginning of it.")]


@app.command()
def propose(
    subject: Annotated[str, typer.Argument(help="What is asked, in a line.")],
    option: Annotated[
        list[str] | None, typer.Option("--option", help="An option: NAME or NAME=TEXT; two to eight of them.")
    ] = None,
    deny: Annotated[str | None, typer.Option(help="Ask whether to block this address.")] = None,
    contain: Annotated[str | None, typer.Option(help="Ask whether to isolate this host of ours.")] = None,
    lasts: Annotated[str, typer.Option("--for", help="How long a command lasts: 90s, 30m, 1h, 2d.")] = "1h",
    scope: Annotated[str, typer.Option(help="Whom to ask: all, or role:<role>.")] = "all",
    mission: Annotated[
        str | None, typer.Option(help="Ask the members of this mission: who works at it, or each --member.")
    ] = None,
    member: Annotated[list[str] | None, typer.Option("--member", help="A member of the mission.")] = None,
    rounds: Annotated[
        int, typer.Option(min=1, max=10, help="Most rounds; the options are refined between.")
    ] = 3,
    deadline: Annotated[str, typer.Option(help="How long each round waits for ballots: 5s, 1m.")] = "10s",
    evidence: Annotated[list[str] | None, typer.Option("--evidence", help="A line of grounds.")] = None,
    as_json: JsonOption = False,
    state: StateOption = DEFAULT_STATE,
    remote: RemoteOption = None,
) -> None:
    """Ask the agents to decide; an admin puts it to the vote. Exits with 3 if they do not decide.

    Stock agents have grounds for commands only, and abstain where options are words: those of your own answer in their
    `on_proposal`.
    """
    ask = partial(
        question,
        subject,
        options_from(option or [], deny, contain, lasts),
        rounds=rounds,
        deadline_ms=1000 * parse_duration(deadline),
        evidence=tuple(evidence or ()),
    )
    wish = ask(Scope() if mission is not None and not member else scope_from(scope, mission, member or []))

    async def work() -> Exit:
        nonlocal wish
        configure_logging("decision", level="error")
        async with reach.bus(state, remote) as bus:
            if mission is not None and not member:
                wish = ask(scope_from(scope, mission, await members_of(bus, mission)))
            ended = await Question(bus, wish).ask(within_s=wish.rounds * wish.deadline_ms / 1000 + 30)
            delivery = await until_accounted(bus, ended)
        if as_json:
            reach.show(json.dumps(view_of(ended) | {"delivery": delivery_view(delivery)}, indent=2))
        else:
            reach.show("\n".join(lines_of(ended, delivery)))
        return Exit.OK if ended.announced.outcome is Outcome.DECIDED else Exit.NOT_DECIDED

    raise typer.Exit(reach.run(work()))


@app.command("watch")
def watch_command(
    decision: Annotated[
        str | None, typer.Argument(help="Only this decision, by the beginning of its id.")
    ] = None,
    state: StateOption = DEFAULT_STATE,
    remote: RemoteOption = None,
) -> None:
    """Follow votes as they happen: proposals, ballots, rounds, the instances' views, outcomes. Ctrl-C ends it."""

    async def work() -> Exit:
        configure_logging("decision", level="error")
        async with reach.bus(state, remote) as bus:
            await watch(bus, (decision or "").lower(), reach.show, stop_on_signal())
        return Exit.OK

    raise typer.Exit(reach.run(work()))


@app.command("list")
def list_command(
    outcome: Annotated[Outcome | None, typer.Option(help="Only decisions that ended so.")] = None,
    since: Annotated[
        str | None, typer.Option(help="How far back: 30m, 6h, 1d; by default, to the first one.")
    ] = None,
    before: Annotated[
        int | None, typer.Option(min=1, help="Those before this place, as the page before says.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many at most, the youngest first.")] = 20,
    as_json: JsonOption = False,
    state: StateOption = DEFAULT_STATE,
    remote: RemoteOption = None,
) -> None:
    """List what was decided, the youngest first; announcements that prove nothing are left out."""
    since_ns = 0 if since is None else time.time_ns() - parse_duration(since) * NS_PER_S

    async def work() -> Exit:
        configure_logging("decision", level="error")
        async with reach.bus(state, remote) as bus:
            page = await Archive(bus).page(limit=limit, before=before, since_ns=since_ns, outcome=outcome)
        if as_json:
            views = [view_of(one) for one in page.found]
            reach.show(json.dumps({"decisions": views, "before": page.before}, indent=2))
        else:
            reach.show("\n".join(list_lines(page.found, before=page.before, refused=page.refused)))
        return Exit.OK

    raise typer.Exit(reach.run(work()))


@app.command("show")
def show_command(
    decision: DecisionArgument,
    as_json: JsonOption = False,
    state: StateOption = DEFAULT_STATE,
    remote: RemoteOption = None,
) -> None:
    """Show a decision, proven: what was asked, how it ended, and who has the result (for a day)."""

    async def work() -> Exit:
        configure_logging("decision", level="error")
        async with reach.bus(state, remote) as bus:
            one = await Archive(bus).find(decision)
            delivery = await delivery_of(bus, one.announced, since_ns=one.ended_ns - BEFORE_NS)
        if as_json:
            reach.show(json.dumps(view_of(one) | {"delivery": delivery_view(delivery)}, indent=2))
        else:
            reach.show("\n".join(lines_of(one, delivery)))
        return Exit.OK

    raise typer.Exit(reach.run(work()))


@app.command()
def export(
    decision: DecisionArgument,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file; <id>.decision if not given.")
    ] = None,
    view: Annotated[Path | None, typer.Option("--view", help="Also write the JSON view for auditors.")] = None,
    state: StateOption = DEFAULT_STATE,
    remote: RemoteOption = None,
) -> None:
    """Write what proves a decision, verified, with the chain of epochs that it needs; nothing is overwritten.

    Its certificate; or, where nothing was decided, its closure.
    """

    async def work() -> Exit:
        configure_logging("decision", level="error")
        async with reach.bus(state, remote) as bus:
            archive = Archive(bus)
            one = await archive.find(decision)
            root = bus.credentials.root_pem
            if one.announced.outcome is Outcome.DECIDED:
                data = await fetch_proof(bus, one.announced.decision)
                seen = verify(data, root).json()
            else:
                data = (await archive.closure(one)).encode()
                seen = verify_closure(data, root).json()
        file = output or Path(f"{one.announced.decision.hex()[:16]}.decision")
        _write(file, data)
        if view is not None:
            _write(view, seen.encode() + b"\n")
        reach.show(f"{file}: {len(data)} bytes; check it with: tocsin decision verify {file} --root ca.pem")
        return Exit.OK

    raise typer.Exit(reach.run(work()))


@app.command("verify")
def verify_command(
    file: Annotated[Path, typer.Argument(help="The certificate, with its chain of epochs where it has one.")],
    root: Annotated[Path, typer.Option(help="The trust root's certificate, PEM.")],
    revocations: Annotated[
        Path | None,
        typer.Option(help="The root's list of revoked keys (ca/revocations): say whose key it names by now."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the JSON view for auditors.")] = False,
) -> None:
    """Check what proves a decision offline, its certificate or its closure: no broker, no service, only the root."""
    data, root_pem = reach.read(file, most=MAX_BUNDLE_BYTES + 1024), reach.read(root)
    revoked = None
    if revocations is not None:
        listed, _ = open_list(reach.read(revocations), TrustStore(root_pem, select_backend()))
        revoked = {entry.key_id for entry in listed.entries}
    if is_closure(data):
        if revoked is not None:
            raise InvalidInputError(
                "nothing was decided, so nothing rests on a key that was revoked since",
                reason="not_applicable",
                advice="leave --revocations out",
            )
        closed = verify_closure(data, root_pem)
        reach.show(closed.json() if as_json else "\n".join(closed_lines(closed)))
        return
    verified = verify(data, root_pem, revocations=revoked)
    if as_json:
        reach.show(verified.json())
    else:
        reach.show("\n".join(verified_lines(verified, SpiffeId.parse(verified.proposer).domain)))


# --- What was decided ---------------------------------------------------------------------------


async def until_accounted(bus: Bus, ended: Ended) -> Delivery | None:
    """Return who has a result that has just gone out; None if no router says so in time."""
    for _ in range(int(ACCOUNTED_WITHIN_S / LOOK_S)):
        found = await delivery_of(bus, ended.announced, since_ns=ended.ended_ns - BEFORE_NS)
        if found is not None:
            return found
        await asyncio.sleep(LOOK_S)
    return None


def _write(path: Path, data: bytes) -> None:
    try:
        with path.open("xb") as file:
            file.write(data)
    except FileExistsError as error:
        raise ConflictError(
            f"{path} exists already", reason="file_exists", advice="choose another name"
        ) from error
    except OSError as error:
        raise InvalidInputError(f"cannot write {path}: {error.strerror}", reason="not_writable") from error
