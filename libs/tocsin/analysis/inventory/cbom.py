"""An inventory as a CycloneDX 1.6 CBOM, JSON: what other tools read.

* an algorithm: ``cryptographic-asset``, with its parameters, strength and NIST category (0: broken by Shor's
  algorithm, or classically);
* a certificate, its public key (``related-crypto-material``) and its signature's algorithm;
* a protocol: one for each version, cipher suite and group that sessions agreed upon, referring to its algorithms;
* a service: an endpoint, with its rank and reasons as properties ``tocsin:*``; it depends on its protocols and
  certificates, and those on their algorithms.

The same inventory and ranking give the same bytes, so that two runs can be compared: the serial number is a
hash of the content, and the timestamp is when something was last seen, unless one is given.

CycloneDX 1.6: https://cyclonedx.org/docs/1.6/json/. Needs cyclonedx-python-lib (extra ``agents``).
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import NAMESPACE_URL, UUID, uuid5

from tocsin.analysis.inventory import algorithms, suites
from tocsin.analysis.inventory.algorithms import Algorithm, Primitive
from tocsin.analysis.inventory.judging import exchange_of
from tocsin.analysis.inventory.model import Certificate, Inventory, Variant
from tocsin.analysis.inventory.ranking import Ranked
from tocsin.contracts.errors import UnavailableError

if TYPE_CHECKING:
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.bom_ref import BomRef
    from cyclonedx.model.component import Component
    from cyclonedx.model.dependency import Dependency
    from cyclonedx.model.service import Service

MAX_ENDPOINTS = 5_000
"""Endpoints that are written, the most urgent ones: the library holds some 80 kB for each. The property
``tocsin:left-out`` counts the others."""

_TLS_TYPES = {"TLS": "tls", "SSL": "tls", "DTLS": "dtls"}


def write(inventory: Inventory, ranked: Sequence[Ranked], *, at: datetime | None = None) -> str:
    """Write a CBOM.

    Args:
        inventory: What was seen.
        ranked: Its ranking.
        at: The document's timestamp; by default when something was last seen.

    Raises:
        UnavailableError: ``no_cyclonedx``: the library is not installed.
    """
    try:
        output = importlib.import_module("cyclonedx.output.json")
    except ImportError as error:
        raise UnavailableError(
            "a CBOM needs cyclonedx-python-lib", reason="no_cyclonedx", advice="install tocsin[agents]"
        ) from error
    seen_s = max((one.last_s for one in inventory.endpoints), default=0.0)
    bom = _Writer(inventory).bom(ranked, at or datetime.fromtimestamp(min(max(seen_s, 0.0), 2e11), UTC))
    written: str = output.JsonV1Dot6(bom).output_as_string(indent=2)
    return written + "\n"


def _serial_of(inventory: Inventory, ranked: Sequence[Ranked], at: datetime) -> UUID:
    """Return a serial number that is the same for the same content, and another for another."""
    content = (inventory.endpoints, sorted(inventory.certificates.items()), tuple(ranked), at.isoformat())
    return uuid5(NAMESPACE_URL, f"tocsin-cbom:{hashlib.sha256(repr(content).encode()).hexdigest()}")


class _Writer:
    """Makes the components, each once."""

    def __init__(self, inventory: Inventory) -> None:
        self._inventory = inventory
        self._components: dict[str, Component] = {}
        self._depends: list[tuple[Component | Service, list[BomRef]]] = []

    def bom(self, ranked: Sequence[Ranked], at: datetime) -> Bom:
        from cyclonedx.model import Property  # noqa: PLC0415
        from cyclonedx.model.bom import Bom, BomMetaData  # noqa: PLC0415 - only who writes a CBOM needs it
        from cyclonedx.model.component import Component, ComponentType  # noqa: PLC0415

        services = [self._service(one) for one in ranked[:MAX_ENDPOINTS]]
        left_out = len(ranked) - len(services)
        tool = Component(name="tocsin inventory", type=ComponentType.APPLICATION, bom_ref="tocsin-inventory")
        bom = Bom(
            serial_number=_serial_of(self._inventory, ranked, at),
            components=self._components.values(),
            services=services,
            metadata=BomMetaData(timestamp=at, component=tool),
            dependencies=self._dependencies(tool, services),
            properties=[Property(name="tocsin:left-out", value=str(left_out))] if left_out else None,
        )
        # The library's own validation looks through the whole graph once more for each component, to add what is
        # missing: minutes for thousands of endpoints. Nothing is missing here.
        setattr(bom, "register_dependency", lambda *_, **__: None)  # noqa: B010 - mypy knows it as a method
        return bom

    def _dependencies(self, tool: Component, services: list[Service]) -> list[Dependency]:
        """Return the graph at once: the library's register_dependency looks through all of it for each."""
        from cyclonedx.model.dependency import Dependency  # noqa: PLC0415

        needed = {one.bom_ref: wanted for one, wanted in self._depends}
        needed[tool.bom_ref] = [one.bom_ref for one in services]
        for refs in list(needed.values()):
            for ref in refs:
                needed.setdefault(ref, [])
        return [
            Dependency(ref=ref, dependencies=[Dependency(ref=one) for one in refs])
            for ref, refs in needed.items()
        ]

    def _service(self, one: Ranked) -> Service:
        from cyclonedx.model import Property, XsUri  # noqa: PLC0415
        from cyclonedx.model.service import Service  # noqa: PLC0415

        endpoint = one.endpoint
        said = {
            "rank": str(one.rank),
            "level": one.level.name.lower(),
            "sessions": str(endpoint.sessions),
            "exposure-session-years": f"{one.exposure:.1f}",
            "sources": ",".join(endpoint.sources),
            **{f"reason:{reason.code}": reason.text for reason in one.reasons},
        }
        service = Service(
            name=endpoint.name,
            bom_ref=f"service:{endpoint.name}",
            # The library escapes an IPv6 address's brackets, which makes the URI invalid; the name has it.
            endpoints=[] if ":" in endpoint.host else [XsUri(f"tcp://{endpoint.name}")],
            description=", ".join(endpoint.names) or None,
            properties=[Property(name=f"tocsin:{name}", value=value) for name, value in sorted(said.items())],
        )
        needed = [self._protocol(variant) for variant, _ in endpoint.variants]
        needed += [self._certificate(self._inventory.certificates[id_]) for id_ in endpoint.certificates]
        self._depends.append((service, [one.bom_ref for one in needed]))
        return service

    def _keep(self, component: Component, needed: Iterable[Component] = ()) -> Component:
        self._components[str(component.bom_ref.value)] = component
        wanted = [one.bom_ref for one in needed]
        if wanted:
            self._depends.append((component, wanted))
        return component

    def _algorithm(self, algorithm: Algorithm) -> Component:
        from cyclonedx.model.component import Component, ComponentType  # noqa: PLC0415
        from cyclonedx.model.crypto import (  # noqa: PLC0415
            AlgorithmProperties,
            CryptoAssetType,
            CryptoPrimitive,
            CryptoProperties,
        )

        ref = f"algorithm:{algorithm.primitive.value}:{algorithm.name}"
        if ref in self._components:
            return self._components[ref]
        properties = AlgorithmProperties(
            primitive=CryptoPrimitive(algorithm.primitive.value),
            parameter_set_identifier=algorithm.parameters or None,
            curve=algorithm.curve or None,
            classical_security_level=algorithm.strength,
            nist_quantum_security_level=algorithm.category,
        )
        crypto = CryptoProperties(asset_type=CryptoAssetType.ALGORITHM, algorithm_properties=properties)
        kind = ComponentType.CRYPTOGRAPHIC_ASSET
        return self._keep(Component(name=algorithm.name, type=kind, bom_ref=ref, crypto_properties=crypto))

    def _protocol(self, variant: Variant) -> Component:
        from cyclonedx.model.component import Component, ComponentType  # noqa: PLC0415
        from cyclonedx.model.crypto import (  # noqa: PLC0415
            CryptoAssetType,
            CryptoProperties,
            ProtocolProperties,
            ProtocolPropertiesCipherSuite,
            ProtocolPropertiesType,
        )

        name = " ".join(part for part in (variant.version, variant.suite, variant.group) if part)
        ref = f"protocol:{name}"
        if ref in self._components:
            return self._components[ref]
        suite = suites.suite(variant.suite)
        used = [one for one in (exchange_of(variant), suite.cipher, suite.digest) if one is not None]
        needed = [self._algorithm(one) for one in used if one.primitive is not Primitive.UNKNOWN]
        refs = [one.bom_ref for one in needed]
        kind, _, version = variant.version.partition("v")
        properties = ProtocolProperties(
            type=ProtocolPropertiesType(_TLS_TYPES.get(kind, "other")),
            version=version if kind in _TLS_TYPES else variant.version,
            cipher_suites=[ProtocolPropertiesCipherSuite(name=variant.suite, algorithms=refs)]
            if variant.suite
            else None,
            crypto_refs=refs,
        )
        crypto = CryptoProperties(asset_type=CryptoAssetType.PROTOCOL, protocol_properties=properties)
        asset = ComponentType.CRYPTOGRAPHIC_ASSET
        return self._keep(Component(name=name, type=asset, bom_ref=ref, crypto_properties=crypto), needed)

    def _certificate(self, certificate: Certificate) -> Component:
        from cyclonedx.model.component import Component, ComponentType  # noqa: PLC0415
        from cyclonedx.model.crypto import (  # noqa: PLC0415
            CertificateProperties,
            CryptoAssetType,
            CryptoProperties,
            RelatedCryptoMaterialProperties,
            RelatedCryptoMaterialType,
        )

        ref = f"certificate:{certificate.id}"
        if ref in self._components:
            return self._components[ref]
        asset = ComponentType.CRYPTOGRAPHIC_ASSET
        key = self._algorithm(
            algorithms.public_key(certificate.key_kind, certificate.key_bits, certificate.curve)
        )
        material = RelatedCryptoMaterialProperties(
            type=RelatedCryptoMaterialType.PUBLIC_KEY, algorithm_ref=key.bom_ref, size=certificate.key_bits
        )
        public = self._keep(
            Component(
                name=f"public key of {certificate.subject}",
                type=asset,
                bom_ref=f"key:{certificate.id}",
                crypto_properties=CryptoProperties(
                    asset_type=CryptoAssetType.RELATED_CRYPTO_MATERIAL,
                    related_crypto_material_properties=material,
                ),
            ),
            [key],
        )
        digest = suites.digest(algorithms.signature_hash(certificate.signature))
        signature = algorithms.signature(certificate.signature)
        signed = [self._algorithm(one) for one in (signature, digest) if one.primitive is not Primitive.UNKNOWN]
        properties = CertificateProperties(
            subject_name=certificate.subject,
            issuer_name=certificate.issuer,
            not_valid_before=_moment(certificate.not_before_s),
            not_valid_after=_moment(certificate.not_after_s),
            signature_algorithm_ref=signed[0].bom_ref if signature.primitive is Primitive.SIGNATURE else None,
            subject_public_key_ref=public.bom_ref,
            certificate_format="X.509",
        )
        crypto = CryptoProperties(asset_type=CryptoAssetType.CERTIFICATE, certificate_properties=properties)
        component = Component(
            name=certificate.subject or certificate.id, type=asset, bom_ref=ref, crypto_properties=crypto
        )
        return self._keep(component, [public, *signed])


def _moment(at_s: float) -> datetime | None:
    """Return a moment; None where a log says one that no calendar has."""
    try:
        return datetime.fromtimestamp(at_s, UTC)
    except (ValueError, OverflowError, OSError):
        return None
