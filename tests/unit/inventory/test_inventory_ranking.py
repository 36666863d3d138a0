from __future__ import annotations

from datetime import UTC, datetime

import pytest

from tocsin.analysis.inventory.judging import ENVELOPE, PLAIN, YEAR_S, Assumptions, Level, Reason
from tocsin.analysis.inventory.model import MAX_VARIANTS, Certificate, InventoryBuilder, Variant
from tocsin.analysis.inventory.ranking import Ranked, rank
from tocsin.contracts.errors import InvalidInputError

NOW_S = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
MODERN = Variant("TLSv1.3", "TLS_AES_128_GCM_SHA256", "x25519")
HYBRID = Variant("TLSv1.3", "TLS_AES_128_GCM_SHA256", "X25519MLKEM768")
STATIC = Variant("TLSv1.2", "TLS_RSA_WITH_AES_128_GCM_SHA256")


def assume(x: float = 5, y: float = 5, **more: object) -> Assumptions:
    return Assumptions(now_s=NOW_S, secrecy_years=x, migration_years=y, **more)  # type: ignore[arg-type]


def certificate(
    *,
    kind: str = "ecdsa",
    bits: int | None = 256,
    years: float = 1,
    signature: str = "ecdsa-with-SHA256",
    issuer: str = "CN=an authority",
) -> Certificate:
    return Certificate(
        "c",
        "O=Example,CN=host.example",
        issuer,
        NOW_S - YEAR_S,
        NOW_S + years * YEAR_S,
        kind,
        bits,
        "",
        signature,
    )


def judged(*variants: Variant, given: Assumptions | None = None, cert: Certificate | None = None) -> Ranked:
    builder = InventoryBuilder()
    if cert is not None:
        builder.add_certificate(cert)
    for variant in variants:
        ids = [cert.id] if cert else []
        builder.add_session("192.0.2.1", 443, variant, at_s=NOW_S, certificates=ids)
    (one,) = rank(builder.build(), given or assume())
    return one


def reason(one: Ranked, code: str) -> Reason:
    (found,) = [reason for reason in one.reasons if reason.code == code]
    return found


@pytest.mark.parametrize(
    ("x", "y", "level"),
    [
        (10, 0, Level.HIGH),  # x > z = 9: what is recorded today is lost
        (9.5, 5, Level.HIGH),
        (8, 5, Level.MEDIUM),  # x <= z < x + y: what is recorded until the migration is done
        (5, 5, Level.MEDIUM),
        (4, 4, Level.LOW),  # x + y < z
        (0, 0, Level.LOW),
    ],
)
def test_mosca_s_inequality_decides_how_urgent_a_key_exchange_is(x: float, y: float, level: Level) -> None:
    one = judged(MODERN, given=assume(x, y))
    assert reason(one, "harvest_now").level is level
    assert reason(one, "harvest_now").deadline == 2035
    assert one.margin_years == pytest.approx(9 - x - y, abs=0.01)
    assert one.exposure == pytest.approx(max(0.0, x + y - 9), abs=0.01)


def test_a_hybrid_exchange_is_no_risk_and_is_said() -> None:
    one = judged(HYBRID, given=assume(100, 100))
    assert one.level is Level.INFO
    assert reason(one, "post_quantum_exchange").sessions == 1
    assert one.exposure == 0
    assert one.broken == ()


def test_one_endpoint_that_speaks_both_is_judged_by_its_worst_and_counts_only_that() -> None:
    one = judged(HYBRID, HYBRID, HYBRID, MODERN, given=assume(10, 0))
    assert one.level is Level.HIGH
    assert reason(one, "harvest_now").sessions == 1
    assert one.exposure == pytest.approx(1, abs=0.01)


def test_key_transport_has_no_forward_secrecy() -> None:
    one = judged(STATIC)
    assert reason(one, "no_forward_secrecy").level is Level.MEDIUM
    assert reason(one, "harvest_now").text.startswith("RSA key transport")


def test_a_sensitive_endpoint_has_a_longer_x() -> None:
    builder = InventoryBuilder()
    builder.add_session("192.0.2.1", 443, MODERN, at_s=NOW_S)
    builder.add_session("192.0.2.2", 443, MODERN, at_s=NOW_S, server_name="db.example")
    builder.add_session("192.0.2.3", 443, MODERN, at_s=NOW_S)
    given = assume(sensitive={"db.example": 25.0, "192.0.2.3:443": 12.0})
    assert [one.endpoint.host for one in rank(builder.build(), given)] == [
        "192.0.2.2",
        "192.0.2.3",
        "192.0.2.1",
    ]


def test_many_sessions_come_before_few_of_the_same_level() -> None:
    builder = InventoryBuilder()
    builder.add_session("192.0.2.1", 443, MODERN, at_s=NOW_S)
    for _ in range(3):
        builder.add_session("192.0.2.9", 443, MODERN, at_s=NOW_S)
    assert [one.endpoint.host for one in rank(builder.build(), assume())] == ["192.0.2.9", "192.0.2.1"]


@pytest.mark.parametrize(
    ("years", "y", "level"), [(1, 5, Level.LOW), (10, 5, Level.MEDIUM), (1, 10, Level.MEDIUM)]
)
def test_a_signature_matters_only_when_the_machine_exists(years: float, y: float, level: Level) -> None:
    one = judged(HYBRID, given=assume(0, y), cert=certificate(years=years))
    assert reason(one, "forgeable").level is level


