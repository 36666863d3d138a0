"""Folders in which a process keeps what must survive it: whose layout they have, and whether they can be written.

A file ``version`` says the layout. Another layout is refused, never guessed at: the older program that made the
folder can still read it.
"""

from __future__ import annotations

import os
from pathlib import Path

from tocsin.contracts.errors import ConflictError, UnavailableError

MARKER = "version"


def claim_folder(folder: Path, *, layout: int) -> None:
    """Make a folder, or go on with one of this layout; private, if it is made here. Blocking.

    Raises:
        ConflictError: ``state_version``.
        UnavailableError: ``not_writable``.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        check_layout(folder, layout=layout)
        if not (folder / MARKER).exists():
            # In one step: of processes that claim it at once none reads half of what another writes.
            fresh = folder / f".{MARKER}.{os.getpid()}"
            fresh.write_text(f"{layout}\n")
            fresh.replace(folder / MARKER)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(None, "Permission denied")
    except OSError as error:
        raise UnavailableError(
            f"cannot write to {folder}: {error.strerror}",
            reason="not_writable",
            advice="let the user that this runs as own it, or choose another folder",
        ) from error


def check_layout(folder: Path, *, layout: int) -> None:
    """Check that a folder is not of another layout; one without a marker is new.

    Raises:
        ConflictError: ``state_version``.
        OSError: it cannot be read.
    """
    try:
        found = (folder / MARKER).read_text(errors="replace").strip()[:20]
    except FileNotFoundError:
        return
    if found != str(layout):
        raise ConflictError(
            f"{folder} has layout {found!r}, this version of Tocsin has {layout}",
            reason="state_version",
            advice="start with an empty folder, or with the version that made this one",
        )
