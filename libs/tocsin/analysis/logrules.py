"""The rules over log-ins, DNS answers, TLS sessions and Zeek's notices; each threshold with its source beside it.

What they take for an attack and is none: a mail server or virus scanner that asks block lists by name (some are known,
see NAME_SERVICES), a content network's long names, a search list that is wrong (many NXDOMAIN under one domain are one
here), a printer or a monitoring system behind a certificate of its own making, a person who has forgotten a password
and tries eight times in five minutes, a script with an old password.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

from tocsin.analysis import techniques
from tocsin.analysis.events import DnsAnswer, Login, Notice, TlsSession
from tocsin.analysis.hosts import is_internal
from tocsin.analysis.tallies import Cell, Key, Tally
from tocsin.contracts.observations import Finding, FindingKind, Technique

LOGIN_WINDOW_S = 300.0
MIN_FAILED_LOGINS = 8
"""Failed log-ins of one address: Wazuh's rule 5712 (sshd brute force) has 8 in two minutes; here in five, since
guessers slow down. One SSH connection alone allows six (MaxAuthTries)."""

TUNNEL_WINDOW_S = 86400.0
TUNNEL_BYTES = 4000
"""Information in the names that a client asks for under one domain in a day: Paxson et al., "Practical comprehensive
bounds on surreptitious communication over DNS" (USENIX Security 2013), alert on 4 kB, measured, as here, by
compressing; at enterprises with thousands of hosts that was one or two alerts a week."""

NAME_SERVICES = frozenset(
    {
        "in-addr.arpa",
        "ip6.arpa",
        "spamhaus.org",
        "spamcop.net",
        "surbl.org",
        "uribl.com",
        "dnswl.org",
        "barracudacentral.org",
    }
    | {"sophosxl.net", "mcafee.com", "trendmicro.com", "senderbase.org", "team-cymru.com", "e5.sk"}
)
"""Domains whose names carry questions by design: reverse look-ups, block lists, virus scanners (the paper's section 6
names the same kinds)."""

NXDOMAIN_WINDOW_S = 300.0
MIN_NXDOMAINS = 10
"""Domains, not names, that do not exist: Slips's limit (modules/flowalerts, dns: 10 NXDOMAINs)."""

TLS_WINDOW_S = 86400.0
MIN_TLS_SESSIONS = 8
"""Sessions with a server that nobody vouches for: as many as a beacon's attempts (detectors.MIN_BEATS)."""

NOTICE_WINDOW_S = 300.0

NOTICES: Mapping[str, tuple[float, Technique]] = {
    "Scan::Address_Scan": (0.6, techniques.NETWORK_SERVICE_DISCOVERY),
    "Scan::Port_Scan": (0.6, techniques.NETWORK_SERVICE_DISCOVERY),
    "Scan::Random_Scan": (0.6, techniques.NETWORK_SERVICE_DISCOVERY),
    "SSH::Password_Guessing": (0.6, techniques.BRUTE_FORCE),
    "SSH::Login_By_Password_Guesser": (0.8, techniques.VALID_ACCOUNTS),
    "FTP::Bruteforcing": (0.6, techniques.BRUTE_FORCE),
    "HTTP::SQL_Injection_Attacker": (0.6, techniques.EXPLOIT_PUBLIC_FACING_APPLICATION),
    "Heartbleed::SSL_Heartbeat_Attack": (0.7, techniques.EXPLOIT_PUBLIC_FACING_APPLICATION),
    "Heartbleed::SSL_Heartbeat_Attack_Success": (0.9, techniques.EXPLOIT_PUBLIC_FACING_APPLICATION),
    "SSL::Invalid_Server_Cert": (0.35, techniques.ASYMMETRIC_CRYPTOGRAPHY),
    "Intel::Notice": (0.7, techniques.APPLICATION_LAYER_PROTOCOL),
    "TeamCymruMalwareHashRegistry::Match": (0.8, techniques.APPLICATION_LAYER_PROTOCOL),
    "ATTACK::Lateral_Movement": (0.7, techniques.REMOTE_SERVICES),
    "ATTACK::Lateral_Movement_Extracted_File": (0.7, techniques.REMOTE_SERVICES),
    "ATTACK::Lateral_Movement_and_Execution": (0.8, techniques.REMOTE_SERVICES),
    "ATTACK::Discovery": (0.5, techniques.NETWORK_SERVICE_DISCOVERY),
}
"""Score and technique by note: the scores say how much a note that stands alone is worth looking at (0.7 is HIGH), and
are our judgement; the ATTACK notes are those of MITRE's BZAR package."""

