"""``tocsin respond``: an operator asks for a response; the agents decide, and guardians carry it out.

The wish is an alert under this command's own key. It counts as one warning about the address, so agents that hear it
have grounds to vote for it; nothing happens without their quorum. What becomes of it is heard on the bus.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from tocsin.agent.ends import Ends
from tocsin.agent.epochs import EpochReader
from tocsin.agent.openc2 import (
    OpenC2Response,
    Status,
    command_id_of,
    command_of,
    features,
    parse_command,
    refusal,
)
from tocsin.agent.protected import parse_address
from tocsin.bus import Bus, Context
from tocsin.cli import reach
from tocsin.cli.alert import raise_alert
from tocsin.cli.exits import Exit
from tocsin.cli.reach import DEFAULT_STATE, RemoteOption, StateOption
from tocsin.contracts.base import Message
from tocsin.contracts.catalogue import CONSENSUS_DECISION, DELIVER_ALL, EVENT, FLEET_ROSTER
from tocsin.contracts.decisions import DecisionAnnounced, Outcome, Proposal
from tocsin.contracts.errors import InvalidInputError, TocsinError, UnavailableError
from tocsin.contracts.fleet import AgentState, RosterRequest
from tocsin.contracts.identifiers import Role, Severity
from tocsin.contracts.response import Action, Actuation, ActuationOutcome, Command, ResponseWish
from tocsin.contracts.routing import ThreatAlert
from tocsin.telemetry import configure_logging

PROPOSED_WITHIN_S = 15.0
CARRIED_OUT = frozenset({ActuationOutcome.DONE, ActuationOutcome.WOULD_DO})
MAX_EARLY = 256
_DURATION = re.compile(r"([1-9]\d{0,7})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


@dataclass
class Answer:
    """What became of a wish."""

    command: Command
    guardians: frozenset[str]
    """Guardians that are healthy as it begins: those whose record is waited for."""
    proposer: str = ""
    decision: bytes = b""
    announced: DecisionAnnounced | None = None
    actuations: dict[str, Actuation] = field(default_factory=dict)

    @property
    def decided(self) -> bool:
        """Whether the agents decided to do it."""
        option = self.announced.option if self.announced else None
        decided = self.announced is not None and self.announced.outcome is Outcome.DECIDED
        return decided and option is not None and option.command == self.command

    @property
    def complete(self) -> bool:
        """Whether every guardian has carried it out."""
        done = {name for name, record in self.actuations.items() if record.outcome in CARRIED_OUT}
        return self.decided and bool(done) and self.guardians <= done

    @property
    def exit(self) -> Exit:
        """The command's exit code."""
        return Exit.OK if self.complete else Exit.INCOMPLETE if self.decided else Exit.NOT_DECIDED

    def openc2(self) -> OpenC2Response:
        """Return it as a response."""
        results = {"x-tocsin": json.loads(self.json())} if self.decision else {}
        if self.complete:
            return OpenC2Response(Status.OK, "decided and carried out", results)
        if self.decided:
            return OpenC2Response(
                Status.INTERNAL_ERROR, "decided, but not carried out by all guardians", results
            )
        return OpenC2Response(Status.FORBIDDEN, "the agents did not decide for it", results)

    def json(self) -> str:
        """Return it as JSON."""
        announced = self.announced
        return json.dumps(
            {
                "command": self.command.openc2() | {"command_id": command_id_of(self.decision)},
                "decision": self.decision.hex(),
                "proposer": self.proposer,
                "outcome": announced.outcome.value if announced else None,
                "option": announced.option.name if announced and announced.option else None,
                "ballots_for": announced.ballots_for if announced else 0,
                "quorum": announced.quorum if announced else 0,
                "guardians": {
                    name: {"outcome": one.outcome.value, "actuator": one.actuator, "detail": one.detail}
                    for name, one in sorted(self.actuations.items())
                },
                "silent": sorted(self.guardians - self.actuations.keys()) if self.decided else [],
            },
            indent=2,
        )

    def lines(self) -> list[str]:
        """Return it for a person."""
        said = [f"proposed   by {self.proposer}: decision {self.decision.hex()}"]
        if (announced := self.announced) is not None:
            what = announced.option.text if announced.option else announced.why
            counted = f"{announced.ballots_for} ballots, quorum {announced.quorum} of {announced.participants}"
            said.append(f"{announced.outcome.value:10} {what}: {counted}")
        said += [
            f"{one.outcome.value.replace('_', ' '):10} {name} ({one.actuator}): {one.detail}"
            for name, one in sorted(self.actuations.items())
        ]
        if self.decided and (silent := sorted(self.guardians - self.actuations.keys())):
            said.append(f"silent     {', '.join(silent)}")
        if self.decided and not self.guardians and not self.actuations:
            said.append("nobody     no guardian is there to carry it out")
        return said


