"""The API's token: which files are taken, and what is admitted."""

from __future__ import annotations

from pathlib import Path

import pytest

from tocsin.contracts.errors import DeniedError, TocsinError
from tocsin.gateway.tokens import ApiToken

SECRET = "a-token-of-thirty-two-characters"  # noqa: S105 - made up for this test


def write(path: Path, text: str, *, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def test_the_right_token_is_admitted_whatever_the_case_of_the_scheme(tmp_path: Path) -> None:
    token = ApiToken.load(write(tmp_path / "token", f"{SECRET}\n"))
    token.check(f"Bearer {SECRET}")
    token.check(f"bearer {SECRET}")
    assert SECRET not in repr(token)


@pytest.mark.parametrize(
    "presented",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        SECRET,
        f"Basic {SECRET}",
        f"Bearer {SECRET}x",
        f"Bearer {SECRET[:-1]}",
        f"Bearer {SECRET.upper()}",
        "Bearer \xe9\udc80",
    ],
)
def test_anything_else_is_refused_with_one_reason(tmp_path: Path, presented: str | None) -> None:
    token = ApiToken.load(write(tmp_path / "token", SECRET))
    with pytest.raises(DeniedError) as caught:
        token.check(presented)
    assert caught.value.reason == "unauthenticated"
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_file_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(TocsinError) as caught:
        ApiToken.load(write(tmp_path / "token", SECRET, mode=mode))
    assert caught.value.reason == "token_file_mode"


@pytest.mark.parametrize("text", ["", "short", "two words that are quite long enough", "x" * 513, "é" * 40])
def test_a_file_without_a_good_token_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(TocsinError) as caught:
        ApiToken.load(write(tmp_path / "token", text))
    assert caught.value.reason == "bad_token_file"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TocsinError, match="nowhere") as caught:
        ApiToken.load(tmp_path / "nowhere")
    assert caught.value.reason == "missing_file"
