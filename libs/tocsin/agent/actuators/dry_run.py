"""The dry run: appends the OpenC2 command that it would send to a file, a JSON line each, and does nothing else."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

from tocsin.agent.actuators import Carried, VerifiedOrder
from tocsin.contracts.errors import UnavailableError
from tocsin.contracts.response import ActuationOutcome


class DryRunActuator:
    """Writes down what it would do. The guardians of a host share its file."""

    name = "dry-run"
    acts = False
    by_address = False

    def __init__(self, path: Path) -> None:
        self._path = path

    async def apply(self, order: VerifiedOrder) -> Carried:
        """Write the command down; when this returns it is on the disk.

        Raises:
            UnavailableError: ``actuator_failed``.
        """
        return await self._write(order, order.openc2())

    async def undo(self, order: VerifiedOrder) -> Carried:
        """Write down that it would be ended."""
        return await self._write(order, order.cancel())

    async def query(self) -> frozenset[str] | None:
        """Nothing is in force: nothing was done."""
        return None

    async def _write(self, order: VerifiedOrder, openc2: dict[str, object]) -> Carried:
        line = {
            "at_ns": order.at_ns,
            "guardian": order.guardian,
            "decision": order.decision.hex(),
            "command": openc2,
        }
        await asyncio.to_thread(self._append, line)
        would = json.dumps(openc2, separators=(",", ":"))
        return Carried(ActuationOutcome.WOULD_DO, f"would send {would}"[:300])

    def _append(self, line: dict[str, object]) -> None:
        try:
            # One write to a file that is only appended to: guardians of one host share it.
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                with open(descriptor, "rb", closefd=False) as file:
                    if any(_says_the_same(before, line) for before in file):
                        return  # asked again after a crash
                os.write(descriptor, json.dumps(line, separators=(",", ":")).encode() + b"\n")
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise UnavailableError(f"{self._path.name}: {error.strerror}", reason="actuator_failed") from error


def _says_the_same(before: bytes, line: dict[str, object]) -> bool:
    """Tell whether a line of the file is of the same guardian, decision and action."""
    if str(line["decision"]).encode() not in before:
        return False
    try:
        return _key(json.loads(before)) == _key(line)
    except (ValueError, TypeError, KeyError):
        return False  # torn by a crash, or not ours


def _key(line: dict[str, Any]) -> tuple[object, object, object]:
    return line["guardian"], line["decision"], line["command"]["action"]
