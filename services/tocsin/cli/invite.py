"""``tocsin agent invite``: what a host of one's own needs to join a running ``tocsin up``."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from tocsin.bus import Broker
from tocsin.bus.credentials import read
from tocsin.bus.enrolment import IssuedToken, read_tokens
from tocsin.cli.fleetplan import PlannedAgent, as_held, as_issued, enrolment_tokens
from tocsin.contracts.errors import ConflictError, InvalidInputError
from tocsin.contracts.identifiers import Role, SpiffeId


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
    return agents


def invite(state: Path, host: str, agents: list[PlannedAgent], out: Path) -> Path:
    """Make one-time tokens, tell fleet of them, and write a folder for the new host.

    Args:
        state: the state folder of a running `tocsin up`.
        host: name of the new host, not one of the stack's own.
        agents: the agents that it will carry.
        out: folder to make: tokens, the root certificate, the broker's token, and ``env`` with the settings.

    Returns:
        the ``env`` file.

    Raises:
        ConflictError: ``file_exists``: ``out`` is there already.
        UnavailableError: ``broker_down``: nothing runs with ``state``.
    """
    url = Broker.address(state / "broker")
    if out.exists():
        raise ConflictError(f"{out} exists already", reason="file_exists", advice="choose another --out")
    tokens = enrolment_tokens(agents, host, secrets.token_bytes(32))
    issued = state / "fleet" / "tokens.json"
    _replace_private(issued, as_issued([*read_tokens(issued, IssuedToken), *tokens]))
    credentials = out / "credentials"
    credentials.mkdir(parents=True, mode=0o700)
    (credentials / "ca.pem").write_bytes(read(state / "ca" / "root.pem"))
    _replace_private(out / "broker-token", read(state / "broker" / "token").decode())
    _replace_private(out / "tokens.json", as_held(tokens))
    settings = {
        "nats_url": url,
        "nats_token_file": out / "broker-token",
        "credentials_dir": credentials,
        "state_dir": out / "state",
        "host_name": host,
        "host_agents": ",".join(f"{agent.name}:{agent.role.value}" for agent in agents),
        "enrol_tokens_file": out / "tokens.json",
        "log_level": "warning",
    }
    env = out / "env"
    env.write_text("".join(f"TOCSIN_{key.upper()}={value}\n" for key, value in settings.items()))
    return env


def _replace_private(path: Path, text: str) -> None:
    """Write a file of mode 0600 in one step: a reader sees the old one or the new one."""
    fresh = path.with_suffix(".new")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    fresh.replace(path)
