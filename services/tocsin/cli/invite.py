"""Letting a host of one's own join: one-time tokens, and a ticket that carries all that the host needs.

``tocsin agent enroll --issue`` writes the ticket, one file; ``tocsin agent enroll --token`` redeems it on the new host;
``tocsin agent invite`` makes the host's folder at once, for a host on the same machine. The ticket holds secrets (the
tokens and the broker's password) and is written for its owner alone.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from tocsin.agent.settings import HostSettings
from tocsin.bus.credentials import read
from tocsin.bus.enrolment import MAX_TOKENS, HeldToken, IssuedToken, check_root, read_tokens
from tocsin.cli.fleetplan import PlannedAgent, as_held, as_issued, enrolment_tokens, held_tokens
from tocsin.cli.installation import Installation, host_env, replace_file
from tocsin.contracts.base import Message, Name
from tocsin.contracts.errors import ConflictError, ExhaustedError, InvalidInputError, UnavailableError
from tocsin.contracts.fleet import MAX_AGENTS_PER_HOST, AgentSpec
from tocsin.contracts.identifiers import Role, SpiffeId
from tocsin.crypto import TrustStore

VERSION = 1
NS_PER_S = 1_000_000_000
DEFAULT_EXPIRY = "1h"
MAX_EXPIRY_S = 30 * 86_400
UNITS_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


class Ticket(Message):
    """All that a new host needs, in one file."""

    version: Annotated[int, Field(ge=1, le=VERSION)] = VERSION
    nats_url: Annotated[str, Field(max_length=1024)]
    broker_token: Annotated[str, Field(max_length=1024, repr=False)]
    root_pem: Annotated[str, Field(max_length=65_536)]
    host: Name
    agents: Annotated[tuple[AgentSpec, ...], Field(max_length=MAX_AGENTS_PER_HOST)]
    tokens: Annotated[tuple[HeldToken, ...], Field(min_length=1, max_length=MAX_AGENTS_PER_HOST + 1)]


def parse_agents(specs: list[str], host: str) -> list[PlannedAgent]:
    """Read ``name:role`` texts.

    Raises:
        InvalidInputError: ``bad_identity`` or ``bad_agent``.
    """
    agents = []
    for spec in specs:
        name, found, role = spec.partition(":")
        if not found or role not in set(Role):
            raise InvalidInputError(
                f"{spec[:80]!r} is no name:role",
                reason="bad_agent",
                advice=f"roles are {', '.join(Role)}",
            )
        SpiffeId.agent("any", Role(role), name)
        agents.append(PlannedAgent(name, Role(role), host))
    SpiffeId.host("any", host)
    if len({agent.name for agent in agents}) != len(agents) or len(agents) > MAX_AGENTS_PER_HOST:
        raise InvalidInputError("an agent is named twice, or there are too many", reason="bad_agent")
    return agents


def parse_duration(text: str) -> int:
    """Return the seconds of a duration like ``90s``, ``30m``, ``1h`` or ``2d``; at most 30 days.

    Raises:
        InvalidInputError: ``bad_duration``.
    """
    match = re.fullmatch(r"([0-9]{1,7})([smhd])", text)
    seconds = int(match[1]) * UNITS_S[match[2]] if match else 0
    if not 1 <= seconds <= MAX_EXPIRY_S:
        raise InvalidInputError(
            f"{text[:40]!r} is no duration up to 30 days",
            reason="bad_duration",
            advice="write 90s, 30m, 1h or 2d",
        )
    return seconds


@contextmanager
def tokens_changed(installation: Installation) -> Iterator[list[IssuedToken]]:
    """Give the tokens that fleet honours to be changed; they are written at the end, one command at a time.

    Raises:
        ExhaustedError: ``too_many_tokens``: nothing is written.
    """
    path = installation.tokens_file
    lock = os.open(path.with_name("tokens.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        tokens = list(read_tokens(path, IssuedToken)) if path.exists() else []
        yield tokens
        if len(tokens) > MAX_TOKENS:
            raise ExhaustedError(
                f"there would be more than {MAX_TOKENS} tokens",
                reason="too_many_tokens",
                advice="`tocsin agent tokens --clean` forgets those that were never used and have ended",
            )
        replace_file(path, as_issued(tokens))
    finally:
        os.close(lock)


def issue_ticket(
    installation: Installation,
    nats_url: str,
    host: str,
    agents: list[PlannedAgent],
    *,
    expires_s: int,
    now_ns: int,
) -> Ticket:
    """Make one-time tokens and tell fleet of them, which need not be started again.

    Args:
        installation: of a running `tocsin up`, or of a stack in containers.
        nats_url: where the new host reaches the broker.
        host: name of the new host.
        agents: the agents that it will carry.
        expires_s: how long a key can be enrolled with them, in seconds.
        now_ns: the present, nanoseconds since the epoch.

    Raises:
        ExhaustedError: ``too_many_tokens``.
    """
    tokens = enrolment_tokens(agents, host, secrets.token_bytes(32), expires_ns=now_ns + expires_s * NS_PER_S)
    with tokens_changed(installation) as issued:
        issued.extend(tokens)
    return Ticket(
        nats_url=nats_url,
        broker_token=read(installation.broker_token).decode(),
        root_pem=installation.root_pem.decode(),
        host=host,
        agents=tuple(AgentSpec(name=agent.name, role=agent.role) for agent in agents),
        tokens=held_tokens(tokens, installation.fingerprint),
    )


def write_ticket(ticket: Ticket, path: Path) -> None:
    """Write a ticket for its owner alone.

    Raises:
        ConflictError: ``file_exists``.
        UnavailableError: ``not_writable``.
    """
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(ticket.model_dump_json())
    except FileExistsError as error:
        raise ConflictError(
            f"{path} exists already", reason="file_exists", advice="choose another --issue"
        ) from error
    except OSError as error:
        raise UnavailableError(f"cannot write {path}: {error.strerror}", reason="not_writable") from error


def read_ticket(path: Path) -> Ticket:
    """Read a ticket.

    Raises:
        UnavailableError: ``missing_file``.
        InvalidInputError: ``bad_ticket``; the message shows no value of it.
        UntrustedError: ``wrong_root``: the tokens are for another root than the one in it.
    """
    data = read(path)
    try:
        ticket = Ticket.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise InvalidInputError(
            f"{path.name} is no ticket: {place or 'file'}: {first['type']}",
            reason="bad_ticket",
            advice="`tocsin agent enroll --issue` makes one",
        ) from None
    check_root(ticket.tokens, TrustStore(ticket.root_pem.encode()).root_fingerprint)
    return ticket


def unpack(ticket: Ticket, out: Path, *, remote: str | None = None) -> Path:
    """Make a host's folder out of a ticket, or go on with one that the same ticket has made.

    Args:
        ticket: the ticket.
        out: folder to make: tokens, the root certificate, the broker's token, and ``env`` with the settings.
        remote: where the host reaches the broker, if not where the ticket says.

    Returns:
        the ``env`` file.

    Raises:
        ConflictError: ``file_exists``: ``out`` is there already, and not of this ticket.
        UnavailableError: ``not_writable``.
    """
    env, tokens_text = out / "env", as_held(ticket.tokens)
    held = out / "tokens.json"
    if out.exists() and not (held.exists() and held.read_text() == tokens_text):
        raise ConflictError(f"{out} exists already", reason="file_exists", advice="choose another --out")
    agents = [PlannedAgent(agent.name, agent.role, ticket.host) for agent in ticket.agents]
    credentials = out / "credentials"
    settings = {
        "nats_url": remote or ticket.nats_url,
        "nats_token_file": out / "broker-token",
        "credentials_dir": credentials,
        "state_dir": out / "state",
        "enrol_tokens_file": held,
        "log_level": "warning",
    }
    try:
        credentials.mkdir(parents=True, exist_ok=True, mode=0o700)
        (credentials / "ca.pem").write_text(ticket.root_pem)
        replace_file(out / "broker-token", ticket.broker_token)
        env.write_text(host_env(ticket.host, agents, settings))
        replace_file(held, tokens_text)
    except OSError as error:
        raise UnavailableError(f"cannot write to {out}: {error.strerror}", reason="not_writable") from error
    return env


def host_settings(env: Path) -> HostSettings:
    """Return the settings of a folder that :func:`unpack` made."""
    return HostSettings(_env_file=env)
