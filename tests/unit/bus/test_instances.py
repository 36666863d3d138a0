from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tocsin.bus.instances import take_instance
from tocsin.contracts.errors import ExhaustedError, UnavailableError
from tocsin.contracts.identifiers import ServiceName

COPY = """
import sys, pathlib
from tocsin.bus.instances import take_instance
from tocsin.contracts.identifiers import ServiceName
print(take_instance(pathlib.Path(sys.argv[1]), ServiceName.ROUTER), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("router-0", "router-1", "qpu-manager-0", "ca"):
        (tmp_path / f"{name}.key").write_text("a key")
    return tmp_path


@contextmanager
def copy(folder: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Run a process that takes an identity, and keep it."""
    with subprocess.Popen(
        [sys.executable, "-c", COPY, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip(), process
        process.kill()


def test_each_copy_takes_another_identity_and_one_too_many_is_told(folder: Path) -> None:
    with ExitStack() as stack:
        assert {stack.enter_context(copy(folder))[0] for _ in range(2)} == {"0", "1"}
        with pytest.raises(ExhaustedError) as caught:
            take_instance(folder, ServiceName.ROUTER)
        assert caught.value.reason == "no_free_instance"


def test_the_identity_of_a_killed_copy_is_free_at_once(folder: Path) -> None:
    with copy(folder) as (name, process):
        process.kill()
        process.wait()
        with copy(folder) as (again, _):
            assert again == name == "0"


def test_a_name_with_a_dash_is_not_another_services(folder: Path) -> None:
    assert take_instance(folder, ServiceName.QPU_MANAGER) == "0"


def test_a_key_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    (tmp_path / "router-0.key").symlink_to(tmp_path / "nothing")
    with pytest.raises(UnavailableError, match=r"cannot read router-0\.key"):
        take_instance(tmp_path, ServiceName.ROUTER)


def test_a_service_without_an_identity_is_told_what_to_do(folder: Path) -> None:
    with pytest.raises(UnavailableError, match="no identity of fleet") as caught:
        take_instance(folder, ServiceName.FLEET)
    assert "tocsin init" in (caught.value.advice() or "")
