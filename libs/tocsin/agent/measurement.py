"""What an agent runs, as two digests: its code and its configuration.

*Code* is SHA-256 over the source files of the agents' floor (:data:`MEASURED` packages of tocsin) and of every class
that the agent's class is made of, each as its name and the digest of its content, by name. *Configuration* is SHA-256
over the agent's name, role and host and the host's settings, but for those that say where things are
(:data:`ELSEWHERE`): a broker on another port changes nothing that the agent does.

Software measures itself here, once, when the host starts. So it finds an upgrade that was not approved, a file that
was changed before the start, another configuration, a host that answers in the place of another. It does not find code
that was changed in memory, a changed interpreter or library, or a program that computes the digests of the genuine
files and runs something else: for that, hardware would have to measure (a TPM, a confidential VM).
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterable
from pathlib import Path

from tocsin.agent.agent import Agent
from tocsin.agent.settings import HostSettings
from tocsin.contracts.health import Measurement

MEASURED = ("agent", "analysis", "bus", "contracts", "crypto", "evidence", "telemetry")
"""Packages of tocsin that a host's process is made of."""
ELSEWHERE = frozenset(
    {
        "connect_timeout_s",
        "credentials_dir",
        "enrol_tokens_file",
        "health_host",
        "health_port",
        "host_agents",
        "host_name",
        "instance",
        "log_level",
        "nats_token_file",
        "nats_url",
        "nats_user",
        "state_dir",
    }
)
"""Settings that say where things are, or who else is there; its own name and host are measured by themselves."""
ROOT = Path(__file__).resolve().parents[1]


def floor_files(root: Path = ROOT) -> dict[str, Path]:
    """Return the source files of the agents' floor by their name below ``tocsin``."""
    files = (path for package in MEASURED for path in (root / package).rglob("*.py"))
    return {path.relative_to(root).as_posix(): path for path in files}


def code_digest(files: dict[str, Path], classes: Iterable[type]) -> bytes:
    """Return the digest of some files and of the files that some classes are defined in.

    A class without a source file counts by its name alone. Reads every file: for a worker thread.
    """
    digest = hashlib.sha256(b"tocsin code 1")
    for name in sorted(files):
        _add(digest, name, files[name].read_bytes())
    known = {path.resolve() for path in files.values()}
    for one in classes:
        path = _source(one)
        if path is None or path not in known:
            _add(digest, one.__qualname__, path.read_bytes() if path is not None else b"")
    return digest.digest()


def configuration_digest(agent: Agent, settings: HostSettings) -> bytes:
    """Return the digest of what shapes an agent, beside its code."""
    shaping = settings.model_dump(mode="json", exclude=set(ELSEWHERE))
    who = {"agent": agent.name, "role": agent.role.value, "host": settings.host_name}
    canonical = json.dumps([who, shaping], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(b"tocsin configuration 1" + canonical.encode()).digest()


def measure(agents: Iterable[Agent], settings: HostSettings) -> dict[str, Measurement]:
    """Measure a host's agents, by name. Reads some hundred files once: for a worker thread."""
    files = floor_files()
    codes: dict[type[Agent], bytes] = {}
    measured: dict[str, Measurement] = {}
    for agent in agents:
        made_of = type(agent)
        if made_of not in codes:
            classes = [one for one in made_of.__mro__ if issubclass(one, Agent)]
            codes[made_of] = code_digest(files, classes)
        measured[agent.name] = Measurement(
            code=codes[made_of], configuration=configuration_digest(agent, settings)
        )
    return measured


def _add(digest: hashlib._Hash, name: str, content: bytes) -> None:
    encoded = name.encode()
    digest.update(len(encoded).to_bytes(4, "big") + encoded + hashlib.sha256(content).digest())


def _source(one: type) -> Path | None:
    try:
        found = inspect.getsourcefile(one)
    except (TypeError, OSError):  # made in an interpreter, or built in
        return None
    path = Path(found).resolve() if found else None
    return path if path is not None and path.exists() else None
