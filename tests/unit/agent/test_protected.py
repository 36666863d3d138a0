"""Addresses that guardians leave alone."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from tocsin.agent.protected import gateways_of, own_addresses, parse_address, parse_networks, protected
from tocsin.contracts.errors import DeniedError, TocsinError

ROUTES = """Iface\tDestination\tGateway \tFlags
eth0\t00000000\t0100000A\t0003
eth0\t0000000A\t00000000\t0001
torn\t00
"""
ROUTES6 = "00000000000000000000000000000000 00 0 00 fd000000000000000000000000000001 0 eth0\nnonsense\n"


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.66",
        "::1",
        "169.254.169.254",
        "224.0.0.1",
        "255.255.255.255",
        "fe80::1",
        "ff02::1",
        "0.0.0.1",
        "::",
    ],
)
def test_nobodys_address_is_never_acted_against(address: str) -> None:
    with pytest.raises(DeniedError) as caught:
        protected((), "").check(address)
    assert caught.value.reason == "protected_address"


def test_this_machine_is_protected_however_it_is_written() -> None:
    guarded = protected((), "")
    for address in own_addresses():
        for text in (str(address), f"::ffff:{address}" if address.version == 4 else address.exploded):
            with pytest.raises(DeniedError):
                guarded.check(text)


def test_the_broker_and_the_operators_list_are_protected() -> None:
    guarded = protected(parse_networks("203.0.113.0/24, 2001:db8::7"), "nats://198.51.100.4:4222")
    for address, why in (
        ("203.0.113.9", "the operator's list"),
        ("2001:db8::7", "the operator's list"),
        ("198.51.100.4", "the broker"),
    ):
        with pytest.raises(DeniedError, match=why):
            guarded.check(address)
    guarded.check("198.51.100.5")
    guarded.check("2001:db8::8")


def test_a_broker_whose_name_is_not_found_stops_nothing() -> None:
    protected((), "nats://no-such-host.invalid:4222").check("198.51.100.5")


def test_gateways_are_read_as_linux_lists_them() -> None:
    assert gateways_of(ROUTES, ROUTES6) == {ip_address("10.0.0.1"), ip_address("fd00::1")}
    assert gateways_of("", "") == set()


@pytest.mark.parametrize("text", ["", "localhost", "fe80::1%eth0", "1.2.3", "1.2.3.4/32"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(TocsinError) as caught:
        parse_address(text)
    assert caught.value.reason == "bad_address"


def test_an_address_in_disguise_is_recognised() -> None:
    assert str(parse_address("::ffff:127.0.0.1")) == "127.0.0.1"
