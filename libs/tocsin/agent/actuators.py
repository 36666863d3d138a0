"""What carries out a command that was decided.

An actuator is handed only what a guardian has verified: it trusts its caller, and nothing else can call it.
So far there is the dry run, which writes down what it would do.
"""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tocsin.contracts.errors import UnavailableError
from tocsin.contracts.response import ActuationOutcome, Command


@dataclass(frozen=True, slots=True)
class VerifiedOrder:
    """A command, the decision that permits it, and who carries it out when."""

    command: Command
    decision: bytes
    guardian: str
    at_ns: int


@dataclass(frozen=True, slots=True)
class Carried:
    """What an actuator did."""

    outcome: ActuationOutcome
    detail: str
    """A line for people, at most 300 characters."""


class Actuator(Protocol):
    """Carries out commands."""

    @property
    def name(self) -> str:
        """Its name in the record, at most 64 characters."""

    async def carry_out(self, order: VerifiedOrder) -> Carried:
        """Carry out an order; the guardian calls once for a decision.

        Raises:
            TocsinError: it could not be carried out.
        """


class DryRunActuator:
    """Appends the OpenC2 command that it would send to a file, a JSON line each, and does nothing else."""

    name = "dry-run"

    def __init__(self, path: Path) -> None:
        self._path = path

    async def carry_out(self, order: VerifiedOrder) -> Carried:
        """Write the command down; when this returns it is on the disk."""
        openc2 = order.command.openc2()
        line = {
            "at_ns": order.at_ns,
            "guardian": order.guardian,
            "decision": order.decision.hex(),
            "command": openc2,
        }
        await asyncio.to_thread(self._append, json.dumps(line, separators=(",", ":")) + "\n")
        would = json.dumps(openc2, separators=(",", ":"))
        return Carried(ActuationOutcome.WOULD_DO, f"would send {would}"[:300])

    def _append(self, line: str) -> None:
        try:
            # One write to a file that is only appended to: guardians of one host share it.
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                os.write(descriptor, line.encode())
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise UnavailableError(f"{self._path.name}: {error.strerror}", reason="actuator_failed") from error
