"""Ask the services for what a stage needs, and turn their answers, refusals included, into moves."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from tocsin.bus import Bus
from tocsin.contracts.catalogue import BALANCER_PLACE, QPU_ALLOCATE, QPU_RUN
from tocsin.contracts.errors import TocsinError
from tocsin.contracts.quantum import AllocationRequest, QpuRun
from tocsin.contracts.workflows import StageName, WorkflowRecord
from tocsin.workflow import dag, details
from tocsin.workflow.tasks import question

Change: TypeAlias = Callable[[WorkflowRecord, int], dag.Move]
"""Moves a record, as it stands then, at a time in nanoseconds."""


class Asker:
    """Asks qpu-manager and the balancer.

    Args:
        bus: to ask on.
        limits: of the moves.
        timeout_s: how long an answer may take.
        hold_s: how long an allocated QPU is to be held for its kernel.
    """

    def __init__(self, bus: Bus, limits: dag.Limits, *, timeout_s: float, hold_s: float) -> None:
        self._bus = bus
        self._limits = limits
        self._timeout_s = timeout_s
        self._hold_s = hold_s

    async def ask(self, record: WorkflowRecord, stage: StageName) -> Change:
        """Ask for a stage and return the move that the answer makes."""
        attempt, limits = record.stages[stage].attempt, self._limits
        try:
            if stage is StageName.ALLOCATE:
                return await self._allocate(record, attempt)
            detail = await self._hand_over(record, stage)
        except TocsinError as error:
            refusal = error
            return lambda now, now_ns: dag.refused(now, stage, attempt, refusal, limits, now_ns=now_ns)
        return lambda now, now_ns: dag.taken(now, stage, attempt, detail, limits, now_ns=now_ns)

    async def _allocate(self, record: WorkflowRecord, attempt: int) -> Change:
        wanted = AllocationRequest(
            workflow=record.workflow,
            qubits=record.request.qubits,
            required_fidelity=record.request.required_fidelity,
            hold_s=self._hold_s,
        )
        allocation = await self._bus.request(QPU_ALLOCATE, wanted, timeout_s=self._timeout_s)
        return lambda now, now_ns: dag.allocated(now, attempt, allocation, self._limits, now_ns=now_ns)

    async def _hand_over(self, record: WorkflowRecord, stage: StageName) -> str:
        task = question(record, stage)
        if isinstance(task, QpuRun):
            return details.queued(await self._bus.request(QPU_RUN, task, timeout_s=self._timeout_s))
        return details.placed(await self._bus.request(BALANCER_PLACE, task, timeout_s=self._timeout_s))