_ELSE = (0.2, techniques.APPLICATION_LAYER_PROTOCOL)
_VALUES_IN_EVIDENCE = 6


class LogRules:
    """All of them over one log."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._logins = Tally(self._judge_logins, window_s=LOGIN_WINDOW_S)
        self._tunnels = Tally(self._judge_tunnel, window_s=TUNNEL_WINDOW_S)
        self._missing = Tally(self._judge_missing, window_s=NXDOMAIN_WINDOW_S)
        self._sessions = Tally(self._judge_sessions, window_s=TLS_WINDOW_S)
        self._notices = Tally(self._judge_notices, window_s=NOTICE_WINDOW_S)
        self._tallies = {
            "logins": self._logins,
            "tunnels": self._tunnels,
            "missing": self._missing,
            "sessions": self._sessions,
            "notices": self._notices,
        }

    def take(self, event: DnsAnswer | TlsSession | Login | Notice) -> list[Finding]:
        """Count one event; return what was found in windows that had to close."""
        match event:
            case Login():
                return self._take_login(event)
            case DnsAnswer():
                return self._take_name(event)
            case TlsSession():
                if not event.problem:
                    return []
                value = f"{event.server} port {event.port}: {event.problem} of {event.subject[:100]}"
                return self._sessions.add((event.client, event.server), event.at_s, value, target=event.server)
            case Notice():
                key = (event.source, "")
                return self._notices.add(key, event.at_s, event.note, target=event.destination)

    def peek(self) -> list[Finding]:
        """Judge the open windows as they are."""
        return [finding for tally in self._tallies.values() for finding in tally.peek()]

    def advance(self, now_s: float) -> list[Finding]:
        """Close the windows that ended by ``now_s``; return what was found in them."""
        return [finding for tally in self._tallies.values() for finding in tally.advance(now_s)]

    def dump(self) -> dict[str, object]:
        """Return the open windows as JSON has it."""
        return {name: tally.dump() for name, tally in self._tallies.items()}

    def load(self, dumped: Mapping[str, object]) -> None:
        """Go on with windows that were dumped.

        Raises:
            InvalidInputError: ``bad_state``.
        """
        for name, tally in self._tallies.items():
            tally.load(dumped.get(name, []))

    # --- Log-ins ------------------------------------------------------------------------------

    def _take_login(self, login: Login) -> list[Finding]:
        key = (login.client, login.service)
        if login.succeeded:
            return self._logins.add(key, login.at_s, f"+{login.user}", hit=True)
        # A connection that failed and is closed says so twice, with one port.
        return self._logins.add(key, login.at_s, f"{'=' if login.closing else '-'}{login.port} {login.user}")

    def _judge_logins(self, key: Key, cell: Cell) -> Finding | None:
        client, service = key
        failed_at = {value[1:].partition(" ")[0] for value in cell.values if value[0] == "-"}
        failed = cell.count - cell.hits
        # What closed a connection that had failed by itself says nothing new.
        failed -= sum(
            n
            for value, n in cell.values.items()
            if value[0] == "=" and value[1:].partition(" ")[0] in failed_at
        )
        if failed < MIN_FAILED_LOGINS:
            return None
        users = sorted({value.partition(" ")[2] for value in cell.values if value[0] in "-="})
        evidence = [
            f"{failed} failed log-ins to {service} in {cell.last_s - cell.first_s:.0f} s",
            f"{len(users)} users: {_some(users)}",
        ]
        score = failed / (failed + MIN_FAILED_LOGINS)
        if cell.hits:
            entered = sorted(value[1:] for value in cell.values if value[0] == "+")
            evidence.insert(0, f"and then logged in as {_some(entered)}")
            score = max(score, 0.9)
        technique = techniques.VALID_ACCOUNTS if cell.hits else techniques.BRUTE_FORCE
        return self._finding(
            FindingKind.BRUTE_FORCE, client, cell, score, technique, evidence, connections=failed
        )

    # --- Names --------------------------------------------------------------------------------

    def _take_name(self, answer: DnsAnswer) -> list[Finding]:
        labels = answer.name.split(".")
        domain = ".".join(labels[-2:])
        if (
            len(labels) < 2 or domain in NAME_SERVICES
        ):  # one label: a search list or a browser's probe of the network
            return []
        found: list[Finding] = []
        if answer.missing:
            found += self._missing.add((answer.client, ""), answer.at_s, domain)
        if len(labels) > 2:
            found += self._tunnels.add((answer.client, domain), answer.at_s, ".".join(labels[:-2]))
        return found

    def _judge_tunnel(self, key: Key, cell: Cell) -> Finding | None:
        client, domain = key
        if cell.octets < TUNNEL_BYTES:  # cannot compress to more
            return None
        information = len(zlib.compress("\n".join(cell.values).encode(), 9))
        if information < TUNNEL_BYTES:
            return None
        longest = max(cell.values, key=len)
        evidence = [
            f"{len(cell.values)} names and more under {domain}, which carry {information} bytes",
            f"the longest: {longest[:120]}.{domain}",
        ]
        score = information / (information + TUNNEL_BYTES)
        return self._finding(FindingKind.DNS_TUNNEL, client, cell, score, techniques.DNS, evidence)

    def _judge_missing(self, key: Key, cell: Cell) -> Finding | None:
        domains = len(cell.values)
        if domains < MIN_NXDOMAINS:
            return None
        evidence = [f"{domains} domains that do not exist: {_some(list(cell.values))}"]
        score = domains / (domains + MIN_NXDOMAINS)
        technique = techniques.DOMAIN_GENERATION_ALGORITHMS
        return self._finding(FindingKind.NXDOMAIN, key[0], cell, score, technique, evidence)

    # --- Certificates and notices -------------------------------------------------------------

    def _judge_sessions(self, key: Key, cell: Cell) -> Finding | None:
        client, server = key
        if cell.count < MIN_TLS_SESSIONS or not is_internal(client):
            return None
        # Within the house, certificates of one's own making are common: LOW there, however many sessions.
        least = 0.3 if is_internal(server) else 0.5
        score = least + 0.18 * min(1.0, (cell.count - MIN_TLS_SESSIONS) / (3 * MIN_TLS_SESSIONS))
        evidence = [f"{cell.count} sessions with {server}", *list(cell.values)[:_VALUES_IN_EVIDENCE]]
        technique = techniques.ASYMMETRIC_CRYPTOGRAPHY
        return self._finding(FindingKind.TLS, client, cell, score, technique, evidence)

    def _judge_notices(self, key: Key, cell: Cell) -> Finding | None:
        missing = 1.0
        for note in cell.values:
            missing *= 1 - NOTICES.get(note, _ELSE)[0]
        worst = max(sorted(cell.values), key=lambda note: NOTICES.get(note, _ELSE)[0])
        evidence = [f"{count} x {note}" for note, count in list(cell.values.items())[:_VALUES_IN_EVIDENCE]]
        technique = NOTICES.get(worst, _ELSE)[1]
        if technique is techniques.NETWORK_SERVICE_DISCOVERY and not is_internal(key[0]):
            technique = techniques.ACTIVE_SCANNING
        return self._finding(FindingKind.NOTICE, key[0], cell, 1 - missing, technique, evidence)

    def _finding(
        self,
        kind: FindingKind,
        subject: str,
        cell: Cell,
        score: float,
        technique: Technique,
        evidence: list[str],
        *,
        connections: int | None = None,
    ) -> Finding:
        return Finding(
            kind=kind,
            subject=subject,
            internal=is_internal(subject),
            targets=tuple(cell.targets),
            score=min(1.0, score),
            technique=technique,
            evidence=tuple(line[:512] for line in evidence),
            source=self._source,
            first_s=cell.first_s,
            last_s=cell.last_s,
            connections=cell.count if connections is None else connections,
        )


def _some(names: list[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(name[:40] or "(none)" for name in names[:most]) + more
