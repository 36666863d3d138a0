from __future__ import annotations

import pytest

from tocsin.analysis.inventory.codes import HELLO_RETRY_REQUEST, OFFERED_GROUPS
from tocsin.analysis.inventory.tls import MAX_ANSWER_BYTES, Answer, AnswerReader, client_hello
from tocsin.contracts.errors import InvalidInputError

NONCE = bytes(range(64))


def record(kind: int, data: bytes) -> bytes:
    return bytes([kind, 3, 3]) + len(data).to_bytes(2, "big") + data


def message(kind: int, body: bytes) -> bytes:
    return bytes([kind]) + len(body).to_bytes(3, "big") + body


def extension(kind: int, data: bytes) -> bytes:
    return kind.to_bytes(2, "big") + len(data).to_bytes(2, "big") + data


def hello(version: int, suite: int, *extensions: bytes, random: bytes = bytes(32)) -> bytes:
    packed = b"".join(extensions)
    body = version.to_bytes(2, "big") + random + b"\x00" + suite.to_bytes(2, "big") + b"\x00"
    return message(2, body + (len(packed).to_bytes(2, "big") + packed if packed else b""))


def retry(group: int) -> bytes:
    """A HelloRetryRequest that asks for a share of ``group``."""
    return hello(
        0x0303,
        0x1301,
        extension(43, b"\x03\x04"),
        extension(51, group.to_bytes(2, "big")),
        random=HELLO_RETRY_REQUEST,
    )


def old_answer(suite: int, exchange: bytes | None, certificate: bytes = b"DER") -> bytes:
    """The flight of a server of TLS 1.2."""
    one = len(certificate).to_bytes(3, "big") + certificate
    flight = hello(0x0303, suite) + message(11, len(one).to_bytes(3, "big") + one)
    if exchange is not None:
        flight += message(12, exchange)
    return record(22, flight + message(14, b""))


@pytest.mark.parametrize(
    ("group", "name"),
    [
        (0x11EC, "X25519MLKEM768"),
        (0x11EB, "SecP256r1MLKEM768"),
        (0x001D, "x25519"),
        (0x0017, "secp256r1"),
        (0xFFFF, "unknown-65535"),
    ],
)
def test_a_hello_retry_request_names_the_group(group: int, name: str) -> None:
    answer = AnswerReader().feed(record(22, retry(group)))
    assert answer == Answer("TLSv1.3", "TLS_AES_128_GCM_SHA256", name)


def test_a_server_hello_of_tls_1_3_names_the_group_of_its_share() -> None:
    share = extension(51, b"\x00\x1d\x00\x20" + bytes(32))
    answer = AnswerReader().feed(record(22, hello(0x0303, 0x1302, extension(43, b"\x03\x04"), share)))
    assert answer == Answer("TLSv1.3", "TLS_AES_256_GCM_SHA384", "x25519")


@pytest.mark.parametrize(
    ("suite", "exchange", "group"),
    [
        (0xC02F, b"\x03\x00\x17\x41" + bytes(65), "secp256r1"),
        (0xC02F, b"\x01\x00\x20" + bytes(40), "explicit-curve"),
        (0x009E, b"\x01\x00" + b"\x80" + bytes(255) + b"\x00\x01\x02\x00\x01\x03", "ffdh-2048"),
        (0x009C, None, ""),
    ],
)
def test_tls_1_2_shows_its_exchange_and_certificates(suite: int, exchange: bytes | None, group: str) -> None:
    answer = AnswerReader().feed(old_answer(suite, exchange))
    assert answer is not None
    assert (answer.version, answer.group, answer.certificates) == ("TLSv1.2", group, (b"DER",))


def test_an_answer_in_single_bytes_and_cut_into_records_is_the_same() -> None:
    whole = old_answer(0xC02F, b"\x03\x00\x1d\x20" + bytes(32))
    flight = whole[5:]
    cut = b"".join(record(22, flight[at : at + 7]) for at in range(0, len(flight), 7))
    reader = AnswerReader()
    answers = [reader.feed(bytes([byte])) for byte in cut]
    assert answers[-1] == AnswerReader().feed(whole)
    assert set(answers[:-1]) == {None}


