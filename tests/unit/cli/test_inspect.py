"""`tocsin envelope inspect`: whether a signature holds, as the exit code says it too."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tocsin.bus.credentials import Credentials
from tocsin.bus.envelope import encode_content, encode_envelope, make_content
from tocsin.cli.exits import Exit
from tocsin.crypto import select_backend, sign_batch

TOCSIN = [sys.executable, "-m", "tocsin.cli"]


def tocsin(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command as a user would."""
    return subprocess.run(
        [*TOCSIN, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the authority `ca`, the credentials of two services, and an envelope of the first."""
    folder = tmp_path_factory.mktemp("inspect")
    assert tocsin("ca", "init", folder / "ca").returncode == 0
    for service in ("router", "fleet"):
        assert tocsin("ca", "issue", folder / "ca", "--service", service, "--out", folder).returncode == 0
    router = Credentials.load(folder, None, "router-0", select_backend())
    content = encode_content(
        make_content(
            type_name="metrics",
            sender=str(router.id),
            audience="event",
            body=b"\x80",
            now_ns=time.time_ns(),
            ttl_ms=1000,
        )
    )
    proof = sign_batch(router.key.signer, [content])[0]
    (folder / "envelope").write_bytes(encode_envelope(content, router.key.signer.key_id, proof))
    return folder


@pytest.mark.parametrize(
    ("chain", "code", "says"),
    [
        ("router-0.chain", Exit.OK, "valid"),
        ("fleet-0.chain", Exit.OK, "not checked"),
        (None, Exit.OK, "not checked"),
    ],
)
def test_a_signature_is_checked_with_the_senders_chain(
    chain: str | None, code: Exit, says: str, installation: Path
) -> None:
    given: list[str | Path] = ["--chain", installation / chain] if chain else []
    done = tocsin(
        "envelope", "inspect", installation / "envelope", "--root", installation / "ca" / "root.pem", *given
    )
    assert done.returncode == code, done.stderr
    assert json.loads(done.stdout)["signature"].startswith(says)


def test_a_changed_byte_of_the_content_is_invalid_and_said_by_the_exit_code(installation: Path) -> None:
    data = bytearray((installation / "envelope").read_bytes())
    data[data.find(b"event")] ^= 1
    (installation / "changed").write_bytes(data)
    done = tocsin(
        "envelope",
        "inspect",
        installation / "changed",
        "--root",
        installation / "ca" / "root.pem",
        "--chain",
        installation / "router-0.chain",
    )
    assert done.returncode == Exit.UNTRUSTED, done.stderr
    assert json.loads(done.stdout)["signature"].startswith("INVALID")


def test_a_chain_without_a_root_is_refused(installation: Path) -> None:
    done = tocsin("envelope", "inspect", installation / "envelope", "--chain", installation / "router-0.chain")
    assert done.returncode == Exit.BAD_INPUT
    assert "--root" in done.stderr
