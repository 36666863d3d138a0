"""The reference in docs/ is what the catalogue says now."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tocsin.contracts.catalogue import REQUESTS, STREAMS, SUBJECTS, message_types
from tocsin.contracts.reference import COMMAND, main, render, write

DOCS = Path(__file__).resolve().parents[3] / "docs" / "reference"


def test_the_reference_is_not_stale() -> None:
    expected = render()
    found = {
        str(path.relative_to(DOCS)): path.read_text(encoding="utf-8")
        for path in (DOCS / "subjects.md", DOCS / "policy.md", *sorted((DOCS / "schemas").glob("*")))
        if path.exists()
    }
    stale = {path for path in expected.keys() | found.keys() if expected.get(path) != found.get(path)}
    assert not stale, f"docs/reference is not what the catalogue says: {sorted(stale)}; run `{COMMAND}`"


def test_it_is_the_same_every_time() -> None:
    assert render() == render()


def test_everything_in_the_catalogue_is_on_the_page() -> None:
    page = render()["subjects.md"]
    for template in [one.template for one in SUBJECTS] + [one.subject.template for one in REQUESTS]:
        assert f"| `{template}` |" in page
    for kind in message_types():
        assert f"[`{kind.name}`](schemas/{kind.name}.json)" in page
    for stream in STREAMS:
        assert f"| {stream.name} |" in page


def test_every_link_to_a_schema_leads_to_one() -> None:
    files = render()
    pages = {"subjects.md", "policy.md"}
    links = {part.partition(")")[0] for page in pages for part in files[page].split("](")[1:]}
    assert {link for link in links if link.startswith("schemas/")} == set(files) - pages


def test_a_schema_says_what_the_model_does() -> None:
    schema = json.loads(render()["schemas/event.router.delivery.json"])
    assert schema["additionalProperties"] is False
    assert schema["properties"]["leaf"] == {
        "format": "binary",
        "maxLength": 32,
        "minLength": 32,
        "title": "Leaf",
        "type": "string",
    }
    assert schema["properties"]["last_ms"]["description"].startswith("Milliseconds from the sender's")


def test_a_description_of_a_nested_model_is_there_too() -> None:
    schema = json.loads(render()["schemas/threat_alert.json"])
    assert "not a probability" in schema["$defs"]["Finding"]["properties"]["score"]["description"]


def test_writing_drops_the_schema_of_a_type_that_is_no_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "schemas").mkdir()
    (tmp_path / "schemas" / "gone.json").write_text("{}")
    (tmp_path / "envelope.md").write_text("not ours")
    assert main([str(tmp_path)]) == 0
    assert "files in" in capsys.readouterr().out
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")} == {"envelope.md", *render()}
    assert write(tmp_path) == len(render())


def test_without_a_folder_it_says_how_it_is_used(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 64
    assert COMMAND in capsys.readouterr().err
