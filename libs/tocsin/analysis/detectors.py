"""Rules over one window of a host's connections: scan, brute force, beacon, exfiltration.

Every threshold is a constant with its source beside it, chosen from the literature and not on a capture.
Scores are on one scale: 0.5 where the rule just holds, towards 1 as the evidence grows; below its threshold a
rule says nothing. A score is not a probability of malice.

What these rules do not see: a scan that gets answers everywhere, or slower than the longest window; a beacon
with more jitter than :data:`MIN_REGULARITY` allows; anything inside DNS or NTP; password guessing over many
sources. What they take for an attack and is none: a client that keeps calling a dead server of its own, a
load balancer's health check that ends by reset, a vulnerability scanner that was ordered, and whatever is
strictly periodic by design: in the model of ``tocsin.analysis.office`` 5% of the windows hold such a false
beacon, most from appliances and pollers, up to a score of 0.9 where a poller's target is down.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp, lgamma, log, log10
from statistics import fmean, median

from tocsin.analysis import techniques
from tocsin.analysis.hosts import is_internal
from tocsin.analysis.windows import FAILED, WINDOW_S, Window, attempt_times, densest, features_of, regularity
from tocsin.contracts.observations import Finding, FindingKind, Flow, FlowState, Technique

BENIGN_FAILURE = 0.2
"""Share of a benign host's first contacts that fail, at most: theta_0 = 0.8 of Jung et al., "Fast portscan
detection using sequential hypothesis testing" (IEEE S&P 2004, section 4.2)."""

SCAN_LEVEL = 0.05
"""Level of the scan test. Jung et al. take 0.01 between two simple hypotheses; here the null is already the
worst benign host (an ordinary one fails far below BENIGN_FAILURE), so that false alarms are much rarer than
the level. Said openly: of the project's captures port-scan-horizontal (10 of 25 failed, p = 0.017) is found at
0.05 and would not be at 0.01. Not corrected for the number of ports and peers looked at in a window."""

MIN_FAILED_CONTACTS = 5
"""Fewest failed contacts that make a scan: Slips's minimum of destinations (modules/network_discovery). Zeek's
25 hosts and 15 ports (policy/misc/scan.zeek) take no account of how many contacts succeed."""

DYNAMIC_PORTS_FROM = 49152
"""RFC 6335 section 6: no service has a fixed port here, so unanswered UDP to it is a late or stray reply."""

MIN_GUESSES = 20
"""Connections to one login service: Zeek's limit of failed FTP logins, which it allows in 15 minutes
(policy/protocols/ftp/detect-bruteforcing.zeek, FTP::bruteforce_threshold); its SSH limit is 30 in 30."""

GUESS_S = 15.0
"""Longest median connection of guessing, seconds: OpenSSH's six attempts (MaxAuthTries) at about 2 s each."""

GUESS_BYTES = 20_000
"""Largest median connection of guessing, both directions: an SSH key exchange with six attempts is 5 to 8 KB,
a TLS handshake with RDP's about as much; a session that does something soon has more."""

LOGIN_PORTS = {
    21: "FTP", 22: "SSH", 23: "Telnet", 445: "SMB", 2222: "SSH", 2323: "Telnet", 3389: "RDP", 5900: "VNC",
    5985: "WinRM", 5986: "WinRM",
}  # fmt: skip
"""Services where a person logs in (IANA), and the usual second ports of SSH and Telnet."""

PROGRAM_LOGIN_PORTS = {
    110: "POP3", 143: "IMAP", 389: "LDAP", 465: "SMTP", 587: "SMTP", 993: "IMAP", 995: "POP3", 1433: "MSSQL",
    3306: "MySQL", 5432: "PostgreSQL",
}  # fmt: skip
"""Services where programs log in all day long. From hosts of ours many short connections to them are ordinary
work, which a log of connections cannot tell from guessing; only subjects from outside are judged by them."""

LOGIN_SERVICES = frozenset({"ftp", "rdp", "rfb", "smb", "ssh", "telnet"})
"""The first by the name that Zeek and Suricata give what they recognise, on whatever port."""

MIN_BEATS = 8
"""Fewest attempts of a beacon: seven intervals. Arrivals at random (exponential intervals) reach
MIN_REGULARITY with 8 attempts in 0.6% of windows, with 12 in 0.02% (simulated, 20,000 each)."""

MIN_REGULARITY = 0.75
"""Coefficient of variation of at most 1/3. A sleep with a uniform jitter of j has j / (sqrt(12) (1 - j/2)):
0.19 at the 50% that operators commonly set; j = 0.73 is just found. Arrivals at random have 1."""

