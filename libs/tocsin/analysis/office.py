"""The generator of the baseline ``office-v1``: five-minute windows of hosts that nothing is wrong with.

It is a model, not a recording, and says so by its name: no capture of ours is quiet enough, large enough and
free enough to ship. What it claims is only that these are plausible shapes of ordinary work; whoever has a
quiet capture of their own fits a baseline on it (:meth:`tocsin.analysis.baseline.Baseline.fit_from`).

Each window is made of flows by a profile, and its features are computed by the code that computes those of
real traffic, so that both mean the same. The reasoning, by profile and its share of the windows:

* browsing (26%): a person reads; pages come in bursts, each a DNS query and some connections to a handful of
  sites on 443 and 80; 5 to 25% end by reset, which is how browsers drop connections that they no longer need
  (15 to 25% of TCP connections: Arlitt and Williamson, "An analysis of TCP reset behaviour on the Internet",
  CCR 35(1), 2005), and one in a hundred is refused or unanswered.
* idle (14%): a workstation alone: some DNS, an update check, a push channel that reconnects.
* asleep (8%): a laptop or phone that wakes for one to three connections. Few and alone is ordinary.
* mail and files (14%): mail by 993 and 587, a directory (88, 389), a file share (445).
* developer (8%): git and ssh, package downloads, an API that is called in a loop.
* server (10%): an application that calls its database and a cache all the time, and an API outside.
* mail server (5%): port 25 to many peers, of which up to a sixth do not answer.
* file server (4%): directory, DNS, one large backup stream.
* printer (4%): nearly silent; SNMP traps and a scan sent by mail.
* poller (4%): monitoring; a dozen hosts and four ports, strictly periodic, one or two of them down.
* appliance (3%): a camera or phone that calls its cloud strictly periodically. Regularity by itself is
  ordinary, and a model that is fitted on this must not be surprised by it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

from tocsin.analysis.windows import WINDOW_S, Window, features_of
from tocsin.contracts.observations import Flow, FlowState, WindowFeatures

WINDOWS = 200
"""What the classical models are fitted on: enough for an isolation forest (its subsample is 256), and few
enough for a task on the bus (a kernel matrix has at most 256 rows)."""

SEED = 20_210_606
"""Any number would do; fixed, so that everybody's office-v1 is the same."""

_RESOLVER, _DIRECTORY, _FILES, _MAIL = "10.20.0.53", "10.20.0.10", "10.20.0.20", "10.20.0.25"


class _Desk:
    """Writes the flows of one host in one window."""

    def __init__(self, random: Random, host: str) -> None:
        self.random = random
        self.host = host
        self.flows: list[Flow] = []

    def call(
        self,
        at_s: float,
        peer: str,
        port: int,
        *,
        sent: float,
        received: float,
        fails: float = 0.01,
        resets: float = 0.01,
    ) -> None:
        """Add one connection.

        Args:
            at_s: Start; cut to the window.
            peer: Destination.
            port: Destination port; 53, 161 and 162 are UDP, the rest TCP.
            sent: Median of the bytes sent; log-normal with sigma 1.
            received: The same of those received.
            fails: Probability that it is refused or not answered.
            resets: Probability that it ends by reset (TCP).
        """
        udp = port in {53, 161, 162}
        outcome = self.random.random()
        failure = FlowState.UNANSWERED if udp or self.random.random() < 0.5 else FlowState.REJECTED
        end = FlowState.RESET if not udp and outcome < fails + resets else FlowState.ESTABLISHED
        state = failure if outcome < fails else end
        answered = state is not failure
        self.flows.append(
            Flow(
                at_s=min(max(at_s, 0.0), WINDOW_S),
                source=self.host,
                source_port=self.random.randrange(49152, 65536),
                destination=peer,
                destination_port=port,
                protocol="udp" if udp else "tcp",
                duration_s=self.random.lognormvariate(0, 1.5),
                bytes_sent=int(sent * self.random.lognormvariate(0, 1)),
                bytes_received=int(received * self.random.lognormvariate(0, 1)) if answered else 0,
                state=state,
            )
        )

    def sites(self, count: int) -> list[str]:
        """Return addresses outside (of 11.0.0.0/8, so that none is ours)."""
        return [f"11.{self.random.randrange(256)}.{self.random.randrange(256)}.7" for _ in range(count)]

    def lookups(self, count: int) -> None:
        for _ in range(count):
            self.call(self.any_time(), _RESOLVER, 53, sent=40, received=120, fails=0.01)

    def any_time(self) -> float:
        return self.random.uniform(0, WINDOW_S)

    def every(self, period_s: float, jitter: float) -> list[float]:
        """Return the times of a periodic job in the window; jitter is a share of the period."""
        first = self.random.uniform(0, period_s)
        count = int((WINDOW_S - first) / period_s) + 1
        return [first + i * period_s + self.random.uniform(0, jitter * period_s) for i in range(count)]


def _browsing(desk: _Desk) -> None:
    resets = desk.random.uniform(0.05, 0.25)
    sites = desk.sites(desk.random.randint(5, 25))
    for _ in range(desk.random.randint(1, 8)):
        page_s = desk.any_time()
        for _ in range(desk.random.randint(3, 14)):
            at_s = page_s + desk.random.expovariate(0.5)
            if desk.random.random() < 0.4:
                desk.call(at_s, _RESOLVER, 53, sent=40, received=120, fails=0.01)
            port = 80 if desk.random.random() < 0.12 else 443
            desk.call(at_s, desk.random.choice(sites), port, sent=2_000, received=20_000, resets=resets)


