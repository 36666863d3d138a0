"""``tocsin inventory``: which cryptography a quantum computer breaks, where, and how urgent that is. No bus needed."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tocsin.analysis.inventory.algorithms import public_key
from tocsin.analysis.inventory.judging import (
    DEPRECATED_AFTER,
    DISALLOWED_AFTER,
    MACHINE_YEAR,
    MIGRATION_YEARS,
    SECRECY_YEARS,
    Assumptions,
    Level,
    Reason,
    exchange_of,
)
from tocsin.analysis.inventory.model import Endpoint, Inventory
from tocsin.analysis.inventory.ranking import Ranked, rank
from tocsin.cli.exits import Exit, NoInputError
from tocsin.contracts.errors import InvalidInputError
from tocsin.crypto.keys import replace_private

if TYPE_CHECKING:  # what speaks to the network and the bus is imported when the command runs
    from tocsin.agent.roles.survey import Sources, Survey

_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069]")
"""Control characters and marks that turn the direction of text: a log's names go to a terminal."""
_COLOURS = {Level.HIGH: "bold red", Level.MEDIUM: "yellow", Level.LOW: "cyan", Level.INFO: "green"}
DEFAULT_SHOWN = 20
PIPE_COLUMNS = 120
"""Width of the table where no terminal says one."""


def inventory_command(
    zeek_ssl: Annotated[
        Path | None, typer.Option(help="Zeek's ssl.log, JSON lines or tab-separated.", metavar="FILE")
    ] = None,
    zeek_x509: Annotated[
        Path | None, typer.Option(help="Zeek's x509.log: the certificates of those sessions.", metavar="FILE")
    ] = None,
    probe: Annotated[
        list[str] | None,
        typer.Option(
            help="An endpoint of yours to ask which TLS it speaks; at most 1,024 of these.", metavar="HOST:PORT"
        ),
    ] = None,
    own: Annotated[bool, typer.Option("--own", help="Declare Tocsin's own cryptography beside.")] = False,
    cbom: Annotated[
        Path | None, typer.Option(help="Write a CycloneDX 1.6 CBOM there.", metavar="OUT.json")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the ranked list as JSON.")] = False,
    secrecy_years: Annotated[
        float, typer.Option(min=0, max=200, help="x: how long what is transmitted must stay secret.")
    ] = SECRECY_YEARS,
    migration_years: Annotated[
        float, typer.Option(min=0, max=200, help="y: how long it takes to replace all of it.")
    ] = MIGRATION_YEARS,
    machine_year: Annotated[
        int,
        typer.Option(min=2000, max=2200, help="Year in which a machine that breaks RSA is assumed to exist."),
    ] = MACHINE_YEAR,
    sensitive: Annotated[
        list[str] | None,
        typer.Option(
            help="x of one endpoint: host, host:port or server name, e.g. db.example=25.", metavar="NAME=YEARS"
        ),
    ] = None,
    at: Annotated[
        str | None, typer.Option(help="Judge as of this day instead of today.", metavar="YYYY-MM-DD")
    ] = None,
    show: Annotated[int, typer.Option(min=1, max=20_000, help="Rows of the table.")] = DEFAULT_SHOWN,
    timeout: Annotated[float, typer.Option(min=0.1, max=60, help="Seconds for each connection.")] = 5.0,
) -> None:
    """List the cryptography that a quantum computer breaks, most urgent first, and why. Works without a system.

    Only the endpoints given with --probe are connected to, at most 20 connections a second; no payload is sent.
    """
    from tocsin.agent.roles.probe import parse_target
    from tocsin.agent.roles.survey import Sources

    now_s = _day_s(at) if at else time.time()
    given = Assumptions(
        now_s=now_s,
        secrecy_years=secrecy_years,
        migration_years=migration_years,
        machine_year=machine_year,
        sensitive=dict(map(_sensitive, sensitive or [])),
    )
    sources = Sources(zeek_ssl, zeek_x509, tuple(map(parse_target, probe or [])), own)
    _check(sources, cbom)
    raise typer.Exit(
        _run(sources, given, cbom, timeout_s=timeout, console=_console(), as_json=as_json, show=show)
    )


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else PIPE_COLUMNS, highlight=False)


