"""What carries out a command that was decided, and ends it again.

An actuator is handed only what a guardian has verified: it trusts its caller, and nothing else can call it. There
are three: :class:`DryRunActuator` writes down what it would do, :mod:`tocsin.agent.actuators.webhook` tells another
program by HTTP, :mod:`tocsin.agent.actuators.nftables` fills this machine's own packet filter.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tocsin.agent.openc2 import cancel, command_id_of
from tocsin.contracts.errors import InvalidInputError
from tocsin.contracts.response import ActuationOutcome, Command

__all__ = ["Actuator", "Carried", "VerifiedOrder", "choose"]

ACTUATORS = ("dry-run", "webhook", "nftables")


@dataclass(frozen=True, slots=True)
class VerifiedOrder:
    """A command, the decision that permits it, and who carries it out when."""

    command: Command
    decision: bytes
    guardian: str
    at_ns: int

    @property
    def command_id(self) -> str:
        """The id under which actuators know it."""
        return command_id_of(self.decision)

    def openc2(self) -> dict[str, object]:
        """Return the command in OpenC2's JSON form, with its id."""
        return self.command.openc2() | {"command_id": self.command_id}

    def cancel(self) -> dict[str, object]:
        """Return the OpenC2 command that ends it."""
        return cancel(self.command_id)


@dataclass(frozen=True, slots=True)
class Carried:
    """What an actuator did."""

    outcome: ActuationOutcome
    detail: str
    """A line for people, at most 300 characters."""


class Actuator(Protocol):
    """Carries out commands. Each call may come again for the same decision, after a crash: it has effect once."""

    @property
    def name(self) -> str:
        """Its name in the record, at most 64 characters."""

    @property
    def acts(self) -> bool:
        """Whether it changes anything; if so, protected addresses are refused before it is asked."""

    @property
    def by_address(self) -> bool:
        """Whether two commands about one address are one thing to it; if not, it tells them apart by their ids."""

    async def apply(self, order: VerifiedOrder) -> Carried:
        """Carry out an order.

        Raises:
            TocsinError: it could not be carried out, or not to the end, or nobody knows; the guardian then
                asks for :meth:`undo`.
        """

    async def undo(self, order: VerifiedOrder) -> Carried:
        """End what :meth:`apply` did, all of it or a part; without effect where there is nothing to end.

        Raises:
            TocsinError: it could not be ended; the guardian asks again.
        """

    async def query(self) -> frozenset[str] | None:
        """Return the ids of the commands that are in force; None if it cannot know.

        Raises:
            UnavailableError: it cannot be asked now.
        """


def choose(
    name: str, *, folder: Path, webhook_url: str = "", webhook_secret_file: Path | None = None
) -> Actuator:
    """Return the actuator of a name; what it needs is imported now, and not before.

    Args:
        name: One of ACTUATORS.
        folder: Where the dry run writes.
        webhook_url: Where the webhook sends to.
        webhook_secret_file: What it signs with.

    Raises:
        InvalidInputError: ``bad_actuator``, ``bad_webhook`` or ``bad_secret``.
        UnavailableError: ``no_secret`` or ``no_httpx``.
    """
    if name == "webhook":
        from tocsin.agent.actuators.webhook import WebhookActuator, read_secret  # noqa: PLC0415 - needs httpx

        return WebhookActuator(webhook_url, read_secret(webhook_secret_file))
    if name == "nftables":
        from tocsin.agent.actuators.nftables import NftablesActuator  # noqa: PLC0415 - only who is asked acts

        return NftablesActuator()
    if name == "dry-run":
        from tocsin.agent.actuators.dry_run import DryRunActuator  # noqa: PLC0415 - for symmetry

        return DryRunActuator(folder / "actuations.jsonl")
    raise InvalidInputError(f"no actuator {name!r}; there are {', '.join(ACTUATORS)}", reason="bad_actuator")
