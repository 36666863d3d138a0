"""From findings of days, hosts and logs to incidents: which belong together, and when that is worth an incident.

**Links.** A finding g continues an earlier f (it begins no earlier, at most MEMORY_S later) if

1. both are about the same subject;
2. g's subject is a target of f and a host of ours: who was attacked, acts;
3. both show command and control or exfiltration, and name the same address outside;
4. g's subject is an address that f calls: a command server that attacks by itself.

What is linked, over any number of steps, is one case.

**Incidents.** A case is one when it holds a finding of at least ALONE; or is **corroborated**: findings of two kinds
from two sources about one subject that join to at least JOINED; or is a **chain**: two linked findings with a later
tactic after an earlier one (:mod:`tocsin.analysis.tactics`). Scores join as 1 - prod(1 - s). A case is an incident
again when it has got a new tactic, a new subject or kind, or a score that is clearly stronger.

An attack against a host of ours by another one that was a victim before is lateral movement, whatever its technique.

Findings below LEAST are left out: an IDS alert of a reputation list, which everybody on the Internet gets, must not tie
the world together. So must not what our hosts call outside, but by rule 3, or everybody would be tied by one search
engine.

Bounds: MAX_FINDINGS, the oldest go first; MAX_CASE findings of a case are looked at, the latest.

Pure: the clock is passed in, nothing is random, state goes out and in as data.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pydantic import TypeAdapter, ValidationError

from tocsin.agent.roles.alerting import CLEARLY_STRONGER, summary_of
from tocsin.agent.roles.correlation import MAX_RELATED, MAX_RELATED_BYTES, within
from tocsin.agent.roles.memory import Memory
from tocsin.analysis.hosts import is_internal
from tocsin.analysis.tactics import ATTACKS, Tactic, tactic_of
from tocsin.contracts.errors import InvalidInputError
from tocsin.contracts.observations import Finding, FindingKind, Incident

MEMORY_S = 3 * 86400.0
"""Three days between two steps: of the intrusions that Mandiant's M-Trends 2024 counts, the median dwelt ten days, so a
chain may last as long as it goes on; a step that takes longer begins a case of its own."""
LEAST = 0.3
ALONE = 0.5
JOINED = 0.7
MAX_FINDINGS = 2048
MAX_CASE = 256
MAX_RAISED = 4096
STORY_LINES = 16

_CALLS = frozenset({Tactic.COMMAND_AND_CONTROL, Tactic.EXFILTRATION})

Key = tuple[FindingKind, str, str]

_FINDINGS = TypeAdapter(list[tuple[Finding, str]])
_RAISED = TypeAdapter(list[tuple[str, list[str], float]])


@dataclass(frozen=True, slots=True)
class Piece:
    """A finding, and the alert that told of it."""

    finding: Finding
    alert: bytes

    @property
    def key(self) -> Key:
        """What makes it the same finding again, only stronger."""
        return key_of(self.finding)


def key_of(finding: Finding) -> Key:
    """Return what a finding has in common with stronger ones of the same."""
    return (finding.kind, finding.subject, finding.source)


class Chains:
    """The findings of some days, and which incidents were made of them."""

    def __init__(self) -> None:
        self._pieces: dict[Key, Piece] = {}
        self._by_subject: dict[str, set[Key]] = {}
        self._by_target: dict[str, set[Key]] = {}
        self._raised: Memory[str, tuple[list[str], float]] = Memory(MAX_RAISED)
        """By the case's root: what was in its last incident, and its score."""

    def __len__(self) -> int:
        return len(self._pieces)

    def add(self, finding: Finding, alert: bytes) -> bool:
        """Take a finding; return whether it says something new."""
        if finding.score < LEAST:
            return False
        known = self._pieces.get(key_of(finding))
        if known is not None:
            again = finding.first_s > known.finding.last_s + MEMORY_S
            if not again and finding.score < known.finding.score + CLEARLY_STRONGER:
                return False
            self._remove(known)
            if not again:
                finding = finding.model_copy(update={"first_s": min(known.finding.first_s, finding.first_s)})
        self._insert(Piece(finding, alert))
        while len(self._pieces) > MAX_FINDINGS:
            self._remove(min(self._pieces.values(), key=lambda piece: (piece.finding.last_s, piece.key)))
        return True

    def incident(self, finding: Finding) -> tuple[str, Incident] | None:
        """Return the incident that a finding's case is by now, and its root, if that is news."""
        case = self._case(key_of(finding))
        if not case:
            return None
        strength = _join(piece.finding.score for piece in _strongest_of_kinds(case))
        links = [(f, g) for f in case for g in case if f is not g and _continues(f.finding, g.finding)]
        victims = {g.key for f, g in links if _was_attacked(f.finding, g.finding)}
        steps = [(f, g) for f, g in links if _step(f, g, victims)]
        if not steps and not _is_corroborated(case) and max(p.finding.score for p in case) < ALONE:
            return None
        root = min(case, key=lambda piece: (piece.finding.first_s, piece.key)).finding.subject
        held = sorted(
            {f"{p.finding.kind.value} {p.finding.subject} {_name(_tactic(p, victims))}" for p in case}
        )
        raised = self._raised.get(root)
        if raised is not None and set(held) <= set(raised[0]) and strength < raised[1] + CLEARLY_STRONGER:
            return None
        self._raised.keep(root, (held, strength))
        return root, _incident(root, case, held, victims, chained=bool(steps))

    def dump(self) -> dict[str, object]:
        """Return everything that must survive a restart, as JSON has it."""
        pieces = [(piece.finding, piece.alert.hex()) for piece in self._pieces.values()]
        raised = [(root, *values) for root, values in self._raised.items()]
        return {
            "findings": _FINDINGS.dump_python(pieces, mode="json"),
            "raised": _RAISED.dump_python(raised, mode="json"),
        }

    def load(self, dumped: Mapping[str, object]) -> None:
        """Go on with what was dumped.

        Raises:
            InvalidInputError: ``bad_state``.
        """
        try:
            pieces = [
                Piece(one, bytes.fromhex(alert))
                for one, alert in _FINDINGS.validate_python(dumped.get("findings"))
            ]
            raised = _RAISED.validate_python(dumped.get("raised"))
        except (ValidationError, ValueError) as error:
            raise InvalidInputError("no state of chains", reason="bad_state") from error
        for piece in pieces[:MAX_FINDINGS]:
            self._insert(piece)
        for root, held, strength in raised:
            self._raised.keep(root, (held, strength))

    def _insert(self, piece: Piece) -> None:
        self._pieces[piece.key] = piece
        self._by_subject.setdefault(piece.finding.subject, set()).add(piece.key)
        for target in piece.finding.targets:
            self._by_target.setdefault(target, set()).add(piece.key)

    def _remove(self, piece: Piece) -> None:
        del self._pieces[piece.key]
        _discard(self._by_subject, piece.finding.subject, piece.key)
        for target in piece.finding.targets:
            _discard(self._by_target, target, piece.key)

    def _case(self, key: Key) -> list[Piece]:
        """Return everything that is linked with a finding, in the order of time."""
        if key not in self._pieces:
            return []
        found = {key: self._pieces[key]}
        waiting = deque([key])
        while waiting and len(found) < MAX_CASE:
            piece = self._pieces[waiting.popleft()]
            for other in self._near(piece):
                if other.key in found or not _linked(piece.finding, other.finding):
                    continue
                found[other.key] = other
                waiting.append(other.key)
        return sorted(found.values(), key=lambda piece: (piece.finding.first_s, piece.key))[-MAX_CASE:]

    def _near(self, piece: Piece) -> Iterable[Piece]:
        finding = piece.finding
        keys = set(self._by_subject.get(finding.subject, ())) | self._by_target.get(finding.subject, set())
        for target in finding.targets:
            keys |= self._by_subject.get(target, set())
            if tactic_of(finding) in _CALLS:
                keys |= self._by_target.get(target, set())
        keys.discard(piece.key)
        return [self._pieces[key] for key in sorted(keys)]


