"""Which addresses a guardian never acts against, whatever was decided: those without which it could not go on.

They are the machine's own addresses, its gateways, the broker, loopback, link-local, multicast and unspecified
addresses, and what the operator names. An agent fleet that can be talked into cutting itself off would be a weapon:
a forged source address would be enough. Read anew for each order, since addresses come and go.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from tocsin.contracts.errors import DeniedError, InvalidInputError
from tocsin.telemetry import get_logger

Network = IPv4Network | IPv6Network

NEVER = tuple(
    ip_network(text)
    for text in (
        "0.0.0.0/8",  # this network: RFC 791 section 3.2
        "127.0.0.0/8",  # loopback: RFC 1122 section 3.2.1.3
        "169.254.0.0/16",  # link-local: RFC 3927; clouds serve their metadata there
        "224.0.0.0/4",  # multicast: RFC 5771
        "255.255.255.255/32",  # broadcast: RFC 919
        "::/128",
        "::1/128",
        "fe80::/10",  # link-local: RFC 4291; routers speak from there
        "ff00::/8",
    )
)

log = get_logger(__name__)


def parse_address(text: str) -> IPv4Address | IPv6Address:
    """Return an address; an IPv4 address that is written as IPv6 (``::ffff:a.b.c.d``) is an IPv4 address.

    Raises:
        InvalidInputError: ``bad_address``, also for an address with a zone.
    """
    try:
        address = ip_address(text)
    except ValueError:
        raise InvalidInputError(f"not an address: {text[:80]!r}", reason="bad_address") from None
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:
            raise InvalidInputError(f"an address with a zone: {text[:80]!r}", reason="bad_address")
        return address.ipv4_mapped or address
    return address


def parse_networks(text: str) -> tuple[Network, ...]:
    """Read addresses and networks, with commas between them.

    Raises:
        InvalidInputError: ``bad_network``.
    """
    found = []
    for part in filter(None, map(str.strip, text.split(","))):
        try:
            found.append(ip_network(part, strict=False))
        except ValueError:
            raise InvalidInputError(f"not an address or network: {part[:80]!r}", reason="bad_network") from None
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Protected:
    """Networks, by why they are protected."""

    networks: tuple[tuple[str, Network], ...]

    def check(self, address: str) -> None:
        """Refuse an address that is protected.

        Raises:
            DeniedError: ``protected_address``.
            InvalidInputError: ``bad_address``.
        """
        parsed = parse_address(address)
        for why, network in self.networks:
            if parsed.version == network.version and parsed in network:
                raise DeniedError(f"{parsed} is protected: {why} ({network})", reason="protected_address")


def protected(never_block: Iterable[Network], broker_urls: str) -> Protected:
    """Read what is protected now. Blocking: it looks names up."""
    found: list[tuple[str, Network]] = [("no address of a host", network) for network in NEVER]
    found += [("the operator's list", network) for network in never_block]
    found += [("this machine", ip_network(address)) for address in own_addresses()]
    found += [("a gateway", ip_network(address)) for address in gateways()]
    found += [("the broker", ip_network(address)) for address in _resolved(broker_urls)]
    return Protected(tuple(found))


def own_addresses() -> set[IPv4Address | IPv6Address]:
    """Return the addresses of all interfaces."""
    found = set()
    for addresses in psutil.net_if_addrs().values():
        for one in addresses:
            if one.family in {socket.AF_INET, socket.AF_INET6}:
                found.add(parse_address(one.address.partition("%")[0]))
    return found


def gateways() -> set[IPv4Address | IPv6Address]:
    """Return the next hops of all routes, as Linux lists them; none where it does not."""
    return gateways_of(_text(Path("/proc/net/route")), _text(Path("/proc/net/ipv6_route")))


def gateways_of(routes4: str, routes6: str) -> set[IPv4Address | IPv6Address]:
    """Return the next hops in /proc/net/route and /proc/net/ipv6_route (proc(5)); lines that are none are skipped."""
    found: set[IPv4Address | IPv6Address] = set()
    for line in routes4.splitlines()[1:]:
        if (hop := _hex(line.split(), 2, 4)) is not None:
            # The file shows a number of the machine's own byte order.
            found.add(IPv4Address(hop[::-1] if sys.byteorder == "little" else hop))
    for line in routes6.splitlines():
        if (hop := _hex(line.split(), 4, 16)) is not None:
            found.add(IPv6Address(hop))
    return {address for address in found if not address.is_unspecified}


def _hex(fields: list[str], index: int, length: int) -> bytes | None:
    try:
        value = bytes.fromhex(fields[index])
    except (IndexError, ValueError):
        return None
    return value if len(value) == length else None


def _resolved(urls: str) -> set[IPv4Address | IPv6Address]:
    found = set()
    for url in urls.split(","):
        host = urlsplit(url.strip()).hostname
        if host is None:
            continue
        try:
            answers = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except OSError as error:
            # The connection to it stands, or this order had not come.
            log.warning("broker_name_not_found", host=host, error=str(error))
            continue
        found |= {parse_address(str(answer[4][0]).partition("%")[0]) for answer in answers}
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
