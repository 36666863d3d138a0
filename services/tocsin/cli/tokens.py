"""``tocsin agent tokens``: which enrolment tokens there are, what became of each, and taking one back."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from tocsin.bus import Bus
from tocsin.bus.enrolment import IssuedToken
from tocsin.cli.installation import Installation
from tocsin.cli.invite import tokens_changed
from tocsin.contracts.catalogue import ENROLMENTS
from tocsin.contracts.errors import InvalidInputError
from tocsin.contracts.fleet import Enrolment
from tocsin.contracts.identifiers import SpiffeId


class TokenState(StrEnum):
    """What became of a token."""

    OPEN = "open"
    """It can still enrol a key."""
    USED = "used"
    """Keys were enrolled with it; they alone can renew with it."""
    EXPIRED = "expired"
    WITHDRAWN = "withdrawn"


@dataclass(frozen=True, slots=True)
class TokenView:
    """A token as an operator sees it; never its secret."""

    token_id: str
    host: str
    agents: tuple[str, ...]
    expires_ns: int | None
    state: TokenState
    used_for: int
    """Ids that were enrolled with it."""
    of: int
    """Ids that it is for."""


def view(token: IssuedToken, enrolments: Mapping[str, Enrolment], domain: str, *, now_ns: int) -> TokenView:
    """Say what became of a token. Pure.

    Args:
        token: as fleet knows it.
        enrolments: who was enrolled, by the id's token.
        domain: the trust domain.
        now_ns: the present, nanoseconds since the epoch.
    """
    ids = [SpiffeId.host(domain, token.host)] if token.names_host else []
    ids += [SpiffeId.agent(domain, agent.role, agent.name) for agent in token.agents]
    used = sum(_used(enrolments.get(one.token), token.token_id) for one in ids)
    if used == len(ids):
        state = TokenState.USED
    elif token.withdrawn_ns is not None:
        state = TokenState.WITHDRAWN
    elif token.expires_ns is not None and now_ns > token.expires_ns:
        state = TokenState.EXPIRED
    else:
        state = TokenState.OPEN
    names = tuple(agent.name for agent in token.agents)
    return TokenView(token.token_id, token.host, names, token.expires_ns, state, used, len(ids))


async def views(bus: Bus, installation: Installation, *, now_ns: int) -> list[TokenView]:
    """Return all tokens and what became of them, as fleet's records have it."""
    enrolments = await bus.records(ENROLMENTS).all()
    return [view(token, enrolments, bus.trust.domain, now_ns=now_ns) for token in installation.issued()]


def as_text(tokens: Sequence[TokenView]) -> list[str]:
    """Return a table, a line a token."""
    lines = [f"{'token':34} {'state':10} {'enrolled':>9}  {'expires (UTC)':20} agents"]
    for one in tokens:
        expires = "-"
        if one.expires_ns is not None:
            expires = f"{datetime.fromtimestamp(one.expires_ns / 1e9, UTC):%Y-%m-%d %H:%M:%S}"
        agents = " ".join(one.agents[:4]) + (f" and {len(one.agents) - 4} more" if len(one.agents) > 4 else "")
        enrolled = f"{one.used_for} of {one.of}"
        lines.append(f"{one.token_id:34} {one.state.value:10} {enrolled:>9}  {expires:20} {agents}".rstrip())
    return lines


def withdraw(installation: Installation, token_ids: Collection[str], *, now_ns: int) -> None:
    """Take tokens back: they enrol no further key. A key that was enrolled before goes on until it is revoked.

    Raises:
        InvalidInputError: ``unknown_token``: nothing is changed.
    """
    with tokens_changed(installation) as tokens:
        missing = set(token_ids) - {token.token_id for token in tokens}
        if missing:
            raise InvalidInputError(
                f"no token is called {', '.join(sorted(missing))[:120]}",
                reason="unknown_token",
                advice="`tocsin agent tokens` lists them",
            )
        for at, token in enumerate(tokens):
            if token.token_id in token_ids and token.withdrawn_ns is None:
                tokens[at] = token.model_copy(update={"withdrawn_ns": now_ns})


def clean(installation: Installation, seen: Sequence[TokenView]) -> int:
    """Forget tokens that have ended and were never used; return how many. Used ones stay: hosts renew with them."""
    over = {one.token_id for one in seen if one.state in {TokenState.EXPIRED, TokenState.WITHDRAWN}}
    over -= {one.token_id for one in seen if one.used_for}
    with tokens_changed(installation) as tokens:
        tokens[:] = [token for token in tokens if token.token_id not in over]
    return len(over)


def _used(held: Enrolment | None, token_id: str) -> bool:
    return held is not None and token_id in {held.token_id, *held.used_before}
