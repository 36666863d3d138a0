"""A specialist's plan: what it takes an inventory of, how often, and what the operator assumes. A JSON file.

    {"zeek_ssl": "/var/log/zeek/ssl.log", "zeek_x509": "/var/log/zeek/x509.log",
     "probe": ["mail.example.org:443"], "every_s": 3600, "sensitive": {"mail.example.org": 25}}

It is read anew for each inventory, and a change of it asks for one at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tocsin.agent.roles.probe import MAX_TARGETS, parse_target
from tocsin.agent.roles.survey import Sources
from tocsin.analysis.inventory.judging import MACHINE_YEAR, MIGRATION_YEARS, SECRECY_YEARS, Assumptions
from tocsin.contracts.errors import InvalidInputError, UnavailableError

MAX_PLAN_BYTES = 1024 * 1024

Years = Annotated[float, Field(ge=0, le=200)]


class Plan(BaseModel):
    """What the file may say. Paths are relative to its folder."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    zeek_ssl: Path | None = None
    zeek_x509: Path | None = None
    probe: Annotated[tuple[Annotated[str, Field(max_length=300)], ...], Field(max_length=MAX_TARGETS)] = ()
    """Endpoints to ask, ``host:port``; nothing else is ever connected to."""
    own: bool = False
    """Whether Tocsin's own cryptography is declared beside."""
    every_s: Annotated[float, Field(ge=1, le=30 * 86_400)] = 3600.0
    cbom: Path | None = None
    """Where the CBOM is written after each inventory."""
    secrecy_years: Years = SECRECY_YEARS
    migration_years: Years = MIGRATION_YEARS
    machine_year: Annotated[int, Field(ge=2000, le=2200)] = MACHINE_YEAR
    sensitive: Annotated[dict[Annotated[str, Field(max_length=300)], Years], Field(max_length=4096)] = {}

    def sources(self, folder: Path) -> Sources:
        """Return where the inventory comes from.

        Raises:
            InvalidInputError: ``bad_endpoint``.
        """
        return Sources(
            None if self.zeek_ssl is None else folder / self.zeek_ssl,
            None if self.zeek_x509 is None else folder / self.zeek_x509,
            tuple(map(parse_target, self.probe)),
            self.own,
        )

    def assumptions(self, now_s: float) -> Assumptions:
        """Return what the ranking assumes."""
        return Assumptions(
            now_s, self.secrecy_years, self.migration_years, self.machine_year, dict(self.sensitive)
        )


def parse_plan(data: bytes) -> Plan:
    """Read a plan.

    Raises:
        InvalidInputError: ``bad_plan``.
    """
    try:
        return Plan.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise InvalidInputError(f"the plan: {where}: {first['msg']}"[:300], reason="bad_plan") from error


def read_plan(path: Path) -> Plan:
    """Read a plan's file.

    Raises:
        UnavailableError: ``no_plan``.
        InvalidInputError: ``bad_plan``.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_PLAN_BYTES + 1)
    except OSError as error:
        raise UnavailableError(f"cannot read {path}: {error.strerror}", reason="no_plan") from error
    if len(data) > MAX_PLAN_BYTES:
        raise InvalidInputError(f"a plan of more than {MAX_PLAN_BYTES} bytes", reason="bad_plan")
    return parse_plan(data)
