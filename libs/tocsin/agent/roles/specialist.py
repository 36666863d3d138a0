"""The specialist: for now an agent that ballots and keeps count.

It takes part in every decision by the policy that all agents share, and counts the alerts and outcomes that
it gets (``specialist.alerts.<severity>``, ``specialist.assessments``, ``specialist.failures``). Its inventory
of quantum-vulnerable cryptography (which services of ours still speak RSA and elliptic curves) is a later
piece of work; nothing here pretends to it.
"""

from __future__ import annotations

from tocsin.agent.agent import Agent
from tocsin.bus import Context
from tocsin.contracts.analysis import AssessmentMade
from tocsin.contracts.identifiers import Role
from tocsin.contracts.routing import ThreatAlert


class Specialist(Agent):
    """Ballots and keeps count."""

    role = Role.SPECIALIST

    async def on_alert(self, alert: ThreatAlert, context: Context) -> None:  # noqa: ARG002 - the hook's signature
        """Count an alert by its severity."""
        self.host.metrics.count(f"specialist.alerts.{alert.severity.value}")

    async def on_assessment(self, made: AssessmentMade, context: Context) -> None:  # noqa: ARG002 - the hook's signature
        """Count an outcome."""
        self.host.metrics.count("specialist.failures" if made.assessment is None else "specialist.assessments")
