"""OpenC2 commands and responses as JSON: what is read is checked in full, what is written is canonical.

    command = parse_command(b'{"action": "deny", "target": {"ipv4_net": "203.0.113.9"}, "args": {"duration": 60000}}')
    command_of(command)  # Command(action=Action.DENY, address="203.0.113.9", duration_s=60)

From the OASIS Open Command and Control Language Specification 1.0 (LS) and, for ``deny``, its profile for stateless
packet filtering 1.0 (SLPF). The subset is what Tocsin can do, and it says so when asked (``query features``):

* ``deny`` of ``ipv4_net`` or ``ipv6_net``, one address, for a duration;
* ``contain`` of a ``device``, named by its address, for a duration;
* ``cancel`` of a ``command`` by its id: how an actuator is told that a command's time is over;
* ``query`` of ``features``.

What the specification knows and Tocsin does not do is 501, what it does not know is 400. A response that Tocsin
reads may have results that it does not understand; a command may have nothing that it does not understand, for
whoever ignores an argument acts otherwise than was asked.

Pure. Any bytes are a value or an InvalidInputError; at most MAX_BYTES are looked at.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from ipaddress import ip_network
from types import MappingProxyType

from tocsin.contracts.errors import (
    ConflictError,
    DeniedError,
    ExhaustedError,
    InvalidInputError,
    TocsinError,
    UnavailableError,
    UntrustedError,
)
from tocsin.contracts.response import Action, Command

COMMAND_TYPE = "application/openc2-cmd+json;version=1.0"
RESPONSE_TYPE = "application/openc2-rsp+json;version=1.0"
"""Media types, as the OASIS specification for the transfer of OpenC2 messages via HTTPS 1.0 has them."""
MAX_BYTES = 64 * 1024
MAX_COMMAND_ID = 36
"""LS section 3.4.2, Command-ID: `^\\S{0,36}$`; an empty one names nothing and is refused here."""
MAX_DURATION_MS = 30 * 86_400_000
"""Longest duration of a :class:`Command`."""

ACTIONS = frozenset(
    [
        "scan",
        "locate",
        "query",
        "deny",
        "contain",
        "allow",
        "start",
        "stop",
        "restart",
        "cancel",
        "set",
        "update",
        "redirect",
        "create",
        "delete",
        "detonate",
        "restore",
        "copy",
        "investigate",
        "remediate",
    ]
)
"""LS section 3.3.1.1."""
TARGETS = frozenset(
    [
        "artifact",
        "command",
        "device",
        "domain_name",
        "email_addr",
        "features",
        "file",
        "idn_domain_name",
        "idn_email_addr",
        "ipv4_net",
        "ipv6_net",
        "ipv4_connection",
        "ipv6_connection",
        "iri",
        "mac_address",
        "process",
        "properties",
        "uri",
        "slpf:rule_number",
    ]
)
"""LS section 3.3, Target, and the one that SLPF adds."""
FEATURES = ("versions", "profiles", "pairs", "rate_limit")
"""LS section 3.4.2, Feature."""
PAIRS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "deny": ("ipv4_net", "ipv6_net"),
        "contain": ("device",),
        "cancel": ("command",),
        "query": ("features",),
    }
)
"""Action-target pairs that are supported."""


RESPONSES = ("none", "ack", "status", "complete")
"""LS section 3.4.2, Response-Type."""


class Status(IntEnum):
    """Status codes of responses (LS section 3.3, Status-Code)."""

    PROCESSING = 102
    OK = 200
    CREATED = 201
    BAD_REQUEST = 400
    UNAUTHORIZED = 401
    FORBIDDEN = 403
    NOT_FOUND = 404
    INTERNAL_ERROR = 500
    NOT_IMPLEMENTED = 501
    UNAVAILABLE = 503


@dataclass(frozen=True, slots=True)
class OpenC2Command:
    """A command that is well-formed and of a supported pair."""

    action: str
    target: str
    """Type of the target."""
    value: str | tuple[str, ...]
    """An address, the id of a command, or names of features."""
    duration_ms: int | None = None
    command_id: str | None = None


@dataclass(frozen=True, slots=True)
class OpenC2Response:
    """A response."""

    status: Status
    status_text: str = ""
    results: Mapping[str, object] = field(default_factory=dict)

    @property
    def succeeded(self) -> bool:
        """Whether what was commanded is done."""
        return self.status in {Status.OK, Status.CREATED}

    def encode(self) -> bytes:
        """Return it as JSON."""
        body: dict[str, object] = {"status": int(self.status)}
        if self.status_text:
            body["status_text"] = self.status_text
        if self.results:
            body["results"] = dict(self.results)
        return encode(body)


def encode(body: Mapping[str, object]) -> bytes:
    """Return a command or response as JSON: one line, no spaces, ASCII, keys in their order."""
    return json.dumps(body, separators=(",", ":")).encode()


def command_id_of(decision: bytes) -> str:
    """Return a decision's command id: the first 128 of its 256 bits in hex, since 36 characters is the limit."""
    return decision.hex()[:32]