def _idle(desk: _Desk) -> None:
    desk.lookups(desk.random.randint(1, 8))
    for site in desk.sites(desk.random.randint(1, 4)):
        desk.call(desk.any_time(), site, 443, sent=1_500, received=6_000, resets=0.15)
    if desk.random.random() < 0.4:
        push = desk.sites(1)[0]
        for at_s in desk.every(desk.random.uniform(30, 120), 0.2):
            desk.call(at_s, push, 5228, sent=300, received=300)


def _asleep(desk: _Desk) -> None:
    peers = [(_RESOLVER, 53), *((site, 443) for site in desk.sites(2))]
    for peer, port in desk.random.sample(peers, desk.random.randint(1, 3)):
        desk.call(desk.any_time(), peer, port, sent=400, received=900)


def _mail_and_files(desk: _Desk) -> None:
    desk.lookups(desk.random.randint(2, 10))
    for at_s in desk.every(60, 0.05):
        desk.call(at_s, _MAIL, 993, sent=1_200, received=4_000)
    for _ in range(desk.random.randint(1, 6)):
        desk.call(desk.any_time(), _FILES, 445, sent=20_000, received=200_000)
        desk.call(desk.any_time(), _DIRECTORY, desk.random.choice((88, 389)), sent=1_500, received=1_800)
    if desk.random.random() < 0.5:
        desk.call(desk.any_time(), _MAIL, 587, sent=60_000, received=1_000)


def _developer(desk: _Desk) -> None:
    desk.lookups(desk.random.randint(4, 25))
    forge, registry, api = desk.sites(3)
    for _ in range(desk.random.randint(1, 6)):
        desk.call(desk.any_time(), forge, 22, sent=6_000, received=30_000)
    start_s = desk.any_time()
    for i in range(desk.random.randint(5, 60)):
        desk.call(start_s + i * 0.3, registry, 443, sent=1_200, received=300_000)
    for at_s in desk.every(desk.random.uniform(5, 20), 0.5):
        desk.call(at_s, api, desk.random.choice((443, 8080)), sent=900, received=3_000, fails=0.06)


def _server(desk: _Desk) -> None:
    desk.lookups(desk.random.randint(0, 10))
    for _ in range(desk.random.randint(30, 160)):
        desk.call(desk.any_time(), "10.20.1.5", 5432, sent=3_000, received=9_000, fails=0.003)
    for _ in range(desk.random.randint(5, 50)):
        desk.call(desk.any_time(), "10.20.1.6", 6379, sent=400, received=900, fails=0.003)
    for site in desk.sites(desk.random.randint(0, 3)):
        desk.call(desk.any_time(), site, 443, sent=3_000, received=5_000)


def _mail_server(desk: _Desk) -> None:
    desk.lookups(desk.random.randint(15, 60))
    for peer in desk.sites(desk.random.randint(8, 35)):
        desk.call(desk.any_time(), peer, 25, sent=40_000, received=800, fails=desk.random.uniform(0.02, 0.16))


def _file_server(desk: _Desk) -> None:
    desk.lookups(desk.random.randint(1, 6))
    for _ in range(desk.random.randint(2, 12)):
        desk.call(desk.any_time(), _DIRECTORY, desk.random.choice((88, 389, 445)), sent=1_500, received=2_000)
    desk.call(desk.any_time(), "10.20.0.30", 873, sent=2e8, received=200_000)


def _printer(desk: _Desk) -> None:
    desk.lookups(desk.random.randint(0, 2))
    for _ in range(desk.random.randint(1, 4)):
        desk.call(desk.any_time(), "10.20.0.40", 162, sent=120, received=0, fails=0.5)
    if desk.random.random() < 0.3:
        desk.call(desk.any_time(), _MAIL, 587, sent=900_000, received=1_000)


def _poller(desk: _Desk) -> None:
    down = {desk.random.randrange(12), desk.random.randrange(12)}
    for host in range(desk.random.randint(8, 12)):
        port = (22, 161, 443, 9100)[host % 4]
        for at_s in desk.every(desk.random.choice((30, 60)), 0.02):
            fails = 0.9 if host in down else 0.005
            desk.call(at_s, f"10.20.2.{host + 1}", port, sent=500, received=4_000, fails=fails)


def _appliance(desk: _Desk) -> None:
    cloud = desk.sites(1)[0]
    desk.lookups(desk.random.randint(0, 3))
    for at_s in desk.every(desk.random.choice((10, 20, 30, 60)), 0.05):
        desk.call(at_s, cloud, desk.random.choice((443, 8883)), sent=600, received=400, fails=0.01)


_PROFILES: tuple[tuple[Callable[[_Desk], None], int], ...] = (
    (_browsing, 26), (_idle, 14), (_asleep, 8), (_mail_and_files, 14), (_developer, 8), (_server, 10),
    (_mail_server, 5), (_file_server, 4), (_printer, 4), (_poller, 4), (_appliance, 3),
)  # fmt: skip


def office_traffic(count: int = WINDOWS, seed: int = SEED) -> Iterator[Window[Flow]]:
    """Generate the flows of ``count`` windows; the same for the same seed, on every machine."""
    random = Random(seed)  # noqa: S311  (a model of traffic, not a secret)
    profiles, weights = zip(*_PROFILES, strict=True)
    for i in range(count):
        desk = _Desk(random, f"10.20.{10 + i // 250}.{1 + i % 250}")
        random.choices(profiles, weights)[0](desk)
        yield Window(desk.host, 0.0, WINDOW_S, desk.flows)


def office_windows(count: int = WINDOWS, seed: int = SEED) -> tuple[WindowFeatures, ...]:
    """Return the features of :func:`office_traffic`."""
    return tuple(features_of(window) for window in office_traffic(count, seed))
