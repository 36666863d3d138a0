"""What an agent host is told, from the environment (prefix ``TOCSIN_``)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from tocsin.bus import BusSettings
from tocsin.contracts.fleet import MAX_AGENTS_PER_HOST, AgentSpec
from tocsin.contracts.identifiers import NAME_PATTERN, Role

SPEC = rf"{NAME_PATTERN}:[a-z]+"


class HostSettings(BusSettings):
    """Which agents, how they sign, how much may wait for them."""

    host_name: Annotated[str, Field(pattern=rf"^{NAME_PATTERN}$")] = Field(
        description="Name of this host, unique in the trust domain."
    )
    host_agents: Annotated[str, Field(pattern=rf"^{SPEC}(,{SPEC})*$")] = Field(
        description="The agents that it carries, e.g. sentinel-01:sentinel,hunter-02:hunter; at most 1,024."
    )
    enrol_tokens_file: Path = Field(
        Path("tokens.json"), description="This host's one-time enrolment tokens, a JSON list, mode 0600."
    )
    state_dir: Path = Field(
        Path("state"), description="Folder for keys, certificates, ballots and what roles keep."
    )
    trap_address: str = Field(
        "127.0.0.1",
        description="Where honeypots and canaries listen: an address of this machine, or a name that leads to one.",
    )
    sentinel_logs: str = Field(
        "",
        description="Logs that this host's first sentinel follows, absolute paths with commas between them: Suricata "
        "EVE, Zeek logs, syslog.",
    )
    sentinel_from: Annotated[str, Field(pattern="^(start|end)$")] = Field(
        "start", description="Where it begins the first time: at the logs' start or end."
    )
    analyst_mode: Annotated[str, Field(pattern="^(workflow|alone)$")] = Field(
        "workflow",
        description="How this host's analysts assess: workflow asks the service, and does it alone where it does not "
        "answer; alone never asks.",
    )
    key_scope: Annotated[str, Field(pattern="^(host|agent)$")] = Field(
        "host", description="host: the ordinary agents share the host's key; agent: each has its own."
    )
    enrol_timeout_s: Annotated[float, Field(gt=0, le=3600)] = Field(
        60.0, description="How long to wait for fleet at start, in seconds."
    )
    heartbeat_s: Annotated[float, Field(ge=0.1, le=20)] = Field(
        2.0, description="How often the host says that its agents live, in seconds."
    )
    inbox_length: Annotated[int, Field(ge=8, le=65_536)] = Field(
        1024, description="Messages that may wait for one agent."
    )
    drain_s: Annotated[float, Field(ge=0, le=60)] = Field(
        5.0, description="How long agents may go on with what waits when the host ends, in seconds."
    )

    @field_validator("host_agents")
    @classmethod
    def _check_agents(cls, text: str) -> str:
        names = [name for name, _ in map(_split, text.split(","))]
        if len(set(names)) != len(names) or len(names) > MAX_AGENTS_PER_HOST:
            raise ValueError("an agent is named twice, or there are too many")
        unknown = {role for _, role in map(_split, text.split(","))} - set(Role)
        if unknown:
            raise ValueError(f"no such role: {', '.join(sorted(unknown))}")
        return text

    def logs(self) -> tuple[Path, ...]:
        """Return the logs to follow, each once."""
        texts = (text.strip() for text in self.sentinel_logs.split(","))
        return tuple(dict.fromkeys(Path(text) for text in texts if text))

    def carried(self) -> tuple[AgentSpec, ...]:
        """Return the agents in the order given."""
        return carried_agents(self.host_agents)


def carried_agents(text: str) -> tuple[AgentSpec, ...]:
    """Read a checked ``host_agents``."""
    return tuple(AgentSpec(name=name, role=Role(role)) for name, role in map(_split, text.split(",")))


def _split(spec: str) -> tuple[str, str]:
    name, _, role = spec.partition(":")
    return name, role
