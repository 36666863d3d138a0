"""The folder of an installation: its authority, everyone's credentials, the broker's accounts, tokens.

`tocsin init` makes one for a stack in containers, `tocsin up` and `tocsin demo` one for themselves. Nothing in it is
ever replaced by another secret: made again, it keeps every key and token and renews the certificates.

    version                                    the layout
    ca/root.pem root.key fleet.pem fleet.key   the authority; root.key certifies services, signs epochs, revokes keys
    ca/revocations                             the last list of revoked keys, once there is one
    credentials/<service>/                     ca.pem, <service>-<instance>.key and .chain
    broker/token reader-token system-token users.conf  the broker's accounts
    fleet/root.pem fleet.pem fleet.key tokens.json
    hosts/<host>/env tokens.json credentials/ca.pem
    gateway/token                              of the REST interface
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tocsin.agent.settings import carried_agents
from tocsin.bus import BusSettings, Credentials
from tocsin.bus.accounts import open_accounts, service_password, system_password
from tocsin.bus.credentials import read
from tocsin.bus.enrolment import IssuedToken, read_tokens
from tocsin.bus.folder import check_layout, claim_folder
from tocsin.cli import authority
from tocsin.cli.fleetplan import PlannedAgent, as_held, as_issued, enrolment_tokens, held_tokens
from tocsin.contracts.errors import UnavailableError
from tocsin.contracts.identifiers import ServiceName, SpiffeId
from tocsin.crypto import Authority, TrustStore, select_backend
from tocsin.evidence.epochs import Seat

LAYOUT = 2
"""Of the folder; another one is refused, not guessed at."""
CLI_INSTANCE = "0"
CONSENSUS_INSTANCES = 4
"""m = 3g + 1 with g = 1: one of them may be hostile, or away."""


@dataclass(frozen=True, slots=True)
class Installation:
    """An installation's folder, made or found."""

    folder: Path
    root_pem: bytes

    @classmethod
    def make(cls, folder: Path, domain: str) -> Installation:
        """Make the folder with its authority and the broker's accounts, or go on with what is there.

        Raises:
            ConflictError: ``state_version`` or ``other_domain``.
            UnavailableError: ``not_writable``.
        """
        claim_folder(folder, layout=LAYOUT)
        root = authority.open_or_create(folder / "ca", domain)
        (folder / "broker").mkdir(exist_ok=True, mode=0o700)
        open_accounts(folder / "broker")
        _keep_private(folder / "gateway" / "token", secrets.token_urlsafe(32))
        for name in ("root.pem", "fleet.pem", "fleet.key"):
            write_private(folder / "fleet" / name, read(folder / "ca" / name).decode())
        return cls(folder, root.certificate_pem)

    @classmethod
    def find(cls, folder: Path) -> Installation:
        """Return the installation in ``folder``.

        Raises:
            UnavailableError: ``no_installation``.
            ConflictError: ``state_version``.
        """
        if not (folder / "ca" / "root.pem").exists():
            raise UnavailableError(
                f"{folder} is no installation's folder",
                reason="no_installation",
                advice="name the folder that `tocsin init` made, or the one of `tocsin up`, with --state",
            )
        check_layout(folder, layout=LAYOUT)
        return cls(folder, read(folder / "ca" / "root.pem"))

    # --- Who is in it -------------------------------------------------------------------------

    @property
    def domain(self) -> str:
        """The trust domain."""
        return TrustStore(self.root_pem).domain

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the root's certificate, in hex."""
        return TrustStore(self.root_pem).root_fingerprint

    @property
    def has_root_key(self) -> bool:
        """Whether the root's key is here, and not kept elsewhere."""
        return (self.folder / "ca" / f"{authority.ROOT}.key").exists()

    def root(self) -> Authority:
        """Return the root with its key, which may be kept elsewhere by now.

        Raises:
            UnavailableError: ``missing_file``.
        """
        return Authority.load(self.folder / "ca", authority.ROOT)

    def certify(self, service: ServiceName, instance: str) -> Credentials:
        """Certify an instance of a service, anew; its key is made once."""
        return authority.issue_service(self.root(), service, instance, self.credentials(service))

    def add_hosts(self, agents: Sequence[PlannedAgent]) -> None:
        """Write what each host needs to enrol, and tell fleet.

        A host whose agents are the same keeps its tokens; one that has others now gets fresh ones, and one
        that is not named any more is forgotten here.
        """
        seed = secrets.token_bytes(32)
        issued = list(self.issued())
        hosts = sorted({agent.host for agent in agents})
        for env in self.folder.glob("hosts/*/env"):
            if env.parent.name not in hosts:
                env.unlink()
        for host in hosts:
            folder, env_text = self.host(host), host_env(host, agents)
            env = folder / "env"
            if env.exists() and env.read_text() == env_text:
                continue
            tokens = enrolment_tokens(agents, host, seed)
            issued = [token for token in issued if token.host != host] + tokens
            write_private(folder / "tokens.json", as_held(held_tokens(tokens, self.fingerprint)))
            write_private(folder / "credentials" / "ca.pem", self.root_pem.decode())
            write_private(env, env_text)
        write_private(self.tokens_file, as_issued(issued))

    def agents(self) -> tuple[PlannedAgent, ...]:
        """Return the agents that :meth:`add_hosts` was given last, and where they run."""
        found = []
        for env in sorted(self.folder.glob("hosts/*/env")):
            settings = dict(line.partition("=")[::2] for line in env.read_text().splitlines())
            specs = carried_agents(settings["TOCSIN_HOST_AGENTS"])
            found += [PlannedAgent(spec.name, spec.role, settings["TOCSIN_HOST_NAME"]) for spec in specs]
        return tuple(found)

    def consensus_instances(self) -> tuple[str, ...]:
        """Return the names of the consensus instances that this installation has keys of, in order."""
        prefix = f"{ServiceName.CONSENSUS.value}-"
        keys = self.credentials(ServiceName.CONSENSUS).glob(f"{prefix}*.key")
        return tuple(sorted((key.stem.removeprefix(prefix) for key in keys), key=lambda n: (len(n), n)))

    def consensus_seat(self, instance: str) -> Seat:
        """Return an instance that commits decisions: its id, key and algorithm."""
        consensus = SpiffeId.service(self.domain, ServiceName.CONSENSUS, instance)
        name = f"{ServiceName.CONSENSUS.value}-{instance}"
        key = Credentials.load(self.credentials(ServiceName.CONSENSUS), consensus, name, select_backend()).key
        return consensus, key.signer.key_id, int(key.signer.algorithm)

    def cli_credentials(self) -> Credentials:
        """Return the credentials of the `tocsin` command, certified anew once half of their time is over.

        Raises:
            UntrustedError: ``certificate_expired``, where the root's key is not here.
        """
        name = f"{ServiceName.CLI.value}-{CLI_INSTANCE}"
        held = Credentials.load(self.credentials(ServiceName.CLI), None, name, select_backend())
        if (self.folder / "ca" / "root.key").exists() and held.half_over(now_ns=time.time_ns()):
            # With the root at hand nobody else need be asked.
            return self.certify(ServiceName.CLI, CLI_INSTANCE)
        held.require_valid(now_ns=time.time_ns())
        return held

    # --- Where things are ---------------------------------------------------------------------

    def bus_settings(self, nats_url: str, *, connect_timeout_s: float = 30.0) -> BusSettings:
        """Return settings by which the `tocsin` command reaches a broker of this installation."""
        return BusSettings(
            nats_url=nats_url,
            nats_token_file=self.broker_token,
            credentials_dir=self.credentials(ServiceName.CLI),
            instance=CLI_INSTANCE,
            connect_timeout_s=connect_timeout_s,
        )

    def credentials(self, service: ServiceName) -> Path:
        """Return the folder with a service's keys and chains."""
        return self.folder / "credentials" / service.value

    def host(self, host: str) -> Path:
        """Return the folder of an agent host."""
        return self.folder / "hosts" / host

    @property
    def broker_token(self) -> Path:
        """The password of the broker's account for everyone in the installation."""
        return service_password(self.folder / "broker")

    @property
    def system_token(self) -> Path:
        """The password of fleet's second connection, by which it hears which process is gone."""
        return system_password(self.folder / "broker")

    @property
    def tokens_file(self) -> Path:
        """The enrolment tokens that fleet reads."""
        return self.folder / "fleet" / "tokens.json"

    @property
    def api_token(self) -> Path:
        """The bearer token of the REST interface."""
        return self.folder / "gateway" / "token"

    def open_to_containers(self) -> None:
        """Let containers read their parts: they run as a user that this machine does not know.

        The folder itself stays its owner's alone, so nobody else on this machine comes near; the root's key
        and the accounts of people stay closed even to containers.
        """
        self.folder.chmod(0o700)
        for part in ("broker", "credentials", "fleet", "gateway", "hosts"):
            for path in (self.folder / part, *(self.folder / part).rglob("*")):
                path.chmod(0o755 if path.is_dir() else 0o644)
        for path in self.credentials(ServiceName.CLI).glob("*.key"):
            path.chmod(0o600)

    def issued(self) -> tuple[IssuedToken, ...]:
        """Return the tokens that fleet honours."""
        return read_tokens(self.tokens_file, IssuedToken) if self.tokens_file.exists() else ()


def host_env(host: str, agents: Sequence[PlannedAgent], more: Mapping[str, object] | None = None) -> str:
    """Return a settings file for one host."""
    carried = ",".join(f"{agent.name}:{agent.role.value}" for agent in agents if agent.host == host)
    settings = {"host_name": host, "host_agents": carried, **(more or {})}
    return "".join(f"TOCSIN_{key.upper()}={value}\n" for key, value in settings.items())


def replace_file(path: Path, text: str) -> None:
    """Replace a file in one step, so that a reader sees the old one or the new one; its mode stays."""
    fresh = path.with_name(f".{path.name}.new")
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    fresh.chmod(mode)
    fresh.replace(path)


def write_private(path: Path, text: str) -> None:
    """Replace a file in one step, in a folder that is made for its owner alone; an existing file keeps its mode."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    replace_file(path, text)


def _keep_private(path: Path, text: str) -> None:
    if not path.exists():
        write_private(path, text)
