"""What `tocsin decision verify` says of keys that were revoked: it names them, and judges nothing by them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from council import NOW_NS, Council
from typer.testing import CliRunner

from tocsin.cli.authority import sign_as_root
from tocsin.cli.decision import app
from tocsin.cli.decision_views import verified_lines
from tocsin.contracts.catalogue import REVOCATIONS
from tocsin.contracts.errors import TocsinError
from tocsin.contracts.revocations import Revocation, RevocationList, RevocationReason
from tocsin.contracts.subjects import EVENT_AUDIENCE
from tocsin.evidence.verification import verify


@pytest.fixture
def council(tmp_path: Path) -> Council:
    """A decision, the root that it goes back to, and a list that has the key of one of its voters."""
    council = Council()
    (tmp_path / "one.decision").write_bytes(council.certificate().encode())
    (tmp_path / "ca.pem").write_bytes(council.root.certificate_pem)
    (tmp_path / "revocations").write_bytes(listed(council, council.seat(council.voters[1])[1]))
    return council


def listed(council: Council, key_id: bytes) -> bytes:
    """Return a list with one key, signed by this council's root."""
    entry = Revocation(key_id=key_id, reason=RevocationReason.COMPROMISED, since_ns=NOW_NS)
    made = RevocationList(number=1, made_ns=NOW_NS, entries=(entry,))
    return sign_as_root(council.root, REVOCATIONS, made, audience=EVENT_AUDIENCE).data


def arguments(folder: Path, *more: str) -> list[str]:
    return ["verify", str(folder / "one.decision"), "--root", str(folder / "ca.pem"), *more]


def test_whose_key_was_revoked_is_named_and_the_decision_stands(council: Council, tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, arguments(tmp_path, "--revocations", str(tmp_path / "revocations")))
    assert shown.exit_code == 0, shown.output
    assert shown.output.startswith("valid ")
    # Two agents of one host share the key.
    assert "revoked    since or before, which changes nothing here: " in shown.output
    assert str(council.voters[1]) in shown.output
    given = ("--revocations", str(tmp_path / "revocations"), "--json")
    view = json.loads(CliRunner().invoke(app, arguments(tmp_path, *given)).output)
    assert str(council.voters[1]) in str(view)
    assert "no list was given" in CliRunner().invoke(app, arguments(tmp_path)).output


def test_a_list_that_names_nobody_here_says_so(council: Council) -> None:
    lines = verified_lines(
        verify(council.certificate().encode(), council.root.certificate_pem, revocations={bytes(32)}), "x"
    )
    assert lines[-1] == "revoked    nobody who speaks in it"


@pytest.mark.usefixtures("council")
def test_a_list_that_the_root_did_not_sign_is_none(tmp_path: Path) -> None:
    for data, reason in ((listed(Council(), bytes(32)), "wrong_root"), (b"no list", "malformed")):
        (tmp_path / "revocations").write_bytes(data)
        given = ("--revocations", str(tmp_path / "revocations"))
        refused = CliRunner().invoke(app, arguments(tmp_path, *given))
        assert isinstance(refused.exception, TocsinError)
        assert refused.exception.reason == reason
