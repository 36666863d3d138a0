"""``tocsin ca revoke``: have the root sign a list with one more key in it, and see it take effect.

The list goes into stream REVOCATIONS directly: every process verifies it against the root, so nobody in between is
asked. A copy stays beside the root's key (``ca/revocations``): the next list has a higher number even if the
broker was set up anew meanwhile, and a copy that the broker has lost is published again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tocsin.bus import Bus, Sent
from tocsin.cli import authority
from tocsin.cli.installation import Installation
from tocsin.contracts.catalogue import REVOCATION_LIST, REVOCATIONS
from tocsin.contracts.errors import (
    ConflictError,
    DeniedError,
    ExhaustedError,
    InvalidInputError,
    UnavailableError,
    UntrustedError,
)
from tocsin.contracts.revocations import MAX_REVOCATIONS, Revocation, RevocationList, RevocationReason
from tocsin.contracts.subjects import EVENT_AUDIENCE
from tocsin.crypto import BatchVerifier, TrustStore
from tocsin.evidence.reading import read

CONFIRM_TIMEOUT_S = 10.0
CONFIRM_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Target:
    """A key to revoke and whom it speaks for, as far as that is known here."""

    key_id: bytes
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Revoked:
    """What was done."""

    number: int
    targets: tuple[Target, ...]
    confirmed_s: float
    """Until fleet stated the list, in seconds from its publication."""


def find_targets(trust: TrustStore, who: str) -> tuple[Target, ...]:
    """Return the keys that a name or a key id in hex means.

    Raises:
        InvalidInputError: ``unknown_identity``: nobody here is called so.
        DeniedError: ``root_key``: the root cannot be revoked by its own word.
    """
    if len(who) == 64 and set(who) <= set("0123456789abcdef"):
        key_id = bytes.fromhex(who)
        identity = trust.identity(key_id)
        found = {key_id: identity.ids if identity else frozenset[str]()}
    else:
        found = trust.keys_of(who)
    if trust.root.key_id in found or trust.root.names(who):
        raise DeniedError(
            "the root is not revoked, it is replaced", reason="root_key", advice="make a new installation"
        )
    if not found:
        raise InvalidInputError(
            f"no key speaks for {who[:120]!r} now",
            reason="unknown_identity",
            advice="name an agent, a host, service.<service>.<instance>, a SPIFFE id, or a key id of 64 hex digits",
        )
    return tuple(Target(key_id, tuple(sorted(names))) for key_id, names in sorted(found.items()))


GRAVITY = (RevocationReason.RETIRED, RevocationReason.SUPERSEDED, RevocationReason.COMPROMISED)
"""Reasons, each with all that the ones before it take away."""


def extend(
    held: RevocationList | None, key_ids: Sequence[bytes], reason: RevocationReason, *, now_ns: int
) -> RevocationList | None:
    """Return the next list, with these keys in it; None if the one that is held says it already.

    A key's reason can become graver later (:data:`GRAVITY`); the other way nothing changes.

    Raises:
        ExhaustedError: ``too_many_revocations``.
    """
    entries = {} if held is None else {entry.key_id: entry for entry in held.entries}
    added = {
        key_id: Revocation(key_id=key_id, reason=reason, since_ns=now_ns)
        for key_id in key_ids
        if key_id not in entries or GRAVITY.index(reason) > GRAVITY.index(entries[key_id].reason)
    }
    if not added:
        return None
    entries |= added
    if len(entries) > MAX_REVOCATIONS:
        raise ExhaustedError(
            f"a list has at most {MAX_REVOCATIONS} keys",
            reason="too_many_revocations",
            advice="revoke the authority that certified them, or make a new installation",
        )
    number = 1 if held is None else held.number + 1
    return RevocationList(number=number, made_ns=now_ns, entries=tuple(entries.values()))


async def revoke(bus: Bus, installation: Installation, who: str, reason: RevocationReason) -> Revoked:
    """Revoke whatever keys a name means, and wait until fleet has stated the list that says so.

    Raises:
        TocsinError: as :func:`find_targets` and :func:`extend`, or the root's key is not there.
        ConflictError: ``list_overtaken``: another list was signed at the same time.
        UnavailableError: ``not_stated``: the list is published, and fleet does not confirm it.
    """
    targets = find_targets(bus.trust, who)
    root = installation.root()
    kept = installation.folder / "ca" / "revocations"
    held, sent = await _latest(bus, kept)
    fresh = extend(held, [target.key_id for target in targets], reason, now_ns=time.time_ns())
    if fresh is not None:
        sent = authority.sign_as_root(root, REVOCATIONS, fresh, audience=EVENT_AUDIENCE)
        held = fresh
        await asyncio.to_thread(_keep, kept, sent.data)
    assert held is not None and sent is not None  # noqa: S101, PT018 - there are targets, so there is a list
    begun = time.monotonic()
    if bus.revocations.book.leaf != sent.leaf:
        await bus.send(REVOCATION_LIST.at(), sent, stream=REVOCATION_LIST.stream)
    await _confirmed(bus, held.number, sent.leaf)
    return Revoked(held.number, targets, time.monotonic() - begun)


async def _latest(bus: Bus, kept: Path) -> tuple[RevocationList | None, Sent | None]:
    """Return the latest list, of the one in the stream and the one beside the root's key, with its envelope."""
    last = await bus.last(REVOCATION_LIST)
    found = [] if last is None else [open_list(last[1].data, bus.trust)]
    if (data := await asyncio.to_thread(_kept, kept)) is not None:
        found.append(open_list(data, bus.trust))
    return max(found, key=lambda one: (one[0].number, one[0].made_ns), default=(None, None))


def open_list(data: bytes, trust: TrustStore) -> tuple[RevocationList, Sent]:
    """Read a list that has to be the trusted root's.

    Raises:
        TocsinError: it is not, e.g. ``wrong_root``.
    """
    evidence = read(data, REVOCATIONS, audience=EVENT_AUDIENCE)
    if evidence.key_id != trust.root.key_id:
        raise UntrustedError("the list of revocations is not the trusted root's", reason="wrong_root")
    evidence.verify(trust.root.verifier, BatchVerifier(1))
    content = evidence.envelope.content
    return evidence.body, Sent(content.id, evidence.leaf, data, content.issued_at)


def _kept(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def _keep(path: Path, data: bytes) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_bytes(data)
    fresh.replace(path)


async def _confirmed(bus: Bus, number: int, leaf: bytes) -> None:
    """Wait until fleet has stated this list."""
    book = bus.revocations.book
    deadline = time.monotonic() + CONFIRM_TIMEOUT_S
    while time.monotonic() < deadline:
        if book.leaf == leaf and book.confirmed:
            return
        if book.number >= number and book.leaf != leaf:
            raise ConflictError(
                f"list {book.number} was signed elsewhere at the same time",
                reason="list_overtaken",
                advice="run the command again",
            )
        await asyncio.sleep(CONFIRM_POLL_S)
    raise UnavailableError(
        f"list {number} is published, so every process that runs refuses these keys, but fleet has not stated it",
        reason="not_stated",
        advice="is fleet running? Without its word, messages that have effects are refused",
    )
