"""The measuring programs as one runs them: their report, and that nothing is left behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {"cores", "python", "nats_server", "signature_backend", "signature_algorithm", "key_scope"}
LATENCY = {"p50", "p95", "p99", "max", "mean"}


def command(*arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "loadtest" / arguments[0]), *arguments[1:]]


def report(*arguments: str) -> dict[str, Any]:
    """Run a program; its exit code is 0 and its standard output one JSON object and nothing else."""
    code, parsed = report_and_code(*arguments)
    assert code == 0
    return parsed


def report_and_code(*arguments: str) -> tuple[int, dict[str, Any]]:
    """Run a program that may find what it reports wrong."""
    ended = subprocess.run(command(*arguments), capture_output=True, text=True, check=False, timeout=200)
    assert ended.stdout, ended.stderr
    assert ended.stdout.count("\n") == 1
    parsed: dict[str, Any] = json.loads(ended.stdout)
    assert set(parsed) == {"program", "parameters", "environment", "results"}
    assert set(parsed["environment"]) == ENVIRONMENT
    return ended.returncode, parsed


def test_envelopes_are_measured_for_every_batch_size() -> None:
    parsed = report("envelope.py", "--seconds", "0.05", "--backend", "openssl", "--algorithm", "ML-DSA-44")
    points = parsed["results"]["points"]
    assert [point["batch"] for point in points] == [1, 8, 64, 256]
    for point in points:
        assert point["make_per_s"] > 0
        assert point["open_per_s"] > 0
        # One signature and one full verification a batch: the backend counted them, none was left out.
        assert point["signatures_per_envelope"] == pytest.approx(1 / point["batch"], rel=1e-3)
        assert point["full_verifications_per_envelope"] == pytest.approx(1 / point["batch"], rel=1e-3)
    assert parsed["parameters"]["body_bytes"] == 400
    overhead = points[0]["envelope_bytes"] - 400 - 2420
    assert 100 < overhead < 250


@pytest.mark.slow
def test_channels_are_measured_alone_over_the_bus_and_as_a_mesh() -> None:
    parsed = report(
        "channels.py",
        *("--seconds", "0.3", "--channels", "50", "--at-once", "4", "--mesh", "6", "--hosts", "2"),
    )
    results = parsed["results"]
    assert all(results["protocol"][name] > 0 for name in ("handshakes_per_s", "sealed_per_s", "opened_per_s"))
    assert results["bus"]["handshakes"]["handshakes"] > 0
    assert set(results["bus"]["handshakes"]["handshake_ms"]) == LATENCY
    messages = results["bus"]["messages"]
    assert messages["sent"] == messages["received"] > 0
    assert (results["mesh"]["channels"], results["mesh"]["failed"]) == (15, 0)


@pytest.mark.slow
def test_routing_loses_and_doubles_nothing_and_compares_with_a_relay() -> None:
    parsed = report(
        "routing.py",
        *("--agents", "4", "--hosts", "2", "--rate", "50", "--seconds", "2", "--warmup", "0.5", "--baseline"),
    )
    results = parsed["results"]
    for plane in (results, results["baseline"]):
        assert (plane["sent"], plane["received"], plane["lost"], plane["duplicates"]) == (100, 100, 0, 0)
        assert set(plane["latency_ms"]) == LATENCY
        assert 0 < plane["latency_ms"]["p50"] <= plane["latency_ms"]["p99"] <= plane["latency_ms"]["max"]
    assert set(results["ratio_to_baseline"]["latency_ms"]) == LATENCY
    assert (results["hosts"], results["keys"], results["routers"]) == (2, 2, 1)
    # Nothing is turned off: the router verifies, and so does each recipient.
    router = results["full_verifications"]["service.router.0"]
    hosts = sum(count for name, count in results["full_verifications"].items() if name.startswith("host."))
    assert router > 0
    assert hosts > 0
    assert results["refused"] == {}


@pytest.mark.slow
def test_a_key_for_each_agent_and_two_routers() -> None:
    parsed = report(
        "routing.py",
        *(
            "--agents",
            "5",
            "--hosts",
            "2",
            "--routers",
            "2",
            "--rate",
            "40",
            "--seconds",
            "1",
            "--warmup",
            "0.5",
        ),
        *("--key-scope", "agent", "--algorithm", "ML-DSA-44", "--type", "threat_alert"),
    )
    results = parsed["results"]
    assert (results["sent"], results["lost"], results["duplicates"]) == (40, 0, 0)
    assert results["keys"] == 5
    assert {"service.router.0", "service.router.1"} <= set(results["full_verifications"])
    assert "baseline" not in results
    assert parsed["environment"]["key_scope"] == "agent"
    assert parsed["environment"]["signature_algorithm"] == "ML-DSA-44"


@pytest.mark.slow
def test_the_highest_rate_is_searched_for_routers_and_for_relays() -> None:
    parsed = report(
        "routing.py",
        *("--agents", "4", "--hosts", "2", "--rate", "40", "--seconds", "0.5", "--warmup", "0.1"),
        # One step, that holds wherever the machine breathes: the search itself is tested by itself.
        *("--find-max", "--max-rates", "1", "--routers-list", "1,2", "--p99-ms", "1000"),
    )
    one, two = parsed["results"]["by_routers"]
    assert (one["routers"], two["routers"]) == (1, 2)
    for found in (one, two, one["baseline"], two["baseline"]):
        assert found["max_rate_per_s"] == found["due_per_s"] == 40
        assert (found["sent"], found["lost"], found["duplicates"]) == (20, 0, 0)
        assert found["tried"][-1]["held"]
        assert {"router", "broker", "hosts", "others"} == set(found["cpu_cores"])
    assert one["ratio_to_baseline"]["max_rate_per_s"] == 1.0
    assert set(two["full_verifications"]) == {
        "host.host-1",
        "host.host-2",
        "service.router.0",
        "service.router.1",
    }


@pytest.mark.slow
def test_envelopes_signed_ahead_are_taken_as_any_other() -> None:
    parsed = report(
        "routing.py",
        *("--agents", "6", "--hosts", "2", "--rate", "40", "--seconds", "1", "--warmup", "0.25"),
        *("--key-scope", "agent", "--presigned"),
    )
    results = parsed["results"]
    assert (results["sent"], results["received"], results["lost"], results["duplicates"]) == (40, 40, 0, 0)
    # Each is signed alone, and verified in full by the router and by its recipient's host; a statement of the
    # revocations may come besides.
    assert results["batch_mean"] == 1.0
    assert 2.0 <= results["full_verifications_per_message"] <= 2.5
    assert results["refused"] == {}
    assert set(results["signed_ahead"]) == {"planned_s", "took_s", "start_late_s"}
    assert set(results["setup_s"]) == {"certificates", "records", "routers", "hosts"}


@pytest.mark.slow
def test_an_emergency_reaches_every_agent_and_is_accounted_for_twice_over() -> None:
    parsed = report("broadcast.py", *("--agents", "13", "--hosts", "2", "--alerts", "4", "--pause", "0.1"))
    results = parsed["results"]
    assert (results["sent"], results["not_sent"], results["keys"]) == (4, 0, 3)
    # What the router's accounts say, and what the agents themselves have counted.
    assert (results["due"], results["delivered"], results["undelivered"]) == (52, 52, 0)
    assert (results["received"], results["twice"], results["lost"]) == (52, 0, 0)
    assert (results["complete_accounts"], results["unaccounted"], results["overclaimed"]) == (4, 0, 0)
    assert results["by_core"] + results["by_stream"] == 52
    for name in ("first_agent_ms", "last_agent_ms", "account_ms"):
        assert set(results[name]) == LATENCY
    assert 0 < results["first_agent_ms"]["p50"] <= results["last_agent_ms"]["p50"]
    assert min(results["full_verifications"].values()) >= 4
    assert set(results["full_verifications"]) == {"host.host-1", "host.host-2", "service.router.0"}
    assert results["not_simply_delivered"] == []


@pytest.mark.slow
def test_faults_are_made_and_healed_and_the_exit_code_says_whether_all_is_accounted_for() -> None:
    code, parsed = report_and_code(
        "broadcast.py",
        *("--agents", "7", "--hosts", "2", "--alerts", "40", "--pause", "0.2", "--faults", "--wait", "12"),
    )
    results = parsed["results"]
    assert [fault["fault"] for fault in results["faults"]] == ["partition", "router", "broker"]
    assert all(fault["alerts"] > 0 for fault in results["faults"])
    assert results["sent"] + results["not_sent"] == 40
    wrong = results["unaccounted"] + results["twice"] + results["overclaimed"]
    assert code == (70 if wrong else 0)
    assert results["twice"] == 0
    # A host that was cut off has what it missed from the stream once it is back.
    partition = results["faults"][0]
    assert partition["complete"] == partition["alerts"]
    assert partition["late"] > 0
    assert len(results["not_simply_delivered"]) >= results["unaccounted"]


def test_a_fleet_that_enrols_is_measured_and_its_first_limit_named() -> None:
    parsed = report("agents.py", "--agents", "21", "--hosts", "3", "--seconds", "1", "--settle", "0")
    found = parsed["results"]
    assert found["agents"] == 21
    assert 0 < found["setup_s"]["enrolled"] <= found["setup_s"]["ready"]
    assert found["hosts"]["processes"] == 3
    for group in ("hosts", "fleet", "router", "broker"):
        assert found[group]["uss_mib"] > 1
        assert set(found[group]["per_1000_agents"]) == {"uss_mib", "cpu_cores"}
    shares = [one["share"] for one in found["limits"]]
    assert shares == sorted(shares, reverse=True)
    assert found["first_limit"] == found["limits"][0]


@pytest.mark.parametrize(
    ("arguments", "number"),
    [
        (("routing.py", "--rate", "50", "--seconds", "60"), signal.SIGINT),
        (("routing.py", "--find-max", "--seconds", "60"), signal.SIGTERM),
        (("broadcast.py", "--alerts", "300", "--faults"), signal.SIGTERM),
        (("agents.py", "--seconds", "60"), signal.SIGTERM),
    ],
)
def test_an_interrupted_run_leaves_no_process_behind(
    arguments: tuple[str, ...], number: signal.Signals
) -> None:
    program = subprocess.Popen(
        command(*arguments, "--agents", "4", "--hosts", "2"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    children: Sequence[psutil.Process] = []
    try:
        deadline = time.monotonic() + 30
        while len(children) < 4:  # broker, router, two hosts
            assert program.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
            children = psutil.Process(program.pid).children(recursive=True)
        program.send_signal(number)
        out, _ = program.communicate(timeout=30)
    finally:
        program.kill()
        program.wait()
    assert program.returncode == 130
    assert out == b""
    # A zombie has ended: whoever inherits it (process 1 of a container, say) has only not collected it yet.
    ended = (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    assert not [child for child in children if child.is_running() and child.status() not in ended]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("routing.py", "--agents", "1"), 65, "--agents 2"),
        (("routing.py", "--agents", "3", "--hosts", "4"), 65, "4 hosts for 3 agents"),
        (("routing.py", "--rate", "0"), 2, "above zero"),
        (("routing.py", "--routers-list", "1,0"), 2, "above zero"),
        (("routing.py", "--presigned"), 65, "--key-scope agent"),
        (("broadcast.py", "--agents", "1", "--hosts", "1"), 65, "--agents 2"),
        (("broadcast.py", "--pause", "0"), 2, "above zero"),
        (("envelope.py", "--seconds", "nan"), 2, "above zero"),
        (("agents.py", "--agents", "3000", "--hosts", "2"), 65, "1 to 1024"),
    ],
)
def test_what_cannot_be_measured_is_said_in_a_line(arguments: tuple[str, ...], code: int, says: str) -> None:
    ended = subprocess.run(command(*arguments), capture_output=True, text=True, check=False, timeout=30)
    assert ended.returncode == code
    assert ended.stdout == ""
    assert says in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.slow
def test_missions_are_coordinated_and_their_efficiency_is_told() -> None:
    parsed = report("missions.py", *("--agents", "6", "--hosts", "2", "--missions", "2", "--work", "0.5"))
    results = parsed["results"]
    assert (results["missions"], results["complete"], results["objectives"]) == (2, 2, 6)
    assert set(results["coordination_ms"]) == LATENCY
    assert 0 < results["coordination_ms"]["p50"] <= results["coordination_ms"]["p99"]
    assert 0 < results["efficiency_least"] <= results["efficiency"] <= 1
    assert results["first"]["missions"] == 1


def test_refinement_decides_split_votes_that_would_stay_split() -> None:
    parsed = report("refinement.py", "--agents", "30", "--votes", "10", "--options", "3,8")
    points = parsed["results"]["points"]
    assert [(point["options"], point["split"]) for point in points] == [(3, 10)] * 5 + [(8, 10)] * 5
    assert all(0 <= point["decided_share_without"] <= point["decided_share"] <= 1 for point in points)
    assert points[-1]["decided_share"] > points[-1]["decided_share_without"]


@pytest.mark.slow
def test_decisions_are_made_though_some_agents_are_hostile_and_leaders_die() -> None:
    parsed = report(
        "consensus.py",
        *("--agents", "20", "--hosts", "4", "--instances", "4", "--byzantine", "0.3", "--decisions", "6"),
        *("--kill-leader", "--kills", "1"),
    )
    results = parsed["results"]
    assert (results["decided"], results["closed"], results["agreement_violations"]) == (6, 0, 0)
    assert (results["accuracy"], results["hostile"], results["instances_that_contradict"]) == (1.0, 6, 0)
    assert results["certificates_verified"] == 6
    assert 0 < results["accused"] <= results["equivocators"]
    assert results["framed"] == 0
    assert set(results["decision_ms"]) == set(results["floor_ms"]) == LATENCY
    assert results["failover"]["kills"] == 1


@pytest.mark.slow
def test_ballots_that_agents_sign_for_themselves_are_measured_for_several_fleets() -> None:
    parsed = report(
        "consensus.py",
        *("--mode", "live", "--key-scope", "agent", "--hosts", "2", "--sweep", "4,9", "--decisions", "3"),
    )
    points = parsed["results"]["points"]
    assert [(point["agents"], point["keys"], point["decided"]) for point in points] == [(4, 3, 3), (9, 8, 3)]
    assert all(point["over_floor"] > 0 for point in points)


@pytest.mark.slow
def test_a_killed_hosts_work_is_recovered_and_none_is_lost() -> None:
    parsed = report(
        "recovery.py",
        *("--agents", "14", "--hosts", "2", "--kills", "1", "--objectives", "7", "--work", "4"),
    )
    results = parsed["results"]
    assert (results["kills"], results["lost"], results["complete"]) == (1, 0, 1)
    assert set(results["recovery_ms"]) == LATENCY
    assert results["recovery_ms"]["max"] > 0
    assert results["taken_over"] >= results["by_kill"][0]["objectives"] > 0
