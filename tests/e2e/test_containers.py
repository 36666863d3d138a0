"""The stack in containers, by the files that users get: built, started, used, scaled, killed, and told wrong things.

One stack serves all tests of this module, in their order.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import containers
import pytest
from containers import ROOT, TOCSIN, VERSION, ComposeStack, compose_stack, crash, trouble
from support import SHARED, eventually
from unit.workflow.workflow_cases import request

from tocsin.bus import Bus, Context, Credentials
from tocsin.contracts.analysis import AssessmentMade
from tocsin.contracts.catalogue import DELIVER_ROLE, EVENT, ROUTE, THREAT_ALERT, WORKFLOW_SUBMIT
from tocsin.contracts.identifiers import Priority, Role, ServiceName, Severity, SpiffeId
from tocsin.contracts.routing import ThreatAlert
from tocsin.crypto import Authority, LocalKey, select_backend
from tocsin.evidence.verification import verify
from tocsin.telemetry import Metrics

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(containers.BUILD_TIMEOUT_S),
    pytest.mark.skipif(containers.why_not() is not None, reason=str(containers.why_not())),
]

SERVICES = (
    "router",
    "fleet",
    "consensus-0",
    "consensus-1",
    "consensus-2",
    "consensus-3",
    "workflow",
    "balancer",
    "worker",
    "qpu-manager",
    "monitor",
    "gateway",
    "host-1",
    "host-2",
    "broker",
)
ANY_COPY = {"TOCSIN_INSTANCE": "*"}
CREDENTIALS = "/run/tocsin/credentials"
HOST = "/run/tocsin/host"
STATE = "/var/lib/tocsin"
SCRATCH = "/tmp/state"  # noqa: S108 - in a container of this test's own
USER = "10001:10001"
IMAGES = ("broker", "core", "fleet", "agents", "gateway", "worker", "quantum")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComposeStack]:
    with compose_stack(tmp_path_factory.mktemp("containers")) as running:
        yield running


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


# --- What is there ----------------------------------------------------------------------------


def test_every_container_is_healthy_and_has_no_rights(stack: ComposeStack) -> None:
    running = {container.labels["com.docker.compose.service"]: container for container in stack.containers()}
    assert set(running) == {*SERVICES, containers.ONCE}
    password = stack.installation.broker_token.read_text()
    for name, container in running.items():
        host, config = container.attrs["HostConfig"], container.attrs["Config"]
        assert config["User"] == USER, name
        assert host["ReadonlyRootfs"], name
        assert host["CapDrop"] == ["ALL"], name
        assert password not in json.dumps([config["Env"], config["Cmd"], config["Labels"]]), name
        for bindings in (host["PortBindings"] or {}).values():
            assert {binding["HostIp"] for binding in bindings} == {"127.0.0.1"}, name


def test_only_the_quantum_image_carries_qiskit(stack: ComposeStack) -> None:
    asks = "import importlib.util as u; print([m for m in ('qiskit', 'sklearn', 'pip') if u.find_spec(m)])"
    carried = {}
    for image in IMAGES:
        said = stack.engine.containers.run(
            f"tocsin-{image}:{VERSION}", ["python3", "-c", asks], remove=True, network_disabled=True
        )
        carried[image] = said.decode().strip()
    assert carried == {
        **dict.fromkeys(("broker", "core", "fleet", "agents", "gateway"), "[]"),
        "worker": "['sklearn']",
        "quantum": "['qiskit', 'sklearn']",
    }


# --- The main job, watched from outside --------------------------------------------------------


def test_the_main_job_passes_and_a_tool_of_the_users_verifies_it(
    stack: ComposeStack, runs: Path, tmp_path: Path
) -> None:
    page = (ROOT / "docs" / "how-to" / "subscribe-your-own-tool.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert "tocsin." not in program.replace("tocsin.v1", "")
    (tmp_path / "watch.py").write_text(program)
    reader_token = stack.folder / "broker" / "reader-token"
    told = [stack.nats_url, str(reader_token), str(stack.folder / "ca" / "root.pem")]
    with subprocess.Popen(
        [sys.executable, str(tmp_path / "watch.py"), *told],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as tool:
        try:
            assert tool.stderr is not None
            assert tool.stderr.readline().strip() == "listening"
            report = stack.demo(runs)
            time.sleep(1)
            tool.terminate()
            heard, complaints = tool.communicate(timeout=10)
        finally:
            tool.kill()
    assert_whole_story(report)
    assert complaints == ""
    for event in ("event.workflow.assessment", "event.router.delivery", "event.agent.actuation"):
        assert f"\n{event} spiffe://tocsin.local/" in heard


def assert_whole_story(report: dict[str, Any]) -> None:
    assert report["outcome"] == "responded"
    assert report["delivery"]["complete"]
    assert report["delivery"]["due"] == report["delivery"]["delivered"] == 40
    assert len(report["actuations"]) == 6


def test_three_routers_share_the_load(stack: ComposeStack) -> None:
    stack.compose.run("up", "--detach", "--no-build", "--scale", "router=3")
    stack.wait_healthy()
    assert len(stack.containers("router")) == 3
    before = routed(stack)
    sent = 300
    arrived = asyncio.run(sent_to_itself(stack, sent))
    assert sorted(arrived) == list(range(sent))
    shares = {name: count - before.get(name, 0) for name, count in routed(stack).items()}
    assert set(shares) == {"service.router.0", "service.router.1", "service.router.2"}
    assert min(shares.values()) > sent / 10, shares  # the queue group draws by chance


def routed(stack: ComposeStack) -> dict[str, int]:
    """Return how many messages each router has forwarded."""
    time.sleep(2.5)  # every process publishes its figures each second
    return {
        process["process"]: sum(n for name, n in process["counters"].items() if name.startswith("routed."))
        for process in stack.rest("figures")["processes"]
        if process["process"].startswith("service.router.")
    }


async def sent_to_itself(stack: ComposeStack, count: int) -> list[int]:
    """Send through the routers as an agent of our own, to a role that it listens for; return what arrived.

    Nobody enrolled it, so no message may name it as the audience.
    """
    agent = SpiffeId.agent("tocsin.local", Role.HUNTER, "echo-01")
    key = LocalKey.generate(select_backend())
    certificate = stack.installation.root().issue(
        ids=[agent],
        public_key=key.signer.public_key,
        algorithm=key.algorithm,
        generation=1,
        now=datetime.now(UTC),
    )
    own = Credentials(agent, key, certificate.chain_der, stack.installation.root_pem)
    arrived: list[int] = []

    async def on_alert(alert: ThreatAlert, _: Context) -> None:
        arrived.append(int(alert.summary))

    async with Bus(stack.installation.bus_settings(stack.nats_url), own, Metrics()) as bus:
        await bus.subscribe(DELIVER_ROLE, on_alert, at={"role": Role.CANARY.value})
        await bus.flush()
        at = {"type": THREAT_ALERT.name, "priority": Priority.NORMAL.token, "agent": agent.name}
        for number in range(count):
            alert = ThreatAlert(severity=Severity.LOW, summary=str(number))
            await bus.publish(ROUTE, THREAT_ALERT, alert, audience=f"role.{Role.CANARY.value}", at=at)
        await eventually(lambda: len(arrived) >= count, within_s=20)
    return arrived


def test_all_other_services_without_state_scale(stack: ComposeStack, runs: Path) -> None:
    names = ("router", "fleet", "workflow", "balancer", "worker", "qpu-manager", "monitor")
    scales = [word for name in names for word in ("--scale", f"{name}=2")]
    stack.compose.run("up", "--detach", "--no-build", *scales)
    try:
        stack.wait_healthy()
        assert {name: len(stack.containers(name)) for name in names} == dict.fromkeys(names, 2)
        assert_whole_story(stack.demo(runs, *given("zeek/port-scan-vertical.conn.log")))
    finally:
        stack.compose.run("up", "--detach", "--no-build")  # without --scale: one each again
        stack.wait_healthy()


def given(data: str) -> tuple[str, str]:
    if not (SHARED / "data" / data).exists():
        pytest.skip(f"the capture {data} is not beside this checkout")
    return "--input", str(SHARED / "data" / data)


# --- Kills ------------------------------------------------------------------------------------


# nats-py drops the socket of an attempt to connect that a killed broker cut off, and does not close it.
@pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <function StreamWriter:pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.parametrize("service", SERVICES)
def test_a_killed_container_comes_back_and_nothing_is_lost(stack: ComposeStack, service: str) -> None:
    (container,) = stack.containers(service)
    agents = keys_of(stack)
    kept = stack.ask(last_sequences)
    begun_ns = time.time_ns()
    number = SERVICES.index(service)
    starts = container.attrs["State"]["StartedAt"]

    async def submit(bus: Bus) -> None:
        await bus.request(WORKFLOW_SUBMIT, request(number), timeout_s=5.0)
        crash(container)

    stack.ask(submit)

    def came_back() -> bool:
        return trouble(container) is None and container.attrs["State"]["StartedAt"] != starts

    stack.wait_until(came_back, within_s=60, what=f"{service} did not come back")

    async def assessed(bus: Bus) -> bool:
        at = {"service": "workflow", "kind": "assessment"}
        told = [body for body, _ in await bus.since(EVENT, start_ns=begun_ns, at=at)]
        return any(
            isinstance(body, AssessmentMade)
            and body.incident == number.to_bytes(16)
            and body.assessment is not None
            for body in told
        )

    stack.wait_until(lambda: stack.ask(assessed), within_s=60, what="what was accepted was not done")
    stack.wait_until(lambda: keys_of(stack) == agents, within_s=30, what="not the same agents as before")
    after = stack.ask(last_sequences)
    assert all(after[stream] >= sequence for stream, sequence in kept.items()), (kept, after)


def keys_of(stack: ComposeStack) -> dict[str, str]:
    """Return the key of every agent that lives."""
    entries = stack.rest("agents")["entries"]
    return {e["agent"]["name"]: e["agent"]["key_id"] for e in entries if e["state"] == "healthy"}


async def last_sequences(bus: Bus) -> dict[str, int]:
    js = bus.connection.js
    return {
        name: (await js.stream_info(name)).state.last_seq for name in ("ALERTS", "DECISIONS", "EVENTS", "AUDIT")
    }


def test_after_the_kills_decisions_stand_and_the_main_job_passes(stack: ComposeStack, runs: Path) -> None:
    assert_whole_story(stack.demo(runs, *given("zeek/apt29-nashua.conn.log")))
    certificates = sorted(runs.glob("*/certificate*.tocsin"))
    assert len(certificates) >= 3  # this run's, and those before the kills
    root_pem = stack.installation.root_pem
    epochs = set()
    for file in certificates:
        verified = verify(file.read_bytes(), root_pem)
        epochs.add(verified.epoch)
        name = verified.decision.hex()

        async def held(bus: Bus, name: str = name) -> bytes:
            return await bus.get_certificate(name)

        assert verify(stack.ask(held), root_pem).decision == verified.decision
    assert epochs == {0}  # the same agents with the same keys: nobody had to be seated anew


def test_a_stack_without_its_broker_is_unhealthy_and_mends(stack: ComposeStack) -> None:
    (broker,), (router,) = stack.containers("broker"), stack.containers("router")
    broker.stop()
    stack.wait_until(
        lambda: trouble(router) == "running, unhealthy", within_s=60, what="the router calls itself healthy"
    )
    broker.start()
    stack.wait_healthy()


def test_no_log_holds_a_traceback(stack: ComposeStack) -> None:
    for container in stack.containers():
        logs = stack.logs(str(container.name))
        assert "Traceback" not in logs, (container.name, logs[-3000:])
        assert '"event":"task_failed"' not in logs, container.name


# --- Bad input --------------------------------------------------------------------------------


def ends(
    stack: ComposeStack, image: str, module: str, environment: dict[str, str], mounts: dict[Path, str]
) -> tuple[int, str]:
    """Run a container as compose.yaml would; return its code and the one line that is no log."""
    volumes = {str(source): {"bind": target, "mode": "ro"} for source, target in mounts.items()}
    volumes |= {str(stack.installation.broker_token): {"bind": "/run/tocsin/broker-token", "mode": "ro"}}
    container = stack.engine.containers.create(
        f"tocsin-{image}:{VERSION}",
        ["python", "-m", module],
        environment={
            "TOCSIN_NATS_URL": "nats://broker:4222",
            "TOCSIN_NATS_TOKEN_FILE": "/run/tocsin/broker-token",
            "TOCSIN_CREDENTIALS_DIR": CREDENTIALS,
            "TOCSIN_CONNECT_TIMEOUT_S": "5",
            **environment,
        },
        volumes=volumes,
        network=f"{stack.project}_bus",
        read_only=True,
        tmpfs={"/tmp": ""},  # noqa: S108 - as compose.yaml has it
        user=USER,
    )
    try:
        container.start()
        code = container.wait(timeout=60)["StatusCode"]
        said = [line for line in container.logs().decode().splitlines() if not line.startswith("{")]
        assert len(said) == 1, said
        return code, said[0]
    finally:
        container.remove(force=True, v=True)


def opened(folder: Path) -> Path:
    """Let the containers' user read a folder, as `tocsin init` does."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


