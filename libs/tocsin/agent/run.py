"""Run an agent host as a process: ``python -m tocsin.agent``, or a script of your own.

    if __name__ == "__main__":
        run_agents(Watcher)

A class given here takes its role's place; the other roles are the ones that come with Tocsin.
"""

from __future__ import annotations

import socket
import sys
from contextlib import AsyncExitStack
from importlib import import_module

from tocsin.agent.agent import Agent
from tocsin.agent.host import AgentHost
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
        listen = {"address": _address(settings.trap_address)}
        analysts = {"alone": settings.analyst_mode == "alone"}
        # The first sentinel of a host follows its logs: once is enough.
        watching = iter([{"logs": settings.logs(), "from_end": settings.sentinel_from == "end"}])

        def make(role: Role, name: str) -> Agent:
            if role in own:
                return own[role](name)
            # Late, so that a host of one's own agents loads no role of ours and what it needs.
            roles = import_module("tocsin.agent.roles")
            options: dict[str, object] = {**listen} if role in roles.LISTENING else {}
            if role is Role.SENTINEL:
                options |= next(watching, {})
            elif role is Role.ANALYST:
                options |= analysts
            made: Agent = roles.make(role, name, **options)
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
