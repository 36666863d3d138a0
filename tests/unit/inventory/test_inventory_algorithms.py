from __future__ import annotations

import pytest

from tocsin.analysis.inventory.algorithms import Primitive, group, public_key, signature, signature_hash
from tocsin.analysis.inventory.shor import resources
from tocsin.analysis.inventory.suites import suite


@pytest.mark.parametrize(
    ("name", "shor", "strength", "category"),
    [
        ("x25519", True, 128, 0),
        ("secp256r1", True, 128, 0),
        ("secp521r1", True, 256, 0),
        ("x448", True, 224, 0),
        ("ffdhe2048", True, 112, 0),
        ("ffdh-1024", True, 80, 0),
        ("ffdh-512", True, 0, 0),
        ("X25519MLKEM768", False, None, 3),
        ("SecP384r1MLKEM1024", False, None, 5),
        ("MLKEM512", False, None, 1),
        ("unknown-4588", False, None, 3),
        ("X25519Kyber768Draft00", False, None, None),
    ],
)
def test_a_group_is_judged_by_its_name(
    name: str, shor: bool, strength: int | None, category: int | None
) -> None:
    known = group(name)
    assert (known.shor, known.strength, known.category) == (shor, strength, category)


@pytest.mark.parametrize("name", ["", "unknown-1", "grease", "ffdh-", "MLKEM999", "unknown-99999"])
def test_a_group_that_is_not_known_is_said_to_be_unknown(name: str) -> None:
    assert group(name).primitive is Primitive.UNKNOWN
    assert not group(name).shor


@pytest.mark.parametrize(
    ("kind", "bits", "curve", "name", "shor", "strength"),
    [
        ("rsa", 2048, "", "RSA-2048", True, 112),
        ("RSA", 4096, "", "RSA-4096", True, 128),
        ("rsa", 1024, "", "RSA-1024", True, 80),
        ("rsa", 512, "", "RSA-512", True, 0),
        ("rsa", None, "", "RSA", True, None),
        ("ecdsa", 256, "prime256v1", "ECDSA-secp256r1", True, 128),
        ("ecdsa", 384, "", "ECDSA-384", True, 192),
        ("ed25519", None, "", "Ed25519", True, 128),
        ("ml-dsa-65", None, "", "ML-DSA-65", False, None),
        ("id-ml-dsa-44", None, "", "ML-DSA-44", False, None),
        ("slh-dsa-sha2-128s", None, "", "SLH-DSA-SHA2-128S", False, None),
        ("oid-1.2.3", None, "", "unknown", False, None),
    ],
)
def test_a_key_is_judged_by_kind_and_size(
    kind: str, bits: int | None, curve: str, name: str, shor: bool, strength: int | None
) -> None:
    known = public_key(kind, bits, curve)
    assert (known.name, known.shor, known.strength) == (name, shor, strength)


@pytest.mark.parametrize(
    ("name", "exchange", "authentication", "cipher", "category"),
    [
        ("TLS_AES_128_GCM_SHA256", "ANY", "", "AES-128-GCM", 1),
        ("TLS_CHACHA20_POLY1305_SHA256", "ANY", "", "ChaCha20-Poly1305", None),
        ("TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384", "ECDHE", "RSA", "AES-256-GCM", 5),
        ("TLS_ECDHE_ECDSA_WITH_AES_128_CCM_8", "ECDHE", "ECDSA", "AES-128-CCM-8", 1),
        ("TLS_RSA_WITH_3DES_EDE_CBC_SHA", "RSA", "RSA", "3DES-CBC", 0),
        ("TLS_RSA_WITH_RC4_128_MD5", "RSA", "RSA", "RC4", 0),
        ("TLS_DH_anon_WITH_AES_128_CBC_SHA", "DHE", "anon", "AES-128-CBC", 1),
        ("TLS_RSA_WITH_NULL_SHA256", "RSA", "RSA", "NULL", 0),
        ("TLS_ECDHE_PSK_WITH_AES_128_CBC_SHA256", "ECDHE", "PSK", "AES-128-CBC", 1),
        ("TLS_GOSTR341112_256_WITH_KUZNYECHIK_CTR_OMAC", "unknown", "", "unknown", None),
        ("unknown-47802", "unknown", "", "unknown", None),
        ("", "unknown", "", "unknown", None),
    ],
)
def test_a_suite_is_read_and_never_guessed(
    name: str, exchange: str, authentication: str, cipher: str, category: int | None
) -> None:
    known = suite(name)
    assert (known.exchange, known.authentication) == (exchange, authentication)
    assert (known.cipher.name, known.cipher.category) == (cipher, category)


def test_symmetric_ciphers_and_hashes_are_not_broken_by_shor() -> None:
    known = suite("TLS_AES_128_GCM_SHA256")
    assert not known.cipher.shor
    assert not known.digest.shor
    assert suite("TLS_RSA_EXPORT_WITH_RC4_40_MD5").export


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("sha256WithRSAEncryption", "SHA256"),
        ("sha1WithRSAEncryption", "SHA"),
        ("ecdsa-with-SHA1", "SHA"),
        ("md5WithRSAEncryption", "MD5"),
        ("ecdsa-with-SHA512", "SHA512"),
        ("ED25519", ""),
        ("", ""),
    ],
)
def test_the_hash_of_a_signature_is_in_its_name(name: str, digest: str) -> None:
    assert signature_hash(name) == digest


def test_a_signature_is_judged_by_its_name() -> None:
    assert signature("sha256WithRSAEncryption").shor
    assert signature("ED25519").shor
    assert not signature("ml-dsa-65").shor
    assert signature("oid-1.2.3.4").primitive is Primitive.UNKNOWN


@pytest.mark.parametrize(
    ("curve", "qubits", "toffoli"),
    [
        ("secp224r1", 2042, 8.43e10),
        ("secp256r1", 2330, 1.26e11),
        ("secp384r1", 3484, 4.52e11),
        ("secp521r1", 4719, 1.14e12),
    ],
)
def test_the_formula_for_curves_gives_the_figures_of_its_paper(curve: str, qubits: int, toffoli: float) -> None:
    """Roetteler et al. 2017, table 2: qubits exactly; the gates that were counted, within 3%."""
    needed = resources(group(curve))
    assert needed is not None
    assert needed.logical_qubits == qubits
    assert needed.toffoli_gates == pytest.approx(toffoli, rel=0.03)


def test_rsa_2048_needs_what_its_papers_say() -> None:
    """Gidney and Ekera 2021, abstract: 3n + 0.002 n lg n qubits, 0.3 n^3 + 0.0005 n^3 lg n Toffoli gates."""
    needed = resources(public_key("rsa", 2048))
    assert needed is not None
    assert needed.logical_qubits == 6190
    assert needed.toffoli_gates == pytest.approx(2.62e9, rel=0.01)
    assert "million noisy qubits" in needed.noisy
    assert resources(public_key("rsa", 4096)).noisy == ""  # type: ignore[union-attr]


def test_what_is_not_broken_or_not_estimated_has_no_figure() -> None:
    for algorithm in (group("X25519MLKEM768"), group("ffdhe2048"), public_key("rsa"), public_key("ml-dsa-65")):
        assert resources(algorithm) is None
