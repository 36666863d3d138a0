from __future__ import annotations

import pytest

from tocsin.cli.tail import matching
from tocsin.contracts.catalogue import SUBJECTS
from tocsin.contracts.errors import InvalidInputError


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("event.>", {"EVENT"}),
        ("tocsin.v1.event.workflow.*", {"EVENT"}),
        ("deliver.all", {"DELIVER_ALL"}),
        ("deliver.*.*", {"DELIVER_AGENT", "DELIVER_ROLE", "DELIVER_MISSION", "DELIVER_GROUP"}),
        ("consensus.decision.*", {"CONSENSUS_DECISION"}),
        (">", {subject.name for subject in SUBJECTS}),
    ],
)
def test_a_pattern_finds_the_subjects_that_it_can_match(pattern: str, names: set[str]) -> None:
    assert {subject.name for subject in matching(pattern)} == names


@pytest.mark.parametrize("pattern", ["events.>", "deliver", "deliver.all.more", ""])
def test_a_pattern_that_matches_nothing_is_said_to(pattern: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        matching(pattern)
    assert caught.value.reason == "unknown_subject"
