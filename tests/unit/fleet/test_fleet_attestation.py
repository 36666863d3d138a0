"""Whether an attestation holds, and what an agent's measurement is made of."""

from __future__ import annotations

from pathlib import Path

from fleet_support import recorder

from tocsin.agent import HostSettings
from tocsin.agent.measurement import code_digest, configuration_digest, floor_files, measure
from tocsin.contracts.fleet import AgentRecord
from tocsin.contracts.health import MAX_ALLOWED, Attestation, MeasuredAgent, Measurement, MeasurementRecord
from tocsin.contracts.identifiers import Role
from tocsin.fleet.attestation import judge, with_approved, with_first

NONCE = b"n" * 32


def measurement(code: int, configuration: int = 0) -> Measurement:
    return Measurement(code=bytes([code]) * 32, configuration=bytes([configuration]) * 32)


def agent(name: str, key: int = 0) -> AgentRecord:
    return AgentRecord(name=name, role=Role.HUNTER, host="h", key_id=bytes([key]) * 32, enrolled_ns=0)


def answer(nonce: bytes = NONCE, **shown: Measurement) -> Attestation:
    agents = tuple(MeasuredAgent(agent=name, measurement=one) for name, one in shown.items())
    return Attestation(nonce=nonce, agents=agents)


def enrolled(*agents: AgentRecord, **shown: Measurement) -> MeasurementRecord:
    made = with_first("h", None, judge(agents, None, NONCE, answer(NONCE, **shown), {}).first)
    assert made is not None
    return made


def test_the_first_is_believed_and_the_same_again_holds() -> None:
    a = agent("a")
    record = enrolled(a, a=measurement(1))
    again = judge([a], record, NONCE, answer(a=measurement(1)), {measurement(1): "a"})
    assert (again.held, dict(again.refused), again.first) == (("a",), {}, ())
    assert with_first("h", record, judge([a], None, NONCE, answer(a=measurement(2)), {}).first) is None


def test_each_way_to_fail_has_its_reason() -> None:
    a, b = agent("a"), agent("b")
    record = enrolled(a, b, a=measurement(1, 1), b=measurement(1, 2))
    owners = {measurement(1, 1): "a", measurement(1, 2): "b"}
    old = judge([a, b], record, NONCE, answer(b"o" * 32, a=measurement(1, 1)), owners)
    assert dict(old.refused) == {"a": "wrong_nonce", "b": "wrong_nonce"}
    mixed = judge([a, b], record, NONCE, answer(a=measurement(1, 2)), owners)
    assert dict(mixed.refused) == {"a": "measurement_of_another", "b": "not_measured"}
    changed = judge([a, b], record, NONCE, answer(a=measurement(2, 1), b=measurement(1, 2)), owners)
    assert (changed.held, dict(changed.refused)) == (("b",), {"a": "wrong_measurement"})
    # Who is not enrolled there says nothing.
    assert judge([a], record, NONCE, answer(a=measurement(1, 1), x=measurement(9)), owners).held == ("a",)


def test_another_key_is_another_enrolment() -> None:
    record = enrolled(agent("a"), a=measurement(1))
    anew = judge([agent("a", 1)], record, NONCE, answer(a=measurement(2)), {})
    assert [one.allowed for one in anew.first] == [(measurement(2),)]
    assert with_first("h", record, anew.first) is not None


def test_what_is_approved_is_added_and_the_oldest_goes() -> None:
    record: MeasurementRecord | None = enrolled(agent("a"), a=measurement(1))
    for code in range(2, 8):
        record = with_approved("h", record, {"a": (bytes(32), measurement(code))})
        assert record is not None
        assert with_approved("h", record, {"a": (bytes(32), measurement(code))}) is None
    assert record is not None
    assert record.agents[0].allowed == tuple(measurement(code) for code in range(8 - MAX_ALLOWED, 8))


def settings(folder: Path, **changed: object) -> HostSettings:
    values = {"host_name": "h", "host_agents": "a:hunter", "state_dir": folder, **changed}
    return HostSettings(**values)  # type: ignore[arg-type]


def test_a_measurement_is_of_the_files_and_the_settings_and_of_nothing_else(tmp_path: Path) -> None:
    a = recorder(Role.HUNTER, "a")
    usual = measure([a], settings(tmp_path))["a"]
    assert measure([a], settings(tmp_path / "x", nats_url="nats://x:1", log_level="error"))["a"] == usual
    assert measure([a], settings(tmp_path, host_agents="a:hunter,b:hunter"))["a"] == usual
    other = measure([a], settings(tmp_path, inbox_length=16))["a"]
    assert (other.code, other.configuration == usual.configuration) == (usual.code, False)
    b, guardian = recorder(Role.HUNTER, "b"), recorder(Role.GUARDIAN, "a")
    digests = {configuration_digest(one, settings(tmp_path)) for one in (a, b, guardian)}
    assert len(digests | {configuration_digest(a, settings(tmp_path, host_name="h2"))}) == 4


def test_every_byte_and_every_name_of_the_code_counts(tmp_path: Path) -> None:
    for package in ("agent", "bus"):
        (tmp_path / package).mkdir()
    file = tmp_path / "agent" / "x.py"
    file.write_text("x = 1\n")
    first = code_digest(floor_files(tmp_path), ())
    file.write_text("x = 2\n")
    changed = code_digest(floor_files(tmp_path), ())
    file.rename(tmp_path / "bus" / "x.py")
    assert len({first, changed, code_digest(floor_files(tmp_path), ())}) == 3
    assert "agent/measurement.py" in floor_files()
    made_here = type("Nowhere", (), {"__module__": "__main__"})
    assert code_digest({}, (made_here,)) != code_digest({}, ())
