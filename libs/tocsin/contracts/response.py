"""The response: OpenC2 commands, and what an actuator did with one."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from tocsin.contracts.base import Address, Digest, Message, Nanoseconds, Text


class Action(StrEnum):
    """The OpenC2 actions that Tocsin orders (OpenC2 Language Specification 1.0, section 3.3.1.1)."""

    CONTAIN = "contain"
    DENY = "deny"


class Command(Message):
    """An OpenC2 command, reduced to what Tocsin orders.

    ``contain`` isolates a host of ours (target ``device``), ``deny`` blocks an address (target
    ``ipv4_net`` or ``ipv6_net``).
    """

    action: Action
    address: Address
    duration_s: Annotated[int, Field(ge=1, le=30 * 86400)]

    def openc2(self) -> dict[str, object]:
        """Return the command in OpenC2's JSON form."""
        target: dict[str, object]
        if self.action is Action.CONTAIN:
            target = {"device": {"hostname": self.address}}
        else:
            target = {"ipv6_net" if ":" in self.address else "ipv4_net": self.address}
        # OpenC2 durations are milliseconds (section 3.4.2.3).
        return {"action": self.action.value, "target": target, "args": {"duration": self.duration_s * 1000}}


class ResponseOrder(Message):
    """A command together with the decision that permits it."""

    decision: Digest
    certificate: Digest
    """SHA-256 of the decision's certificate, as its sender had it; another one of the same decision proves as much."""
    command: Command


class ResponseWish(Message):
    """What an operator asks for, in an alert of theirs: admins propose it, and the agents decide."""

    command: Command
    reason: Text


class ActuationOutcome(StrEnum):
    """What an actuator did."""

    WOULD_DO = "would_do"
    DONE = "done"
    REFUSED = "refused"
    """Nothing was tried: the order does not count, or its address is protected."""
    FAILED = "failed"
    """The actuator failed, perhaps half-way; what became of the rest follows as UNDONE or STUCK."""
    UNDONE = "undone"
    """Nothing of it is in force any more: its time was over, or it had failed half-way."""
    STUCK = "stuck"
    """It could not be undone so far."""


class Actuation(Message):
    """A guardian's record of a step of one order: event ``agent.actuation``."""

    decision: Digest
    command: Command
    actuator: Annotated[str, Field(max_length=64)]
    outcome: ActuationOutcome
    ballots_verified: Annotated[int, Field(ge=0)]
    quorum: Annotated[int, Field(ge=0)]
    detail: Text
    at_ns: Nanoseconds
