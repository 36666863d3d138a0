"""``tocsin ca rotate``: another intermediate authority for fleet, with an overlap in which both count.

1. The root makes the successor. ``ca/fleet-previous.pem`` says that a rotation is under way, and from whom; the old key
   is replaced, so nobody has it from here on but whoever copied it.
2. Fleet finds the files, certifies with the new authority and renews its own certificate by it. Everyone sees from
   that, and from nothing that fleet says, that the old authority has a successor: hosts and services renew.
3. When nobody is certified by the old one any more, the root lists its key as superseded, within a second everywhere.

Each step can be repeated: the command, run again, goes on where it was ended.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tocsin.bus import Bus
from tocsin.bus.credentials import read
from tocsin.cli import authority
from tocsin.cli.installation import Installation, write_private
from tocsin.cli.revoke import Revoked, revoke
from tocsin.contracts.errors import UnavailableError
from tocsin.contracts.identifiers import Kind, ServiceName, SpiffeId
from tocsin.contracts.revocations import RevocationReason
from tocsin.crypto import Authority
from tocsin.crypto.certificates import ParsedCertificate

NEXT = "fleet-next"
PREVIOUS = "fleet-previous.pem"
POLL_S = 0.1

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Rotation:
    """From which authority's key to which."""

    old: bytes
    new: bytes


def under_way(installation: Installation) -> bool:
    """Tell whether a rotation was begun and not finished."""
    return (installation.folder / "ca" / PREVIOUS).exists()


def begin(installation: Installation) -> Rotation:
    """Put a successor in the place of fleet's authority, or return the rotation that is under way. Blocking.

    Raises:
        UnavailableError: ``missing_file``: the root's key is not there.
    """
    folder = installation.folder / "ca"
    root = installation.root()
    if not under_way(installation):
        write_private(folder / PREVIOUS, read(folder / f"{authority.FLEET}.pem").decode())
    old = _certificate(folder / PREVIOUS)
    if _certificate(folder / f"{authority.FLEET}.pem").key_id == old.key_id:
        _replace(root, folder, old)
    for name in ("fleet.key", "fleet.pem"):
        write_private(installation.tokens_file.with_name(name), read(folder / name).decode())
    return Rotation(old.key_id, _certificate(folder / f"{authority.FLEET}.pem").key_id)


async def renewed(bus: Bus, rotation: Rotation, *, timeout_s: float, progress: Progress) -> tuple[str, ...]:
    """Wait until nobody is certified by the old authority; return who still is, when the time is over.

    Args:
        bus: follows everyone's certificates.
        rotation: from which authority to which.
        timeout_s: how long to wait, in seconds.
        progress: told in words, when it changes.

    Raises:
        UnavailableError: ``not_taken_up``: fleet does not certify with the new authority.
    """
    deadline, said = time.monotonic() + timeout_s, ""
    while True:
        taken_up = any(
            _is_fleet(one) for identity in bus.trust.certified_by(rotation.new) for one in identity.ids
        )
        pending = _pending(bus, rotation.old)
        now = f"{len(pending)} certificates to renew" if taken_up else "waiting for fleet"
        if now != said:
            progress(now)
            said = now
        if taken_up and not pending:
            return ()
        if time.monotonic() >= deadline:
            break
        await asyncio.sleep(POLL_S)
    if not taken_up:
        raise UnavailableError(
            "fleet does not certify with the new authority yet",
            reason="not_taken_up",
            advice="is fleet running, with this folder? Run the command again, it goes on from here",
        )
    return pending


async def finish(bus: Bus, installation: Installation, rotation: Rotation) -> Revoked:
    """Have the root say that the old authority counts no more; whoever has not renewed has to enrol again.

    Raises:
        TocsinError: as :func:`revoke`.
    """
    done = await revoke(bus, installation, rotation.old.hex(), RevocationReason.SUPERSEDED)
    (installation.folder / "ca" / PREVIOUS).unlink(missing_ok=True)
    return done


def _pending(bus: Bus, old: bytes) -> tuple[str, ...]:
    now_ns = time.time_ns()
    held = [identity for identity in bus.trust.certified_by(old) if identity.not_after_ns >= now_ns]
    return tuple(sorted(min(identity.ids) for identity in held))


def _is_fleet(name: str) -> bool:
    one = SpiffeId.parse(name)
    return one.kind is Kind.SERVICE and one.service_name is ServiceName.FLEET


def _replace(root: Authority, folder: Path, old: ParsedCertificate) -> None:
    """Make the successor beside the old one, then put it in its place: key first, and go on there after a crash."""
    if not (folder / f"{NEXT}.pem").exists():
        (folder / f"{NEXT}.key").unlink(missing_ok=True)
        while (now := datetime.now(UTC)).timestamp() < old.not_before_ns / 1e9 + 61:
            # Certificates have whole seconds and begin a minute early; the later of two is the successor.
            time.sleep(POLL_S)
        root.issue_intermediate(authority.FLEET, now=now).save(folder, NEXT)
    if (folder / f"{NEXT}.key").exists():
        (folder / f"{NEXT}.key").replace(folder / f"{authority.FLEET}.key")
    (folder / f"{NEXT}.pem").replace(folder / f"{authority.FLEET}.pem")


def _certificate(path: Path) -> ParsedCertificate:
    """Read an authority's certificate of the installation's own."""
    der = x509.load_pem_x509_certificate(read(path)).public_bytes(Encoding.DER)
    return ParsedCertificate.parse(der)
