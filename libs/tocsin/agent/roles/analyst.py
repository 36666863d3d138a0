"""The analyst: from incidents to assessments.

An incident becomes a security request to workflow, once; its assessment, when it is announced, goes to one
admin. Assessments are recognised by their incident, so that an answer of workflow that got lost on its way
does no harm. The admin is chosen by the assessment's subject: what concerns one address meets at one admin.

An incident that cannot be assessed is logged and counted (``analyst.unassessed``); workflow's own
announcement of the failure is the event that others see. What is in hand when the process dies is lost to
this role; workflow still announces its outcome.
"""

from __future__ import annotations

import time

from tocsin.agent.agent import Agent, rendezvous
from tocsin.agent.roles.memory import Memory
from tocsin.agent.roles.patience import patiently
from tocsin.bus import Context
from tocsin.contracts.analysis import Assessment, AssessmentMade, SecurityRequest, WorkflowAccepted
from tocsin.contracts.catalogue import COORDINATION, WORKFLOW_SUBMIT
from tocsin.contracts.errors import TocsinError, UnavailableError
from tocsin.contracts.identifiers import Priority, Role
from tocsin.contracts.observations import Incident, Observations
from tocsin.contracts.routing import Coordination
from tocsin.telemetry import get_logger

BASELINE = "office-v1"
QUBITS = 4
SUBMIT_TIMEOUT_S = 3.0
SUBMIT_WITHIN_S = 20.0
HAND_OVER_WITHIN_S = 15.0
MAX_INCIDENTS = 1024
"""Incidents remembered; one that comes again is not submitted again."""

REQUIRED_FIDELITY = 0.95
"""Of one kernel circuit: what is lost moves a kernel value by at most 0.05, three standard errors of the value
itself at 1,024 shots (sqrt(0.25 / 1024) = 0.016)."""

log = get_logger(__name__)


class Analyst(Agent):
    """Has incidents assessed."""

    role = Role.ANALYST

    def __init__(self, name: str, *, baseline: str = BASELINE, qubits: int = QUBITS) -> None:
        super().__init__(name)
        self._baseline = baseline
        self._qubits = qubits
        self._submitted: Memory[bytes, float] = Memory(MAX_INCIDENTS)
        """When each incident was submitted, monotonic seconds."""
        self._assessed: Memory[bytes, bytes] = Memory(MAX_INCIDENTS)
        """Workflow by incident, of those whose outcome is known."""

    async def on_task(self, content: Observations | Incident | Assessment, context: Context) -> None:
        """Submit an incident that is new."""
        if not isinstance(content, Incident) or content.incident in self._submitted:
            return
        self._submitted.keep(content.incident, time.monotonic())
        log.info("incident_taken", agent=self.name, incident=content.incident.hex(), sender=context.sender.name)
        self.host.spawn(self._submit(content), f"submission of {self.name}")

    async def on_assessment(self, made: AssessmentMade, context: Context) -> None:  # noqa: ARG002 - the hook's signature
        """Take the outcome of an incident of ours; the first, if a repeated request made two."""
        submitted_s = self._submitted.get(made.incident)
        if submitted_s is None or made.incident in self._assessed:
            return
        self._assessed.keep(made.incident, made.workflow)
        self.host.metrics.observe_ms("analyst.assessment", (time.monotonic() - submitted_s) * 1e3)
        if made.assessment is not None:
            self.host.spawn(self._to_an_admin(made.assessment), f"assessment of {self.name}")
            return
        reason = made.failure.reason if made.failure else "no_outcome"
        self._unassessed(made.incident, reason, made.failure.detail if made.failure else "")

    async def _submit(self, incident: Incident) -> None:
        request = SecurityRequest(
            incident=incident,
            baseline=self._baseline,
            qubits=self._qubits,
            required_fidelity=REQUIRED_FIDELITY,
        )

        async def attempt() -> WorkflowAccepted:
            return await self.host.request(self, WORKFLOW_SUBMIT, request, timeout_s=SUBMIT_TIMEOUT_S)

        try:
            accepted = await patiently(attempt, within_s=SUBMIT_WITHIN_S)
        except TocsinError as error:
            # Forgotten, so that it is tried again if it comes again.
            self._submitted.take(incident.incident)
            self._unassessed(incident.incident, error.reason, str(error))
            return
        self.host.metrics.count("analyst.submitted")
        log.info(
            "incident_submitted",
            agent=self.name,
            incident=incident.incident.hex(),
            workflow=accepted.workflow.hex(),
        )

    def _unassessed(self, incident: bytes, reason: str, detail: str) -> None:
        self.host.metrics.count("analyst.unassessed")
        log.error("incident_unassessed", agent=self.name, incident=incident.hex(), reason=reason, detail=detail)

    async def _to_an_admin(self, assessment: Assessment) -> None:
        async def attempt() -> None:
            admins = self.host.peers(Role.ADMIN)
            if not admins:
                raise UnavailableError("no admin is enrolled", reason="no_admin")
            await self.send(
                COORDINATION,
                Coordination(content=assessment),
                audience=f"agent.{rendezvous(assessment.subject, admins)}",
                priority=Priority.HIGH,
            )

        try:
            await patiently(attempt, within_s=HAND_OVER_WITHIN_S)
        except TocsinError as error:
            self.host.metrics.count("analyst.assessments_lost")
            log.exception(
                "assessment_lost", agent=self.name, workflow=assessment.workflow.hex(), reason=error.reason
            )