class Asker:
    """Sends one wish and follows it."""

    def __init__(self, bus: Bus, command: Command, reason: str) -> None:
        self._bus = bus
        self._wish = ResponseWish(command=command, reason=reason)
        self._changed = asyncio.Event()
        self._wished = b""
        self._answer = Answer(command, frozenset())
        self._ends = Ends(bus, EpochReader(bus))
        # What overtakes the proposal on the way here; of others' much the oldest is forgotten.
        self._early: deque[tuple[str, DecisionAnnounced | Actuation]] = deque(maxlen=MAX_EARLY)

    async def ask(self, *, within_s: float) -> Answer:
        """Return what became of the wish, as far as it came in time.

        Raises:
            UnavailableError: ``not_proposed``.
        """
        answer, bus = self._answer, self._bus
        roster = await bus.request(FLEET_ROSTER, RosterRequest(), timeout_s=5)
        healthy = (one.agent for one in roster.entries if one.state is AgentState.HEALTHY)
        answer.guardians = frozenset(one.name for one in healthy if one.role is Role.GUARDIAN)
        await bus.subscribe(DELIVER_ALL, self._on_delivered)
        await bus.subscribe(CONSENSUS_DECISION, self._on_fact)
        await bus.subscribe(EVENT, self._on_fact, at={"service": "agent", "kind": "actuation"})
        command = self._wish.command
        summary = f"Asked for: {command.action.value} {command.address}, since {self._wish.reason}"[:512]
        raised = await raise_alert(
            bus, ThreatAlert(severity=Severity.HIGH, summary=summary, wish=self._wish), "all", wait=False
        )
        self._wished = raised.sent.id
        if not await self._until(lambda: bool(answer.decision), min(within_s, PROPOSED_WITHIN_S)):
            raise UnavailableError(
                "no admin has proposed it",
                reason="not_proposed",
                advice="is an admin running, and the same not being decided or in force already?",
            )
        if await self._until(lambda: answer.announced is not None, within_s) and answer.decided:
            await self._until(lambda: answer.guardians <= answer.actuations.keys(), within_s)
        return answer

    async def _until(self, holds: Callable[[], bool], within_s: float) -> bool:
        try:
            async with asyncio.timeout(within_s):
                while not holds():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True

    async def _on_delivered(self, body: Message, context: Context) -> None:
        is_answer = isinstance(body, Proposal) and body.workflow == self._wished
        if is_answer and context.sender.role is Role.ADMIN and not self._answer.decision:
            self._answer.decision, self._answer.proposer = context.leaf, context.sender.name
            for sender, fact in self._early:
                self._note(sender, fact)
            self._early.clear()
            self._changed.set()

    async def _on_fact(self, body: Message, context: Context) -> None:
        if not isinstance(body, DecisionAnnounced | Actuation):
            return
        if isinstance(body, DecisionAnnounced):
            await self._ends.prove(body)
        if self._answer.decision:
            self._note(context.sender.name, body)
        else:
            self._early.append((context.sender.name, body))

    def _note(self, sender: str, fact: DecisionAnnounced | Actuation) -> None:
        if fact.decision != self._answer.decision:
            return
        if isinstance(fact, DecisionAnnounced):
            self._answer.announced = fact
        elif fact.outcome not in {ActuationOutcome.UNDONE, ActuationOutcome.STUCK}:
            self._answer.actuations[sender] = fact
        self._changed.set()


