"""What an analyst concludes without workflow: kept on its host and in its reports, never on the wire."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tocsin.contracts.analysis import AnomalyScore, Verdict
from tocsin.contracts.base import Message, MessageId, Name, Probability, Text
from tocsin.contracts.observations import Finding, Technique
from tocsin.contracts.response import Command


class ClassicalAssessment(Message):
    """An assessment by the classical models alone. Nobody proposes a response on it by itself."""

    incident: MessageId
    subject: str
    verdict: Verdict
    confidence: Probability
    """As an assessment's, see tocsin.analysis.alone."""
    technique: Technique
    classical: Annotated[tuple[AnomalyScore, ...], Field(max_length=8)]
    """Empty where the finding has no features to score."""
    evidence: Annotated[tuple[Text, ...], Field(max_length=32)]
    finding: Finding
    recommended: Command | None
    baseline: Name
    why: Text
    """Why workflow has no part in it."""
