"""Getting certificates: a key that never leaves this host, a one-time token, and fleet's answer.

Which agents share a key follows from the key scope and the roles (:func:`key_groups`): an admin never
shares; in scope ``host`` the others share the host's key as far as one token covers them; in scope ``agent``
everyone has their own.

The order makes a crash harmless: the key is on disk before the token is used, and fleet lets the same key
ask again. The chain that comes back is checked against the root here: fleet is not trusted with more than
it can prove.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tocsin.bus import Bus, Credentials
from tocsin.bus.enrolment import HeldToken, enrol_mac
from tocsin.contracts.catalogue import FLEET_ENROL
from tocsin.contracts.errors import (
    InvalidInputError,
    TocsinError,
    UnavailableError,
    UntrustedError,
)
from tocsin.contracts.fleet import AgentSpec, EnrolRequest
from tocsin.contracts.identifiers import Role, SpiffeId
from tocsin.crypto import Identity, LocalKey, SignatureBackend, TrustStore
from tocsin.crypto.keys import load_sealing_key, save_sealing_key
from tocsin.crypto.sealing import SealingKey
from tocsin.telemetry import get_logger

ATTEMPT_S = 5.0
PAUSE_S = 0.25
SPARE_NS = 60_000_000_000
"""A certificate that ends within a minute is not started with."""

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class KeyGroup:
    """The ids that share one key, and the token that promises them."""

    token: HeldToken
    host: str
    names_host: bool
    agents: tuple[AgentSpec, ...]

    def ids(self, domain: str) -> tuple[SpiffeId, ...]:
        """Return the ids, the host's first."""
        host = (SpiffeId.host(domain, self.host),) if self.names_host else ()
        return (*host, *(SpiffeId.agent(domain, agent.role, agent.name) for agent in self.agents))

    @property
    def file_name(self) -> str:
        """Base name of the key's and the chain's files."""
        return "host" if self.names_host else f"agent-{self.agents[0].name}"


def key_groups(
    host: str, agents: Sequence[AgentSpec], tokens: Sequence[HeldToken], *, per_agent: bool
) -> tuple[KeyGroup, ...]:
    """Share the agents among keys; the host's own group comes first.

    Raises:
        InvalidInputError: ``no_token``: nothing vouches for the host or for an agent.
    """
    by_name = {agent.name: agent for agent in agents}
    groups: list[KeyGroup] = []
    for token in tokens:
        if token.host not in {None, host}:
            continue
        mine = [by_name.pop(name) for name in token.agents if name in by_name]
        alone = [agent for agent in mine if per_agent or agent.role is Role.ADMIN]
        shared = tuple(agent for agent in mine if agent not in alone)
        names_host = token.names_host and not any(group.names_host for group in groups)
        if shared or names_host:
            groups.append(KeyGroup(token, host, names_host, shared))
        groups.extend(KeyGroup(token, host, names_host=False, agents=(agent,)) for agent in alone)
    missing = [*([] if any(group.names_host for group in groups) else [f"host {host}"]), *sorted(by_name)]
    if missing:
        raise InvalidInputError(
            f"no enrolment token for {', '.join(missing[:5])}",
            reason="no_token",
            advice="each of the host and its agents must be named in the tokens file",
        )
    return tuple(sorted(groups, key=lambda group: not group.names_host))


