"""Decide which keys speak for which ids: every chain is checked to the one root that is pinned.

A chain is a leaf; or a leaf and one intermediate; or these and, third, the root's own certificate that the leaf
renews: an intermediate can give longer life to what the root has certified, never certify a service itself. All are
DER. What is checked, each with its reason code:

* size and form, critical extensions, usage, path length, name constraint: ``bad_certificate``;
* signatures lead to the pinned root: ``wrong_root``;
* each validity period lies within its issuer's: ``bad_validity``;
* the names: ``bad_names``, ``wrong_domain``, ``beyond_authority`` (an intermediate vouches for agents and
  hosts only), ``shared_key``;
* a renewal says what the root has said, but for the time: ``bad_renewal``;
* no key of the chain was revoked as compromised, nor retired before the leaf began: ``revoked``;
* no id goes back to a lower generation, or to a second key in the same one: ``stale_generation``.

There is no clock here: an expired certificate is accepted into the store, because a stored message is
judged at the moment when it was issued; who opens an envelope asks :meth:`Identity.valid_at`. Periods are
nested, so a leaf that is valid has a chain that is valid.

Renewal. A newer generation under a new key takes over each id it names. The old key keeps its claim to
that id only while it is exactly one generation behind, so that messages in flight during a renewal still
verify; one that skips a generation takes the id from every earlier key at once. A new certificate for the same key and
ids takes over the period of the one before it, where the two overlap: what was signed before the renewal still
verifies. Both have the same issuer, or issuers of one name, of which the later takes the earlier's place
(:meth:`TrustStore.is_superseded`).

Does not protect against a root that lies, and forgets generations when the process ends: the bucket that
the chains come from is read again at start.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from threading import Lock

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tocsin.contracts.errors import ExhaustedError, InvalidInputError, UntrustedError
from tocsin.contracts.identifiers import Kind, SpiffeId
from tocsin.crypto.backends import select_backend
from tocsin.crypto.certificates import ParsedCertificate, bad_certificate, renews, violation
from tocsin.crypto.signatures import Algorithm, SignatureBackend, Verifier

MAX_CHAIN = 3
"""A leaf, at most one intermediate, and the root's certificate that the leaf renews; the root itself is pinned."""

MAX_KNOWN_NAMES = 200_000
"""Most ids whose generation is remembered: ten for each of the 20,000 keys of a default store."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A public key and the ids that a validated certificate lets it speak for."""

    ids: frozenset[str]
    domain: str
    key_id: bytes
    algorithm: Algorithm
    public_key: bytes = field(repr=False)
    not_before_ns: int
    """Its beginning, or that of the first of the certificates that were renewed without a gap."""
    not_after_ns: int
    issued_ns: int
    """The beginning of this certificate itself."""
    generation: int
    verifier: Verifier = field(repr=False, compare=False)
    chain: tuple[bytes, ...] = field(repr=False)
    """DER, leaf first, without the root (the root's own identity has itself)."""

    def names(self, sender: str) -> bool:
        """Tell whether the certificate names ``sender``."""
        return sender in self.ids

    def valid_at(self, moment_ns: int) -> bool:
        """Tell whether the certificate is valid at a moment, in nanoseconds since the epoch."""
        return self.not_before_ns <= moment_ns <= self.not_after_ns


@dataclass(frozen=True, slots=True)
class _Claim:
    """Who speaks for one id now, and who may still do so during a renewal."""

    generation: int
    key_id: bytes
    previous: bytes | None
    issuer: bytes


@dataclass(frozen=True, slots=True)
class _Chain:
    """What a chain holds, once its signatures and rules were checked."""

    leaf: ParsedCertificate
    issuer: ParsedCertificate
    original: ParsedCertificate | None
    """The root's certificate that the leaf renews."""


