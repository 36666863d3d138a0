from __future__ import annotations

import json
from io import BytesIO

import pytest
from support import SHARED

from tocsin.analysis.inventory.model import InventoryBuilder, Variant
from tocsin.analysis.inventory.zeek_tls import read_certificates, read_sessions
from tocsin.contracts.errors import InvalidInputError

SSL = SHARED / "data/zeek/apt29-nashua.ssl.log"
X509 = SHARED / "data/zeek/apt29-nashua.x509.log"
needs_data = pytest.mark.skipif(not SSL.exists(), reason="the real data of ../shared is not here")

TSV_SSL = (
    b"#separator \\x09\n#set_separator\t,\n#empty_field\t(empty)\n#unset_field\t-\n#path\tssl\n"
    b"#fields\tts\tuid\tid.orig_h\tid.orig_p\tid.resp_h\tid.resp_p\tversion\tcipher\tcurve\tserver_name\tresumed\t"
    b"established\tcert_chain_fps\n"
    b"#types\ttime\tstring\taddr\tport\taddr\tport\tstring\tstring\tstring\tstring\tbool\tbool\tvector[string]\n"
    b"1700000000.5\tC1\t10.0.0.2\t50000\t2001:db8::5\t443\tTLSv13\tTLS_AES_128_GCM_SHA256\tX25519MLKEM768\twww.example\t"
    b"F\tT\t-\n"
    b"1700000001.5\tC2\t10.0.0.2\t50001\t10.0.0.9\t8443\tTLSv12\tTLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256\tsecp256r1\t-\t"
    b"F\tT\tab12,cd34\n"
    b"1700000002.5\tC3\t10.0.0.2\t50002\t10.0.0.9\t8443\tTLSv12\t-\t-\t-\tF\tF\t(empty)\n"
    b"#close\t2023-11-14-22-13-20\n"
)
TSV_X509 = (
    b"#separator \\x09\n#unset_field\t-\n#path\tx509\n"
    b"#fields\tts\tfingerprint\tcertificate.version\tcertificate.serial\tcertificate.subject\tcertificate.issuer\t"
    b"certificate.not_valid_before\tcertificate.not_valid_after\tcertificate.key_alg\tcertificate.sig_alg\t"
    b"certificate.key_type\tcertificate.key_length\tcertificate.curve\n"
    b"1700000001.5\tab12\t3\t01\tCN=leaf\tCN=authority\t1600000000.0\t1800000000.0\trsaEncryption\t"
    b"sha256WithRSAEncryption\trsa\t2048\t-\n"
    b"1700000001.5\tcd34\t3\t02\tCN=authority\tCN=authority\t1500000000.0\t1900000000.0\tid-ecPublicKey\t"
    b"ecdsa-with-SHA384\tecdsa\t384\tsecp384r1\n"
)


@needs_data
def test_the_real_logs_are_one_endpoint_with_one_certificate() -> None:
    builder = InventoryBuilder()
    with X509.open("rb") as certificates, SSL.open("rb") as sessions:
        assert read_certificates(certificates, builder).taken == 376
        assert read_sessions(sessions, builder).taken == 376
    inventory = builder.build()
    (endpoint,) = inventory.endpoints
    (certificate,) = inventory.certificates.values()
    assert (endpoint.name, endpoint.sessions) == ("192.168.0.4:8443", 376)
    assert endpoint.variants == (
        (Variant("TLSv1.2", "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384", "secp256r1"), 376),
    )
    assert (certificate.key_kind, certificate.key_bits, certificate.self_issued) == ("rsa", 2048, True)


def test_tab_separated_logs_with_fingerprints_are_read() -> None:
    builder = InventoryBuilder()
    certificates = read_certificates(BytesIO(TSV_X509), builder)
    sessions = read_sessions(BytesIO(TSV_SSL), builder)
    assert (certificates.taken, certificates.bad) == (2, 0)
    assert (sessions.taken, sessions.bad, sessions.lines) == (2, 0, 11)
    inventory = builder.build()
    assert [one.name for one in inventory.endpoints] == ["10.0.0.9:8443", "[2001:db8::5]:443"]
    assert inventory.endpoints[0].certificates == ("ab12", "cd34")
    assert inventory.certificates["cd34"].curve == "secp384r1"
    assert inventory.endpoints[1].variants[0][0].group == "X25519MLKEM768"
    assert inventory.endpoints[1].names == ("www.example",)


def session(**more: object) -> bytes:
    fields = {
        "ts": 1.0,
        "id.resp_h": "10.0.0.1",
        "id.resp_p": 443,
        "version": "TLSv12",
        "cipher": "TLS_RSA_WITH_AES_128_CBC_SHA",
        "established": True,
    }
    return json.dumps(fields | more).encode() + b"\n"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (session(**{"id.resp_h": "nowhere"}), "bad_address"),
        (session(**{"id.resp_p": 70_000}), "bad_port"),
        (session(**{"id.resp_p": "443"}), "bad_number"),
        (session(version=None), "no_cipher"),
        (session(ts="yesterday"), "bad_timestamp"),
        (session(ts=1e300), "bad_timestamp"),
        (session(server_name=7), "bad_text"),
        (session(server_name="\ud800"), "bad_text"),
        (session()[:40] + b"\n", "malformed_json"),
        (b"\x00\xff\xfe\n", "not_utf8"),
        (b"\n", "empty"),
        (b"[" * 100_000 + b"\n", "nested_too_deeply"),
        (b"x" * (1024 * 1024 + 2) + b"\n", "too_long"),
    ],
)
def test_a_bad_line_is_counted_and_the_rest_is_read(line: bytes, reason: str) -> None:
    builder = InventoryBuilder()
    read = read_sessions(BytesIO(session() + line + session()), builder)
    assert (read.taken, read.bad_by_reason) == (2, {reason: 1})


def test_a_log_cut_in_the_middle_of_a_line_keeps_what_came_before() -> None:
    builder = InventoryBuilder()
    whole = session() * 3
    read = read_sessions(BytesIO(whole[: len(whole) - 20]), builder)
    assert (read.taken, read.bad) == (2, 1)


def test_other_logs_in_a_combined_stream_are_skipped() -> None:
    other = b'{"_path": "conn", "ts": 1}\n'
    named = session(_path="ssl")
    read = read_sessions(BytesIO(other + named + other), InventoryBuilder())
    assert (read.taken, read.skipped, read.bad) == (1, 2, 0)


@pytest.mark.parametrize("data", [b"", b"hello\n", b"\x00\x01\xff" * 50, b'{"a": 1}\n' * 40, b"[1, 2]\n"])
def test_what_is_no_such_log_is_refused(data: bytes) -> None:
    for read in (read_sessions, read_certificates):
        with pytest.raises(InvalidInputError) as refused:
            read(BytesIO(data), InventoryBuilder())
        assert refused.value.reason == "unknown_format"


def test_the_wrong_log_of_zeek_is_bad_from_its_path_on() -> None:
    read = read_certificates(BytesIO(TSV_SSL), InventoryBuilder())
    assert read.taken == 0
    assert read.bad_by_reason["not_a_x509_log"] == 1