MIN_BEAT_S = 1.0
"""Shortest mean interval of a beacon, seconds: below it is a burst or a transfer, not a sleep."""

MIN_PERSISTENT = 20
"""Attempts that make persistence: RITA's minimum of connections for a beacon (unique_connection_threshold in
its default configuration)."""

PERSISTENT_FAILED = 0.9
"""Share of failed or aborted attempts that makes persistence: nine in ten fail and the host goes on, where a
client that means well backs off (RFC 8961 section 4)."""

NO_BEACON_PORTS = frozenset({53, 123, 853})
"""DNS and NTP: regular by nature."""

USUAL_PORTS = frozenset(
    {20, 21, 22, 25, 53, 80, 88, 110, 123, 135, 139, 143, 389, 443, 445, 465, 514, 587, 636, 853, 993, 995}
    | {
        1433,
        1883,
        3268,
        3306,
        3389,
        5060,
        5061,
        5222,
        5228,
        5432,
        5985,
        5986,
        6379,
        8009,
        8080,
        8443,
        8883,
        9100,
    }
)
"""Ports that ordinary clients call. A beacon elsewhere is T1571, and scores 0.1 higher."""

MIN_UPLOAD = 500 * 1024 * 1024
"""Bytes from a host of ours to one address outside within a window that make exfiltration: Slips's default of 500 MB
(flowalerts, data_exfiltration_threshold). In a day's window of at most 2,048 connections a host: what is beyond them
is not counted."""

MIN_PRODUCER_RATIO = 0.4
"""(sent - received) / (sent + received), from -1 (only takes) to 1 (only gives): 0.4 is 70:30, the ratio of sending
mail in Bullard, "Producer consumer ratio" (FloCon 2014). A video call is about 0, a download -1."""

MAX_TARGETS = 16
_GROUPS_IN_EVIDENCE = 3


@dataclass(frozen=True, slots=True)
class Suspicion:
    """What a rule says, before it is made a finding."""

    score: float
    technique: Technique
    targets: tuple[str, ...]
    evidence: tuple[str, ...]


def judge(
    window: Window[Flow], source: str, *, kinds: Iterable[FindingKind] = tuple(FindingKind)
) -> list[Finding]:
    """Apply the rules to one window.

    Args:
        window: At least one flow. Where it is longer than five minutes, the finding's features are those of
            its busiest five minutes, so that they compare with a baseline's.
        source: Name of the sensor or file, for the finding.
        kinds: Rules to apply; kinds that are no rules over flows are ignored.
    """
    rules = {
        FindingKind.SCAN: scan,
        FindingKind.BRUTE_FORCE: brute_force,
        FindingKind.BEACON: beacon,
        FindingKind.EXFILTRATION: exfiltration,
    }
    wanted = set(kinds)
    found = [(kind, rule(window)) for kind, rule in rules.items() if kind in wanted]
    return [_finding(kind, suspicion, window, source) for kind, suspicion in found if suspicion]


def _finding(kind: FindingKind, suspicion: Suspicion, window: Window[Flow], source: str) -> Finding:
    times = [flow.at_s for flow in window.items]
    return Finding(
        kind=kind,
        subject=window.host,
        internal=is_internal(window.host),
        targets=suspicion.targets[:MAX_TARGETS],
        score=suspicion.score,
        technique=suspicion.technique,
        evidence=suspicion.evidence,
        features=features_of(window if window.window_s <= WINDOW_S else densest(window)),
        source=source,
        first_s=min(times),
        last_s=max(times),
        connections=len(window.items) + window.not_kept,
    )


# Scan -----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Sweep:
    """Contacts that have a peer (many ports of it) or a port (on many peers) in common."""

    what: str
    contacts: int
    failed: int
    surprise: float
    targets: tuple[str, ...]

    @property
    def line(self) -> str:
        return (
            f"{self.contacts} {self.what} tried, {self.failed} refused or unanswered; a benign host does so "
            f"with a probability of at most 10^-{self.surprise:.1f}"
        )


def scan(window: Window[Flow]) -> Suspicion | None:
    """Recognise a vertical scan (ports of one peer) or a horizontal one (one port of many peers).

    A contact is a (peer, port); it failed if nothing in the window was answered there. The test is binomial:
    as many failures, or more, if each contact failed with BENIGN_FAILURE. With s = -log10 of that probability
    the score is s / (s + 1.3): 0.5 at SCAN_LEVEL, 0.86 at 10^-8.
    """
    answered: dict[tuple[str, int], bool] = {}
    for flow in window.items:
        if _is_probe(flow):
            contact = (flow.destination, flow.destination_port)
            failed = flow.state in {FlowState.REJECTED, FlowState.UNANSWERED}
            answered[contact] = answered.get(contact, False) or not failed
    sweeps = sorted(_sweeps(answered), key=lambda sweep: (-sweep.surprise, sweep.what))
    if not sweeps:
        return None
    technique = techniques.NETWORK_SERVICE_DISCOVERY if is_internal(window.host) else techniques.ACTIVE_SCANNING
    best = sweeps[0]
    return Suspicion(
        best.surprise / (best.surprise - log10(SCAN_LEVEL)),
        technique,
        best.targets,
        (*(sweep.line for sweep in sweeps[:_GROUPS_IN_EVIDENCE]), _pace(window)),
    )


