"""Sealed bodies on the bus: who seals to whom, and step 12 of opening.

A process opens what is sealed to one of the keys that it holds (:meth:`Bodies.hold`). One that forwards messages for
others (:attr:`Bodies.forwards`) gets a :class:`SealedBody` instead: who can open it.

Whose a key is, is not the key's own word: its record is signed, and speaks for the ids that the signer's certificate
names. So nobody can put a key of theirs under another's name.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING

from tocsin.bus.envelope import Content, Envelope, content_head, decode_body, encode_content
from tocsin.contracts.base import Message
from tocsin.contracts.catalogue import SEALING_KEYS
from tocsin.contracts.errors import DeniedError, InvalidInputError, TocsinError, UnavailableError
from tocsin.contracts.fleet import SealingKeyRecord
from tocsin.contracts.identifiers import Kind, Role, SpiffeId
from tocsin.contracts.routing import SealedBody
from tocsin.contracts.subjects import MessageClass, MessageType
from tocsin.crypto.sealing import (
    SealingKey,
    SealingPublicKey,
    open_body,
    parse_sealed,
    seal_body,
)

if TYPE_CHECKING:
    from tocsin.bus.client import Bus
    from tocsin.bus.opener import Context

SEALABLE = frozenset({MessageClass.LIVE, MessageClass.STORED})
"""Records and evidence are for everyone to check, and an enrolment brings its key in its body."""
KEPT_ROLES = 4096
"""Certificates whose roles are kept: one may name a thousand agents, and a router asks for every recipient."""
MAX_KEYS = 20_000
"""Keys known at once: as many as the trust store knows identities."""


def seal_content(content: Content, recipients: Iterable[SealingPublicKey]) -> Content:
    """Return the content with its body sealed. O(recipients): for a worker thread.

    Raises:
        InvalidInputError: ``no_recipients`` or ``too_many_recipients``.
    """
    sealed = content._replace(sealed=1)
    head = content_head(encode_content(sealed._replace(body=b"")), b"")
    return sealed._replace(body=seal_body(content.body, head, recipients))


def check_sealing(kind: MessageType[Message], *, sealed: bool) -> None:
    """Check that a type's body is sealed where it must be, and only where it may be.

    Raises:
        DeniedError: ``not_sealed``.
        InvalidInputError: ``sealed``.
    """
    if sealed and kind.message_class not in SEALABLE:
        raise InvalidInputError(f"a {kind.name} is never sealed", reason="sealed")
    if kind.cleared and not sealed:
        raise DeniedError(f"{kind.name} travels sealed only", reason="not_sealed")


class Bodies:
    """Opens the bodies of what one process receives."""

    def __init__(self) -> None:
        self.forwards = False
        """Whether a body that is sealed to others is handed over unopened."""
        self._keys: dict[bytes, SealingKey] = {}

    def hold(self, key: SealingKey) -> None:
        """Open what is sealed to ``key`` from now on."""
        self._keys[key.public.id] = key

    def read(self, envelope: Envelope, kind: MessageType[Message]) -> Message:
        """Return the body, opened if it is sealed. A hundred microseconds for that.

        Raises:
            InvalidInputError: ``bad_body``, ``bad_seal``; ``sealed``: a type that is never sealed.
            DeniedError: ``not_sealed``: a type that must be; ``not_a_recipient``.
            UntrustedError: ``bad_wrap``, ``bad_commitment``, ``bad_ciphertext``: see :func:`open_body`.
        """
        content = envelope.content
        check_sealing(kind, sealed=bool(content.sealed))
        if not content.sealed:
            return decode_body(kind.model, content.body)
        sealed = parse_sealed(content.body)
        mine = next((self._keys[one] for one in sealed.recipients if one in self._keys), None)
        if mine is not None:
            head = content_head(envelope.content_bytes, content.body)
            return decode_body(kind.model, open_body(sealed, head, mine))
        if self.forwards:
            return SealedBody(recipients=sealed.recipients)
        raise DeniedError("sealed to others", reason="not_a_recipient")


class SealingKeys:
    """The keys of everyone who can be sealed to, from their own signed records."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._keys: dict[bytes, tuple[SealingPublicKey, ...]] = {}
        """By the id of the signing key that vouches for it: the present key, and the one before."""
        self._owners: dict[bytes, set[bytes]] = {}
        """Those signing keys, by the id of the sealing key. Whoever claims another's key too takes nothing away."""

    async def follow(self) -> None:
        """Learn the keys that there are, and go on learning."""
        await self._bus.records(SEALING_KEYS).follow_signed(self._learn)

    def _learn(self, _: str, record: SealingKeyRecord, context: Context) -> None:
        try:
            key = SealingPublicKey.from_bytes(record.public_key)
        except TocsinError as error:
            self._bus.reject(error, context.subject, context.data)
            return
        signer, held = context.key_id, self._keys.get(context.key_id, ())
        if held and held[0].id == key.id:
            return
        if not held and len(self._keys) >= MAX_KEYS:
            self._bus.metrics.count("sealing_keys_beyond_bound")
            return
        # The key before stays its owner's: what was sealed to it may be on its way.
        self._keys[signer] = (key, *held[:1])
        self._owners.setdefault(key.id, set()).add(signer)
        for old in held[1:]:
            if old.id != key.id:
                self._disown(old.id, signer)
        self._bus.metrics.gauge("sealing_keys", len(self._keys))

    def of(self, audience: str, *, cleared: frozenset[Role] = frozenset()) -> tuple[SealingPublicKey, ...]:
        """Return the keys of an audience's agents: each key once, though several agents may share it.

        Args:
            audience: ``agent.<name>``, ``role.<role>`` or ``all``.
            cleared: only agents of these roles; empty for any.

        Raises:
            DeniedError: ``no_need_to_know``: nobody there is cleared.
            UnavailableError: ``no_sealing_key``: nobody there has published one.
        """
        found: dict[bytes, SealingPublicKey] = {}
        withheld = False
        for signer, (key, *_) in self._keys.items():
            names = self._ids(signer)
            if self._bus.standings.speaks_for_quarantined(names):
                continue
            ids = map(SpiffeId.parse, names)
            roles = {one.role for one in ids if _includes(audience, one)}
            if roles and (not cleared or roles & cleared):
                found[key.id] = key
            else:
                withheld |= bool(roles)
        if not found and withheld:
            raise DeniedError(f"{audience[:160]} has no need to know", reason="no_need_to_know")
        if not found:
            raise UnavailableError(f"no key to seal to {audience[:160]} with", reason="no_sealing_key")
        return tuple(found.values())

    def roles_of(self, sealing_key_id: bytes) -> frozenset[Role]:
        """Return the roles of the agents that hold a key now; empty for a key that nobody has."""
        owners = self._owners.get(sealing_key_id, ())
        return frozenset(role for owner in owners for role in _roles(self._ids(owner)))

    def is_quarantined(self, sealing_key_id: bytes) -> bool:
        """Tell whether a quarantined agent can open what is sealed to a key."""
        owners = self._owners.get(sealing_key_id, ())
        return any(self._bus.standings.speaks_for_quarantined(self._ids(owner)) for owner in owners)

    def _disown(self, sealing_key_id: bytes, signer: bytes) -> None:
        owners = self._owners[sealing_key_id]
        owners.discard(signer)
        if not owners:
            del self._owners[sealing_key_id]

    def _ids(self, signing_key_id: bytes) -> frozenset[str]:
        """Return whom a signing key speaks for *now*: nobody, once it is revoked or superseded."""
        trust = self._bus.trust
        identity = None if trust.is_revoked(signing_key_id) else trust.identity(signing_key_id)
        return identity.ids if identity is not None else frozenset()


@lru_cache(maxsize=KEPT_ROLES)
def _roles(ids: frozenset[str]) -> frozenset[Role]:
    return frozenset(one.role for one in map(SpiffeId.parse, ids) if one.role is not None)


def _includes(audience: str, agent: SpiffeId) -> bool:
    return agent.kind is Kind.AGENT and audience in {"all", f"role.{agent.group}", agent.token}
