"""What a host's settings say to the agents that it carries."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path

import pytest

from tocsin.agent.actuators import Actuator
from tocsin.agent.roles import make
from tocsin.agent.run import role_options
from tocsin.agent.settings import HostSettings
from tocsin.contracts.errors import TocsinError
from tocsin.contracts.identifiers import Role

AGENTS = "guardian-01:guardian,deception-01:deception,canary-01:canary,hunter-01:hunter"


def options(agents: str = AGENTS, **settings: object) -> dict[Role, dict[str, object]]:
    return role_options(HostSettings(host_name="h", host_agents=agents, **settings))  # type: ignore[arg-type]  # checked by pydantic


def test_by_default_guardians_do_nothing_and_traps_are_on_loopback() -> None:
    given = options()
    actuator = given[Role.GUARDIAN]["actuator"]
    assert (actuator.name, actuator.acts) == ("dry-run", False)  # type: ignore[attr-defined]  # an actuator
    assert given[Role.DECEPTION] == {"address": "127.0.0.1", "credentials": "escaped"}
    assert given[Role.CANARY] == {"address": "127.0.0.1", "files": []}
    for role, of_role in given.items():
        make(role, "a", **of_role)


def test_settings_reach_their_roles_and_no_other(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"k" * 32)
    secret.chmod(0o600)
    given = options(
        guardian_actuator="webhook",
        guardian_webhook_url="https://soar.example.org/openc2",
        guardian_webhook_secret_file=secret,
        guardian_never_block="192.0.2.0/24, 2001:db8::7",
        canary_files="/srv/a, /srv/{name}.env",
        deception_credentials="hashed",
        nats_url="nats://198.51.100.4:4222",
    )
    guardian = given[Role.GUARDIAN]
    actuator: Actuator = guardian["actuator"]  # type: ignore[assignment]  # an actuator
    assert (actuator.name, actuator.acts) == ("webhook", True)
    assert guardian["never_block"] == (ip_network("192.0.2.0/24"), ip_network("2001:db8::7"))
    assert guardian["broker_url"] == "nats://198.51.100.4:4222"
    assert given[Role.CANARY]["files"] == [Path("/srv/a"), Path("/srv/{name}.env")]
    assert given[Role.DECEPTION]["credentials"] == "hashed"
    assert options("hunter-01:hunter", guardian_actuator="webhook") == {}


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"guardian_never_block": "example.org"}, "bad_network"),
        ({"guardian_actuator": "webhook"}, "bad_secret"),
        ({"trap_address": "no-such-host.invalid"}, "bad_address"),
    ],
)
def test_settings_that_make_no_sense_are_said_at_start(settings: dict[str, str], reason: str) -> None:
    with pytest.raises(TocsinError) as caught:
        options(**settings)
    assert caught.value.reason == reason
