from __future__ import annotations

import os
from pathlib import Path

import pytest

from tocsin.bus.folder import check_layout, claim_folder
from tocsin.contracts.errors import ConflictError, UnavailableError


def test_a_folder_is_made_private_marked_and_taken_again(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "state"
    claim_folder(folder, layout=2)
    assert folder.stat().st_mode & 0o777 == 0o700
    claim_folder(folder, layout=2)
    check_layout(folder, layout=2)


@pytest.mark.parametrize("marker", ["1", "3", "", "two", "\x00\xff" * 40])
def test_another_layout_is_refused_and_left_as_it_is(tmp_path: Path, marker: str) -> None:
    (tmp_path / "version").write_text(marker)
    with pytest.raises(ConflictError) as caught:
        claim_folder(tmp_path, layout=2)
    assert caught.value.reason == "state_version"
    assert (tmp_path / "version").read_text() == marker


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UnavailableError) as caught:
        claim_folder(tmp_path / "file" / "state", layout=1)
    assert caught.value.reason == "not_writable"


@pytest.mark.skipif(
    os.geteuid() == 0, reason="root may write everywhere; tests/e2e/test_containers.py covers it"
)
def test_a_folder_without_rights_is_said(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UnavailableError):
        claim_folder(tmp_path, layout=1)