def cancel(command_id: str) -> dict[str, object]:
    """Return the command that ends another one."""
    return {"action": "cancel", "target": {"command": command_id}}


def status_of(error: TocsinError) -> Status:
    """Return the status code by which an error is answered."""
    if error.reason == "not_implemented":
        return Status.NOT_IMPLEMENTED
    if error.reason == "no_such_command":
        return Status.NOT_FOUND
    by_family = (
        (InvalidInputError, Status.BAD_REQUEST),
        (UntrustedError, Status.UNAUTHORIZED),
        (DeniedError, Status.FORBIDDEN),
        (ConflictError, Status.FORBIDDEN),
        (UnavailableError, Status.UNAVAILABLE),
        (ExhaustedError, Status.UNAVAILABLE),
    )
    return next((status for family, status in by_family if isinstance(error, family)), Status.INTERNAL_ERROR)


def refusal(error: TocsinError) -> OpenC2Response:
    """Return an error as a response."""
    return OpenC2Response(status_of(error), f"{error.reason}: {error}"[:512])


def features(asked: tuple[str, ...]) -> OpenC2Response:
    """Answer ``query features``, but for ``rate_limit``: there is none to state.

    Without names the answer only says that somebody is there (LS, on query features).
    """
    known: dict[str, object] = {
        "versions": ["1.0"],
        "profiles": ["slpf"],
        "pairs": {action: list(targets) for action, targets in PAIRS.items()},
    }
    return OpenC2Response(Status.OK, results={name: known[name] for name in asked if name in known})


def parse_command(data: bytes) -> OpenC2Command:
    """Read a command.

    Raises:
        InvalidInputError: ``too_large``, ``bad_json``, ``bad_command``; ``not_implemented``: well-formed, and
            nothing that Tocsin does.
    """
    body = _object(data, "bad_command")
    _only(body, {"action", "target", "args", "actuator", "command_id"}, "a command")
    action, (target, given) = body.get("action"), _one(body.get("target"), "target")
    if not isinstance(action, str) or action not in ACTIONS or target not in TARGETS:
        raise _bad(f"no action and target of OpenC2: {str(action)[:40]!r}, {target[:40]!r}")
    if target not in PAIRS.get(action, ()):
        raise _not_implemented(f"{action} {target}")
    if "actuator" in body and _one(body["actuator"], "actuator")[0] != "slpf":
        raise _not_implemented("an actuator of another profile than slpf")
    command_id = _check_id(body["command_id"]) if "command_id" in body else None
    return OpenC2Command(
        action=action,
        target=target,
        value=_VALUES[target](given),
        duration_ms=_duration(body.get("args", {})),
        command_id=command_id,
    )


