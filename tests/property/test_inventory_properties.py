"""Any bytes in, a value or one of our errors out; and what holds of every ranking."""

from __future__ import annotations

import json
from io import BytesIO
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st
from tls_servers import certificate_of, rsa_key
from unit.inventory.test_inventory_tls import old_answer, record, retry
from unit.inventory.test_inventory_zeek import TSV_SSL, TSV_X509, session

from tocsin.agent.roles.exposures import Told, news_of
from tocsin.agent.roles.plan import Plan, parse_plan
from tocsin.analysis.inventory import algorithms, suites
from tocsin.analysis.inventory.codes import OFFERED_GROUPS
from tocsin.analysis.inventory.judging import Assumptions, Level
from tocsin.analysis.inventory.model import Inventory, InventoryBuilder, Variant
from tocsin.analysis.inventory.ranking import rank
from tocsin.analysis.inventory.tls import Answer, AnswerReader, client_hello
from tocsin.analysis.inventory.x509 import read_certificate
from tocsin.analysis.inventory.zeek_tls import read_certificates, read_sessions
from tocsin.contracts.errors import InvalidInputError

FLIGHTS = (
    record(22, retry(0x11EC)),
    old_answer(0xC02F, b"\x03\x00\x17\x41" + bytes(65)),
    old_answer(0x009E, b"\x01\x00" + b"\x80" * 256 + b"\x00\x01\x02\x00\x01\x03"),
)


@st.composite
def damaged(draw: st.DrawFn, originals: tuple[bytes, ...]) -> bytes:
    """One of the originals with some bytes changed, and cut somewhere."""
    data = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(0, 4))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.integers(0, len(data)))])


def answer_of(chunks: list[bytes]) -> Answer | str | None:
    reader = AnswerReader()
    try:
        for chunk in chunks:
            answer = reader.feed(chunk)
            if answer is not None:
                return answer
    except InvalidInputError as error:
        return error.reason
    return None


@given(st.binary(max_size=300) | damaged(FLIGHTS))
def test_any_answer_is_a_value_or_our_error_however_it_is_cut(data: bytes) -> None:
    at_once = answer_of([data])
    one_by_one = answer_of([data[at : at + 1] for at in range(len(data))])
    if isinstance(at_once, Answer):
        assert one_by_one == at_once
    assert one_by_one is None or isinstance(one_by_one, Answer | str)


@given(
    st.none() | st.from_regex(r"[a-z]{1,20}(\.[a-z]{1,10}){0,3}", fullmatch=True),
    st.binary(min_size=64, max_size=64),
    st.sampled_from([(0x0304,), (0x0304, 0x0303), (0x0303,), (0x0302,), (0x0301, 0x0300)]),
    st.lists(st.sampled_from(OFFERED_GROUPS), min_size=1, max_size=9, unique=True),
)
def test_a_hello_is_one_sound_record(
    name: str | None, nonce: bytes, versions: tuple[int, ...], groups: list[int]
) -> None:
    sent = client_hello(name, nonce, versions, groups)
    assert int.from_bytes(sent[3:5], "big") == len(sent) - 5
    assert sent[5] == 1
    assert int.from_bytes(sent[6:9], "big") == len(sent) - 9
    extensions = read_extensions(sent)
    packed = b"".join(group.to_bytes(2, "big") for group in groups)
    assert extensions[10] == len(packed).to_bytes(2, "big") + packed
    assert (0 in extensions) is (name is not None)
    assert (43 in extensions) is (51 in extensions) is (0x0304 in versions)
    assert nonce[:32] in sent
    assert nonce[32:] in sent


def read_extensions(hello: bytes) -> dict[int, bytes]:
    """Read a hello's extensions; an independent reading of RFC 8446 section 4.1.2."""
    at = 9 + 2 + 32
    at += 1 + hello[at]
    at += 2 + int.from_bytes(hello[at : at + 2], "big")
    at += 1 + hello[at]
    assert int.from_bytes(hello[at : at + 2], "big") == len(hello) - at - 2
    at += 2
    found: dict[int, bytes] = {}
    while at < len(hello):
        kind, length = int.from_bytes(hello[at : at + 2], "big"), int.from_bytes(hello[at + 2 : at + 4], "big")
        assert kind not in found
        found[kind] = hello[at + 4 : at + 4 + length]
        at += 4 + length
    assert at == len(hello)
    return found


LOGS = (TSV_SSL, TSV_X509, session() * 3, session(**{"id_resp_h": "::1", "id.resp_h": None}) * 2)


@given(st.binary(max_size=400) | damaged(LOGS))
def test_any_log_is_read_or_refused(data: bytes) -> None:
    for read in (read_sessions, read_certificates):
        builder = InventoryBuilder()
        try:
            counted = read(BytesIO(data), builder)
        except InvalidInputError as error:
            refused = error.reason
        else:
            refused = "unknown_format"
            assert counted.taken + counted.bad + counted.skipped == counted.lines
            rank(builder.build(), Assumptions(now_s=1.8e9))
        assert refused == "unknown_format"


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
KEYS = st.sampled_from(
    [
        *("ts", "id.resp_h", "id_resp_p", "version", "cipher", "curve", "established", "server_name"),
        *("cert_chain_fuids", "cert_chain_fps", "id", "fingerprint", "certificate.key_alg", "_path"),
        *(
            "certificate.key_type",
            "certificate.key_length",
            "certificate_subject",
            "certificate.not_valid_after",
        ),
    ]
)


