"""The analyst: from incidents to assessments, and to reports.

An incident becomes a security request to workflow, once; its assessment, when it is announced, goes to one
admin. Assessments are recognised by their incident, so that an answer of workflow that got lost on its way
does no harm. The admin is chosen by the assessment's subject: what concerns one address meets at one admin.

Where workflow does not take the request, fails, or has not answered within OUTCOME_WITHIN_S, the analyst asks the
classical models by itself (:mod:`tocsin.analysis.alone`) and says so; such an assessment goes into the report and to no
admin. Every assessment is a report in the host's state folder, with a STIX 2.1 bundle
(:mod:`tocsin.agent.roles.reports`).

An incident that workflow cannot assess is logged and counted (``analyst.unassessed``). What is in hand when the process
dies is on the disk, and taken up again.
"""

from __future__ import annotations

import asyncio
import time

from tocsin.agent.agent import Agent, rendezvous
from tocsin.agent.roles.memory import Memory
from tocsin.agent.roles.patience import patiently
from tocsin.agent.roles.reports import Reports
from tocsin.analysis.alone import assess_alone
from tocsin.bus import Context
from tocsin.contracts.analysis import Assessment, AssessmentMade, SecurityRequest, WorkflowAccepted
from tocsin.contracts.catalogue import COORDINATION, WORKFLOW_SUBMIT
from tocsin.contracts.errors import TocsinError, UnavailableError
from tocsin.contracts.identifiers import Priority, Role
from tocsin.contracts.observations import Incident, Observations
from tocsin.contracts.reports import ClassicalAssessment
from tocsin.contracts.routing import Coordination
from tocsin.telemetry import get_logger

BASELINE = "office-v1"
QUBITS = 4
SUBMIT_TIMEOUT_S = 3.0
SUBMIT_WITHIN_S = 20.0
HAND_OVER_WITHIN_S = 15.0
OUTCOME_WITHIN_S = 300.0
"""How long workflow may take: its own limit of a workflow is shorter (services' settings, workflow_timeout_s)."""
MAX_INCIDENTS = 1024
"""Incidents remembered; one that comes again is not submitted again."""

REQUIRED_FIDELITY = 0.95
"""Of one kernel circuit: what is lost moves a kernel value by at most 0.05, three standard errors of the value
itself at 1,024 shots (sqrt(0.25 / 1024) = 0.016)."""

log = get_logger(__name__)


class Analyst(Agent):
    """Has incidents assessed."""

    role = Role.ANALYST

    def __init__(
        self, name: str, *, baseline: str = BASELINE, qubits: int = QUBITS, alone: bool = False
    ) -> None:
        super().__init__(name)
        self._alone = alone
        self._incidents: Memory[bytes, Incident] = Memory(MAX_INCIDENTS)
        self._reports: Reports | None = None
        # Fitting models takes a core for a second: one at a time.
        self._thinking = asyncio.Lock()
        self._baseline = baseline
        self._qubits = qubits
        self._submitted: Memory[bytes, float] = Memory(MAX_INCIDENTS)
        """When each incident was submitted, monotonic seconds."""
        self._assessed: Memory[bytes, bytes] = Memory(MAX_INCIDENTS)
        """Workflow by incident, of those whose outcome is known."""

    async def started(self) -> None:
        """Open the reports, and take up what was in hand."""
        self._reports = await asyncio.to_thread(Reports, self.host.state_dir, self.name)
        analysts = sorted({self.name, *self.host.peers(Role.ANALYST)})
        for incident in await asyncio.to_thread(self._reports.unfinished):
            mine = rendezvous(incident.incident, analysts) == self.name
            if mine and incident.incident not in self._submitted:
                self._take(incident)

    async def on_task(self, content: Observations | Incident | Assessment, context: Context) -> None:
        """Take an incident that is new."""
        if not isinstance(content, Incident) or content.incident in self._submitted:
            return
        if self._reports is not None and not await asyncio.to_thread(self._reports.take, content):
            return
        log.info("incident_taken", agent=self.name, incident=content.incident.hex(), sender=context.sender.name)
        self._take(content)

    def _take(self, incident: Incident) -> None:
        self._submitted.keep(incident.incident, time.monotonic())
        self._incidents.keep(incident.incident, incident)
        alone = "workflow is not asked here"
        work = self._assess_alone(incident, alone) if self._alone else self._submit(incident)
        self.host.spawn(work, f"submission of {self.name}")

    async def on_assessment(self, made: AssessmentMade, context: Context) -> None:  # noqa: ARG002 - the hook's signature
        """Take the outcome of an incident of ours; the first, if a repeated request made two."""
        submitted_s = self._submitted.get(made.incident)
        if submitted_s is None or made.incident in self._assessed:
            return
        self._assessed.keep(made.incident, made.workflow)
        self.host.metrics.observe_ms("analyst.assessment", (time.monotonic() - submitted_s) * 1e3)
        incident = self._incidents.get(made.incident)
        if made.assessment is not None:
            self.host.spawn(self._to_an_admin(made.assessment), f"assessment of {self.name}")
            if incident is not None:
                self.host.spawn(self._report(incident, made.assessment), f"report of {self.name}")
            return
        reason = made.failure.reason if made.failure else "no_outcome"
        self._unassessed(made.incident, reason, made.failure.detail if made.failure else "")
        if incident is not None:
            work = self._assess_alone(incident, f"workflow failed ({reason})")
            self.host.spawn(work, f"assessment of {self.name}")

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
            await self._assess_alone(incident, f"workflow does not take it ({error.reason})")
            return
        self.host.metrics.count("analyst.submitted")
        log.info(
            "incident_submitted",
            agent=self.name,
            incident=incident.incident.hex(),
            workflow=accepted.workflow.hex(),
        )
        await asyncio.sleep(OUTCOME_WITHIN_S)
        if incident.incident not in self._assessed:
            await self._assess_alone(incident, f"workflow has not answered within {OUTCOME_WITHIN_S:g} s")

    async def _assess_alone(self, incident: Incident, why: str) -> None:
        """Assess by the classical models alone, or by the rule alone where they are not installed."""

        def assess() -> ClassicalAssessment:
            try:
                return assess_alone(incident, self._baseline, why=why)
            except UnavailableError as error:
                log.warning("no_models", agent=self.name, detail=str(error))
                return assess_alone(incident, self._baseline, why=why, models=False)

        async with self._thinking:
            made = await asyncio.to_thread(assess)
        self.host.metrics.count("analyst.assessed_alone")
        log.info("assessed_alone", agent=self.name, incident=incident.incident.hex(), why=why)
        await self._report(incident, made)

    async def _report(self, incident: Incident, made: Assessment | ClassicalAssessment) -> None:
        if self._reports is None:
            return
        try:
            await asyncio.to_thread(self._reports.write, incident, made)
        except TocsinError as error:
            self.host.metrics.count(f"analyst.reports_lost.{error.reason}")
            log.exception("report_lost", agent=self.name, incident=incident.incident.hex(), reason=error.reason)
            return
        self.host.metrics.count("analyst.reports")

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
