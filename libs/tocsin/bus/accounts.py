"""Who may connect to the broker: everyone in the installation, readers from outside, and fleet's second connection.

``tocsin`` may do all of what is in its account. ``reader`` may read what is addressed to everybody (events, alerts,
decisions, figures, the audit trail) with the certificates that verify it, and may publish nothing but the questions to
JetStream that reading takes. Neither account proves anything about a message: the envelope does.

A reader has plain subscriptions, the certificates' bucket and single messages of streams, and no consumers of
streams: who can make a consumer can change one of a service's own. Its inboxes have a prefix of their own, since
whoever may listen at all inboxes reads what every service is answered.

``system`` is of the server's own account, ``$SYS``: it may hear which connection has ended, and nothing else.
"""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import Any

from tocsin.contracts.catalogue import CERTIFICATES, IDENTITIES, STREAMS, SUBJECTS
from tocsin.contracts.subjects import EVENT_AUDIENCE, READER_AUDIENCE

SERVICE_USER = "tocsin"
READER_USER = "reader"
SYSTEM_USER = "system"
SYSTEM_ACCOUNT = "$SYS"
"""The server's name for the account of its own events."""
DISCONNECTIONS = "$SYS.ACCOUNT.*.DISCONNECT"
READER_INBOX = "_INBOX.reader"
"""Prefix that a reader's client must be told to use for its inboxes."""
FOR_EVERYBODY = frozenset({EVENT_AUDIENCE, READER_AUDIENCE, "all"})


def open_accounts(folder: Path) -> dict[str, Any]:
    """Return the broker's ``authorization`` and ``accounts`` blocks; passwords are made once, and kept in ``folder``.

    Writes ``token``, ``reader-token`` and ``system-token``, the passwords, and ``users.conf``, the same for a broker
    that includes it; each of mode 0600 where it is new.
    """
    service = {"user": SERVICE_USER, "password": _password(folder / "token")}
    reader = {
        "user": READER_USER,
        "password": _password(folder / "reader-token"),
        "permissions": reader_permissions(),
    }
    system = {
        "user": SYSTEM_USER,
        "password": _password(system_password(folder)),
        "permissions": {"subscribe": {"allow": [DISCONNECTIONS]}, "publish": {"deny": [">"]}},
    }
    blocks = {
        "authorization": {"users": [service, reader]},
        "accounts": {SYSTEM_ACCOUNT: {"users": [system]}},
    }
    # JSON is a subset of the server's configuration language, but a file has no braces around it.
    _write(
        folder / "users.conf",
        "".join(f"{name}: {json.dumps(block, indent=1)}\n" for name, block in blocks.items()),
    )
    return blocks


def reader_permissions() -> dict[str, Any]:
    """Return what a reader may subscribe and publish to, in the server's terms."""
    readable = sorted(_family(one.pattern()) for one in SUBJECTS if one.audience in FOR_EVERYBODY)
    kept = {subject.stream for subject in SUBJECTS if subject.stream and subject.audience in FOR_EVERYBODY}
    streams = sorted(stream.name for stream in STREAMS if stream.name in kept)
    bucket = f"KV_{IDENTITIES}"
    certificates = f"OBJ_{CERTIFICATES}"
    questions = ["$JS.API.INFO"]
    for stream in (bucket, certificates):
        questions += [f"$JS.API.CONSUMER.CREATE.{stream}", f"$JS.API.CONSUMER.CREATE.{stream}.>"]
        questions += [f"$JS.API.CONSUMER.INFO.{stream}.*", f"$JS.FC.{stream}.>"]
    for stream in (bucket, certificates, *streams):
        questions += [f"$JS.API.STREAM.INFO.{stream}", f"$JS.API.STREAM.MSG.GET.{stream}"]
        questions += [f"$JS.API.DIRECT.GET.{stream}", f"$JS.API.DIRECT.GET.{stream}.>"]
    return {
        "subscribe": {"allow": [*readable, f"{READER_INBOX}.>"]},
        "publish": {"allow": questions},
    }


def _family(pattern: str) -> str:
    """Return the whole family of a subject's pattern: who may read ``event.*.*`` may ask for ``event.>``."""
    stem, wildcard, _ = pattern.partition(".*")
    return f"{stem}.>" if wildcard else stem


def service_password(folder: Path) -> Path:
    """Return the file with the password of everyone in the installation."""
    return folder / "token"


def system_password(folder: Path) -> Path:
    """Return the file with the password of fleet's second connection."""
    return folder / "system-token"


def _password(path: Path) -> str:
    if not path.exists():
        _write(path, secrets.token_urlsafe(32))
    return path.read_text().strip()


def _write(path: Path, text: str) -> None:
    """Replace a file's text in place: a container that has it mounted by itself sees the new one."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
