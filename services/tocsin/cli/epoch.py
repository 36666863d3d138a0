"""``tocsin epoch``: who decides, and the root's checkpoint that cuts the chain of epochs that were decided."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Annotated

import typer

from tocsin.agent.epochs import EpochReader
from tocsin.cli.exits import Exit
from tocsin.cli.installation import Installation
from tocsin.cli.reach import DEFAULT_STATE, RemoteOption, StateOption, address, bus, run, show
from tocsin.contracts.errors import UnavailableError
from tocsin.evidence.certificate import MAX_CHAIN
from tocsin.evidence.epochs import InstalledEpoch
from tocsin.evidence.succession import allowance
from tocsin.telemetry import configure_logging

app = typer.Typer(help="Epochs: which agents decide, with which keys.", no_args_is_help=True)


@app.command("show")
def show_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
    state: StateOption = DEFAULT_STATE,
    remote: RemoteOption = None,
) -> None:
    """Show the epoch that is installed, verified from the root on."""

    async def work() -> Exit:
        configure_logging("epoch", level="error")
        async with bus(state, remote) as reached:
            epoch = await EpochReader(reached).latest()
        if epoch is None:
            raise UnavailableError(
                "no epoch is installed",
                reason="no_epoch",
                advice="have the root sign one: tocsin epoch checkpoint",
            )
        view = view_of(epoch)
        show(json.dumps(view, indent=2) if as_json else in_words(epoch))
        return Exit.OK

    raise typer.Exit(run(work()))


@app.command()
def checkpoint(state: StateOption = DEFAULT_STATE, remote: RemoteOption = None) -> None:
    """Have the root sign which agents decide, as fleet knows them now; `tocsin demo` does this too. Needs its key.

    It begins a new chain: certificates from then on bring no epochs that were decided before.
    """
    from tocsin.cli.system import Remote, instances_in_words  # noqa: PLC0415 - what it starts is not needed here

    async def work() -> Exit:
        configure_logging("epoch", level="error")
        system = Remote.at(address(Installation.find(state), remote), state.absolute())
        async with bus(state, remote) as reached:
            roster = await system.wait_agents(reached, lambda *_: None)
            installed = await system.install_epoch(reached, roster, anew=True)
        show(
            f"installed: {installed.participants} agents decide, quorum {installed.quorum}; "
            f"{instances_in_words(installed)}"
        )
        return Exit.OK

    raise typer.Exit(run(work()))


def view_of(epoch: InstalledEpoch) -> dict[str, object]:
    """Return an epoch as plain values."""
    return {
        "number": epoch.epoch.number,
        "digest": epoch.digest.hex(),
        "created": _moment(epoch.epoch.created_ns).isoformat(),
        "signed_by": "root" if epoch.is_checkpoint else "decision",
        "chain": [link.hex() for link in epoch.chain],
        "chain_limit": MAX_CHAIN,
        "participants": epoch.quorum.participants,
        "tolerated_faults": epoch.quorum.tolerated_faults,
        "quorum": epoch.quorum.needed,
        "instances": len(epoch.instances),
        "instance_faults": epoch.instance_faults,
        "byzantine_tolerant": epoch.byzantine_tolerant,
        "why_not_byzantine_tolerant": epoch.why_not or None,
        "may_be_removed_without_proof_now": allowance(epoch, _now_ns()),
    }


def in_words(epoch: InstalledEpoch) -> str:
    """Return an epoch in lines for people."""
    quorum, links = epoch.quorum, len(epoch.chain)
    made = (
        "signed by the root"
        if not links
        else f"decided, {links} of at most {MAX_CHAIN} epochs after the root's"
    )
    tolerant = "yes" if epoch.byzantine_tolerant else f"no: {epoch.why_not}"
    lines = [
        f"epoch      {epoch.epoch.number}, {made}",
        f"since      {_moment(epoch.epoch.created_ns):%Y-%m-%d %H:%M:%S} UTC",
        f"digest     {epoch.digest.hex()}",
        f"agents     {quorum.participants}, quorum {quorum.needed}",
        f"tolerates  {quorum.tolerated_faults} hostile agents; Byzantine-tolerant: {tolerant}",
        f"instances  {len(epoch.instances)}, of which {epoch.instance_faults} may be hostile",
        f"removable  {allowance(epoch, _now_ns())} more today without proof",
    ]
    if links > MAX_CHAIN // 2:
        lines.append("advice     have the root sign a checkpoint: tocsin epoch checkpoint")
    return "\n".join(lines)


def _moment(ns: int) -> datetime:
    return datetime.fromtimestamp(ns / 1e9, UTC)


def _now_ns() -> int:
    return int(datetime.now(UTC).timestamp() * 1e9)
