"""Write the reference of subjects and messages from the catalogue.

    python -m tocsin.contracts.reference docs/reference

makes ``subjects.md`` and ``policy.md`` (tables for people) and ``schemas/<type>.json`` (JSON Schema 2020-12 of every
body), the same bytes from the same catalogue. A test fails when what is in ``docs/`` is not what this makes.
"""

from __future__ import annotations

import ast
import inspect
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

from tocsin import contracts
from tocsin.contracts.base import Message
from tocsin.contracts.catalogue import (
    BUCKETS,
    CERTIFICATES,
    IDENTITIES,
    MIB,
    REQUESTS,
    STREAMS,
    SUBJECTS,
    message_types,
)
from tocsin.contracts.policy import CLEARED, POLICY, PRODUCERS
from tocsin.contracts.proposers import PROPOSERS, Matter
from tocsin.contracts.subjects import (
    ANY_AUDIENCE,
    KIB,
    MAX_LIVE_TTL_MS,
    PREFIX,
    READER_AUDIENCE,
    MessageClass,
    MessageType,
    Request,
    Subject,
)

COMMAND = "python -m tocsin.contracts.reference docs/reference"
DIALECT = "https://json-schema.org/draft/2020-12/schema"

CLASSES: Mapping[MessageClass, str] = {
    MessageClass.LIVE: (
        f"Good for its time to live, at most {MAX_LIVE_TTL_MS // 1000} s. Seen once; nothing that was issued "
        "before the receiver started."
    ),
    MessageClass.STORED: "May be read late, within its time to live. Its certificate was valid when it was issued.",
    MessageClass.RECORD: "A value in a bucket: it names its bucket, key and revision, and has no clock.",
    MessageClass.EVIDENCE: "Ballots, votes, epochs: judged by the epoch alone, for ever.",
    MessageClass.ENROL: "As live, but signed by the key that it brings.",
    MessageClass.CHANNEL: (
        "No envelope: a [frame](../explanation/channels.md#frames), sealed by the keys of an authenticated channel. "
        "Opened once, in order."
    ),
}

_HEAD = f"""# Subjects and messages

<!-- Generated from the catalogue by `{COMMAND}`. Do not edit. -->

Every message between two processes is an [envelope](envelope.md) on a NATS subject that begins with `{PREFIX}.`;
the tables leave that prefix out. `{{tokens}}` stand for one token each. What arrives on a subject and is none of
its types, too large, for another audience or from somebody else is refused by whoever receives it.
"""

_POLICY_HEAD = f"""# Policy

<!-- Generated from the policy's table by `{COMMAND}`. Do not edit. -->

What agents say to one another goes through the routers, which apply this table before they forward. Every agent host
applies it once more to what arrives, since whoever can publish on `deliver` subjects bypasses the routers. What is
refused goes nowhere; its reason is counted, audited and, by a router, told to its sender as `event.router.refusal`.
"""

_MATTERS: Mapping[Matter, str] = {
    Matter.COMMAND: "a command, in any option of any round",
    Matter.EPOCH: "the next epoch",
    Matter.QUESTION: "a question to all agents or to a role: words only",
    Matter.MISSION: "a question to the members of a mission: words only",
}
_POLICY_REASONS: tuple[tuple[str, str], ...] = (
    ("sender_not_allowed", "The sender's role may not send this type."),
    ("bad_audience", "The audience names no agents."),
    (
        "audience_not_allowed",
        "This type does not go to such an audience; a discovery goes to admins or a group.",
    ),
    ("priority_not_allowed", "The priority is above the type's highest."),
    ("severity_mismatch", "An alert's severity is critical if and only if its priority is."),
    ("order_not_allowed", "Only an admin's critical alert carries an order."),
    ("wish_not_allowed", "Only an operator's alert carries a wish."),
    ("not_itself", "A discovery describes its own sender."),
    ("content_not_allowed", "The sender's role does not produce what it hands over; see below."),
    ("proposer_not_allowed", "The sender's role may not put this to the vote; see below."),
    (
        "no_such_recipient",
        "No agent of that name is enrolled. An emergency goes out all the same; its account says that nobody was due.",
    ),
    ("no_need_to_know", "Intelligence for a role, or for an agent of a role, that is not cleared."),
    ("rate_limited", "The sender has used up its allowance (a router's alone)."),
    ("rate_exceeded", "It did so by messages of its own, at twice the allowance (a router's alone)."),
    ("quarantined", "The sender is quarantined; refused by every process."),
    (
        "recipient_quarantined",
        "Coordination or intelligence for a quarantined agent, by name or by a key it can use.",
    ),
)

