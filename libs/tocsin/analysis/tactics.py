"""The tactics of ATT&CK that our findings' techniques serve, in the order in which an intrusion goes through them.

A technique can serve several tactics; the one named is that which the finding shows. The order is that of the ATT&CK
matrix (v16).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum

from tocsin.contracts.observations import Finding


class Tactic(IntEnum):
    """Where in an intrusion a finding stands; the number is the order."""

    RECONNAISSANCE = 1
    INITIAL_ACCESS = 2
    CREDENTIAL_ACCESS = 3
    DISCOVERY = 4
    LATERAL_MOVEMENT = 5
    COMMAND_AND_CONTROL = 6
    EXFILTRATION = 7
    IMPACT = 8

    @property
    def phase(self) -> str:
        """The name in ATT&CK's kill chain, e.g. ``command-and-control``."""
        return self.name.lower().replace("_", "-")


TACTICS: Mapping[str, Tactic] = {
    "T1595": Tactic.RECONNAISSANCE,
    "T1190": Tactic.INITIAL_ACCESS,
    "T1078": Tactic.INITIAL_ACCESS,
    "T1110": Tactic.CREDENTIAL_ACCESS,
    "T1046": Tactic.DISCOVERY,
    "T1021": Tactic.LATERAL_MOVEMENT,
    "T1210": Tactic.LATERAL_MOVEMENT,
    "T1071": Tactic.COMMAND_AND_CONTROL,
    "T1568": Tactic.COMMAND_AND_CONTROL,
    "T1571": Tactic.COMMAND_AND_CONTROL,
    "T1573": Tactic.COMMAND_AND_CONTROL,
    "T1048": Tactic.EXFILTRATION,
    "T1496": Tactic.IMPACT,
    "T1498": Tactic.IMPACT,
}
"""By technique, without its sub-technique."""

ATTACKS = frozenset({Tactic.INITIAL_ACCESS, Tactic.CREDENTIAL_ACCESS, Tactic.DISCOVERY})
"""Tactics that, by a host of ours that was itself attacked before, against another of ours, are lateral movement."""


def tactic_of(finding: Finding) -> Tactic | None:
    """Return the tactic that a finding shows; None for a technique that is not in the table."""
    return TACTICS.get(finding.technique.id.partition(".")[0])
