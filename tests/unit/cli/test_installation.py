from __future__ import annotations

import json
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tocsin.bus import Credentials
from tocsin.bus.accounts import READER_USER, SERVICE_USER, open_accounts, reader_permissions
from tocsin.bus.broker import find_nats_server
from tocsin.bus.enrolment import HeldToken, IssuedToken, check_root, read_tokens
from tocsin.cli.containers import initialise
from tocsin.cli.fleetplan import plan_agents
from tocsin.cli.installation import Installation
from tocsin.contracts.errors import ConflictError, InvalidInputError, UnavailableError, UntrustedError
from tocsin.contracts.identifiers import ServiceName
from tocsin.crypto import select_backend

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def made(tmp_path: Path) -> Installation:
    return initialise(tmp_path / "stack", "test.tocsin", agents=12, hosts=2, copies=3)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_what_a_container_mounts_is_open_inside_a_folder_that_is_closed(made: Installation) -> None:
    assert made.folder.stat().st_mode & 0o777 == 0o700
    for part in ("broker", "credentials/router", "fleet", "gateway", "hosts/host-1"):
        for path in (made.folder / part, *(made.folder / part).rglob("*")):
            assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644), path
    for secret in (made.folder / "ca" / "root.key", made.credentials(ServiceName.CLI) / "cli-0.key"):
        assert secret.stat().st_mode & 0o777 == 0o600
    assert not list((made.folder / "fleet").glob("root.key"))


def test_each_service_has_its_identities(made: Installation) -> None:
    backend = select_backend()
    for service in ServiceName:
        copies = {ServiceName.CONSENSUS: 4, ServiceName.CLI: 1}.get(service, 3)
        for number in range(copies):
            name = f"{service.value}-{number}"
            held = Credentials.load(made.credentials(service), None, name, backend)
            assert held.id.service_name is service


def test_made_again_it_keeps_every_key_and_token_and_renews_certificates(made: Installation) -> None:
    before = files_of(made.folder)
    initialise(made.folder, "test.tocsin", agents=12, hosts=2, copies=4)
    after = files_of(made.folder)
    changed = {name for name, content in before.items() if after[name] != content}
    assert {Path(name).suffix for name in changed} == {".chain"}
    added = after.keys() - before.keys()
    assert {Path(name).stem.rpartition("-")[2] for name in added} == {"3"}
    assert Installation.find(made.folder).fingerprint == made.fingerprint


def test_another_fleet_gets_fresh_tokens_for_the_hosts_that_change(made: Installation) -> None:
    def tokens() -> dict[str, str]:
        issued = read_tokens(made.tokens_file, IssuedToken)
        return {token.host: token.token_id for token in issued if token.names_host}

    before = tokens()
    made.add_hosts(plan_agents(12, 3))
    after = tokens()
    assert after.keys() == {"host-1", "host-2", "host-3"}
    assert all(after[host] != before[host] for host in before)
    assert {agent.host for agent in made.agents()} == after.keys()


def test_a_folder_of_another_domain_or_layout_is_refused(made: Installation) -> None:
    with pytest.raises(ConflictError, match=r"test\.tocsin"):
        initialise(made.folder, "other.tocsin", agents=12, hosts=2, copies=3)
    (made.folder / "version").write_text("1\n")
    with pytest.raises(ConflictError, match="layout"):
        initialise(made.folder, "test.tocsin", agents=12, hosts=2, copies=3)
    with pytest.raises(ConflictError, match="layout"):
        Installation.find(made.folder)


def test_a_fleet_that_cannot_be_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError):
        initialise(tmp_path / "stack", "test.tocsin", agents=2, hosts=1, copies=1)
    assert not (tmp_path / "stack").exists()


def test_a_folder_that_is_none_is_said(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError) as caught:
        Installation.find(tmp_path)
    assert caught.value.reason == "no_installation"


def test_tokens_are_good_under_their_root_only(made: Installation, tmp_path: Path) -> None:
    held = read_tokens(made.host("host-1") / "tokens.json", HeldToken)
    check_root(held, made.fingerprint)
    other = initialise(tmp_path / "other", "test.tocsin", agents=12, hosts=2, copies=1)
    with pytest.raises(UntrustedError) as caught:
        check_root(held, other.fingerprint)
    assert caught.value.reason == "wrong_root"


def test_a_certificate_is_good_in_its_time_only(made: Installation) -> None:
    held = made.cli_credentials()
    now = datetime.now(UTC)
    for days, reason in ((31, "certificate_expired"), (-1, "certificate_not_yet_valid")):
        with pytest.raises(UntrustedError) as caught:
            held.require_valid(now_ns=int((now + timedelta(days=days)).timestamp() * 1e9))
        assert caught.value.reason == reason
    held.require_valid(now_ns=int(now.timestamp() * 1e9))


def test_accounts_are_made_once_and_a_broker_can_include_them(tmp_path: Path) -> None:
    first = open_accounts(tmp_path)
    assert open_accounts(tmp_path) == first
    assert [user["user"] for user in first["authorization"]["users"]] == [SERVICE_USER, READER_USER]
    (system,) = first["accounts"]["$SYS"]["users"]
    assert system["permissions"]["publish"] == {"deny": [">"]}
    written = (tmp_path / "users.conf").read_text().replace("authorization: ", '{"authorization": ', 1)
    assert json.loads(written.replace("accounts: ", ', "accounts": ', 1) + "}") == first
    for name in ("token", "reader-token", "system-token", "users.conf"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600


def test_the_broker_of_the_stack_takes_the_accounts(tmp_path: Path) -> None:
    (tmp_path / "nats.conf").write_bytes((ROOT / "deploy" / "nats.conf").read_bytes())
    (tmp_path / "auth").mkdir()
    open_accounts(tmp_path / "auth")
    checked = subprocess.run(
        [find_nats_server(), "-t", "-c", str(tmp_path / "nats.conf")],
        check=False,
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stderr


def test_a_reader_is_allowed_nothing_that_changes_or_that_others_are_told() -> None:
    allowed = reader_permissions()
    assert all(
        one.startswith(("$JS.API.", "$JS.FC."))
        and not any(word in one for word in ("DELETE", "PURGE", "UPDATE"))
        for one in allowed["publish"]["allow"]
    )
    heard = allowed["subscribe"]["allow"]
    assert "tocsin.v1.event.>" in heard
    assert not any(one.startswith(("tocsin.v1.route", "tocsin.v1.reply", "_INBOX.>", "$")) for one in heard)
