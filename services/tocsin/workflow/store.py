"""The workflows' signed records, by compare-and-set: whoever moves one moves what stands there now."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tocsin.bus import Bus
from tocsin.contracts.catalogue import WORKFLOWS
from tocsin.contracts.workflows import WorkflowRecord
from tocsin.workflow.dag import Move


class WorkflowStore:
    """Reads and moves records."""

    def __init__(self, bus: Bus) -> None:
        self._records = bus.records(WORKFLOWS)

    async def get(self, workflow: bytes) -> WorkflowRecord | None:
        """Return a workflow's record, or None.

        Raises:
            TocsinError: what stands there is no record of it, or the broker is away.
        """
        return await self._records.get(workflow.hex())

    async def keys(self) -> frozenset[bytes]:
        """Return the ids of all workflows that are recorded."""
        return frozenset(bytes.fromhex(key) for key in await self._records.keys() if _is_id(key))

    async def begin(self, move: Move) -> Move:
        """Record a new workflow; where it stands already, return that instead, with nothing to announce."""
        standing: list[WorkflowRecord] = []

        def write(present: WorkflowRecord | None) -> WorkflowRecord | None:
            standing[:] = [present] if present else []
            return None if present else move.record

        await self._records.change(move.record.workflow.hex(), write)
        return Move(standing[0]) if standing else move

    async def move(
        self, workflow: bytes, make: Callable[[WorkflowRecord], Move], known: WorkflowRecord | None
    ) -> Move | None:
        """Move a workflow.

        Args:
            workflow: its id.
            make: moves a record; called again if another instance moved it meanwhile.
            known: what is known of it here, to go on from should the bucket hold nothing that is ours.

        Returns:
            the move, or None if there is no such workflow.
        """
        made: list[Move] = []

        def write(present: WorkflowRecord | None) -> WorkflowRecord | None:
            base = present or known
            made[:] = [make(base)] if base else []
            return made[0].record if made and made[0].record is not present else None

        await self._records.change(workflow.hex(), write)
        return made[0] if made else None

    def forget(self, workflows: Iterable[bytes]) -> None:
        """Keep nothing in memory of workflows that have ended."""
        for workflow in workflows:
            self._records.forget(workflow.hex())


def _is_id(key: str) -> bool:
    return len(key) == 32 and set(key) <= set("0123456789abcdef")
