"""Channels between agents of real hosts, on a real broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from channel_support import Pair, fleet_of
from support import World, eventually

from tocsin.agent import AgentHost, Channel
from tocsin.contracts.catalogue import CHANNEL, CHANNEL_FRAME, CHANNEL_OFFER
from tocsin.contracts.channels import ChannelOffer
from tocsin.contracts.errors import ConflictError, DeniedError, InvalidInputError, UnavailableError
from tocsin.contracts.identifiers import Role, Severity
from tocsin.contracts.routing import Discovery, Intelligence, ThreatAlert
from tocsin.crypto.channels import Initiation, Parties


async def test_two_agents_talk(world: World, tmp_path: Path) -> None:
    async with await fleet_of(world, tmp_path) as fleet:
        pair = Pair(fleet)
        await pair.start()
        one, other = pair.agent("hunter-01"), pair.agent("hunter-02")
        channel = await one.channel("hunter-02")
        await channel.send(b"hello")
        await eventually(lambda: other.heard == [(b"hello", "hunter-01")])
        back = await other.channel("hunter-01")
        await back.send(b"hello back")
        await eventually(lambda: one.heard == [(b"hello back", "hunter-02")])
        assert channel.stats.handshakes == 1
        assert not channel.qkd


@pytest.fixture
async def pair(world: World, tmp_path: Path) -> AsyncIterator[Pair]:
    """Two hosts that run."""
    async with await fleet_of(world, tmp_path) as fleet:
        pair = Pair(fleet)
        await pair.start()
        yield pair


def counter(host: AgentHost, name: str) -> int:
    return host.metrics.counter(name)


async def test_a_message_travels_as_its_model_if_the_policy_allows_it(pair: Pair) -> None:
    analyst, hunter = pair.agent("analyst-01"), pair.agent("hunter-01")
    channel = await hunter.channel("analyst-01")
    known = Intelligence(summary="they come by night")
    await channel.send(known)
    await eventually(lambda: analyst.heard == [(known, "hunter-01")])
    order = ThreatAlert(severity=Severity.CRITICAL, summary="now")
    with pytest.raises(InvalidInputError) as refused:
        await channel.send(order)
    assert refused.value.reason == "severity_mismatch"
    back = await analyst.channel("hunter-01")
    proposal = Discovery(agent="analyst-01", role=Role.ANALYST, host="west")
    with pytest.raises(DeniedError) as denied:
        await back.send(proposal)  # a discovery goes to admins
    assert denied.value.reason == "audience_not_allowed"
    with pytest.raises(InvalidInputError) as large:
        await channel.send(bytes(256 * 1024 + 1))
    assert large.value.reason == "too_large"
    await channel.send(bytes(256 * 1024))
    await eventually(lambda: len(analyst.heard) == 2)


async def test_who_gets_no_channel_is_told_why(pair: Pair) -> None:
    hunter = pair.agent("hunter-01")
    for peer, reason in (("nobody", "unknown_peer"), ("hunter-01", "channel_to_itself")):
        with pytest.raises(InvalidInputError) as refused:
            await hunter.channel(peer)
        assert refused.value.reason == reason


async def test_both_may_begin_at_once(pair: Pair) -> None:
    one, other = pair.agent("hunter-01"), pair.agent("hunter-02")
    for round_ in range(3):
        forth, back = await asyncio.gather(one.channel("hunter-02"), other.channel("hunter-01"))
        await asyncio.gather(forth.send(b"%d" % round_), back.send(b"%d" % round_))
        await eventually(lambda n=round_ + 1: len(one.heard) == len(other.heard) == n)  # type: ignore[misc]
        sessions = [
            pair.hosts[h].channels.desk(a).book for h, a in (("east", "hunter-01"), ("west", "hunter-02"))
        ]
        links = [sessions[0].find("hunter-02"), sessions[1].find("hunter-01")]
        channels = {link.current.session.channel for link in links if link and link.current}
        assert len(channels) == 1
        await forth.close()
        await eventually(lambda book=sessions[1]: book.find("hunter-01") is None)  # type: ignore[misc]


async def test_many_messages_keep_their_order_while_keys_are_made_anew(world: World, tmp_path: Path) -> None:
    async with await fleet_of(world, tmp_path) as fleet:
        pair = Pair(fleet, channel_messages=64)
        await pair.start()
        one, other = pair.agent("hunter-01"), pair.agent("hunter-02")
        forth, back = await one.channel("hunter-02"), await other.channel("hunter-01")
        wanted = [b"%d" % n for n in range(400)]

        async def say(channel: Channel) -> None:
            for data in wanted:
                await channel.send(data)

        await asyncio.gather(say(forth), say(back))
        await eventually(lambda: len(one.heard) == len(other.heard) == 400)
        assert [data for data, _ in other.heard] == wanted
        assert [data for data, _ in one.heard] == wanted
        assert forth.stats.handshakes >= 400 // 64
        assert forth.stats.lost == 0


async def test_old_keys_are_replaced_and_erased(world: World, tmp_path: Path) -> None:
    async with await fleet_of(world, tmp_path) as fleet:
        pair = Pair(fleet, channel_age_s=2)
        await pair.start()
        one, other = pair.agent("hunter-01"), pair.agent("hunter-02")
        channel = await one.channel("hunter-02")
        await asyncio.sleep(2.1)  # the keys' whole life
        await channel.send(b"late")
        await eventually(lambda: other.heard == [(b"late", "hunter-01")])
        assert channel.stats.handshakes == 2
        book = pair.hosts["west"].channels.desk("hunter-02").book
        await eventually(lambda: len(book._by_channel) == 1)


async def test_a_peer_that_restarted_gets_what_it_could_not_open(pair: Pair) -> None:
    one = pair.agent("hunter-01")
    channel = await one.channel("hunter-02")
    await channel.send(b"before")
    await eventually(lambda: pair.agent("hunter-02").heard == [(b"before", "hunter-01")])
    # As a kill does: the old process says nothing to anybody.
    west = pair.hosts["west"]
    west.channels.desk("hunter-02").book._links.clear()
    await west.__aexit__(None, None, None)
    await pair.start("west")
    other = pair.agent("hunter-02")
    for n in range(5):
        await channel.send(b"%d" % n)
    await eventually(lambda: len(other.heard) == 5)
    assert [data for data, _ in other.heard] == [b"%d" % n for n in range(5)]
    assert channel.stats.resent >= 1
    assert channel.stats.handshakes == 1 + 1


async def test_a_full_book_closes_what_was_used_least_recently(world: World, tmp_path: Path) -> None:
    async with await fleet_of(world, tmp_path) as fleet:
        pair = Pair(fleet, channels_per_agent=1)
        await pair.start()
        one, other = pair.agent("hunter-01"), pair.agent("hunter-02")
        first = await one.channel("hunter-02")
        await first.send(b"1")
        await one.channel("analyst-01")
        east = pair.hosts["east"]
        assert counter(east, "channels_evicted") == 1
        assert not first.stats.established
        await eventually(lambda: pair.hosts["west"].channels.desk("hunter-02").book.find("hunter-01") is None)
        await first.send(b"2")
        await eventually(lambda: [data for data, _ in other.heard] == [b"1", b"2"])


async def test_nothing_that_was_changed_or_comes_again_reaches_an_agent(pair: Pair) -> None:
    one, other = pair.agent("hunter-01"), pair.agent("hunter-02")
    east, west = pair.hosts["east"], pair.hosts["west"]
    seen: list[bytes] = []
    tap = await pair.fleet.router()
    where = CHANNEL_FRAME.at(agent="hunter-02", sender="hunter-01")
    await tap.connection.take(where, lambda data, *_: seen.append(data))
    await tap.flush()
    channel = await one.channel("hunter-02")
    await channel.send(b"secret words")
    await eventually(lambda: len(other.heard) == 1 and len(seen) == 2)  # ready, and the data
    assert all(b"secret words" not in frame for frame in seen)
    changed = bytearray(seen[-1])
    changed[-1] ^= 1
    fresh = bytearray(seen[-1])
    fresh[24] += 1  # a counter that has not come
    await tap.send_frame(where, seen[-1])
    await tap.send_frame(where, bytes(changed))
    await tap.send_frame(where, bytes(fresh))
    await tap.send_frame(where, b"\x01 rubbish")
    await tap.send_frame(where, b"\x01" + bytes(60))
    await tap.send_frame(CHANNEL_FRAME.at(agent="hunter-02", sender="admin-01"), seen[-1])
    expected = {
        "rejected.replayed_frame": 2,
        "rejected.bad_frame_tag": 1,
        "rejected.bad_frame": 1,
        "rejected.unknown_channel": 1,
        "rejected.wrong_subject": 1,
    }
    await eventually(lambda: {name: counter(west, name) for name in expected} == expected)
    await channel.send(b"and more")
    await eventually(lambda: [data for data, _ in other.heard] == [b"secret words", b"and more"])
    assert counter(east, "channels_lost_by_peer") == 0


async def test_an_envelope_is_no_frame_and_a_frame_no_envelope(pair: Pair) -> None:
    tap = await pair.fleet.router()
    with pytest.raises(InvalidInputError) as refused:
        await tap.subscribe(CHANNEL_FRAME, lambda *_: None, at={"agent": "x"})
    assert refused.value.reason == "bad_subject"
    with pytest.raises(InvalidInputError) as also:
        await tap.subscribe_frames(CHANNEL, lambda *_: None, lambda _: None, at={"agent": "x"})
    assert also.value.reason == "bad_subject"


async def test_offers_of_others_names_are_refused_and_a_flood_is_bounded(pair: Pair) -> None:
    west = pair.hosts["west"]
    stranger = await pair.fleet.world.agent(Role.HUNTER, "hunter-99")
    parties = Parties(str(stranger.id), str(pair.agent("hunter-02").id))
    at = {"agent": "hunter-02"}
    other = Initiation.begin(Parties(str(pair.agent("hunter-01").id), parties.responder)).offer
    await stranger.publish(CHANNEL, CHANNEL_OFFER, ChannelOffer(offer=other), at=at)
    await eventually(lambda: counter(west, "rejected.wrong_parties") == 1)
    for _ in range(60):
        offer = Initiation.begin(parties).offer
        await stranger.publish(CHANNEL, CHANNEL_OFFER, ChannelOffer(offer=offer), at=at)
    await eventually(lambda: counter(west, "rejected.handshake_flood") > 0)
    book = west.channels.desk("hunter-02").book
    assert len(book) == 1
    await (await pair.agent("hunter-01").channel("hunter-02")).send(b"all the same")
    await eventually(lambda: pair.agent("hunter-02").heard == [(b"all the same", "hunter-01")])


async def test_a_barred_peer_is_cut_off_and_gets_no_other(pair: Pair) -> None:
    one, other = pair.agent("hunter-01"), pair.agent("hunter-02")
    channel = await one.channel("hunter-02")
    east, west = pair.hosts["east"], pair.hosts["west"]
    west.channels.bar("hunter-01")
    await channel.send(b"to nobody")
    await channel.close()
    with pytest.raises(DeniedError) as refused:
        await one.channel("hunter-02", timeout_s=5)
    assert refused.value.reason == "barred"
    with pytest.raises(DeniedError) as also:
        await other.channel("hunter-01")
    assert also.value.reason == "barred"
    assert other.heard == []
    west.channels.unbar("hunter-01")
    await (await one.channel("hunter-02")).send(b"again")
    await eventually(lambda: other.heard == [(b"again", "hunter-01")])
    assert east.channels is not west.channels


async def test_a_revoked_key_ends_its_channels(pair: Pair) -> None:
    one, other = pair.agent("hunter-01"), pair.agent("hunter-02")
    channel = await one.channel("hunter-02")
    await channel.send(b"1")
    await eventually(lambda: len(other.heard) == 1)
    west = pair.hosts["west"]
    link = west.channels.desk("hunter-02").book.find("hunter-01")
    assert link is not None
    assert link.current is not None
    west._bus.trust.revoke_key(link.current.peer_key)
    await channel.send(b"2")
    await eventually(lambda: west.channels.desk("hunter-02").book.find("hunter-01") is None)
    with pytest.raises(UnavailableError) as refused:
        await other.channel("hunter-01", timeout_s=1.5)
    assert refused.value.reason == "no_answer"
    assert len(other.heard) == 1


async def test_a_peer_that_is_away_is_no_channel(pair: Pair) -> None:
    await pair.hosts["west"].__aexit__(None, None, None)
    with pytest.raises(UnavailableError) as refused:
        await pair.agent("hunter-01").channel("hunter-02", timeout_s=0.7)
    assert refused.value.reason == "no_answer"


async def test_a_closed_channel_is_closed_on_both_sides(pair: Pair) -> None:
    one, other = pair.agent("hunter-01"), pair.agent("hunter-02")
    channel = await one.channel("hunter-02")
    await channel.send(b"1")
    await channel.close()
    await channel.close()
    with pytest.raises(ConflictError) as refused:
        await channel.send(b"2")
    assert refused.value.reason == "channel_closed"
    await eventually(lambda: pair.hosts["west"].channels.desk("hunter-02").book.find("hunter-01") is None)
    await (await other.channel("hunter-01")).send(b"3")
    await eventually(lambda: one.heard == [(b"3", "hunter-02")])


async def test_a_network_is_established_beforehand(pair: Pair) -> None:
    admin = pair.agent("admin-01")
    names = ["hunter-01", "hunter-02", "analyst-01", "admin-01"]
    network = await admin.establish_network(names)
    assert network.failed == {}
    assert len(network.links) == 6
    assert network.routes["hunter-01"]["hunter-02"] == "hunter-02"
    assert network.parameters.qkd_links == 0
    line = await admin.establish_network(names, [("hunter-01", "hunter-02"), ("analyst-01", "hunter-02")])
    assert line.routes["hunter-01"] == {"hunter-02": "hunter-02", "analyst-01": "hunter-02"}
    assert line.routes["admin-01"] == {}
    partial = await admin.establish_network(["hunter-01", "no-such"], timeout_s=1)
    assert partial.failed == {("hunter-01", "no-such"): "unknown_peer"}
    with pytest.raises(DeniedError) as refused:
        await pair.agent("hunter-01").establish_network(names)
    assert refused.value.reason == "sender_not_allowed"
