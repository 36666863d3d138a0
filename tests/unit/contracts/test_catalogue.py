"""The catalogue hangs together: subjects, types, senders, streams."""

from __future__ import annotations

import re

import pytest

from tocsin.contracts.catalogue import (
    BUCKETS,
    CONSENSUS_BALLOT,
    DELIVER_AGENT,
    METRICS,
    PING,
    REQUESTS,
    ROUTE,
    STREAMS,
    SUBJECTS,
    message_types,
)
from tocsin.contracts.errors import InvalidInputError
from tocsin.contracts.identifiers import Kind, Role, ServiceName, SpiffeId
from tocsin.contracts.subjects import MAX_LIVE_TTL_MS, PREFIX, MessageClass, Senders, Subject, senders

ALL_SUBJECTS = [*SUBJECTS, *(request.subject for request in REQUESTS)]
DOMAIN = "test.tocsin"
BROKER_MAX_PAYLOAD = 1024 * 1024


def name_of(subject: Subject) -> str:
    return subject.name


@pytest.mark.parametrize("subject", ALL_SUBJECTS, ids=name_of)
def test_a_subject_that_is_built_is_read_back(subject: Subject) -> None:
    tokens = {token: f"{token}-1" for token in re.findall(r"{(\w+)}", subject.template)}
    built = subject.at(**tokens)
    assert built.startswith(f"{PREFIX}.")
    assert subject.parse(built) == tokens
    assert subject.pattern(**tokens) == built
    assert subject.pattern().count("*") == len(tokens)


@pytest.mark.parametrize("bad", ["", "a.b", "a b", "*", ">", "a\n", "ä", "x" * 129])
def test_a_token_that_is_no_token_is_refused(bad: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        DELIVER_AGENT.at(agent=bad)
    assert caught.value.reason == "bad_subject"


@pytest.mark.parametrize("tokens", [{}, {"agent": "a", "other": "b"}, {"other": "b"}])
def test_tokens_that_are_missing_or_too_many_are_refused(tokens: dict[str, str]) -> None:
    with pytest.raises(InvalidInputError):
        DELIVER_AGENT.at(**tokens)


@pytest.mark.parametrize(
    "subject",
    ["", "tocsin.v1.metrics", "tocsin.v1.metrics.a.b", "tocsin.v2.metrics.a", "tocsin.v1.metrics.a b"],
)
def test_a_foreign_subject_is_not_read(subject: str) -> None:
    with pytest.raises(InvalidInputError):
        METRICS.parse(subject)


def test_the_audience_follows_the_tokens() -> None:
    assert DELIVER_AGENT.audience_at({"agent": "a1"}) == "agent.a1"
    assert CONSENSUS_BALLOT.audience_at({"decision": "d", "agent": "a"}) == "service.consensus"
    assert ROUTE.audience_at({"type": "discovery", "priority": "low", "agent": "a"}) is None


def test_two_subjects_never_share_a_message() -> None:
    """A message on one must not be taken for one of another."""
    concrete = {
        one.name: one.at(**dict.fromkeys(re.findall(r"{(\w+)}", one.template), "x")) for one in ALL_SUBJECTS
    }
    for one in ALL_SUBJECTS:
        for name, subject in concrete.items():
            if name == one.name:
                continue
            with pytest.raises(InvalidInputError):
                one.parse(subject)


def test_a_name_on_the_wire_is_one_type() -> None:
    """The same name with two models would let one be taken for the other."""
    models = {kind.name: kind for kind in message_types()}
    for subject in ALL_SUBJECTS:
        for kind in subject.types:
            assert models[kind.name].model is kind.model
            assert models[kind.name].senders == kind.senders


def test_every_type_fits_through_the_broker() -> None:
    for kind in message_types():
        assert 0 < kind.max_bytes < BROKER_MAX_PAYLOAD, kind.name


def test_the_time_to_live_is_what_the_class_allows() -> None:
    for kind in message_types():
        if kind.message_class in {MessageClass.LIVE, MessageClass.ENROL}:
            assert 0 < kind.ttl_ms <= MAX_LIVE_TTL_MS, kind.name
        elif kind.message_class is MessageClass.STORED:
            assert kind.ttl_ms > 0, kind.name


def test_every_type_has_somebody_who_may_send_it() -> None:
    for kind in message_types():
        assert kind.senders != Senders(), kind.name
        assert str(kind.senders), kind.name
        assert kind.doc, kind.name


def test_a_subject_of_a_stream_is_in_it_and_no_other_is() -> None:
    for subject in ALL_SUBJECTS:
        inside = {
            stream.name
            for stream in STREAMS
            for pattern in stream.subjects
            if f"{subject.template}.".startswith(pattern.removesuffix(">"))
        }
        assert inside == ({subject.stream} if subject.stream else set()), subject.name


def test_every_service_but_the_command_answers_a_ping() -> None:
    assert set(PING) == set(ServiceName) - {ServiceName.CLI}


def test_buckets_have_names_of_their_own() -> None:
    assert len({bucket.name for bucket in BUCKETS}) == len(BUCKETS)


@pytest.mark.parametrize(
    ("sender", "admitted"),
    [
        (SpiffeId.agent(DOMAIN, Role.ADMIN, "a"), True),
        (SpiffeId.agent(DOMAIN, Role.HUNTER, "a"), False),
        (SpiffeId.service(DOMAIN, ServiceName.ROUTER, "0"), True),
        (SpiffeId.service(DOMAIN, ServiceName.FLEET, "0"), False),
        (SpiffeId.host(DOMAIN, "h"), True),
        (SpiffeId.authority(DOMAIN, "root"), False),
    ],
    ids=str,
)
def test_senders_admit_whom_they_name(sender: SpiffeId, *, admitted: bool) -> None:
    assert senders(Role.ADMIN, ServiceName.ROUTER, Kind.HOST).admit(sender) is admitted
