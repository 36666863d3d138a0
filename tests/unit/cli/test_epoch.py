"""What `tocsin epoch show` says of an epoch."""

from __future__ import annotations

from dataclasses import replace

import pytest
from chains import Line

from tocsin.cli.epoch import in_words, view_of
from tocsin.evidence.certificate import MAX_CHAIN


@pytest.fixture(scope="module")
def line() -> Line:
    line = Line()
    line.go_on()
    return line


def test_the_root_s_epoch_and_a_decided_one_are_told_apart(line: Line) -> None:
    root = line.council.epoch
    assert view_of(root)["signed_by"] == "root"
    assert "signed by the root" in in_words(root)
    view = view_of(line.epoch)
    assert (view["signed_by"], view["number"], view["participants"], view["quorum"]) == ("decision", 1, 22, 15)
    assert view["chain"] == [line.epoch.chain[0].hex()]
    assert f"decided, 1 of at most {MAX_CHAIN} epochs" in in_words(line.epoch)
    assert "advice" not in in_words(line.epoch)


def test_a_long_chain_asks_for_a_checkpoint(line: Line) -> None:
    long = replace(line.epoch, chain=tuple(bytes([i]) * 32 for i in range(MAX_CHAIN - 1)))
    assert "tocsin epoch checkpoint" in in_words(long)