class TrustStore:
    """The identities that chain to one pinned root. Safe in several threads; a look-up takes no lock."""

    def __init__(
        self,
        root_pem: bytes,
        backend: SignatureBackend | None = None,
        *,
        max_identities: int = 20_000,
    ) -> None:
        self._backend = backend or select_backend()
        self._root = _parse_root(root_pem)
        self.domain = self._root.ids()[0].domain
        self.root_fingerprint = sha256(self._root.der).hexdigest()
        self.root = self._identity(self._root, (self._root.der,))
        self._max_identities = max_identities
        self._identities: dict[bytes, Identity] = {}
        self._issuers: dict[bytes, bytes] = {}
        self._authorities: dict[bytes, tuple[str, int]] = {}
        """Name and beginning of each intermediate that was seen; the root makes them, so they are few."""
        self._claims: dict[str, _Claim] = {}
        self._revoked: set[bytes] = set()
        self._disowned: dict[bytes, None] = {}
        """Keys that only an authority vouched for that was compromised; the last ``max_identities``."""
        self._retired: dict[bytes, int] = {}
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._identities)

    def identity(self, key_id: bytes) -> Identity | None:
        """Return the identity of a key that was added and is neither revoked nor superseded."""
        return self._identities.get(key_id)

    def has_certified(self, spiffe_id: str) -> bool:
        """Tell whether any key was certified for an id, be it revoked meanwhile. Takes no lock."""
        return spiffe_id in self._claims

    def add_chain(self, chain: Sequence[bytes]) -> Identity:
        """Validate a chain, leaf first and without the root, and remember whom it identifies.

        It costs one or two full verifications and, with 2,048 ids, some milliseconds: for a worker thread.
        The same certificate again is no change. Of two for one key in one generation the later counts.

        Raises:
            UntrustedError: with one of the module's reasons.
            ExhaustedError: the store is full; reason ``too_many_identities``.
        """
        checked = self._validate(chain)
        issuer, voucher = checked.issuer.key_id, self._voucher(checked)
        identity = self._identity(checked.leaf, tuple(chain))
        if checked.original is not None:
            # The root's word on this key goes back to there.
            identity = replace(identity, not_before_ns=checked.original.not_before_ns)
        with self._lock:
            self._refuse_revoked(checked.leaf, checked.issuer)
            if issuer != self._root.key_id:
                self._authorities[issuer] = checked.issuer.uris[0], checked.issuer.not_before_ns
            identity = self._until_retired(identity)
            self._refuse_stale(identity)
            held = self._identities.get(identity.key_id)
            if held is not None and _age(identity) < _age(held):
                return held
            self._refuse_overflow(identity)
            if held is not None and self._succeeds(held, identity, issuer):
                identity = _continued(held, identity)
            self._take_over(identity, issuer, voucher)
        return identity

    def is_superseded(self, key_id: bytes) -> bool:
        """Tell whether the authority that vouches for a key has a successor: one of its name that begins later.

        The root makes authorities, so nobody else can start a renewal by this. Takes no lock.
        """
        issuer = self._issuers.get(key_id)
        known = self._authorities.get(issuer) if issuer is not None else None
        if known is None:
            return False
        name, begun_ns = known
        return any(
            other == name and later_ns > begun_ns and key not in self._revoked
            for key, (other, later_ns) in list(self._authorities.items())
        )

    def certified_by(self, authority: bytes) -> tuple[Identity, ...]:
        """Return the identities that an authority's key vouches for now. O(identities)."""
        return tuple(
            identity
            for key_id, identity in list(self._identities.items())
            if self._issuers.get(key_id) == authority
        )

    def is_compromised(self, key_id: bytes) -> bool:
        """Tell whether nothing that a key signs is believed. Takes no lock.

        It was revoked as compromised, or who vouched for it was and nobody else has done so since.
        """
        return key_id in self._revoked or key_id in self._disowned

    def is_revoked(self, key_id: bytes) -> bool:
        """Tell whether a key was revoked, be it compromised or only retired. Takes no lock."""
        return key_id in self._revoked or key_id in self._retired

    def revoke_key(self, key_id: bytes) -> None:
        """Mark one key as compromised: see :meth:`revoke`."""
        self.revoke((key_id,))

    def revoke(self, compromised: Collection[bytes], retired: Mapping[bytes, int] | None = None) -> None:
        """Revoke keys for good: leaves', or authorities' with all that they vouched for.

        Generations that a compromised authority has claimed are forgotten, so that it cannot have used up
        the generations of ids that another authority will name. A leaf's claims stay, so that no earlier key
        of its ids comes back: their next key needs a higher generation.

        Args:
            compromised: ids of keys that somebody else may have: dropped at once.
            retired: ids of keys out of use, each with the moment in nanoseconds since the epoch after which
                what it signs counts no more. Certificates that a retired authority issued before stay.
        """
        retired = retired or {}
        with self._lock:
            self._revoked.update(compromised)
            for key_id, since_ns in retired.items():
                self._retired[key_id] = min(since_ns, self._retired.get(key_id, since_ns))
                if (held := self._identities.get(key_id)) is not None:
                    self._identities[key_id] = self._until_retired(held)
            whole_root = self.root.key_id in self._revoked
            for known, issuer in list(self._issuers.items()):
                if whole_root or not self._revoked.isdisjoint((known, issuer)):
                    renewed = self._identities.get(known)
                    self._drop(known)
                    if renewed is None or whole_root or known in self._revoked or not self._fall_back(renewed):
                        self._disowned[known] = None
            while len(self._disowned) > self._max_identities:
                del self._disowned[next(iter(self._disowned))]
            for name, claim in list(self._claims.items()):
                if claim.issuer in self._revoked:
                    del self._claims[name]

    def keys_of(self, name: str) -> dict[bytes, frozenset[str]]:
        """Return the ids of the keys that speak for a name now, and all names that each speaks for.

        Args:
            name: an id or its token, e.g. ``agent.hunter-02``; or the name of an agent or a host alone.
                The id of an authority gives its own key, with all names that it vouched for.
        """
        found: dict[bytes, frozenset[str]] = {}
        for identity in list(self._identities.values()):
            if any(_is_called(one, name) for one in identity.ids):
                found[identity.key_id] = identity.ids
            for authority in map(ParsedCertificate.parse, identity.chain[1:2]):
                if any(_is_called(one, name) for one in authority.uris):
                    found[authority.key_id] = found.get(authority.key_id, frozenset()) | identity.ids
        return found

    def forget_expired(self, before_ns: int) -> int:
        """Drop identities whose certificate ended before a moment; return how many. Generations stay."""
        with self._lock:
            ended = [one.key_id for one in self._identities.values() if one.not_after_ns < before_ns]
            for key_id in ended:
                self._drop(key_id)
        return len(ended)

    def _validate(self, chain: Sequence[bytes]) -> _Chain:
        """Return what a chain holds once signatures, periods, usage and names are in order."""
        if not 1 <= len(chain) <= MAX_CHAIN:
            raise bad_certificate(f"a chain has 1 to {MAX_CHAIN} certificates, not {len(chain)}")
        parsed = [ParsedCertificate.parse(der) for der in chain]
        issuer, original = self._root, None
        if len(parsed) > 1:
            issuer = parsed[1]
            self._check_link(issuer, self._root)
            self._check_intermediate(issuer)
        if len(parsed) > 2:
            original = parsed[2]
            self._check_link(original, self._root)
            _check_leaf_form(original)
        leaf = parsed[0]
        self._check_link(leaf, issuer)
        _check_leaf_form(leaf)
        if original is not None and not renews(leaf, original):
            raise UntrustedError("it is no renewal of what the root has certified", reason="bad_renewal")
        from_root = issuer is self._root or original is not None
        if reason := violation(leaf.ids(), self.domain, from_root=from_root):
            raise UntrustedError("the issuer may not vouch for these ids", reason=reason)
        return _Chain(leaf, issuer, original)

    def _voucher(self, checked: _Chain) -> bytes:
        """Return whose word the claim to an id is: the root's, where its own certificate is only renewed."""
        return checked.issuer.key_id if checked.original is None else self._root.key_id

    def _succeeds(self, held: Identity, renewed: Identity, issuer: bytes) -> bool:
        """Tell whether an issuer may continue what the issuer of a held identity began."""
        before = self._issuers[held.key_id]
        if before == issuer or (_is_roots(held) and _is_roots(renewed)):
            return True
        name, _ = self._authorities.get(before, ("", 0))
        return name != "" and name == self._authorities.get(issuer, ("", 0))[0]

    def _fall_back(self, renewed: Identity) -> bool:
        """Keep what the root itself has certified when the authority that renewed it was revoked."""
        if len(renewed.chain) < MAX_CHAIN:
            return False
        original = self._identity(ParsedCertificate.parse(renewed.chain[2]), renewed.chain[2:])
        self._identities[original.key_id] = self._until_retired(original)
        self._issuers[original.key_id] = self._root.key_id
        return True

    @staticmethod
    def _check_link(child: ParsedCertificate, issuer: ParsedCertificate) -> None:
        if not child.is_signed_by(issuer):
            raise UntrustedError("the chain does not lead to the trusted root", reason="wrong_root")
        inside = issuer.not_before_ns <= child.not_before_ns < child.not_after_ns <= issuer.not_after_ns
        if not inside:
            raise UntrustedError("a certificate's validity exceeds its issuer's", reason="bad_validity")

    def _check_intermediate(self, authority: ParsedCertificate) -> None:
        ids = authority.ids()
        if not authority.is_authority or authority.path_length != 0 or not authority.usage.key_cert_sign:
            raise bad_certificate("not the certificate of an intermediate")
        if authority.constrained_to != self.domain:
            raise bad_certificate("an intermediate is constrained to its trust domain")
        if len(ids) != 1 or ids[0].kind is not Kind.AUTHORITY or ids[0].domain != self.domain:
            raise bad_certificate("an intermediate has one authority's id of this trust domain")
        if authority.key_id == self._root.key_id:
            raise bad_certificate("an intermediate has a key of its own")

    def _identity(self, certificate: ParsedCertificate, chain: tuple[bytes, ...]) -> Identity:
        return Identity(
            ids=frozenset(certificate.uris),
            domain=self.domain,
            key_id=certificate.key_id,
            algorithm=certificate.algorithm,
            public_key=certificate.public_key,
            not_before_ns=certificate.not_before_ns,
            not_after_ns=certificate.not_after_ns,
            issued_ns=certificate.not_before_ns,
            generation=certificate.generation or 0,
            verifier=self._backend.verifier(certificate.algorithm, certificate.public_key),
            chain=chain,
        )

    def _refuse_revoked(self, leaf: ParsedCertificate, issuer: ParsedCertificate) -> None:
        late = any(
            self._retired.get(key.key_id, leaf.not_before_ns + 1) <= leaf.not_before_ns
            for key in (leaf, issuer)
        )
        if late or not self._revoked.isdisjoint((leaf.key_id, issuer.key_id, self.root.key_id)):
            raise UntrustedError("a key of the chain was revoked", reason="revoked")

    def _until_retired(self, identity: Identity) -> Identity:
        """Cut an identity's validity at the moment when its key was retired, if it was."""
        since_ns = self._retired.get(identity.key_id, identity.not_after_ns)
        return replace(identity, not_after_ns=since_ns) if since_ns < identity.not_after_ns else identity

    def _refuse_stale(self, identity: Identity) -> None:
        for name in identity.ids:
            claim = self._claims.get(name)
            if claim is None or identity.generation > claim.generation:
                continue
            if identity.generation < claim.generation or identity.key_id != claim.key_id:
                raise UntrustedError(
                    f"generation {identity.generation} of {name} is superseded", reason="stale_generation"
                )

    def _refuse_overflow(self, identity: Identity) -> None:
        known = identity.key_id in self._identities
        if not known and len(self._identities) >= self._max_identities:
            raise ExhaustedError(
                f"the trust store holds its {self._max_identities} identities", reason="too_many_identities"
            )
        fresh = sum(name not in self._claims for name in identity.ids)
        if len(self._claims) + fresh > MAX_KNOWN_NAMES:
            raise ExhaustedError(
                f"the trust store knows its {MAX_KNOWN_NAMES} names", reason="too_many_identities"
            )

    def _take_over(self, identity: Identity, issuer: bytes, voucher: bytes) -> None:
        """Record the identity's claim to each of its ids, and take them from keys that have lost theirs."""
        losses: dict[bytes, set[str]] = {}
        for name in identity.ids:
            claim = self._claims.get(name)
            previous = _previous_key(claim, identity)
            for loser in _keys_of(claim) - {previous, identity.key_id}:
                losses.setdefault(loser, set()).add(name)
            self._claims[name] = _Claim(identity.generation, identity.key_id, previous, voucher)
        self._identities[identity.key_id] = identity
        self._issuers[identity.key_id] = issuer
        self._disowned.pop(identity.key_id, None)
        for loser, names in losses.items():
            self._release(loser, names)

    def _release(self, key_id: bytes, names: Iterable[str]) -> None:
        held = self._identities.get(key_id)
        if held is None:
            return
        if remaining := held.ids.difference(names):
            self._identities[key_id] = replace(held, ids=remaining)
        else:
            self._drop(key_id)

    def _drop(self, key_id: bytes) -> None:
        self._identities.pop(key_id, None)
        self._issuers.pop(key_id, None)