_BODIES = """The body of an envelope is a msgpack map that the schema of its type describes: integers, floats, strings,
arrays and maps are msgpack's own, and `"format": "binary"` is a msgpack *bin* whose bytes `minLength` and
`maxLength` count. Where a body is shown as JSON, such bytes are in hexadecimal.
"""

_EFFECTS = (
    "A type with effects, from the priority given, is refused by a process that has not heard for 30 s which keys are "
    "revoked."
)


def render() -> dict[str, str]:
    """Return every file of the reference: its text by its path below ``docs/reference``."""
    files = {"subjects.md": _subjects_page(), "policy.md": _policy_page()}
    for kind in message_types():
        files[f"schemas/{kind.name}.json"] = _schema(kind.name, kind.model)
    for bucket in BUCKETS:
        files[_value_path(bucket.name)] = _schema(f"record.{bucket.name}.value", bucket.model)
    return files


def write(folder: Path) -> int:
    """Write the reference, drop schemas of types that are no more, and return how many files it has."""
    files = render()
    for path, text in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    for old in (folder / "schemas").glob("*.json"):
        if f"schemas/{old.name}" not in files:
            old.unlink()
    return len(files)


def _subjects_page() -> str:
    parts = [
        _HEAD,
        _section(
            "Subjects",
            ("Subject", "Types", "Audience", "Sender is", "Stream", "Bytes at most", "What it is for"),
            map(_subject_row, SUBJECTS),
        ),
        _section(
            "Requests",
            ("Subject", "Question", "Answer", "Answered by", "Who may ask", "Bytes at most", "What it is for"),
            map(_request_row, REQUESTS),
            "Asked on the subject, with a reply inbox; answered on the inbox by an instance of the service, with "
            "the answer's type or with `error`.",
        ),
        _section(
            "Message types",
            ("Type", "Class", "Time to live", "Who may send it", "Bytes at most", "Effects", "What it says"),
            map(_type_row, message_types()),
            f"{_BODIES.strip()} {_EFFECTS}",
        ),
        _section("Classes", ("Class", "How long a message is good for"), _class_rows()),
        _section(
            "Streams",
            ("Stream", "Subjects", "Retention", "Kept for", "Kept at most", "What it is for"),
            _stream_rows(),
            "When a `limits` stream is full its oldest messages go; a full `workqueue` refuses new ones.",
        ),
        _section(
            "Buckets",
            ("Bucket", "Value", "Who may write", "Bytes at most", "Kept for", "What it holds"),
            _bucket_rows(),
            "Each record is an envelope whose body names its bucket, key and revision and holds the value as "
            f"msgpack. Beside them, the bucket `{IDENTITIES}` holds certificate chains by token, checked against "
            f"the root, and the object store `{CERTIFICATES}` the certificates of decisions.",
        ),
    ]
    return "\n".join(parts)


def _policy_page() -> str:
    produced = ((model.__name__, ", ".join(sorted(roles))) for model, roles in PRODUCERS.items())
    parts = [
        _POLICY_HEAD,
        _section(
            "Types",
            ("Type", "Who may send it", "Audiences", "Who gets it", "Highest priority", "How it travels"),
            map(_policy_row, POLICY),
        ),
        _section(
            "Clearance",
            ("Content", "Handed over by"),
            produced,
            f"Intelligence is for {', '.join(sorted(CLEARED))}. Coordination hands over what a role produces:",
        ),
        _section(
            "Proposals",
            ("What is proposed", "By whom"),
            (
                (
                    _MATTERS[matter],
                    ", ".join(sorted(roles)) + (", any member" if matter is Matter.MISSION else ""),
                )
                for matter, roles in PROPOSERS.items()
            ),
            "Who may put what to the vote. Instances of consensus and whoever verifies a certificate apply this, too; "
            "a proposer needs a seat in the epoch.",
        ),
        _section("Refusals", ("Reason", "What it says"), _POLICY_REASONS),
    ]
    return "\n".join(parts)


def _policy_row(name: str) -> tuple[str, ...]:
    rule = POLICY[name]
    audiences = (_code(reach if reach == "all" else f"{reach}.*") for reach in sorted(rule.reach))
    return (
        f"[`{name}`](schemas/{name}.json)",
        str(rule.senders),
        ", ".join(audiences),
        rule.receives,
        rule.top.token,
        rule.travels,
    )


def _section(title: str, head: tuple[str, ...], rows: Iterable[tuple[str, ...]], text: str = "") -> str:
    lines = ["", f"## {title}", "", *([text, ""] if text else [])]
    lines += [_line(head), _line("---" for _ in head), *map(_line, rows)]
    return "\n".join(lines).removeprefix("\n") + "\n"


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|").replace("\n", " ") for cell in cells) + " |"


