"""A question to the agents, from the arguments of a command line."""

from __future__ import annotations

from tocsin.agent.protected import parse_address
from tocsin.bus import Bus
from tocsin.cli.respond import parse_duration
from tocsin.contracts.catalogue import FLEET_MISSION
from tocsin.contracts.decisions import Option, QuestionWish, Scope
from tocsin.contracts.errors import InvalidInputError
from tocsin.contracts.identifiers import Role
from tocsin.contracts.missions import MissionQuestion
from tocsin.contracts.response import Action, Command

ASK_S = 5.0


def options_from(named: list[str], deny: str | None, contain: str | None, lasts: str) -> tuple[Option, ...]:
    """Return the options of a question.

    Raises:
        InvalidInputError: ``bad_options``, ``bad_address`` or ``bad_duration``.
    """
    if deny is not None and contain is not None:
        raise InvalidInputError("ask about one command at a time", reason="bad_options")
    options = []
    if (address := deny or contain) is not None:
        action = Action.DENY if deny is not None else Action.CONTAIN
        command = Command(action=action, address=str(parse_address(address)), duration_s=parse_duration(lasts))
        options.append(
            Option(name=action.value, command=command, text=f"{action.value} {command.address} for {lasts}")
        )
        if not named:
            options.append(Option(name="observe", command=None, text=f"do nothing about {command.address}"))
    for text in named:
        name, _, said = text.partition("=")
        try:
            options.append(Option(name=name.strip(), command=None, text=(said or name).strip()))
        except ValueError:
            raise InvalidInputError(
                f"{name[:40]!r} is no name of an option: lower case, digits and dashes", reason="bad_options"
            ) from None
    if len(options) < 2:
        raise InvalidInputError("a question has two options at least", reason="bad_options")
    return tuple(options)


def scope_from(scope: str, mission: str | None, members: list[str]) -> Scope:
    """Return whom a question is for.

    Raises:
        InvalidInputError: ``bad_scope``.
    """
    kind, _, role = scope.partition(":")
    try:
        if mission is not None:
            return Scope(mission=mission, members=tuple(sorted(set(members))))
        if kind == "role":
            return Scope(role=Role(role))
    except ValueError:
        kind = ""
    if kind != "all" or members:
        raise InvalidInputError(
            "a scope is all, role:<role>, or a mission with its members", reason="bad_scope"
        )
    return Scope()


def question(
    subject: str,
    options: tuple[Option, ...],
    scope: Scope,
    *,
    rounds: int,
    deadline_ms: int,
    evidence: tuple[str, ...],
) -> QuestionWish:
    """Return an operator's question.

    Raises:
        InvalidInputError: ``bad_question``.
    """
    try:
        return QuestionWish(
            subject=subject,
            options=options,
            evidence=evidence,
            deadline_ms=deadline_ms,
            rounds=rounds,
            scope=scope,
        )
    except ValueError as error:
        raise InvalidInputError(
            "no question: its texts have at most 512 characters, and there are at most 8 options, 31 lines of evidence "
            "and 10 minutes for a round",
            reason="bad_question",
        ) from error


async def members_of(bus: Bus, mission: str) -> list[str]:
    """Return who works at a mission's objectives, as fleet knows them now.

    Raises:
        InvalidInputError: ``bad_scope``: its name is none.
        TocsinError: fleet knows no such mission, or does not answer.
    """
    try:
        asked = MissionQuestion(mission=mission)
    except ValueError as error:
        raise InvalidInputError(f"{mission[:80]!r} is no name of a mission", reason="bad_scope") from error
    view = await bus.request(FLEET_MISSION, asked, timeout_s=ASK_S)
    return sorted({objective.agent for objective in view.record.objectives})
