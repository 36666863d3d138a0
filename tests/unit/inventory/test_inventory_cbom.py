"""The CBOM: read back by the library's own reader, valid by its schema where the validator is installed."""

from __future__ import annotations

import importlib.util
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from cyclonedx.model.bom import Bom

from tocsin.analysis.inventory import cbom, own
from tocsin.analysis.inventory.judging import Assumptions
from tocsin.analysis.inventory.model import Certificate, Inventory, InventoryBuilder, Variant
from tocsin.analysis.inventory.ranking import Ranked, rank

NOW_S = 1_795_564_800.0
VARIANTS = [
    Variant("TLSv1.3", "TLS_AES_128_GCM_SHA256", "X25519MLKEM768"),
    Variant("TLSv1.2", "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384", "secp256r1"),
    Variant("TLSv1.2", "TLS_RSA_WITH_3DES_EDE_CBC_SHA"),
    Variant("DTLSv1.2", "TLS_PSK_WITH_AES_128_CCM_8"),
    Variant("unknown-1", "unknown-2", "unknown-3"),
    Variant("plain", ""),
]


def inventory(*, backwards: bool = False) -> Inventory:
    builder = InventoryBuilder()
    certificates = [
        Certificate("a" * 64, "CN=a", "CN=ca", 0.0, 2e9, "rsa", 2048, "", "sha256WithRSAEncryption"),
        Certificate("b" * 64, "CN=b", "CN=b", -1e10, 9e11, "ed25519", None, "", "ED25519"),
        Certificate("c" * 64, "", "", 0.0, 2e9, "oid-1.2.3", None, "", "oid-1.2.3"),
    ]
    step = -1 if backwards else 1
    for certificate in certificates[::step]:
        builder.add_certificate(certificate)
    for number, variant in list(enumerate(VARIANTS))[::step]:
        ids = [one.id for one in certificates[: number % 4]]
        builder.add_session(f"192.0.2.{number}", 443, variant, at_s=NOW_S, server_name="x", certificates=ids)
    builder.add_session("2001:db8::1", 443, VARIANTS[0], at_s=NOW_S)
    own.declare(builder, now_s=NOW_S)
    return builder.build()


def written(of: Inventory) -> str:
    return cbom.write(of, ranked(of))


def ranked(of: Inventory) -> tuple[Ranked, ...]:
    return rank(of, Assumptions(now_s=NOW_S))


def test_the_library_reads_it_back() -> None:
    text = written(inventory())
    document: dict[str, Any] = json.loads(text)
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    bom = Bom.from_json(data=document)  # type: ignore[attr-defined]
    assert bom.validate()
    kinds = {one.crypto_properties.asset_type.value for one in bom.components}
    assert kinds == {"algorithm", "certificate", "protocol", "related-crypto-material"}
    assert len(bom.services) == len(VARIANTS) + 3


def test_every_reference_leads_to_a_component() -> None:
    document = json.loads(written(inventory()))
    refs = {one["bom-ref"] for one in document["components"] + document["services"]}
    refs.add(document["metadata"]["component"]["bom-ref"])

    def references(value: object) -> set[str]:
        if isinstance(value, dict):
            own_refs = {v for k, v in value.items() if k.endswith("Ref")}
            lists = [v for k, v in value.items() if k in {"cryptoRefArray", "algorithms", "dependsOn"}]
            found = own_refs | {one for many in lists for one in many}
            return found.union(*map(references, value.values()))
        return set().union(*map(references, value)) if isinstance(value, list) else set()

    assert references(document) <= refs
    depends = {one["ref"]: set(one.get("dependsOn", [])) for one in document["dependencies"]}
    assert depends["service:192.0.2.0:443"] == {"protocol:TLSv1.3 TLS_AES_128_GCM_SHA256 X25519MLKEM768"}
    protocol = "protocol:TLSv1.2 TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384 secp256r1"
    assert "algorithm:key-agree:ECDH-secp256r1" in depends[protocol]


def test_what_shor_breaks_has_level_0_and_what_resists_its_category() -> None:
    levels = {
        one["name"]: one["cryptoProperties"]["algorithmProperties"].get("nistQuantumSecurityLevel")
        for one in json.loads(written(inventory()))["components"]
        if one["cryptoProperties"]["assetType"] == "algorithm"
    }
    assert (levels["ECDH-secp256r1"], levels["RSA-2048"], levels["Ed25519"]) == (0, 0, 0)
    assert (levels["X25519MLKEM768"], levels["ML-DSA-65"], levels["AES-128-GCM"]) == (3, 3, 1)


def test_two_runs_give_the_same_bytes_and_another_content_another_serial() -> None:
    first, again = written(inventory()), written(inventory(backwards=True))
    assert first == again
    fewer = InventoryBuilder()
    fewer.add_session("192.0.2.1", 443, VARIANTS[0], at_s=NOW_S)
    other = json.loads(written(fewer.build()))
    assert other["serialNumber"] != json.loads(first)["serialNumber"]
    assert other["metadata"]["timestamp"] == "2026-11-25T00:00:00+00:00"
    at = datetime(2027, 1, 1, tzinfo=UTC)
    dated = json.loads(cbom.write(fewer.build(), ranked(fewer.build()), at=at))
    assert dated["metadata"]["timestamp"] == "2027-01-01T00:00:00+00:00"


def test_what_is_left_out_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cbom, "MAX_ENDPOINTS", 2)
    document = json.loads(written(inventory()))
    assert len(document["services"]) == 2
    assert document["properties"] == [{"name": "tocsin:left-out", "value": str(len(VARIANTS) + 1)}]


def test_nothing_seen_is_an_empty_document() -> None:
    document = json.loads(written(InventoryBuilder().build()))
    assert document.get("components", []) == []


@pytest.mark.skipif(
    importlib.util.find_spec("jsonschema") is None,
    reason="cyclonedx-python-lib[json-validation] is not installed",
)
def test_it_is_valid_by_the_schema_of_cyclonedx_1_6() -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(written(inventory())) is None