def _is_probe(flow: Flow) -> bool:
    """Tell whether a flow asks for a service: TCP, or UDP that does not look like a reply.

    The price: a UDP scan from a privileged source port, or of dynamic ports, is not seen.
    """
    if flow.protocol == "udp":
        replies = flow.source_port < 1024 <= flow.destination_port
        return not replies and flow.destination_port < DYNAMIC_PORTS_FROM
    return flow.protocol == "tcp"


def _sweeps(answered: dict[tuple[str, int], bool]) -> Iterable[_Sweep]:
    groups: dict[str, list[tuple[str, int]]] = {}
    for peer, port in answered:
        groups.setdefault(f"ports of {peer}", []).append((peer, port))
        groups.setdefault(f"peers on port {port}", []).append((peer, port))
    for what, contacts in groups.items():
        failed = sorted(contact for contact in contacts if not answered[contact])
        if len(failed) < MIN_FAILED_CONTACTS:
            continue
        surprise = -log10_binomial_tail(len(contacts), len(failed), BENIGN_FAILURE)
        if surprise >= -log10(SCAN_LEVEL):
            targets = tuple(sorted({peer for peer, _ in failed}))[:MAX_TARGETS]
            yield _Sweep(what, len(contacts), len(failed), surprise, targets)


def log10_binomial_tail(trials: int, successes: int, p: float) -> float:
    """Return log10 P(X >= successes) for X ~ Binomial(trials, p), 0 < p < 1. In logarithms: no underflow."""
    logs = [
        lgamma(trials + 1) - lgamma(k + 1) - lgamma(trials - k + 1) + k * log(p) + (trials - k) * log(1 - p)
        for k in range(successes, trials + 1)
    ]
    largest = max(logs)
    return min(0.0, (largest + log(sum(exp(value - largest) for value in logs))) / log(10))


def _pace(window: Window[Flow]) -> str:
    times = [flow.at_s for flow in window.items]
    return f"{len(times) + window.not_kept} connections in {max(times) - min(times):.1f} s"


# Brute force -----------------------------------------------------------


def brute_force(window: Window[Flow]) -> Suspicion | None:
    """Recognise password guessing: many short, small connections to one login service that answers.

    Half of them must be answered: a port that refuses takes no password. Score: n / (n + MIN_GUESSES).
    """
    suspected = []
    for (peer, port), flows in sorted(_by_service(window.items).items()):
        if len(flows) < MIN_GUESSES or not _looks_like_login(port, flows, internal=is_internal(window.host)):
            continue
        answered = sum(flow.state in {FlowState.ESTABLISHED, FlowState.RESET} for flow in flows)
        length_s = median(flow.duration_s or 0.0 for flow in flows)
        octets = median(flow.bytes_sent + flow.bytes_received for flow in flows)
        if 2 * answered >= len(flows) and length_s <= GUESS_S and octets <= GUESS_BYTES:
            suspected.append((len(flows), peer, port, length_s, octets))
    if not suspected:
        return None
    count, peer, port, length_s, octets = max(suspected)
    name = LOGIN_PORTS.get(port) or PROGRAM_LOGIN_PORTS.get(port, "login service")
    return Suspicion(
        count / (count + MIN_GUESSES),
        techniques.BRUTE_FORCE,
        (peer,),
        (
            f"{count} connections to {name} at {peer} port {port}",
            f"half of them at most {length_s:.1f} s long with {octets:.0f} bytes: no session, a guess",
            _pace(window),
        ),
    )


def _looks_like_login(port: int, flows: Sequence[Flow], *, internal: bool) -> bool:
    if port in LOGIN_PORTS or (port in PROGRAM_LOGIN_PORTS and not internal):
        return True
    return any(flow.service and LOGIN_SERVICES & set(flow.service.lower().split(",")) for flow in flows)


