"""Copies of a service that share a folder of identities: each takes one that no other copy has.

With ``TOCSIN_INSTANCE=*`` a process locks the key of an identity and holds the lock until it ends, however it
ends: the kernel gives it back. Locks are seen by all processes that reach the same file through one kernel, so by
all containers of one machine, and not across machines: there, name each instance.
"""

from __future__ import annotations

import fcntl
import os
import re
from pathlib import Path

from tocsin.contracts.errors import ExhaustedError, UnavailableError
from tocsin.contracts.identifiers import NAME_PATTERN, ServiceName

ANY = "*"
"""As an instance's name: whichever is free."""


def take_instance(folder: Path, service: ServiceName) -> str:
    """Return the name of a free identity in ``folder``; it is this process's until the process ends.

    Raises:
        UnavailableError: ``missing_file``: there is no identity of this service; ``unreadable_file``.
        ExhaustedError: ``no_free_instance``: other copies have them all.
    """
    advice = "`tocsin init --copies N` makes as many identities of each service"
    pattern = re.compile(rf"{re.escape(service.value)}-({NAME_PATTERN})\.key")
    names = sorted(match[1] for path in folder.glob("*.key") if (match := pattern.fullmatch(path.name)))
    if not names:
        raise UnavailableError(
            f"no identity of {service.value} in {folder}", reason="missing_file", advice=advice
        )
    for name in names:
        descriptor = _open(folder / f"{service.value}-{name}.key")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
        else:
            return name
    raise ExhaustedError(
        f"all {len(names)} identities of {service.value} are in use", reason="no_free_instance", advice=advice
    )


def _open(key: Path) -> int:
    """Open a key to lock it; never closed by who gets the lock, since it lives as long as the descriptor."""
    try:
        return os.open(key, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise UnavailableError(
            f"cannot read {key.name}: {error.strerror}",
            reason="unreadable_file",
            advice="`tocsin init` on the installation's folder lets containers read it",
        ) from error