class Wallet:
    """The keys and certificates of one host, in a folder of its own.

    Args:
        folder: made if missing, for nobody else to read.
        root_pem: the root that every chain must lead to.
        backend: signs.
    """

    def __init__(self, folder: Path, root_pem: bytes, backend: SignatureBackend) -> None:
        self._folder = folder
        self._root_pem = root_pem
        self._backend = backend
        self.domain = TrustStore(root_pem, backend).domain

    def credentials(self, group: KeyGroup, *, now_ns: int) -> Credentials:
        """Return a group's credentials; without a chain if it must enrol (again). Its key is made once."""
        path = self._folder / f"{group.file_name}.key"
        if not path.exists():
            key = LocalKey.generate(self._backend)
            key.save(path)
            return self._bare(group, key)
        key = LocalKey.load(path, self._backend)
        try:
            held = Credentials.load(self._folder, group.ids(self.domain)[0], group.file_name, self._backend)
            identity = self.check(group, key, held.chain)
        except TocsinError as error:
            log.info("enrolment_needed", key=group.file_name, reason=error.reason)
            return self._bare(group, key)
        if not identity.not_before_ns <= now_ns < identity.not_after_ns - SPARE_NS:
            log.info("enrolment_needed", key=group.file_name, reason="certificate_expired")
            return self._bare(group, key)
        return held

    def sealing_keys(self, group: KeyGroup) -> tuple[SealingKey, ...]:
        """Return a group's sealing key, made once, and the one before it, if that was kept.

        To replace a key, name its file ``<group>.previous.sealing``: the next start makes a new one, and what was
        sealed to the previous one can still be read.
        """
        path = self._folder / f"{group.file_name}.sealing"
        if not path.exists():
            save_sealing_key(path, SealingKey.generate())
        previous = self._folder / f"{group.file_name}.previous.sealing"
        return tuple(load_sealing_key(one) for one in (path, previous) if one.exists())

    def check(self, group: KeyGroup, key: LocalKey, chain: tuple[bytes, ...]) -> Identity:
        """Return what a chain certifies, if it is this key for exactly these ids.

        Raises:
            UntrustedError: it is not, or does not lead to the root.
        """
        identity = TrustStore(self._root_pem, self._backend).add_chain(chain)
        if identity.key_id != key.signer.key_id:
            raise UntrustedError("the certificate is for another key", reason="wrong_certificate")
        if identity.ids != {str(one) for one in group.ids(self.domain)}:
            raise UntrustedError("the certificate is for other ids", reason="wrong_certificate")
        return identity

    def keep(self, group: KeyGroup, key: LocalKey, chain: tuple[bytes, ...]) -> Credentials:
        """Write a group's credentials to the folder."""
        held = Credentials(group.ids(self.domain)[0], key, chain, self._root_pem)
        held.save(self._folder, group.file_name)
        return held

    def _bare(self, group: KeyGroup, key: LocalKey) -> Credentials:
        return Credentials(group.ids(self.domain)[0], key, (), self._root_pem)


async def enrol(bus: Bus, wallet: Wallet, group: KeyGroup, key: LocalKey, *, timeout_s: float) -> Credentials:
    """Ask fleet for a group's certificate until it answers, check it, and keep it.

    Raises:
        UnavailableError: no answer in time.
        TocsinError: fleet's refusal, e.g. ``bad_token``, ``token_used`` or ``wrong_agents``.
        UntrustedError: fleet's answer does not hold.
    """
    request = EnrolRequest(
        host=group.host,
        agents=group.agents,
        algorithm=int(key.algorithm),
        public_key=key.signer.public_key,
        names_host=group.names_host,
        token_id=group.token.token_id,
        mac=bytes(32),
    )
    request = request.model_copy(update={"mac": enrol_mac(group.token.secret, request)})
    sender = group.ids(wallet.domain)[0]
    deadline = time.monotonic() + timeout_s
    while True:
        attempt_s = max(0.1, min(ATTEMPT_S, deadline - time.monotonic()))
        try:
            answer = await bus.request(FLEET_ENROL, request, timeout_s=attempt_s, sender=sender)
            break
        except TocsinError as error:
            if not _passes(error) or time.monotonic() >= deadline:
                raise
            await asyncio.sleep(PAUSE_S)
    await asyncio.to_thread(wallet.check, group, key, answer.chain)
    return wallet.keep(group, key, answer.chain)


def _passes(error: TocsinError) -> bool:
    """Tell whether the same question may be answered later: fleet is away, or busy with another of us."""
    return isinstance(error, UnavailableError) or error.reason == "stale"
