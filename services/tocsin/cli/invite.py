"""``tocsin agent invite``: what a host of one's own needs to join an installation."""

from __future__ import annotations

import secrets
from pathlib import Path

from tocsin.bus.credentials import read
from tocsin.bus.enrolment import IssuedToken, read_tokens
from tocsin.cli.fleetplan import PlannedAgent, as_held, as_issued, enrolment_tokens
from tocsin.cli.installation import Installation, host_env, replace_file
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


def invite(installation: Installation, nats_url: str, host: str, agents: list[PlannedAgent], out: Path) -> Path:
    """Make one-time tokens, tell fleet of them, and write a folder for the new host.

    Args:
        installation: of a running `tocsin up`, or of a stack in containers.
        nats_url: where the new host reaches the broker.
        host: name of the new host, not one of the installation's own.
        agents: the agents that it will carry.
        out: folder to make: tokens, the root certificate, the broker's token, and ``env`` with the settings.

    Returns:
        the ``env`` file.

    Raises:
        ConflictError: ``file_exists``: ``out`` is there already.
    """
    if out.exists():
        raise ConflictError(f"{out} exists already", reason="file_exists", advice="choose another --out")
    tokens = enrolment_tokens(agents, host, secrets.token_bytes(32))
    issued = installation.tokens_file
    replace_file(issued, as_issued([*read_tokens(issued, IssuedToken), *tokens]))
    credentials = out / "credentials"
    credentials.mkdir(parents=True, mode=0o700)
    (credentials / "ca.pem").write_bytes(installation.root_pem)
    replace_file(out / "broker-token", read(installation.broker_token).decode())
    replace_file(out / "tokens.json", as_held(tokens, installation.fingerprint))
    settings = {
        "nats_url": nats_url,
        "nats_token_file": out / "broker-token",
        "credentials_dir": credentials,
        "state_dir": out / "state",
        "enrol_tokens_file": out / "tokens.json",
        "log_level": "warning",
    }
    env = out / "env"
    env.write_text(host_env(host, agents, settings))
    return env