def router_credentials(folder: Path, root: Authority, now: datetime, lifetime: timedelta) -> Path:
    router = SpiffeId.service("tocsin.local", ServiceName.ROUTER, "0")
    key = LocalKey.generate(select_backend())
    certificate = root.issue(
        ids=[router],
        public_key=key.signer.public_key,
        algorithm=key.algorithm,
        generation=1,
        now=now,
        lifetime=lifetime,
    )
    Credentials(router, key, certificate.chain_der, root.certificate_pem).save(folder, "router-0")
    return opened(folder)


def test_missing_certificates_are_said(stack: ComposeStack, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    code, line = ends(stack, "core", "tocsin.router", {"TOCSIN_INSTANCE": "*"}, {opened(empty): CREDENTIALS})
    assert code == 69
    assert "no identity of router" in line
    assert "tocsin init" in line


def test_an_expired_certificate_is_said(stack: ComposeStack, tmp_path: Path) -> None:
    past = datetime.now(UTC) - timedelta(days=60)
    root = Authority.create_root("tocsin.local", now=past)
    folder = router_credentials(tmp_path / "expired", root, past, timedelta(days=30))
    code, line = ends(stack, "core", "tocsin.router", {}, {folder: CREDENTIALS})
    assert code == 76
    assert "router/0 ended at" in line
    assert "tocsin init" in line


def test_another_installations_root_is_said(stack: ComposeStack, tmp_path: Path) -> None:
    now = datetime.now(UTC)
    folder = router_credentials(
        tmp_path / "other", Authority.create_root("tocsin.local", now=now), now, timedelta(days=30)
    )
    (folder / "ca.pem").write_bytes(stack.installation.root_pem)
    code, line = ends(stack, "core", "tocsin.router", {}, {folder: CREDENTIALS})
    assert code == 76
    assert "root" in line


def test_a_host_with_another_root_than_its_tokens_is_said(stack: ComposeStack, tmp_path: Path) -> None:
    wrong = tmp_path / "credentials"
    wrong.mkdir()
    (wrong / "ca.pem").write_bytes(Authority.create_root("tocsin.local", now=datetime.now(UTC)).certificate_pem)
    code, line = host_ends(stack, {opened(wrong): CREDENTIALS}, state=SCRATCH, credentials=CREDENTIALS)
    assert code == 76
    assert "ca.pem is not the root" in line


def host_ends(
    stack: ComposeStack, mounts: dict[Path, str], *, state: str, credentials: str = f"{HOST}/credentials"
) -> tuple[int, str]:
    told = {
        "TOCSIN_CREDENTIALS_DIR": credentials,
        "TOCSIN_SETTINGS_FILE": f"{HOST}/env",
        "TOCSIN_ENROL_TOKENS_FILE": f"{HOST}/tokens.json",
        "TOCSIN_STATE_DIR": state,
    }
    return ends(stack, "agents", "tocsin.agent", told, {stack.installation.host("host-1"): HOST} | mounts)


def test_a_volume_that_cannot_be_written_is_said(stack: ComposeStack, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    code, line = host_ends(stack, {opened(volume): STATE}, state=STATE)
    assert code == 69
    assert "cannot write to /var/lib/tocsin" in line


def test_an_older_state_folder_is_said(stack: ComposeStack, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "version").write_text("0\n")
    mounts = {
        opened(volume): STATE,
        stack.installation.credentials(ServiceName.CONSENSUS): CREDENTIALS,
    }
    told = {"TOCSIN_STATE_DIR": STATE}
    code, line = ends(stack, "core", "tocsin.consensus", told, mounts)
    assert code == 73
    assert "has layout '0'" in line


def test_a_port_in_use_is_said(stack: ComposeStack) -> None:
    credentials = stack.installation.credentials(ServiceName.GATEWAY)
    told = ANY_COPY | {"TOCSIN_API_HOST": "0.0.0.0", "TOCSIN_API_PORT": "9100"}  # noqa: S104 - the health port's
    code, line = ends(stack, "gateway", "tocsin.gateway", told, {credentials: CREDENTIALS})
    assert code == 69
    assert "cannot serve the API on 0.0.0.0 port 9100" in line


def test_a_wrong_password_is_said(stack: ComposeStack, tmp_path: Path) -> None:
    wrong = tmp_path / "token"
    wrong.write_text("not-the-password")
    mounts: dict[Path, str] = {
        stack.installation.credentials(ServiceName.ROUTER): CREDENTIALS,
        wrong: "/run/tocsin/wrong",
    }
    wrong.chmod(0o644)
    told = ANY_COPY | {"TOCSIN_NATS_TOKEN_FILE": "/run/tocsin/wrong"}
    code, line = ends(stack, "core", "tocsin.router", told, mounts)
    assert code == 69
    assert "the broker refuses the credentials" in line


def test_a_folder_that_tocsin_init_has_not_made_is_said(tmp_path: Path) -> None:
    done = subprocess.run(
        [*TOCSIN, "demo", "--remote", "nats://127.0.0.1:1", "--state", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=30,
        check=False,
    )
    assert done.returncode == 69
    assert "tocsin init" in done.stderr