def _by_service(flows: Iterable[Flow]) -> dict[tuple[str, int], list[Flow]]:
    """Group the flows that have ports by peer and destination port."""
    groups: dict[tuple[str, int], list[Flow]] = {}
    for flow in flows:
        if flow.protocol in {"tcp", "udp"}:
            groups.setdefault((flow.destination, flow.destination_port), []).append(flow)
    return groups


# Beacon -----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Beat:
    """Attempts to one peer and port that look like a beacon."""

    score: float
    peer: str
    port: int
    attempts: int
    interval_s: float
    regularity: float
    failed: float

    @property
    def line(self) -> str:
        way = "regular" if self.regularity >= MIN_REGULARITY else "persistent, not regular"
        return (
            f"{self.attempts} attempts to {self.peer} port {self.port}, {way}: mean interval "
            f"{self.interval_s:.2f} s, regularity {self.regularity:.2f} (random arrivals: 0.50)"
        )


def beacon(window: Window[Flow]) -> Suspicion | None:
    """Recognise a host of ours that calls one peer and port regularly, or goes on though it is turned away.

    Score: 0.5, plus 0.2 times how far the regularity is from MIN_REGULARITY to 1, 0.1 times how far the
    attempts are from MIN_BEATS to four times that, 0.1 times the failed share, and 0.1 for an unusual port.
    Subjects from outside are none of this rule's: what calls in is not infected with what calls home.
    """
    if not is_internal(window.host):
        return None
    groups = _by_service(window.items).items()
    beats = [beat for (peer, port), flows in groups if (beat := _beat(peer, port, flows))]
    if not beats:
        return None
    # The peer and port break ties, so that the order of arrival decides nothing.
    beats.sort(key=lambda beat: (-beat.score, beat.peer, beat.port))
    best = beats[0]
    usual = best.port in USUAL_PORTS
    share = best.attempts / max(1, len(attempt_times(window.items)))
    return Suspicion(
        best.score,
        techniques.APPLICATION_LAYER_PROTOCOL if usual else techniques.NON_STANDARD_PORT,
        tuple(dict.fromkeys(beat.peer for beat in beats)),
        (
            best.line,
            f"{best.failed:.0%} of its connections refused, unanswered or reset",
            f"{min(1.0, share):.0%} of what this host attempted in the window",
            _pace(window),
        ),
    )


def _beat(peer: str, port: int, flows: Sequence[Flow]) -> _Beat | None:
    times = attempt_times(flows)
    if port in NO_BEACON_PORTS or len(times) < MIN_BEATS:
        return None
    interval_s = fmean(later - earlier for earlier, later in pairwise(times))
    regular = regularity(times)
    failed = sum(flow.state in FAILED for flow in flows) / len(flows)
    is_regular = regular >= MIN_REGULARITY and interval_s >= MIN_BEAT_S
    is_persistent = len(times) >= MIN_PERSISTENT and failed >= PERSISTENT_FAILED
    if not is_regular and not is_persistent:
        return None
    score = (
        0.5
        + 0.2 * max(0.0, (regular - MIN_REGULARITY) / (1 - MIN_REGULARITY))
        + 0.1 * min(1.0, (len(times) - MIN_BEATS) / (3 * MIN_BEATS))
        + 0.1 * failed
        + 0.1 * (port not in USUAL_PORTS)
    )
    return _Beat(min(1.0, score), peer, port, len(times), interval_s, regular, failed)


# Exfiltration -----------------------------------------------------------


def exfiltration(window: Window[Flow]) -> Suspicion | None:
    """Recognise a host of ours that sends much to one address outside and gets little. Score: v / (v + MIN_UPLOAD).

    Whoever keeps backups in a cloud does the same.
    """
    if not is_internal(window.host):
        return None
    sent: dict[str, int] = {}
    received: dict[str, int] = {}
    for flow in window.items:
        if not is_internal(flow.destination):
            sent[flow.destination] = sent.get(flow.destination, 0) + flow.bytes_sent
            received[flow.destination] = received.get(flow.destination, 0) + flow.bytes_received
    peers = [
        peer
        for peer, octets in sent.items()
        if octets >= MIN_UPLOAD and octets - received[peer] >= MIN_PRODUCER_RATIO * (octets + received[peer])
    ]
    if not peers:
        return None
    peers.sort(key=lambda peer: (-sent[peer], peer))
    lines = [f"{sent[peer]} bytes to {peer}, {received[peer]} back" for peer in peers[:_GROUPS_IN_EVIDENCE]]
    return Suspicion(
        sent[peers[0]] / (sent[peers[0]] + MIN_UPLOAD),
        techniques.EXFILTRATION_OVER_ALTERNATIVE_PROTOCOL,
        tuple(peers[:MAX_TARGETS]),
        (*lines, _pace(window)),
    )