def command_of(parsed: OpenC2Command) -> Command:
    """Return what a ``deny`` or ``contain`` asks of agents; its duration is rounded up to seconds.

    Raises:
        InvalidInputError: ``not_implemented``: another action, or no end.
    """
    if parsed.action not in {Action.DENY, Action.CONTAIN} or not isinstance(parsed.value, str):
        raise _not_implemented(f"{parsed.action} as a response")
    if parsed.duration_ms is None:
        raise _not_implemented(f"{parsed.action} without args.duration: every response has an end")
    return Command(
        action=Action(parsed.action), address=parsed.value, duration_s=-(-parsed.duration_ms // 1000)
    )


def parse_response(data: bytes) -> OpenC2Response:
    """Read a response.

    Raises:
        InvalidInputError: ``too_large``, ``bad_json``, ``bad_response``.
    """
    body = _object(data, "bad_response")
    status, text, results = body.get("status"), body.get("status_text", ""), body.get("results", {})
    if type(status) is not int or status not in set(Status):
        raise InvalidInputError(f"no status of OpenC2: {str(status)[:40]!r}", reason="bad_response")
    if not isinstance(text, str) or not isinstance(results, dict):
        raise InvalidInputError("status_text is no text, or results no map", reason="bad_response")
    return OpenC2Response(Status(status), text[:512], MappingProxyType(results))


def _object(data: bytes, reason: str) -> dict[str, object]:
    if len(data) > MAX_BYTES:
        raise InvalidInputError(f"{len(data)} bytes, at most {MAX_BYTES}", reason="too_large")
    try:
        body = json.loads(data, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"no JSON: {str(error)[:80]}", reason="bad_json") from error
    if not isinstance(body, dict):
        raise InvalidInputError("no JSON object", reason=reason)
    return body


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Refuse an object with a key twice: readers differ on which of the two counts."""
    if len(made := dict(pairs)) != len(pairs):
        raise ValueError("a key twice")
    return made


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON")


def _one(body: object, what: str) -> tuple[str, object]:
    if not isinstance(body, dict) or len(body) != 1:
        raise _bad(f"{what} is no map of one entry")
    return next(iter(body.items()))


def _only(body: Mapping[str, object], known: set[str], what: str) -> None:
    if unknown := sorted(body.keys() - known):
        raise _bad(f"{what} has no {unknown[0][:40]!r}")


def _duration(args: object) -> int | None:
    if not isinstance(args, dict):
        raise _bad("args is no map")
    _only(args, {"start_time", "stop_time", "duration", "response_requested", "slpf"}, "args")
    if args.get("response_requested", "complete") not in RESPONSES:
        raise _bad("no such response_requested")
    if others := sorted(args.keys() - {"duration", "response_requested"}):
        raise _not_implemented(f"args.{others[0]}")
    duration = args.get("duration")
    if duration is None:
        return None
    if type(duration) is not int or not 0 < duration <= MAX_DURATION_MS:
        raise _bad(f"args.duration is no number of milliseconds up to {MAX_DURATION_MS}")
    return duration


def _check_id(value: object) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_COMMAND_ID or any(map(str.isspace, value)):
        raise _bad(f"no command id: {str(value)[:40]!r}")
    return value


def _net(version: int, value: object) -> str:
    try:
        network = ip_network(value) if isinstance(value, str) and "%" not in value else None
    except ValueError as error:
        raise _bad(f"no network: {str(value)[:60]!r}") from error
    if network is None or network.version != version:
        raise _bad(f"no IPv{version} network: {str(value)[:60]!r}")
    if network.num_addresses != 1:
        raise _not_implemented("a network of more than one address")
    return str(network.network_address)


def _device(value: object) -> str:
    if not isinstance(value, dict) or value.keys() - {"hostname", "idn_hostname", "device_id"} or not value:
        raise _bad("no device")
    if value.keys() != {"hostname"}:
        raise _not_implemented("a device by anything but its hostname")
    name = value["hostname"]
    return _net(6 if isinstance(name, str) and ":" in name else 4, name)


def _features(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > len(FEATURES) or any(name not in FEATURES for name in value):
        raise _bad("no list of features")
    if len(set(value)) != len(value):
        raise _bad("a feature twice")
    return tuple(value)


_VALUES: Mapping[str, Callable[[object], str | tuple[str, ...]]] = MappingProxyType(
    {
        "ipv4_net": lambda value: _net(4, value),
        "ipv6_net": lambda value: _net(6, value),
        "device": _device,
        "command": _check_id,
        "features": _features,
    }
)


def _bad(message: str) -> InvalidInputError:
    return InvalidInputError(message, reason="bad_command")


def _not_implemented(what: str) -> InvalidInputError:
    return InvalidInputError(f"Tocsin does not do {what}", reason="not_implemented")
