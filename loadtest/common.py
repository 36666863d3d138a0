"""The one form in which the programs of this folder report: a JSON object on standard output.

    {"program", "parameters",
     "environment": {"cores", "python", "nats_server", "signature_backend", "signature_algorithm", "key_scope"},
     "results"}

Under ``results``: a latency is ``{"p50", "p95", "p99", "max", "mean"}`` under a name that ends in ``_ms``; counts
are ``sent``, ``received``, ``lost``, ``duplicates``; a rate ends in ``_per_s``. A comparison in the same run is
under ``baseline``, and ``ratio_to_baseline`` says ours over theirs, figure by figure. Progress and tables go to
standard error. :func:`emit` refuses to print anything else, so a program cannot drift from the form.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self, TypeAlias

from rich.console import Console
from rich.table import Table

from tocsin.bus.broker import find_nats_server
from tocsin.contracts.errors import InvariantBrokenError, TocsinError, UnavailableError
from tocsin.telemetry import summarise

Figures: TypeAlias = Mapping[str, Any]
"""Figures by name, nested: what becomes a JSON object."""

SUMMARY = ("p50", "p95", "p99", "max", "mean")
"""What a latency is, in milliseconds."""
COUNTS = ("sent", "received", "lost", "duplicates")
DIGITS = 4
"""Decimals kept: a tenth of a microsecond, in milliseconds."""
INTERRUPTED = 130

_console = Console(stderr=True)


@dataclass(frozen=True, slots=True)
class Environment:
    """Where the figures come from."""

    cores: int
    """That this process may use."""
    python: str
    nats_server: str | None
    """The version that this machine has; None where there is none."""
    signature_backend: str
    signature_algorithm: str
    key_scope: str | None
    """``host`` or ``agent``; None where there is one key only."""

    @classmethod
    def here(cls, *, backends: Iterable[str], algorithms: Iterable[str], key_scope: str | None) -> Self:
        """Describe this machine and what was measured; several names are joined by commas."""
        return cls(
            cores(),
            platform.python_version(),
            nats_server_version(),
            ", ".join(backends),
            ", ".join(algorithms),
            key_scope,
        )


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def nats_server_version() -> str | None:
    """Return the version of the broker that a program here would start, or None."""
    try:
        answer = subprocess.run(  # noqa: S603 - the broker's own binary
            [find_nats_server(), "--version"], capture_output=True, text=True, check=True, timeout=10
        )
    except (UnavailableError, OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip().removeprefix("nats-server: v")


def latency(samples_ms: Sequence[float]) -> dict[str, float]:
    """Return the summary that goes under a name ending in ``_ms``."""
    summary = summarise(samples_ms)
    return {name: round(getattr(summary, name), DIGITS) for name in SUMMARY}


def ratios(ours: Figures, theirs: Figures) -> dict[str, Any]:
    """Return ours over theirs for every figure that both have and that is not a count; nested alike.

    A figure of theirs that is zero has no ratio and is left out.
    """
    found: dict[str, Any] = {}
    for name, value in ours.items():
        other = theirs.get(name)
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            if nested := ratios(value, other):
                found[name] = nested
        elif name not in COUNTS and _is_number(value) and _is_number(other) and other:
            found[name] = round(value / other, DIGITS)
    return found


def emit(program: str, parameters: Figures, environment: Environment, results: Figures) -> None:
    """Print the one JSON object.

    Raises:
        InvariantBrokenError: it does not have the form.
    """
    report = {
        "program": program,
        "parameters": parameters,
        "environment": asdict(environment),
        "results": results,
    }
    if wrong := list(deviations(results)):
        raise InvariantBrokenError(f"not the form of a report: {'; '.join(wrong)}", reason="bad_report")
    print(json.dumps(report, allow_nan=False), flush=True)


def deviations(results: Figures, path: str = "results") -> Iterator[str]:
    """Name every figure that does not have the form."""
    for name, value in results.items():
        place = f"{path}.{name}"
        if name == "ratio_to_baseline":
            if "baseline" not in results:
                yield f"{place} without a baseline"
            yield from _not_finite(value, place)
        elif name.endswith("_ms") and not _is_summary(value):
            yield f"{place} is no {{{', '.join(SUMMARY)}}}"
        elif name in COUNTS and not (type(value) is int and value >= 0):
            yield f"{place} is no count"
        elif name.endswith("_per_s") and not _is_number(value):
            yield f"{place} is no rate"
        else:
            yield from _deviations_inside(value, place)


def _deviations_inside(value: object, place: str) -> Iterator[str]:
    if isinstance(value, Mapping):
        yield from deviations(value, place)
    elif isinstance(value, list | tuple):
        for index, one in enumerate(value):
            yield from _deviations_inside(one, f"{place}[{index}]")
    else:
        yield from _not_finite(value, place)


def _not_finite(value: object, place: str) -> Iterator[str]:
    if isinstance(value, Mapping):
        for name, one in value.items():
            yield from _not_finite(one, f"{place}.{name}")
    elif isinstance(value, float) and not math.isfinite(value):
        yield f"{place} is not finite"


def _is_number(value: object) -> bool:
    return type(value) in {int, float} and math.isfinite(value)  # type: ignore[arg-type]  # a number, just checked


def _is_summary(value: object) -> bool:
    return isinstance(value, Mapping) and tuple(value) == SUMMARY and all(map(_is_number, value.values()))


def positive_float(text: str) -> float:
    """Read a command line's number above zero."""
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text} is not above zero")
    return value


def not_negative(text: str) -> float:
    """Read a command line's number that may be zero."""
    value = float(text)
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f"{text} is below zero")
    return value


def positive_int(text: str) -> int:
    """Read a command line's whole number above zero."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above zero")
    return value


def positive_ints(text: str) -> list[int]:
    """Read a command line's whole numbers above zero, with commas between them."""
    return [positive_int(one) for one in text.split(",")]


def say(text: str) -> None:
    """Tell the person who waits, on standard error."""
    _console.print(text, highlight=False, markup=False)


def show_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Show a table on standard error; numbers stand to the right."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*(f"{cell:,.2f}" if isinstance(cell, float) else str(cell) for cell in row))
    _console.print(table)


def exit_with(main: Callable[[], None]) -> None:
    """Run a program and end the process: one of our errors is one line and its exit code."""
    try:
        main()
    except TocsinError as error:
        advice = error.advice()
        say(f"{error}{f' ({advice})' if advice else ''}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