def _check(sources: Sources, cbom: Path | None) -> None:
    """Say what is missing before anything is read or connected to.

    Raises:
        InvalidInputError: ``nothing_to_read``, ``no_folder``.
        NoInputError: a log cannot be read.
    """
    if sources.ssl_log is None and not sources.targets and not sources.own:
        raise InvalidInputError(
            "nothing to take an inventory of",
            reason="nothing_to_read",
            advice="give --zeek-ssl FILE (and --zeek-x509 FILE), --probe HOST:PORT or --own",
        )
    for path in (sources.ssl_log, sources.x509_log):
        if path is not None:
            try:
                with path.open("rb") as file:
                    file.read(1)
            except OSError as error:
                raise NoInputError(f"cannot read {path}: {error.strerror}") from error
    if cbom is not None and not cbom.absolute().parent.is_dir():
        raise InvalidInputError(f"{cbom.absolute().parent} is no folder", reason="no_folder")


def _run(
    sources: Sources,
    given: Assumptions,
    cbom: Path | None,
    *,
    timeout_s: float,
    console: Console,
    as_json: bool,
    show: int,
) -> Exit:
    from tocsin.agent.roles import survey

    # As of the day given, what is asked and declared now was seen then: so two runs give the same bytes.
    taken = asyncio.run(survey.take(sources, lambda: given.now_s, timeout_s=timeout_s))
    _require_lines(taken)
    ranked = rank(taken.inventory, given)
    if cbom is not None:
        from tocsin.analysis.inventory.cbom import write

        # For its owner alone: it says where the organisation is weak.
        replace_private(cbom.absolute(), write(taken.inventory, ranked).encode())
    if as_json:
        sys.stdout.write(json.dumps(as_document(taken, ranked, given), indent=2) + "\n")
    else:
        _print(console, taken, ranked, show)
    return Exit.INCOMPLETE if taken.incomplete else Exit.OK


def _require_lines(taken: Survey) -> None:
    """Refuse a log of which not a line could be read.

    Raises:
        InvalidInputError: ``nothing_readable``.
    """
    for name, log in taken.logs.items():
        if log.bad and not log.taken and not log.skipped:
            worst = max(log.bad_by_reason, key=lambda reason: log.bad_by_reason[reason])
            raise InvalidInputError(
                f"none of the {log.lines} lines of {name}.log can be read: {worst}", reason="nothing_readable"
            )


def as_document(taken: Survey, ranked: tuple[Ranked, ...], given: Assumptions) -> dict[str, object]:
    """Return what ``--json`` prints."""
    return {
        "assumptions": {
            "as_of": datetime.fromtimestamp(given.now_s, UTC).date().isoformat(),
            "secrecy_years": given.secrecy_years,
            "migration_years": given.migration_years,
            "machine_year": given.machine_year,
            "machine_in_years": round(given.machine_in_years, 2),
            "sensitive": dict(sorted(given.sensitive.items())),
        },
        "endpoints": [_endpoint(one) for one in ranked],
        "certificates": len(taken.inventory.certificates),
        "dropped": dict(taken.inventory.dropped),
        "logs": {
            name: {
                "lines": log.lines,
                "taken": log.taken,
                "skipped": log.skipped,
                "bad": dict(sorted(log.bad_by_reason.items())),
            }
            for name, log in taken.logs.items()
        },
        "incomplete": [
            {"endpoint": str(one.target), "reason": one.problem, "detail": one.detail}
            for one in taken.incomplete
        ],
    }