def parse_duration(text: str) -> int:
    """Return the seconds of ``90s``, ``30m``, ``1h`` or ``2d``.

    Raises:
        InvalidInputError: ``bad_duration``.
    """
    found = _DURATION.fullmatch(text)
    seconds = int(found[1]) * _SECONDS[found[2]] if found else 0
    if not 0 < seconds <= 30 * 86_400:
        raise InvalidInputError(
            f"{text[:40]!r} is no duration like 90s, 30m, 1h or 2d, up to 30d", reason="bad_duration"
        )
    return seconds


def command_from(action: Action, address: str, lasts: str) -> Command:
    """Return the command of arguments.

    Raises:
        InvalidInputError: ``bad_address`` or ``bad_duration``.
    """
    return Command(action=action, address=str(parse_address(address)), duration_s=parse_duration(lasts))


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("respond")
    def respond(
        action: Annotated[
            Action | None, typer.Argument(help="deny an address, or contain a host of ours.")
        ] = None,
        address: Annotated[str | None, typer.Argument(help="The address.")] = None,
        lasts: Annotated[str, typer.Option("--for", help="How long: 90s, 30m, 1h, 2d.")] = "1h",
        reason: Annotated[str, typer.Option(help="Why, in a line.")] = "an operator asks for it",
        openc2: Annotated[
            Path | None,
            typer.Option(
                help="An OpenC2 command in JSON in place of the arguments; the answer is OpenC2, too."
            ),
        ] = None,
        timeout: Annotated[
            float, typer.Option(min=1, max=600, help="Of the vote, and of the deed, in seconds.")
        ] = 30,
        as_json: Annotated[bool, typer.Option("--json", help="Print what became of it as JSON.")] = False,
        state: StateOption = DEFAULT_STATE,
        remote: RemoteOption = None,
    ) -> None:
        """Ask for a response: the agents vote on it, and guardians carry out what is decided."""
        if openc2 is not None:
            raise typer.Exit(_as_openc2(openc2, reason, timeout, state, remote))
        if action is None or address is None:
            raise InvalidInputError("name an action and an address, or --openc2", reason="bad_command")
        command = command_from(action, address, lasts)
        answers: list[Answer] = []
        code = reach.run(_ask(command, reason, timeout, state, remote, answers))
        reach.show(answers[0].json() if as_json else "\n".join(answers[0].lines()))
        raise typer.Exit(code)


async def _ask(
    command: Command,
    reason: str,
    timeout_s: float,
    state: Path,
    remote: str | None,
    answers: list[Answer],
) -> Exit:
    configure_logging("respond", level="error")
    async with reach.bus(state, remote) as bus:
        answer = await Asker(bus, command, reason[:400]).ask(within_s=timeout_s)
    answers.append(answer)
    return answer.exit


def _as_openc2(file: Path, reason: str, timeout_s: float, state: Path, remote: str | None) -> int:
    """Carry out a command in OpenC2, and answer in OpenC2, whatever comes."""
    try:
        parsed = parse_command(reach.read(file))
        if isinstance(parsed.value, tuple):
            reach.show(features(parsed.value).encode().decode())
            return Exit.OK
        command = command_of(parsed)
        answers: list[Answer] = []
        code = reach.run(_ask(command, reason, timeout_s, state, remote, answers))
    except TocsinError as error:
        reach.show(refusal(error).encode().decode())
        return error.exit_code
    reach.show(answers[0].openc2().encode().decode())
    return code