def _is_called(spiffe_id: str, name: str) -> bool:
    """Tell whether a name means this id: itself, its token, or an agent's or a host's own name."""
    if spiffe_id == name:
        return True
    one = SpiffeId.parse(spiffe_id)
    return name == one.token or (name == one.name and one.kind in {Kind.AGENT, Kind.HOST})


def _previous_key(claim: _Claim | None, identity: Identity) -> bytes | None:
    """Return the key that keeps an id beside ``identity``: the one exactly one generation behind it."""
    if claim is None:
        return None
    if claim.key_id == identity.key_id:
        return claim.previous if claim.generation == identity.generation else None
    return claim.key_id if claim.generation + 1 == identity.generation else None


def _keys_of(claim: _Claim | None) -> set[bytes]:
    if claim is None:
        return set()
    return {claim.key_id} if claim.previous is None else {claim.key_id, claim.previous}


def _age(identity: Identity) -> tuple[int, int, int]:
    """Order the certificates of one key: by generation, then by period."""
    return identity.generation, identity.issued_ns, identity.not_after_ns


def _is_roots(identity: Identity) -> bool:
    """Tell whether the root itself has certified a key, be it renewed by another."""
    return len(identity.chain) != 2


def _continued(held: Identity, renewed: Identity) -> Identity:
    """Let a renewed identity begin with the one before it, if it names the same ids and no time lies between."""
    if held.ids != renewed.ids or not held.not_before_ns < renewed.not_before_ns <= held.not_after_ns:
        return renewed
    return replace(renewed, not_before_ns=held.not_before_ns)


def _check_leaf_form(leaf: ParsedCertificate) -> None:
    if leaf.is_authority or leaf.usage.key_cert_sign or not leaf.usage.digital_signature:
        raise bad_certificate("not a certificate for signing messages")
    if leaf.generation is None:
        raise bad_certificate("it has no generation")


def _parse_root(root_pem: bytes) -> ParsedCertificate:
    """Return the root, self-signed and fit to vouch; anything else raises InvalidInputError."""
    try:
        root = ParsedCertificate.parse(x509.load_pem_x509_certificate(root_pem).public_bytes(Encoding.DER))
        ids = root.ids()
    except (ValueError, UntrustedError) as error:
        raise InvalidInputError("not a root certificate in PEM", reason="bad_root") from error
    fit = root.is_authority and root.usage.key_cert_sign and root.not_before_ns < root.not_after_ns
    if not fit or len(ids) != 1 or ids[0].kind is not Kind.AUTHORITY or not root.is_signed_by(root):
        raise InvalidInputError("not the root certificate of an authority", reason="bad_root")
    return root