def _discard(index: dict[str, set[Key]], name: str, key: Key) -> None:
    keys = index.get(name)
    if keys is not None:
        keys.discard(key)
        if not keys:
            del index[name]


def _linked(one: Finding, other: Finding) -> bool:
    return _continues(one, other) or _continues(other, one)


def _continues(f: Finding, g: Finding) -> bool:
    """Tell whether g continues f, by the rules at the head of this module."""
    if not f.first_s <= g.first_s <= f.last_s + MEMORY_S:
        return False
    if f.subject == g.subject or _was_attacked(f, g):
        return True
    calls = tactic_of(f) in _CALLS
    outside = {target for target in f.targets if not is_internal(target)} if calls else set()
    return g.subject in outside or (tactic_of(g) in _CALLS and bool(outside & set(g.targets)))


def _was_attacked(f: Finding, g: Finding) -> bool:
    """Tell whether g's subject is a host of ours that f's subject has attacked; being called is no attack."""
    return (
        g.subject in f.targets
        and g.subject != f.subject
        and is_internal(g.subject)
        and tactic_of(f) not in _CALLS
    )


def _tactic(piece: Piece, victims: set[Key]) -> Tactic | None:
    tactic = tactic_of(piece.finding)
    inside = any(is_internal(target) for target in piece.finding.targets)
    return Tactic.LATERAL_MOVEMENT if tactic in ATTACKS and piece.key in victims and inside else tactic


