"""What is answered to which command, by the specification's codes."""

from __future__ import annotations

import pytest

from tocsin.agent.openc2 import (
    OpenC2Command,
    Status,
    features,
    parse_command,
    parse_response,
    refusal,
    status_of,
)
from tocsin.contracts.errors import (
    DeniedError,
    ExhaustedError,
    InvalidInputError,
    InvariantBrokenError,
    TocsinError,
    UntrustedError,
)

DENY = b'"action":"deny","target":{"ipv4_net":"203.0.113.9"}'


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"{" + DENY + b',"args":{"start_time":1}}', Status.NOT_IMPLEMENTED),
        (b'{"action":"deny","target":{"ipv4_net":"203.0.113.0/24"}}', Status.NOT_IMPLEMENTED),
        (b'{"action":"deny","target":{"ipv4_connection":{}}}', Status.NOT_IMPLEMENTED),
        (b'{"action":"allow","target":{"ipv4_net":"203.0.113.9"}}', Status.NOT_IMPLEMENTED),
        (b'{"action":"contain","target":{"device":{"device_id":"7"}}}', Status.NOT_IMPLEMENTED),
        (b"{" + DENY + b',"actuator":{"er":{}}}', Status.NOT_IMPLEMENTED),
        (b'{"action":"smite","target":{"ipv4_net":"203.0.113.9"}}', Status.BAD_REQUEST),
        (b'{"action":"deny","target":{"ipv4_net":"::1"}}', Status.BAD_REQUEST),
        (b'{"action":"deny","target":{"ipv6_net":"fe80::1%eth0"}}', Status.BAD_REQUEST),
        (b"{" + DENY + b',"args":{"duration":0}}', Status.BAD_REQUEST),
        (b"{" + DENY + b',"args":{"duration":true}}', Status.BAD_REQUEST),
        (b"{" + DENY + b',"args":{"surprise":1}}', Status.BAD_REQUEST),
        (b"{" + DENY + b',"command_id":"two words"}', Status.BAD_REQUEST),
        (b'{"action":"query","target":{"features":["versions","versions"]}}', Status.BAD_REQUEST),
        (b"no json", Status.BAD_REQUEST),
    ],
)
def test_what_is_not_done_is_501_and_what_is_wrong_is_400(data: bytes, status: Status) -> None:
    with pytest.raises(InvalidInputError) as caught:
        parse_command(data)
    assert status_of(caught.value) == status


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UntrustedError("x"), Status.UNAUTHORIZED),
        (DeniedError("x"), Status.FORBIDDEN),
        (InvalidInputError("x", reason="no_such_command"), Status.NOT_FOUND),
        (InvariantBrokenError("x"), Status.INTERNAL_ERROR),
        (ExhaustedError("x"), Status.UNAVAILABLE),
    ],
)
def test_errors_have_their_codes(error: TocsinError, status: Status) -> None:
    answer = parse_response(refusal(error).encode())
    assert (answer.status, answer.succeeded) == (status, False)
    assert answer.status_text.startswith(error.reason)


def test_features_are_told_as_far_as_they_are_asked_for() -> None:
    query = parse_command(b'{"action":"query","target":{"features":["pairs","versions"]}}')
    assert query == OpenC2Command("query", "features", ("pairs", "versions"))
    assert isinstance(query.value, tuple)
    answer = parse_response(features(query.value).encode())
    assert answer.results["versions"] == ["1.0"]
    assert "deny" in answer.results["pairs"]  # type: ignore[operator]  # JSON
    assert features(()).encode() == b'{"status":200}'
