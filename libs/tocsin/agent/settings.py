"""What an agent host is told, from the environment (prefix ``TOCSIN_``)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from tocsin.bus import BusSettings
from tocsin.contracts.fleet import MAX_AGENTS_PER_HOST, AgentSpec
from tocsin.contracts.identifiers import NAME_PATTERN, Role
from tocsin.crypto.channels.wire import MAX_AGE_S, MAX_MESSAGES

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
    zone: Annotated[str, Field(pattern=rf"^{NAME_PATTERN}$")] = Field(
        "default", description="Where this host is: objectives of missions may prefer a zone."
    )
    trap_address: str = Field(
        "127.0.0.1",
        description="Where honeypots and canaries listen: an address of this machine, or a name that leads to one.",
    )
    canary_files: str = Field(
        "",
        description="Where canaries put token files, absolute paths with commas between them; {name} is the canary's "
        "name. One more is always in the state folder.",
    )
    deception_credentials: Annotated[str, Field(pattern="^(escaped|hashed)$")] = Field(
        "escaped", description="How honeypots write down what attackers try to log in with: escaped or hashed."
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
    guardian_actuator: Annotated[str, Field(pattern="^(dry-run|webhook|nftables)$")] = Field(
        "dry-run",
        description="What carries out the guardians' orders: dry-run writes them down, webhook sends them to another "
        "program, nftables fills this machine's packet filter.",
    )
    guardian_webhook_url: str = Field(
        "", description="Where the webhook sends to: https, or http to a loopback address."
    )
    guardian_webhook_secret_file: Path | None = Field(
        None, description="File with the key that the webhook signs with, 32 bytes or more, mode 0600."
    )
    guardian_never_block: str = Field(
        "", description="Addresses and networks that guardians never act against, with commas between them."
    )
    specialist_plan: Path | None = Field(
        None,
        description="What this host's first specialist takes an inventory of, a JSON file: see "
        "docs/how-to/roles/specialist.md. Without it none is taken.",
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

    channels_per_agent: Annotated[int, Field(ge=1, le=65_536)] = Field(
        1024,
        description="Secure channels that one agent has at once; for one more, that used least recently is closed.",
    )
    channel_messages: Annotated[int, Field(ge=16, le=MAX_MESSAGES)] = Field(
        MAX_MESSAGES, description="Messages in one direction after which a channel's keys are made anew."
    )
    channel_age_s: Annotated[int, Field(ge=2, le=MAX_AGE_S)] = Field(
        MAX_AGE_S, description="Age at which a channel's keys are made anew, in seconds."
    )
    qkd_url: Annotated[str, Field(pattern=r"^https?://[^\s]{1,500}$")] | None = Field(
        None,
        description="This host's key server (ETSI GS QKD 014), whose keys are mixed into channels; none by default.",
    )
    qkd_required: bool = Field(
        default=False,
        description="Whether a channel without such a key fails; else it is made without, and says so.",
    )
    qkd_timeout_s: Annotated[float, Field(gt=0, le=10)] = Field(
        2.0, description="How long the key server may take, in seconds."
    )
    qkd_ca_file: Path | None = Field(None, description="Authority of the key server's certificate.")
    qkd_cert_file: Path | None = Field(None, description="This host's certificate for the key server.")
    qkd_key_file: Path | None = Field(None, description="Its private key.")
    qkd_saes: Annotated[
        dict[str, Annotated[str, Field(min_length=1, max_length=128)]], Field(max_length=4096)
    ] = Field(
        {},
        description="Names by which key servers know hosts, as a JSON map; a host that is not in it is known by its "
        "own name.",
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