def test_rsa_2048_has_the_earlier_deadline_and_p_256_the_later() -> None:
    rsa = judged(HYBRID, cert=certificate(kind="rsa", bits=2048))
    assert reason(rsa, "forgeable").deadline == 2030
    assert reason(judged(HYBRID, cert=certificate()), "forgeable").deadline == 2035


@pytest.mark.parametrize(
    ("cert", "code", "level"),
    [
        (certificate(kind="rsa", bits=1024), "weak_key", Level.HIGH),
        (certificate(signature="sha1WithRSAEncryption"), "weak_signature", Level.MEDIUM),
        (certificate(signature="md5WithRSAEncryption"), "weak_signature", Level.HIGH),
        (certificate(years=-0.5), "expired", Level.MEDIUM),
        (certificate(kind="ml-dsa-65", bits=None), "post_quantum_signature", Level.INFO),
        (certificate(kind="oid-1.2.3", bits=None), "unknown_key", Level.LOW),
    ],
)
def test_a_certificate_s_weakness_is_named(cert: Certificate, code: str, level: Level) -> None:
    assert reason(judged(HYBRID, cert=cert), code).level is level


def test_the_hash_of_a_self_signed_certificate_is_nobody_s_concern() -> None:
    own = certificate(signature="sha1WithRSAEncryption", issuer="O=Example,CN=host.example")
    assert "weak_signature" not in {one.code for one in judged(HYBRID, cert=own).reasons}


@pytest.mark.parametrize(
    ("variant", "code", "level"),
    [
        (Variant("SSLv3", "TLS_RSA_WITH_AES_128_CBC_SHA"), "old_protocol", Level.HIGH),
        (Variant("TLSv1.0", "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA", "secp256r1"), "old_protocol", Level.MEDIUM),
        (Variant("TLSv1.2", "TLS_RSA_WITH_RC4_128_SHA"), "weak_cipher", Level.HIGH),
        (Variant("TLSv1.2", "TLS_RSA_WITH_3DES_EDE_CBC_SHA"), "weak_cipher", Level.MEDIUM),
        (Variant("TLSv1.2", "TLS_RSA_WITH_NULL_SHA256"), "no_protection", Level.HIGH),
        (Variant("TLSv1.2", "TLS_DH_anon_WITH_AES_128_CBC_SHA"), "no_protection", Level.HIGH),
        (Variant("TLSv1.0", "TLS_RSA_EXPORT_WITH_RC4_40_MD5"), "no_protection", Level.HIGH),
        (Variant("TLSv1.2", "TLS_DHE_RSA_WITH_AES_128_CBC_SHA", "ffdh-1024"), "weak_exchange", Level.HIGH),
        (Variant("TLSv1.2", "TLS_PSK_WITH_AES_128_CBC_SHA"), "shared_secret", Level.INFO),
        (Variant("TLSv1.3", "TLS_AES_128_GCM_SHA256", "unknown-12345"), "unknown_exchange", Level.LOW),
        (Variant("TLSv1.2", "unknown-1"), "unknown_exchange", Level.LOW),
        (Variant("TLSv1.3", "TLS_AES_128_GCM_SHA256"), "unknown_exchange", Level.LOW),
        (Variant(PLAIN, ""), "unencrypted", Level.HIGH),
    ],
)
def test_a_protocol_s_weakness_is_named(variant: Variant, code: str, level: Level) -> None:
    assert reason(judged(variant, given=assume(0, 0)), code).level is level


def test_a_sealed_envelope_is_no_protocol() -> None:
    one = judged(Variant(ENVELOPE, "TLS_AES_256_GCM_SHA256", "X25519MLKEM768"))
    assert {found.code for found in one.reasons} == {"post_quantum_exchange"}


def test_a_certificate_that_nobody_saw_is_said() -> None:
    assert reason(judged(HYBRID), "certificate_not_seen").level is Level.INFO


def test_what_finds_no_room_is_counted() -> None:
    builder = InventoryBuilder(max_endpoints=2, max_certificates=1)
    for port in range(1, 6):
        builder.add_session("192.0.2.1", port, MODERN, at_s=NOW_S)
    builder.add_certificate(certificate())
    builder.add_certificate(Certificate("d", "", "", 0, 0, "rsa", 1, "", ""))
    inventory = builder.build()
    assert len(inventory.endpoints) == 2
    assert inventory.dropped == {"certificates": 1, "endpoints": 3}


def test_one_endpoint_cannot_have_endless_variants() -> None:
    builder = InventoryBuilder()
    for number in range(3 * MAX_VARIANTS):
        builder.add_session("192.0.2.1", 443, Variant("TLSv1.2", f"unknown-{number}"), at_s=NOW_S)
    (endpoint,) = builder.build().endpoints
    assert len(endpoint.variants) == MAX_VARIANTS
    assert sum(count for _, count in endpoint.variants) == endpoint.sessions == 3 * MAX_VARIANTS


@pytest.mark.parametrize("more", [{"secrecy_years": -1.0}, {"machine_year": 1999}, {"sensitive": {"a": 201.0}}])
def test_assumptions_out_of_bounds_are_refused(more: dict[str, object]) -> None:
    with pytest.raises(InvalidInputError) as refused:
        Assumptions(now_s=NOW_S, **more)  # type: ignore[arg-type]
    assert refused.value.reason == "bad_assumption"


def test_a_machine_that_exists_already_makes_every_exchange_urgent() -> None:
    given = assume(1, 1, machine_year=2020)
    assert given.machine_in_years == 0
    assert judged(MODERN, given=given).level is Level.HIGH