def _endpoint(one: Ranked) -> dict[str, object]:
    endpoint = one.endpoint
    return {
        "rank": one.rank,
        "level": one.level.name.lower(),
        "endpoint": endpoint.name,
        "names": list(endpoint.names),
        "sources": list(endpoint.sources),
        "sessions": endpoint.sessions,
        "exposure_session_years": round(one.exposure, 1),
        "margin_years": round(one.margin_years, 2),
        "reasons": [
            {"code": r.code, "level": r.level.name.lower(), "text": r.text, "deadline": r.deadline}
            for r in one.reasons
        ],
        "agreed": [
            {"version": v.version, "suite": v.suite, "group": v.group, "sessions": n}
            for v, n in endpoint.variants
        ],
        "broken_by_shor": [
            {
                "algorithm": algorithm.name,
                "logical_qubits": needed.logical_qubits if needed else None,
                "toffoli_gates": needed.toffoli_gates if needed else None,
                "noisy": needed.noisy or None if needed else None,
                "source": needed.source if needed else None,
            }
            for algorithm, needed in one.broken
        ],
    }


def _print(console: Console, taken: Survey, ranked: tuple[Ranked, ...], show: int) -> None:
    table = Table(box=None, padding=(0, 1), header_style="bold")
    columns = ("", "level", "endpoint", "sessions", "session-years", "keys from", "signed with")
    for name in columns:
        right = name in {"", "sessions", "session-years"}
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    for one in ranked[:show]:
        keys = [exchange.name for v, _ in one.endpoint.variants if (exchange := exchange_of(v)) is not None]
        table.add_row(
            str(one.rank),
            Text(one.level.name.lower(), _COLOURS[one.level]),
            Text(_safe(one.endpoint.name)),
            str(one.endpoint.sessions),
            f"{one.exposure:.0f}",
            Text("\n".join(dict.fromkeys(keys)) or "-"),
            Text("\n".join(_keys_of(one.endpoint, taken.inventory)) or "-"),
        )
    if ranked:
        console.print(table)
        console.print()
    for one in ranked[:show]:
        for reason in one.reasons:
            head = Text(f"{one.rank:3} ")
            head.append(f"{reason.level.name.lower():7}", _COLOURS[reason.level])
            console.print(head + Text(f"{_safe(reason.text)}{_deadline(reason)}"), soft_wrap=True)
    if len(ranked) > show:
        console.print(f"{len(ranked) - show} more: --show {len(ranked)}, or --json")
    for name, log in taken.logs.items():
        bad = ", ".join(f"{count} {reason}" for reason, count in sorted(log.bad_by_reason.items()))
        left_out = f", left out: {bad}" if bad else ""
        console.print(
            Text(f"{name}.log: {log.taken} of {log.lines} lines taken, {log.skipped} skipped{left_out}")
        )
    for kind, count in taken.inventory.dropped.items():
        console.print(f"no room for {count} {kind}: this inventory is not whole")
    for failed in taken.incomplete:
        console.print(Text(_safe(f"incomplete: {failed.target}: {failed.problem}: {failed.detail}")))


def _keys_of(endpoint: Endpoint, inventory: Inventory) -> list[str]:
    kept = (inventory.certificates[one] for one in endpoint.certificates)
    return sorted({public_key(one.key_kind, one.key_bits, one.curve).name for one in kept})


def _deadline(reason: Reason) -> str:
    if reason.deadline is None:
        return ""
    early = f"deprecated after {DEPRECATED_AFTER}, " if reason.deadline == DEPRECATED_AFTER else ""
    return f" [NIST IR 8547: {early}disallowed after {DISALLOWED_AFTER}]"


def _safe(text: str) -> str:
    return _UNSAFE.sub("\N{REPLACEMENT CHARACTER}", text)


def _sensitive(text: str) -> tuple[str, float]:
    name, equals, years = text.rpartition("=")
    if not equals or not name or not re.fullmatch(r"[0-9]{1,3}(?:\.[0-9]{1,3})?", years):
        raise InvalidInputError(f"--sensitive {text[:80]!r} is not NAME=YEARS", reason="bad_assumption")
    return name, float(years)


def _day_s(text: str) -> float:
    try:
        return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC).timestamp()
    except ValueError:
        raise InvalidInputError(f"--at {text[:40]!r} is no day (YYYY-MM-DD)", reason="bad_assumption") from None
