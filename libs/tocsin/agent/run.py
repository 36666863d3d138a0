"""Run an agent host as a process: ``python -m tocsin.agent``, or a script of your own.

    if __name__ == "__main__":
        run_agents(Watcher)

A class given here takes its role's place; the other roles are the ones that come with Tocsin.
"""

from __future__ import annotations

import resource
import socket
import sys
from contextlib import AsyncExitStack
from importlib import import_module
from pathlib import Path

from tocsin.agent.actuators import choose
from tocsin.agent.agent import Agent
from tocsin.agent.host import AgentHost
from tocsin.agent.protected import parse_networks
from tocsin.agent.settings import HostSettings
from tocsin.bus import StoppedError, read_settings, run_guarded, serve_health, stop_on_signal, unless_stopped
from tocsin.contracts.errors import InvalidInputError
from tocsin.contracts.identifiers import Role
from tocsin.telemetry import Metrics, get_logger

log = get_logger(__name__)


def run_agents(*classes: type[Agent]) -> None:
    """Carry the agents that the settings name, until SIGTERM or SIGINT; exit with the error's code."""
    own = {agent_class.role: agent_class for agent_class in classes}

    async def main() -> None:
        settings = read_settings(HostSettings)
        _allow_files()
        options = role_options(settings)
        # The first of a role in this host alone: twice would be the same again.
        once: dict[Role, dict[str, object]] = {
            Role.SENTINEL: {"logs": settings.logs(), "from_end": settings.sentinel_from == "end"},
            Role.SPECIALIST: {"plan": settings.specialist_plan},
        }

        def make(role: Role, name: str) -> Agent:
            if role in own:
                return own[role](name)
            # Late, so that a host of one's own agents loads no role of ours and what it needs.
            roles = import_module("tocsin.agent.roles")
            made: Agent = roles.make(role, name, **options.get(role, {}), **once.pop(role, {}))
            return made

        metrics = Metrics()
        stop = stop_on_signal()
        host = AgentHost(settings, make, metrics)
        name = f"host-{settings.host_name}"
        with serve_health(name, settings, metrics, ready=lambda: host.ready):
            async with AsyncExitStack() as stack:
                try:
                    await unless_stopped(stop, stack.enter_async_context(host))
                except StoppedError:
                    log.info("host_stopped_while_starting", host=settings.host_name)
                    return
                await stop.wait()
                log.info("host_stopping", host=settings.host_name)

    sys.exit(run_guarded(main))


def role_options(settings: HostSettings) -> dict[Role, dict[str, object]]:
    """Return what the settings say to the agents of each role that this host carries.

    Raises:
        InvalidInputError: ``bad_address``, ``bad_network``, or the actuator's.
        UnavailableError: the actuator's.
    """
    carried = {agent.role for agent in settings.carried()}
    options: dict[Role, dict[str, object]] = {}
    if carried & {Role.DECEPTION, Role.CANARY}:
        listen = {"address": _address(settings.trap_address)}
        options[Role.DECEPTION] = {**listen, "credentials": settings.deception_credentials}
        options[Role.CANARY] = {**listen, "files": paths_of(settings.canary_files)}
    if Role.ANALYST in carried:
        options[Role.ANALYST] = {"alone": settings.analyst_mode == "alone"}
    if Role.GUARDIAN in carried:
        actuator = choose(
            settings.guardian_actuator,
            folder=settings.state_dir,
            webhook_url=settings.guardian_webhook_url,
            webhook_secret_file=settings.guardian_webhook_secret_file,
        )
        options[Role.GUARDIAN] = {
            "actuator": actuator,
            "never_block": parse_networks(settings.guardian_never_block),
            "broker_url": settings.nats_url,
        }
    return options


def paths_of(text: str) -> list[Path]:
    """Read paths with commas between them."""
    return [Path(one.strip()) for one in text.split(",") if one.strip()]


def _allow_files() -> None:
    """Take as many file handles as the system allows: a thousand agents, honeypots among them, need more than 1,024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _address(name: str) -> str:
    """Return the IPv4 address of this machine that a name leads to.

    Raises:
        InvalidInputError: ``bad_address``.
    """
    try:
        return socket.gethostbyname(name)
    except OSError as error:
        raise InvalidInputError(
            f"TOCSIN_TRAP_ADDRESS {name!r} leads nowhere: {error.strerror}", reason="bad_address"
        ) from error
