"""``tocsin tail``: print what travels, verified, as a person or a program can read it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime

from tocsin.bus import Bus, Context
from tocsin.contracts.base import Message
from tocsin.contracts.catalogue import SUBJECTS
from tocsin.contracts.errors import InvalidInputError
from tocsin.contracts.identifiers import Role
from tocsin.contracts.subjects import PREFIX, Subject

Print = Callable[[str], None]


def matching(pattern: str) -> list[Subject]:
    """Return the catalogue's subjects that a pattern can match.

    The pattern is as NATS has it, with or without the prefix ``tocsin.v1.``; ``>`` is everything.

    Raises:
        InvalidInputError: ``unknown_subject``: nothing in the catalogue can match.
    """
    wanted = pattern.removeprefix(f"{PREFIX}.").split(".")
    found = [subject for subject in SUBJECTS if _overlap(wanted, subject.template.split("."))]
    if not found:
        raise InvalidInputError(
            f"no subject of the catalogue matches {pattern!r}",
            reason="unknown_subject",
            advice="see docs/reference/subjects.md, or use '>' for all",
        )
    return found


async def tail(bus: Bus, pattern: str, *, as_json: bool, show: Print, until: asyncio.Event) -> None:
    """Print messages until ``until`` is set, or nothing more can be printed.

    Raises:
        OSError: of ``show``: nobody reads any more, or the disk is full.
    """
    failures: list[OSError] = []
    wanted = pattern.removeprefix(f"{PREFIX}.").split(".")
    # Read as everybody would: what is addressed to all, to a role or to a service.
    bus.audiences |= {f"role.{role.value}" for role in Role}
    # Of what is sealed, to whom.
    bus.opener.bodies.forwards = True

    async def on_message(body: Message, context: Context) -> None:
        if _overlap(wanted, context.subject.removeprefix(f"{PREFIX}.").split(".")):
            try:
                show(json.dumps(_record(body, context)) if as_json else _line(body, context))
            except OSError as error:  # raised below: what a handler raises ends one message only
                failures.append(error)
                until.set()

    subjects = matching(pattern)
    if any(subject.name.startswith("DELIVER_") for subject in subjects):
        # A router forwards the very bytes that came to it: shown once, where they are delivered.
        subjects = [subject for subject in subjects if subject.name != "ROUTE"]
    for subject in subjects:
        await bus.subscribe(subject, on_message)
    await until.wait()
    if failures:
        raise failures[0]


def _overlap(pattern: list[str], subject: list[str]) -> bool:
    """Tell whether a NATS pattern and a template or subject can name the same subject."""
    for position, part in enumerate(pattern):
        if part == ">":
            return position < len(subject)
        if position >= len(subject):
            return False
        other = subject[position]
        if part not in {"*", other} and not other.startswith("{"):
            return False
    return len(pattern) == len(subject)


def _record(body: Message, context: Context) -> dict[str, object]:
    return {
        "at": _time(context.content.issued_at),
        "subject": context.subject,
        "type": context.kind.name,
        "sender": str(context.sender),
        "audience": context.content.audience,
        "priority": context.priority.token,
        "id": context.id.hex(),
        "leaf": context.leaf.hex(),
        "key_id": context.key_id.hex(),
        "body": body.model_dump(mode="json"),
    }


def _line(body: Message, context: Context) -> str:
    fields = json.dumps(body.model_dump(mode="json", exclude_defaults=True), ensure_ascii=True)
    shown = fields if len(fields) <= 400 else f"{fields[:400]} … ({len(fields)} characters, --json shows all)"
    head = f"{_time(context.content.issued_at)}  {context.subject}"
    return f"{head}  {context.sender.token} -> {context.content.audience}  {shown}"


def _time(at_ns: int) -> str:
    return datetime.fromtimestamp(at_ns / 1e9, UTC).isoformat(timespec="milliseconds")
