"""The folders of agent hosts that are enrolled already: keys, certificates and tokens, as a first run leaves them."""

from __future__ import annotations

import json
from pathlib import Path

from _agents import DOMAIN
from _fleet import Fleet

from tocsin.agent import HostSettings
from tocsin.agent.enrol import key_groups
from tocsin.bus.enrolment import HeldToken
from tocsin.contracts.fleet import AgentSpec
from tocsin.contracts.identifiers import Role

UNUSED_SECRET = "00" * 32
"""Of a token that no host shows: each has its certificates."""


def install_host(fleet: Fleet, host: str, *, nats_url: str) -> HostSettings:
    """Write a host's folder and return its settings; whom its keys speak for, the host's own rules say."""
    agents = tuple(
        AgentSpec(name=agent.name, role=agent.id.role or Role.SPECIALIST)
        for agent in fleet.agents
        if agent.host == host
    )
    folder = fleet.folder / "hosts" / host
    token = HeldToken(
        token_id=host, secret_hex=UNUSED_SECRET, host=host, agents=tuple(agent.name for agent in agents)
    )
    per_agent = fleet.options.key_scope == "agent"
    for group in key_groups(host, agents, [token], per_agent=per_agent):
        fleet.certify(folder / "state" / "identity", host, group.file_name, group.ids(DOMAIN))
        fleet.keys += 1
    (folder / "ca.pem").write_bytes(fleet.root.certificate_pem)
    tokens_file = folder / "tokens.json"
    tokens_file.write_text(json.dumps([token.model_dump(mode="json")]))
    return HostSettings(
        nats_url=nats_url,
        nats_token_file=Path(fleet.token_file),
        credentials_dir=folder,
        signature_backend=fleet.options.backend.name,
        host_name=host,
        host_agents=",".join(f"{agent.name}:{agent.role.value}" for agent in agents),
        enrol_tokens_file=tokens_file,
        state_dir=folder / "state",
        key_scope=fleet.options.key_scope,
    )
