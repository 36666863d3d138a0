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
    ended = subprocess.run(command(*arguments), capture_output=True, text=True, check=False, timeout=100)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("\n") == 1
    parsed: dict[str, Any] = json.loads(ended.stdout)
    assert set(parsed) == {"program", "parameters", "environment", "results"}
    assert set(parsed["environment"]) == ENVIRONMENT
    return parsed


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_no_process_behind(number: signal.Signals) -> None:
    program = subprocess.Popen(
        command("routing.py", "--agents", "4", "--hosts", "2", "--rate", "50", "--seconds", "60"),
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
        (("envelope.py", "--seconds", "nan"), 2, "above zero"),
    ],
)
def test_what_cannot_be_measured_is_said_in_a_line(arguments: tuple[str, ...], code: int, says: str) -> None:
    ended = subprocess.run(command(*arguments), capture_output=True, text=True, check=False, timeout=30)
    assert ended.returncode == code
    assert ended.stdout == ""
    assert says in ended.stderr
    assert "Traceback" not in ended.stderr
