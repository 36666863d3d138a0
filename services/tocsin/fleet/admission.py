"""Whether an enrolment request is granted, and what is recorded of it. Pure: no I/O and no clock.

A token promises a host, some agents with their roles, and perhaps the host's own id. A request proves the
token by its code and may ask for all of these ids or for some (a key for each agent). Each id that a token
promises can be bound to **one** key under that token, once: the same key may ask again, which renews its
certificate or repeats an answer that was lost; another key may not, ever. A token that has expired or was withdrawn
binds nothing more (:func:`require_open`); what was bound in time is renewed as before.

Generations rise with every new key of an id, so that whoever has seen the later certificate refuses the
earlier one (envelope.md, "Identity").

Example:
    >>> grant = admit(request, sender, tokens, domain)  # doctest: +SKIP
    >>> enrolments = bind_all(grant, held, token_id=..., key_id=..., now_ns=...)  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tocsin.bus.enrolment import IssuedToken, mac_matches
from tocsin.contracts.errors import (
    ConflictError,
    DeniedError,
    ExhaustedError,
    InvalidInputError,
    UntrustedError,
)
from tocsin.contracts.fleet import Enrolment, EnrolRequest
from tocsin.contracts.identifiers import SpiffeId
from tocsin.crypto.certificates import violation

MAX_TOKENS_PER_ID = 256
"""Tokens that one id can use up in its life: the bound of ``Enrolment.used_before``."""


def admit(
    request: EnrolRequest, sender: SpiffeId, tokens: Mapping[str, IssuedToken], domain: str
) -> tuple[SpiffeId, ...]:
    """Return the ids to certify, the host's first if it is among them.

    Args:
        request: its signature, by the key that it brings, was verified.
        sender: who it says it is from.
        tokens: by token id.
        domain: the trust domain.

    Raises:
        UntrustedError: ``bad_token``: no such token, or not its code. One reason for both.
        DeniedError: ``wrong_host``, ``wrong_agents`` or ``wrong_sender``: more than the token promises.
        InvalidInputError: a rule on the names, e.g. ``bad_names`` (none, or one twice) or ``shared_key``.
    """
    token = tokens.get(request.token_id)
    if token is None or not mac_matches(token.secret, request):
        raise UntrustedError("no such enrolment token", reason="bad_token")
    if request.host != token.host or (request.names_host and not token.names_host):
        raise DeniedError(f"token {token.token_id} is not for host {request.host}", reason="wrong_host")
    promised = {(agent.name, agent.role) for agent in token.agents}
    beyond = [agent.name for agent in request.agents if (agent.name, agent.role) not in promised]
    if beyond:
        raise DeniedError(
            f"token {token.token_id} is not for {', '.join(beyond[:5])} in that role", reason="wrong_agents"
        )
    ids = [SpiffeId.host(domain, request.host)] if request.names_host else []
    ids += [SpiffeId.agent(domain, agent.role, agent.name) for agent in request.agents]
    if reason := violation(ids, domain, from_root=False):
        # Known before anything is recorded: a token is not used up by what no authority would issue.
        raise InvalidInputError("no certificate can name these ids together", reason=reason)
    if sender not in ids:
        raise DeniedError(f"{sender} asks for a certificate of others", reason="wrong_sender")
    return tuple(ids)


def require_open(
    token: IssuedToken,
    held: Mapping[SpiffeId, Enrolment | None],
    bound: Mapping[SpiffeId, Enrolment],
    *,
    now_ns: int,
) -> None:
    """Check that a token may still bind what is new in ``bound``.

    Raises:
        DeniedError: ``token_withdrawn`` or ``token_expired``: it binds no further key.
    """
    if all(held.get(one) == enrolment for one, enrolment in bound.items()):
        return
    advice = "`tocsin agent enroll --issue` makes another"
    if token.withdrawn_ns is not None:
        raise DeniedError(f"token {token.token_id} was withdrawn", reason="token_withdrawn", advice=advice)
    if token.expires_ns is not None and now_ns > token.expires_ns:
        raise DeniedError(f"token {token.token_id} has expired", reason="token_expired", advice=advice)


def bind(
    spiffe_id: SpiffeId, held: Enrolment | None, *, token_id: str, key_id: bytes, now_ns: int
) -> Enrolment:
    """Return the enrolment of one id under a token: ``held`` itself if it is the same once more.

    Raises:
        ConflictError: ``token_used`` for this id with another key, or ``name_taken`` by another role.
        ExhaustedError: ``too_many_enrolments``.
    """
    if held is None:
        return Enrolment(id=str(spiffe_id), token_id=token_id, key_id=key_id, generation=1, enrolled_ns=now_ns)
    if held.id != str(spiffe_id):
        raise ConflictError(f"{spiffe_id.token} is enrolled as {held.id}", reason="name_taken")
    if held.token_id == token_id and held.key_id == key_id:
        return held
    if token_id in {held.token_id, *held.used_before}:
        raise ConflictError(
            f"token {token_id} was used for {spiffe_id} with another key",
            reason="token_used",
            advice="give the host a fresh token, or its old key",
        )
    if len(held.used_before) >= MAX_TOKENS_PER_ID:
        raise ExhaustedError(f"{spiffe_id} has used too many tokens", reason="too_many_enrolments")
    return Enrolment(
        id=held.id,
        token_id=token_id,
        used_before=(*held.used_before, held.token_id),
        key_id=key_id,
        generation=held.generation + 1,
        enrolled_ns=now_ns,
    )


def bind_all(
    ids: Sequence[SpiffeId],
    held: Mapping[SpiffeId, Enrolment | None],
    *,
    token_id: str,
    key_id: bytes,
    now_ns: int,
) -> dict[SpiffeId, Enrolment]:
    """Bind several ids to one key: one certificate, hence one generation, above that of each.

    Raises:
        TocsinError: as :func:`bind`.
    """
    bound = {one: bind(one, held.get(one), token_id=token_id, key_id=key_id, now_ns=now_ns) for one in ids}
    generation = max(enrolment.generation for enrolment in bound.values())
    return {one: enrolment.model_copy(update={"generation": generation}) for one, enrolment in bound.items()}
