"""Which addresses are ours, and which connections every quiet network is full of."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import ip_address, ip_network

from tocsin.contracts.errors import InvalidInputError
from tocsin.contracts.observations import Flow

_OURS = tuple(
    ip_network(net)
    for net in (
        "10.0.0.0/8",  # RFC 1918
        "172.16.0.0/12",
        "192.168.0.0/16",
        "fc00::/7",  # RFC 4193
        "169.254.0.0/16",  # link-local: RFC 3927, RFC 4291
        "fe80::/10",
        "127.0.0.0/8",  # loopback: RFC 1122, RFC 4291
        "::1/128",
    )
)
"""Spelt out, because ``ipaddress.is_private`` also holds documentation and benchmark networks (RFC 5737,
RFC 2544) for private, which are nobody's and, where they are seen, come from outside."""

_MULTICAST_SERVICES = frozenset({67, 68, 546, 547, 1900, 3702, 5353, 5355})
"""DHCP, DHCPv6, SSDP, WS-Discovery, mDNS, LLMNR: at one end or the other, it is the protocol or its reply."""


@lru_cache(maxsize=8192)
def is_internal(address: str) -> bool:
    """Tell whether an address is one of ours: private, link-local or loopback."""
    try:
        parsed = ip_address(address)
    except ValueError:
        raise InvalidInputError(f"not an address: {address!r}", reason="bad_address") from None
    return any(parsed in net for net in _OURS)


@lru_cache(maxsize=8192)
def _reaches_many(address: str) -> bool:
    parsed = ip_address(address)
    return parsed.is_multicast or parsed.is_unspecified or address == "255.255.255.255"


def is_ambient(flow: Flow) -> bool:
    """Tell whether a connection is chatter: multicast, broadcast, DHCP, SSDP, mDNS, LLMNR or a reply to it.

    The services' ports count between hosts of ours only: SSDP from outside is a probe. A subnet's broadcast
    address cannot be known without its mask; UDP to an IPv4 address of ours that ends in .255 is taken for
    one. What is ambient is in no window, neither here nor in a baseline.
    """
    if _reaches_many(flow.destination):
        return True
    if flow.protocol != "udp" or not is_internal(flow.destination):
        return False
    ports = {flow.destination_port, flow.source_port}
    return flow.destination.endswith(".255") or (is_internal(flow.source) and bool(ports & _MULTICAST_SERVICES))
