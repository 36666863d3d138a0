"""``tocsin init``: the folder that deploy/compose.yaml mounts, a part of it into each container."""

from __future__ import annotations

from pathlib import Path

from tocsin.cli.fleetplan import plan_agents
from tocsin.cli.installation import CLI_INSTANCE, CONSENSUS_INSTANCES, Installation
from tocsin.contracts.identifiers import ServiceName

NAMED = {
    ServiceName.CONSENSUS: tuple(map(str, range(CONSENSUS_INSTANCES))),
    ServiceName.CLI: (CLI_INSTANCE,),
}
"""Services whose copies cannot take one another's identity."""


def initialise(folder: Path, domain: str, *, agents: int, hosts: int, copies: int) -> Installation:
    """Make an installation for containers, or renew the certificates of one; keys and tokens stay.

    Args:
        folder: the installation's.
        domain: its trust domain.
        agents: how many agents, of all eight roles.
        hosts: how many hosts carry them.
        copies: identities of each service that scales.

    Raises:
        InvalidInputError: the fleet is too small or too large, or the domain is none.
        ConflictError: the folder has another layout, or is for another domain.
        UnavailableError: ``not_writable``.
    """
    planned = plan_agents(agents, hosts)
    installation = Installation.make(folder, domain)
    for service in ServiceName:
        names = NAMED[service] if service in NAMED else tuple(map(str, range(copies)))
        for name in names:
            installation.certify(service, name)
    installation.add_hosts(planned)
    installation.open_to_containers()
    return installation
