"""Log-ins from syslog lines: RFC 5424, RFC 3164, and what rsyslog and journald write into files.

Four heads are read: ``<PRI>1 TIME HOST APP …`` (RFC 5424), ``<PRI>Mmm dd hh:mm:ss HOST TAG: …`` (RFC 3164), and the
same two without ``<PRI>``, as files have them, with ISO 8601 time or the old one. The old one has neither year nor
zone: it is taken for UTC, and for the year in which it is not more than a day ahead of ``now_s``.

Of the messages, those of sshd are read, and PAM's for other services:

* ``Failed <method> for [invalid user] U from A port P``: a guess (auth.c, auth_log, of OpenSSH);
* ``Connection closed|reset by authenticating|invalid user U A port P [preauth]``: where passwords are off, a client
  that gives up has no other line (packet.c, sshpkt_vfatal);
* ``Accepted <method> for U from A port P``;
* ``…: authentication failure; … rhost=A user=U`` (pam_unix), for services other than sshd, which says it itself.

Every other line is skipped by design under its program's name.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

from tocsin.analysis.events import Login
from tocsin.analysis.records import BadLineError, SkippedLineError, address, seconds_of

MAX_MESSAGE = 2048
"""Bytes of a line that are looked at: RFC 5424 section 6.1 asks no receiver for more."""
DAY_S = 86400.0

_PRI = r"(?:<\d{1,3}>)?"
_NEW = re.compile(
    rf"^{_PRI}1 (?P<time>\S{{10,40}}) (?P<host>\S{{1,255}}) (?P<app>\S{{1,48}}) \S{{1,128}} \S{{1,32}} "
    r"(?:-|(?:\[(?:[^\]\\]|\\.)*\])+) ?(?P<text>.*)$",
    re.DOTALL,
)
_OLD = re.compile(
    rf"^{_PRI}(?P<time>[A-Z][a-z]{{2}} [ \d]\d \d\d:\d\d:\d\d|\d{{4}}-\d\d-\d\dT[0-9:.,+\-Z]{{8,32}}) "
    r"(?P<host>\S{1,255}) (?P<app>[^\s:\[]{1,48})(?:\[\d{1,10}\])?: ?(?P<text>.*)$",
    re.DOTALL,
)
# Users' names are greedy: they come from the network, and one that spells " from 10.0.0.1 port 1 ssh2" must not speak
# for another address. The last one in the line is the server's own.
_FAILED = re.compile(
    r"^(?:error: )?Failed \S+ for (?:invalid user )?(?P<user>.{0,512}) from (?P<client>\S+) port (?P<port>\d{1,5})"
)
_CLOSED = re.compile(
    r"^Connection (?:closed|reset) by (?:authenticating|invalid) user (?P<user>.{0,512}) (?P<client>\S+) "
    r"port (?P<port>\d{1,5}) \[preauth\]$"
)
_ACCEPTED = re.compile(r"^Accepted \S+ for (?P<user>.{0,512}) from (?P<client>\S+) port (?P<port>\d{1,5})")
_PAM = re.compile(
    r"authentication failure; .*?\brhost=(?P<client>[0-9A-Fa-f:.]+)(?:\s+user=(?P<user>\S{1,256}))?"
)


def looks_like_syslog(data: bytes) -> bool:
    """Tell whether a line has one of the heads."""
    line = data[:MAX_MESSAGE].decode("utf-8", errors="replace")
    return bool(_NEW.match(line) or _OLD.match(line))


def parse(data: bytes, *, now_s: float) -> Login:
    """Read the log-in of a line.

    Args:
        data: One line, any bytes.
        now_s: Seconds since the epoch, for times without a year.

    Raises:
        SkippedLineError: a line that says nothing of a log-in.
        BadLineError: ``not_syslog``, ``bad_timestamp``, ``bad_address`` or ``bad_number``.
    """
    line = data[:MAX_MESSAGE].decode("utf-8", errors="replace")
    head = _NEW.match(line) or _OLD.match(line)
    if head is None:
        raise BadLineError("not_syslog")
    app, text = head["app"], head["text"].lstrip("\ufeff")
    service = "ssh" if app in {"sshd", "sshd-session"} else app
    found = None
    if service == "ssh":
        found = _FAILED.match(text) or _CLOSED.match(text) or _ACCEPTED.match(text)
    else:
        found = _PAM.search(text)
    if found is None:
        raise SkippedLineError(app)
    parts = found.groupdict()
    port = int(parts.get("port") or 0)
    if port > 65535:
        raise BadLineError("bad_number")
    return Login(
        at_s=time_of(head["time"], now_s=now_s),
        service=service,
        server=head["host"],
        client=address(parts["client"]),
        port=port,
        user=(parts.get("user") or "")[:64],
        succeeded=found.re is _ACCEPTED,
        closing=found.re is _CLOSED,
    )


def time_of(text: str, *, now_s: float) -> float:
    """Return the seconds since the epoch of a syslog time."""
    if text[0].isdigit():
        return seconds_of(text.replace(",", "."))
    year = datetime.fromtimestamp(now_s, UTC).year
    for candidate in (year + 1, year, year - 1):
        try:
            moment = datetime.strptime(f"{candidate} {text}", "%Y %b %d %H:%M:%S").replace(tzinfo=UTC)
        except ValueError:  # 29 February of another year, or no time at all
            continue
        if moment.timestamp() <= now_s + DAY_S:
            return moment.timestamp()
    raise BadLineError("bad_timestamp")