def _step(f: Piece, g: Piece, victims: set[Key]) -> bool:
    earlier, later = _tactic(f, victims), _tactic(g, victims)
    return earlier is not None and later is not None and later > earlier


def _name(tactic: Tactic | None) -> str:
    return tactic.phase if tactic is not None else "unknown"


def _is_corroborated(case: list[Piece]) -> bool:
    by_subject: dict[str, list[Piece]] = {}
    for piece in case:
        by_subject.setdefault(piece.finding.subject, []).append(piece)
    for pieces in by_subject.values():
        kinds = {piece.finding.kind for piece in pieces}
        sources = {piece.finding.source for piece in pieces}
        if (
            min(len(kinds), len(sources)) >= 2
            and _join(p.finding.score for p in _strongest_of_kinds(pieces)) >= JOINED
        ):
            return True
    return False


def _strongest_of_kinds(pieces: Iterable[Piece]) -> list[Piece]:
    """Return the strongest finding of each kind: twice the same is not twice as strong."""
    best: dict[FindingKind, Piece] = {}
    for piece in pieces:
        known = best.get(piece.finding.kind)
        if known is None or piece.finding.score > known.finding.score:
            best[piece.finding.kind] = piece
    return list(best.values())


def _join(scores: Iterable[float]) -> float:
    missing = 1.0
    for score in scores:
        missing *= 1 - score
    return 1 - missing


def _incident(root: str, case: list[Piece], held: list[str], victims: set[Key], *, chained: bool) -> Incident:
    ranked = sorted(case, key=lambda p: (p.finding.features is None, -p.finding.score, p.key))
    primary, *related = [piece.finding for piece in ranked[: MAX_RELATED + 1]]
    lines = [f"{_name(_tactic(piece, victims))}: {summary_of(piece.finding)}" for piece in case]
    kept = (
        lines
        if len(lines) <= STORY_LINES
        else [*lines[: STORY_LINES - 1], f"… and {len(lines) - STORY_LINES + 1} more"]
    )
    digest = hashlib.sha256(b"tocsin/chain/1")
    for part in (root, *held, repr(primary.score), "chain" if chained else ""):
        digest.update(len(part.encode()).to_bytes(8, "big") + part.encode())
    value = bytearray(digest.digest()[:16])
    value[6] = 0x80 | (value[6] & 0x0F)  # a UUIDv8 (RFC 9562 section 5.8)
    value[8] = 0x80 | (value[8] & 0x3F)
    return Incident(
        incident=bytes(value),
        primary=primary,
        related=tuple(within(related, MAX_RELATED_BYTES)),
        alerts=tuple(dict.fromkeys(piece.alert for piece in ranked[:64])),
        story=tuple(line[:512] for line in kept),
    )