def _subject_row(subject: Subject) -> tuple[str, ...]:
    audience = {
        ANY_AUDIENCE: "any that the router's policy allows",
        READER_AUDIENCE: "any that includes the reader",
    }
    return (
        _code(subject.template),
        ", ".join(_link(kind) for kind in subject.types),
        audience.get(subject.audience, _code(subject.audience)),
        _code(f"{{{subject.sender_in}}}") if subject.sender_in else "",
        subject.stream or "",
        _size(subject.max_bytes),
        subject.doc,
    )


def _request_row(request: Request[Message, Message]) -> tuple[str, ...]:
    return (
        _code(request.subject.template),
        _link(request.request_type),
        _link(request.reply_type),
        "the agent" if "{agent}" in request.subject.template else request.service.value,
        str(request.callers),
        _size(request.max_bytes),
        request.doc,
    )


def _type_row(kind: MessageType[Message]) -> tuple[str, ...]:
    timed = kind.message_class in {MessageClass.LIVE, MessageClass.STORED, MessageClass.ENROL}
    return (
        _link(kind),
        kind.message_class.value,
        _duration(kind.ttl_ms / 1000) if timed else "",
        str(kind.senders),
        _size(kind.max_bytes),
        "" if kind.effects_from is None else f"from {kind.effects_from.token}",
        kind.doc,
    )


def _class_rows() -> Iterator[tuple[str, ...]]:
    for one, text in CLASSES.items():
        yield one.value, text


def _stream_rows() -> Iterator[tuple[str, ...]]:
    for stream in STREAMS:
        subjects = ", ".join(map(_code, stream.subjects))
        kept = _duration(stream.max_age_s) if stream.max_age_s else "ever"
        yield stream.name, subjects, stream.retention, kept, _size(stream.max_bytes), stream.doc


def _bucket_rows() -> Iterator[tuple[str, ...]]:
    for bucket in BUCKETS:
        yield (
            _code(bucket.name),
            f"[{bucket.model.__name__}]({_value_path(bucket.name)})",
            str(bucket.writers),
            _size(bucket.max_bytes),
            _duration(bucket.max_age_s) if bucket.max_age_s else "ever",
            bucket.doc,
        )


def _value_path(bucket: str) -> str:
    return f"schemas/record.{bucket}.value.json"


def _link(kind: MessageType[Message]) -> str:
    return f"[`{kind.name}`](schemas/{kind.name}.json)"


def _code(text: str) -> str:
    return f"`{text}`"


def _size(size_bytes: int) -> str:
    return f"{size_bytes // MIB} MiB" if size_bytes % MIB == 0 else f"{size_bytes // KIB} KiB"


def _duration(seconds: float) -> str:
    for unit, length_s in (("d", 86_400), ("h", 3_600)):
        if seconds >= length_s and seconds % length_s == 0:
            return f"{seconds / length_s:g} {unit}"
    return f"{seconds:g} s"


def _schema(name: str, model: type[Message]) -> str:
    schema = model.model_json_schema()
    _describe(schema, model.__name__)
    for definition, fields in schema.get("$defs", {}).items():
        _describe(fields, definition)
    whole = {"$schema": DIALECT, "$id": f"urn:{PREFIX.replace('.', ':')}:{name}", **schema}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def _describe(schema: dict[str, Any], model: str) -> None:
    """Put the docstrings that follow a model's fields into its schema."""
    for field, text in _field_docs().get(model, {}).items():
        if field in schema.get("properties", {}):
            schema["properties"][field]["description"] = text


@cache
def _field_docs() -> dict[str, dict[str, str]]:
    """Return the docstrings of fields, by model and field; pydantic would read them at every start."""
    docs: dict[str, dict[str, str]] = {}
    for module in vars(contracts).values():
        if not isinstance(module, ModuleType) or not module.__name__.startswith(f"{contracts.__name__}."):
            continue
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.ClassDef):
                docs[node.name] = dict(_documented(node))
    return docs


def _documented(model: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for statement, following in pairwise(model.body):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
            and isinstance(following.value.value, str)
        ):
            yield statement.target.id, inspect.cleandoc(following.value.value)


def main(arguments: list[str]) -> int:
    """Write the reference into the folder that the one argument names."""
    if len(arguments) != 1:
        sys.stderr.write(f"usage: {COMMAND}\n")
        return 64
    folder = Path(arguments[0])
    sys.stdout.write(f"{write(folder)} files in {folder}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