def test_a_warning_is_passed_over_and_a_fatal_alert_is_the_answer() -> None:
    warning, fatal = record(21, b"\x01\x70"), record(21, b"\x02\x46")
    assert AnswerReader().feed(warning + record(22, retry(0x1D))) is not None
    assert AnswerReader().feed(warning + fatal) == Answer(alert=70)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", "not_tls"),
        (b"\x17\x03\x03\x00\x01x", "not_tls"),
        (b"\x16\x02", "not_tls"),
        (b"\x16\x03\x03\x00\x00", "bad_record"),
        (b"\x16\x03\x03\xff\xff", "bad_record"),
        (record(21, b"\x02"), "bad_record"),
        (record(22, message(11, b"")), "bad_handshake"),
        (record(22, message(2, b"\x03\x03")), "bad_handshake"),
        (record(22, b"\x02\xff\xff\xff"), "bad_handshake"),
        (record(22, hello(0x7F1C, 0x1301)), "bad_handshake"),
        (record(22, hello(0x0303, 0x1301, random=HELLO_RETRY_REQUEST)), "bad_handshake"),
        (record(22, hello(0x0303, 0xC02F) + message(12, b"\x03")), "bad_handshake"),
    ],
)
def test_what_is_no_answer_has_its_reason(data: bytes, reason: str) -> None:
    with pytest.raises(InvalidInputError) as refused:
        AnswerReader().feed(data)
    assert refused.value.reason == reason


def test_more_than_any_answer_is_not_held() -> None:
    reader = AnswerReader()
    reader.feed(record(22, hello(0x0303, 0xC02F)))
    more = record(22, message(13, bytes(15_000)))
    for _ in range(MAX_ANSWER_BYTES // len(more)):
        assert reader.feed(more) is None
    with pytest.raises(InvalidInputError) as refused:
        reader.feed(more)
    assert refused.value.reason == "answer_too_long"


def test_the_hello_offers_hybrids_first_and_no_key() -> None:
    sent = client_hello("mail.example.org", NONCE, (0x0304, 0x0303))
    assert sent[:3] == b"\x16\x03\x01"
    assert int.from_bytes(sent[3:5], "big") == len(sent) - 5
    assert b"mail.example.org" in sent
    groups = b"".join(code.to_bytes(2, "big") for code in OFFERED_GROUPS)
    assert groups[:2] == b"\x11\xec"
    assert extension(10, len(groups).to_bytes(2, "big") + groups) in sent
    assert extension(51, b"\x00\x00") in sent, "an empty list of key shares"
    assert len(sent) < 512


def test_an_old_hello_says_nothing_of_new_versions() -> None:
    sent = client_hello(None, NONCE, (0x0302,))
    assert sent[9:11] == b"\x03\x02"
    assert b"\x13\x01" not in sent[11 + 32 :][33:]
    assert extension(51, b"\x00\x00") not in sent


@pytest.mark.parametrize(
    ("name", "nonce", "versions", "groups"),
    [
        ("x" * 256, NONCE, (0x0304,), (29,)),
        ("", NONCE, (0x0304,), (29,)),
        ("bücher.example", NONCE, (0x0304,), (29,)),
        (None, b"short", (0x0304,), (29,)),
        (None, NONCE, (), (29,)),
        (None, NONCE, (0x0305,), (29,)),
        (None, NONCE, (0x0304,), ()),
        (None, NONCE, (0x0304,), (0x10000,)),
        (None, NONCE, (0x0304,), (29,) * 65),
    ],
)
def test_a_hello_that_cannot_be_is_refused(
    name: str | None, nonce: bytes, versions: tuple[int, ...], groups: tuple[int, ...]
) -> None:
    with pytest.raises(InvalidInputError) as refused:
        client_hello(name, nonce, versions, groups)
    assert refused.value.reason == "bad_hello"