@given(st.dictionaries(KEYS, SCALARS | st.lists(SCALARS, max_size=3), max_size=12))
def test_any_record_of_a_log_is_taken_or_counted_as_bad(fields: dict[str, Any]) -> None:
    line = session() + session(**fields)
    counted = read_sessions(BytesIO(line), InventoryBuilder())
    assert counted.lines == 2
    assert counted.taken >= 1


CERTIFICATE = certificate_of(rsa_key(1024)).public_bytes(Encoding.DER)


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
@given(st.binary(max_size=200) | damaged((CERTIFICATE,)))
def test_any_certificate_is_read_or_refused(der: bytes) -> None:
    try:
        said = read_certificate(der).key_kind
    except InvalidInputError as error:
        said = error.reason
    assert said in {"rsa", "bad_certificate"} or said.startswith("oid-")


@given(st.text(max_size=60), st.none() | st.integers(-10, 10**7), st.text(max_size=20))
def test_any_name_is_classified(name: str, bits: int | None, curve: str) -> None:
    algorithms.group(name)
    algorithms.public_key(name, bits, curve)
    algorithms.signature(name)
    suites.suite(name)


VARIANTS = st.builds(
    Variant,
    st.sampled_from(["TLSv1.3", "TLSv1.2", "TLSv1.0", "SSLv3", "plain", "unknown-7"]),
    st.sampled_from(["TLS_AES_128_GCM_SHA256", "TLS_RSA_WITH_AES_128_CBC_SHA", "TLS_RSA_WITH_NULL_SHA", ""]),
    st.sampled_from(["", "x25519", "secp256r1", "X25519MLKEM768", "ffdhe2048", "unknown-9"]),
)
SESSIONS = st.lists(st.tuples(st.integers(1, 12), VARIANTS), max_size=40)


def inventory_of(sessions: list[tuple[int, Variant]]) -> Inventory:
    builder = InventoryBuilder()
    for port, variant in sessions:
        builder.add_session("192.0.2.1", port, variant, at_s=1.8e9)
    return builder.build()


YEARS = st.floats(0, 50)


@given(SESSIONS, YEARS, YEARS, YEARS, st.randoms(use_true_random=False))
def test_a_ranking_is_complete_ordered_stable_and_grows_with_secrecy(
    sessions: list[tuple[int, Variant]], x: float, more: float, y: float, random: Any
) -> None:
    inventory = inventory_of(sessions)
    ranked = rank(inventory, Assumptions(1.8e9, x, y))
    assert [one.rank for one in ranked] == list(range(1, len(inventory.endpoints) + 1))
    assert sorted(one.endpoint.name for one in ranked) == sorted(one.name for one in inventory.endpoints)
    assert [one.level for one in ranked] == sorted((one.level for one in ranked), reverse=True)
    shuffled = list(sessions)
    random.shuffle(shuffled)
    assert rank(inventory_of(shuffled), Assumptions(1.8e9, x, y)) == ranked
    before = {one.endpoint.name: one for one in ranked}
    for after in rank(inventory, Assumptions(1.8e9, x + more, y)):
        assert after.level >= before[after.endpoint.name].level
        assert after.exposure >= before[after.endpoint.name].exposure


@given(SESSIONS, SESSIONS)
def test_what_was_told_is_no_news_and_a_high_endpoint_is_alerted_once(
    first: list[tuple[int, Variant]], second: list[tuple[int, Variant]]
) -> None:
    told = Told()
    alerted: list[str] = []
    for sessions in (first, second, first + second):
        ranked = rank(inventory_of(sessions), Assumptions(1.8e9, 30, 5))
        news = news_of(ranked, told)
        for _, about in news.alerts:
            alerted += about
            told.keep({}, about)
        for _, digests in news.intelligence:
            told.keep(digests, ())
        again = news_of(ranked, Told.decode(told.encode()))
        assert (again.alerts, again.intelligence) == ((), ())
        assert {one.endpoint.name for one in ranked if one.level is Level.HIGH} <= set(alerted)
    assert len(alerted) == len(set(alerted))


@given(
    st.binary(max_size=100)
    | st.recursive(SCALARS, lambda inner: st.dictionaries(st.text(max_size=9), inner)).map(
        lambda value: json.dumps(value).encode()
    )
)
def test_any_plan_and_any_record_of_what_was_told_is_read_or_refused(data: bytes) -> None:
    for read, reason in ((parse_plan, "bad_plan"), (Told.decode, "bad_state")):
        try:
            value: object = read(data)
        except InvalidInputError as error:
            value = error.reason
        assert isinstance(value, Plan | Told) or value == reason
