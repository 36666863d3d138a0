"""Every backend judges the Wycheproof vectors for ML-DSA-65 verification as they say.

The file is ``shared/data/wycheproof/mldsa_65_verify_test.json`` beside the repository (its README there
says where it is from): valid and invalid signatures, keys of wrong lengths, malformed hints, contexts.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tocsin.contracts.errors import UntrustedError
from tocsin.crypto import Algorithm, SignatureBackend

VECTORS = Path(__file__).resolve().parents[4] / "shared" / "data" / "wycheproof" / "mldsa_65_verify_test.json"


def test_wycheproof_verification_vectors(backend: SignatureBackend) -> None:
    if not VECTORS.is_file():
        pytest.skip(f"NOT TESTED: the Wycheproof vectors are not at {VECTORS}")
    vectors = json.loads(VECTORS.read_text())
    wrong: list[str] = []
    judged = 0
    for group in vectors["testGroups"]:
        for test in group["tests"]:
            accepted = _accepts(backend, group["publicKey"], test)
            judged += 1
            if accepted != (test["result"] == "valid"):
                wrong.append(f"{test['tcId']}: {test['comment']} {test['flags']}")
    assert judged == vectors["numberOfTests"]
    assert wrong == []


def _accepts(backend: SignatureBackend, public_key: str, test: dict[str, str]) -> bool:
    signature, message = bytes.fromhex(test["sig"]), bytes.fromhex(test["msg"])
    try:
        verifier = backend.verifier(Algorithm.ML_DSA_65, bytes.fromhex(public_key))
    except UntrustedError:
        return False
    return verifier.verify(signature, message, bytes.fromhex(test.get("ctx", "")))
